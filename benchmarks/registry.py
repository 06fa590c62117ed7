"""The registry over HTTP: how fast a list is answered, how soon a waiting reader is told.

Real processes on this machine (``p2pmesh run``).  Rows:

    agents   requests a second of ``GET /registry/agents`` with N instances, beside a
             bare aiohttp handler that returns the very same bytes, in turns; the
             median round of each, and their ratio
    told     from a send at one node to the answer of a reader that waits at another,
             for a guest that lives at a third

    python benchmarks/registry.py --rows agents,told --instances 50 --samples 5

Both servers run the same event loop (uvloop where it is installed).  A round is a
second of requests over eight kept connections.  Prints one JSON line a result, then a
table.  ``--quick`` takes two samples of a fifth of a second.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, count

CONNECTIONS = 8
#: What the ratio has to be.
TARGET = 0.7

BARE = """
import asyncio, sys
from aiohttp import web
try:
    from uvloop import new_event_loop as loop
except ImportError:
    loop = None
body = open(sys.argv[1], "rb").read()

async def agents(request):
    return web.Response(body=body, content_type="application/json")

async def main():
    app = web.Application()
    app.router.add_get("/registry/agents", agents)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

with asyncio.Runner(loop_factory=loop) as runner:
    runner.run(main())
"""


class Connection:
    """A kept connection to one server; a request is bytes, an answer its body."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.host = f"127.0.0.1:{port}".encode()

    def send(self, method: str, path: str, body: Any = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: ".encode() + self.host
        if body is not None:
            head += b"\r\nContent-Type: application/json\r\nContent-Length: %d" % len(content)
        self._socket.sendall(head + b"\r\n\r\n" + content)

    def read(self) -> bytes:
        received = self._rest
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head[9:12])
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        while len(body) < length:
            body += self._more()
        self._rest = body[length:]
        if status >= 400:
            raise SystemExit(f"{self.host!r} answered {status}: {body[:200]!r}")
        return body[:length]

    def _more(self) -> bytes:
        more = self._socket.recv(1 << 18)
        if not more:
            raise SystemExit(f"{self.host!r} closed the connection")
        return more

    def ask(self, method: str, path: str, body: Any = None) -> bytes:
        self.send(method, path, body)
        return self.read()

    def close(self) -> None:
        self._socket.close()


@contextmanager
def nodes(count: int, home: Path) -> Iterator[list[int]]:
    """The HTTP ports of so many nodes of one mesh."""
    environment = {
        **os.environ, "HOME": str(home), "P2PMESH_RUNTIME_DIR": str(home / "run"),
    }  # fmt: skip
    flags = ["--mesh", f"bench-{secrets.token_hex(4)}", "--no-mdns", "--http", "127.0.0.1:0"]
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "p2pmesh", "run", "--json", *flags],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            ports.append(int(ready["http"].rpartition(":")[2]))
            while json.loads(process.stdout.readline())["event"] != "joined":
                pass
        yield ports


@contextmanager
def bare(body: bytes, home: Path) -> Iterator[int]:
    file = home / "body.json"
    file.write_bytes(body)
    command = [sys.executable, "-c", BARE, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def register(door: Connection, instance_id: str) -> None:
    body = {
        "instance_id": instance_id, "hostname": "127.0.0.1", "port": 4101,
        "capabilities": ["query", "summarize"], "agent_profiles": ["default"],
    }  # fmt: skip
    door.ask("POST", "/registry/register", body)


def rate(doors: list[Connection], seconds: float) -> float:
    """Lists a second, over these connections at once."""
    began, answered = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        for door in doors:
            door.send("GET", "/registry/agents")
        for door in doors:
            door.read()
        answered += len(doors)
    return answered / took


def measure_agents(instances: int, samples: int, seconds: float, home: Path) -> dict[str, Any]:
    with nodes(1, home) as (port,), ExitStack() as stack:
        control = Connection(port)
        guests = [f"guest-{number:03}" for number in range(instances - 1)]
        for guest in guests:
            register(control, guest)
        body = control.ask("GET", "/registry/agents")
        assert len(json.loads(body)["instances"]) == instances
        beside = stack.enter_context(bare(body, home))
        ours, theirs = ([Connection(each) for _ in range(CONNECTIONS)] for each in (port, beside))
        found: dict[str, list[float]] = {"ours": [], "bare": []}
        for doors in (ours, theirs):
            rate(doors, seconds / 5)  # warm
        for _ in range(samples):
            for guest in guests:
                control.ask("POST", f"/registry/heartbeat/{guest}", {"status": "healthy"})
            found["ours"].append(rate(ours, seconds))
            found["bare"].append(rate(theirs, seconds))
        for door in (control, *ours, *theirs):
            door.close()
    ours_median, bare_median = (statistics.median(found[each]) for each in ("ours", "bare"))
    return {
        "row": "agents", "instances": instances, "samples": samples, "bytes": len(body),
        "ours_per_s": round(ours_median), "bare_per_s": round(bare_median),
        "ratio": round(ours_median / bare_median, 3), "target": TARGET,
    }  # fmt: skip


def measure_told(samples: int, home: Path) -> dict[str, Any]:
    with nodes(3, home) as ports:
        at_home, reader, sender = (Connection(port) for port in ports)
        register(at_home, "guest")
        while b"guest" not in sender.ask("GET", "/registry/agents"):
            time.sleep(0.01)
        delays = []
        for _ in range(samples):
            at_home.ask("POST", "/registry/heartbeat/guest", {"status": "healthy"})
            reader.send("GET", "/messages/guest?wait=30")
            time.sleep(0.05)
            began = time.perf_counter()
            message = {"target_instance": "guest", "message_type": "Query", "payload": "x"}
            sender.send("POST", "/messages/send/bench", message)
            (listed,) = json.loads(reader.read())["messages"]
            delays.append(time.perf_counter() - began)
            sender.read()
            reader.ask("POST", "/messages/guest/ack", {"message_ids": [listed["message_id"]]})
        for door in (at_home, reader, sender):
            door.close()
    return {
        "row": "told", "samples": samples, "p50_ms": round(1000 * statistics.median(delays), 2),
        "worst_ms": round(1000 * max(delays), 2),
    }  # fmt: skip


def main() -> None:
    command = Command("registry", __doc__)
    command.add_rows()
    command.add_argument("--instances", type=count, default=50, help="of agents; default: 50")
    command.add_argument("--samples", type=count, default=5, help="of each row; default: 5")
    command.add_quick()
    options = command.parse_args()
    rows = command.rows(options.rows)
    samples = 2 if options.quick else options.samples
    table = []
    with tempfile.TemporaryDirectory(prefix="p2pmesh-bench-") as directory:
        home = Path(directory)
        for row in rows:
            if row == "agents":
                seconds = 0.2 if options.quick else 1.0
                line = measure_agents(options.instances, samples, seconds, home)
                if not options.quick:
                    line["holds"] = line["ratio"] >= TARGET
            else:
                line = measure_told(4 * samples, home)
            print(json.dumps(line))
            table.append("  ".join(f"{key} {value}" for key, value in line.items()))
    print("\n".join(table))


if __name__ == "__main__":
    main()
