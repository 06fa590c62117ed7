"""The outbox: the sender's copies, one stream for each recipient.

    accept() ─► unsent ──Post──► sent ──Receipt──► held ──Done──► over
                  ▲               │                 │
                  └──── rewind ◄──┴── another home ◄┘

- Another home, or a new life of the same, has stored nothing of ours: all that is
  not over goes there, from the first on.
- A receipt may *hold* a stream (mailbox full, recipient not there) or rewind it (a
  gap).  A watermark above all our numbers means that this outbox is older than
  what the recipient remembers: what is unreceipted starts a new stream.
- A copy is kept until it is done, dead or expired; time is elapsed time.  A home that
  was left meanwhile may be late to say so, and is heard.
- What a durable node puts on the wire is in its store: number, copy, and the highest
  number of the stream, so that none is given twice.

A former home of a guest feeds what it still held into the streams of those who
sent it (``hand_over``): same id, same numbers, as ``Handed``; and says what ended.

Not here: how they travel (``lanes``), who has a name (``targets``), and the recipient's
end (``intake``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.directory import Directory, is_gone_for_good, is_live
from p2pmesh.protocol.envelopes import SEQ_MAX, Account, are_sound
from p2pmesh.protocol.lanes import Lane, Outlets
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.streams import Item, OutStream
from p2pmesh.protocol.types import (
    Envelope,
    Instant,
    MessageKept,
    MessageMoved,
    MessageState,
    NodeId,
    SendRefused,
    Table,
)
from p2pmesh.protocol.ways import NEVER, Ways


class _StreamRow(msgspec.Struct, frozen=True, array_like=True):
    """An out-stream on disk, under its id."""

    recipient: str
    origin: NodeId
    highest: int
    is_current: bool  # new messages go into it


class _CopyRow(msgspec.Struct, frozen=True, array_like=True):
    """A copy on disk, under its stream and number."""

    envelope: Envelope
    expires_at: float  # store time
    name: str | None


def _copy_key(stream: OutStream, seq: int) -> bytes:
    return stream.id + seq.to_bytes(8)


def _is_adrift(item: Item) -> bool:
    """Might it go to another holder of its name?"""
    return item.name is not None and item.state == "queued" and not item.is_over


class Outbox:
    """All streams that this node feeds."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        account: Account,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
        ledger: Ledger,
        dead: DeadLetters,
    ) -> None:
        self.outlets = Outlets(ways, counters)
        self._expires_at = NEVER  # no copy expires before
        self._dead = dead
        self._directory = directory
        self._ways = ways
        self._ledger = ledger
        self._account = account
        self._counters = counters
        self._entropy = entropy
        self._own: dict[str, Lane] = {}  # by recipient: the one that takes new messages
        self._others: dict[str, list[Lane]] = {}  # renumbered and handed-over ones
        self._by_id: dict[bytes, Lane] = {}

    @property
    def next_at(self) -> float:
        return min(self._expires_at, self.outlets.next_at)

    # --- the copies ---------------------------------------------------------------

    def knows(self, recipient: str) -> bool:
        """Is there a stream whose recipient lives somewhere?"""
        lane = self._own.get(recipient)
        return lane is not None and lane.outlet is not None

    def accept(self, at: Instant, item: Item) -> None:
        """Keep a copy and send it as soon as may be.  Raises QueueFull."""
        lane = self._own.get(item.recipient)
        if lane is None:
            lane = self._open(at, item.recipient)
        stream = lane.stream
        if (
            len(stream.items) >= limits.MAILBOX_MESSAGES_MAX
            or stream.bytes + item.size > limits.MAILBOX_BYTES_MAX
            or not self._account.has_room(item.size)
        ):
            self._counters["outbox_full"] += 1
            raise QueueFull(self._why_full(stream, item.size))
        if lane.is_full:
            self._counters["outbox_full"] += 1
            raise QueueFull(
                f"the home of {item.recipient!r} has no room for more: it has to finish some first"
            )
        self._account.used += item.size
        if item.deadline < self._expires_at:
            self._expires_at = item.deadline
        if not self._ledger.is_durable:
            stream.append(item)
            self.outlets.hurry(at, lane)
            return
        # To an instance of this node it goes at once: one save has both its places.
        item.is_kept = lane.leads_to(self._ways.me)
        stream.append(item)
        self._keep(lane, item)
        self._ledger.after(partial(self._kept, lane, item))
        if item.is_kept:
            self.outlets.hurry(at, lane)

    def _why_full(self, stream: OutStream, size: int) -> str:
        """Whose queue has no room, and how full it is."""
        if self._account.has_room(size):
            return (
                f"{len(stream.items):,} messages ({stream.bytes:,} bytes) to "
                f"{stream.recipient!r} wait to be done, at most {limits.MAILBOX_MESSAGES_MAX:,} "
                f"({limits.MAILBOX_BYTES_MAX:,} bytes) may: send more once it has caught up (its "
                "log says so where nobody takes a type)"
            )
        return (
            f"all messages of this node take {self._account.used:,} bytes, at most "
            f"{self._account.most:,} may: send to {stream.recipient!r} once some are done"
        )

    # --- the store ------------------------------------------------------------------

    def _keep(self, lane: Lane, item: Item) -> None:
        """Write it down, with its number."""
        ledger, stream = self._ledger, lane.stream
        if item.envelope is not None and ledger.is_durable:
            row = _CopyRow(item.envelope, ledger.store_time(item.deadline), item.name)
            ledger.put(Table.OUTBOX, _copy_key(stream, item.seq), row)
            self._keep_stream(lane)

    def _keep_stream(self, lane: Lane) -> None:
        stream = lane.stream
        is_current = self._own.get(stream.recipient) is lane
        row = _StreamRow(stream.recipient, stream.origin, stream.highest, is_current)
        self._ledger.put(Table.OUT_STREAMS, stream.id, row)

    def _kept(self, lane: Lane, item: Item) -> None:
        """It is on disk: it may be sent, and is safe."""
        if item.is_over:
            return
        if not item.is_kept:
            lane.stream.keep(item)
        if not item.is_promised:
            item.is_promised = True
            self._ways.effects.append(MessageKept(item.message_id))
        self.outlets.hurry_when_saved(lane)

    def refuse_unkept(self, detail: str) -> None:
        """The store is full: what it has not got was not accepted after all."""
        for lane in list(self._by_id.values()):
            for item in list(lane.stream.items.values()):
                if item.is_promised:
                    continue
                self._remove(lane.stream, item)
                self._ways.effects.append(SendRefused(item.message_id, "store_full", detail))
            self._tidy(lane)

    def restore(self, at: Instant) -> list[Item]:
        """Take up what an earlier process of this node had accepted."""
        ledger = self._ledger
        for stream_id, kept in ledger.restored(Table.OUT_STREAMS, _StreamRow):
            is_own = kept.origin == self._ways.me
            stream = OutStream(stream_id, kept.origin, kept.recipient, is_own=is_own)
            stream.highest = kept.highest
            lane = self._by_id[stream_id] = Lane(stream)
            if is_own and kept.is_current:
                self._own[kept.recipient] = lane
            else:
                self._others.setdefault(kept.recipient, []).append(lane)
        restored = []
        for key, copy in ledger.restored(Table.OUTBOX, _CopyRow):
            found = self._by_id.get(key[:-8])
            if found is None:
                self._counters["store_row_unreadable"] += 1
                continue
            stream, highest = found.stream, found.stream.highest
            deadline = ledger.own_time(copy.expires_at)
            item = Item(copy.envelope, stream.recipient, deadline, copy.name)
            item.is_promised = True
            stream.insert(int.from_bytes(key[-8:]), item)
            stream.highest = max(highest, item.seq)
            self._account.used += item.size
            self._expires_at = min(self._expires_at, deadline)
            restored.append(item)
        for lane in list(self._by_id.values()):
            self._tidy(lane)
            self.look(at, lane.stream.recipient)
        return restored

    def hand_over(
        self,
        at: Instant,
        recipient: str,
        origin: NodeId,
        stream_id: bytes | None,
        watermark: int,
        copies: Iterable[tuple[int, Item]],
    ) -> None:
        """Feed into an origin's stream what this former home still holds of it.

        Up to the watermark all that is not among the copies has ended here.
        ``stream_id`` None: into a new stream (copies of broadcasts).
        """
        merged = dict(copies)
        known = self._by_id.get(stream_id) if stream_id is not None else None
        if known is not None and known.stream.is_own:
            self._counters["hand_over_dropped"] += len(merged)
            return
        if known is not None:  # handed over once before, and not all of it yet
            for seq, item in list(known.stream.items.items()):
                self._remove(known.stream, item)
                if item.envelope is not None:
                    merged.setdefault(seq, item)
            self._close(known)
        if len(self._by_id) >= limits.OUTBOX_STREAMS_MAX:
            self._counters["hand_over_dropped"] += len(merged)
            return
        stream = OutStream(stream_id or self._entropy(8), origin, recipient, is_own=False)
        for seq in sorted(merged):
            stream.insert(seq, merged[seq])
        if watermark > stream.highest:
            stream.insert(watermark, Item(None, recipient, at.now + timing.MESSAGE_TTL))
        self._account.used += stream.bytes
        self._expires_at = min(self._expires_at, stream.earliest)
        lane = self._by_id[stream.id] = Lane(stream)
        self._others.setdefault(recipient, []).append(lane)
        for item in stream.items.values():
            self._keep(lane, item)
        self.look(at, recipient)

    def end_hand_over(self, at: Instant, recipient: str) -> None:
        """This node was the recipient's home: let the next one know which of our own
        messages have ended here, should yet another home still have copies."""
        lane = self._own.get(recipient)
        if lane is None or not lane.stream.highest:
            return
        end = Item(None, recipient, at.now + timing.MESSAGE_TTL)
        lane.stream.append(end)
        self._keep_stream(lane)
        self._account.used += end.size
        self._expires_at = min(self._expires_at, end.deadline)

    def _open(self, at: Instant, recipient: str) -> Lane:
        if len(self._by_id) >= limits.OUTBOX_STREAMS_MAX:
            for idle in [lane for lane in self._own.values() if not lane.stream.items]:
                self._close(idle)
            if len(self._by_id) >= limits.OUTBOX_STREAMS_MAX:
                self._counters["outbox_full"] += 1
                raise QueueFull(f"messages wait for {len(self._by_id)} instances")
        stream = OutStream(self._entropy(8), self._ways.me, recipient, is_own=True)
        lane = self._own[recipient] = self._by_id[stream.id] = Lane(stream)
        self._keep_stream(lane)
        self.look(at, recipient)
        return lane

    def _close(self, lane: Lane) -> None:
        self.outlets.detach(lane)
        stream = lane.stream
        del self._by_id[stream.id]
        self._ledger.gone(Table.OUT_STREAMS, stream.id)
        if self._own.get(stream.recipient) is lane:
            del self._own[stream.recipient]
            return
        others = self._others[stream.recipient]
        others.remove(lane)
        if not others:
            del self._others[stream.recipient]

    # --- where the recipient lives ------------------------------------------------

    def look_at(self, at: Instant, nodes: Iterable[NodeId], instances: Iterable[str]) -> list[Item]:
        """Something about these nodes and instances changed: ``look`` at all of them that
        something goes to, and at all who live at one of those."""
        if not self._by_id:
            return []
        orphans = [item for each in instances for item in self.look(at, each)]
        for node in nodes:
            here = {lane.stream.recipient: None for lane in self.outlets.lanes_to(node)}
            orphans += [item for each in here for item in self.look(at, each)]
        return orphans

    def look(self, at: Instant, recipient: str) -> list[Item]:
        """The recipient's home, life or state may have changed.

        Returns copies that were addressed by name, are not stored, and whose holder is
        gone: their name is to be looked up again.  Where the holder may come back, they
        keep their numbers meanwhile (it may have stored them unseen): ``release`` takes
        one that goes to another.
        """
        own = self._own.get(recipient)
        lanes = ([own] if own is not None else []) + self._others.get(recipient, [])
        if not lanes:
            return []
        instance = self._directory.instance(recipient)
        home = (instance.home, instance.home_life) if is_live(instance) else None
        is_gone = instance is not None and is_gone_for_good(instance)
        orphans: list[Item] = []
        for lane in lanes:
            if home is None:
                unstored = [item for item in lane.stream.items.values() if _is_adrift(item)]
                orphans += self._take(lane, _is_adrift) if is_gone else unstored
            if is_gone:
                for item in list(lane.stream.items.values()):
                    self._end(lane.stream, item, "dead", "left")
            self.outlets.attach(at, lane, home)
            self._tidy(lane)
        return orphans

    def release(self, item: Item) -> bool:
        """Take a copy out of its stream, for another recipient.  False: it is stored by
        now, or over."""
        for lane in [self._own.get(item.recipient), *self._others.get(item.recipient, ())]:
            if lane is not None and lane.stream.items.get(item.seq) is item and _is_adrift(item):
                self._take(lane, lambda each: each is item)
                return True
        return False

    # --- receipts and ends --------------------------------------------------------

    def receipt(self, at: Instant, peer: NodeId, message: wire.Receipt) -> None:
        lane = self._at_peer(peer, message.stream)
        if lane is None or not 0 <= message.watermark <= SEQ_MAX:
            return
        stream, outlet = lane.stream, lane.outlet
        assert outlet is not None
        watermark = message.watermark
        if watermark > stream.highest:
            if self._own.get(stream.recipient) is lane:
                self._renumber(at, lane)
                return
            watermark = stream.highest  # others may feed it, too
        if watermark > stream.receipted:
            self._stored(lane, stream.receipt(watermark))
            self.outlets.receipted(at, lane, outlet)
        match message.standing:
            case wire.RECEIPT_FULL | wire.RECEIPT_NOT_HERE:
                is_refused = message.standing == wire.RECEIPT_FULL
                self.outlets.hold(at, lane, outlet, is_refused=is_refused)
                if is_refused:
                    self._give_up_casts(stream)
            case wire.RECEIPT_AGAIN:
                self.outlets.send_again(at, lane, outlet, watermark)
            case _:
                self.outlets.go_on(lane, outlet)
        self._tidy(lane)
        self.outlets.pump(at, outlet)

    def _at_peer(self, peer: NodeId, stream_id: bytes) -> Lane | None:
        """The lane of this stream, if its recipient lives at this peer."""
        lane = self._by_id.get(stream_id)
        if lane is None or lane.outlet is None or lane.outlet.node != peer:
            self._counters["receipt_of_unknown_stream"] += 1
            return None
        return lane

    def _stored(self, lane: Lane, items: list[Item]) -> None:
        # A memory node's own mailbox is no second copy: there it stays queued.
        is_second = lane.home is not None and not lane.leads_to(self._ways.me)
        for item in items:
            if item.envelope is None:
                self._remove(lane.stream, item)
            elif is_second and item.state == "queued":
                item.state = "stored"
                self._tell(lane.stream, item)

    def _give_up_casts(self, stream: OutStream) -> None:
        """A full mailbox loses its copy of a broadcast: nobody waits for one of many."""
        for item in list(stream.items.values()):
            envelope = item.envelope
            if stream.is_own and item.state == "queued" and envelope and envelope.target is None:
                self._counters["broadcast_refused"] += 1
                self._end(stream, item, "dead", "mailbox full")

    def _renumber(self, at: Instant, lane: Lane) -> None:
        """This outbox is older than what the recipient remembers of it."""
        self._counters["stream_renumbered"] += 1
        stream = lane.stream
        stream.receipted = stream.highest
        moved = self._take(lane, lambda item: item.state == "queued")
        del self._own[stream.recipient]
        self._others.setdefault(stream.recipient, []).append(lane)
        self._tidy(lane)
        renewed = self._open(at, stream.recipient)
        for item in moved:
            renewed.stream.append(item)
            self._keep(renewed, item)
            self._account.used += item.size
        self._keep_stream(lane)
        self.outlets.hurry(at, renewed)

    def done(self, at: Instant, peer: NodeId, message: wire.Done) -> None:
        lane = self._by_id.get(message.stream)
        if lane is None or peer not in lane.homes:
            self._counters["receipt_of_unknown_stream"] += 1
            return
        if not are_sound(message.done) or len(message.failed) > limits.STREAM_ENDS_MAX:
            self._counters["done_malformed"] += 1
            return
        stream = lane.stream
        for item in stream.among(message.done):
            self._end(stream, item, "done", "")
        for seq, state, reason in message.failed:
            failed = stream.items.get(seq)
            if failed is not None:
                how: MessageState = "expired" if state == "expired" else "dead"
                self._end(stream, failed, how, reason[: limits.REASON_MAX])
        outlet = lane.outlet
        self._tidy(lane)
        if outlet is not None:
            self.outlets.pump(at, outlet)

    def _end(self, stream: OutStream, item: Item, state: MessageState, reason: str) -> None:
        envelope = item.envelope
        becomes_dead_letter = state == "dead" and stream.is_own and envelope is not None
        if becomes_dead_letter and envelope is not None:
            self._dead.add(envelope, item.recipient, reason, name=item.name, attempts=item.attempts)
        self._remove(stream, item, goes_on=becomes_dead_letter)
        item.state = state
        item.reason = reason
        item.envelope = None
        self._tell(stream, item)

    def _remove(self, stream: OutStream, item: Item, *, goes_on: bool = False) -> None:
        stream.remove(item)
        self._account.used -= item.size
        if item.envelope is not None:
            self._ledger.gone(Table.OUTBOX, _copy_key(stream, item.seq), moved=goes_on)

    def _take(self, lane: Lane, is_wanted: Callable[[Item], bool]) -> list[Item]:
        """Take copies out of a stream; they go on elsewhere."""
        taken = [item for item in lane.stream.items.values() if is_wanted(item)]
        for item in taken:
            self._remove(lane.stream, item, goes_on=True)
        lane.stream.rewind()
        return taken

    def _tell(self, stream: OutStream, item: Item) -> None:
        if stream.is_own and item.message_id:
            self._ways.effects.append(
                MessageMoved(item.message_id, item.recipient, item.state, item.reason)
            )

    def _tidy(self, lane: Lane) -> None:
        """An empty stream that takes no new messages goes."""
        if not lane.stream.items and self._own.get(lane.stream.recipient) is not lane:
            self._close(lane)

    # --- time -----------------------------------------------------------------------

    def tick(self, at: Instant) -> None:
        if at.now < self.next_at:
            return
        self._expires_at = self.outlets.next_at = NEVER
        for lane in list(self._by_id.values()):
            for item in lane.stream.expired(at.now):
                self._counters["message_expired"] += 1
                self._end(lane.stream, item, "expired", "its time to live is over")
            self.outlets.tick_lane(at, lane)
            self._expires_at = min(self._expires_at, lane.stream.earliest)
            self._tidy(lane)
        self.outlets.tick(at)

    # --- looking on -----------------------------------------------------------------

    def depths(self) -> dict[str, int]:
        """Copies by how far they are."""
        streams = [lane.stream for lane in self._by_id.values()]
        unsent = sum(len(stream.unsent) for stream in streams)
        sent = sum(len(stream.sent) for stream in streams)
        held = sum(len(stream.items) for stream in streams)
        return {
            "outbox_unsent": unsent,
            "outbox_unreceipted": sent,
            "outbox_receipted": held - unsent - sent,
        }
