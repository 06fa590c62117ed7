"""Where the messages are that this node accepted, for whoever asks.

Each is tracked by what holds its state: a copy in the outbox, a parcel without a
target yet, a broadcast, or just the end.  The table is bounded; what is over is
forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from p2pmesh.protocol import limits
from p2pmesh.protocol.types import Recipient

_LOOKED_AT = 8


class Tracked(Protocol):
    """Something that knows where its message is."""

    @property
    def is_over(self) -> bool: ...

    def recipients(self) -> tuple[Recipient, ...]: ...


class Ended:
    """Nothing more will happen to it."""

    __slots__ = ("_recipient",)
    is_over = True

    def __init__(self, recipient: Recipient) -> None:
        self._recipient = recipient

    def recipients(self) -> tuple[Recipient, ...]:
        return (self._recipient,)


class Tracking:
    """Message ids to their states, the oldest first."""

    def __init__(self) -> None:
        self._tracked: OrderedDict[str, Tracked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tracked)

    def put(self, message_id: str, tracked: Tracked) -> None:
        table = self._tracked
        table[message_id] = tracked
        if len(table) <= limits.MESSAGE_STATES_MAX:
            return
        for _ in range(_LOOKED_AT):  # the oldest that is over; if none of a few is, the oldest
            oldest, known = table.popitem(last=False)
            if known.is_over:
                return
            table[oldest] = known
        table.popitem(last=False)

    def drop(self, message_id: str) -> None:
        """It was refused after all."""
        self._tracked.pop(message_id, None)

    def state(self, message_id: str) -> tuple[Recipient, ...] | None:
        """None: not known (any more); empty: its target is looked for."""
        tracked = self._tracked.get(message_id)
        return None if tracked is None else tracked.recipients()
