"""An agent without a node of its own, with asyncio."""

import asyncio

from p2pmesh.client import MeshClient


async def main():
    async with MeshClient() as client, client.registered("ada", capabilities=["shout"]):
        async for message in client.messages("ada"):
            await client.send_message(
                "ada",
                message.source_instance,
                message.payload.upper(),
                type="Response",
                correlation_id=message.message_id,
            )


asyncio.run(main())
