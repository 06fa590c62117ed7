"""The tree of a broadcast: whom to pass it to, and the receipts that come back.

    root ──Cast──► child ──Cast──► grandchild        the breadth-first tree over the
    root ◄─receipt─ child ◄─receipt─ grandchild      rings, rooted at the sender

Everyone who holds the same view computes the same tree, so nothing is negotiated
and each link carries a broadcast once.  A node answers for the homes below it: it
waits CAST_SUM_WITHIN for their receipts, passes up what it has (``last`` False),
and the rest as it comes.

The tree is speed, not the guarantee: a link that is missing or a relay that dies
costs a repair by the root (``broadcast``), and nothing is repeated here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import OVERHEAD
from p2pmesh.protocol.types import Instant, NodeId
from p2pmesh.protocol.ways import NEVER, Ways

#: Rings follow the view this late at most; a tree computed before may be of old rings.
_SETTLED_AFTER: Final = 2 * timing.RING_SETTLE
_HELD_BACK_BYTES_MAX: Final = limits.FLIGHT_MAX


class Taken(NamedTuple):
    """Who took a broadcast at one home."""

    delivered: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()  # instance id, reason


def children(
    neighbours: Callable[[NodeId], tuple[NodeId, ...]], root: NodeId, me: NodeId
) -> tuple[NodeId, ...]:
    """My children in the breadth-first tree from ``root``; none if I am not in it."""
    seen = {root}
    level = [root]
    while level:
        reached: list[NodeId] = []
        for node in level:
            found = [other for other in neighbours(node) if other not in seen]
            if node == me:
                return tuple(found)
            seen.update(found)
            reached += found
        level = reached
    return ()


class _Sum:
    """The receipts of one broadcast, on their way up."""

    __slots__ = ("delivered", "homes", "is_late", "parent", "refused", "sum_at", "until", "waiting")

    def __init__(self, parent: NodeId, waiting: set[NodeId], now: float) -> None:
        self.parent = parent
        self.waiting = waiting
        self.homes: list[NodeId] = []
        self.delivered: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.sum_at = now + timing.CAST_SUM_WITHIN
        self.until = now + timing.CAST_PASSING_FOR
        self.is_late = False  # a first sum went up: the rest goes as it comes


class _HeldBack:
    """Broadcasts for a child whose way is backed up."""

    __slots__ = ("bytes", "casts")

    def __init__(self) -> None:
        self.casts: deque[wire.Cast] = deque()
        self.bytes = 0


class CastTree:
    """Passes broadcasts down and receipts up."""

    def __init__(self, directory: Directory, ways: Ways, counters: Counter[str]) -> None:
        self.next_at = NEVER
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._children: dict[NodeId, tuple[NodeId, ...]] = {}
        self._settled_at = 0.0  # when the rings are sure to have followed the view
        self._sums: dict[tuple[NodeId, bytes, int], _Sum] = {}
        self._held_back: dict[NodeId, _HeldBack] = {}

    # --- down -----------------------------------------------------------------------

    def spread(self, at: Instant, cast: wire.Cast, parent: NodeId | None, mine: Taken) -> None:
        """Pass it to my children; my own receipt goes up with theirs."""
        waiting = {child for child in self._below(at, cast.root) if self._pass(child, cast)}
        if parent is None:
            return
        if not waiting:
            self._answer(parent, cast, mine)
            return
        if len(self._sums) >= limits.CASTS_PASSING_MAX:
            self._counters["cast_sums_full"] += 1
            self._answer(parent, cast, mine)
            return
        key = (cast.root, cast.stream, cast.seq)
        made = self._sums[key] = _Sum(parent, waiting, at.now)
        made.homes.append(self._ways.me)
        made.delivered += mine.delivered
        made.refused += mine.refused
        self.next_at = min(self.next_at, made.sum_at)

    def _answer(self, parent: NodeId, cast: wire.Cast, mine: Taken) -> None:
        self._ways.send(
            parent,
            wire.CastReceipt(cast.root, cast.stream, cast.seq, (self._ways.me,), *mine),
        )

    def _below(self, at: Instant, root: NodeId) -> tuple[NodeId, ...]:
        if self._settled_at and at.now >= self._settled_at:
            self._settled_at = 0.0
            self._children.clear()
        below = self._children.get(root)
        if below is None:
            below = children(self._directory.ring_neighbours, root, self._ways.me)
            self._children[root] = below
        return below

    def _pass(self, child: NodeId, cast: wire.Cast) -> bool:
        if not self._ways.is_open(child):
            self._counters["cast_child_without_link"] += 1
            return False
        if self._ways.is_clear(child):
            self._ways.send(child, cast)
            return True
        held = self._held_back.setdefault(child, _HeldBack())
        size = OVERHEAD + len(cast.envelope.payload)
        if held.bytes + size > _HELD_BACK_BYTES_MAX:
            self._counters["cast_child_backed_up"] += 1
            return False
        held.casts.append(cast)
        held.bytes += size
        return True

    def clear(self, peer: NodeId) -> None:
        """The way to this peer is no longer backed up."""
        held = self._held_back.pop(peer, None)
        for cast in held.casts if held is not None else ():
            self._ways.send(peer, cast)

    def closed(self, at: Instant, peer: NodeId) -> None:
        """No way to this peer: nothing comes up from it."""
        self._held_back.pop(peer, None)
        for key, summed in list(self._sums.items()):
            if peer in summed.waiting:
                summed.waiting.discard(peer)
                self._go_up(key, summed)

    def rings_changed(self, at: Instant) -> None:
        self._children.clear()
        self._settled_at = at.now + _SETTLED_AFTER

    # --- up -------------------------------------------------------------------------

    def receipt(self, peer: NodeId, message: wire.CastReceipt) -> None:
        """A child tells who below it took a broadcast of another root."""
        key = (message.root, message.stream, message.seq)
        summed = self._sums.get(key)
        if summed is None or peer not in summed.waiting:
            self._counters["cast_receipt_unexpected"] += 1
            return
        summed.homes += message.homes
        summed.delivered += message.delivered
        summed.refused += message.refused
        if message.last:
            summed.waiting.discard(peer)
        self._go_up(key, summed)

    def _go_up(self, key: tuple[NodeId, bytes, int], summed: _Sum) -> None:
        """Pass up what there is, if nothing more is waited for, or no longer."""
        is_last = not summed.waiting
        if is_last:
            del self._sums[key]
        elif not summed.is_late:
            return
        if is_last or summed.homes:
            self._ways.send(
                summed.parent,
                wire.CastReceipt(
                    *key,
                    tuple(summed.homes),
                    tuple(summed.delivered),
                    tuple(summed.refused),
                    is_last,
                ),
            )
        summed.homes.clear()
        summed.delivered.clear()
        summed.refused.clear()

    def tick(self, at: Instant) -> None:
        if at.now < self.next_at:
            return
        self.next_at = NEVER
        for key, summed in list(self._sums.items()):
            if summed.until <= at.now:
                summed.waiting.clear()
                self._go_up(key, summed)
                continue
            if summed.sum_at <= at.now:
                summed.sum_at = summed.until
                summed.is_late = True
                self._go_up(key, summed)
            self.next_at = min(self.next_at, summed.sum_at)
