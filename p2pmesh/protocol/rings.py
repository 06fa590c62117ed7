"""Three salted hash rings over the live set: who links to whom, with no talk.

On each ring a node links to its successor and its predecessor.  Everyone who
holds the same view computes the same rings, so nothing is negotiated; degree is
at most 6 and three independent rings make an expander (diameter about 6 at
1,000 nodes).  The idea is Araneola's and Fireflies' (Johansen et al., 2006):
monitors on random rings, chosen by nobody.

Pure data: no clock, no links.
"""

from __future__ import annotations

from bisect import bisect_left, insort
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


#: From so many changes together on, one sort costs less than as many insertions.
_SORT_FROM: Final = 32


class Rings:
    """The rings of one node's view, as seen from its own place.

    Who comes and goes is noted, and sorted in when somebody asks: most of it is far
    from here (``concerns``), and nobody asks.
    """

    def __init__(self, me: NodeId) -> None:
        self._mine = _places(me)
        self._rings: tuple[list[_Place], ...] = tuple([] for _ in range(RINGS))  # sorted
        self._noted: dict[NodeId, bool] = {}  # since then: is it on the rings?
        #: On each ring, the places before and after mine; None: nobody is there.
        self._next: list[tuple[_Place, _Place] | None] = [None] * RINGS

    def __contains__(self, node: NodeId) -> bool:
        return self._has(node) if (noted := self._noted.get(node)) is None else noted

    def __len__(self) -> int:
        self._sort_in()
        return len(self._rings[0])

    def add(self, node: NodeId) -> None:
        self._noted[node] = True

    def remove(self, node: NodeId) -> None:
        self._noted[node] = False

    def concerns(self, node: NodeId) -> bool:
        """May its coming or going change who is next to me?"""
        for place, between in zip(_places(node), self._next, strict=True):
            if between is None:
                return True
            before, after = between
            if before < after:
                if before <= place <= after:
                    return True
            elif place >= before or place <= after:  # the circle closes between the two
                return True
        return False

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
        self._sort_in()
        ring = self._rings[position.ring]
        place = _places(node)[position.ring]
        index = bisect_left(ring, place)
        if position.step > 0 and (index == len(ring) or ring[index] != place):
            index -= 1  # not on the ring itself: its place is just before ``index``
        for _ in range(len(ring)):
            index = (index + position.step) % len(ring)
            other = ring[index][1]
            if other == node:
                return None
            if other not in skip:
                return other
        return None

    def _has(self, node: NodeId) -> bool:
        """Was it sorted in?"""
        place, ring = _places(node)[0], self._rings[0]
        index = bisect_left(ring, place)
        return index < len(ring) and ring[index] == place

    def _sort_in(self) -> None:
        noted = self._noted
        if not noted:
            return
        come = [_places(node) for node, is_here in noted.items() if is_here > self._has(node)]
        gone = {node for node, is_here in noted.items() if is_here < self._has(node)}
        for number, ring in enumerate(self._rings):
            if len(gone) >= _SORT_FROM:
                ring[:] = [place for place in ring if place[1] not in gone]
            else:
                for node in gone:
                    del ring[bisect_left(ring, _places(node)[number])]
            if len(come) >= _SORT_FROM:
                ring.extend(places[number] for places in come)
                ring.sort()
            else:
                for places in come:
                    insort(ring, places[number])
            self._next[number] = _around(ring, self._mine[number])
        noted.clear()


def _around(ring: list[_Place], mine: _Place) -> tuple[_Place, _Place] | None:
    """The places before and after mine, which need not be on the ring."""
    before = bisect_left(ring, mine) - 1
    after = before + 1
    if after < len(ring) and ring[after] == mine:
        after += 1
    if after - before > len(ring):  # nobody but me
        return None
    return ring[before], ring[after % len(ring)]


@lru_cache(maxsize=16_384)
def _places(node: NodeId) -> tuple[_Place, ...]:
    """Where a node sits on each ring: 128 bits, so that no two share a point.  One
    object for all who hold this node."""
    return tuple((_point(node, ring), node) for ring in range(RINGS))


def _point(node: NodeId, ring: int) -> int:
    salt = bytes([ring])
    return int.from_bytes(blake2b(node, digest_size=16, salt=salt, person=b"p2pmesh-ring").digest())
