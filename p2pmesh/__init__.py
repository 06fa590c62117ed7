"""Agents on one network that find each other, agree on a leader and talk.

Everything for applications is here; names are loaded when they are first used, so
that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from p2pmesh.delivery import Broadcast, Delivery
    from p2pmesh.errors import (
        AmbiguousTarget,
        ConfigError,
        IdentityConflict,
        MeshError,
        MessageTooLarge,
        NotAuthoritative,
        NotStarted,
        PeerUnreachable,
        QueueFull,
        RemoteError,
        RequestTimeout,
        StoreFull,
        UnknownTarget,
    )
    from p2pmesh.messages import AgentMessage, DeadLetter
    from p2pmesh.node import Node
    from p2pmesh.partstream import PartStream
    from p2pmesh.protocol.types import (
        Alone,
        Demoted,
        DoubleIdentity,
        Elected,
        Event,
        Evidence,
        Joined,
        LeaderChanged,
        LeaderStalled,
        Lost,
        Member,
        MemberFailed,
        MemberJoined,
        MemberLeft,
        MemberRecovered,
        MemberStalled,
        MemberSuspected,
        MemberUpdated,
        MessageDead,
        MessageDone,
        MessageEvent,
        MessageExpired,
        MessageProgress,
        PeerRejected,
        QuorumMissing,
        Token,
    )

#: What ``node.events()`` yields, and what of it is no plain value.
_EVENTS = (
    "Alone",
    "Demoted",
    "DoubleIdentity",
    "Elected",
    "Evidence",
    "Joined",
    "LeaderChanged",
    "LeaderStalled",
    "Lost",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberRecovered",
    "MemberStalled",
    "MemberSuspected",
    "MemberUpdated",
    "MessageDead",
    "MessageDone",
    "MessageEvent",
    "MessageExpired",
    "MessageProgress",
    "PeerRejected",
    "QuorumMissing",
)
_HOMES = {
    "Node": "p2pmesh.node",
    "AgentMessage": "p2pmesh.messages",
    "Broadcast": "p2pmesh.delivery",
    "DeadLetter": "p2pmesh.messages",
    "Delivery": "p2pmesh.delivery",
    "PartStream": "p2pmesh.partstream",
    "Event": "p2pmesh.protocol.types",
    "Member": "p2pmesh.protocol.types",
    "Token": "p2pmesh.protocol.types",
    "AmbiguousTarget": "p2pmesh.errors",
    "ConfigError": "p2pmesh.errors",
    "IdentityConflict": "p2pmesh.errors",
    "MeshError": "p2pmesh.errors",
    "MessageTooLarge": "p2pmesh.errors",
    "NotAuthoritative": "p2pmesh.errors",
    "NotStarted": "p2pmesh.errors",
    "PeerUnreachable": "p2pmesh.errors",
    "QueueFull": "p2pmesh.errors",
    "RemoteError": "p2pmesh.errors",
    "RequestTimeout": "p2pmesh.errors",
    "StoreFull": "p2pmesh.errors",
    "UnknownTarget": "p2pmesh.errors",
    **dict.fromkeys(_EVENTS, "p2pmesh.protocol.types"),
}

__all__ = [
    "AgentMessage",
    "Alone",
    "AmbiguousTarget",
    "Broadcast",
    "ConfigError",
    "DeadLetter",
    "Delivery",
    "Demoted",
    "DoubleIdentity",
    "Elected",
    "Event",
    "Evidence",
    "IdentityConflict",
    "Joined",
    "LeaderChanged",
    "LeaderStalled",
    "Lost",
    "Member",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberRecovered",
    "MemberStalled",
    "MemberSuspected",
    "MemberUpdated",
    "MeshError",
    "MessageDead",
    "MessageDone",
    "MessageEvent",
    "MessageExpired",
    "MessageProgress",
    "MessageTooLarge",
    "Node",
    "NotAuthoritative",
    "NotStarted",
    "PartStream",
    "PeerRejected",
    "PeerUnreachable",
    "QueueFull",
    "QuorumMissing",
    "RemoteError",
    "RequestTimeout",
    "StoreFull",
    "Token",
    "UnknownTarget",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
