"""Named deadlines of the core.

A timer is (kind, key): setting it again moves it, and what is left of the old
deadline in the heap is ignored when it comes up, or cleared away when most of the heap
is such remains.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

#: From so many entries on most of the heap may not be remains.
_CLEARED_FROM: Final = 64


class Timers:
    """A set of named deadlines, in Instant.now seconds."""

    __slots__ = ("_at", "_heap", "_order")

    def __init__(self) -> None:
        self._at: dict[tuple[str, Hashable], float] = {}
        self._heap: list[tuple[float, int, tuple[str, Hashable]]] = []
        self._order = 0

    def set(self, kind: str, key: Hashable, at: float) -> None:
        name = (kind, key)
        self._at[name] = at
        self._order += 1
        heappush(self._heap, (at, self._order, name))
        if len(self._heap) > max(_CLEARED_FROM, 2 * len(self._at)):
            self._clear()

    def set_earlier(self, kind: str, key: Hashable, at: float) -> None:
        """Set it unless it is due before that anyway."""
        known = self._at.get((kind, key))
        if known is None or known > at:
            self.set(kind, key, at)

    def is_set(self, kind: str, key: Hashable) -> bool:
        return (kind, key) in self._at

    def cancel(self, kind: str, key: Hashable) -> None:
        self._at.pop((kind, key), None)

    def next(self) -> float | None:
        while self._heap:
            at, _, name = self._heap[0]
            if self._at.get(name) == at:
                return at
            heappop(self._heap)
        return None

    def due(self, now: float) -> Iterator[tuple[str, Hashable]]:
        """Each timer that is due, removed; more may be set meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            at, _, name = heappop(self._heap)
            if self._at.get(name) == at:
                del self._at[name]
                yield name

    def _clear(self) -> None:
        """Of each name the first entry for the time that it is due."""
        kept: dict[tuple[str, Hashable], tuple[float, int, tuple[str, Hashable]]] = {}
        for entry in self._heap:
            at, _, name = entry
            if self._at.get(name) == at and (name not in kept or entry < kept[name]):
                kept[name] = entry
        self._heap = list(kept.values())
        heapify(self._heap)
