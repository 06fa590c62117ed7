"""The ledger: what has to outlive this process, and what may happen only once it does.

    part ── put, gone ──► changes ── Save(number) ──► the store, which makes it safe
    part ── after(then) ─► waits ◄── saved(number) ── and says so

A durable node puts nothing on the wire, starts no handler and confirms nothing that
rests on a change which is not safe yet: that is ``after``.  A memory node has
nothing to wait for: changes are dropped, and what waits runs at once.

Rows are bytes under a key in a named table, so that the store needs to know nothing
of messages.  Deadlines are kept in *store time*: seconds that elapsed since the store
was made, as far as anybody can know.  It goes on over a restart of the process, stands
still while the machine is off, and no step of the wall clock moves it.

Invariants: ``then``s run in the order in which they were given, but for those that
give way where the store takes nothing, and each at most once;
a row and its deletion that are saved together are one deletion.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from p2pmesh.protocol.payloads import as_bytes
from p2pmesh.protocol.types import Change, Restored, Row, Save, Table

T = TypeVar("T")


class _Clock(msgspec.Struct, frozen=True, array_like=True):
    elapsed: float  # store time
    boot: str  # of which run of the machine ``now`` is
    now: float


class _Wait(NamedTuple):
    """What waits for a save."""

    number: int
    then: Callable[[], None]
    gives_way: bool


class Ledger:
    """The changes of one core that are on their way to its store."""

    def __init__(self, restored: Restored, now: float, *, is_durable: bool) -> None:
        self.is_durable = is_durable
        self.is_failing = False  # the store cannot take more just now
        self.counters: Counter[str] = Counter()
        self._rows: dict[str, list[Row]] = {}
        for row in restored.rows:
            self._rows.setdefault(row.table, []).append(row)
        self._boot = restored.boot
        self._now = now
        self._ahead = self._elapsed(now) - now
        self._changes: dict[tuple[str, bytes], Change] = {}
        self._waiting: deque[_Wait] = deque()
        self._number = 1  # of the next Save
        self._safe = 0

    def _elapsed(self, now: float) -> float:
        """Store time at the start."""
        for _, clock in self.restored(Table.CLOCK, _Clock):
            is_same_boot = clock.boot == self._boot != "" and now >= clock.now
            return clock.elapsed + (now - clock.now if is_same_boot else 0.0)
        return 0.0

    # --- what was kept ----------------------------------------------------------------

    def restored(self, table: Table, kind: type[T]) -> Iterator[tuple[bytes, T]]:
        """The rows that an earlier process left, by key; each can be had once.  What
        is none is counted, and left where it is."""
        for row in sorted(self._rows.pop(table, ()), key=lambda row: row.key):
            try:
                yield row.key, msgspec.msgpack.decode(row.value, type=kind)
            except msgspec.MsgspecError:
                self.counters["store_row_unreadable"] += 1

    def store_time(self, now: float) -> float:
        return now + self._ahead

    def own_time(self, elapsed: float) -> float:
        """Store time as seconds of this process's clock."""
        return elapsed - self._ahead

    # --- changes ----------------------------------------------------------------------

    def put(self, table: Table, key: bytes, row: Any) -> None:
        if self.is_durable:
            change = Change(table, key, _encode(row))
            self._changes[table, key] = change

    def gone(self, table: Table, key: bytes, *, moved: bool = False) -> None:
        """``moved``: another row of the same save takes its place, so it may not be
        lost alone."""
        if self.is_durable:
            self._changes[table, key] = Change(table, key, None, moved)

    def tick(self, now: float) -> None:
        """The time, for the next save."""
        self._now = now

    def after(self, then: Callable[[], None], *, gives_way: bool = False) -> None:
        """Run it once everything that was put so far is safe.

        ``gives_way``: at once where the store takes nothing: it is what makes room, or
        what nobody may have to wait for.
        """
        needed = self._number if self._changes else self._number - 1
        if needed <= self._safe or (gives_way and self.is_failing):
            then()
        else:
            self._waiting.append(_Wait(needed, then, gives_way))

    def failed(self) -> None:
        """The store takes nothing for now."""
        self.is_failing = True
        giving_way = [wait for wait in self._waiting if wait.gives_way]
        self._waiting = deque(wait for wait in self._waiting if not wait.gives_way)
        for wait in giving_way:
            wait.then()

    def take(self) -> Save | None:
        """The changes since the last call."""
        if not self._changes:
            return None
        clock = _Clock(self.store_time(self._now), self._boot, self._now)
        self.put(Table.CLOCK, b"", clock)
        save = Save(self._number, tuple(self._changes.values()))
        self._changes = {}
        self._number += 1
        return save

    def saved(self, number: int) -> None:
        """All saves up to this one are safe."""
        self.is_failing = False
        self._safe = max(self._safe, number)
        while self._waiting and self._waiting[0].number <= self._safe:
            self._waiting.popleft().then()

    @property
    def is_settled(self) -> bool:
        """Is everything safe?"""
        return not self._changes and self._safe == self._number - 1


_encode: Final = msgspec.msgpack.Encoder(enc_hook=as_bytes).encode
