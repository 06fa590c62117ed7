"""kill -9 of real processes, with real stores, at every point of a message's way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import Process, eventually

POINTS: Final = {
    "after the outbox's commit": "sender",
    "after the receipt": "sender",
    "before the mailbox's commit": "receiver",
    "after the mailbox's commit": "receiver",
    "during the handler": "receiver",
    "before the end is on record": "receiver",
    "after the end is on record": "receiver",
}
#: At these a handler was interrupted for sure, or its end was not on record.
RUNS_AGAIN: Final = {"during the handler", "before the end is on record"}
#: How often each is tried; ``tox -e survival`` asks for 50.
TIMES: Final = int(os.environ.get("SURVIVAL_TIMES", "2"))
MESSAGES: Final = 8
MORE_THAN_A_TTL: Final = 25 * 3600.0
RELAY_POINTS: Final = ("a relayed frame is read", "a relayed frame is forwarded")


class Mortals:
    """A sender and a receiver, each with a data directory, that can be started again,
    and relays with none."""

    def __init__(self, home: Path, mesh: str, stack: ExitStack) -> None:
        self._home = home
        self._mesh = mesh
        self._stack = stack
        self._log = home / "log"

    def start(
        self,
        role: str,
        *,
        point: str | None = None,
        count: int = 0,
        first: int = 0,
        last: int = 0,
        is_shut: bool = False,
        clock: float = 0.0,
    ) -> Process:
        """``is_shut``: nobody can dial it, and it sends one message after the other.  Of
        several relays only one dies."""
        config = {
            "role": role, "mesh": self._mesh, "log": str(self._log), "point": point, "count": count,
            "data": str(self._home / role) if role != "relay" else None,
            "claim": str(self._home / "claim") if role == "relay" else None,
            "first": first, "last": last, "is_shut": is_shut, "one_by_one": is_shut,
            "clock": clock,
        }  # fmt: skip
        command = (sys.executable, str(Path(__file__).with_name("mortal.py")), json.dumps(config))
        return self._stack.enter_context(Process(command, home=self._home))

    def noted(self, what: str) -> list[Any]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [each for each in map(json.loads, lines) if what in each]


@pytest.fixture
def mortals(home: Path, mesh: str) -> Iterator[Mortals]:
    with ExitStack() as stack:
        yield Mortals(home, mesh, stack)


@pytest.mark.parametrize("time", range(TIMES))
@pytest.mark.parametrize("point", POINTS)
def test_what_was_safe_is_handled_in_order_whoever_is_killed_where(
    mortals: Mortals, point: str, time: int
) -> None:
    victim = POINTS[point]
    count = time % 3  # the first message, and later ones
    deaths = {role: (point if role == victim else None) for role in ("sender", "receiver")}
    receiver = mortals.start("receiver", point=deaths["receiver"], count=count)
    sender = mortals.start("sender", point=deaths["sender"], count=count, last=MESSAGES)
    (sender if victim == "sender" else receiver).wait()
    sent = len(mortals.noted("sends")) if victim == "sender" else 0
    if victim == "sender":
        mortals.start("sender", first=sent, last=MESSAGES)
    else:
        mortals.start("receiver")

    def all_is_handled() -> bool:
        safe = {each["safe"] for each in mortals.noted("safe")}
        return set(range(sent, MESSAGES)) <= safe <= {each["ran"] for each in mortals.noted("ran")}

    eventually(all_is_handled, "what was safe is handled")
    runs = mortals.noted("ran")
    order = list(dict.fromkeys(each["ran"] for each in runs))
    assert order == sorted(order)
    # One handler runs at a time: at most one was interrupted, and that one knows it.
    twice = [each for each, times in Counter(run["ran"] for run in runs).items() if times > 1]
    assert len(twice) <= (victim == "receiver")
    assert len(runs) == len(order) + len(twice)
    if point in RUNS_AGAIN:
        assert twice
    for each in twice:
        assert [run["attempt"] for run in runs if run["ran"] == each] == [1, 2]


@pytest.mark.parametrize("time", range(TIMES))
@pytest.mark.parametrize("point", RELAY_POINTS)
def test_what_was_stored_is_handled_once_and_in_order_when_its_relay_is_killed(
    mortals: Mortals, point: str, time: int
) -> None:
    """Sender and receiver can be dialled by nobody, so they meet through the two relays
    alone.  The relay that they use dies with a message, a receipt or an end in its hands."""
    relays = [mortals.start("relay", point=point, count=time * 3 % 13) for _ in range(2)]
    eventually(lambda: len(mortals.noted("up")) == 2, "the relays have joined")
    mortals.start("receiver", is_shut=True)
    mortals.start("sender", last=MESSAGES, is_shut=True)

    def all_is_handled() -> bool:
        return len(mortals.noted("stored")) == MESSAGES <= len(mortals.noted("ran"))

    eventually(all_is_handled, "what was sent is stored and handled")
    (dead,) = [relay for relay in relays if relay.is_over]
    assert dead.wait() == -signal.SIGKILL
    carried = [each["pid"] for each in mortals.noted("relayed")]
    assert set(carried) == {relay.pid for relay in relays}
    assert carried[-1] != dead.pid
    runs = mortals.noted("ran")
    assert [(each["ran"], each["attempt"]) for each in runs] == [(n, 1) for n in range(MESSAGES)]


@pytest.mark.parametrize("jump", [MORE_THAN_A_TTL, -MORE_THAN_A_TTL])
def test_clocks_that_jump_over_a_day_expire_nothing_that_waits(
    mortals: Mortals, jump: float
) -> None:
    """While the receiver is away; then each has another process, under another clock."""
    receiver = mortals.start("receiver", point="during the handler")
    sender = mortals.start("sender", last=MESSAGES, clock=-jump)
    receiver.wait()
    eventually(lambda: len(mortals.noted("safe")) == MESSAGES, "all is safe")
    sender.signal(signal.SIGUSR1)
    eventually(lambda: bool(mortals.noted("jumped")), "the clock has jumped")
    sender.kill()
    mortals.start("sender", clock=-jump)
    mortals.start("receiver", clock=jump)
    eventually(lambda: len(mortals.noted("ran")) == MESSAGES + 1, "all is handled")
    runs = [(each["ran"], each["attempt"]) for each in mortals.noted("ran")]
    assert runs == [(0, 1), (0, 2), *((number, 1) for number in range(1, MESSAGES))]
