"""How late an event loop runs what is due: a histogram of lateness.

Bounds are in seconds; what is later than the last one is counted beyond it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Lag:
    """Counts each lateness in the bucket of the least bound that holds it."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0  # seconds

    def add(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
