"""Virtual time: what happens next, in order, and nothing between."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Calls that are due at a time, in seconds since the run began; those of the
    same time come in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        if time < self.now:
            time = self.now
        heappush(self._queue, (time, self._order, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, call, *args)

    def run_to(self, until: float) -> None:
        """Do everything that is due up to this time, which then it is."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, args = heappop(queue)
            call(*args)
        self.now = max(self.now, until)
