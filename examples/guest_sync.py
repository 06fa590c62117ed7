"""The same in plain Python."""

from p2pmesh.client import SyncMeshClient

with SyncMeshClient() as client, client.registered("bob", capabilities=["shout"]):
    for message in client.messages("bob"):
        client.send_message(
            "bob",
            message.source_instance,
            message.payload.upper(),
            type="Response",
            correlation_id=message.message_id,
        )
