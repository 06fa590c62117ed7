"""The post office: the message plane's one facade, driven by the door.

    commands ─► targets ─► outbox ──────► dispatch ─► SendTo, NeedLink
                   │       broadcast ──►  (effects)   MessageMoved, SendRefused …
                   └─────► asking
    peers ───► home (intake, mailboxes), answering, guest desk, cast tree

It performs no I/O, never calls back, and reads the mesh through a ``Directory``.
Every input takes the time first; ``drain`` returns what is to be done.  Nothing
that a peer sends raises; commands raise for the caller's own mistakes and for full
queues.  What this node sends to itself goes through the same doors as what peers
send, without the bytes.

Not here: any rule.  Each part's module says its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator

import msgspec

from p2pmesh.errors import MessageTooLarge, QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.broadcast import Broadcasts, Held
from p2pmesh.protocol.casttree import CastTree, Taken
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.dispatch import NEVER, Announce, Dispatch, Effect, NeedLink, SendTo
from p2pmesh.protocol.envelopes import SEQ_MAX, Account, is_sound, seconds_left, uuid7
from p2pmesh.protocol.guestdesk import GuestDesk
from p2pmesh.protocol.guests import Guest
from p2pmesh.protocol.home import Home
from p2pmesh.protocol.outbox import Outbox
from p2pmesh.protocol.requests import Answering, Asking
from p2pmesh.protocol.streams import Item
from p2pmesh.protocol.targets import Absence, Ambiguous, Parcel, Waiting, find, nearest
from p2pmesh.protocol.types import (
    Envelope,
    Instance,
    Instant,
    MessageMoved,
    NodeId,
    Recipient,
    SendRefused,
)
from p2pmesh.protocol.window import Place, Window

__all__ = ["Announce", "Effect", "NeedLink", "PostOffice", "SendTo"]

_Tracked = Item | Parcel | Held | Recipient


class PostOffice:
    """The messages of one node."""

    def __init__(
        self, directory: Directory, *, entropy: Callable[[int], bytes], agent: str | None = None
    ) -> None:
        """``agent``: the instance id of this node's own agent, if it has one."""
        self.counters: Counter[str] = Counter()
        self._directory = directory
        self._entropy = entropy
        self._agent = agent
        account = Account()
        counters = self.counters
        dispatch = self._dispatch = Dispatch(directory, counters)
        self._outbox = Outbox(directory, dispatch, account, counters, entropy)
        self._waiting = Waiting(account, counters)
        self._asking = Asking(directory, dispatch, account, counters, entropy)
        self._answering = Answering(directory, dispatch, counters)
        self._home = Home(directory, dispatch, account, counters, self._asking, agent)
        self._desk = GuestDesk(directory, dispatch, self._home, self._answering, counters, entropy)
        self._broadcasts = Broadcasts(directory, dispatch, account, counters, entropy)
        self._tree = CastTree(directory, dispatch, counters)
        self._windows: OrderedDict[tuple[NodeId, bytes], Window] = OrderedDict()
        self._taken: OrderedDict[tuple[NodeId, bytes, int], Taken] = OrderedDict()
        self._responses: dict[str, Parcel] = {}  # whose home is asked whether they answer
        self._at = Instant(0.0, 0)
        self._states: OrderedDict[str, _Tracked] = OrderedDict()  # oldest first

    # --- commands: messages ---------------------------------------------------------

    def send(
        self,
        at: Instant,
        *,
        source: str,
        target: str,
        named: bool,
        type: str,
        payload: bytes,
        ttl: float,
        correlation_id: str | None,
    ) -> str:
        """Accept a message; its id.  Raises QueueFull, MessageTooLarge.

        What becomes of it: ``MessageMoved`` ("queued" says that its target was
        found after all), or ``SendRefused``.
        """
        envelope = self._envelope(at, source, target, type, payload, correlation_id)
        deadline = _deadline(at, ttl)
        may_answer = type == "Response" and correlation_id is not None
        if not named and not may_answer and self._outbox.knows(target):
            self._post(at, envelope, target, deadline)
            return envelope.message_id
        parcel = Parcel(envelope, target, named=named, deadline=deadline)
        if not may_answer or not self._is_answer(at, parcel):
            self._address(at, parcel)
        return envelope.message_id

    def _is_answer(self, at: Instant, parcel: Parcel) -> bool:
        """Does this Response answer a request here, or may it at its source's home?"""
        response = parcel.envelope
        query = self._answering.asked_with(response.correlation_id)
        if query is not None and query.instance_id == response.source:
            self._answering.answer(query, response)
            self._answered(parcel)
            return True
        if self._asking.responded(response, self._dispatch.me):
            self._answered(parcel)
            return True
        if not self._desk.respond(at, response):
            return False
        self._responses[response.message_id] = parcel
        parcel.is_told = False
        self._remember(response.message_id, parcel)
        return True

    def _answered(self, parcel: Parcel) -> None:
        message_id = parcel.envelope.message_id
        self._remember(message_id, Recipient(parcel.target, "done"))
        self._dispatch.effects.append(MessageMoved(message_id, parcel.target, "done"))

    def _envelope(
        self,
        at: Instant,
        source: str,
        target: str | None,
        type: str,
        payload: bytes,
        correlation_id: str | None,
    ) -> Envelope:
        self._at = at
        if len(payload) > limits.PAYLOAD_MAX:
            raise MessageTooLarge(
                f"the payload takes {len(payload)} bytes, the limit is {limits.PAYLOAD_MAX}"
            )
        message_id = uuid7(at.wall, self._entropy)
        return Envelope(message_id, source, target, type, payload, correlation_id, at.wall * 1000)

    def _address(self, at: Instant, parcel: Parcel, *, again: bool = False) -> None:
        """Find the target; what has none waits.  Raises QueueFull.

        ``again``: the parcel has waited, or its holder is gone.
        """
        found = find(self._directory, parcel.target, named=parcel.named)
        if isinstance(found, Ambiguous) and again:
            oldest = self._directory.instance(found.ids[0])
            found = oldest if oldest is not None else Absence.NO_HOLDER
        match found:
            case Instance():
                self._deliver(at, parcel, found, again=again)
            case Ambiguous(ids):
                self._refuse(parcel, "ambiguous", "\n".join(ids))
            case Absence.NO_HOLDER:
                self._wait(at, parcel, parcel.deadline)
            case Absence.UNKNOWN if parcel.call is not None or (again and parcel.is_told):
                self._wait(at, parcel, parcel.deadline)
            case Absence.UNKNOWN:
                self._wait(at, parcel, at.now + timing.UNKNOWN_TARGET_WAIT)

    def _deliver(self, at: Instant, parcel: Parcel, instance: Instance, *, again: bool) -> None:
        if parcel.call is not None:
            asked = self._asking.get(parcel.call)
            if asked is not None:
                self._asking.go(at, asked, instance)
            return
        envelope, name = parcel.envelope, parcel.target
        is_name = name != instance.instance_id
        if envelope.target != instance.instance_id:
            envelope = msgspec.structs.replace(envelope, target=instance.instance_id)
        self._post(at, envelope, instance.instance_id, parcel.deadline, name if is_name else None)
        if again:
            self._dispatch.effects.append(
                MessageMoved(envelope.message_id, instance.instance_id, "queued")
            )

    def _post(
        self,
        at: Instant,
        envelope: Envelope,
        recipient: str,
        deadline: float,
        name: str | None = None,
    ) -> None:
        item = Item(envelope, recipient, deadline, name)
        self._outbox.accept(at, item)
        self._remember(envelope.message_id, item)

    def _wait(self, at: Instant, parcel: Parcel, give_up_at: float) -> None:
        self._waiting.add(parcel, give_up_at)
        if parcel.call is None:
            parcel.is_told = give_up_at >= parcel.deadline
            self._remember(parcel.envelope.message_id, parcel)

    def _refuse(self, parcel: Parcel, error: str, detail: str) -> None:
        if parcel.call is not None:
            asked = self._asking.get(parcel.call)
            if asked is not None:
                self._asking.end(asked, error, detail)
            return
        message_id = parcel.envelope.message_id
        self._states.pop(message_id, None)
        self._dispatch.effects.append(SendRefused(message_id, error, detail))

    def _address_again(self, at: Instant, parcel: Parcel) -> None:
        """As ``_address``, where nobody is there to be told by an exception."""
        try:
            self._address(at, parcel, again=True)
        except QueueFull as full:
            self._refuse(parcel, "queue_full", str(full))

    def broadcast(
        self,
        at: Instant,
        *,
        source: str,
        type: str,
        payload: bytes,
        ttl: float,
        correlation_id: str | None,
    ) -> tuple[str, tuple[str, ...]]:
        """To every instance alive now but the source: message id, and their ids.
        Raises QueueFull, MessageTooLarge."""
        envelope = self._envelope(at, source, None, type, payload, correlation_id)
        deadline = _deadline(at, ttl)
        instances = [
            instance
            for instance in self._directory.live_instances()
            if instance.instance_id != source
        ]
        broadcasts, me = self._broadcasts, self._dispatch.me
        held = broadcasts.accept(at, envelope, deadline, instances)
        self._remember(envelope.message_id, held)
        cast = broadcasts.cast(at, held)
        mine = self._home.cast(envelope, me, deadline, held.born_below)
        broadcasts.receipt(wire.CastReceipt(me, broadcasts.stream, held.seq, (me,), *mine))
        self._tree.spread(at, cast, None, Taken())
        return envelope.message_id, tuple(instance.instance_id for instance in instances)

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None:
        """Where a message that this node accepted is; None: not known (any more);
        empty: its target is looked for."""
        tracked = self._states.get(message_id)
        if tracked is None:
            return None
        return (tracked,) if isinstance(tracked, Recipient) else tracked.recipients()

    def _remember(self, message_id: str, tracked: _Tracked) -> None:
        states = self._states
        states[message_id] = tracked
        if len(states) <= limits.MESSAGE_STATES_MAX:
            return
        for _ in range(8):  # the oldest that is over; if none of a few is, the oldest
            oldest, known = states.popitem(last=False)
            if _is_over(known):
                return
            states[oldest] = known
        states.popitem(last=False)

    def message_completed(self, at: Instant, message_id: str, ok: bool, reason: str = "") -> None:
        """The handler of a MessageArrived ended; not ok: it is tried again, and at
        last the message is dead."""
        self._at = at
        self._home.completed(at, message_id, ok, reason[: limits.REASON_MAX])

    # --- commands: requests -----------------------------------------------------------

    def request(
        self,
        at: Instant,
        *,
        source: str,
        target: str,
        named: bool,
        type: str,
        payload: bytes,
        timeout: float,
        correlation_id: str | None = None,
    ) -> int:
        """Ask and wait; the number in the RequestEnded that follows.  Raises
        QueueFull, MessageTooLarge."""
        envelope = self._envelope(at, source, target, type, payload, correlation_id)
        asked = self._asking.open(envelope, target, _deadline(at, timeout))
        known = self._directory.instance(target)
        is_name = named and bool(self._directory.named(target))
        if known is not None and not is_live(known) and not is_name:
            self._asking.end(asked, "unreachable", f"{target} is {known.state}")
            return asked.call
        parcel = Parcel(envelope, target, named=named, deadline=asked.deadline, call=asked.call)
        try:
            self._address(at, parcel)
        except QueueFull as full:
            self._asking.end(asked, "refused", str(full))
        return asked.call

    def cancel(self, at: Instant, call: int) -> None:
        """The caller of this request gave up: nothing follows."""
        self._at = at
        self._asking.cancel(call)

    def respond(
        self, at: Instant, request: int, payload: bytes | None, error: str = "", detail: str = ""
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
        message_id = query.message_id
        self._answering.answer(
            query,
            self._envelope(at, query.instance_id, query.source, "Response", payload, message_id),
        )

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

    def read(self, at: Instant, instance_id: str, limit: int | None = None) -> int:
        self._at = at
        return self._desk.call(at, "read", instance_id, wire.ReadBody(limit or 0))

    def acknowledge(self, at: Instant, instance_id: str, message_ids: tuple[str, ...]) -> int:
        self._at = at
        return self._desk.call(at, "ack", instance_id, wire.AckBody(message_ids))

    def guest(self, instance_id: str) -> Guest | None:
        """A guest of this home: its entry, status, metrics, and when it was heard."""
        return self._desk.guests.get(instance_id)

    # --- commands: leaving ------------------------------------------------------------

    def begin_leave(self, at: Instant) -> None:
        """Take nothing new for the own agent; what is under way goes on."""
        self._at = at
        self._home.is_leaving = True

    @property
    def is_drained(self) -> bool:
        """Is all that live homes could receipt receipted?"""
        return not (self._outbox.waits_for_receipts() or self._broadcasts.waits_for_receipts())

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
                self._answer(peer, message)
            case wire.Cast():
                self._cast(at, peer, message)
            case wire.CastReceipt():
                self._cast_receipt(peer, message)
            case wire.Unsure():
                self._home.intake.unsure(at, peer, message)
            case wire.Cancel():
                self._cancelled(peer, message)
            case wire.Call():
                self._desk.called(at, peer, message)
            case wire.CallResult():
                self._desk.result(at, peer, message)
            case wire.Handed():
                self._home.handed(at, peer, message)
            case wire.Relay():
                self._relayed(at, peer, message)
            case wire.RelayRefused():
                for closed in self._dispatch.relay_refused(peer, message):
                    self._closed(at, closed)
            case _:
                self.counters["message_unexpected"] += 1

    def _relayed(self, at: Instant, peer: NodeId, message: wire.Relay) -> None:
        relayed = self._dispatch.relay_received(at, peer, message)
        if relayed is None:
            return
        if relayed.is_new_way:
            self._opened(at, relayed.origin)
        self.received(at, relayed.origin, relayed.message)

    def _asked(self, at: Instant, peer: NodeId, message: wire.Ask) -> None:
        answering = self._answering
        if answering.is_known(peer, message.request):
            return
        box = self._home.mailboxes.get(message.recipient)
        error, detail = "refused", ""
        if not is_sound(message.envelope):
            self.counters["envelope_malformed"] += 1
            detail = "malformed"
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

    def _answer(self, peer: NodeId, message: wire.Answer) -> None:
        if message.envelope is not None and not is_sound(message.envelope):
            self.counters["envelope_malformed"] += 1
            message = wire.Answer(message.request, None, "failed", "its answer is malformed")
        self._asking.answer(peer, message)

    def _cancelled(self, peer: NodeId, message: wire.Cancel) -> None:
        query = self._answering.cancel(peer, message.request)
        if query is not None:
            self._home.withdraw(query.instance_id, query.message_id)

    def _cast(self, at: Instant, peer: NodeId, cast: wire.Cast) -> None:
        me = self._dispatch.me
        if (
            cast.root == me
            or len(cast.root) != 32
            or len(cast.stream) != 8
            or not 1 <= cast.floor <= cast.seq <= SEQ_MAX
            or (cast.direct and cast.root != peer)
            or not is_sound(cast.envelope)
        ):
            self.counters["cast_malformed"] += 1
            return
        key = (cast.root, cast.stream, cast.seq)
        match self._window(cast.root, cast.stream).take(cast.seq, cast.floor):
            case Place.NEW:
                deadline = at.now + seconds_left(cast.ttl)
                taken = Taken(*self._home.cast(cast.envelope, cast.root, deadline, cast.born_below))
                self._taken[key] = taken
                if len(self._taken) > limits.CAST_RESULTS_MAX:
                    self._taken.popitem(last=False)
                if not cast.direct:
                    self._tree.spread(at, cast, peer, taken)
                    return
            case Place.TAKEN:
                self.counters["cast_again"] += 1
                if not cast.direct:  # the receipt went, or goes, another way
                    self._dispatch.send(peer, wire.CastReceipt(*key, (), ()))
                    return
                taken = self._taken.get(key, Taken())
            case Place.BEYOND:
                self.counters["cast_beyond_window"] += 1
                return
        self._dispatch.send(peer, wire.CastReceipt(*key, (me,), *taken))

    def _window(self, root: NodeId, stream: bytes) -> Window:
        key = (root, stream)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window()
            if len(self._windows) > limits.CAST_STREAMS_MAX:
                self.counters["cast_stream_forgotten"] += 1
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return window

    def _cast_receipt(self, peer: NodeId, message: wire.CastReceipt) -> None:
        if message.root == self._dispatch.me:
            self._broadcasts.receipt(message)
        else:
            self._tree.receipt(peer, message)

    # --- inputs: the mesh -------------------------------------------------------------

    def linked(self, at: Instant, peer: NodeId) -> None:
        """There is a link, or a new one in place of another: what was given to an
        earlier one may be lost."""
        self._at = at
        self._dispatch.linked(peer)
        self._opened(at, peer)

    def unlinked(self, at: Instant, peer: NodeId) -> None:
        """No link to this peer is left."""
        self._at = at
        for closed in self._dispatch.unlinked(peer):
            self._closed(at, closed)

    def paused(self, at: Instant, peer: NodeId) -> None:
        """The transport to this peer is backed up."""
        self._at = at
        self._dispatch.paused(peer)

    def resumed(self, at: Instant, peer: NodeId) -> None:
        self._at = at
        for clear in self._dispatch.resumed(peer):
            self._outbox.clear(at, clear)
            self._asking.clear(at, clear)
            self._answering.clear(clear)
            self._tree.clear(clear)

    def _opened(self, at: Instant, peer: NodeId) -> None:
        self._home.intake.opened(peer)
        self._outbox.opened(at, peer)
        self._asking.way_changed(at, peer)
        self._answering.clear(peer)
        self._desk.opened(peer)
        self._broadcasts.opened(at, peer)

    def _closed(self, at: Instant, peer: NodeId) -> None:
        self._outbox.closed(at, peer)
        self._asking.way_changed(at, peer)
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
        for item in orphans:
            if item.envelope is not None and item.name is not None:
                self._address_again(
                    at, Parcel(item.envelope, item.name, named=True, deadline=item.deadline)
                )
        if self._waiting:
            for parcel in self._waiting.take(self._ids_and_names(instances)):
                self._address_again(at, parcel)

    def _ids_and_names(self, instances: Collection[str]) -> Iterator[str]:
        for instance_id in instances:
            yield instance_id
            instance = self._directory.instance(instance_id)
            if instance is not None and instance.name != instance_id:
                yield instance.name

    # --- time ---------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When ``handle_timer`` is to be called, in Instant.now seconds."""
        due = min(
            self._dispatch.next_at,
            self._outbox.next_at,
            self._waiting.next_at,
            self._asking.next_at,
            self._answering.next_at,
            self._home.next_at,
            self._desk.next_at,
            self._broadcasts.next_at,
            self._tree.next_at,
        )
        return due if due != NEVER else None

    def handle_timer(self, at: Instant) -> None:
        self._at = at
        ways = self._dispatch.tick(at)
        for peer in ways.opened:
            self._opened(at, peer)
        for peer in ways.closed:
            self._closed(at, peer)
        self._outbox.tick(at)
        for parcel in self._waiting.tick(at):
            self._gave_up(at, parcel)
        for asked in self._asking.tick(at):
            names = set(self._directory.names())
            if asked.target in names:
                self._asking.end(asked, "unreachable", f"no {asked.target} is alive")
            else:
                near = nearest(names, asked.target)
                self._asking.end(asked, "unknown", "\n".join(near))
        for query in self._answering.tick(at):
            self._home.withdraw(query.instance_id, query.message_id)
        self._home.tick(at)
        self._desk.tick(at)
        for held, instance_id, envelope in self._broadcasts.tick(at):
            item = Item(envelope, instance_id, held.deadline)
            try:
                self._outbox.accept(at, item)
            except QueueFull as full:
                self._broadcasts.refused(held, instance_id, str(full))
            else:
                self._broadcasts.posted(held, instance_id, item)
        self._tree.tick(at)

    def _gave_up(self, at: Instant, parcel: Parcel) -> None:
        """Nobody of this id or name came."""
        if parcel.call is not None:
            return  # its own time ends now, too
        message_id = parcel.envelope.message_id
        if parcel.deadline <= at.now:
            self.counters["message_expired"] += 1
            self._states[message_id] = Recipient(parcel.target, "expired")
            self._dispatch.effects.append(MessageMoved(message_id, parcel.target, "expired"))
        elif self._directory.my_life() is None:  # not joined yet: everybody is unknown
            self._address_again(at, parcel)
        else:
            near = nearest(self._directory.names(), parcel.target)
            self._refuse(parcel, "unknown", "\n".join(near))

    # --- results ------------------------------------------------------------------------

    def drain(self) -> list[Effect]:
        """Everything to do since the last call, in order."""
        self._settle(self._at)
        effects, self._dispatch.effects = self._dispatch.effects, []
        return effects

    def _settle(self, at: Instant) -> None:
        """Deliver what this node sent to itself, and tell what is due."""
        own, me = self._dispatch.own, self._dispatch.me
        while True:
            while own:
                self.received(at, me, own.popleft())
            self._home.intake.flush(at)
            for response, is_answer in self._desk.take_responded():
                parcel = self._responses.pop(response.message_id, None)
                if parcel is not None and is_answer:
                    self._answered(parcel)
                elif parcel is not None:
                    self._address_again(at, parcel)
            if not own:
                return


def _deadline(at: Instant, seconds: float) -> float:
    return at.now + min(max(seconds, 0.0), timing.WATERMARK_TTL)


def _is_over(tracked: _Tracked) -> bool:
    match tracked:
        case Item():
            return tracked.is_over
        case Held():
            return tracked.is_over()
        case _:
            return isinstance(tracked, Recipient)
