"""A home: messages from the intake into the mailboxes of its instances, and out.

    Post, Handed ─► intake ─► mailbox ─► MessageArrived … completed    (own agent)
    Cast to this node's own ─► mailbox
                               mailbox ─► read … acknowledged          (guests)
    Ask to a guest ──────────► mailbox

Who waits to read (``waits``) hears of whatever is put into a mailbox.
Whatever ends in a mailbox ends in the streams that brought it.  A Response that
answers a waiting request of this node is handed over on arrival and never lies in
a mailbox, nor does what a guest acknowledged before it came (``acks``).  Where there
is a store, a handler starts only what the store has, and only once the store has that
it starts.  When a guest moved to another home, what it had not finished is taken out,
stream by stream, to be handed over.

Not here: who is a guest of this home (``guests``).
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import NamedTuple

import msgspec

from p2pmesh.protocol import wire
from p2pmesh.protocol.acks import KeptAcks
from p2pmesh.protocol.asking import Asking
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.envelopes import Account, are_sound, held_in, is_sound, seconds_left
from p2pmesh.protocol.intake import Intake
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.mailbox import Letter, Mailbox, Mailboxes
from p2pmesh.protocol.streams import InStream, Item, Verdict
from p2pmesh.protocol.types import (
    Envelope,
    Instant,
    Life,
    MessageArrived,
    MessageDead,
    MessageExpired,
    MessageMayStart,
    MessageWithdrawn,
    NodeId,
    Table,
)
from p2pmesh.protocol.waits import Waits
from p2pmesh.protocol.ways import Ways


class _LetterRow(msgspec.Struct, frozen=True, array_like=True):
    """A message of a mailbox on disk, under its recipient and its order."""

    envelope: Envelope
    via: NodeId
    expires_at: float  # store time
    places: tuple[tuple[NodeId, bytes, int], ...]  # origin, stream, number
    attempt: int
    is_started: bool


class HandOver(NamedTuple):
    """What a former home still holds of one stream (of none: broadcasts)."""

    origin: NodeId
    stream: bytes | None
    watermark: int
    copies: list[tuple[int, Item]]


class Home:
    """The mailboxes of this node and what fills and empties them."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        account: Account,
        counters: Counter[str],
        asking: Asking,
        acks: KeptAcks,
        agent: str | None,
        ledger: Ledger,
    ) -> None:
        self.is_leaving = False
        self.intake = Intake(directory, ways, counters, ledger)
        self._ledger = ledger
        self._order = 0
        self.mailboxes = Mailboxes(account)
        self.waits = Waits(counters)
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._asking = asking
        self._acks = acks
        if agent is not None:
            self.mailboxes.open(agent, is_agent=True)

    @property
    def next_at(self) -> float:
        return min(self.intake.next_at, self.mailboxes.next_at)

    # --- in: messages of streams ------------------------------------------------------

    def post(self, at: Instant, peer: NodeId, message: wire.Post) -> None:
        envelope = message.envelope
        recipient = message.recipient or envelope.target
        if recipient is None:
            self._counters["post_malformed"] += 1
            return
        found = self._stream(at, peer, peer, message.stream, recipient)
        if found is not None:
            self._take(at, *found, message.prev, message.seq, message.ttl, envelope)

    def handed(self, at: Instant, peer: NodeId, message: wire.Handed) -> None:
        """A former home of a guest of mine gives what it held."""
        found = self._stream(at, peer, message.origin, message.stream, message.recipient)
        if found is None or not are_sound(message.held):
            return
        stream, box = found
        seq = message.seq
        self._take(at, stream, box, message.prev, seq, message.ttl, message.envelope)
        if (message.held or message.envelope is None) and stream.watermark >= seq:
            ended = stream.open - set(held_in(message.held, sorted(stream.open)))
            for letter in list(box.letters.values()):
                if any(of is stream and n <= seq and n in ended for of, n in letter.places):
                    self._finish(box, letter, "done")

    def _stream(
        self, at: Instant, peer: NodeId, origin: NodeId, stream_id: bytes, recipient: str
    ) -> tuple[InStream, Mailbox] | None:
        box = self.mailboxes.get(recipient)
        if box is None or (self.is_leaving and box.is_agent):
            self.intake.not_here(peer, stream_id)
            return None
        stream = self.intake.stream(at, peer, origin, stream_id, recipient)
        return None if stream is None else (stream, box)

    def _take(
        self,
        at: Instant,
        stream: InStream,
        box: Mailbox,
        prev: int,
        seq: int,
        ttl: int,
        envelope: Envelope | None,
    ) -> None:
        match stream.judge(prev, seq):
            case Verdict.NEXT:
                self._deliver(at, stream, box, seq, ttl, envelope)
            case Verdict.AGAIN:
                self.intake.again(stream, seq)
            case Verdict.GAP:
                self.intake.gap(stream)
            case Verdict.MALFORMED:
                self._counters["post_malformed"] += 1

    def _deliver(
        self,
        at: Instant,
        stream: InStream,
        box: Mailbox,
        seq: int,
        ttl: int,
        envelope: Envelope | None,
    ) -> None:
        """The next of its stream: into the mailbox, unless it is over at once."""
        intake = self.intake
        if envelope is None:  # the end of a hand-over
            intake.store(stream, seq)
            stream.open.discard(seq)
        elif not is_sound(envelope):
            self._counters["envelope_malformed"] += 1
            intake.store(stream, seq)
            intake.end(stream, seq, "dead", "malformed")
        elif ttl <= 0:
            intake.store(stream, seq)
            intake.end(stream, seq, "expired", "its time to live is over")
        elif self._is_done_already(box, stream, envelope):
            intake.store(stream, seq)
            intake.end(stream, seq, "done", "")
        elif (known := box.letters.get(envelope.message_id)) is not None:
            known.places += ((stream, seq),)  # it came another way before
            self._keep(box, known)
            intake.store(stream, seq)
        else:
            origin = stream.origin
            is_shared = origin == self._ways.me
            letter = Letter(envelope, origin, at.now + seconds_left(ttl), is_shared=is_shared)
            letter.places = ((stream, seq),)
            if self._put(box, letter):
                intake.store(stream, seq)
            else:
                intake.full(stream)

    def _is_done_already(self, box: Mailbox, stream: InStream, envelope: Envelope) -> bool:
        """Does it answer a request that waits here, or was it acknowledged ahead?"""
        if envelope.type == "Response" and self._asking.responded(envelope, stream.origin):
            return True
        return self._acks.has(box.instance_id, envelope.message_id)

    def _put(self, box: Mailbox, letter: Letter) -> bool:
        if self._ledger.is_failing or not self.mailboxes.put(box, letter):
            return False
        if self._ledger.is_durable and not letter.is_query:
            letter.is_kept = False
            self._keep(box, letter)
            self._ledger.after(partial(self._arrived, box, letter))
        else:
            self._arrived(box, letter)
        return True

    def _arrived(self, box: Mailbox, letter: Letter) -> None:
        """Its instance may have it, unless it is over by now."""
        letter.is_kept = True
        if box.letters.get(letter.message_id) is not letter:
            return
        self.waits.mail_came(box.instance_id)
        if box.is_agent:
            self._ways.effects.append(MessageArrived(letter.envelope, letter.via, letter.attempt))

    # --- the store --------------------------------------------------------------------

    def _keep(self, box: Mailbox, letter: Letter) -> None:
        if letter.is_query or not self._ledger.is_durable:
            return
        if not letter.order:
            self._order += 1
            letter.order = self._order
        self._ledger.put(
            Table.MAILBOX,
            _letter_key(box.instance_id, letter.order),
            _LetterRow(
                letter.envelope,
                letter.via,
                self._ledger.store_time(letter.deadline),
                tuple((stream.origin, stream.id, seq) for stream, seq in letter.places),
                letter.attempt,
                letter.is_started,
            ),
        )

    def _drop(self, instance_id: str, letter: Letter, *, goes_on: bool = False) -> None:
        """Out of the mailbox, and out of the store."""
        if letter.order:
            key = _letter_key(instance_id, letter.order)
            self._ledger.gone(Table.MAILBOX, key, moved=goes_on)

    def restore(self, at: Instant) -> None:
        """Take up the mailboxes of an earlier process.  Those of guests wait here for
        them, or for the news that they live elsewhere."""
        self.intake.restore(at)
        for key, kept in self._ledger.restored(Table.MAILBOX, _LetterRow):
            recipient, order = _letter_place(key)
            box = self.mailboxes.open(recipient)
            letter = Letter(kept.envelope, kept.via, self._ledger.own_time(kept.expires_at))
            letter.order = order
            letter.attempt = kept.attempt + kept.is_started
            self._order = max(self._order, order)
            for origin, stream_id, seq in kept.places:
                stream = self.intake.find(origin, stream_id)
                if stream is not None:
                    stream.open.add(seq)
                    letter.places += ((stream, seq),)
            self.mailboxes.put(box, letter)
            self._arrived(box, letter)

    def started(self, message_id: str) -> None:
        """The own agent is about to handle it: MessageMayStart follows."""
        box = self.mailboxes.agent
        letter = box.letters.get(message_id) if box is not None else None
        if box is not None and letter is not None and not letter.is_started:
            letter.is_started = True
            self._keep(box, letter)
        may_start = MessageMayStart(message_id)
        self._ledger.after(lambda: self._ways.effects.append(may_start), gives_way=True)

    def forget_unkept(self) -> None:
        """The store is full: what it has not got of this node's own messages was not
        accepted.  (Others send theirs again.)"""
        for box in self.mailboxes.all():
            for letter in list(box.letters.values()):
                if not letter.is_kept and letter.via == self._ways.me:
                    box.take(letter.message_id)
                    self._drop(box.instance_id, letter)
                    for stream, seq in letter.places:
                        stream.open.discard(seq)

    # --- in: broadcasts and queries ---------------------------------------------------

    def cast(
        self, envelope: Envelope, via: NodeId, deadline: float, born_below: Life
    ) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        """A copy for the own agent, and of an own broadcast for each guest, that was alive
        when it was sent: the ids of those that took it, and of those that could not, with
        the reason."""
        delivered: list[str] = []
        refused: list[tuple[str, str]] = []
        for box in self.mailboxes.all():
            instance_id = box.instance_id
            instance = self._directory.instance(instance_id)
            if (
                instance_id == envelope.source
                or (not box.is_agent and via != self._ways.me)  # it gets a message of its own
                or (box.is_agent and self.is_leaving)
                or not is_live(instance)
                or instance.life > born_below
            ):
                continue
            if envelope.message_id in box.letters or self._put(
                box, Letter(envelope, via, deadline)
            ):
                delivered.append(instance_id)
            else:
                self._counters["cast_mailbox_full"] += 1
                refused.append((instance_id, "mailbox full"))
                if via != self._ways.me:  # else its MessageMoved says it
                    self._ways.effects.append(
                        MessageDead(
                            message_id=envelope.message_id,
                            recipient=instance_id,
                            reason="mailbox full",
                        )
                    )
        return tuple(delivered), tuple(refused)

    def query(self, box: Mailbox, envelope: Envelope, via: NodeId, deadline: float) -> bool:
        """A request to a guest lies in its mailbox until it is answered.  False: full."""
        return self._put(box, Letter(envelope, via, deadline, is_query=True))

    # --- out --------------------------------------------------------------------------

    def completed(self, at: Instant, message_id: str, ok: bool, reason: str) -> None:
        """A handler of the own agent ended."""
        box = self.mailboxes.agent
        letter = box.letters.get(message_id) if box is not None else None
        if box is None or letter is None:
            return
        if ok:
            self._finish(box, letter, "done")
        elif self.mailboxes.failed(at, letter):
            letter.is_started = False
            self._keep(box, letter)
        else:
            self._counters["message_dead"] += 1
            self._finish(box, letter, "dead", reason)

    def acknowledge(self, at: Instant, instance_id: str, message_ids: tuple[str, ...]) -> None:
        """An instance has finished with these, of which some may still be on their way."""
        box = self.mailboxes.get(instance_id)
        if box is None:
            return
        for message_id in message_ids:
            letter = box.letters.get(message_id)
            if letter is not None:
                self._finish(box, letter, "done")
                if box.is_agent:
                    self._ways.effects.append(MessageWithdrawn(message_id))
            elif not box.is_agent:
                self._acks.keep(at, instance_id, (message_id,))

    def withdraw(self, instance_id: str, message_id: str) -> None:
        """A query that nobody waits for any more."""
        box = self.mailboxes.get(instance_id)
        letter = box.letters.get(message_id) if box is not None else None
        if box is not None and letter is not None and letter.is_query:
            self._finish(box, letter, "done")

    def _finish(self, box: Mailbox, letter: Letter, state: str, reason: str = "") -> None:
        """It is over: out of the mailbox, and its streams say so."""
        box.take(letter.message_id)
        self._drop(box.instance_id, letter)
        self._over(box.instance_id, letter, state, reason)
        if self.intake.is_hungry(box.instance_id) and box.has_room_again():
            self.intake.feed(box.instance_id)

    def _over(self, instance_id: str, letter: Letter, state: str, reason: str) -> None:
        for stream, seq in letter.places:
            self.intake.end(stream, seq, state, reason)
        if state == "done" or letter.is_query:
            return
        if letter.via == self._ways.me and letter.places:
            return  # accepted here: its MessageMoved says it
        self._ways.effects.append(
            MessageExpired(message_id=letter.message_id, recipient=instance_id)
            if state == "expired"
            else MessageDead(message_id=letter.message_id, recipient=instance_id, reason=reason)
        )

    def close(self, instance_id: str) -> None:
        """The instance left: what it had not finished is dead."""
        for letter in self.mailboxes.close(instance_id):
            self._drop(instance_id, letter)
            self._over(instance_id, letter, "dead", "left")

    def move_out(self, at: Instant, instance_id: str) -> list[HandOver]:
        """The instance lives elsewhere: what it had not finished goes there.

        What this node itself accepted is in its outbox anyway, and not among it.
        """
        self.intake.flush(at)
        copies: dict[InStream, list[tuple[int, Item]]] = {}
        loose: dict[NodeId, list[tuple[int, Item]]] = {}
        for letter in self.mailboxes.close(instance_id):
            self._drop(instance_id, letter, goes_on=True)
            for stream, seq in letter.places:
                item = Item(letter.envelope, instance_id, letter.deadline)
                copies.setdefault(stream, []).append((seq, item))
            if not letter.places and not letter.is_query:
                of_root = loose.setdefault(letter.via, [])
                item = Item(letter.envelope, instance_id, letter.deadline)
                of_root.append((len(of_root) + 1, item))
        overs = [HandOver(root, None, 0, numbered) for root, numbered in loose.items()]
        for stream in self.intake.streams_to(instance_id):
            if stream.origin != self._ways.me and stream.watermark:
                numbered = sorted(copies.get(stream, ()), key=lambda pair: pair[0])
                overs.append(HandOver(stream.origin, stream.id, stream.watermark, numbered))
            self.intake.forget(stream)
        return overs

    # --- time -------------------------------------------------------------------------

    def tick(self, at: Instant) -> None:
        again, expired = self.mailboxes.tick(at)
        for letter in again:
            self._ways.effects.append(MessageArrived(letter.envelope, letter.via, letter.attempt))
        for box, letter in expired:
            self._counters["letter_expired"] += 1
            self._drop(box.instance_id, letter)
            self._over(box.instance_id, letter, "expired", "its time to live is over")
            if box.is_agent:
                self._ways.effects.append(MessageWithdrawn(letter.message_id))
            if self.intake.is_hungry(box.instance_id) and box.has_room_again():
                self.intake.feed(box.instance_id)
        self.intake.tick(at)


def _letter_key(instance_id: str, order: int) -> bytes:
    return instance_id.encode() + b"\0" + order.to_bytes(8)


def _letter_place(key: bytes) -> tuple[str, int]:
    return key[:-9].decode(errors="replace"), int.from_bytes(key[-8:])
