"""Envelopes: the ids they get here, and what is checked of those that arrive.

Also the small arithmetic on sequence numbers that several parts share, and the
account of the bytes that all queues of a node hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import Envelope
from p2pmesh.protocol.wire import Ranges

SEQ_MAX = 2**62
#: What a message costs beside its payload, for bounds in bytes.
OVERHEAD = 200


def uuid7(wall: int, entropy: Callable[[int], bytes]) -> str:
    """RFC 9562: 48 bits of unix ms, then 74 random bits."""
    tail = entropy(10)
    number = (wall & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(tail)
    number = number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_sound(envelope: Envelope) -> bool:
    """Are the lengths of an envelope from the network in range?"""
    return (
        0 < len(envelope.message_id) <= limits.MESSAGE_ID_MAX
        and len(envelope.source) <= limits.INSTANCE_ID_MAX
        and (envelope.target is None or 0 < len(envelope.target) <= limits.INSTANCE_ID_MAX)
        and len(envelope.type) <= limits.TYPE_MAX
        and len(envelope.payload) <= limits.PAYLOAD_MAX
        and (
            envelope.correlation_id is None
            or len(envelope.correlation_id) <= limits.CORRELATION_MAX
        )
        and 0 <= envelope.created_at < 2**63
    )


def seconds_left(ttl: int) -> float:
    """A TTL off the wire (ms) in seconds, held to what a TTL may be."""
    return min(max(ttl, 0), int(timing.WATERMARK_TTL * 1000)) / 1000


def milliseconds(seconds: float) -> int:
    """Seconds that remain, as the wire says it; at least 0."""
    return max(0, int(seconds * 1000))


# --- ranges ---------------------------------------------------------------------


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Ascending numbers as ranges: 1, 2, 3, 7 -> (1, 3), (7, 7)."""
    found: list[tuple[int, int]] = []
    first = last = -1
    for number in numbers:
        if number != last + 1 or first < 0:
            if first >= 0:
                found.append((first, last))
            first = number
        last = number
    if first >= 0:
        found.append((first, last))
    return tuple(found)


def are_sound(ranges: Ranges) -> bool:
    """Ascending, disjoint, in range and not too many?"""
    below = 0
    for first, last in ranges:
        if not below < first <= last <= SEQ_MAX:
            return False
        below = last
    return len(ranges) <= limits.RANGES_MAX


def held_in(ranges: Ranges, held: Iterable[int]) -> Iterator[int]:
    """Those of ``held`` (ascending) that lie in the ranges."""
    bounds = iter(ranges)
    first, last = next(bounds, (SEQ_MAX + 1, SEQ_MAX + 1))
    for number in held:
        while number > last:
            first, last = next(bounds, (SEQ_MAX + 1, SEQ_MAX + 1))
        if first <= number:
            yield number


def without(ranges: Ranges, held: Iterable[int], most: int) -> Ranges:
    """The ranges up to ``most``, less the numbers held (ascending)."""
    found: list[tuple[int, int]] = []
    holes = iter(held)
    hole = next(holes, SEQ_MAX + 1)
    for first, last in ranges:
        last = min(last, most)
        while hole < first:
            hole = next(holes, SEQ_MAX + 1)
        while hole <= last:
            if first < hole:
                found.append((first, hole - 1))
            first = hole + 1
            hole = next(holes, SEQ_MAX + 1)
        if first <= last:
            found.append((first, last))
    return tuple(found)


# --- bytes ----------------------------------------------------------------------


class Account:
    """Bytes held by all queues of a node, against one maximum."""

    __slots__ = ("most", "used")

    def __init__(self, most: int = limits.NODE_BYTES_MAX) -> None:
        self.used = 0
        self.most = most

    def has_room(self, size: int) -> bool:
        return self.used + size <= self.most
