"""Three salted hash rings over the live set: who links to whom, with no talk.

On each ring a node links to its successor and its predecessor.  Everyone who
holds the same view computes the same rings, so nothing is negotiated; degree is
at most 6 and three independent rings make an expander (diameter about 6 at
1,000 nodes).  The idea is Araneola's and Fireflies' (Johansen et al., 2006):
monitors on random rings, chosen by nobody.

Pure data: no clock, no links.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

from p2pmesh.protocol.types import NodeId

RINGS: Final = 3
_Place: TypeAlias = tuple[int, NodeId]  # the point on a ring, and who sits there


class Position(NamedTuple):
    """One place of mine: the next member on a ring in one direction."""

    ring: int
    step: int  # +1 successor, -1 predecessor


POSITIONS: Final = tuple(Position(ring, step) for ring in range(RINGS) for step in (1, -1))
_CIRCLE: Final = 2**128
#: From so many changes together on, one sort costs less than as many insertions.
_SORT_FROM: Final = 32


class _Next:
    """Who is next to me on one ring, by how far clockwise from my point they are."""

    __slots__ = ("after", "before", "mine", "predecessor", "successor")

    def __init__(self, mine: int) -> None:
        self.mine = mine
        self.after = _CIRCLE
        self.successor: NodeId | None = None
        self.before = 0
        self.predecessor: NodeId | None = None

    def meet(self, place: _Place) -> bool:
        """Somebody is there.  True: next to me."""
        distance = (place[0] - self.mine) % _CIRCLE
        is_next = False
        if distance < self.after:
            self.after, self.successor = distance, place[1]
            is_next = True
        if distance > self.before:
            self.before, self.predecessor = distance, place[1]
            is_next = True
        return is_next


class Rings:
    """The rings of one node's view, as seen from its own place.

    Most who come and go do so far from here.  Who is next to me is known at once; the
    rings as a whole are put in order when somebody asks for more than that.
    """

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._rings: tuple[list[_Place], ...] = tuple([] for _ in range(RINGS))  # sorted
        # Since then these came, and then these went.
        self._come: list[tuple[_Place, ...]] = []
        self._gone: set[NodeId] = set()
        self._next: list[_Next] | None = [_Next(point) for point, _ in _places(me)]

    def __contains__(self, node: NodeId) -> bool:
        self._sort()
        place, ring = _places(node)[0], self._rings[0]
        return _is_at(ring, bisect_left(ring, place), place)

    def __len__(self) -> int:
        self._sort()
        return len(self._rings[0])

    def add(self, node: NodeId) -> bool:
        """True: who is next to me changed, or may have."""
        places = _places(node)
        if node in self._gone:
            self._gone.discard(node)
        else:
            self._come.append(places)
        if node == self._me:
            return False
        if self._next is None:
            return True
        one, two, three = map(_Next.meet, self._next, places)
        return one or two or three

    def remove(self, node: NodeId) -> bool:
        """True: who is next to me changed, or may have."""
        if self._come:
            self._sort()
        place = _places(node)[0]
        if _is_at(self._rings[0], bisect_left(self._rings[0], place), place):
            self._gone.add(node)
        if self._next is not None and any(
            node in (each.successor, each.predecessor) for each in self._next
        ):
            self._next = None
        return self._next is None

    def seen_from(self, me: NodeId) -> Rings:
        """The same rings, from another's place."""
        self._sort()
        made = Rings(me)
        made._rings = tuple(list(ring) for ring in self._rings)
        made._next = None
        return made

    def neighbours(self, node: NodeId) -> tuple[NodeId, ...]:
        """The ring neighbours of any node, each once, in ring order.

        The node itself need not be on the rings (a suspect keeps its monitors).
        """
        found: dict[NodeId, None] = {}
        for position in POSITIONS:
            other = self.at(node, position)
            if other is not None:
                found[other] = None
        return tuple(found)

    def at(self, node: NodeId, position: Position, skip: Collection[NodeId] = ()) -> NodeId | None:
        """The nearest member in that direction that is not skipped."""
        if node == self._me and not skip:
            found = self._known_next()[position.ring]
            return found.successor if position.step > 0 else found.predecessor
        self._sort()
        ring = self._rings[position.ring]
        place = _places(node)[position.ring]
        index = bisect_left(ring, place)
        if position.step > 0 and not _is_at(ring, index, place):
            index -= 1  # not on the ring itself: its place is just before ``index``
        for _ in range(len(ring)):
            index = (index + position.step) % len(ring)
            other = ring[index][1]
            if other == node:
                return None
            if other not in skip:
                return other
        return None

    def _known_next(self) -> list[_Next]:
        if self._next is None:
            self._sort()
            self._next = []
            for ring, mine in zip(self._rings, _places(self._me), strict=True):
                found = _Next(mine[0])
                here = bisect_left(ring, mine)
                for index in (here - 2, here - 1, here, here + 1):
                    place = ring[index % len(ring)] if ring else mine
                    if place != mine:
                        found.meet(place)
                self._next.append(found)
        return self._next

    def _sort(self) -> None:
        come, gone = self._come, self._gone
        if not come and not gone:
            return
        for number, ring in enumerate(self._rings):
            if len(gone) < _SORT_FROM:
                for node in gone:
                    place = _places(node)[number]
                    index = bisect_left(ring, place)
                    if _is_at(ring, index, place):
                        del ring[index]
            else:
                ring[:] = [place for place in ring if place[1] not in gone]
            if len(come) < _SORT_FROM:
                for places in come:
                    index = bisect_left(ring, places[number])
                    if not _is_at(ring, index, places[number]):
                        ring.insert(index, places[number])
            else:
                ring[:] = sorted({*ring, *(places[number] for places in come)})
        come.clear()
        gone.clear()


def _is_at(ring: list[_Place], index: int, place: _Place) -> bool:
    return index < len(ring) and ring[index] == place


@lru_cache(maxsize=16_384)
def _places(node: NodeId) -> tuple[_Place, ...]:
    """Where a node sits on each ring: 128 bits, so that no two share a point.  One
    object for all who hold this node."""
    return tuple((_point(node, ring), node) for ring in range(RINGS))


def _point(node: NodeId, ring: int) -> int:
    salt = bytes([ring])
    return int.from_bytes(blake2b(node, digest_size=16, salt=salt, person=b"p2pmesh-ring").digest())
