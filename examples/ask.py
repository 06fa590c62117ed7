"""An agent that asks the one called "worker"."""

import asyncio

from p2pmesh import Node


async def main():
    async with Node("asker") as node:
        print((await node.request("worker", "hello")).payload)


asyncio.run(main())
