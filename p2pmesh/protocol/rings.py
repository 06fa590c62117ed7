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


#: From so many newcomers together on, one sort costs less than as many insertions.
_SORT_FROM: Final = 32


class Rings:
    """The rings of one node's view."""

    def __init__(self) -> None:
        self._rings: tuple[list[_Place], ...] = tuple([] for _ in range(RINGS))  # sorted

    def __contains__(self, node: NodeId) -> bool:
        return self._has(_places(node)[0])

    def __len__(self) -> int:
        return len(self._rings[0])

    def add(self, node: NodeId) -> bool:
        """False: it was there."""
        places = _places(node)
        if self._has(places[0]):
            return False
        for ring, place in zip(self._rings, places, strict=True):
            insort(ring, place)
        return True

    def add_all(self, nodes: Collection[NodeId]) -> bool:
        """False: they were all there."""
        if len(nodes) < _SORT_FROM:
            return sum(map(self.add, nodes)) > 0
        new = [places for places in map(_places, set(nodes)) if not self._has(places[0])]
        for number, ring in enumerate(self._rings):
            ring.extend(places[number] for places in new)
            ring.sort()
        return bool(new)

    def remove(self, node: NodeId) -> bool:
        """False: it was not there."""
        places = _places(node)
        if not self._has(places[0]):
            return False
        for ring, place in zip(self._rings, places, strict=True):
            del ring[bisect_left(ring, place)]
        return True

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

    def _has(self, place: _Place) -> bool:
        """``place``: on the first ring."""
        ring = self._rings[0]
        index = bisect_left(ring, place)
        return index < len(ring) and ring[index] == place


@lru_cache(maxsize=16_384)
def _places(node: NodeId) -> tuple[_Place, ...]:
    """Where a node sits on each ring: 128 bits, so that no two share a point.  One
    object for all who hold this node."""
    return tuple((_point(node, ring), node) for ring in range(RINGS))


def _point(node: NodeId, ring: int) -> int:
    salt = bytes([ring])
    return int.from_bytes(blake2b(node, digest_size=16, salt=salt, person=b"p2pmesh-ring").digest())
