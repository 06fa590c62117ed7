"""A streamed answer: its parts in order, each once, and never far ahead of their reader.

    asker ──Ask(window)────────────► home ──► handler      a generator
    asker ◄─Part 1, Part 2, …─────── home ◄── its next part, while there is credit
    asker ──Credit(received, taken)► home                  the reader goes on
    asker ◄─Answer(parts=n)───────── home                  the end, behind part n
    asker ──Cancel─────────────────► home                  it has all, or wants no more

The home keeps every part until the reader took it, and asks its generator for the
next one only while it keeps less than the window of parts and less than
PARTS_BYTES_MAX: a slow reader slows the generator.  On a new way the asker says again
what it has, and the home goes on behind that; what comes twice is dropped.  Large
parts travel as bulk and may be overtaken, so the asker puts them in order, and an end
waits for the parts before it.

A home that knows nothing of parts answers whole, which is the only part; so does a
handler that returns its answer, and a guest.

Not here: who asks, whom, and on which way (``asking``, ``answering``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.envelopes import OVERHEAD
from p2pmesh.protocol.payloads import Payload

# --- the home's end ---------------------------------------------------------------


class Outgoing:
    """The parts of one answer that their reader has not taken, and what of them was said."""

    __slots__ = (
        "_is_end_said", "_kept", "_next", "_request", "bytes", "count", "end", "taken", "window",
    )  # fmt: skip

    def __init__(self, request: int, window: int) -> None:
        """``window``: as the asker wants it, at least 1."""
        self.window = min(window, limits.PARTS_AHEAD_MAX)
        self.count = 0  # parts so far: the number of the last
        self.taken = 0
        self.bytes = 0  # of those not taken
        self.end: wire.Answer | None = None
        self._request = request
        self._kept: deque[Payload] = deque()  # behind ``taken``
        self._next = 1  # to be said on the present way
        self._is_end_said = False

    @property
    def has_credit(self) -> bool:
        """May there be one more part?"""
        return (
            self.end is None
            and self.count - self.taken < self.window
            and self.bytes < limits.PARTS_BYTES_MAX
        )

    def put(self, payload: Payload) -> None:
        self.count += 1
        self._kept.append(payload)
        self.bytes += OVERHEAD + len(payload)

    def confirm(self, taken: int) -> None:
        """The reader took the parts up to this one."""
        while self.taken < min(taken, self.count):
            self.taken += 1
            self.bytes -= OVERHEAD + len(self._kept.popleft())
        self._next = max(self._next, self.taken + 1)

    def repeat(self, received: int) -> None:
        """The asker has the parts up to this one; others may be lost."""
        self._next = max(self.taken, min(received, self.count)) + 1
        self._is_end_said = False

    def due(self) -> Iterator[wire.Message]:
        """What was not said on the present way."""
        while self._next <= self.count:
            part = wire.Part(self._request, self._next, self._kept[self._next - self.taken - 1])
            self._next += 1
            yield part
        if self.end is not None and not self._is_end_said:
            self._is_end_said = True
            yield self.end


# --- the asker's end --------------------------------------------------------------


class Incoming:
    """The parts of one answer that came, and what its home was told of them."""

    __slots__ = (
        "_early", "_progress", "_sizes", "_stuck", "_taken_bytes", "_told", "_told_at", "bytes",
        "end", "received", "taken", "window",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.window = limits.PARTS_AHEAD_MAX
        self.received = 0  # all up to this one
        self.taken = 0  # by the reader
        self.bytes = 0  # that came and were not taken
        self.end: wire.Answer | None = None
        self._early: dict[int, Payload] = {}  # behind a part that is missing
        self._sizes: deque[int] = deque()  # of those received and not taken
        self._told = 0  # of ``taken``
        self._told_at = now
        self._taken_bytes = 0  # since that
        self._progress = 0  # received when the home was last told in passing
        self._stuck = 0  # how often in a row nothing had come until then

    @property
    def is_read_up(self) -> bool:
        """Has the reader taken all that came?"""
        return self.taken >= self.received

    @property
    def is_over(self) -> bool:
        """Is the end here, and every part before it?"""
        return self.end is not None and self.received >= self.end.parts

    @property
    def tell_at(self) -> float:
        """When the home is told anew though nothing happened: a credit may be lost, and
        who says nothing for long is taken to have given up."""
        return self._told_at + timing.CREDIT_AGAIN if self.received else float("inf")

    def put(self, part: wire.Part) -> list[Payload] | None:
        """Those that it makes readable, in order; None: it is beyond what was allowed."""
        number, size = part.number, len(part.payload)
        if (
            not 0 < number <= self.taken + self.window
            or self.bytes + size > limits.PARTS_BYTES_MAX + limits.PAYLOAD_MAX
        ):
            return None
        if number <= self.received or number in self._early:
            return []
        self._early[number] = part.payload
        self.bytes += size
        ready: list[Payload] = []
        while (payload := self._early.pop(self.received + 1, None)) is not None:
            self.received += 1
            self._sizes.append(len(payload))
            ready.append(payload)
        return ready

    def take(self, now: float) -> bool:
        """The reader took the next one; is the home to be told?  At half a window, so
        that its generator never waits for a reader who keeps up, and soon after all is
        read, so that it keeps no copy for long."""
        self.taken += 1
        size = self._sizes.popleft()
        self.bytes -= size
        self._taken_bytes += size
        return (
            2 * (self.taken - self._told) >= self.window
            or 2 * self._taken_bytes >= limits.PARTS_BYTES_MAX
            or (self.is_read_up and now >= self._told_at + timing.CREDIT_AFTER)
        )

    def credit(self, now: float, request: int, *, in_passing: bool = False) -> wire.Credit:
        """What the home is told.  ``in_passing``: nothing was taken; if nothing came
        either since it was last told so, something may be lost; or it is large, and each
        further doubt takes twice as long."""
        self._told, self._told_at, self._taken_bytes = self.taken, now, 0
        if not in_passing:
            return wire.Credit(request, self.received, self.taken)
        self._stuck = self._stuck + 1 if self.received == self._progress else 0
        self._progress = self.received
        doubts = self._stuck.bit_count() == 1  # 1, 2, 4, 8 …
        return wire.Credit(request, self.received, self.taken, doubts)
