"""The post office: the message plane, put together, and what peers and the mesh tell it.

    commands ─► sending ─► targets ─► outbox, asking ─► ways ─► SendTo, NeedLink,
                casting ─► broadcast, casttree ──────►  (effects)   MessageMoved …
                guest desk ─► guests
    peers ────► home (intake, mailboxes), answering, casting, guest desk
    mesh  ────► all of them: links, members and time

It performs no I/O and reads the mesh through a ``Directory``.  Every input takes the
time first; ``drain`` returns what is to be done.  Nothing that a peer sends raises.
What this node sends to itself goes through the same doors as what peers
send, without the bytes.

Not here: what users ask (``commands``), and any rule: each part's module says its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from p2pmesh.protocol import wire
from p2pmesh.protocol.acks import KeptAcks
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.asking import Asking
from p2pmesh.protocol.broadcast import Broadcasts
from p2pmesh.protocol.casting import Casting
from p2pmesh.protocol.casttree import CastTree
from p2pmesh.protocol.commands import Commands
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import Account, is_sound
from p2pmesh.protocol.guestdesk import GuestDesk
from p2pmesh.protocol.guests import Guest
from p2pmesh.protocol.home import Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.outbox import Outbox
from p2pmesh.protocol.sending import Sending
from p2pmesh.protocol.sentkeys import SentKeys
from p2pmesh.protocol.tracking import Tracking
from p2pmesh.protocol.types import (
    Instant,
    Load,
    MessageMoved,
    NodeId,
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
        begin: Callable[[Instant], None],
        settle: Callable[[], None],
    ) -> None:
        """``agent``: the instance id of this node's own agent, if it has one.
        ``begin`` and ``settle``: what the door does before and after commands."""
        self.counters: Counter[str] = Counter()
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
        self._keys = SentKeys(counters, ledger, self._tracking)
        self._sending = Sending(
            directory, ways, account, counters, self._outbox, self._asking,
            self._answering, self._desk, self._tracking, ledger, dead,
        )  # fmt: skip
        self._moved: Counter[str] = Counter()  # copies accepted here, by the states they reached
        self.commands = Commands(
            begin=begin, settle=settle, entropy=entropy, counters=counters, moved=self._moved,
            ways=ways, ledger=ledger, dead=dead, home=self._home, asking=self._asking,
            answering=self._answering, casting=self._casting, sending=self._sending,
            tracking=self._tracking, desk=self._desk, keys=self._keys,
        )  # fmt: skip

    # --- the store ------------------------------------------------------------------

    def restore(self, at: Instant) -> None:
        """Take up what an earlier process of this node had accepted, stored and not
        finished."""
        self._dead.restore()
        self._keys.restore()
        self._acks.restore(at)
        self._desk.restore(at)
        self._home.restore(at)
        self._casting.restore()
        for held in self._broadcasts.restore(at):
            self._tracking.put(held.message_id, held)
        self._sending.restore(at)

    def saved(self, at: Instant, number: int) -> None:
        """The store has all changes up to this save."""
        self._ledger.saved(number)
        self._outbox.outlets.saved(at)

    def save_failed(self, at: Instant, detail: str) -> None:
        """The store cannot take more: nothing is accepted until it can, and what it has
        not got yet was not accepted."""
        self._ledger.failed()
        self._home.forget_unkept()
        self._outbox.refuse_unkept(detail)
        self._broadcasts.refuse_unkept(detail)

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
        self._home.is_leaving = True
        self._desk.end_waits()

    @property
    def is_drained(self) -> bool:
        """Is all that live homes could receipt receipted, every request to the own agent
        answered, and all that the store can take safe?"""
        return (self._ledger.is_settled or self._ledger.is_failing) and not (
            self._outbox.outlets.waits_for_receipts()
            or self._broadcasts.waits_for_receipts()
            or self._answering.is_asked()
        )

    # --- inputs: peers ----------------------------------------------------------------

    def received(self, at: Instant, peer: NodeId, message: wire.Message) -> None:
        """A message of this plane (``wire.MESSAGE_PLANE``) from an authenticated peer."""
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
        self._ways.linked(peer)
        self._opened(at, peer)

    def unlinked(self, at: Instant, peer: NodeId) -> None:
        """No link to this peer is left."""
        for closed in self._ways.unlinked(peer):
            self._closed(at, closed)

    def paused(self, at: Instant, peer: NodeId) -> None:
        """The transport to this peer is backed up."""
        self._ways.paused(peer)

    def resumed(self, at: Instant, peer: NodeId) -> None:
        for clear in self._ways.resumed(peer):
            self._outbox.outlets.clear(at, clear)
            self._asking.clear(at, clear)
            self._answering.clear(clear)
            self._tree.clear(clear)

    def progressed(self, at: Instant, peer: NodeId) -> None:
        """The peer's process took some of what is large."""
        self._outbox.outlets.progressed(at, peer)

    def _opened(self, at: Instant, peer: NodeId) -> None:
        self._home.intake.opened(peer)
        self._outbox.outlets.opened(at, peer)
        self._asking.way_changed(at, peer)
        self._answering.clear(peer)
        self._desk.opened(at, peer)
        self._broadcasts.opened(at, peer)

    def _closed(self, at: Instant, peer: NodeId) -> None:
        self._outbox.outlets.closed(at, peer)
        self._asking.way_changed(at, peer)
        self._desk.closed(at, peer)
        self._tree.closed(at, peer)

    def membership_changed(
        self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]
    ) -> None:
        """States, homes or lives of these changed, or they are new: look again."""
        self._settle(at)
        for instance_id, overs in self._desk.look(at, nodes, instances):
            for over in overs:
                self._outbox.hand_over(
                    at, instance_id, over.origin, over.stream, over.watermark, over.copies
                )
            self._outbox.end_hand_over(at, instance_id)
        orphans = self._outbox.look_at(at, nodes, instances)
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
            self._keys.next_at,
        )
        return due if due != NEVER else None

    def handle_timer(self, at: Instant) -> None:
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
        self._keys.tick(at)

    # --- results ------------------------------------------------------------------------

    def drain(self, at: Instant) -> list[Effect]:
        """Everything to do since the last call, in order."""
        self._settle(at)
        self._ledger.tick(at.now)
        effects, self._ways.effects = self._ways.effects, []
        for effect in effects:
            if isinstance(effect, MessageMoved) and effect.state != "queued":
                self._moved[effect.state] += 1
            elif isinstance(effect, SendRefused):
                self._moved["refused"] += 1
                self._keys.refused(effect.message_id)
        self._keys.settle(at)
        save = self._ledger.take()
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
                "sent_keys": len(self._keys),
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
