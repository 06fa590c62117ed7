"""The window of a broadcast stream: each number is taken once, in any order.

    watermark       all at or below it are taken, or were never owed
    bits            bit i: watermark + 1 + i is taken

Broadcasts come by tree and by repair, so their order says nothing.  The sender's
``floor`` moves the watermark over what it does not hold for this home any more.
A number too far above the watermark is not taken now: the sender repairs it, with
a floor that is this home's own.
"""

from __future__ import annotations

from enum import Enum

from p2pmesh.protocol import limits


class Place(Enum):
    NEW = "new"
    TAKEN = "taken"  # before
    BEYOND = "beyond"  # the window does not reach that far


class Window:
    """What one home took of one root's broadcasts."""

    __slots__ = ("bits", "watermark")

    def __init__(self) -> None:
        self.watermark = 0
        self.bits = 0

    def take(self, seq: int, floor: int) -> Place:
        """``1 <= floor <= seq``."""
        settled = floor - 1 - self.watermark
        if settled > 0:
            self.bits = self.bits >> settled if settled < limits.CAST_WINDOW else 0
            self.watermark += settled
        offset = seq - self.watermark - 1
        if offset < 0 or self.bits >> min(offset, limits.CAST_WINDOW) & 1:
            return Place.TAKEN
        if offset >= limits.CAST_WINDOW:
            return Place.BEYOND
        self.bits |= 1 << offset
        ones = (~self.bits & (self.bits + 1)).bit_length() - 1  # from the lowest bit on
        self.watermark += ones
        self.bits >>= ones
        return Place.NEW
