"""An agent that kills itself at a point of its work: ``python mortal.py CONFIG``.

CONFIG is JSON: ``role`` (sender, receiver or relay), ``mesh``, ``data`` (null: memory only),
``log`` (a file to which each thing that happened is appended as a line of JSON), ``point``
(where to die; null: nowhere), ``count`` (how often that point is passed before), ``claim``
(a file that only the first to die there makes; the others live on; null: all die),
``is_shut`` (true: nobody can dial this process), ``clock`` (seconds that its wall clock is
ahead; from SIGUSR1 on as many behind) and, for a sender, ``first`` and ``last``:
the numbers that it sends, one after the other as each is stored if ``one_by_one``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from p2pmesh import Node, running
from p2pmesh.driver import Driver, Saved
from p2pmesh.protocol.types import MessageMoved, Save, Table, Write

REAL_TIME_NS: Final = time.time_ns


class Death:
    """Comes when a point was passed often enough."""

    def __init__(
        self, point: str | None, count: int, claim: str | None, note: Callable[..., None]
    ) -> None:
        self._point = point
        self._left = count
        self._claim = claim
        self._note = note
        self._saves: dict[int, str] = {}  # number of a Save -> the point of its end
        self._relayed = 0

    def passed(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left < 0 and self._is_mine():
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_mine(self) -> bool:
        if self._claim is None:
            return True
        try:
            os.close(os.open(self._claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._point = None
        return self._point is not None

    def witness(self, driver: Driver, happened: object) -> None:
        match happened:
            case Write() if driver.core.counters().get("relayed", 0) > self._relayed:
                self._relayed = driver.core.counters()["relayed"]
                self._note(relayed=self._relayed)
                self.passed("a relayed frame is read")
                # The write itself is over when this turn of the loop is.
                asyncio.get_running_loop().call_soon(self.passed, "a relayed frame is forwarded")
            case Save(number, changes):
                kinds = {(change.table, change.value is not None) for change in changes}
                if (Table.OUTBOX, True) in kinds:
                    self._saves[number] = "after the outbox's commit"
                if (Table.MAILBOX, True) in kinds and (Table.IN_STREAMS, True) in kinds:
                    self.passed("before the mailbox's commit")
                    self._saves[number] = "after the mailbox's commit"
                if (Table.MAILBOX, False) in kinds:
                    self.passed("before the end is on record")
                    self._saves[number] = "after the end is on record"
            case Saved(number):
                for done in [each for each in self._saves if each <= number]:
                    self.passed(self._saves.pop(done))
            case MessageMoved(state="stored"):
                self.passed("after the receipt")


class ShutDriver(Driver):
    """Of a host behind a firewall: it dials whom it likes, and nobody can dial it."""

    def __init__(self, *, admits: Any, **rest: Any) -> None:
        super().__init__(admits=lambda address: False, **rest)


def set_wall_clock(ahead: float) -> None:
    time.time = lambda: REAL_TIME_NS() / 1e9 + ahead
    time.time_ns = lambda: REAL_TIME_NS() + int(ahead * 1e9)


async def main(config: dict[str, Any]) -> None:
    log = open(config["log"], "a", buffering=1)  # noqa: ASYNC230, SIM115

    def note(**what: Any) -> None:
        log.write(json.dumps({"pid": os.getpid(), **what}) + "\n")

    def jump() -> None:
        set_wall_clock(-config["clock"])
        note(jumped=config["role"])

    set_wall_clock(config["clock"])
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, jump)
    death = Death(config["point"], config["count"], config["claim"], note)
    Driver.witness = lambda driver, happened: death.witness(driver, happened)
    if config["is_shut"]:
        running.Driver = ShutDriver  # type: ignore[misc]
    node = Node(
        config["role"], mesh=config["mesh"], preset="local", mdns=False, http=None,
        data_dir=config["data"],
    )  # fmt: skip

    @node.on("Notification")
    async def work(message: Any) -> None:
        note(ran=message.payload, attempt=message.attempt)
        death.passed("during the handler")

    async with node:
        note(up=config["role"])
        if config["role"] == "sender":
            deliveries = []
            await node.wait_for(name="receiver", timeout=60)
            for number in range(config["first"], config["last"]):
                note(sends=number)
                deliveries.append(await node.send("receiver", number))
                note(safe=number)
                if config["one_by_one"]:
                    await deliveries[-1].stored()
                    note(stored=number)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
