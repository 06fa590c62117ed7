"""An agent that answers: run it, then ask.py, on this machine or another of the LAN."""

import asyncio
from contextlib import suppress

from p2pmesh import Node

node = Node("worker", capabilities=["shout"])


@node.on("Query")
def shout(message):
    return message.payload.upper()


with suppress(KeyboardInterrupt):
    asyncio.run(node.serve_forever())
