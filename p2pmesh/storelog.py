"""The store's write-ahead log: was it torn by a loss of power, or is it damaged?

    frame ─► frame ─► wrong ─► end               torn: SQLite forgets the last commit
    frame ─► frame ─► wrong ─► frame of a later commit    damaged: it would forget them all

SQLite reads a log up to the first frame with a wrong checksum.  A commit begins once the
one before it is on disk, so where a sound frame of a later commit follows, the wrong one
was whole once.  Each checksum goes on from the one stored in the frame before, so a frame
behind a wrong one can be judged, too.  Format: https://sqlite.org/fileformat2.html#walformat

Does not: tell damage within the last commit from a tear; nobody can.  Or judge what the
frames hold: the damaged one is kept in its place, and what reads the file sees it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

PAGE_SIZE: Final = 4096
_HEADER: Final = 32
_FRAME: Final = 24
_MAGIC: Final = 0x377F0682  # the checksums' words are little-endian; one more: big-endian
_VERSION: Final = 3007000

_Sum = tuple[int, int]


class Frame(NamedTuple):
    page: int  # its number
    pages: int  # of the file after this commit; 0: the commit goes on
    content: bytes
    is_sound: bool


class Log(NamedTuple):
    """What a log file holds, the frames behind a wrong one included."""

    is_sound: bool  # its header
    sequence: bytes
    salts: bytes
    frames: tuple[Frame, ...]

    @classmethod
    def read(cls, log: bytes) -> Log:
        magic, *_ = struct.unpack_from(">I", log)
        orders = {_MAGIC: "<", _MAGIC + 1: ">"}
        order = orders.get(magic)
        given = _sum_at(log, 24)
        is_sound = order is not None and _sum(log[:24], (0, 0), order) == given
        if order is not None and is_sound:
            salts = log[16:24]
            return cls(True, log[12:16], salts, tuple(_frames(log, salts, order)))
        salts = _usual_salts(log)
        read = [tuple(_frames(log, salts, order)) for order in orders.values()]
        frames = max(read, key=lambda frames: sum(frame.is_sound for frame in frames))
        return cls(False, log[12:16], salts, frames)

    @property
    def is_damaged(self) -> bool:
        """More than what a loss of power tears."""
        is_wrong, is_over = not self.is_sound, False
        for frame in self.frames:
            if is_wrong and is_over and frame.is_sound:
                return True
            is_wrong = is_wrong or not frame.is_sound
            is_over = is_over or (is_wrong and frame.pages > 0)
        return False

    def mended(self) -> bytes:
        """The log up to its last sound commit, with checksums that let SQLite read all of
        it, the wrong frames as they are."""
        last = max(
            (at for at, each in enumerate(self.frames) if each.is_sound and each.pages), default=-1
        )
        most = max((each.pages for each in self.frames if each.is_sound), default=0)
        head = struct.pack(">III", _MAGIC, _VERSION, PAGE_SIZE) + self.sequence + self.salts
        total = _sum(head, (0, 0), "<")
        made = [head, struct.pack(">II", *total)]
        for frame in self.frames[: last + 1]:
            if not 1 <= frame.page <= most:
                continue  # it does not say any more where it belongs
            about = struct.pack(">II", frame.page, frame.pages if frame.is_sound else 0)
            total = _sum(about + frame.content, total, "<")
            made += [about, self.salts, struct.pack(">II", *total), frame.content]
        return b"".join(made)


def _frames(log: bytes, salts: bytes, order: str) -> Iterator[Frame]:
    before = _sum_at(log, 24)
    for at in range(_HEADER, len(log) - _FRAME - PAGE_SIZE + 1, _FRAME + PAGE_SIZE):
        content = log[at + _FRAME : at + _FRAME + PAGE_SIZE]
        given = _sum_at(log, at + 16)
        is_sound = log[at + 8 : at + 16] == salts and given == _sum(
            log[at : at + 8] + content, before, order
        )
        page, pages = struct.unpack_from(">II", log, at)
        yield Frame(page, pages, content, is_sound)
        before = given


def _usual_salts(log: bytes) -> bytes:
    """Those of most frames: the header's may be wrong."""
    every = range(_HEADER, len(log) - _FRAME - PAGE_SIZE + 1, _FRAME + PAGE_SIZE)
    most = Counter(log[at + 8 : at + 16] for at in every).most_common(1)
    return most[0][0] if most else bytes(8)


def _sum_at(log: bytes, at: int) -> _Sum:
    one, two = struct.unpack_from(">II", log, at)
    return one, two


def _sum(data: bytes, before: _Sum, order: str) -> _Sum:
    """SQLite's checksum over whole pairs of words."""
    one, two = before
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
