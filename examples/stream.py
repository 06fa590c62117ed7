"""An answer in parts: one agent yields tokens, the other prints each as it comes.

Both run here; they may as well be on two machines of the LAN.
"""

import asyncio

from p2pmesh import Node

worker = Node("storyteller")


@worker.on("Query")
async def tell(message):
    for token in f"Once upon a time there was {message.payload}.".split(" "):
        yield token + " "
        await asyncio.sleep(0.1)  # as long as a model takes for it


async def main():
    async with worker, Node("listener") as node:
        async for token in node.stream("storyteller", "a mesh"):
            print(token, end="", flush=True)
    print()


asyncio.run(main())
