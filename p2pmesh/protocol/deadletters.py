"""Dead letters: messages that were accepted here and ended dead, and their content.

    a copy ends dead ─► add ─► settle, in the save that ends it ─► kept ─┬─ taken: sent again
                                                                         ├─ dropped
                                                                         └─ forgotten

A recipient whose handler gave up, who left for good or had no room for its copy of a
broadcast: the sender's copy lives until then, so the node that accepted a message is
the one place that lists its dead letters.  Each is kept for DEAD_LETTER_TTL; when all
are too many, or too large, the oldest go.  What expired is none: its sender said from
when on nobody wants it.

Invariants: one for each message and recipient; what becomes one, or is one no more,
does so in a single save, so that no crash loses or doubles it.

Not here: how it is sent again (``sending``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple, TypeAlias

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.envelopes import OVERHEAD
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.types import DeadCopy, Envelope, Instant, Recipient, Table
from p2pmesh.protocol.ways import NEVER

_Key: TypeAlias = tuple[str, str]  # message, recipient


class _DeadRow(msgspec.Struct, frozen=True, array_like=True):
    """A dead letter on disk, under its message and recipient."""

    envelope: Envelope
    recipient: str
    name: str | None
    reason: str
    attempts: int
    died_at: int  # unix microseconds
    forget_at: float  # store time


class _Kept(NamedTuple):
    copy: DeadCopy
    forget_at: float


class DeadLetters:
    """The dead letters of one node, the oldest first."""

    def __init__(self, counters: Counter[str], ledger: Ledger) -> None:
        self.next_at = NEVER
        self.bytes = 0
        self._counters = counters
        self._ledger = ledger
        self._fresh: list[tuple[Envelope, str, str, str | None, int]] = []
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._of: dict[str, dict[str, None]] = {}  # recipients, by message

    def __len__(self) -> int:
        return len(self._kept)

    # --- in ---------------------------------------------------------------------------

    def add(
        self,
        envelope: Envelope,
        recipient: str,
        reason: str,
        *,
        name: str | None = None,
        attempts: int = 0,
    ) -> None:
        """A copy ended dead; ``settle`` keeps it.  ``name``: it was sent to a name."""
        self._fresh.append((envelope, recipient, reason, name, attempts))

    def settle(self, at: Instant) -> None:
        """Keep what died since the last call."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        for envelope, recipient, reason, name, attempts in fresh:
            died_at, forget_at = at.wall * 1000, at.now + timing.DEAD_LETTER_TTL
            copy = DeadCopy(envelope, recipient, name, reason, attempts, died_at)
            self._put(copy, forget_at)
            forgotten = self._ledger.store_time(forget_at)
            row = _DeadRow(envelope, recipient, name, reason, attempts, died_at, forgotten)
            self._ledger.put(Table.DEAD_LETTERS, _row_key(copy), row)
            self._make_room()  # each time: rows on their way to the store take memory, too

    def _make_room(self) -> None:
        while len(self._kept) > limits.DEAD_LETTERS_MAX or (
            self.bytes > limits.DEAD_LETTERS_BYTES_MAX
        ):
            self._counters["dead_letters_dropped"] += 1
            self._remove(next(iter(self._kept)))

    def _put(self, copy: DeadCopy, forget_at: float) -> None:
        key = (copy.envelope.message_id, copy.recipient)
        if key in self._kept:
            self._forget(key)
        self._kept[key] = _Kept(copy, forget_at)
        self._of.setdefault(key[0], {})[key[1]] = None
        self.bytes += _size(copy)
        self.next_at = min(self.next_at, forget_at)

    # --- what there is ----------------------------------------------------------------

    def all(self) -> tuple[DeadCopy, ...]:
        return tuple(kept.copy for kept in self._kept.values())

    def of(self, message_id: str, recipient: str | None = None) -> list[DeadCopy]:
        """Those of one message; ``recipient`` None: of all of its recipients."""
        wanted = self._of.get(message_id, {}) if recipient is None else (recipient,)
        keys = [(message_id, each) for each in wanted]
        return [self._kept[key].copy for key in keys if key in self._kept]

    def recipients(self, message_id: str) -> tuple[Recipient, ...]:
        """Their states, for who asks where this message is."""
        return tuple(
            Recipient(copy.recipient, "dead", copy.attempts, copy.reason)
            for copy in self.of(message_id)
        )

    # --- out --------------------------------------------------------------------------

    def take(self, copy: DeadCopy) -> None:
        """It is sent again: another row of this save has it."""
        self._remove((copy.envelope.message_id, copy.recipient), goes_on=True)

    def drop(self, message_id: str, recipient: str | None = None) -> int:
        """Nobody wants it; how many there were."""
        found = self.of(message_id, recipient)
        for copy in found:
            self._remove((message_id, copy.recipient))
        return len(found)

    def _remove(self, key: _Key, *, goes_on: bool = False) -> None:
        copy = self._forget(key)
        self._ledger.gone(Table.DEAD_LETTERS, _row_key(copy), moved=goes_on)

    def _forget(self, key: _Key) -> DeadCopy:
        copy = self._kept.pop(key).copy
        message_id, recipient = key
        of = self._of[message_id]
        del of[recipient]
        if not of:
            del self._of[message_id]
        self.bytes -= _size(copy)
        return copy

    def tick(self, at: Instant) -> None:
        if at.now < self.next_at:
            return
        self.next_at = NEVER
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.forget_at > at.now:
                self.next_at = kept.forget_at
                return
            self._counters["dead_letters_forgotten"] += 1
            self._remove(key)

    # --- the store --------------------------------------------------------------------

    def restore(self) -> None:
        """Take up what an earlier process had kept."""
        rows = [row for _, row in self._ledger.restored(Table.DEAD_LETTERS, _DeadRow)]
        for row in sorted(rows, key=lambda row: row.forget_at):
            copy = DeadCopy(
                row.envelope, row.recipient, row.name, row.reason, row.attempts, row.died_at
            )
            self._put(copy, self._ledger.own_time(row.forget_at))


def _size(copy: DeadCopy) -> int:
    return OVERHEAD + len(copy.envelope.payload)


def _row_key(copy: DeadCopy) -> bytes:
    return f"{copy.envelope.message_id}\0{copy.recipient}".encode()
