"""What happened, for whoever wants to know: numbered, kept for a while, never in the way.

The hub stamps each event with the time and the next number, keeps the last
``KEPT_MAX``, and hands it to every reader.  A reader has a buffer of its own; one
that does not keep up loses its oldest events and is told how many (``Lost``),
and costs nobody else anything.

Message events are made only once somebody has read events: an agent that
exchanges many thousand messages a second pays for them only when they are seen.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Self
from weakref import WeakSet

import msgspec

from p2pmesh.protocol.types import Event, Lost

KEPT_MAX: Final = 1000
BUFFER_MAX: Final = 1000


class EventReader:
    """Events from its making on, as an async iterator; ends when the node does."""

    def __init__(self, backlog: list[Event], *, is_closed: bool) -> None:
        self._events = deque(backlog)
        self._lost = 0
        self._is_closed = is_closed
        self._wake: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._is_closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        if self._lost:
            first = self._events[0]
            lost, self._lost = self._lost, 0
            return Lost(n=lost, seq=first.seq - 1, t=first.t)
        return self._events.popleft()

    async def aclose(self) -> None:
        """End it; a waiting ``__anext__`` ends too."""
        self.close()

    def put(self, event: Event) -> None:
        if len(self._events) >= BUFFER_MAX:
            self._events.popleft()
            self._lost += 1
        self._events.append(event)
        self._notify()

    def close(self) -> None:
        self._is_closed = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class EventHub:
    """Numbers events, keeps the latest, and feeds the readers."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock``: unix seconds."""
        self._clock = clock
        self._seq = 0
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)
        self._readers: WeakSet[EventReader] = WeakSet()
        self._is_closed = False
        #: Somebody has read events: message events are worth making.
        self.is_read = False

    def publish(self, event: Event) -> Event:
        """Stamp it, keep it, hand it on; returns it as stamped."""
        self._seq += 1
        stamped = msgspec.structs.replace(event, t=self._clock(), seq=self._seq)
        self._kept.append(stamped)
        for reader in tuple(self._readers):
            reader.put(stamped)
        return stamped

    def subscribe(self, after: int | None = None) -> EventReader:
        """A reader of events from now on, or of those after number ``after`` that
        are still kept and all that follow.  A number not reached yet is of an
        earlier run of the node: then all that is kept."""
        self.is_read = True
        if after is not None and after > self._seq:
            after = 0
        backlog = [] if after is None else [e for e in self._kept if e.seq > after]
        reader = EventReader(backlog, is_closed=self._is_closed)
        self._readers.add(reader)
        return reader

    def close(self) -> None:
        """No event follows: readers end when they have read what they have."""
        self._is_closed = True
        for reader in tuple(self._readers):
            reader.close()
