"""One end of a streamed answer: ``python streaming.py ROLE MESH COUNT``.

The worker's parts are the numbers below COUNT, one a millisecond.  The asker tells every
50th and how it ended; at SIGUSR1 it resets all of its connections.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from p2pmesh import MeshError, Node
from tests.mesh.enduring import reset_connections, tell

TELL_EVERY: Final = 50


async def work(node: Node, count: int) -> None:
    @node.on("Query")
    async def number(message: Any) -> AsyncIterator[int]:
        try:
            for part in range(count):
                yield part
                await asyncio.sleep(0.001)
        finally:
            tell("closed")

    async with node:
        tell("joined")
        await asyncio.Event().wait()


async def ask(node: Node, count: int) -> None:
    async with node:
        await node.wait_for(name="worker", timeout=60)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reset_connections)
        tell("joined")
        parts: list[int] = []
        error = ""
        try:
            async for part in node.stream("worker", None, timeout=60):
                parts.append(part)
                if part % TELL_EVERY == 0:
                    tell("part", number=part)
        except MeshError as raised:
            error = type(raised).__name__
        tell("ended", parts=len(parts), is_gapless=parts == list(range(len(parts))), error=error)
        await asyncio.Event().wait()


if __name__ == "__main__":
    role, mesh, count = sys.argv[1:]
    http = "127.0.0.1:0" if role == "worker" else None
    node = Node(role, mesh=mesh, preset="local", mdns=False, http=http)
    asyncio.run((work if role == "worker" else ask)(node, int(count)))
