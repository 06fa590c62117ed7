"""What large payloads and slow consumers cost everybody else.

Real processes on this machine, one link between the two that matter.  Rows:

    beside   100 MiB in 16 MiB pieces, again and again, beside 100 small requests a
             second and 100 small broadcasts a second on the same link: p50 and p99
             without the transfer, p99 and worst beside it, milliseconds from the moment
             each was due to its answer (requests) or its receipt (broadcasts)
    slow     5,000 sends a second, for two minutes, to a consumer of one message a second,
             beside 100 requests a second to another peer: how many were refused
             (QueueFull), memory of both ends after the queues are full and at the end,
             and the other peer's p99 before and meanwhile

    python benchmarks/bulk.py --rows beside,slow --rounds 5 --seconds 120

Phases with and without the transfer take turns.  All processes run the same event loop
(uvloop where it is installed).  Prints one JSON line a result, then a table.
``--quick`` takes one round of two seconds, and four seconds of the slow consumer.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from argparse import SUPPRESS
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, count, seconds
from p2pmesh import Node, QueueFull

MIB = 1024 * 1024
PIECE = 16 * MIB - 1024  # 16 MiB with what the encoding adds
TRANSFER = 100 * MIB
SMALL_RATE = 100
FLOOD_RATE = 5000
#: What the issue asks for: milliseconds beyond the normal p99, and times the normal p99.
BEYOND, TIMES = 20.0, 2.0


# --- the other processes ----------------------------------------------------------


def node(name: str, mesh: str, peers: tuple[str, ...] = ()) -> Node:
    return Node(
        name, mesh=mesh, peers=peers, bind=("127.0.0.1",), port=0, mdns=False, http=None,
        preset="local", key=(), candidate=not peers,
    )  # fmt: skip


async def serve(name: str, mesh: str, pause: float) -> None:
    """A peer that echoes requests and takes all else, one message in ``pause`` seconds."""
    served = node(name, mesh)
    taken = 0

    @served.on("Query")
    async def echo(message: Any) -> Any:
        return message.payload

    @served.on("Notification")
    async def take(message: Any) -> None:
        nonlocal taken
        taken += 1
        if pause:
            await asyncio.sleep(pause)

    async with served:
        print(served.members()[0].addresses[0], flush=True)
        with suppress(asyncio.CancelledError):
            await served.serve_forever()


@contextmanager
def peer(name: str, mesh: str, pause: float = 0.0) -> Iterator[tuple[int, str]]:
    """A process of this file that serves: its pid and its link address."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        __file__,
        "--serve",
        name,
        "--mesh",
        mesh,
        "--pause",
        str(pause),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def sender(mesh: str, *addresses: str) -> Any:
    async with node("sender", mesh, addresses) as sending:
        await sending.wait_for(count=1 + len(addresses), timeout=20)
        yield sending


# --- measuring --------------------------------------------------------------------


async def steadily(
    rate: float, seconds: float, act: Callable[[], Awaitable[object]]
) -> list[float]:
    """``act`` so often for so long: milliseconds from when each was due to its end."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    tasks = set()

    async def one(due: float) -> None:
        await act()
        late.append((time.perf_counter() - due) * 1000)

    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = loop.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return late


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def memory(pid: int) -> float:
    """MiB that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def highest_memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


# --- large beside small -----------------------------------------------------------


async def beside(rounds: int, seconds: float) -> list[dict[str, Any]]:
    mesh = f"bench-{secrets.token_hex(4)}"
    normal: dict[str, list[float]] = {"request": [], "broadcast": []}
    during: dict[str, list[float]] = {"request": [], "broadcast": []}
    rates: list[float] = []
    with peer("large", mesh) as (pid, address):
        async with sender(mesh, address) as sending:
            payload = os.urandom(PIECE)

            async def transfer() -> None:
                while True:
                    began, left = time.perf_counter(), TRANSFER
                    pieces = []
                    while left > 0:
                        size = min(left, PIECE)
                        data = payload if size == PIECE else payload[:size]
                        pieces.append(sending.send_nowait("large", data))
                        left -= size
                        await asyncio.sleep(0)  # encoding 16 MiB takes the loop 10 ms
                        if len(pieces) == 2:  # one under way, one behind it
                            await pieces.pop(0).done()
                    for piece in pieces:
                        await piece.done()
                    rates.append(TRANSFER / MIB / (time.perf_counter() - began))

            async def request() -> None:
                await sending.request("large", "small")

            async def small(into: dict[str, list[float]]) -> None:
                async def broadcast() -> None:
                    sent = await sending.broadcast("small")
                    await sent.stored(30)

                requests, broadcasts = await asyncio.gather(
                    steadily(SMALL_RATE, seconds, request),
                    steadily(SMALL_RATE, seconds, broadcast),
                )
                into["request"] += requests
                into["broadcast"] += broadcasts

            for _ in range(rounds):
                await small(normal)
                moving = asyncio.create_task(transfer())
                await small(during)
                moving.cancel()
                await asyncio.gather(moving, return_exceptions=True)
                await asyncio.sleep(1.0)
            peaks = highest_memory(os.getpid()), highest_memory(pid)
    results = []
    for kind in normal:
        usual = quantile(normal[kind], 0.99)
        p99, worst = quantile(during[kind], 0.99), max(during[kind])
        results.append({
            "row": f"beside {kind}", "samples": len(during[kind]),
            "normal_p50_ms": round(quantile(normal[kind], 0.5), 2),
            "normal_p99_ms": round(usual, 2), "p50_ms": round(quantile(during[kind], 0.5), 2),
            "p99_ms": round(p99, 2), "worst_ms": round(worst, 2),
            "target_ms": round(usual + BEYOND, 2), "holds": worst <= usual + BEYOND,
            "transfer_mib_s": round(sum(rates) / len(rates), 1) if rates else None,
            "peak_mib": [round(each) for each in peaks],
        })  # fmt: skip
    return results


# --- a consumer of one message a second -------------------------------------------


async def slow(seconds: float, turns: int, settle: float) -> list[dict[str, Any]]:
    """So many seconds of flood in so many turns, each after half as long without; the
    first begins ``settle`` seconds before memory is looked at."""
    mesh = f"bench-{secrets.token_hex(4)}"
    with peer("slow", mesh, 1.0) as (slow_pid, first), peer("quick", mesh) as (_, second):
        async with sender(mesh, first, second) as sending:
            accepted = refused = 0
            why = ""

            async def send() -> None:
                nonlocal accepted, refused, why
                try:
                    sending.send_nowait("slow", "x" * 256)
                    accepted += 1
                except QueueFull as error:
                    refused += 1
                    why = str(error)

            async def flood() -> None:
                """In bursts, since a timer is no finer than a millisecond."""
                began, sent = time.perf_counter(), 0
                while True:
                    for _ in range(int((time.perf_counter() - began) * FLOOD_RATE) - sent):
                        await send()
                        sent += 1
                    await asyncio.sleep(0.002)

            async def request() -> None:
                await sending.request("quick", "small")

            await steadily(SMALL_RATE, 1.0, request)  # warm
            normal: list[float] = []
            during: list[float] = []
            before = after = (0.0, 0.0)
            for turn in range(turns):
                normal += await steadily(SMALL_RATE, seconds / turns / 2, request)
                flooding = asyncio.create_task(flood())
                if turn == 0:
                    await asyncio.sleep(settle)
                    before = memory(os.getpid()), memory(slow_pid)
                during += await steadily(SMALL_RATE, seconds / turns, request)
                after = memory(os.getpid()), memory(slow_pid)
                flooding.cancel()
                with suppress(asyncio.CancelledError):
                    await flooding
    usual, p99 = quantile(normal, 0.99), quantile(during, 0.99)
    grown = [round(now - then, 1) for now, then in zip(after, before, strict=True)]
    return [{
        "row": "slow", "seconds": seconds, "accepted": accepted, "refused": refused,
        "why": why, "memory_mib": [round(each, 1) for each in after], "grown_mib": grown,
        "normal_p50_ms": round(quantile(normal, 0.5), 2), "normal_p99_ms": round(usual, 2),
        "p50_ms": round(quantile(during, 0.5), 2), "p99_ms": round(p99, 2),
        "worst_ms": round(max(during), 2), "target_ms": round(TIMES * usual, 2),
        "holds": p99 < TIMES * usual and max(grown) < 2.0 and refused > 0,
    }]  # fmt: skip


def main() -> None:
    command = Command("bulk", __doc__)
    command.add_rows()
    command.add_argument("--rounds", type=count, default=5, help="of beside; default: 5")
    command.add_argument("--seconds", type=seconds, default=120.0, help="of slow; default: 120")
    command.add_quick()
    command.add_argument("--serve", help=SUPPRESS)
    command.add_argument("--mesh", help=SUPPRESS)
    command.add_argument("--pause", type=float, help=SUPPRESS)
    options = command.parse_args()
    if options.serve:
        run(serve(options.serve, options.mesh, options.pause))
        return
    rows = command.rows(options.rows)
    results = []
    if "beside" in rows:
        results += run(beside(1, 2.0) if options.quick else beside(options.rounds, 5.0))
    if "slow" in rows:
        results += run(slow(2.0, 1, 1.0) if options.quick else slow(options.seconds, 8, 5.0))
    columns = ("normal_p50_ms", "normal_p99_ms", "p50_ms", "p99_ms", "worst_ms", "target_ms")
    table = ["".join([f"{'row':18}", *(f"{name:>15}" for name in columns)])]
    for result in results:
        if options.quick:
            del result["holds"]
        print(json.dumps(result))
        table.append("".join([f"{result['row']:18}", *(f"{result[name]:15}" for name in columns)]))
    print("\n".join(table))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


if __name__ == "__main__":
    main()
