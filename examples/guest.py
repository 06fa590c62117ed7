"""An agent without a node of its own, with asyncio."""

import asyncio

from p2pmesh import MeshError
from p2pmesh.client import MeshClient


async def main():
    async with MeshClient() as client, client.registered("ada", capabilities=["shout"]):
        async for message in client.messages("ada"):
            if message.message_type != "Query":
                continue
            try:
                await client.send_message(
                    "ada",
                    message.source_instance,
                    str(message.payload).upper(),
                    type="Response",
                    correlation_id=message.message_id,
                )
            except MeshError as error:  # whoever asked is gone, say
                print(error)


asyncio.run(main())
