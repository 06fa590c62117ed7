"""What ``/v1`` answers, as types; docs/interfaces.md says what the fields mean.

The handlers build their answers of these and ``openapi`` describes them, so that
neither can say what the other does not.

Does not: know where the values come from.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from p2pmesh.protocol.types import LinkInfo, Recipient, Token


class View(Struct, frozen=True, kw_only=True):
    """Begins every answer: which node says so, and whom it follows."""

    node_id: str
    leader_id: str | None
    epoch: int | None


class Member(Struct, frozen=True, kw_only=True):
    """An instance, or a node without an agent, as this node sees it."""

    instance_id: str
    node_id: str
    name: str
    kind: Literal["node", "guest"]
    home: str
    state: Literal["alive", "suspect", "failed", "left"]
    stalled: bool
    life: str
    incarnation: int
    capabilities: tuple[str, ...]
    agent_profiles: tuple[str, ...]
    status: str | None
    metrics: Any
    addresses: tuple[str, ...]
    last_heartbeat_age: float
    is_leader: bool
    candidate: bool


class OneMember(Member, frozen=True, kw_only=True):
    leader_id: str | None
    epoch: int | None


class Self(OneMember, frozen=True, kw_only=True):
    mesh: str
    http: str | None
    uptime: float
    version: str
    durable: bool


class Members(View, frozen=True, kw_only=True):
    members: tuple[Member, ...]


class Leader(View, frozen=True, kw_only=True):
    token: Token | None
    authoritative: bool
    lacks: str | None
    policy: str
    since: float | None


class Links(View, frozen=True, kw_only=True):
    links: tuple[LinkInfo, ...]


class Stats(View, frozen=True, kw_only=True):
    counters: dict[str, int]


class Pong(View, frozen=True, kw_only=True):
    instance_id: str  # whom it was about
    home: str  # the node that answered
    rtt: float  # seconds there and back, over the mesh


class MessageStates(View, frozen=True, kw_only=True):
    message_id: str
    recipients: tuple[Recipient, ...]


class DeadLetter(Struct, frozen=True, kw_only=True):
    message_id: str
    source_instance: str
    recipient: str  # of what never had one: the name it was sent to
    name: str | None  # it was sent to this name
    message_type: str | dict[str, str]
    payload: Any  # null where it is larger than 4,096 bytes, or not JSON
    payload_bytes: int  # MessagePack
    correlation_id: str | None
    created_at: str
    died_at: str
    reason: str
    attempts: int


class DeadLetters(View, frozen=True, kw_only=True):
    total: int  # there are so many; these are the oldest
    dead_letters: tuple[DeadLetter, ...]


class Problem(Struct, frozen=True, kw_only=True):
    """What is refused (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    code: str | UnsetType = UNSET  # of what failed at the other side
    nearest: tuple[str, ...] | UnsetType = UNSET  # names like the unknown one
    candidates: tuple[str, ...] | UnsetType = UNSET  # whom an ambiguous name may mean
