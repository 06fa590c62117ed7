"""News on their way: what a node has learnt and not passed on yet.

One *round* serves all links.  A piece of news goes once to each ring link, but not
to those over which it came meanwhile; what a node says itself goes to every peer.
Of the pieces about one subject the newest stays.

News wait only in a storm.  Plain changes leave at once when it is quiet, and every
100 ms when many come (a hundred nodes that start).  Questions, refutations, ends
and claims leave at once, until there were sixteen rounds in short order (half of a
mesh is gone): then together, every 50 ms.

Not here: which links there are, and what becomes of the bytes (``core``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import IntEnum
from math import inf
from operator import attrgetter
from typing import Final

from p2pmesh.protocol import limits, timing

#: Room for a message's own header beside its items, and for the length of each.
_ITEMS_BYTES: Final = limits.CHUNK_MAX - 64
_LENGTH_BYTES: Final = 5
_urgency: Final = attrgetter("urgency")


class Urgency(IntEnum):
    """Which news a link says first."""

    QUESTION = 0  # questions, vouches, refutes: a clock is running
    ENDING = 1  # left, failed, leadership claims
    CHANGE = 2


class Piece:
    """One piece of news."""

    __slots__ = ("is_mine", "item", "knowing", "subject", "urgency")

    def __init__(self, subject: object, item: bytes, urgency: Urgency, source: int | None) -> None:
        self.subject = subject
        self.item = item
        self.urgency = urgency
        self.is_mine = source is None  # it goes to every peer, not only over ring links
        self.knowing: tuple[int, ...] = () if source is None else (source,)  # but these links


class Round:
    """What is to be told next, and when."""

    __slots__ = ("_hurry_at", "_is_urgent", "_told_at", "pieces")

    def __init__(self) -> None:
        self.pieces: dict[object, Piece] = {}  # by subject
        self._is_urgent = False  # something in it does not wait
        self._told_at = -inf
        self._hurry_at = -inf  # no earlier, however urgent

    def put(self, subject: object, item: bytes, urgency: Urgency, source: int | None) -> bool:
        """Add what came over the link ``source`` (None: I say it).  A newer item replaces
        the older about the same subject, and is as urgent as that was.

        False: there is no room and the item was not taken (repair will find it).
        """
        made = Piece(subject, item, urgency, source)
        older = self.pieces.get(subject)
        if older is not None:
            made.urgency = min(urgency, older.urgency)
            made.is_mine |= older.is_mine
        elif len(self.pieces) >= limits.NEWS_QUEUE_MAX:
            return False
        self.pieces[subject] = made
        if urgency is not Urgency.CHANGE:
            self._is_urgent = True
        return True

    def known(self, subject: object, link: int, item: bytes | None = None) -> None:
        """The peer of this link says so itself (in these words, or in others that come
        to the same): it need not be told."""
        piece = self.pieces.get(subject)
        if piece is not None and (item is None or piece.item == item):
            piece.knowing += (link,)

    def due_at(self) -> float:
        """When it is to be told; the past: now."""
        return self._hurry_at if self._is_urgent else self._told_at + timing.NEWS_INTERVAL

    def take(self, now: float) -> list[Piece]:
        """All of it, most urgent first."""
        taken = list(self.pieces.values())
        if len(taken) > 1:
            taken.sort(key=_urgency)
        self.pieces.clear()
        self._is_urgent = False
        self._told_at = now
        # A bucket of so many hurries, to which one is added every interval.
        full = now - (limits.HURRIES_MAX - 1) * timing.HURRY_INTERVAL
        self._hurry_at = max(self._hurry_at, full) + timing.HURRY_INTERVAL
        return taken


def pack(items: Collection[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Group items so that each group fits one message."""
    size = sum(map(len, items)) + _LENGTH_BYTES * len(items)
    if size <= _ITEMS_BYTES and 0 < len(items) <= limits.NEWS_ITEMS_MAX:
        yield tuple(items)
        return
    group: list[bytes] = []
    size = 0
    for item in items:
        if group and (size + len(item) > _ITEMS_BYTES or len(group) == limits.NEWS_ITEMS_MAX):
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += len(item) + _LENGTH_BYTES
    if group:
        yield tuple(group)
