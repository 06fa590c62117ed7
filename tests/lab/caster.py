"""An agent that broadcasts, or only hears it: ``python -m tests.lab.caster MESH PEER NODES COUNT``.

Tells as JSON lines who it is once NODES are here, and which broadcasts it got.  One with a
COUNT sends that many from SIGUSR1 on, tells to whom each went, and afterwards, whenever that
changes, who owes a receipt still.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any, Final

from p2pmesh import Broadcast, Node
from p2pmesh.protocol.types import MemberFailed

RATE: Final = 25.0  # broadcasts a second
LOOKS_AGAIN: Final = 0.2


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def watch(node: Node) -> None:
    async for event in node.events():
        if isinstance(event, MemberFailed):
            tell("failed", who=event.instance_id)


async def cast(node: Node, count: int) -> None:
    sent: list[Broadcast] = []
    for number in range(count):
        sent.append(await node.broadcast(number))
        tell("sent", number=number, to=sent[-1].delivered_to)
        await asyncio.sleep(1 / RATE)
    known: set[str] | None = None
    while True:
        owing = {
            who for each in sent for who, (state, _) in each.states.items() if state == "queued"
        }
        if owing != known:
            known = owing
            tell("owed", by=sorted(owing))
        await asyncio.sleep(LOOKS_AGAIN)


async def main(mesh: str, peer: str, nodes: str, count: str) -> None:
    node = Node("caster", mesh=mesh, mdns=False, http=None, peers=[peer] if peer else [])
    begin = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin.set)

    @node.on("Notification")
    async def hear(message: Any) -> None:
        tell("got", number=message.payload)

    async with node:
        await node.wait_for(count=int(nodes), timeout=60)
        watching = asyncio.create_task(watch(node))
        tell("ready", instance_id=node.instance_id, node_id=node.id)
        await begin.wait()
        await cast(node, int(count))
        await watching


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
