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
from typing import Final, NamedTuple

from p2pmesh.protocol.types import NodeId

RINGS: Final = 3


class Position(NamedTuple):
    """One place of mine: the next member on a ring in one direction."""

    ring: int
    step: int  # +1 successor, -1 predecessor


POSITIONS: Final = tuple(Position(ring, step) for ring in range(RINGS) for step in (1, -1))


class Rings:
    """The rings of one node's view."""

    def __init__(self) -> None:
        # Per ring: sorted points, and the members at the same indexes.
        self._points: tuple[list[int], ...] = tuple([] for _ in range(RINGS))
        self._nodes: tuple[list[NodeId], ...] = tuple([] for _ in range(RINGS))
        self._members: set[NodeId] = set()

    def __contains__(self, node: NodeId) -> bool:
        return node in self._members

    def __len__(self) -> int:
        return len(self._members)

    def add(self, node: NodeId) -> bool:
        """False: it was there."""
        if node in self._members:
            return False
        self._members.add(node)
        for points, nodes, point in zip(self._points, self._nodes, _places(node), strict=True):
            index = bisect_left(points, point)
            points.insert(index, point)
            nodes.insert(index, node)
        return True

    def remove(self, node: NodeId) -> bool:
        """False: it was not there."""
        if node not in self._members:
            return False
        self._members.discard(node)
        for points, nodes, point in zip(self._points, self._nodes, _places(node), strict=True):
            index = bisect_left(points, point)
            del points[index], nodes[index]
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
        points, nodes = self._points[position.ring], self._nodes[position.ring]
        point = _places(node)[position.ring]
        index = bisect_left(points, point)
        if position.step > 0 and (index == len(points) or points[index] != point):
            index -= 1  # not on the ring itself: its place is just before ``index``
        for _ in range(len(points)):
            index = (index + position.step) % len(points)
            other = nodes[index]
            if other == node:
                return None
            if other not in skip:
                return other
        return None


@lru_cache(maxsize=16_384)
def _places(node: NodeId) -> tuple[int, ...]:
    """Where a node sits on each ring: 128 bits, so that no two share a place."""
    return tuple(
        int.from_bytes(
            blake2b(node, digest_size=16, salt=bytes([ring]), person=b"p2pmesh-ring").digest()
        )
        for ring in range(RINGS)
    )
