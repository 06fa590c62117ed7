"""What the HTTP API asks of a node.

``p2pmesh.backend`` answers it with a node; the HTTP tests drive the same handlers through a
real node.  All methods run on the node's loop.  Payloads are Python values that
JSON can carry (checked by ``codec`` on the way in); they cross the mesh as
MessagePack.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from p2pmesh.lag import Lag
from p2pmesh.messages import DeadLetter
from p2pmesh.protocol.types import Event, LeaderInfo, LinkInfo, Load, Member, Recipient


@dataclass(frozen=True, slots=True)
class RegistryMessage:
    """The seven fields of a message as the registry lists it."""

    message_id: str
    source_instance: str
    target_instance: str | None
    message_type: str  # a known name, or any other string: {"Custom": …} in JSON
    payload: Any
    correlation_id: str | None
    created_at: int  # unix microseconds


@dataclass(frozen=True, slots=True)
class Sent:
    message_id: str
    delivered_to: tuple[str, ...]
    state: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """What a send is known by when it is repeated."""

    key: bytes
    content: bytes  # a digest of all that was asked


class Conflict(Exception):
    """The id belongs to a live node's own agent, or a name is ambiguous."""


class Forbidden(Exception):
    """A live node's own agent cannot be deregistered."""


class Unavailable(Exception):
    """The home of this instance did not answer in time; try again."""


class EventStream(Protocol):
    """Events as an async iterator that its reader closes."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    async def __anext__(self) -> Event: ...
    async def aclose(self) -> None: ...


class Backend(Protocol):
    @property
    def node_id(self) -> str: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def mesh(self) -> str: ...
    @property
    def durable(self) -> bool: ...
    @property
    def http_url(self) -> str | None: ...
    @property
    def uptime(self) -> float: ...

    def self_member(self) -> Member: ...
    def all_members(self) -> tuple[Member, ...]:
        """Oldest first, failed and left ones included."""
        ...

    def version(self) -> Hashable:
        """Differs when the members do, but for what time alone changes."""
        ...

    def leader_info(self) -> LeaderInfo: ...
    def links(self) -> tuple[LinkInfo, ...]: ...
    def counters(self) -> dict[str, int]: ...
    def load(self) -> Load: ...
    def loop_lag(self) -> Lag: ...

    def describe(self, status: str | None, metrics: Any) -> None:
        """What the node's own agent says of itself.  Raises Conflict: it has none."""
        ...

    async def ping(self, node_id: str) -> float:
        """Seconds there and back.  Raises PeerUnreachable."""
        ...

    def leave(self) -> None:
        """The node says goodbye and ends, soon."""
        ...

    async def register(
        self,
        instance_id: str,
        hostname: str,
        port: int,
        capabilities: tuple[str, ...],
        profiles: tuple[str, ...],
    ) -> None:
        """Raises Conflict, QueueFull."""
        ...

    async def heartbeat(self, instance_id: str, status: str, metrics: Any) -> bool:
        """False: the id is unknown."""
        ...

    async def deregister(self, instance_id: str) -> bool:
        """False: the id is unknown.  Raises Forbidden, Unavailable."""
        ...

    async def post(
        self,
        source: str,
        target: str | None,
        type: str,
        payload: Any,
        correlation_id: str | None,
        message_id: str | None = None,
        repeated: Repeated | None = None,
    ) -> Sent:
        """``target`` None: a broadcast.  A target is an instance id here, never a
        name.  ``message_id``: the sender's own, if it has one.  ``repeated``: what
        ``sent_before`` knows it by, where there is a store.  Raises UnknownTarget,
        QueueFull, MessageTooLarge."""
        ...

    def sent_before(self, key: bytes) -> tuple[bytes, Sent] | None:
        """The content and the message of a send with this key that the store has, with
        the state that it is in now."""
        ...

    async def read(
        self, instance_id: str, *, limit: int | None = None, wait: float = 0.0
    ) -> tuple[RegistryMessage, ...]:
        """Unacknowledged messages, oldest first.  If there are none, those that come
        within ``wait`` seconds.  Raises Unavailable, QueueFull: too many wait."""
        ...

    async def acknowledge(self, instance_id: str, message_ids: tuple[str, ...]) -> None: ...

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None: ...

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """What was accepted here and ended dead, the oldest first."""
        ...

    async def retry_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        """Send it again; of a broadcast all dead copies, or one.  False: there is none.
        Raises UnknownTarget: its recipient left for good; QueueFull, StoreFull."""
        ...

    def drop_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        """False: there is none."""
        ...

    async def ask(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> RegistryMessage:
        """Sends a Query and returns its Response.  Raises UnknownTarget,
        AmbiguousTarget, PeerUnreachable, RemoteError, RequestTimeout."""
        ...

    def stream(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> AsyncGenerator[Any, None]:
        """As :meth:`ask`, but each part of the answer as it comes, within ``timeout`` each.
        Closed, it cancels the request."""
        ...

    def subscribe(self, after: int | None = None) -> EventStream:
        """Events from now on, or those after ``seq`` that are still kept (1,000).

        ``seq`` rises by one.  An ``after`` that this run has not reached yet is
        of an earlier run: everything kept is told.  A ``Lost`` event has the
        ``seq`` of the last one that it stands for.
        """
        ...
