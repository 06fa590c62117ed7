"""Keys of sends: which message a key of its sender's stands for, over a restart.

    a send with a key ─► begin ─► settle, in the save that has the message ─► kept ─┬─ displaced
                           └─ refused: nothing is kept                              └─ forgotten

Who repeats a send with its key must not make a second message of it.  A key is on disk
from the save on that has its message: no crash leaves one without the other.

Does not: work on a memory node, which forgets its messages, too; know what a key or a
digest is made of, or answer anybody (``http/idempotency.py`` does).

Invariants: at most SENT_KEYS_MAX keys and SENT_KEYS_BYTES_MAX bytes, each for
SENT_KEY_TTL; the oldest go first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.envelopes import OVERHEAD
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.tracking import Tracking
from p2pmesh.protocol.types import Instant, SendKey, SentBefore, Table
from p2pmesh.protocol.ways import NEVER


class _KeyRow(msgspec.Struct, frozen=True, array_like=True):
    """A key on disk, under itself."""

    sent: SentBefore
    forget_at: float  # store time


class _Kept(NamedTuple):
    sent: SentBefore
    forget_at: float


class SentKeys:
    """The keys of one node's messages, the oldest first."""

    def __init__(self, counters: Counter[str], ledger: Ledger, tracking: Tracking) -> None:
        self.next_at = NEVER
        self.bytes = 0
        self._counters = counters
        self._ledger = ledger
        self._tracking = tracking
        self._fresh: dict[str, tuple[bytes, SentBefore]] = {}  # by message: not in the store
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._of: dict[str, bytes] = {}  # the key of a message

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, key: SendKey, message_id: str, recipients: tuple[str, ...]) -> None:
        """A message was taken on with a key; ``settle`` keeps it once the store has it."""
        if self._ledger.is_durable:
            sent = SentBefore(key.content, message_id, recipients, key.is_broadcast)
            self._fresh[message_id] = (key.key, sent)

    def settle(self, at: Instant) -> None:
        """Keep the keys of messages whose rows this save has; a target that is looked
        for has none yet."""
        for message_id, (key, sent) in list(self._fresh.items()):
            state = self._tracking.state(message_id)
            if state == () and not sent.is_broadcast:
                continue
            del self._fresh[message_id]
            if state is not None:
                self._keep(at, key, sent)

    def _keep(self, at: Instant, key: bytes, sent: SentBefore) -> None:
        forget_at = at.now + timing.SENT_KEY_TTL
        self._put(key, _Kept(sent, forget_at))
        self._ledger.put(Table.SENT_KEYS, key, _KeyRow(sent, self._ledger.store_time(forget_at)))
        while len(self._kept) > limits.SENT_KEYS_MAX or self.bytes > limits.SENT_KEYS_BYTES_MAX:
            self._counters["sent_keys_dropped"] += 1
            self._remove(next(iter(self._kept)))

    def _put(self, key: bytes, kept: _Kept) -> None:
        if key in self._kept:
            self._forget(key)
        self._kept[key] = kept
        self._of[kept.sent.message_id] = key
        self.bytes += _size(key, kept.sent)
        self.next_at = min(self.next_at, kept.forget_at)

    def get(self, key: bytes) -> SentBefore | None:
        kept = self._kept.get(key)
        return kept and kept.sent

    def refused(self, message_id: str) -> None:
        """It was not accepted after all: its key may be used again."""
        self._fresh.pop(message_id, None)
        key = self._of.get(message_id)
        if key is not None:
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        self._forget(key)
        self._ledger.gone(Table.SENT_KEYS, key)

    def _forget(self, key: bytes) -> None:
        sent = self._kept.pop(key).sent
        self._of.pop(sent.message_id, None)
        self.bytes -= _size(key, sent)

    def tick(self, at: Instant) -> None:
        if at.now < self.next_at:
            return
        self.next_at = NEVER
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.forget_at > at.now:
                self.next_at = kept.forget_at
                return
            self._remove(key)

    def restore(self) -> None:
        """Take up what an earlier process had kept."""
        rows = list(self._ledger.restored(Table.SENT_KEYS, _KeyRow))
        for key, row in sorted(rows, key=lambda each: each[1].forget_at):
            self._put(key, _Kept(row.sent, self._ledger.own_time(row.forget_at)))


def _size(key: bytes, sent: SentBefore) -> int:
    return OVERHEAD + len(key) + sum(map(len, sent.recipients))
