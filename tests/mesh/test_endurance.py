"""Many messages between real processes, while links are reset and the receiver is killed.

``tox -e endurance`` asks for a hundred thousand and prints what it took; here it is two
thousand.  What was completed is told by a file that no process of ours reads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.processes import HANG_GUARD, Process, eventually

MESSAGES: Final = int(os.environ.get("ENDURANCE_REAL_MESSAGES", "2000"))
SENDERS: Final = ("durable", "memory")
#: A fault for so many messages; every fourth kills the receiver, the others reset links.
FAULT_EVERY: Final = max(MESSAGES // 100, 400)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resets sockets as Linux does")


class Run:
    """The processes, and the file that outlives them."""

    def __init__(self, home: Path, mesh: str, stack: ExitStack) -> None:
        self._home = home
        self._mesh = mesh
        self._stack = stack
        self._journal = home / "journal"
        self._journal.touch()
        self._read = 0  # bytes of it
        self._lines = 0  # in these

    def start(self, name: str, count: int = 0) -> Process:
        config = {
            "name": name, "mesh": self._mesh, "journal": str(self._journal), "count": count,
            "data": str(self._home / name) if name != "memory" else None,
        }  # fmt: skip
        program = str(Path(__file__).with_name("enduring.py"))
        command = (sys.executable, program, json.dumps(config))
        return self._stack.enter_context(Process(command, home=self._home))

    def count(self) -> int:
        """How many completions there are by now."""
        with self._journal.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self._lines += new.count(b"\n")
        return self._lines

    def completions(self) -> list[tuple[str, int, int]]:
        """Sender, number and attempt, in order."""
        lines = self._journal.read_text().splitlines()
        return [(name, int(n), int(attempt)) for name, n, attempt in map(str.split, lines)]


@pytest.fixture
def run(home: Path, mesh: str) -> Iterator[Run]:
    with ExitStack() as stack:
        yield Run(home, mesh, stack)


def told_again(completions: list[tuple[str, int, int]]) -> int:
    """How many were completed again after a death.  Asserts that each was told so, and that
    the others came once each and in order."""
    again = 0
    expected: Counter[str] = Counter()
    for sender, number, attempt in completions:
        if number == expected[sender]:
            expected[sender] += 1
        else:
            # Only the last one may have died between its completion and the record of it.
            assert number == expected[sender] - 1, f"{sender} {number}, not {expected[sender]}"
            assert attempt > 1, f"{sender} {number} is said to be new"
            again += 1
    assert expected == dict.fromkeys(SENDERS, MESSAGES // len(SENDERS))
    return again


def test_none_of_many_messages_is_lost_completed_unseen_twice_or_out_of_order(run: Run) -> None:
    rng = random.Random("endurance")
    began = time.monotonic()
    receiver = run.start("receiver")
    senders = [run.start(name, MESSAGES // len(SENDERS)) for name in SENDERS]
    for each in (receiver, *senders):
        each.event("joined")
    deaths = resets = 0
    for fault in range(1, MESSAGES // FAULT_EVERY):
        eventually(
            lambda fault=fault: run.count() >= fault * FAULT_EVERY,  # type: ignore[misc]
            f"{fault * FAULT_EVERY} completions",
        )
        if fault % 4 == 0:
            receiver.kill()
            receiver = run.start("receiver")
            receiver.event("joined")
            deaths += 1
        else:
            rng.choice(senders).signal(signal.SIGUSR1)
            resets += 1
        if fault % 10 == 0:
            took = time.monotonic() - began
            sys.stdout.write(f"{fault * FAULT_EVERY:,} of {MESSAGES:,} done in {took:.0f} s\n")
    for sender in senders:
        sender.event("finished", timeout=2 * HANG_GUARD)
    again = told_again(run.completions())
    assert again <= deaths * len(SENDERS)
    took = time.monotonic() - began
    sys.stdout.write(
        f"{MESSAGES:,} messages between processes over {resets} resets and {deaths} kills of the "
        f"receiver: 0 lost, 0 out of order, {again} again after a death and told so; "
        f"{took:.0f} s\n"
    )
