"""Casting: a broadcast at each node that it comes by.

    root     owed to whom? ─► own instances ─► the tree
    others   taken before? ─► own instances ─► the tree below ─► receipt

Each number of a root's stream is taken once here (``window``), by tree or by
repair.  Who took it is remembered for a while: a repair of what was taken before
is answered with that.

Not here: the debts (``broadcast``), the tree (``casttree``), mailboxes (``home``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from functools import partial

import msgspec

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.broadcast import Broadcasts, Held
from p2pmesh.protocol.casttree import CastTree, Taken
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import SEQ_MAX, is_sound, seconds_left
from p2pmesh.protocol.home import Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.outbox import Outbox
from p2pmesh.protocol.streams import Item
from p2pmesh.protocol.types import Envelope, Instant, MessageKept, NodeId, Table
from p2pmesh.protocol.ways import Ways
from p2pmesh.protocol.window import Place, Window


class _WindowRow(msgspec.Struct, frozen=True, array_like=True):
    """The window of a root's stream on disk, under both their ids."""

    watermark: int
    bits: bytes


class _TakenRow(msgspec.Struct, frozen=True, array_like=True):
    """Who took one broadcast here, under the stream and its number."""

    delivered: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def _taken_key(root: NodeId, stream: bytes, seq: int) -> bytes:
    return root + stream + seq.to_bytes(8)


class Casting:
    """Broadcasts, sent and received."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        counters: Counter[str],
        broadcasts: Broadcasts,
        tree: CastTree,
        home: Home,
        outbox: Outbox,
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._broadcasts = broadcasts
        self._tree = tree
        self._home = home
        self._outbox = outbox
        self._windows: OrderedDict[tuple[NodeId, bytes], Window] = OrderedDict()
        self._taken: OrderedDict[tuple[NodeId, bytes, int], Taken] = OrderedDict()

    # --- sent -------------------------------------------------------------------------

    def broadcast(self, at: Instant, envelope: Envelope, expires_at: float) -> Held:
        """To every instance alive now but the source.  Raises QueueFull."""
        broadcasts, me = self._broadcasts, self._ways.me
        instances = [
            instance
            for instance in self._directory.live_instances()
            if instance.instance_id != envelope.source
        ]
        by_post = [i.instance_id for i in instances if i.kind == "guest" and i.home != me]
        held = broadcasts.accept(at, envelope, expires_at, instances, frozenset(by_post))
        for instance_id in by_post:
            self._post(at, held, instance_id, envelope)
        cast = broadcasts.cast(at, held)
        mine = self._home.cast(envelope, me, expires_at, held.born_below)
        broadcasts.receipt(wire.CastReceipt(me, broadcasts.stream, held.seq, (me,), *mine))
        self._ledger.after(partial(self._kept, at, held, cast))
        return held

    def _kept(self, at: Instant, held: Held, cast: wire.Cast) -> None:
        """It may leave."""
        if held.is_refused:
            return
        if not held.is_kept:
            held.is_kept = True
            self._ways.effects.append(MessageKept(held.message_id))
        self._tree.spread(at, cast, None, Taken())

    def tick(self, at: Instant) -> None:
        """Repair what is due; who lives elsewhere by now gets a message of its own."""
        for held, instance_id, envelope in self._broadcasts.tick(at):
            self._post(at, held, instance_id, envelope)
        self._tree.tick(at)

    def _post(self, at: Instant, held: Held, instance_id: str, envelope: Envelope) -> None:
        """A message of its own."""
        item = Item(envelope, instance_id, held.deadline)
        try:
            self._outbox.accept(at, item)
        except QueueFull as full:
            self._broadcasts.refused(held, instance_id, str(full))
        else:
            self._broadcasts.posted(held, instance_id, item)

    # --- received ---------------------------------------------------------------------

    def cast(self, at: Instant, peer: NodeId, cast: wire.Cast) -> None:
        if not self._is_sound(peer, cast):
            self._counters["cast_malformed"] += 1
            return
        key = (cast.root, cast.stream, cast.seq)
        match self._window(cast.root, cast.stream).take(cast.seq, cast.floor):
            case Place.NEW:
                taken = self._take(at, cast)
                if not cast.direct:
                    self._ledger.after(partial(self._tree.spread, at, cast, peer, taken))
                    return
            case Place.TAKEN:
                self._counters["cast_again"] += 1
                if not cast.direct:  # the receipt went, or goes, another way
                    self._ways.send(peer, wire.CastReceipt(*key, (), ()))
                    return
                taken = self._taken.get(key, Taken())
            case Place.BEYOND:
                self._counters["cast_beyond_window"] += 1
                return
        receipt = wire.CastReceipt(*key, (self._ways.me,), *taken)
        self._ledger.after(partial(self._ways.send, peer, receipt))

    def _is_sound(self, peer: NodeId, cast: wire.Cast) -> bool:
        return (
            len(cast.root) == 32
            and cast.root != self._ways.me
            and len(cast.stream) == 8
            and 1 <= cast.floor <= cast.seq <= SEQ_MAX
            and (not cast.direct or cast.root == peer)
            and is_sound(cast.envelope)
        )

    def _take(self, at: Instant, cast: wire.Cast) -> Taken:
        expires_at = at.now + seconds_left(cast.ttl)
        taken = Taken(*self._home.cast(cast.envelope, cast.root, expires_at, cast.born_below))
        key = (cast.root, cast.stream, cast.seq)
        self._taken[key] = taken
        self._ledger.put(Table.TAKEN, _taken_key(*key), _TakenRow(*taken))
        if len(self._taken) > limits.CAST_RESULTS_MAX:
            oldest, _ = self._taken.popitem(last=False)
            self._ledger.gone(Table.TAKEN, _taken_key(*oldest))
        window = self._windows[cast.root, cast.stream]
        bits = window.bits.to_bytes((window.bits.bit_length() + 7) // 8)
        row = _WindowRow(window.watermark, bits)
        self._ledger.put(Table.WINDOWS, cast.root + cast.stream, row)
        return taken

    def restore(self) -> None:
        """Take up what an earlier process had taken."""
        for key, kept in self._ledger.restored(Table.WINDOWS, _WindowRow):
            window = self._windows[key[:32], key[32:]] = Window()
            window.watermark = kept.watermark
            window.bits = int.from_bytes(kept.bits)
        for key, taken in self._ledger.restored(Table.TAKEN, _TakenRow):
            place = (key[:32], key[32:-8], int.from_bytes(key[-8:]))
            self._taken[place] = Taken(taken.delivered, taken.refused)

    def _window(self, root: NodeId, stream: bytes) -> Window:
        key = (root, stream)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window()
            if len(self._windows) > limits.CAST_STREAMS_MAX:
                self._counters["cast_stream_forgotten"] += 1
                (old_root, old_stream), _ = self._windows.popitem(last=False)
                self._ledger.gone(Table.WINDOWS, old_root + old_stream)
        self._windows.move_to_end(key)
        return window

    def receipt(self, peer: NodeId, message: wire.CastReceipt) -> None:
        if message.root == self._ways.me:
            self._broadcasts.receipt(message)
        else:
            self._tree.receipt(peer, message)
