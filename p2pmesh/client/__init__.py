"""Clients of the registry HTTP API: for agents that take part without a node.

``MeshClient`` is for asyncio, ``SyncMeshClient`` for everything else; names are loaded
when they are first used, so that the second never imports what the first needs.

    calls     what is asked, and what an answer means
    nodes     who is asked, and who is when that one does not answer
    presence  an agent that stays registered
    reading   its messages, one after the other
    parts     an answer in parts, out of the bytes of its events
    aio, blocking   the two shells that carry it out
    deadline  the connections of the latter

Does not: know the mesh's protocol, or keep anything on disk.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pmesh.client.aio import MeshClient
    from p2pmesh.client.answers import Heartbeat, Instance, Message, Registration, Sent
    from p2pmesh.client.blocking import SyncMeshClient
    from p2pmesh.client.presence import Presence

_HOMES = {
    "MeshClient": "aio",
    "SyncMeshClient": "blocking",
    "Presence": "presence",
    "Heartbeat": "answers",
    "Instance": "answers",
    "Message": "answers",
    "Registration": "answers",
    "Sent": "answers",
}

__all__ = [
    "Heartbeat",
    "Instance",
    "MeshClient",
    "Message",
    "Presence",
    "Registration",
    "Sent",
    "SyncMeshClient",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
