"""Guests: agents without a node, registered at this one, their *home*.

    register ─► alive ──silent GUEST_TIMEOUT──► failed ──GUEST_FORGOTTEN_AFTER──► left
                  ▲                               │
                  └── register, or a heartbeat ◄──┘  (within GUEST_REVIVAL)

An instance id has one home: the highest (term, home id).  Registering an id that
is new or had left, and adopting one whose home is gone, write a term above every
one seen.  So does the home that hears a guest, outbid by a word of no home that does:
what a restarting node restored, or said before it restarted.  The stamp and
``created_at`` of the first registration stay until it leaves, whoever adopts it; so
does its seniority.  Only the home writes the entry: each change is a new revision, for
the caller to announce.

Silence is elapsed time, swept every GUEST_SWEEP.  Not here: mailboxes, and calls
about guests of other homes (``guestdesk``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.records import are_labels, is_hostname, is_instance_id
from p2pmesh.protocol.streams import NEVER
from p2pmesh.protocol.types import GuestEntry, Instant, Life, NodeId, State
from p2pmesh.protocol.wire import RegisterBody


class Guest:
    """One guest of this home."""

    __slots__ = ("entry", "failed_at", "heard_at", "metrics", "status", "tell_at", "told_at")

    def __init__(self, entry: GuestEntry, now: float) -> None:
        self.entry = entry
        self.heard_at = now
        self.failed_at: float | None = None
        self.tell_at: float | None = None  # restored, and not told of before then
        self.status: str | None = None  # its own word, with its heartbeat
        self.metrics: bytes | None = None
        self.told_at = -timing.GUEST_STATUS_INTERVAL  # when its status last travelled


#: What the numbers of an entry may still grow by.
_ROOM: Final = 64


def is_registrable(instance_id: str, body: RegisterBody) -> bool:
    """Are these fields in range, and will an entry of them fit?"""
    return (
        is_instance_id(instance_id)
        and is_hostname(body.hostname)
        and 0 <= body.port <= 65_535
        and are_labels(body.capabilities)
        and are_labels(body.profiles)
        and len(msgspec.msgpack.encode(body)) + 3 * limits.INSTANCE_ID_MAX <= limits.ENTRY_MAX
    )


class Guests:
    """The guests of this home.  Methods return the entry to announce, if any."""

    def __init__(self, me: NodeId) -> None:
        self.next_at = NEVER
        self.words = 0  # how often one said something new of itself
        self._me = me
        self._guests: dict[str, Guest] = {}

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._guests

    def __iter__(self) -> Iterator[Guest]:
        return iter(self._guests.values())

    def get(self, instance_id: str) -> Guest | None:
        return self._guests.get(instance_id)

    def is_full(self) -> bool:
        return len(self._guests) >= limits.GUESTS_MAX

    def restore(self, at: Instant, entry: GuestEntry) -> None:
        """A guest that an earlier process of this home had: unheard until it beats."""
        guest = self._guests[entry.instance_id] = Guest(entry, at.now)
        guest.failed_at = at.now
        guest.tell_at = NEVER  # before this node lives
        if entry.state is not State.FAILED:
            self._revise(guest, state=State.FAILED)
        self.next_at = min(self.next_at, at.now + timing.GUEST_SWEEP)

    # --- registered, adopted, heard -------------------------------------------------

    def register(
        self,
        at: Instant,
        instance_id: str,
        body: RegisterBody,
        *,
        life: Life,
        known: GuestEntry | None,
        stamp: Life,
    ) -> GuestEntry | None:
        """Registered here, again or for the first time.

        ``life``: mine.  ``known``: the highest entry of this id, another home's
        included.  ``stamp``: its own life, if it has none to keep.
        """
        guest = self._guests.get(instance_id)
        if guest is not None:
            entry = guest.entry
            self._hear(at, guest)
            if entry.state is State.ALIVE and body == _body(entry):
                return None
            return self._revise(guest, state=State.ALIVE, **msgspec.structs.asdict(body))
        keeps = known is not None and known.state is not State.LEFT
        entry = GuestEntry(
            instance_id=instance_id,
            life=known.life if known is not None and keeps else stamp,
            home=self._me,
            home_life=life,
            term=known.term + 1 if known is not None else 1,
            revision=0,
            state=State.ALIVE,
            hostname=body.hostname,
            port=body.port,
            capabilities=body.capabilities,
            profiles=body.profiles,
            created_at=known.created_at if known is not None and keeps else at.wall * 1000,
        )
        return self._take_in(at, entry)

    def adopt(self, at: Instant, known: GuestEntry, life: Life) -> GuestEntry:
        """Its home is gone, or does not answer: it lives here from now on."""
        return self._take_in(
            at,
            msgspec.structs.replace(
                known,
                home=self._me,
                home_life=life,
                term=known.term + 1,
                revision=0,
                state=State.ALIVE,
            ),
        )

    def _take_in(self, at: Instant, entry: GuestEntry) -> GuestEntry:
        self._guests[entry.instance_id] = Guest(entry, at.now)
        self.next_at = min(self.next_at, at.now + timing.GUEST_SWEEP)
        return entry

    def can_revive(self, at: Instant, instance_id: str) -> bool:
        """Would a heartbeat count?  (A registration always does.)"""
        failed_at = self._guests[instance_id].failed_at
        return failed_at is None or at.now - failed_at < timing.GUEST_REVIVAL

    def beat(
        self, at: Instant, instance_id: str, status: str, metrics: bytes | None
    ) -> GuestEntry | None:
        """It is alive, and how.  The mesh hears of a change at once, then of the next
        one not before 10 s are over, with a later heartbeat."""
        guest = self._guests[instance_id]
        self._hear(at, guest)
        self.words += (status, metrics) != (guest.status, guest.metrics)
        guest.status = status
        guest.metrics = metrics
        told = _tellable(guest.entry, status, metrics)
        is_news = (told.status, told.metrics) != (guest.entry.status, guest.entry.metrics)
        is_due = at.now - guest.told_at >= timing.GUEST_STATUS_INTERVAL
        if guest.entry.state is State.ALIVE and not (is_news and is_due):
            return None
        guest.told_at = at.now
        return self._revise(guest, state=State.ALIVE, status=told.status, metrics=told.metrics)

    def _hear(self, at: Instant, guest: Guest) -> None:
        guest.heard_at = at.now
        guest.failed_at = None
        guest.tell_at = None

    def _revise(self, guest: Guest, **changes: object) -> GuestEntry:
        guest.entry = msgspec.structs.replace(
            guest.entry, revision=guest.entry.revision + 1, **changes
        )
        return guest.entry

    # --- gone -----------------------------------------------------------------------

    def leave(self, instance_id: str) -> GuestEntry:
        """It deregistered: its entry is a tombstone now."""
        guest = self._guests.pop(instance_id)
        return self._revise(guest, state=State.LEFT)

    def is_outbid(self, entry: GuestEntry | None, instance_id: str) -> bool:
        """Does this entry say that another home has it now?"""
        guest = self._guests.get(instance_id)
        return (
            guest is not None
            and entry is not None
            and (entry.term, entry.home) > (guest.entry.term, self._me)
        )

    def is_heard(self, at: Instant, instance_id: str) -> bool:
        """Did it speak here, and not too long ago?"""
        guest = self._guests[instance_id]
        return guest.failed_at is None and at.now - guest.heard_at < timing.GUEST_TIMEOUT

    def reclaim(self, instance_id: str, above: GuestEntry, life: Life) -> GuestEntry:
        """It lives here, and the entry that outbids mine is no home's that hears it."""
        guest = self._guests[instance_id]
        guest.entry = msgspec.structs.replace(
            guest.entry, home_life=life, term=above.term + 1, revision=0, state=State.ALIVE
        )
        return guest.entry

    def drop(self, instance_id: str) -> None:
        """Another home has it."""
        del self._guests[instance_id]

    def is_untold(self, instance_id: str) -> bool:
        """Restored and unheard, and nobody knows yet: it may live elsewhere by now."""
        return self._guests[instance_id].tell_at is not None

    def relive(self, at: Instant, life: Life) -> list[GuestEntry]:
        """My life is another: entries of the old one are void.  Restored ones are told
        a moment later, when I know who lives elsewhere."""
        told: list[GuestEntry] = []
        for guest in self._guests.values():
            if guest.entry.home_life == life:
                continue
            entry = self._revise(guest, home_life=life)
            if guest.tell_at is None:
                told.append(entry)
            else:
                guest.tell_at = at.now + timing.RESTORED_TOLD_AFTER
                self.next_at = min(self.next_at, guest.tell_at)
        return told

    def sweep(self, at: Instant) -> list[GuestEntry]:
        """Who has been silent too long: failed entries, and at last left ones
        (no longer held here)."""
        if at.now < self.next_at:
            return []
        changed: list[GuestEntry] = []
        for instance_id, guest in list(self._guests.items()):
            if guest.tell_at is not None and at.now >= guest.tell_at:
                guest.tell_at = None
                changed.append(guest.entry)
            if guest.failed_at is None:
                if at.now - guest.heard_at >= timing.GUEST_TIMEOUT:
                    guest.failed_at = at.now
                    changed.append(self._revise(guest, state=State.FAILED))
            elif at.now - guest.failed_at >= timing.GUEST_FORGOTTEN_AFTER:
                changed.append(self.leave(instance_id))
        untold = (guest.tell_at for guest in self._guests.values() if guest.tell_at is not None)
        next_at = at.now + timing.GUEST_SWEEP if self._guests else NEVER
        self.next_at = min(next_at, min(untold, default=NEVER))
        return changed


def _tellable(entry: GuestEntry, status: str, metrics: bytes | None) -> GuestEntry:
    """The entry with what of these fits it; the home shows the whole."""
    short = status if len(status.encode("utf-8", "replace")) <= limits.STATUS_MAX else None
    told = msgspec.structs.replace(entry, status=short, metrics=metrics)
    if len(msgspec.msgpack.encode(told)) + _ROOM > limits.ENTRY_MAX:
        return msgspec.structs.replace(told, metrics=None)
    return told


def _body(entry: GuestEntry) -> RegisterBody:
    return RegisterBody(entry.hostname, entry.port, entry.capabilities, entry.profiles)
