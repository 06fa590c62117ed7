"""One message to fifty processes: when the last of them has it (M5), beside others.

A sender and N receivers are processes of their own on one host, a network namespace with
an Ethernet interface (root); 256 B payloads, so many a second.  A sample is the time from
the call to the moment when the handler of the last receiver has the message.

    python benchmarks/shout.py --receivers 50 --casts 100 --samples 5

Systems: ours (encrypted, acknowledged by every receiver, down a tree), NATS (nats-py and
one nats-server, which copies), Zyre's protocol (``pyre-gevent``: the sender copies).
None of the others acknowledges.  They are installed as ``messages.py`` says.  Systems take
turns, sample by sample.  Prints one JSON line a system, then a table.  ``--quick`` takes
ours alone, ten receivers, on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, count
from benchmarks.fleet import quantile
from benchmarks.messages import end, nats_server, prepare, run, secret
from tests.lab.namespaces import missing
from tests.lab.network import Lab

SYSTEMS = ("p2pmesh", "nats", "zyre")
PAYLOAD = 256
PADDING = "x" * (PAYLOAD - 16)
EVERY = 0.1  # seconds between two messages
QUIET = 1.0  # seconds before the first and after the last, for what is still under way
GUARD = 60.0

Times = list[tuple[int, int]]  # number of the message, monotonic nanoseconds


def payload(number: int) -> bytes:
    return number.to_bytes(4).ljust(PAYLOAD, b"x")


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def ordered() -> None:
    """Returns at the next line of standard input, or at its end."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def paced(casts: int, send: Callable[[int], Any]) -> Times:
    """So many messages: when each was sent."""
    sent = []
    for number in range(casts):
        sent.append((number, time.monotonic_ns()))
        await send(number)
        await asyncio.sleep(EVERY)
    return sent


# --- ours -------------------------------------------------------------------------


async def live_p2pmesh(options: argparse.Namespace) -> Times:
    from p2pmesh import Node

    node = Node(
        options.name, mesh=options.mesh, peers=options.address, bind=(options.bind,), port=0,
        mdns=False, http=None, preset="local", key=secret(options.mesh),
    )  # fmt: skip
    taken: Times = []

    @node.on("Notification")
    async def take(message: Any) -> None:
        taken.append((message.payload["number"], time.monotonic_ns()))

    async with node:
        say(address=node.members()[0].addresses[0])
        if options.casts:
            await node.wait_for(count=options.receivers + 1, timeout=GUARD)
            say(event="ready")
            await ordered()
            return await paced(
                options.casts, lambda n: node.broadcast({"number": n, "padding": PADDING})
            )
        await ordered()
    return taken


# --- NATS -------------------------------------------------------------------------


async def live_nats(options: argparse.Namespace) -> Times:
    import nats

    taken: Times = []

    async def take(message: Any) -> None:
        taken.append((int.from_bytes(message.data[:4]), time.monotonic_ns()))

    connection = await nats.connect(f"nats://{options.address[0]}")
    if options.casts:
        say(event="ready")
        await ordered()

        async def send(number: int) -> None:
            await connection.publish("bench", payload(number))
            await connection.flush()

        return await paced(options.casts, send)
    await connection.subscribe("bench", cb=take)
    await connection.flush()
    say(event="ready")
    await ordered()
    return taken


# --- Zyre -------------------------------------------------------------------------


def live_zyre(options: argparse.Namespace) -> Times:
    import gevent
    from gevent.fileobject import FileObjectThread
    from pyre_gevent import Pyre

    node = Pyre(options.name)
    node.set_interface("eth0")
    node.start()
    node.join(options.mesh)
    orders = FileObjectThread(sys.stdin.buffer, "rb")
    taken: Times = []

    def take() -> None:
        while True:
            kind, *rest = node.recv()
            if kind == b"SHOUT":
                taken.append((int.from_bytes(rest[-1][:4]), time.monotonic_ns()))

    reading = gevent.spawn(take)
    if options.casts:
        until = time.monotonic() + GUARD
        while len(node.peers_by_group(options.mesh) or ()) < options.receivers:
            assert time.monotonic() < until, "they did not meet"
            gevent.sleep(0.2)
    say(event="ready")
    orders.readline()
    if options.casts:
        for number in range(options.casts):
            taken.append((number, time.monotonic_ns()))
            node.shout(options.mesh, payload(number))
            gevent.sleep(EVERY)
    reading.kill()
    return taken


# --- all of them ------------------------------------------------------------------


class Process:
    """One of the processes: its lines."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line)
        self._lines.put("")

    def line(self) -> dict[str, Any]:
        line = self._lines.get(timeout=GUARD)
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def order(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()


def sample(
    python: str, system: str, receivers: int, casts: int, prefix: Sequence[str], address: str
) -> list[float]:
    """Seconds to the last receiver, of each message."""
    mesh = f"bench-{secrets.token_hex(4)}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:

        def start(name: str, *flags: str) -> Process:
            popen = subprocess.Popen(
                [*prefix, python, __file__, "--system", system, "--mesh", mesh, "--name", name,
                 "--bind", address, "--receivers", str(receivers), *flags],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=environment,
            )  # fmt: skip
            stack.callback(end, popen)
            return Process(popen)

        seeds: list[str] = []
        if system == "nats":
            seeds = ["--address", stack.enter_context(nats(prefix, address))]
        all_receivers = []
        for number in range(receivers):
            each = start(f"r{number}", "--listen", *seeds)
            all_receivers.append(each)
            if system == "p2pmesh" and not number:
                seeds = ["--address", each.line()["address"]]
        for each in all_receivers[system == "p2pmesh" :]:
            each.line()
        sender = start("sender", "--casts", str(casts), *seeds)
        while "event" not in sender.line():
            pass
        time.sleep(QUIET)
        sender.order()
        sent = dict(sender.line()["times"])
        time.sleep(QUIET)
        for each in all_receivers:
            each.order()
        last = dict.fromkeys(sent, 0)
        for each in all_receivers:
            had = dict(each.line()["times"])
            assert had.keys() == sent.keys(), f"{system} lost {len(sent) - len(had)}"
            for number, at in had.items():
                last[number] = max(last[number], at)
        return [(last[number] - sent[number]) / 1e9 for number in sent]


@contextmanager
def nats(prefix: Sequence[str], address: str) -> Iterator[str]:
    """A server, by its address."""
    port = "42222"
    server = subprocess.Popen(
        [*prefix, nats_server(), "-a", address, "-p", port], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        assert any("Server is ready" in line for line in server.stderr), "it did not start"
        yield f"{address}:{port}"
    finally:
        end(server)


def live(options: argparse.Namespace) -> None:
    match options.system:
        case "p2pmesh":
            times = run(live_p2pmesh(options))
        case "nats":
            times = run(live_nats(options))
        case _:
            times = live_zyre(options)
    say(times=times)


def compare(wanted: set[str], options: argparse.Namespace) -> None:
    receivers, casts = (10, 10) if options.quick else (options.receivers, options.casts)
    python, had = prepare(wanted)
    taken: dict[str, list[list[float]]] = {}
    with ExitStack() as stack:
        prefix: Sequence[str] = ()
        address = "127.0.0.1"
        if not options.quick:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pmesh-bench-")))
            (host,) = stack.enter_context(Lab(home)).hosts(1)
            prefix, address = host.prefix, host.address
        for number in range(1 if options.quick else options.samples):
            for system in SYSTEMS:
                if system in had:
                    found = sample(python, system, receivers, casts, prefix, address)
                    taken.setdefault(system, []).append(found)
                    print(f"{system} {number + 1}", file=sys.stderr)
    table = [f"{'system':12}{'p50 ms':>10}{'p99 ms':>10}{'worst ms':>10}"]
    for system, samples in taken.items():
        figures = {
            name: round(statistics.median(quantile(each, q) for each in samples) * 1000, 2)
            for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))
        }
        figures["worst_ms"] = round(max(map(max, samples)) * 1000, 2)
        result = {
            "row": "shout", "system": system, "receivers": receivers, "casts": casts,
            "samples": len(samples), "load": round(os.getloadavg()[0], 1), **figures,
        }  # fmt: skip
        print(json.dumps(result))
        table.append(f"{system:12}" + "".join(f"{value:10}" for value in figures.values()))
    print("\n".join(table))


def main() -> None:
    parser = Command("shout", __doc__)
    parser.add_systems(SYSTEMS, SYSTEMS)
    parser.add_argument("--receivers", type=count, default=50, help="default: 50")
    parser.add_argument(
        "--casts", type=count, default=100, help="messages of a sample; default: 100"
    )
    parser.add_argument("--samples", type=count, default=5, help="of each system; default: 5")
    parser.add_quick()
    for hidden in ("system", "mesh", "name", "bind"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument(
        "--listen", dest="casts", action="store_const", const=0, help=argparse.SUPPRESS
    )
    parser.add_argument("--address", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        live(options)
        return
    systems = set(parser.systems(options.systems, SYSTEMS))
    if options.quick:
        parser.tell_left_out("systems", systems - {"p2pmesh"})
        systems = {"p2pmesh"}
    elif lack := missing():
        parser.error(f"this cannot be measured here but with --quick: {lack}")
    compare(systems, options)


if __name__ == "__main__":
    main()
