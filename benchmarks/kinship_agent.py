"""One process of a kinship cluster, as ``benchmarks.peers`` starts it.

It speaks as the processes of ``benchmarks.fleet`` do: ``ready`` when all is imported, then
one order on standard input, then one JSON line an event.  It needs ``kinship`` and
nothing of ours, so that it runs in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

import kinship


def say(event: str, of: str | None = None) -> None:
    sys.stdout.write(json.dumps({"event": event, "of": of, "by": NAME, "t": time.time()}) + "\n")
    sys.stdout.flush()


async def live(order: dict[str, Any]) -> None:
    left = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, left.set)
    loop.add_reader(sys.stdin, left.set)  # its end: whoever ordered is gone
    make = getattr(kinship.Config, order["profile"])
    address = f"127.0.0.1:{order['port']}"
    say("bound")  # as good as: the start binds and joins in one
    config = make(name=NAME, bind=address, seeds=order["seeds"], keys=[order["key"]])
    cluster = await kinship.Cluster(config).start()
    telling = asyncio.create_task(tell(cluster, order["count"]))
    say("joined")
    await left.wait()
    await cluster.leave()
    await cluster.close()
    telling.cancel()


async def tell(cluster: kinship.Cluster, count: int) -> None:
    events = cluster.events()
    known = {member.name for member in cluster.members()}
    for name in known:
        say("member_joined", name)
    told = False
    while True:
        if count and not told and len(known) >= count:
            told = True
            say("full")
        match await anext(events):
            case kinship.MemberJoined(member=member):
                known.add(member.name)
                say("member_joined", member.name)
            case kinship.MemberDead(member=member):
                known.discard(member.name)
                say("member_failed", member.name)
            case kinship.MemberLeft(member=member):
                known.discard(member.name)
                say("member_left", member.name)


if __name__ == "__main__":
    NAME = sys.argv[1]
    say("ready")
    asyncio.run(live(json.loads(sys.stdin.readline())))
