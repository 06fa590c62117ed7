"""An agent that kills itself at a point of its work: ``python mortal.py CONFIG``.

CONFIG is JSON: ``role`` (sender or receiver), ``mesh``, ``data``, ``log`` (a file to
which each thing that happened is appended as a line of JSON), ``point`` (where to die;
null: nowhere), ``count`` (how often that point is passed before) and, for a sender,
``first`` and ``last``: the numbers that it sends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from p2pmesh import Node
from p2pmesh.driver import Driver, Saved
from p2pmesh.protocol.types import MessageMoved, Save, Table


class Death:
    """Comes when a point was passed often enough."""

    def __init__(self, point: str | None, count: int) -> None:
        self._point = point
        self._left = count
        self._saves: dict[int, str] = {}  # number of a Save -> the point of its end

    def passed(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def witness(self, happened: object) -> None:
        match happened:
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


async def main(config: dict[str, Any]) -> None:
    death = Death(config["point"], config["count"])
    Driver.witness = staticmethod(death.witness)
    log = open(config["log"], "a", buffering=1)  # noqa: ASYNC230, SIM115

    def note(**what: Any) -> None:
        log.write(json.dumps(what) + "\n")

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
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
