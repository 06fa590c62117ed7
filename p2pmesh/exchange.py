"""What a node says to others, and the ends of it: sends, requests, registry calls.

Each is a command to the core, whose outcome comes later as an action.  This file
keeps who waits for which, for the agent (``node``) and the HTTP API
(``backend``) alike.

Invariants: every wait ends, with an outcome or with the end of the node; who is
cancelled tells the core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec
from weakref import WeakValueDictionary

import msgspec

from p2pmesh.arguments import refuse_unless_seconds
from p2pmesh.delivery import Broadcast, Deliveries, Delivery, Watched, error_of
from p2pmesh.driver import Driver
from p2pmesh.errors import ConfigError, MeshError, NotStarted
from p2pmesh.messages import (
    AgentMessage,
    DeadLetter,
    UnreadablePayload,
    dead_letter_of,
    encode,
    message_of,
    refuse_unless_json,
)
from p2pmesh.partstream import PartStream
from p2pmesh.protocol.limits import CORRELATION_MAX, INSTANCE_ID_MAX, TYPE_MAX
from p2pmesh.protocol.timing import MESSAGE_TTL
from p2pmesh.protocol.types import (
    CallEnded,
    Instance,
    Instant,
    MessageKept,
    MessageMoved,
    MessageProgress,
    PartArrived,
    Recipient,
    RequestEnded,
    SendKey,
    SendRefused,
)

P = ParamSpec("P")

_LIVE: Final = ("alive", "suspect")


class Exchange:
    """The outgoing side of one node."""

    def __init__(self, driver: Driver, *, is_durable: bool) -> None:
        self._driver = driver
        self._is_durable = is_durable
        self._deliveries = Deliveries(self._why_queued)
        self._ends: dict[int, asyncio.Future[RequestEnded]] = {}
        self._calls: dict[int, asyncio.Future[CallEnded]] = {}
        #: By call; what nobody holds any more cancels itself.
        self._streams: WeakValueDictionary[int, PartStream] = WeakValueDictionary()
        #: Changes whenever somebody joins, changes or goes.
        self.membership = Watched()

    # --- messages -------------------------------------------------------------------

    def send(
        self,
        source: str,
        target: str,
        payload: Any,
        *,
        type: str,
        ttl: float,
        correlation_id: str | None = None,
        named: bool = True,
        message_id: str | None = None,
        key: SendKey | None = None,
    ) -> Delivery:
        """Accept a message; ``named``: the target may be a name; ``message_id``: as its
        sender calls it, if it may have been sent before; ``key``: what it is known by if it
        is repeated.  Raises ConfigError,
        TypeError, ValueError, MessageTooLarge, QueueFull, NotStarted."""
        self._check(target, type, correlation_id, ttl, "ttl")
        instance = self.find(target, named=named)
        data = encode(payload)
        if instance is not None and instance.kind == "guest":
            refuse_unless_json(payload, len(data), f"the guest {target!r}")
        accepted = self._driver.command(
            self._driver.core.commands.send,
            source=source,
            target=target,
            named=named,
            type=type,
            payload=data,
            ttl=ttl,
            correlation_id=correlation_id,
            message_id=message_id,
            key=key,
        )
        return self._deliveries.open(accepted, target, len(data))

    async def until_safe(self, delivery: Delivery) -> None:
        """Until it is on disk here; on a memory node until a second node has it, or none
        will: its recipient is here, or away.  Raises what became of it instead."""
        await delivery.until(lambda: delivery.state != "queued" or self._is_safe(delivery))
        if delivery.state != "queued":
            await delivery.stored()

    async def until_known(self, delivery: Delivery) -> None:
        """Until the recipient is known and, on a durable node, the message is on disk.
        Raises UnknownTarget, QueueFull, StoreFull."""
        await delivery.until(lambda: delivery.state != "queued" or self._is_known(delivery))
        if delivery.state != "queued":
            await delivery.stored()

    def broadcast(
        self,
        source: str,
        payload: Any,
        *,
        type: str,
        ttl: float,
        correlation_id: str | None = None,
        message_id: str | None = None,
        key: SendKey | None = None,
    ) -> Broadcast:
        """To every live instance but ``source``.  Raises as :meth:`send`."""
        self._check(None, type, correlation_id, ttl, "ttl")
        data = encode(payload)
        refuse_unless_json(payload, len(data), "everyone")
        accepted, delivered_to = self._driver.command(
            self._driver.core.commands.broadcast,
            source=source,
            type=type,
            payload=data,
            ttl=ttl,
            correlation_id=correlation_id,
            message_id=message_id,
            key=key,
        )
        broadcast = Broadcast(accepted, delivered_to)
        self._deliveries.add(broadcast)
        return broadcast

    async def until_kept(self, sent: Broadcast | Delivery) -> None:
        """Until it is on disk, where there is one.  Raises StoreFull for a broadcast."""
        if self._is_durable:
            await sent.kept()

    def _is_safe(self, delivery: Delivery) -> bool:
        return delivery.is_kept if self._is_durable else bool(delivery.reason)

    def _is_known(self, delivery: Delivery) -> bool:
        if self._is_durable:
            return delivery.is_kept
        return self.find(delivery.target, named=False) is not None

    def find(self, target: str, *, named: bool) -> Instance | None:
        """Where a target lives, as far as that is known and clear."""
        core = self._driver.core
        found = core.instance(target)
        if found is None and named:
            holders = core.named(target)
            found = holders[0] if len(holders) == 1 else None
        return found

    def recipients(self, message_id: str) -> tuple[Recipient, ...] | None:
        """Where a message that this node accepted is; a queued copy that stays the only
        one has the reason.  None: not known (any more)."""
        found = self._driver.core.commands.message_state(message_id)
        return found and tuple(
            msgspec.structs.replace(each, reason=self._why_only_here(each.instance_id))
            if each.state == "queued" and not each.reason
            else each
            for each in found
        )

    def _why_queued(self, target: str) -> str:
        """Why what is queued for this id or name does not move; "": it does."""
        if not self._is_durable:
            return self._why_only_here(target)
        core = self._driver.core
        instance = self.find(target, named=True)
        if instance is None and not core.named(target):
            instance = next(iter(core.away(target)), None)
        if instance is None or instance.state in _LIVE:
            return ""
        if instance.state == "left" and not instance.persistent:
            return ""  # what becomes of it is being decided
        return f"{target!r} has {instance.state}; it goes when {target!r} is back"

    def _why_only_here(self, recipient: str) -> str:
        """Why a message that is queued for this id or name has one copy for now; "":
        a second node will have it."""
        instance = self.find(recipient, named=True)
        if instance is None:
            core = self._driver.core
            is_away = core.away(recipient) and not core.named(recipient)
            return "only here: its recipient is away" if is_away else ""
        if instance.state == "left" and not instance.persistent:
            return ""  # what becomes of it is being decided
        is_local = instance.home == self._driver.core.node_id
        if is_local or instance.state not in _LIVE:
            return "only here: its recipient is " + ("here too" if is_local else "away")
        return ""

    # --- dead letters ---------------------------------------------------------------

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The oldest first."""
        return tuple(map(dead_letter_of, self._driver.core.commands.dead_letters()))

    def retry(self, message_id: str, recipient: str | None = None) -> tuple[Delivery, ...]:
        """Send a dead letter again, with a new time to live: all of its recipients, or
        one; a delivery for each that it goes to.  Raises UnknownTarget, QueueFull,
        StoreFull, NotStarted."""
        self._check_letter(message_id, recipient)
        gone = self._driver.command(
            self._driver.core.commands.retry, message_id, recipient, ttl=MESSAGE_TTL
        )
        return tuple(
            self._deliveries.again(
                message_id, copy.name or copy.recipient, is_copy=copy.envelope.target is None
            )
            for copy in gone
        )

    def drop_dead_letters(self, message_id: str, recipient: str | None = None) -> int:
        """How many there were.  Raises NotStarted."""
        self._check_letter(message_id, recipient)
        return self._driver.command(
            self._driver.core.commands.drop_dead_letters, message_id, recipient
        )

    # --- requests ---------------------------------------------------------------------

    async def request(
        self,
        source: str,
        target: str,
        payload: Any,
        *,
        type: str,
        timeout: float,
        correlation_id: str | None = None,
        named: bool = True,
        known_within: float | None = None,
    ) -> AgentMessage:
        """Ask and wait for the answer; ``known_within``: how long for a target that is
        unknown, else as long as for any.  Raises as :meth:`send`, and UnknownTarget,
        AmbiguousTarget, PeerUnreachable, RemoteError, RequestTimeout."""
        self._check(target, type, correlation_id, timeout, "timeout")
        call = self._driver.command(
            self._driver.core.commands.request,
            source=source,
            target=target,
            named=named,
            type=type,
            payload=encode(payload),
            timeout=timeout,
            correlation_id=correlation_id,
            known_within=known_within,
        )
        end: asyncio.Future[RequestEnded] = asyncio.get_running_loop().create_future()
        self._ends[call] = end
        try:
            ended = await end
        except asyncio.CancelledError:
            self._say(self._driver.core.commands.cancel, call)
            raise
        finally:
            self._ends.pop(call, None)
        if ended.answer is None:
            raise error_of(ended.error, ended.detail, target, timeout)
        try:
            return message_of(ended.answer, ended.via)
        except UnreadablePayload as error:
            raise error_of("failed", str(error), target) from None

    def stream(
        self,
        source: str,
        target: str,
        payload: Any,
        *,
        type: str,
        timeout: float,
        correlation_id: str | None = None,
        named: bool = True,
        known_within: float | None = None,
    ) -> PartStream:
        """Ask; the answer's parts.  Raises as :meth:`send`, and its reading as
        :meth:`request`."""
        self._check(target, type, correlation_id, timeout, "timeout")
        call = self._driver.command(
            self._driver.core.commands.request,
            source=source,
            target=target,
            named=named,
            type=type,
            payload=encode(payload),
            timeout=timeout,
            correlation_id=correlation_id,
            known_within=known_within,
            streams=True,
        )

        stream = PartStream(
            target,
            timeout,
            taken=lambda: self._say(self._driver.core.commands.part_taken, call),
            gave_up=lambda: self._say(self._driver.core.commands.cancel, call),
        )
        self._streams[call] = stream
        return stream

    def _say(self, command: Callable[[Instant, int], None], call: int) -> None:
        """A command about a call that ended with its node, if that has ended."""
        if not self._driver.is_stopped:
            self._driver.command(command, call)

    async def call(
        self, command: Callable[Concatenate[Instant, P], int], *args: P.args, **kwargs: P.kwargs
    ) -> CallEnded:
        """A registry call of the core, and its end.  Cancelled, a read is given up;
        what changes something is done all the same."""
        number = self._driver.command(command, *args, **kwargs)
        end: asyncio.Future[CallEnded] = asyncio.get_running_loop().create_future()
        self._calls[number] = end
        try:
            return await end
        except asyncio.CancelledError:
            self._say(self._driver.core.commands.give_up, number)
            raise
        finally:
            self._calls.pop(number, None)

    # --- outcomes -----------------------------------------------------------------------

    def moved(self, action: MessageMoved) -> None:
        self._deliveries.moved(action)

    def progressed(self, event: MessageProgress) -> None:
        self._deliveries.progressed(event)

    def kept(self, action: MessageKept) -> None:
        self._deliveries.kept(action.message_id)

    def refused(self, action: SendRefused) -> None:
        self._deliveries.refused(action)

    def part_arrived(self, action: PartArrived) -> None:
        stream = self._streams.get(action.call)
        if stream is not None:
            stream.arrived(action)

    def request_ended(self, action: RequestEnded) -> None:
        stream = self._streams.pop(action.call, None)
        if stream is not None:
            stream.ended(action)
        else:
            _settle(self._ends.get(action.call), action)

    def call_ended(self, action: CallEnded) -> None:
        _settle(self._calls.get(action.call), action)

    def membership_changed(self) -> None:
        self.membership.changed()
        self._deliveries.membership_changed()

    def node_ended(self, error: MeshError) -> tuple[Delivery, ...]:
        """Nothing more will come: whoever waits gets ``error``.  Returns the
        deliveries that no second node has."""
        waiting: list[asyncio.Future[Any]] = [*self._ends.values(), *self._calls.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        for stream in tuple(self._streams.values()):
            stream.node_ended(error)
        unsafe = self._deliveries.node_ended(error)
        self.membership.changed()
        return unsafe

    def _check(
        self, target: str | None, type: str, correlation_id: str | None, lasts: float, what: str
    ) -> None:
        """Raise ConfigError for what no message can have."""
        self._refuse_if_ended()
        if target is not None and not 1 <= _size("target", target) <= INSTANCE_ID_MAX:
            raise ConfigError(f"target {target!r:.80}: give the id or name of an instance")
        if _size("type", type) > TYPE_MAX:
            raise ConfigError(f"type {type!r:.80}: at most {TYPE_MAX} bytes are carried")
        if correlation_id is not None and _size("correlation_id", correlation_id) > CORRELATION_MAX:
            raise ConfigError(f"correlation_id: at most {CORRELATION_MAX} bytes are carried")
        refuse_unless_seconds(what, lasts)

    def _check_letter(self, message_id: str, recipient: str | None) -> None:
        """Raise ConfigError for what names no dead letter."""
        self._refuse_if_ended()
        _size("message_id", message_id)
        if recipient is not None:
            _size("recipient", recipient)

    def _refuse_if_ended(self) -> None:
        if self._driver.is_stopped:
            raise NotStarted("this node does not run: enter it with 'async with', or make another")


def _size(argument: str, text: str) -> int:
    """Bytes of a text; raises ConfigError for what is none."""
    try:
        return len(text.encode())
    except (AttributeError, UnicodeEncodeError):
        raise ConfigError(f"{argument} {text!r:.80}: not a text") from None


def _settle(waiting: asyncio.Future[Any] | None, action: Any) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(action)
