"""An agent that asks the one called "worker"."""

import asyncio

from p2pmesh import Node


async def main():
    async with Node("asker") as node:
        print("asking the worker, and waiting for it if need be", flush=True)
        print((await node.request("worker", "hello")).payload)


asyncio.run(main())
