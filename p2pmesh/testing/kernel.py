"""The model of the operating system: hosts, processes, TCP connections.

It models what a failure detector can tell apart, and no more:

* a *stopped* process still accepts connections and acknowledges bytes (its kernel
  does); they wait in its socket buffers until it runs again;
* a *dead* one resets its connections and refuses dials;
* a *gone* host answers nothing; a full backlog drops the SYN;
* loss is delay: a lost segment comes 200 ms later, then 400 ms … and everything
  behind it waits; a connection breaks after 15 s without progress.

Time is the caller's (``Clock``); nothing here knows the protocol.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import Any, Final

RETRANSMIT_AFTER: Final = 0.2
RETRANSMIT_MAX: Final = 3.2
BREAKS_AFTER: Final = 15.0
BACKLOG: Final = 1024
#: Bytes that a sender and a receiver kernel hold for a process that does not read.
SOCKET_BUFFER: Final = 256 * 1024


class Clock:
    """Virtual time: what happens next, in order, and nothing between."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heappush(self._queue, (max(time, self.now), self._order, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, call, *args)

    def step(self, until: float) -> bool:
        """Run what is next, up to ``until``.  False: nothing is left before it."""
        if not self._queue or self._queue[0][0] > until:
            self.now = max(self.now, until)
            return False
        time, _, call, args = heappop(self._queue)
        self.now = time
        call(*args)
        return True


class Process(Enum):
    RUNNING = "running"
    STOPPED = "stopped"  # SIGSTOP, or starved of CPU
    DEAD = "dead"  # kill -9: its kernel resets and refuses
    GONE = "gone"  # the host is off, or its cable is out


@dataclass(slots=True, eq=False)
class End:
    """One end of a connection, as its process sees it."""

    owner: Any  # the network's node
    link: int
    peer: End | None = None
    is_open: bool = True
    #: Sent and not yet with the other kernel.
    outgoing: deque[bytes] = field(default_factory=deque)
    last_arrival: float = 0.0
    retry: float = 0.0  # current retransmission gap; 0: nothing is lost
    progress_at: float = 0.0
    is_paused: bool = False
    unread: int = 0  # bytes in the receiving kernel's buffer

    @property
    def unacked(self) -> int:
        return sum(map(len, self.outgoing))


class Paths:
    """Which host reaches which, in which direction."""

    def __init__(self) -> None:
        self._cuts: set[tuple[int, int]] = set()
        self._side: dict[int, int] = {}

    def is_open(self, source: int, target: int) -> bool:
        if source == target:
            return True
        if (source, target) in self._cuts:
            return False
        return self._side.get(source, 0) == self._side.get(target, 0)

    def cut(self, source: int, target: int) -> None:
        self._cuts.add((source, target))

    def partition(self, sides: list[list[int]]) -> None:
        self._side = {host: number for number, side in enumerate(sides) for host in side}

    def heal(self) -> None:
        self._cuts.clear()
        self._side.clear()
