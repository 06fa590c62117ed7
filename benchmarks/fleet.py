"""Many real nodes for the benchmarks: what they say, and what they cost.

A fleet is processes of this machine, one or many nodes in each.  They import
everything, say so, and wait at a barrier, so that what Python takes to start is in no
figure.  Each prints one JSON line an event, with the node's own ``t``.

Run as a program this file is such a process: it reads its orders from standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

GUARD = 300.0
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


# --- in each process --------------------------------------------------------------


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def live(settings: dict[str, Any], count: int, told: Collection[str]) -> None:
    """One node: from its start until the process is asked to leave.  ``told``: the kinds
    of events that it prints."""
    from p2pmesh import Node

    node = Node(**settings)
    await node.start()
    say(event="bound", id=node.instance_id, t=time.time(), at=node.address)
    events = asyncio.create_task(report(node, told))
    await node.joined()
    say(event="joined", id=node.instance_id, t=time.time())
    if count:
        await node.wait_for(count=count, timeout=GUARD)
        say(event="full", id=node.instance_id, t=time.time())
    await leaving.wait()
    await node.leave()
    events.cancel()


async def report(node: Any, told: Collection[str]) -> None:
    async for event in node.events():
        kind = type(event).__struct_config__.tag
        if kind in told:
            say(
                event=kind, by=node.instance_id, t=event.t,
                of=getattr(event, "instance_id", None) or getattr(event, "leader_id", None),
                evidence=getattr(event, "evidence", None),
            )  # fmt: skip


REPORTED = ("member_failed", "member_left", "member_joined", "member_stalled", "leader_changed")


async def obey() -> None:
    """Orders, one a line: run nodes, hold the loop, leave."""
    loop = asyncio.get_running_loop()
    nodes: list[asyncio.Task[None]] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, leaving.set)
    orders: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin, lambda: orders.put_nowait(sys.stdin.readline()))
    leave = asyncio.create_task(leaving.wait())
    while not leaving.is_set():
        order = asyncio.create_task(orders.get())
        await asyncio.wait({order, leave}, return_when=asyncio.FIRST_COMPLETED)
        if not order.done():
            order.cancel()
            break
        line = order.result()
        if not line:
            break
        match json.loads(line):
            case {"do": "run", "nodes": [*all_settings], "count": count, **more}:
                told = more.get("told", REPORTED)
                nodes += [asyncio.create_task(live(each, count, told)) for each in all_settings]
            case {"do": "sleep", "seconds": seconds}:
                time.sleep(seconds)  # noqa: ASYNC251 - a handler that blocks
            case {"do": "busy", "seconds": seconds}:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    pass
            case {"do": "hold", "seconds": seconds}:
                ctypes.PyDLL(None).sleep(seconds)  # with the GIL: no thread runs
    loop.remove_reader(sys.stdin)  # an end is read again and again
    leaving.set()
    await asyncio.gather(*nodes, return_exceptions=True)


def main() -> None:
    global leaving
    import p2pmesh.node  # noqa: F401 - before the barrier

    say(event="ready")
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run

    async def begin() -> None:
        global leaving
        leaving = asyncio.Event()
        await obey()

    run(begin())


leaving: asyncio.Event


# --- the fleet --------------------------------------------------------------------


class Member:
    """One process, and the lines that it printed."""

    #: How it is asked to leave.
    leaving = signal.SIGTERM

    def __init__(self, name: str, command: Sequence[str], home: Path) -> None:
        self.name = name
        variables = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "P2PMESH_RUNTIME_DIR": str(home / "run"),
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=variables, text=True, bufsize=1,
        )  # fmt: skip
        self.lines: list[dict[str, Any]] = []
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            for said in self.heard(line):
                self._arrived.put(said)
        self._arrived.put(None)

    def heard(self, line: str) -> list[dict[str, Any]]:
        """What the process says with that line of its output."""
        return [json.loads(line)]

    def order(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def wait(self, event: str | Sequence[str], since: float = 0.0, **fields: Any) -> dict[str, Any]:
        """The first line of such an event, or of one of these, that was said at ``since``
        (unix seconds) or later."""
        events = (event,) if isinstance(event, str) else event
        until = time.monotonic() + GUARD
        seen = 0
        while True:
            for line in self.lines[seen:]:
                if (
                    line["event"] in events
                    and line.get("t", since) >= since
                    and all(line.get(field) == value for field, value in fields.items())
                ):
                    return line
            seen = len(self.lines)
            try:
                line = self._arrived.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                text = f"{self.name} did not say {event} {fields} in {GUARD:.0f} s"
                raise TimeoutError(text) from None
            if line is None:
                raise RuntimeError(f"{self.name} ended and never said {event} {fields}")
            self.lines.append(line)

    def said(self, event: str, since: float = 0.0) -> list[dict[str, Any]]:
        """All such lines until now."""
        while not self._arrived.empty():
            line = self._arrived.get()
            if line is not None:
                self.lines.append(line)
        return [line for line in self.lines if line["event"] == event and line["t"] >= since]

    def forget(self) -> None:
        self.said("")
        self.lines.clear()

    @property
    def cpu(self) -> float:
        """Seconds of processor that it used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    @property
    def resident(self) -> int:
        """Bytes of memory that it has."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE

    def leave(self) -> None:
        self.process.send_signal(self.leaving)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Fleet:
    """So many processes of one mesh.  A context manager; nothing outlives its end."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        """``settings``: of every node.  They meet in the runtime directory on loopback
        if nothing else is said."""
        self.mesh = f"bench-{secrets.token_hex(4)}"
        self._home = directory
        self._settings = {
            "mesh": self.mesh, "http": None, "port": 0, "key": [],
            "mdns": False, "bind": ["127.0.0.1"], **settings,
        }  # fmt: skip
        self._made = 0
        self.quiet = 2.0  # seconds without a word that make it settled
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.end()

    def make(self, prefix: Sequence[str] = ()) -> Member:
        """One more process, at the barrier as soon as it says ``ready``."""
        member = self.member(f"a{self._made}", prefix)
        self._made += 1
        self.members.append(member)
        return member

    def member(self, name: str, prefix: Sequence[str]) -> Member:
        return Member(name, [*prefix, sys.executable, __file__], self._home)

    def settings(self, name: str, **more: Any) -> dict[str, Any]:
        return {**self._settings, "name": name, "instance_id": name, **more}

    def run(self, member: Member, count: int = 0, **more: Any) -> None:
        """Through the barrier: one node, which says ``full`` when it sees ``count``."""
        member.order(do="run", nodes=[self.settings(member.name, **more)], count=count)

    def start(self, number: int, *, said: Callable[[str], None] = lambda _: None) -> None:
        """So many more, one after the other, until every one of them sees all."""
        fresh = [self.make() for _ in range(number)]
        for at, member in enumerate(fresh, 1):
            member.wait("ready")
            self.run(member)
            member.wait("joined")
            said(f"started {at} of {number}")
        self.settle()

    def settle(self) -> None:
        """Until nothing was said for a while."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < self.quiet:
            time.sleep(0.1)
            for member in self.members:
                if not member._arrived.empty():
                    quiet_since = time.monotonic()
                    member.said("")

    def drop(self, member: Member) -> None:
        """It is gone: of no more interest."""
        member.process.wait()
        self.members.remove(member)


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


if __name__ == "__main__":
    main()
