"""A stream: the numbered messages from one accepting node to one recipient.

Both ends of one rule.  The sender numbers its copies from 1 and says with each
the next lower number that it still holds (``prev``, 0: none).  The recipient
keeps a *watermark* and compares:

    seq <= watermark           stored before: receipted again, nothing else
    prev <= watermark < seq    next: stored, the watermark rises to seq
    watermark < prev           a gap that the sender can fill: ask again from there

That is all the de-duplication and all the ordering there is.  Numbers that the
sender no longer holds (expired, done elsewhere) leave gaps that nobody waits for;
re-sends, restarts and other ways of the same copies change nothing.

Not here: where the two ends are (``outbox``, ``intake``), and time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.envelopes import (
    OVERHEAD,
    SEQ_MAX,
    held_in,
    milliseconds,
    ranges_of,
    without,
)
from p2pmesh.protocol.types import Envelope, MessageState, NodeId, Recipient

NEVER = float("inf")


# --- the sender's end -------------------------------------------------------------


class Item:
    """One copy: what is sent, and how far it got."""

    __slots__ = (
        "attempts", "deadline", "envelope", "is_flying", "is_kept", "is_large", "is_over",
        "is_promised", "message_id", "name", "reason", "recipient", "seq", "size", "state",
    )  # fmt: skip

    def __init__(
        self, envelope: Envelope | None, recipient: str, deadline: float, name: str | None = None
    ) -> None:
        self.envelope = envelope  # None: the end of a hand-over, or over
        self.message_id = "" if envelope is None else envelope.message_id
        self.recipient = recipient
        self.deadline = deadline
        self.name = name  # the target was a name: until stored it may go to another
        self.size = OVERHEAD + (0 if envelope is None else len(envelope.payload))
        self.is_large = envelope is not None and len(envelope.payload) > limits.LARGE_MIN
        self.seq = 0
        self.state: MessageState = "queued"
        self.reason = ""
        self.attempts = 0  # times it was put on the wire
        self.is_flying = False  # sent to the present home, no receipt yet
        self.is_promised = False  # its sender was told that it is safe
        self.is_kept = True  # False: it may not be sent yet, the store has not got it
        self.is_over = False

    def recipients(self) -> tuple[Recipient, ...]:
        return (Recipient(self.recipient, self.state, self.attempts, self.reason),)


class Flight:
    """Bytes on their way to one home without a receipt, of all streams to it.  Large
    messages count apart: nothing small waits for them."""

    __slots__ = ("bytes", "large")

    def __init__(self) -> None:
        self.bytes = 0
        self.large = 0

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.large > 0

    def count(self, item: Item, sign: int) -> None:
        if item.is_large:
            self.large += sign * item.size
        else:
            self.bytes += sign * item.size


class OutStream:
    """The sender's end: all copies that are not over, and which of them are sent."""

    __slots__ = (
        "bytes", "earliest", "flight", "highest", "id", "is_own", "items", "last_sent",
        "origin", "receipted", "recipient", "sent", "unsent",
    )  # fmt: skip

    def __init__(self, stream_id: bytes, origin: NodeId, recipient: str, *, is_own: bool) -> None:
        self.id = stream_id
        self.origin = origin  # who accepted the messages
        self.is_own = is_own  # False: handed over, the origin is another node
        self.recipient = recipient
        self.items: dict[int, Item] = {}  # ascending
        self.unsent: deque[Item] = deque()
        self.sent: deque[Item] = deque()
        self.highest = 0
        self.receipted = 0  # the watermark at the present home
        self.last_sent = 0  # what ``prev`` of the next message says
        self.bytes = 0
        self.flight = Flight()
        self.earliest = NEVER  # no copy expires before

    def append(self, item: Item) -> None:
        """Give the next number."""
        self.insert(self.highest + 1, item)

    def insert(self, seq: int, item: Item) -> None:
        """Under its number; numbers ascend."""
        item.seq = self.highest = seq
        item.is_over = False
        self.items[seq] = item
        if item.is_kept:
            self.unsent.append(item)
        self.bytes += item.size
        self.earliest = min(self.earliest, item.deadline)

    def keep(self, item: Item) -> None:
        """The store has it: it may be sent."""
        item.is_kept = True
        if not item.is_over:
            self.unsent.append(item)

    def remove(self, item: Item) -> None:
        """It is over here."""
        item.is_over = True
        del self.items[item.seq]
        self._land(item)
        self.bytes -= item.size

    def take(self, items: Iterable[Item]) -> None:
        """Remove copies that go on elsewhere."""
        for item in items:
            self.remove(item)
        self.rewind()

    def rewind(self) -> None:
        """Have everything above the watermark sent again."""
        self._land_all()
        self.last_sent = max((seq for seq in self.items if seq <= self.receipted), default=0)
        self.unsent = deque(
            item for seq, item in self.items.items() if seq > self.receipted and item.is_kept
        )

    def board(self, flight: Flight) -> None:
        """The recipient's home is another: what was on its way is not any more."""
        self._land_all()
        self.flight = flight

    @property
    def may_go(self) -> bool:
        """May the next message leave?  A large one travels alone in its stream, since
        what is small overtakes it."""
        unsent, sent = self.unsent, self.sent
        if not unsent or not sent:
            return bool(unsent)
        return not (unsent[0].is_large or sent[-1].is_large)

    def next(self, now: float) -> wire.Message | None:
        """The next message to put on the wire; None: that copy is over."""
        item = self.unsent.popleft()
        if item.is_over:
            return None
        message = self._message(item, milliseconds(item.deadline - now))
        self.last_sent = item.seq
        item.attempts += 1
        item.is_flying = True
        self.flight.count(item, 1)
        self.sent.append(item)
        return message

    def _message(self, item: Item, ttl: int) -> wire.Message:
        envelope = item.envelope
        if self.is_own and envelope is not None:
            recipient = "" if envelope.target == self.recipient else self.recipient
            return wire.Post(self.id, item.seq, self.last_sent, ttl, envelope, recipient)
        # The end of a hand-over tells what was held: all the rest has ended.
        is_end = envelope is None or item.seq == self.highest
        held = ranges_of(self._held_up_to(item.seq)) if is_end else ()
        return wire.Handed(
            self.origin, self.id, item.seq, self.last_sent, ttl, self.recipient, envelope, held
        )

    def _held_up_to(self, most: int) -> Iterable[int]:
        return (
            seq for seq, item in self.items.items() if item.envelope is not None and seq <= most
        )

    def receipt(self, watermark: int) -> list[Item]:
        """All up to the watermark are stored: those that were not, before."""
        self.receipted = watermark
        stored = []
        sent = self.sent
        while sent and sent[0].seq <= watermark:
            item = sent.popleft()
            self._land(item)
            if not item.is_over:
                stored.append(item)
        return stored

    def _land_all(self) -> None:
        for item in self.sent:
            self._land(item)
        self.sent.clear()

    def _land(self, item: Item) -> None:
        if item.is_flying:
            item.is_flying = False
            self.flight.count(item, -1)

    def stored(self) -> wire.Ranges:
        """Receipted, and not known to be over."""
        return ranges_of(seq for seq in self.items if seq <= self.receipted)

    def among(self, ranges: wire.Ranges) -> list[Item]:
        """The copies whose numbers lie in these (sound) ranges."""
        items = self.items
        if len(ranges) == 1 and ranges[0][1] - ranges[0][0] < 64:
            first, last = ranges[0]
            return [items[seq] for seq in range(first, last + 1) if seq in items]
        return [items[seq] for seq in held_in(ranges, items)]

    def expired(self, now: float) -> list[Item]:
        """The copies whose time is over; call ``remove`` for each."""
        if now < self.earliest:
            return []
        over = [item for item in self.items.values() if item.deadline <= now]
        self.earliest = min(
            (item.deadline for item in self.items.values() if item.deadline > now), default=NEVER
        )
        return over


# --- the recipient's end ----------------------------------------------------------


class Verdict(Enum):
    """What a number means to its recipient."""

    NEXT = "next"
    AGAIN = "again"
    GAP = "gap"
    MALFORMED = "malformed"


class InStream:
    """The recipient's end: the watermark, and which stored messages are not over."""

    __slots__ = (
        "_done", "_ends", "_failed", "feeders", "id", "kept", "open", "origin", "recipient",
        "standing", "touched_at", "watermark",
    )  # fmt: skip

    def __init__(self, stream_id: bytes, origin: NodeId, recipient: str, now: float) -> None:
        self.id = stream_id
        self.origin = origin
        self.recipient = recipient
        self.watermark = 0
        self.kept = 0  # the watermark that the store has: what receipts say
        self.open: set[int] = set()
        self.feeders: list[NodeId] = []  # who sends its messages: told of receipts and ends
        self.standing: int | None = None  # of the receipt that is due; None: none is
        self.touched_at = now
        self._done: list[int] = []  # ended since the feeders were told
        self._failed: list[tuple[int, str, str]] = []  # likewise
        self._ends: dict[int, tuple[str, str]] = {}  # how the ones that are not "done" ended

    def judge(self, prev: int, seq: int) -> Verdict:
        if not 0 <= prev < seq <= SEQ_MAX:
            return Verdict.MALFORMED
        if seq <= self.watermark:
            return Verdict.AGAIN
        return Verdict.NEXT if prev <= self.watermark else Verdict.GAP

    def store(self, seq: int) -> None:
        self.watermark = seq
        self.open.add(seq)

    def keep(self, seq: int) -> None:
        """The store has it: it may be receipted."""
        self.kept = seq
        self.standing = wire.RECEIPT_STORED

    def end(self, seq: int, state: str, reason: str) -> int | None:
        """A stored message is over.  Returns the number whose end is forgotten for it."""
        self.open.discard(seq)
        if state == "done":
            self._done.append(seq)
            return None
        self._failed.append((seq, state, reason))
        self._ends[seq] = (state, reason)
        return self._forget_oldest()

    def remember(self, seq: int, state: str, reason: str) -> None:
        """How it ended in an earlier life of this node."""
        self._ends[seq] = (state, reason)

    def ended(self) -> Iterable[int]:
        """The numbers that ended otherwise than done."""
        return self._ends

    def _forget_oldest(self) -> int | None:
        if len(self._ends) <= limits.STREAM_ENDS_MAX:
            return None
        oldest = next(iter(self._ends))
        del self._ends[oldest]
        return oldest

    def end_again(self, seq: int) -> None:
        """If this stored message is over, say so once more."""
        if seq in self.open:
            return
        if (end := self._ends.get(seq)) is None:
            self._done.append(seq)
        else:
            self._failed.append((seq, *end))

    def has_news(self) -> bool:
        return self.standing is not None or bool(self._done or self._failed)

    def take_ends(self) -> wire.Done | None:
        """What ended since the last call."""
        if not self._done and not self._failed:
            return None
        told = wire.Done(self.id, ranges_of(sorted(set(self._done))), tuple(self._failed))
        self._done.clear()
        self._failed.clear()
        return told

    def ended_among(self, ranges: wire.Ranges) -> wire.Done | None:
        """Which of these (sound) numbers were stored here and are over."""
        over = without(ranges, sorted(self.open), self.kept)
        failed = tuple(held_in(over, sorted(self._ends)))
        told = tuple((seq, *self._ends[seq]) for seq in failed)
        return wire.Done(self.id, without(over, failed, self.kept), told) if over else None
