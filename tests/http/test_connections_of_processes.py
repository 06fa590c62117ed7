"""The real deadlines and caps of a real process, with good clients beside the bad ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.http.contract import assert_refused
from tests.http.test_connections import HALF_BODY, HALF_HEAD
from tests.http.test_contract_of_processes import address, running
from tests.http.wire import Connection, get

GOOD: Final = 100
HEAD, BODY = 10.0, 30.0
LATE: Final = 20.0  # a guard: several times what a loaded machine needs


@pytest.fixture
def node(home: Path) -> Iterator[str]:
    with running(home, 1) as (process,):
        yield address(process)


def answers(door: Connection) -> bool:
    return door.ask(get("/health")).status == 200


@pytest.mark.timeout(120)
def test_slow_clients_end_in_time_while_a_hundred_good_ones_are_served(node: str) -> None:
    with contextlib.ExitStack() as stack:
        good = [stack.enter_context(Connection(node)) for _ in range(GOOD)]
        assert all(map(answers, good))
        started = time.monotonic()
        silent, head, body = (stack.enter_context(Connection(node)) for _ in range(3))
        head.send(HALF_HEAD)
        body.send(HALF_BODY)
        ended: dict[str, float] = {}
        slow = {"silent": silent, "head": head, "body": body}
        while len(ended) < len(slow):
            assert all(map(answers, good))
            assert time.monotonic() - started < BODY + LATE, f"only {ended} ended"
            for name, door in slow.items():
                if name not in ended and door.is_readable(0.3):
                    ended[name] = time.monotonic() - started
        for name, after in (("silent", HEAD), ("head", HEAD), ("body", BODY)):
            assert after - 0.5 < ended[name] < after + LATE
        assert silent.rest() == b""
        for door in (head, body):
            assert_refused(door.read(), 408)
            assert door.rest() == b""


def test_of_three_hundred_connections_the_longest_idle_make_room(node: str) -> None:
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(Connection(node)) for _ in range(300)]
        for door in doors[:44]:  # the longest idle
            assert door.rest() == b""
        assert all(map(answers, doors[44:]))
        newest = stack.enter_context(Connection(node))
        stats = newest.ask(get("/v1/stats")).json["counters"]
        assert stats["http_connections_evicted"] == 45
        assert "http_connections_refused" not in stats
