"""The intake: the recipient's end of all streams that end at this node.

    Post ─► judge ─► NEXT: into the mailbox ─► Receipt (one a drain) … Done
                     AGAIN: receipted once more, and its end told, if it has ended
                     GAP: Receipt(AGAIN), once for a watermark and way

Receipts and ends are told to all who feed a stream: its origin, and former homes
of the recipient that hand over.  Nothing is remembered of what is done but the
watermark: who is unsure asks (``Unsure``), and what is at or below the watermark
and not in the mailbox has ended.  Receipts and ends say only what the store has, if
there is one.  A watermark is forgotten WATERMARK_TTL after its
stream's last contact.

Not here: what is in the mailbox (``mailbox``), and whose messages these are.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import are_sound
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.streams import InStream
from p2pmesh.protocol.types import Instant, NodeId, Table
from p2pmesh.protocol.ways import NEVER, Ways

_FEEDERS_MAX = 4
_STREAM_ID_SIZE = 8


class _StreamRow(msgspec.Struct, frozen=True, array_like=True):
    """An in-stream on disk, under its origin and id."""

    recipient: str
    watermark: int
    touched_at: float  # store time


def _stream_key(stream: InStream) -> bytes:
    return stream.origin + stream.id


def _end_key(stream: InStream, seq: int) -> bytes:
    return _stream_key(stream) + seq.to_bytes(8)


class Intake:
    """The watermarks of this node, and the receipts that are due."""

    def __init__(
        self, directory: Directory, ways: Ways, counters: Counter[str], ledger: Ledger
    ) -> None:
        self.next_at = NEVER
        self._ledger = ledger
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._streams: dict[tuple[NodeId, bytes], InStream] = {}
        self._to: dict[str, dict[InStream, None]] = {}  # by recipient
        self._due: dict[InStream, None] = {}  # with receipts or ends to tell
        self._strangers: dict[tuple[NodeId, bytes], None] = {}  # their recipient is not here
        self._asked_again: dict[InStream, int] = {}  # gaps told, by watermark
        self._hungry: dict[str, dict[InStream, None]] = {}  # held by a full mailbox
        self._untold: dict[NodeId, None] = {}  # nodes with no way, that should hear of ends

    def stream(
        self, at: Instant, peer: NodeId, origin: NodeId, stream_id: bytes, recipient: str
    ) -> InStream | None:
        """The stream in which the peer sends; None: it cannot be one."""
        stream = self._streams.get((origin, stream_id))
        if stream is None:
            if len(stream_id) != _STREAM_ID_SIZE:
                self._counters["post_malformed"] += 1
                return None
            stream = self._open(at, origin, stream_id, recipient)
        elif stream.recipient != recipient:
            self._counters["post_malformed"] += 1
            return None
        if peer not in stream.feeders:
            stream.feeders.append(peer)
            del stream.feeders[:-_FEEDERS_MAX]
        stream.touched_at = at.now
        return stream

    def _open(self, at: Instant, origin: NodeId, stream_id: bytes, recipient: str) -> InStream:
        if len(self._streams) >= limits.STREAMS_MAX:
            oldest = sorted(self._streams.values(), key=lambda stream: stream.touched_at)
            for stream in oldest[: limits.STREAMS_MAX // 8]:
                self._counters["watermark_forgotten"] += 1
                self.forget(stream)
        return self._enter(InStream(stream_id, origin, recipient, at.now))

    def _enter(self, stream: InStream) -> InStream:
        self._streams[stream.origin, stream.id] = stream
        self.next_at = min(self.next_at, stream.touched_at + timing.WATERMARK_TTL)
        self._to.setdefault(stream.recipient, {})[stream] = None
        return stream

    def forget(self, stream: InStream) -> None:
        del self._streams[stream.origin, stream.id]
        for seq in stream.ended():
            self._ledger.gone(Table.ENDS, _end_key(stream, seq))
        self._ledger.gone(Table.IN_STREAMS, _stream_key(stream))
        siblings = self._to[stream.recipient]
        del siblings[stream]
        if not siblings:
            del self._to[stream.recipient]
        self._due.pop(stream, None)
        self._asked_again.pop(stream, None)
        self._hungry.get(stream.recipient, {}).pop(stream, None)

    def streams_to(self, recipient: str) -> list[InStream]:
        return list(self._to.get(recipient, ()))

    # --- what is due --------------------------------------------------------------

    def store(self, stream: InStream, seq: int) -> None:
        """The message is in the mailbox, or over already."""
        stream.store(seq)
        if self._hungry:
            self._hungry.get(stream.recipient, {}).pop(stream, None)
        if not self._ledger.is_durable:
            self._kept(stream, seq)
            return
        self._keep(stream)
        self._ledger.after(partial(self._kept, stream, seq))

    def _keep(self, stream: InStream) -> None:
        touched_at = self._ledger.store_time(stream.touched_at)
        row = _StreamRow(stream.recipient, stream.watermark, touched_at)
        self._ledger.put(Table.IN_STREAMS, _stream_key(stream), row)

    def _kept(self, stream: InStream, seq: int) -> None:
        stream.keep(seq)
        self._due[stream] = None

    def again(self, stream: InStream, seq: int) -> None:
        """It was stored before: say so again.  The link that lost the receipt may have
        lost its end, too."""
        self._counters["post_again"] += 1
        stream.end_again(seq)
        if stream.standing is None:
            stream.standing = wire.RECEIPT_STORED
        self._due[stream] = None

    def gap(self, stream: InStream) -> None:
        """It does not follow: have what lies between sent first."""
        self._counters["post_gap"] += 1
        if stream in self._hungry.get(stream.recipient, ()):
            stream.standing = wire.RECEIPT_FULL
            self._due[stream] = None
            return
        if self._asked_again.get(stream) == stream.watermark:
            return
        if len(self._asked_again) >= limits.STREAMS_MAX:
            self._asked_again.clear()
        self._asked_again[stream] = stream.watermark
        stream.standing = wire.RECEIPT_AGAIN
        self._due[stream] = None

    def full(self, stream: InStream) -> None:
        """The mailbox has no room: hold the stream until there is."""
        self._counters["post_mailbox_full"] += 1
        stream.standing = wire.RECEIPT_FULL
        self._asked_again.pop(stream, None)
        self._hungry.setdefault(stream.recipient, {})[stream] = None
        self._due[stream] = None

    def not_here(self, peer: NodeId, stream_id: bytes) -> None:
        """The recipient does not live here."""
        self._counters["post_not_here"] += 1
        if len(stream_id) == _STREAM_ID_SIZE and len(self._strangers) < limits.STREAMS_MAX:
            self._strangers[peer, stream_id] = None

    def end(self, stream: InStream, seq: int, state: str, reason: str) -> None:
        """A stored message is over."""
        if not self._ledger.is_durable:
            stream.end(seq, state, reason)
            self._due[stream] = None
            return
        if state != "done":
            self._ledger.put(Table.ENDS, _end_key(stream, seq), (state, reason))
        self._ledger.after(partial(self._ended, stream, seq, state, reason))

    def _ended(self, stream: InStream, seq: int, state: str, reason: str) -> None:
        forgotten = stream.end(seq, state, reason)
        if forgotten is not None:
            self._ledger.gone(Table.ENDS, _end_key(stream, forgotten))
        self._due[stream] = None

    def restore(self, at: Instant) -> None:
        """Take up the watermarks of an earlier process."""
        ledger = self._ledger
        for key, kept in ledger.restored(Table.IN_STREAMS, _StreamRow):
            touched_at = min(ledger.own_time(kept.touched_at), at.now)
            stream = InStream(key[32:], key[:32], kept.recipient, touched_at)
            stream.watermark = stream.kept = kept.watermark
            self._enter(stream)
        for key, (state, reason) in ledger.restored(Table.ENDS, tuple[str, str]):
            ended = self._streams.get((key[:32], key[32:-8]))
            if ended is not None:
                ended.remember(int.from_bytes(key[-8:]), state, reason)

    def find(self, origin: NodeId, stream_id: bytes) -> InStream | None:
        return self._streams.get((origin, stream_id))

    def is_hungry(self, recipient: str) -> bool:
        return recipient in self._hungry

    def feed(self, recipient: str) -> None:
        """Its mailbox has room again."""
        for stream in self._hungry.pop(recipient, ()):
            stream.standing = wire.RECEIPT_STORED
            self._due[stream] = None

    def unsure(self, at: Instant, peer: NodeId, message: wire.Unsure) -> None:
        """The peer asks which of its stored copies are over."""
        if not are_sound(message.stored):
            self._counters["unsure_malformed"] += 1
            return
        stream = self.stream(at, peer, message.origin, message.stream, message.recipient)
        if stream is None:
            return
        ended = stream.ended_among(message.stored)
        if ended is not None:
            self._ways.send(peer, ended)
        if message.stored and message.stored[-1][1] > stream.watermark:
            self._counters["post_gap"] += 1
            stream.standing = wire.RECEIPT_AGAIN
            self._asked_again[stream] = stream.watermark
            self._due[stream] = None

    # --- telling ------------------------------------------------------------------

    def flush(self, at: Instant) -> None:
        """Tell what is due, once for each stream."""
        if self._strangers:
            for peer, stream_id in self._strangers:
                receipt = wire.Receipt(stream_id, 0, wire.RECEIPT_NOT_HERE)
                self._ways.send(peer, receipt)
            self._strangers.clear()
        if not self._due:
            return
        due, self._due = self._due, {}
        for stream in due:
            self._tell(at, stream)

    def _tell(self, at: Instant, stream: InStream) -> None:
        standing, stream.standing = stream.standing, None
        ends = stream.take_ends()
        for feeder in stream.feeders:
            if self._ways.is_open(feeder):
                if standing is not None:
                    self._ways.send(feeder, wire.Receipt(stream.id, stream.kept, standing))
                if ends is not None:
                    self._ways.send(feeder, ends)
            elif ends is not None and self._directory.node_life(feeder) is not None:
                # It will ask, once there is a way: see to it that there is one.
                self._untold[feeder] = None
                self._ways.want(at, feeder)
                self.next_at = min(self.next_at, at.now + timing.LINK_WANTED_AGAIN)

    def opened(self, peer: NodeId) -> None:
        """There is a new way to this peer: it asks what it does not know."""
        self._untold.pop(peer, None)
        self._asked_again.clear()

    def tick(self, at: Instant) -> None:
        if at.now < self.next_at:
            return
        self.next_at = NEVER
        for peer in list(self._untold):
            if self._directory.node_life(peer) is None:
                del self._untold[peer]
            else:
                self._ways.want(at, peer)
                self.next_at = at.now + timing.LINK_WANTED_AGAIN
        for stream in list(self._streams.values()):
            forgotten_at = stream.touched_at + timing.WATERMARK_TTL
            if forgotten_at <= at.now and not stream.open:
                self._counters["watermark_forgotten"] += 1
                self.forget(stream)
            else:
                self.next_at = min(self.next_at, max(forgotten_at, at.now + 1.0))
