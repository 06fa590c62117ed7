"""The same in plain Python."""

from p2pmesh import MeshError
from p2pmesh.client import SyncMeshClient

with SyncMeshClient() as client, client.registered("bob", capabilities=["shout"]):
    for message in client.messages("bob"):
        if message.message_type != "Query":
            continue
        try:
            client.send_message(
                "bob",
                message.source_instance,
                str(message.payload).upper(),
                type="Response",
                correlation_id=message.message_id,
            )
        except MeshError as error:  # whoever asked is gone, say
            print(error)
