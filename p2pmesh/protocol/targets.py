"""Targets: from an id or a name to an instance, and those that wait for one.

    known, alive, suspect or failed     that instance (a failed one gets it later)
    left, its identity stays            that instance
    left for good                       refused, or dead, at once
    a name with one live holder         the holder
    a name with several                 ambiguous: nothing is sent
    a name whose holders are all away   waits for a holder, as long as it lives
                                        (a request to it ends at once)
    anything else                       waits UNKNOWN_TARGET_WAIT, then is unknown

An id goes before a name.  A name that became ambiguous while it was waited for
goes to the oldest holder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits
from p2pmesh.protocol.directory import Directory, away, is_gone_for_good
from p2pmesh.protocol.envelopes import OVERHEAD, Account
from p2pmesh.protocol.streams import NEVER
from p2pmesh.protocol.types import Envelope, Instance, Instant, Recipient


class Absence(Enum):
    """Why a target has no instance now."""

    NO_HOLDER = "no_holder"  # a name that is known; whoever had it is away
    LEFT = "left"  # an id whose instance left for good
    UNKNOWN = "unknown"


class Ambiguous(NamedTuple):
    ids: tuple[str, ...]


def find(directory: Directory, target: str, *, named: bool) -> Instance | Ambiguous | Absence:
    """The instance that a target means; ``named``: it may be a name."""
    instance = directory.instance(target)
    if instance is not None and not is_gone_for_good(instance):
        return instance
    holders = directory.named(target) if named else ()
    if len(holders) == 1:
        return holders[0]
    if holders:
        return Ambiguous(tuple(holder.instance_id for holder in holders))
    is_name = named and instance is not None and _was_called(instance, target)
    if instance is not None and not is_name:
        return Absence.LEFT
    if not named:
        return Absence.UNKNOWN
    return Absence.NO_HOLDER if away(directory, target) else Absence.UNKNOWN


def _was_called(instance: Instance, target: str) -> bool:
    """Did a node have its id as its name, too?  (A guest has no other name.)"""
    return instance.kind == "node" and instance.name == target


class Parcel:
    """What waits for its target to appear: a message, or a request by its call."""

    __slots__ = (
        "call",
        "deadline",
        "envelope",
        "give_up_at",
        "is_kept",
        "is_promised",
        "is_told",
        "known_by",
        "named",
        "state",
        "target",
    )

    def __init__(
        self,
        envelope: Envelope,
        target: str,
        *,
        named: bool,
        deadline: float,
        call: int | None = None,
        is_told: bool = True,
    ) -> None:
        self.envelope = envelope
        self.target = target  # as the sender wrote it
        self.named = named
        self.deadline = deadline
        self.give_up_at = deadline
        self.known_by = deadline  # of a request: when an unknown target is lost
        self.call = call
        self.is_told = is_told  # the sender knows that it was accepted
        self.is_promised = False  # and was told that it is safe
        self.is_kept = False  # the store has a row of it

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.envelope.payload)

    @property
    def is_over(self) -> bool:
        return False

    def recipients(self) -> tuple[Recipient, ...]:
        """Nobody yet, unless it is sure that somebody had this name."""
        return (Recipient(self.target, "queued"),) if self.is_told else ()


class Waiting:
    """The parcels that wait, by target."""

    def __init__(self, account: Account, counters: Counter[str]) -> None:
        self.next_at = NEVER
        self._account = account
        self._counters = counters
        self._parcels: dict[str, list[Parcel]] = {}

    def __bool__(self) -> bool:
        return bool(self._parcels)

    def __len__(self) -> int:
        return sum(map(len, self._parcels.values()))

    def add(self, parcel: Parcel, give_up_at: float) -> None:
        """Raises QueueFull."""
        others = self._parcels.get(parcel.target, ())
        if (
            len(others) >= limits.MAILBOX_MESSAGES_MAX
            or (not others and len(self._parcels) >= limits.WAITING_TARGETS_MAX)
            or not self._account.has_room(parcel.size)
        ):
            self._counters["waiting_full"] += 1
            raise QueueFull(f"too much waits for {parcel.target!r} or others not known yet")
        parcel.give_up_at = min(give_up_at, parcel.deadline)
        self._parcels.setdefault(parcel.target, []).append(parcel)
        self._account.used += parcel.size
        self.next_at = min(self.next_at, parcel.give_up_at)

    def take(self, targets: Iterable[str]) -> list[Parcel]:
        """All that waits for one of these ids or names: look them up again."""
        return self._taken(parcel for target in targets for parcel in self._parcels.pop(target, ()))

    def targets(self) -> list[str]:
        return list(self._parcels)

    def tick(self, at: Instant) -> list[Parcel]:
        """Those that have waited long enough, taken."""
        if at.now < self.next_at:
            return []
        over: list[Parcel] = []
        self.next_at = NEVER
        for target, parcels in list(self._parcels.items()):
            over += [parcel for parcel in parcels if parcel.give_up_at <= at.now]
            left = [parcel for parcel in parcels if parcel.give_up_at > at.now]
            if left:
                self._parcels[target] = left
                self.next_at = min(self.next_at, *(parcel.give_up_at for parcel in left))
            else:
                del self._parcels[target]
        return self._taken(over)

    def _taken(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        taken = list(parcels)
        self._account.used -= sum(parcel.size for parcel in taken)
        return taken
