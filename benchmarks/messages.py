"""Messages between two processes, beside what else moves messages, in the same run.

Client and server are processes of their own, each on its own core where there are two,
over loopback; 256 B payloads unless said.  Rows:

    request    M1  request, handler, response: p50 in µs, one at a time
    oneway     M2  one-way messages a second, from the sender to the completed handler;
                   ours are acknowledged and de-duplicated one by one, the others' last is
    bandwidth  M3  the same with 64 KiB, in MiB a second
    durable    M4  ours with data directories at both ends: messages a second pipelined,
                   and p50 in µs of one at a time until it is on disk

    python benchmarks/messages.py --rows request,oneway,bandwidth,durable --samples 5

Peers: raw asyncio streams (``tcp``), pyzmq (``zmq``, and ``zmq-curve``, which encrypts),
eclipse-zenoh (Rust inside), nats-py with a nats-server.  They are installed into a virtual
environment under ``~/.cache``, the server is unpacked from the system's package; what
cannot be had is left out and said.  Systems take turns, sample by sample; the median
counts.  All asyncio systems run uvloop if it is installed, else none.  Prints one JSON
line a result, then a table.  ``--quick`` takes one small sample of ours and of raw TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import debian
from benchmarks.command import Command, count
from benchmarks.debian import CACHE

SYSTEMS = ("p2pmesh", "tcp", "zmq", "zmq-curve", "zenoh", "nats")
ROWS = {
    "request": SYSTEMS,
    "oneway": SYSTEMS,
    "bandwidth": ("p2pmesh", "tcp", "zmq", "zmq-curve", "zenoh", "nats"),
    "durable": ("p2pmesh",),
}
PACKAGES = ("pyzmq", "eclipse-zenoh", "nats-py", "pyre-gevent")
SMALL, LARGE = 256, 64 * 1024
GUARD = 120.0

Ask = Callable[[bytes], Awaitable[object]]
Flood = Callable[[bytes, int], Awaitable[object]]


# --- ours -------------------------------------------------------------------------


def our_node(name: str, mesh: str, data: str | None, peers: tuple[str, ...] = ()) -> Any:
    from p2pmesh import Node

    return Node(
        name, mesh=mesh, peers=peers, bind=("127.0.0.1",), port=0, mdns=False, http=None,
        preset="local", key=secret(mesh), data_dir=data, candidate=not peers,
    )  # fmt: skip


def secret(mesh: str) -> bytes:
    """A closed mesh, so that nobody else's traffic is in it."""
    import hashlib

    return hashlib.sha256(mesh.encode()).digest()


async def serve_p2pmesh(mesh: str, data: str | None) -> None:
    served = our_node("server", mesh, data)

    @served.on("Query")
    async def echo(message: Any) -> Any:
        return message.payload

    # With a store each start of a handler is on record first: many share a commit.
    @served.on("Notification", concurrency=64 if data else 1)
    async def take(message: Any) -> None:
        pass

    async with served:
        print(served.members()[0].addresses[0], flush=True)
        await served.serve_forever()


async def client_p2pmesh(address: str, mesh: str, data: str | None) -> tuple[Ask, Flood, Any]:
    from p2pmesh import QueueFull

    node = our_node("client", mesh, data, (address,))
    await node.__aenter__()
    await node.wait_for(name="server", timeout=20)
    to = next(m.instance_id for m in node.members() if m.name == "server")

    async def flood(payload: bytes, count: int) -> None:
        waiting: deque[Any] = deque()
        for number in range(count):
            if number % 64 == 0:
                await asyncio.sleep(0)  # what was sent leaves
            while True:
                try:
                    waiting.append(node.send_nowait(to, payload))
                    break
                except QueueFull:
                    await waiting[len(waiting) // 2].done()
                    while waiting and waiting[0].is_over:
                        waiting.popleft()
        await waiting[-1].done()

    async def ask(payload: bytes) -> object:
        if data is not None:
            return await node.send(to, payload)
        return await node.request(to, payload)

    return ask, flood, node.leave


# --- raw TCP: four bytes of length, a message; an empty one is answered ------------


async def serve_tcp() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, size = struct.unpack(">BI", await reader.readexactly(5))
                payload = await reader.readexactly(size)
                if kind:
                    writer.write(struct.pack(">I", size) + payload)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def client_tcp(address: str) -> tuple[Ask, Flood, Any]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)

    async def ask(payload: bytes) -> object:
        writer.write(struct.pack(">BI", 1, len(payload)) + payload)
        (size,) = struct.unpack(">I", await reader.readexactly(4))
        return await reader.readexactly(size)

    async def flood(payload: bytes, count: int) -> None:
        message = struct.pack(">BI", 0, len(payload)) + payload
        for _ in range(count):
            writer.write(message)
            await writer.drain()
        await ask(b"end")

    return ask, flood, _nothing


async def _nothing() -> None:
    pass


# --- ZeroMQ -----------------------------------------------------------------------


def zmq_socket(kind: str, *, curve: bool, is_server: bool, keys: str = "") -> Any:
    import zmq
    import zmq.asyncio

    made = zmq.asyncio.Context.instance().socket(getattr(zmq, kind))
    made.set_hwm(100_000)
    if curve and is_server:
        made.curve_server = True
        public, made.curve_secretkey = zmq.curve_keypair()
        return made, public.decode()
    if curve:
        made.curve_publickey, made.curve_secretkey = zmq.curve_keypair()
        made.curve_serverkey = keys.encode()
    return made, ""


async def serve_zmq(curve: bool) -> None:
    router, key = zmq_socket("ROUTER", curve=curve, is_server=True)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"{port} {key}", flush=True)
    while True:
        who, kind, payload = await router.recv_multipart()
        if kind == b"1":
            await router.send_multipart((who, payload))


async def client_zmq(address: str, curve: bool) -> tuple[Ask, Flood, Any]:
    port, _, key = address.partition(" ")
    dealer, _ = zmq_socket("DEALER", curve=curve, is_server=False, keys=key)
    dealer.connect(f"tcp://127.0.0.1:{port}")

    async def ask(payload: bytes) -> object:
        await dealer.send_multipart((b"1", payload))
        return await dealer.recv()

    async def flood(payload: bytes, count: int) -> None:
        for _ in range(count):
            await dealer.send_multipart((b"0", payload))
        await ask(b"end")

    async def close() -> None:
        dealer.close(0)

    return ask, flood, close


# --- Zenoh ------------------------------------------------------------------------


def zenoh_session(**settings: Any) -> Any:
    import zenoh

    config = zenoh.Config()
    config.insert_json5("scouting/multicast/enabled", "false")
    for key, value in settings.items():
        config.insert_json5(key.replace("_", "/"), json.dumps(value))
    return zenoh.open(config)


async def serve_zenoh() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    session = zenoh_session(listen_endpoints=[f"tcp/127.0.0.1:{port}"])

    def answer(query: Any) -> None:
        query.reply("bench/ask", query.payload)

    queryable = session.declare_queryable("bench/ask", answer)
    subscriber = session.declare_subscriber("bench/flood", lambda sample: None)
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()
    del queryable, subscriber


async def client_zenoh(address: str) -> tuple[Ask, Flood, Any]:
    import zenoh

    session = zenoh_session(connect_endpoints=[f"tcp/{address}"], mode="client")
    publisher = session.declare_publisher(
        "bench/flood", congestion_control=zenoh.CongestionControl.BLOCK
    )
    await asyncio.sleep(0.5)

    async def ask(payload: bytes) -> object:
        for reply in session.get("bench/ask", payload=payload):
            return reply.ok.payload.to_bytes()
        raise AssertionError("no answer")

    async def flood(payload: bytes, count: int) -> None:
        for _ in range(count):
            publisher.put(payload)
        await ask(b"end")

    async def close() -> None:
        session.close()

    return ask, flood, close


# --- NATS -------------------------------------------------------------------------


async def serve_nats() -> None:
    import nats

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended = asyncio.Event()  # the server of our own ends with us
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.create_subprocess_exec(
        nats_server(), "-a", "127.0.0.1", "-p", str(port), stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            await asyncio.sleep(0.05)
        connection = await nats.connect(f"nats://127.0.0.1:{port}")

        async def answer(message: Any) -> None:
            if message.reply:
                await message.respond(message.data)

        await connection.subscribe("bench", cb=answer, pending_msgs_limit=0, pending_bytes_limit=0)
        await connection.flush()
        print(port, flush=True)
        await ended.wait()
    finally:
        server.kill()
        await server.wait()


def nats_server() -> str:
    return debian.program("nats-server", "nats-server")


async def client_nats(address: str) -> tuple[Ask, Flood, Any]:
    import nats

    connection = await nats.connect(f"nats://127.0.0.1:{address}", pending_size=64 * 2**20)

    async def ask(payload: bytes) -> object:
        return await connection.request("bench", payload, timeout=GUARD)

    async def flood(payload: bytes, count: int) -> None:
        for _ in range(count):
            await connection.publish("bench", payload)
        await ask(b"end")

    return ask, flood, connection.close


# --- one process --------------------------------------------------------------------


def serve(system: str, mesh: str, data: str | None) -> Coroutine[Any, Any, None]:
    match system:
        case "p2pmesh":
            return serve_p2pmesh(mesh, data)
        case "tcp":
            return serve_tcp()
        case "zmq" | "zmq-curve":
            return serve_zmq(system == "zmq-curve")
        case "zenoh":
            return serve_zenoh()
    return serve_nats()


async def measure(
    system: str, row: str, address: str, mesh: str, data: str | None, count: int
) -> dict[str, float]:
    match system:
        case "p2pmesh":
            made = await client_p2pmesh(address, mesh, data)
        case "tcp":
            made = await client_tcp(address)
        case "zmq" | "zmq-curve":
            made = await client_zmq(address, system == "zmq-curve")
        case "zenoh":
            made = await client_zenoh(address)
        case _:
            made = await client_nats(address)
    ask, flood, close = made
    payload = os.urandom(LARGE if row == "bandwidth" else SMALL)
    found: dict[str, float] = {}
    if row in ("request", "durable"):
        taken = []
        for _ in range(50 + min(count, 1000)):
            began = time.perf_counter()
            await ask(payload)
            taken.append(time.perf_counter() - began)
        found["us"] = statistics.median(taken[50:]) * 1e6
    if row != "request":
        await flood(payload, max(10, count // 20))
        began = time.perf_counter()
        await flood(payload, count)
        rate = count / (time.perf_counter() - began)
        found["mib_s" if row == "bandwidth" else "rate"] = (
            rate * LARGE / 2**20 if row == "bandwidth" else rate
        )
    await close()
    return found


def run(work: Coroutine[Any, Any, Any]) -> Any:
    new_event_loop: Any = None
    with suppress(ImportError):
        from uvloop import new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


# --- all of them ----------------------------------------------------------------------


def prepare(wanted: set[str]) -> tuple[str, set[str]]:
    """The interpreter that has the peers, and which systems can be had."""
    if wanted <= {"p2pmesh", "tcp"}:
        return sys.executable, wanted
    python = CACHE / "venv/bin/python"
    if not python.exists():
        make = [sys.executable, "-m", "venv", "--system-site-packages", str(CACHE / "venv")]
        subprocess.run(make, check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=False)
    if "nats" in wanted and not Path(nats_server()).exists():
        debian.unpack("nats-server")
    needs = {
        "zmq": "zmq", "zmq-curve": "zmq", "zenoh": "zenoh", "nats": "nats", "zyre": "pyre_gevent",
    }  # fmt: skip
    had = set()
    for system in wanted:
        check = [str(python), "-c", f"import {needs.get(system, 'asyncio')}"]
        has_module = subprocess.run(check, capture_output=True, check=False).returncode == 0
        if has_module and (system != "nats" or Path(nats_server()).exists()):
            had.add(system)
        else:
            print(f"{system} cannot be had here: left out", file=sys.stderr)
    return str(python), had


def sample(python: str, system: str, row: str, count: int) -> dict[str, float]:
    """One server and one client, each on its core."""
    mesh = f"bench-{secrets.token_hex(4)}"
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pmesh-bench-"))

        def start(role: str, *flags: str) -> subprocess.Popen[str]:
            core = cores[0] if role == "server" else cores[-1]
            data = ("--data", str(Path(home) / role)) if row == "durable" else ()
            process = subprocess.Popen(
                [python, __file__, "--system", system, "--row", row, "--mesh", mesh,
                 "--core", str(core), *data, *flags],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            )  # fmt: skip
            stack.callback(end, process)
            return process

        server = start("server")
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, f"{system} did not start"
        client = start("client", "--address", address, "--count", str(count))
        printed, _ = client.communicate(timeout=GUARD)
        assert client.returncode == 0, f"{system} failed"
        found: dict[str, float] = json.loads(printed)
        return found


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    parser = Command("messages", __doc__)
    parser.add_rows()
    parser.add_systems(SYSTEMS, SYSTEMS)
    parser.add_argument("--samples", type=count, default=5, help="of each system; default: 5")
    parser.add_quick()
    for hidden in ("system", "row", "mesh", "data", "address"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {options.core})
        if options.address is None:
            with suppress(KeyboardInterrupt):
                run(serve(options.system, options.mesh, options.data))
        else:
            found = run(
                measure(options.system, options.row, options.address, options.mesh,
                        options.data, options.count)
            )  # fmt: skip
            print(json.dumps(found), flush=True)
        return
    systems = set(parser.systems(options.systems, SYSTEMS))
    if options.quick:
        parser.tell_left_out("systems", systems - {"p2pmesh", "tcp"})
        systems = {"p2pmesh", "tcp"}
    compare(parser.rows(options.rows), systems, options)


def compare(rows: Sequence[str], systems: set[str], options: argparse.Namespace) -> None:
    python, had = prepare(systems)
    table = []
    for row in rows:
        count = {"request": 1000, "bandwidth": 2000, "durable": 3000}.get(row, 20_000)
        samples = 1 if options.quick else options.samples
        results: dict[str, list[dict[str, float]]] = {}
        for number in range(samples):
            for system in ROWS[row]:
                if system in had:
                    taken = sample(python, system, row, count // 10 if options.quick else count)
                    results.setdefault(system, []).append(taken)
            print(f"{row} {number + 1}/{samples}", file=sys.stderr)
        for system, taken_by in results.items():
            figures = {
                unit: round(statistics.median(each[unit] for each in taken_by), 1)
                for unit in taken_by[0]
            }
            print(json.dumps({"row": row, "system": system, "samples": samples, **figures}))
            shown = "  ".join(f"{value:12,.1f} {unit}" for unit, value in figures.items())
            table.append(f"{row:12}{system:12}{shown}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
