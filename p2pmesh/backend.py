"""What the HTTP API asks of a node, answered by one (``http.backend.Backend``).

Values in and out; errors are those that the API knows.  Whatever it is about an
instance that lives elsewhere, the core asks its home.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from p2pmesh.errors import ConfigError, PeerUnreachable, QueueFull
from p2pmesh.http.backend import Conflict, Forbidden, RegistryMessage, Repeated, Sent, Unavailable
from p2pmesh.lag import Lag
from p2pmesh.messages import (
    AgentMessage,
    DeadLetter,
    UnreadablePayload,
    encode,
    is_json,
    message_of,
)
from p2pmesh.protocol.limits import ENTRY_MAX
from p2pmesh.protocol.timing import FORWARD_TIMEOUT, MESSAGE_TTL, UNKNOWN_TARGET_WAIT
from p2pmesh.protocol.types import (
    Envelope,
    Event,
    LeaderInfo,
    LinkInfo,
    Load,
    Member,
    NodeId,
    Recipient,
    SendKey,
)

if TYPE_CHECKING:
    from p2pmesh.events import EventReader
    from p2pmesh.running import Running

log = logging.getLogger("p2pmesh.backend")

#: How long a send waits for its recipient's home to have the message, too.
SAFE_WITHIN: Final = 1.0


class NodeBackend:
    """The HTTP API's view of one running node."""

    def __init__(self, running: Running) -> None:
        self._running = running

    # --- the node's view ----------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self._running.core.node_id.hex()

    @property
    def instance_id(self) -> str:
        return self._running.instance_id

    @property
    def mesh(self) -> str:
        return self._running.mesh

    @property
    def durable(self) -> bool:
        return self._running.store is not None

    @property
    def http_url(self) -> str | None:
        return self._running.http_url

    @property
    def uptime(self) -> float:
        return self._running.uptime

    def self_member(self) -> Member:
        return self._running.query(self._running.core.me)

    def all_members(self) -> tuple[Member, ...]:
        return self._running.query(self._running.core.members)

    def version(self) -> Hashable:
        return self._running.core.version()

    def leader_info(self) -> LeaderInfo:
        return self._running.query(self._running.core.leader)

    def links(self) -> tuple[LinkInfo, ...]:
        return self._running.query(self._running.core.links)

    def counters(self) -> dict[str, int]:
        return self._running.counters()

    def load(self) -> Load:
        return self._running.core.load()

    def loop_lag(self) -> Lag:
        return self._running.driver.lag

    # --- the node itself ------------------------------------------------------------------

    def describe(self, status: str | None, metrics: Any) -> None:
        running = self._running
        if not running.config.agent:
            raise Conflict("this node is an observer: it has no agent that could say anything")
        packed = None if metrics is None else bytes(encode(metrics))
        running.driver.command(running.core.describe, status, packed)

    async def ping(self, node_id: str) -> float:
        running = self._running
        ended = await running.exchange.call(running.core.commands.ping, bytes.fromhex(node_id))
        if ended.status != "ok" or ended.rtt is None:
            raise PeerUnreachable(f"node {node_id} did not answer within {FORWARD_TIMEOUT:g} s")
        return ended.rtt

    def leave(self) -> None:
        self._running.begin_leave()

    # --- instances ------------------------------------------------------------------------

    async def register(
        self,
        instance_id: str,
        hostname: str,
        port: int,
        capabilities: tuple[str, ...],
        profiles: tuple[str, ...],
    ) -> None:
        core = self._running.core
        ended = await self._running.exchange.call(
            core.commands.register, instance_id, hostname, port, capabilities, profiles
        )
        self._raise_for(ended.status, instance_id)

    async def heartbeat(self, instance_id: str, status: str, metrics: Any) -> bool:
        packed = None if metrics is None else bytes(encode(metrics))
        core = self._running.core
        ended = await self._running.exchange.call(
            core.commands.heartbeat, instance_id, status, packed
        )
        self._raise_for(ended.status, instance_id)
        return ended.status != "unknown"

    async def deregister(self, instance_id: str) -> bool:
        ended = await self._running.exchange.call(
            self._running.core.commands.deregister, instance_id
        )
        self._raise_for(ended.status, instance_id)
        return ended.status != "unknown"

    def _raise_for(self, status: str, instance_id: str) -> None:
        match status:
            case "conflict":
                raise Conflict(f"{instance_id!r} is the agent of a live node")
            case "forbidden":
                raise Forbidden(f"{instance_id!r} is the agent of a live node")
            case "too_large":
                raise ConfigError(
                    f"what {instance_id!r} says of itself takes more than {ENTRY_MAX} bytes: "
                    "give fewer or shorter capabilities and profiles"
                )
            case "full":
                raise QueueFull("this mesh lists as many guests as it can; let some deregister")
            case "busy":
                raise QueueFull(f"too many readers wait for messages of {instance_id!r} already")
            case "unavailable" if not self._running.core.is_joined:
                raise Unavailable("this node has not joined its mesh yet; try again")
            case "unavailable":
                raise Unavailable(f"the home of {instance_id!r} does not answer; try again")

    # --- messages -------------------------------------------------------------------------

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
        exchange = self._running.exchange
        key = None
        if repeated is not None:
            key = SendKey(repeated.key, repeated.content, target is None)
        if target is None:
            cast = exchange.broadcast(
                source,
                payload,
                type=type,
                ttl=MESSAGE_TTL,
                correlation_id=correlation_id,
                message_id=message_id,
                key=key,
            )
            await exchange.until_kept(cast)
            return Sent(cast.message_id, cast.delivered_to, "queued")
        delivery = exchange.send(
            source,
            target,
            payload,
            type=type,
            ttl=MESSAGE_TTL,
            correlation_id=correlation_id,
            named=False,
            message_id=message_id,
            key=key,
        )
        await exchange.until_known(delivery)
        with suppress(TimeoutError):  # it is accepted all the same
            async with asyncio.timeout(SAFE_WITHIN):
                await exchange.until_safe(delivery)
        return Sent(delivery.message_id, (target,), delivery.state)

    def sent_before(self, key: bytes) -> tuple[bytes, Sent] | None:
        sent = self._running.core.commands.sent_before(key)
        if sent is None:
            return None
        state = "queued" if sent.is_broadcast else self._state_now(sent.message_id)
        return sent.content, Sent(sent.message_id, sent.recipients, state)

    def _state_now(self, message_id: str) -> str:
        """Of an accepted message to one.  It does not expire before its key does, and
        dead it is listed: one that is known no more was done."""
        known = self.message_state(message_id)
        return known[0].state if known else "done"

    async def read(
        self, instance_id: str, *, limit: int | None = None, wait: float = 0.0
    ) -> tuple[RegistryMessage, ...]:
        core = self._running.core
        ended = await self._running.exchange.call(core.commands.read, instance_id, limit, wait)
        self._raise_for(ended.status, instance_id)
        read = zip(ended.messages, ended.vias, strict=True)
        opened = [(envelope, self._open(envelope, via)) for envelope, via in read]
        poison = tuple(envelope.message_id for envelope, message in opened if message is None)
        if poison:
            await self.acknowledge(instance_id, poison)
        return tuple(message for _, message in opened if message is not None)

    def _open(self, envelope: Envelope, via: NodeId) -> RegistryMessage | None:
        """None for what a JSON reader could not read: one such message would cost it
        the whole list.  Senders refuse it; it comes from one that does not."""
        try:
            message = message_of(envelope, via)
        except UnreadablePayload as error:
            log.warning("message %s for a guest is dropped: %s", envelope.message_id, error)
            return None
        if not is_json(message.payload):
            log.warning(
                "message %s of %s for a guest is dropped: JSON does not have its payload",
                envelope.message_id, envelope.source,
            )  # fmt: skip
            return None
        return _as_registry_message(message)

    async def acknowledge(self, instance_id: str, message_ids: tuple[str, ...]) -> None:
        core = self._running.core
        await self._running.exchange.call(core.commands.acknowledge, instance_id, message_ids)

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None:
        return self._running.exchange.recipients(message_id)

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        return self._running.exchange.dead_letters()

    async def retry_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        exchange = self._running.exchange
        deliveries = exchange.retry(message_id, recipient)
        for delivery in deliveries:
            await exchange.until_kept(delivery)
        return bool(deliveries)

    def drop_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        return self._running.exchange.drop_dead_letters(message_id, recipient) > 0

    async def ask(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> RegistryMessage:
        answer = await self._running.exchange.request(
            source,
            target,
            payload,
            type=type,
            timeout=timeout,
            correlation_id=correlation_id,
            known_within=UNKNOWN_TARGET_WAIT,
        )
        return _as_registry_message(answer)

    async def stream(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> AsyncGenerator[Any, None]:
        stream = self._running.exchange.stream(
            source,
            target,
            payload,
            type=type,
            timeout=timeout,
            correlation_id=correlation_id,
            known_within=UNKNOWN_TARGET_WAIT,
        )
        async with stream as parts:
            async for part in parts:
                yield part

    # --- events ---------------------------------------------------------------------------

    def subscribe(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        return _generate(self._running.events.subscribe(after))


async def _generate(reader: EventReader) -> AsyncGenerator[Event, None]:
    async for event in reader:
        yield event


def _as_registry_message(message: AgentMessage) -> RegistryMessage:
    return RegistryMessage(
        message_id=message.message_id,
        source_instance=message.source_instance,
        target_instance=message.target_instance,
        message_type=message.message_type,
        payload=message.payload,
        correlation_id=message.correlation_id,
        created_at=message.created_at,
    )
