"""An agent to which things are done: ``python -m tests.lab.agent CONFIG``.

CONFIG is JSON: ``mesh``, ``data`` (its data directory), ``peers``, ``bind``, ``ahead`` (seconds
that its wall clock is ahead) and ``orders``, a file to which lines are appended: ``{"do": NAME,
"seconds": N}`` with the name of a function below.  Each is answered by an event ``did``.

It prints every event of its node as ``p2pmesh run --json`` does, at the moment at which the
core tells it; those of members with the ``version`` (life, incarnation) that is held then.
After each that may change it follows what it holds of the mesh: ``view``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from p2pmesh import Node
from p2pmesh.driver import Driver
from p2pmesh.protocol.types import Event, MemberFailed, MemberJoined, MemberLeft
from p2pmesh.transport.clock import instant

REAL_TIME_NS: Final = time.time_ns
_LOOKS: Final = 0.05  # seconds between looks at the orders and at the view


def write(line: dict[str, Any]) -> None:
    os.write(1, msgspec.json.encode(line) + b"\n")


class Teller:
    """Prints what one core tells, and what it holds."""

    def __init__(self) -> None:
        self._driver: Driver | None = None
        self._last: dict[str, Any] = {}

    def witness(self, driver: Driver, action: object) -> None:
        self._driver = driver
        if isinstance(action, Event):
            told = msgspec.to_builtins(action)
            if isinstance(action, MemberJoined | MemberFailed | MemberLeft):
                members = driver.core.members(instant())
                member = next((m for m in members if m.node_id == action.node_id), None)
                if member is not None:
                    told["version"] = [member.life, member.incarnation]
            write(told)

    def look(self) -> None:
        """Tells of the view if it is another one than before."""
        if self._driver is None or self._driver.is_stopped or not self._driver.core.is_joined:
            return
        core, at = self._driver.core, instant()
        me, leadership = core.me(at), core.leader(at)
        members = core.members(at)
        view = {
            "event": "view",
            "node_id": me.node_id,
            "instance_id": me.instance_id,
            "life": me.life,
            "hash": core.view_hash().hex(),
            "live": sorted(m.node_id for m in members if m.state in ("alive", "suspect")),
            "leader": leadership.leader_id,
            "epoch": leadership.epoch,
            "leads": leadership.token is not None,
        }
        if view != self._last:
            self._last = view
            write(view)


# --- orders ---------------------------------------------------------------------------


def set_clock(seconds: float) -> None:
    """The wall clock of this process is so much ahead."""
    time.time = lambda: REAL_TIME_NS() / 1e9 + seconds
    time.time_ns = lambda: REAL_TIME_NS() + int(seconds * 1e9)


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def hold_interpreter(seconds: float) -> None:
    """PyDLL, unlike CDLL, keeps the lock while it calls."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def fork(seconds: float) -> None:
    """The child never comes back to the loop."""
    if os.fork() == 0:
        os.close(1)  # who waits for the end of the parent's output need not wait for it
        while True:
            signal.pause()


ORDERS: Final = {each.__name__: each for each in (set_clock, compute, hold_interpreter, fork)}


async def obey(orders: Path, teller: Teller) -> None:
    done = 0
    while True:
        lines = orders.read_text().splitlines()  # noqa: ASYNC240
        for line in lines[done:]:
            order = json.loads(line)
            ORDERS[order["do"]](order["seconds"])
            done += 1
            write({"event": "did", "number": done})
        teller.look()
        await asyncio.sleep(_LOOKS)


async def main(config: dict[str, Any]) -> None:
    set_clock(config["ahead"])
    teller = Teller()
    Driver.witness = lambda driver, action: teller.witness(driver, action)
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    node = Node(
        "agent", mesh=config["mesh"], data_dir=config["data"], peers=config["peers"],
        bind=config["bind"], mdns=False, http=None,
    )  # fmt: skip
    works = []
    async with node:
        write({"event": "ready", "node_id": node.id, "instance_id": node.instance_id})
        obeying = asyncio.create_task(obey(Path(config["orders"]), teller))
        works = [asyncio.create_task(each) for each in (leaving.wait(), node.serve_forever())]
        over, _ = await asyncio.wait([*works, obeying], return_when=asyncio.FIRST_COMPLETED)
        obeying.cancel()
        for work in works:
            work.cancel()
        for each in over:
            each.result()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
