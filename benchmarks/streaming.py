"""Answers in parts between two processes: how soon the first comes, and how many a second.

An agent in this process asks one in another, which yields as fast as it may:

    first   from the call to the first part, in milliseconds
    tokens  parts of 8 bytes a second, as a language model makes them
    large   parts of 64 KiB a second, in MiB/s

    python benchmarks/streaming.py --samples 5

Prints one JSON line a result, then a table.  ``--quick`` takes two short samples.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, count
from p2pmesh import Node

TOKEN = "a token "
LARGE = bytes(64 * 1024)
FIRSTS = 20  # calls a sample


def agent(name: str, mesh: str) -> Node:
    return Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None)


async def work(mesh: str) -> None:
    node = agent("worker", mesh)

    @node.on("Query", concurrency=4)
    async def generate(message: Any) -> AsyncIterator[Any]:
        part = LARGE if message.payload["large"] else TOKEN
        for _ in range(message.payload["parts"]):
            yield part

    await node.serve_forever()


async def stream(node: Node, parts: int, *, large: bool = False) -> tuple[float, float]:
    """Seconds to the first part, and to the end."""
    began = time.perf_counter()
    first = 0.0
    got = 0
    async for _ in node.stream("worker", {"parts": parts, "large": large}):
        got += 1
        first = first or time.perf_counter() - began
    assert got == parts
    return first, time.perf_counter() - began


async def measure(mesh: str, samples: int, parts: int) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {"first": [], "tokens": [], "large": []}
    async with agent("asker", mesh) as node:
        await node.wait_for(name="worker", timeout=60)
        await stream(node, 100)
        for _ in range(samples):
            for _ in range(FIRSTS):
                results["first"].append(1000 * (await stream(node, 1))[0])
            results["tokens"].append(parts / (await stream(node, parts))[1])
            took = (await stream(node, parts // 10, large=True))[1]
            results["large"].append(parts // 10 * len(LARGE) / 2**20 / took)
    return results


def run(samples: int, parts: int) -> dict[str, list[float]]:
    mesh = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="p2pmesh-bench-") as directory:
        os.environ["P2PMESH_RUNTIME_DIR"] = f"{directory}/run"
        worker = subprocess.Popen([sys.executable, __file__, "--work", mesh])
        try:
            return asyncio.run(measure(mesh, samples, parts))
        finally:
            worker.kill()
            worker.wait()


def main() -> None:
    command = Command("streaming", __doc__)
    command.add_argument("--samples", type=count, default=5, help="of each row; default: 5")
    command.add_argument("--parts", type=count, default=20_000, help="of a sample; default: 20000")
    command.add_quick()
    command.add_argument("--work", metavar="MESH", help=SUPPRESS)
    options = command.parse_args()
    if options.work:
        asyncio.run(work(options.work))
        return
    results = run(2, 500) if options.quick else run(options.samples, options.parts)
    units = {"first": "ms", "tokens": "parts/s", "large": "MiB/s"}
    table = [f"{'row':8}{'p50':>12}{'worst':>12}"]
    for row, values in results.items():
        p50 = sorted(values)[len(values) // 2]
        worst = max(values) if row == "first" else min(values)
        line = {"row": row, "unit": units[row], "samples": len(values),
                "p50": round(p50, 3), "worst": round(worst, 3)}  # fmt: skip
        print(json.dumps(line))
        table.append(f"{row:8}{p50:12.2f}{worst:12.2f} {units[row]}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
