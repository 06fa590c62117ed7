"""What users ask of the message plane: messages, requests, dead letters, registry calls.

    command ─► begin ─► sending, casting, asking, guest desk … ─► settle ─► (actions)

Every command takes the time first.  Before it, ``begin`` shows the plane all that
changed in the mesh; after it, ``settle`` hands on what the command made, where
somebody who looks at once has to find it.  What comes in great numbers (send,
request, respond, the outcomes of handlers) settles with the next input or with
``actions``, many together.

Commands raise for the caller's own mistakes and for full queues, and nothing else.
Their outcomes are actions; each command says which.

Not here: what a peer or the mesh tells the plane (``postoffice``), and any rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from p2pmesh.errors import MeshError, QueueFull, StoreFull, UnknownTarget
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.asking import Asking
from p2pmesh.protocol.casting import Casting
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.guestdesk import GuestDesk
from p2pmesh.protocol.home import Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.sending import Sending, deadline, make_envelope
from p2pmesh.protocol.sentkeys import SentKeys
from p2pmesh.protocol.tracking import Tracking
from p2pmesh.protocol.types import (
    DeadCopy,
    Instant,
    MessageKept,
    MessageMoved,
    NodeId,
    Recipient,
    SendKey,
    SentBefore,
)
from p2pmesh.protocol.ways import Ways

Body: TypeAlias = wire.RegisterBody | wire.HeartbeatBody | wire.ReadBody | wire.AckBody


class Commands:
    """The commands of one node's message plane."""

    def __init__(
        self,
        *,
        begin: Callable[[Instant], None],
        settle: Callable[[], None],
        entropy: Callable[[int], bytes],
        counters: Counter[str],
        moved: Counter[str],
        ways: Ways,
        ledger: Ledger,
        dead: DeadLetters,
        home: Home,
        asking: Asking,
        answering: Answering,
        casting: Casting,
        sending: Sending,
        tracking: Tracking,
        desk: GuestDesk,
        keys: SentKeys,
    ) -> None:
        """``moved``: counts what is accepted, beside what becomes of it."""
        self._begin = begin
        self._settle = settle
        self._entropy = entropy
        self._counters = counters
        self._moved = moved
        self._ways = ways
        self._ledger = ledger
        self._dead = dead
        self._home = home
        self._asking = asking
        self._answering = answering
        self._casting = casting
        self._sending = sending
        self._tracking = tracking
        self._desk = desk
        self._keys = keys

    # --- messages -------------------------------------------------------------------

    def send(
        self,
        at: Instant,
        *,
        source: str,
        target: str,
        named: bool,
        type: str,
        payload: Payload,
        ttl: float,
        correlation_id: str | None,
        message_id: str | None = None,
        key: SendKey | None = None,
    ) -> str:
        """Accept a message; its id.  Raises QueueFull, StoreFull, MessageTooLarge.

        ``message_id``: of a message that its sender may have given to another node
        before.  A mailbox that holds one of that id takes it for the same.  ``key``: what
        ``sent_before`` knows it by.

        What becomes of it: ``MessageMoved`` ("queued" says that its target was
        found after all), or ``SendRefused``.
        """
        self._begin(at)
        self._refuse_if_failing()
        envelope = make_envelope(
            at, self._entropy, source, target, type, payload, correlation_id, message_id
        )
        self._sending.send(at, envelope, target, deadline(at, ttl), named=named)
        self._moved["accepted"] += 1
        if key is not None:
            self._keys.begin(key, envelope.message_id, (target,))
        if self._ways.own:  # to an instance of this very node: whoever reads next finds it
            self._settle()
        return envelope.message_id

    def broadcast(
        self,
        at: Instant,
        *,
        source: str,
        type: str,
        payload: Payload,
        ttl: float,
        correlation_id: str | None,
        message_id: str | None = None,
        key: SendKey | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """To every instance alive now but the source: message id, and their ids.
        Raises QueueFull, StoreFull, MessageTooLarge."""
        self._begin(at)
        self._refuse_if_failing()
        envelope = make_envelope(
            at, self._entropy, source, None, type, payload, correlation_id, message_id
        )
        held = self._casting.broadcast(at, envelope, deadline(at, ttl))
        self._tracking.put(envelope.message_id, held)
        self._moved["accepted"] += len(held.states)
        recipients = tuple(held.states)
        if key is not None:
            self._keys.begin(key, envelope.message_id, recipients)
        self._settle()
        return envelope.message_id, recipients

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None:
        """Where a message that this node accepted is; None: not known (any more);
        empty: its target is looked for."""
        known, dead = self._tracking.state(message_id), self._dead.recipients(message_id)
        told = {recipient.instance_id for recipient in known or ()}
        earlier = tuple(each for each in dead if each.instance_id not in told)
        return earlier or None if known is None else known + earlier

    def sent_before(self, key: bytes) -> SentBefore | None:
        """The message that a send with this key was accepted as; None: there was none, it
        is too long ago, or there is no store."""
        return self._keys.get(key)

    def message_completed(self, at: Instant, message_id: str, ok: bool, reason: str = "") -> None:
        """The handler of a MessageArrived ended; not ok: it is tried again, and at
        last the message is dead."""
        self._begin(at)
        self._home.completed(at, message_id, ok, reason[: limits.REASON_MAX])

    def message_started(self, at: Instant, message_id: str) -> None:
        """The own agent is about to handle a message that arrived; MessageMayStart
        follows."""
        self._begin(at)
        self._home.started(message_id)

    def _refuse_if_failing(self) -> None:
        if self._ledger.is_failing:
            self._counters["store_full"] += 1
            raise StoreFull("the store has no room; nothing is accepted until it has")

    # --- dead letters ---------------------------------------------------------------

    def dead_letters(self) -> tuple[DeadCopy, ...]:
        """What was accepted here and ended dead, the oldest first."""
        return self._dead.all()

    def retry(
        self, at: Instant, message_id: str, recipient: str | None = None, *, ttl: float
    ) -> tuple[DeadCopy, ...]:
        """Send a dead letter again, under its message id; of a broadcast the copy for
        ``recipient``, or all that are dead.  What goes: MessageMoved and, where there
        is a store, MessageKept follow.

        Raises StoreFull, and where none can go what the first of them met: QueueFull,
        UnknownTarget.
        """
        self._begin(at)
        self._refuse_if_failing()
        gone: list[DeadCopy] = []
        failure: MeshError | None = None
        for copy in self._dead.of(message_id, recipient):
            try:
                self._sending.send_again(at, copy, deadline(at, ttl))
            except (QueueFull, UnknownTarget) as error:
                failure = failure or error
                continue
            self._dead.take(copy)
            gone.append(copy)
            self._ways.effects.append(MessageMoved(message_id, copy.recipient, "queued"))
        if failure is not None and not gone:
            raise failure
        if gone and self._ledger.is_durable:
            kept = MessageKept(message_id)
            self._ledger.after(lambda: self._ways.effects.append(kept))
        self._settle()
        return tuple(gone)

    def drop_dead_letters(self, at: Instant, message_id: str, recipient: str | None = None) -> int:
        """Nobody wants it any more; how many there were."""
        self._begin(at)
        dropped = self._dead.drop(message_id, recipient)
        self._settle()
        return dropped

    # --- requests -------------------------------------------------------------------

    def request(
        self,
        at: Instant,
        *,
        source: str,
        target: str,
        named: bool,
        type: str,
        payload: Payload,
        timeout: float,
        correlation_id: str | None = None,
        known_within: float | None = None,
        streams: bool = False,
    ) -> int:
        """Ask and wait; the number in the RequestEnded that follows.  ``known_within``:
        how long a target may stay unknown, else the timeout.  ``streams``: the answer
        is wanted in parts, the timeout is for each.  Raises QueueFull, MessageTooLarge."""
        self._begin(at)
        envelope = make_envelope(at, self._entropy, source, target, type, payload, correlation_id)
        expires_at = deadline(at, timeout)
        known_by = deadline(at, timeout if known_within is None else known_within)
        return self._sending.request(
            at, envelope, target, expires_at,
            named=named, known_by=min(known_by, expires_at), streams=streams,
        )  # fmt: skip

    def part_taken(self, at: Instant, call: int) -> None:
        """The caller has read the next PartArrived."""
        self._begin(at)
        self._asking.taken(at, call)
        self._settle()

    def cancel(self, at: Instant, call: int) -> None:
        """The caller of this request gave up: nothing follows."""
        self._begin(at)
        self._asking.cancel(call)
        self._settle()

    def respond(
        self, at: Instant, request: int, payload: Payload | None, error: str = "", detail: str = ""
    ) -> None:
        """The answer to a RequestArrived: a payload, or an error."""
        self._begin(at)
        query = self._answering.numbered(request)
        if query is None:
            return
        if payload is not None and len(payload) > limits.PAYLOAD_MAX:
            detail = f"the answer takes {len(payload)} bytes, the limit is {limits.PAYLOAD_MAX}"
            payload = None
        if payload is None:
            self._answering.answer(query, None, error or "failed", detail[: limits.REASON_MAX])
            return
        response = make_envelope(
            at, self._entropy, query.instance_id, query.source, "Response", payload,
            query.message_id,
        )  # fmt: skip
        self._answering.answer(query, response)

    def respond_part(self, at: Instant, request: int, payload: Payload) -> bool:
        """The next part of the answer to a RequestArrived that ``streams``; False: no more
        before its PartWanted."""
        self._begin(at)
        may_go_on = self._answering.part(request, payload)
        self._settle()
        return may_go_on

    def respond_end(self, at: Instant, request: int) -> None:
        """All parts of this answer were given."""
        self._begin(at)
        query = self._answering.numbered(request)
        if query is not None:
            self._answering.answer(query, None)
        self._settle()

    # --- the registry ---------------------------------------------------------------

    def register(
        self,
        at: Instant,
        instance_id: str,
        hostname: str,
        port: int,
        capabilities: tuple[str, ...],
        profiles: tuple[str, ...],
    ) -> int:
        """The number in the CallEnded that follows; so for the four below."""
        body = wire.RegisterBody(hostname, port, capabilities, profiles)
        return self._call(at, "register", instance_id, body)

    def heartbeat(self, at: Instant, instance_id: str, status: str, metrics: bytes | None) -> int:
        return self._call(at, "heartbeat", instance_id, wire.HeartbeatBody(status, metrics))

    def deregister(self, at: Instant, instance_id: str) -> int:
        return self._call(at, "deregister", instance_id, None)

    def read(
        self, at: Instant, instance_id: str, limit: int | None = None, wait: float = 0.0
    ) -> int:
        """``wait``: seconds, for mail to come if there is none; 60 at most."""
        return self._call(at, "read", instance_id, wire.ReadBody(limit or 0), wait)

    def acknowledge(self, at: Instant, instance_id: str, message_ids: tuple[str, ...]) -> int:
        return self._call(at, "ack", instance_id, wire.AckBody(message_ids))

    def _call(
        self,
        at: Instant,
        operation: str,
        instance_id: str,
        body: Body | None,
        wait: float = 0.0,
    ) -> int:
        self._begin(at)
        call = self._desk.call(at, operation, instance_id, body, wait)
        self._settle()
        return call

    def give_up(self, at: Instant, call: int) -> None:
        """The caller of this read went away: no CallEnded follows."""
        self._begin(at)
        self._desk.give_up(call)
        self._settle()

    def ping(self, at: Instant, node: NodeId) -> int:
        """Have a node answer; the number in the CallEnded that follows, with the round trip."""
        self._begin(at)
        call = self._desk.ping(at, node)
        self._settle()
        return call
