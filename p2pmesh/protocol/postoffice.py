"""The post office: the message plane's one facade, driven by the door.

    commands ─► sending ─► targets ─► outbox, asking ─► ways ─► SendTo, NeedLink,
                casting ─► broadcast, casttree ──────►  (effects)   MessageMoved …
                guest desk ─► guests
    peers ────► home (intake, mailboxes), answering, casting, guest desk

It performs no I/O, never calls back, and reads the mesh through a ``Directory``.
Every input takes the time first; ``drain`` returns what is to be done.  Nothing
that a peer sends raises; commands raise for the caller's own mistakes and for full
queues.  What this node sends to itself goes through the same doors as what peers
send, without the bytes.

Not here: any rule.  Each part's module says its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from p2pmesh.errors import MeshError, QueueFull, StoreFull, UnknownTarget
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.acks import KeptAcks
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.asking import Asking
from p2pmesh.protocol.broadcast import Broadcasts
from p2pmesh.protocol.casting import Casting
from p2pmesh.protocol.casttree import CastTree
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import Account, is_sound
from p2pmesh.protocol.guestdesk import GuestDesk
from p2pmesh.protocol.guests import Guest
from p2pmesh.protocol.home import Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.outbox import Outbox
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.sending import Sending, deadline, make_envelope
from p2pmesh.protocol.tracking import Tracking
from p2pmesh.protocol.types import (
    DeadCopy,
    Instant,
    Load,
    MessageKept,
    MessageMoved,
    NodeId,
    Recipient,
    SendRefused,
)
from p2pmesh.protocol.ways import NEVER, Announce, Effect, NeedLink, SendTo, Ways

__all__ = ["Announce", "Effect", "NeedLink", "PostOffice", "SendTo"]


class PostOffice:
    """The messages of one node."""

    def __init__(
        self,
        directory: Directory,
        ledger: Ledger,
        *,
        entropy: Callable[[int], bytes],
        agent: str | None = None,
    ) -> None:
        """``agent``: the instance id of this node's own agent, if it has one."""
        self.counters: Counter[str] = Counter()
        self._entropy = entropy
        self._ledger = ledger
        account = self._account = Account()
        counters = self.counters
        ways = self._ways = Ways(directory, counters)
        dead = self._dead = DeadLetters(counters, ledger)
        self._outbox = Outbox(directory, ways, account, counters, entropy, ledger, dead)
        self._asking = Asking(directory, ways, account, counters, entropy)
        self._answering = Answering(directory, ways, counters)
        acks = self._acks = KeptAcks(counters, ledger)
        self._home = Home(directory, ways, account, counters, self._asking, acks, agent, ledger)
        self._desk = GuestDesk(
            directory, ways, self._home, self._answering, acks, counters, entropy, ledger
        )
        self._broadcasts = Broadcasts(directory, ways, account, counters, entropy, ledger, dead)
        self._tree = CastTree(directory, ways, counters)
        self._casting = Casting(
            directory, ways, counters, self._broadcasts, self._tree, self._home, self._outbox,
            ledger,
        )  # fmt: skip
        self._tracking = Tracking()
        self._sending = Sending(
            directory, ways, account, counters, self._outbox, self._asking,
            self._answering, self._desk, self._tracking, ledger, dead,
        )  # fmt: skip
        self._moved: Counter[str] = Counter()  # copies accepted here, by the states they reached
        self._at = Instant(0.0, 0)

    # --- the store ------------------------------------------------------------------

    def restore(self, at: Instant) -> None:
        """Take up what an earlier process of this node had accepted, stored and not
        finished."""
        self._at = at
        self._dead.restore()
        self._acks.restore(at)
        self._desk.restore(at)
        self._home.restore(at)
        self._casting.restore()
        for held in self._broadcasts.restore(at):
            self._tracking.put(held.message_id, held)
        self._sending.restore(at)

    def saved(self, at: Instant, number: int) -> None:
        """The store has all changes up to this save."""
        self._at = at
        self._ledger.saved(number)
        self._outbox.saved(at)

    def save_failed(self, at: Instant, detail: str) -> None:
        """The store cannot take more: nothing is accepted until it can, and what it has
        not got yet was not accepted."""
        self._at = at
        self._ledger.failed()
        self._home.forget_unkept()
        self._outbox.refuse_unkept(detail)
        self._broadcasts.refuse_unkept(detail)

    def _refuse_if_failing(self) -> None:
        if self._ledger.is_failing:
            self.counters["store_full"] += 1
            raise StoreFull("the store has no room; nothing is accepted until it has")

    def message_started(self, at: Instant, message_id: str) -> None:
        """The own agent is about to handle a message that arrived; MessageMayStart
        follows."""
        self._at = at
        self._home.started(message_id)

    # --- commands: messages ---------------------------------------------------------

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
    ) -> str:
        """Accept a message; its id.  Raises QueueFull, StoreFull, MessageTooLarge.

        ``message_id``: of a message that its sender may have given to another node
        before.  A mailbox that holds one of that id takes it for the same.

        What becomes of it: ``MessageMoved`` ("queued" says that its target was
        found after all), or ``SendRefused``.
        """
        self._at = at
        self._refuse_if_failing()
        envelope = make_envelope(
            at, self._entropy, source, target, type, payload, correlation_id, message_id
        )
        self._sending.send(at, envelope, target, deadline(at, ttl), named=named)
        self._moved["accepted"] += 1
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
    ) -> tuple[str, tuple[str, ...]]:
        """To every instance alive now but the source: message id, and their ids.
        Raises QueueFull, StoreFull, MessageTooLarge."""
        self._at = at
        self._refuse_if_failing()
        envelope = make_envelope(
            at, self._entropy, source, None, type, payload, correlation_id, message_id
        )
        held = self._casting.broadcast(at, envelope, deadline(at, ttl))
        self._tracking.put(envelope.message_id, held)
        self._moved["accepted"] += len(held.states)
        return envelope.message_id, tuple(held.states)

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None:
        """Where a message that this node accepted is; None: not known (any more);
        empty: its target is looked for."""
        known, dead = self._tracking.state(message_id), self._dead.recipients(message_id)
        told = {recipient.instance_id for recipient in known or ()}
        earlier = tuple(each for each in dead if each.instance_id not in told)
        return earlier or None if known is None else known + earlier

    def message_completed(self, at: Instant, message_id: str, ok: bool, reason: str = "") -> None:
        """The handler of a MessageArrived ended; not ok: it is tried again, and at
        last the message is dead."""
        self._at = at
        self._home.completed(at, message_id, ok, reason[: limits.REASON_MAX])

    # --- commands: dead letters -------------------------------------------------------

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
        self._at = at
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
        return tuple(gone)

    def drop_dead_letters(self, at: Instant, message_id: str, recipient: str | None = None) -> int:
        """Nobody wants it any more; how many there were."""
        self._at = at
        return self._dead.drop(message_id, recipient)

    # --- commands: requests -----------------------------------------------------------

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
        self._at = at
        envelope = make_envelope(at, self._entropy, source, target, type, payload, correlation_id)
        expires_at = deadline(at, timeout)
        known_by = deadline(at, timeout if known_within is None else known_within)
        return self._sending.request(
            at, envelope, target, expires_at,
            named=named, known_by=min(known_by, expires_at), streams=streams,
        )  # fmt: skip

    def part_taken(self, at: Instant, call: int) -> None:
        """The caller has read the next PartArrived."""
        self._at = at
        self._asking.taken(at, call)

    def cancel(self, at: Instant, call: int) -> None:
        """The caller of this request gave up: nothing follows."""
        self._at = at
        self._asking.cancel(call)

    def respond(
        self, at: Instant, request: int, payload: Payload | None, error: str = "", detail: str = ""
    ) -> None:
        """The answer to a RequestArrived: a payload, or an error."""
        self._at = at
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
        self._at = at
        return self._answering.part(request, payload)

    def respond_end(self, at: Instant, request: int) -> None:
        """All parts of this answer were given."""
        self._at = at
        query = self._answering.numbered(request)
        if query is not None:
            self._answering.answer(query, None)

    # --- commands: the registry -------------------------------------------------------

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
        self._at = at
        body = wire.RegisterBody(hostname, port, capabilities, profiles)
        return self._desk.call(at, "register", instance_id, body)

    def heartbeat(self, at: Instant, instance_id: str, status: str, metrics: bytes | None) -> int:
        self._at = at
        body = wire.HeartbeatBody(status, metrics)
        return self._desk.call(at, "heartbeat", instance_id, body)

    def deregister(self, at: Instant, instance_id: str) -> int:
        self._at = at
        return self._desk.call(at, "deregister", instance_id, None)

    def read(
        self, at: Instant, instance_id: str, limit: int | None = None, wait: float = 0.0
    ) -> int:
        self._at = at
        return self._desk.call(at, "read", instance_id, wire.ReadBody(limit or 0), wait)

    def give_up(self, at: Instant, call: int) -> None:
        """The caller of this read went away: nothing follows."""
        self._at = at
        self._desk.give_up(call)

    def acknowledge(self, at: Instant, instance_id: str, message_ids: tuple[str, ...]) -> int:
        self._at = at
        return self._desk.call(at, "ack", instance_id, wire.AckBody(message_ids))

    def ping(self, at: Instant, node: NodeId) -> int:
        """The number in the CallEnded that follows, with the round trip."""
        self._at = at
        return self._desk.ping(at, node)

    def guest(self, instance_id: str) -> Guest | None:
        """A guest of this home: its entry, status, metrics, and when it was heard."""
        return self._desk.guests.get(instance_id)

    @property
    def words(self) -> int:
        """Rises when a guest of this home says something new of itself."""
        return self._desk.guests.words

    # --- commands: leaving ------------------------------------------------------------

    def begin_leave(self, at: Instant) -> None:
        """Take nothing new for the own agent; what is under way goes on."""
        self._at = at
        self._home.is_leaving = True
        self._desk.end_waits()

    @property
    def is_drained(self) -> bool:
        """Is all that live homes could receipt receipted, every request to the own agent
        answered, and all that the store can take safe?"""
        return (self._ledger.is_settled or self._ledger.is_failing) and not (
            self._outbox.waits_for_receipts()
            or self._broadcasts.waits_for_receipts()
            or self._answering.is_asked()
        )

    def unreceipted(self) -> tuple[str, ...]:
        """Messages accepted here of which nobody else has a copy."""
        return tuple(item.message_id for item in self._outbox.unreceipted())

    # --- inputs: peers ----------------------------------------------------------------

    def received(self, at: Instant, peer: NodeId, message: wire.Message) -> None:
        """A message of this plane (``wire.MESSAGE_PLANE``) from an authenticated peer."""
        self._at = at
        match message:
            case wire.Post():
                self._home.post(at, peer, message)
            case wire.Receipt():
                self._outbox.receipt(at, peer, message)
            case wire.Done():
                self._outbox.done(at, peer, message)
            case wire.Ask():
                self._asked(at, peer, message)
            case wire.Answer():
                self._answer(at, peer, message)
            case wire.Part():
                self._asking.part(at, peer, message)
            case wire.Credit():
                self._answering.credit(at, peer, message)
            case wire.Cast():
                self._casting.cast(at, peer, message)
            case wire.CastReceipt():
                self._casting.receipt(peer, message)
            case wire.Unsure():
                self._home.intake.unsure(at, peer, message)
            case wire.Cancel():
                self._cancelled(peer, message)
            case wire.Call():
                self._desk.called(at, peer, message)
            case wire.CallResult():
                self._desk.result(at, peer, message)
            case wire.CallCancel():
                self._desk.cancelled(peer, message)
            case wire.Handed():
                self._home.handed(at, peer, message)
            case wire.Relay():
                self._relayed(at, peer, message)
            case wire.RelayRefused():
                for closed in self._ways.relay_refused(peer, message):
                    self._closed(at, closed)
            case _:
                self.counters["message_unexpected"] += 1

    def _relayed(self, at: Instant, peer: NodeId, message: wire.Relay) -> None:
        relayed = self._ways.relay_received(at, peer, message)
        if relayed is None:
            return
        if relayed.is_new_way:
            self._opened(at, relayed.origin)
        self.received(at, relayed.origin, relayed.message)

    def _asked(self, at: Instant, peer: NodeId, message: wire.Ask) -> None:
        answering = self._answering
        if answering.is_known(at, peer, message):
            return
        box = self._home.mailboxes.get(message.recipient)
        error, detail = "refused", ""
        if not is_sound(message.envelope):
            self.counters["envelope_malformed"] += 1
            detail = "malformed"
        elif message.received > 0:  # to run its handler anew would give those parts twice
            error, detail = "failed", "it was given up: nothing was heard of who asked"
        elif box is None or (box.is_agent and self._home.is_leaving):
            error, detail = "unreachable", "it does not live here"
        elif (query := answering.open(at, peer, message, is_guests=not box.is_agent)) is None:
            detail = "too many requests"
        elif query.is_guests and not self._home.query(box, message.envelope, peer, query.deadline):
            answering.answer(query, None, "refused", "its mailbox is full")
            return
        else:
            return
        answering.reply(peer, wire.Answer(message.request, None, error, detail))

    def _answer(self, at: Instant, peer: NodeId, message: wire.Answer) -> None:
        if message.envelope is not None and not is_sound(message.envelope):
            self.counters["envelope_malformed"] += 1
            message = wire.Answer(message.request, None, "failed", "its answer is malformed")
        self._asking.answer(at, peer, message)

    def _cancelled(self, peer: NodeId, message: wire.Cancel) -> None:
        query = self._answering.cancel(peer, message.request)
        if query is not None:
            self._home.withdraw(query.instance_id, query.message_id)

    # --- inputs: the mesh -------------------------------------------------------------

    def linked(self, at: Instant, peer: NodeId) -> None:
        """There is a link, or a new one in place of another: what was given to an
        earlier one may be lost."""
        self._at = at
        self._ways.linked(peer)
        self._opened(at, peer)

    def unlinked(self, at: Instant, peer: NodeId) -> None:
        """No link to this peer is left."""
        self._at = at
        for closed in self._ways.unlinked(peer):
            self._closed(at, closed)

    def paused(self, at: Instant, peer: NodeId) -> None:
        """The transport to this peer is backed up."""
        self._at = at
        self._ways.paused(peer)

    def resumed(self, at: Instant, peer: NodeId) -> None:
        self._at = at
        for clear in self._ways.resumed(peer):
            self._outbox.clear(at, clear)
            self._asking.clear(at, clear)
            self._answering.clear(clear)
            self._tree.clear(clear)

    def progressed(self, at: Instant, peer: NodeId) -> None:
        """The peer's process took some of what is large."""
        self._at = at
        self._outbox.progressed(at, peer)

    def _opened(self, at: Instant, peer: NodeId) -> None:
        self._home.intake.opened(peer)
        self._outbox.opened(at, peer)
        self._asking.way_changed(at, peer)
        self._answering.clear(peer)
        self._desk.opened(at, peer)
        self._broadcasts.opened(at, peer)

    def _closed(self, at: Instant, peer: NodeId) -> None:
        self._outbox.closed(at, peer)
        self._asking.way_changed(at, peer)
        self._desk.closed(at, peer)
        self._tree.closed(at, peer)

    def membership_changed(
        self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]
    ) -> None:
        """States, homes or lives of these changed, or they are new: look again."""
        self._at = at
        self._settle(at)
        for instance_id, overs in self._desk.look(at, nodes, instances):
            for over in overs:
                self._outbox.hand_over(
                    at, instance_id, over.origin, over.stream, over.watermark, over.copies
                )
            self._outbox.end_hand_over(at, instance_id)
        orphans = [item for each in instances for item in self._outbox.look(at, each)]
        for node in nodes:
            orphans += self._outbox.look_at_home(at, node)
        self._asking.look(at, nodes, instances)
        for query in self._answering.look(nodes):
            self._home.withdraw(query.instance_id, query.message_id)
        self._broadcasts.changed(at, nodes)
        self._tree.rings_changed(at)
        self._sending.readdress(at, orphans)
        self._sending.look(at, instances)

    # --- time ---------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When ``handle_timer`` is to be called, in Instant.now seconds."""
        due = min(
            self._ways.next_at,
            self._outbox.next_at,
            self._sending.next_at,
            self._asking.next_at,
            self._answering.next_at,
            self._home.next_at,
            self._desk.next_at,
            self._broadcasts.next_at,
            self._tree.next_at,
            self._dead.next_at,
        )
        return due if due != NEVER else None

    def handle_timer(self, at: Instant) -> None:
        self._at = at
        ways = self._ways.tick(at)
        for peer in ways.opened:
            self._opened(at, peer)
        for peer in ways.closed:
            self._closed(at, peer)
        self._outbox.tick(at)
        self._sending.tick(at)
        for query in self._answering.tick(at):
            self._home.withdraw(query.instance_id, query.message_id)
        self._home.tick(at)
        self._desk.tick(at)
        self._casting.tick(at)
        self._dead.tick(at)

    # --- results ------------------------------------------------------------------------

    @property
    def tells_itself(self) -> bool:
        """Is something for an instance of this very node on its way to it?"""
        return bool(self._ways.own)

    def drain(self) -> list[Effect]:
        """Everything to do since the last call, in order."""
        self._settle(self._at)
        self._ledger.tick(self._at.now)
        save = self._ledger.take()
        effects, self._ways.effects = self._ways.effects, []
        for effect in effects:
            if isinstance(effect, MessageMoved) and effect.state != "queued":
                self._moved[effect.state] += 1
            elif isinstance(effect, SendRefused):
                self._moved["refused"] += 1
        if save is not None:
            effects.append(save)
        return effects

    def load(self) -> Load:
        """What is held now, and what became of what was accepted."""
        return Load(
            depths={
                **self._outbox.depths(),
                **self._home.mailboxes.depths(),
                **self._sending.depths(),
                **self._desk.depths(),
                "broadcasts": len(self._broadcasts),
                "dead_letters": len(self._dead),
                "requests_asked": len(self._asking),
                "requests_to_answer": len(self._answering),
            },
            bytes=self._account.used + self._answering.parts_bytes + self._asking.unread_bytes(),
            moved=dict(self._moved),
        )

    def _settle(self, at: Instant) -> None:
        """Deliver what this node sent to itself, and tell what is due."""
        own, me = self._ways.own, self._ways.me
        while True:
            while own:
                self.received(at, me, own.popleft())
            self._home.intake.flush(at)
            self._sending.settle(at)
            self._desk.settle(at)
            if not own:
                self._dead.settle(at)
                return
