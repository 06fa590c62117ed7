"""Acknowledgements that wait: for a home that takes them, or for their message.

    ack ─┬─ at its guest's home, the message is there ─► done, and not kept
         ├─ at its guest's home, it is not (yet) there ─► it is over as soon as it comes
         └─ no home, or one that does not answer ───────► sent on once there is one

Whoever acknowledged was told that it counts.  A guest that roams may be ahead of its
mail: what it read at a home that died is sent to the next one, and may come there later
than the acknowledgement.  So each is kept for an hour, on disk where there is one;
when all are too many the oldest go first.

Not here: where a guest lives (``guestdesk``), and what is in its mailbox (``home``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import Final

import msgspec

from p2pmesh.protocol import limits
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.types import Instant, Table
from p2pmesh.protocol.ways import NEVER

ACK_RETRY: Final = 5.0
_ACKS_KEPT_FOR: Final = 3600.0


class _AckRow(msgspec.Struct, frozen=True, array_like=True):
    """An acknowledgement on disk, under both ids."""

    instance_id: str
    message_id: str
    until: float  # store time


class KeptAcks:
    """The acknowledgements that wait at this node."""

    def __init__(self, counters: Counter[str], ledger: Ledger) -> None:
        self.next_at = NEVER
        self._ledger = ledger
        self._counters = counters
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()  # the oldest first
        self._of: dict[str, dict[str, None]] = {}  # by instance

    def __len__(self) -> int:
        return len(self._until)

    def keep(self, at: Instant, instance_id: str, message_ids: Collection[str]) -> None:
        until = at.now + _ACKS_KEPT_FOR
        for message_id in message_ids:
            if self.has(instance_id, message_id):
                continue
            if len(message_id) > limits.MESSAGE_ID_MAX:  # no message is called so
                self._counters["acks_malformed"] += 1
                continue
            self._put(instance_id, message_id, until)
            row = _AckRow(instance_id, message_id, self._ledger.store_time(until))
            self._ledger.put(Table.ACKS, _row_key(instance_id, message_id), row)
            if len(self._until) > limits.ACKS_KEPT_MAX:
                self._counters["acks_full"] += 1
                self._drop(*next(iter(self._until)))
        if self._until:
            self.next_at = min(self.next_at, at.now + ACK_RETRY)

    def _put(self, instance_id: str, message_id: str, until: float) -> None:
        self._until[instance_id, message_id] = until
        self._of.setdefault(instance_id, {})[message_id] = None

    def restore(self, at: Instant) -> None:
        """Take up what an earlier process had kept."""
        rows = [row for _, row in self._ledger.restored(Table.ACKS, _AckRow)]
        for row in sorted(rows, key=lambda row: row.until):
            self._put(row.instance_id, row.message_id, self._ledger.own_time(row.until))
        if self._until:
            self.next_at = at.now + ACK_RETRY

    def has(self, instance_id: str, message_id: str) -> bool:
        """Did this instance acknowledge it already?"""
        return (instance_id, message_id) in self._until

    def of(self, instance_id: str) -> tuple[str, ...]:
        """What waits of this instance."""
        return tuple(self._of.get(instance_id, ()))

    def forget(self, instance_id: str, message_ids: Collection[str]) -> None:
        """Its home has taken them."""
        for message_id in message_ids:
            if self.has(instance_id, message_id):
                self._drop(instance_id, message_id)

    def _drop(self, instance_id: str, message_id: str) -> None:
        del self._until[instance_id, message_id]
        self._ledger.gone(Table.ACKS, _row_key(instance_id, message_id))
        kept = self._of[instance_id]
        del kept[message_id]
        if not kept:
            del self._of[instance_id]

    def due(self, at: Instant) -> tuple[str, ...]:
        """The instances whose acknowledgements are to be sent on now, if they can be."""
        if at.now < self.next_at:
            return ()
        while self._until:
            key, until = next(iter(self._until.items()))
            if until > at.now:
                break
            self._drop(*key)
        self.next_at = at.now + ACK_RETRY if self._until else NEVER
        return tuple(self._of)


def _row_key(instance_id: str, message_id: str) -> bytes:
    return f"{instance_id}\0{message_id}".encode()
