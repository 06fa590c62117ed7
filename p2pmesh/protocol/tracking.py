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


class Again:
    """A broadcast of which single copies were sent again."""

    __slots__ = ("_copies", "_first")

    def __init__(self, first: Tracked) -> None:
        self._first = first
        self._copies: dict[str, Tracked] = {}

    def add(self, recipient: str, copy: Tracked) -> None:
        self._copies[recipient] = copy

    @property
    def is_over(self) -> bool:
        return self._first.is_over and all(copy.is_over for copy in self._copies.values())

    def recipients(self) -> tuple[Recipient, ...]:
        states = {each.instance_id: each for each in self._first.recipients()}
        for copy in self._copies.values():
            states.update((each.instance_id, each) for each in copy.recipients())
        return tuple(states.values())


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

    def put_again(self, message_id: str, recipient: str, copy: Tracked) -> None:
        """One copy of a broadcast goes anew."""
        known = self._tracked.get(message_id)
        if not isinstance(known, Again):
            known = Again(known if known is not None else copy)
            self.put(message_id, known)
        known.add(recipient, copy)

    def drop(self, message_id: str) -> None:
        """It was refused after all."""
        self._tracked.pop(message_id, None)

    def state(self, message_id: str) -> tuple[Recipient, ...] | None:
        """None: not known (any more); empty: its target is looked for."""
        tracked = self._tracked.get(message_id)
        return None if tracked is None else tracked.recipients()
