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
from collections.abc import Collection, Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

from p2pmesh.protocol.types import NodeId

RINGS: Final = 3
_Point: TypeAlias = tuple[int, NodeId]


class Position(NamedTuple):
    """One place of mine: the next member on a ring in one direction."""

    ring: int
    step: int  # +1 successor, -1 predecessor


POSITIONS: Final = tuple(Position(ring, step) for ring in range(RINGS) for step in (1, -1))


class Rings:
    """The rings of one node's view."""

    def __init__(self) -> None:
        self._rings: tuple[list[_Point], ...] = tuple([] for _ in range(RINGS))
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
        for ring, point in zip(self._rings, _points(node), strict=True):
            ring.insert(bisect_left(ring, point), point)
        return True

    def remove(self, node: NodeId) -> bool:
        """False: it was not there."""
        if node not in self._members:
            return False
        self._members.discard(node)
        for ring, point in zip(self._rings, _points(node), strict=True):
            del ring[bisect_left(ring, point)]
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
        point = _points(node)[position.ring]
        index = bisect_left(ring, point)
        if position.step > 0 and (index == len(ring) or ring[index] != point):
            index -= 1  # not on the ring itself: its place is just before ``index``
        for _ in range(len(ring)):
            index = (index + position.step) % len(ring)
            other = ring[index][1]
            if other == node:
                return None
            if other not in skip:
                return other
        return None


def breadth_first(rings: Rings, root: NodeId) -> dict[NodeId, tuple[NodeId, ...]]:
    """The tree of ring links from ``root``: each node's children.

    Deterministic: all who hold the same view compute the same tree.
    """
    children: dict[NodeId, list[NodeId]] = {root: []}
    level: Iterable[NodeId] = (root,)
    while level:
        reached: list[NodeId] = []
        for node in level:
            for other in rings.neighbours(node):
                if other not in children:
                    children[other] = []
                    children[node].append(other)
                    reached.append(other)
        level = reached
    return {node: tuple(below) for node, below in children.items()}


@lru_cache(maxsize=16_384)
def _points(node: NodeId) -> tuple[_Point, ...]:
    """Where a node sits on each ring."""
    return tuple(
        (
            int.from_bytes(
                blake2b(node, digest_size=8, salt=bytes([ring]), person=b"p2pmesh-ring").digest()
            ),
            node,
        )
        for ring in range(RINGS)
    )
