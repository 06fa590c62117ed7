"""What a node answers to its clients, as typed values.

Fields that a later node adds are ignored; a message is never refused for a type that
this version does not know.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from p2pmesh.http.codec import NotJson, WrongShape, message_type_in


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as the registry lists it: a node's own, or a guest."""

    instance_id: str
    hostname: str
    port: int
    capabilities: tuple[str, ...]
    agent_profiles: tuple[str, ...]
    is_leader: bool
    last_heartbeat: datetime
    created_at: datetime
    status: str | None = None
    metrics: Any = None
    state: str = "alive"  # or "suspect"; others are not listed
    node_id: str = ""  # its home's


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: str
    is_leader: bool
    leader_id: str | None
    peers: tuple[Instance, ...]  # all live instances, this one included


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    acknowledged: bool  # False: the mesh does not know the id; register again
    leader_id: str | None
    should_sync: bool


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    message_id: str
    status: str
    delivered_to: tuple[str, ...]
    state: str = "queued"  # "stored": the recipient's home has it, too


class Message(msgspec.Struct, frozen=True, kw_only=True):
    message_id: str
    source_instance: str  # by its own word
    target_instance: str | None  # None: a broadcast
    message_type: str  # a known name, or the text of a custom type
    payload: Any
    correlation_id: str | None
    created_at: datetime


# --- as they stand in JSON ---------------------------------------------------


class ListingBody(msgspec.Struct, frozen=True):
    instances: tuple[Instance, ...]


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """A message whose type may have any of its JSON forms."""

    message_id: str
    source_instance: str
    target_instance: str | None
    message_type: Any
    payload: Any
    correlation_id: str | None
    created_at: datetime

    def message(self) -> Message:
        fields = msgspec.structs.asdict(self)
        return Message(**fields | {"message_type": _type_of(self.message_type)})


class MessagesBody(msgspec.Struct, frozen=True):
    messages: tuple[MessageBody, ...]


def _type_of(value: Any) -> str:
    try:
        return message_type_in(value)
    except (NotJson, WrongShape):  # of a later version
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
