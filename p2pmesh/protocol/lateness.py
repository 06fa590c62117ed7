"""How late this process runs, and what that changes.

    late            silence and missing answers prove nothing: they may be its own doing
    late again      it has more to do than it can.  Dials that can wait take turns, so far
                    apart that it finishes what it began: others dial it meanwhile, and a
                    handshake that comes too late was work for nothing at both ends

Not here: who is told of a sleep (``sleeping``), and what is put off (its desks).
"""

from __future__ import annotations

from math import inf

from p2pmesh.protocol import timing


class Lateness:
    """What this process knows of its own delays."""

    __slots__ = ("_at", "_next_turn", "_pace")

    def __init__(self) -> None:
        self._at = -inf
        self._pace = 0.0  # between turns
        self._next_turn = -inf

    def note(self, now: float, seconds: float = 0.0) -> None:
        """It ran so much too late until now; 0: that was said, or nobody measured it."""
        if self.is_late(now):
            self._pace = max(self._pace, min(timing.LATE_PACE * seconds, timing.LATE_PACE_MAX))
        else:
            self._pace = 0.0  # one pause is no overload
        self._at = now

    def is_late(self, now: float) -> bool:
        """Was it late a moment ago?"""
        return now - self._at < timing.LAG_MEMORY

    def turn(self, now: float) -> float:
        """When a dial that can wait may begin.  ``now``: it is its turn, and the next one
        begins as much later as this process is slow."""
        if not self.is_late(now):
            return now
        if now >= self._next_turn:
            self._next_turn = now + self._pace
            return now
        return self._next_turn
