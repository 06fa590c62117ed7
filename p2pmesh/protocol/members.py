"""The view: which lives this node holds, and the one rule of precedence.

A subject (a node id, or a guest's instance id) has one claim at a time: the
signed record of an alive or left node, the verdict about a failed one, or the
signed entry of a guest.  ``Version`` decides between two claims, and nothing
else does; suspicion is no claim (it lasts a second) and has a file of its
own (``suspicion``).

The view keeps 32 XOR buckets of version hashes: equal buckets mean equal claims,
whatever the order in which they arrived.

What ended (a node that left or failed; a guest that did, or whose home is gone or
lives anew) is remembered for 24 hours.  It is told with its age, so that everyone
forgets it at one time and nobody brings it back.  An entry is held only while its
home is.

It returns what changed and never tells anyone: flooding, events and links are
the door's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from enum import Enum
from functools import reduce
from math import inf
from operator import xor
from typing import Final, TypeAlias

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.records import (
    SignedEntry,
    SignedRecord,
    Version,
    claim_mark,
    subject_hash,
    version_hash,
)
from p2pmesh.protocol.types import GuestEntry, Life, NodeId, State

BUCKETS: Final = 32
_BUCKET_SHIFT: Final = 64 - 5


class Change(Enum):
    """What an offered claim did to the view."""

    NONE = "none"  # held already, or older than a live claim
    JOINED = "joined"  # a life unknown until now, or back with a higher version
    UPDATED = "updated"  # the same life says something new
    FAILED = "failed"
    LEFT = "left"
    BURIED = "buried"  # at or below a tombstone: its owner should hear of that
    FULL = "full"  # the table is at its maximum


class Tombstone:
    """Memory of a failed life.  The last record is kept for display."""

    __slots__ = ("accusers", "evidence", "failed_at", "last", "subject", "version", "version_hash")

    is_alive: Final = False

    def __init__(
        self,
        node: NodeId,
        version: Version,
        failed_at: float,
        evidence: str,
        accusers: tuple[NodeId, ...],
        last: SignedRecord | None,
    ) -> None:
        self.subject = subject_hash(node)
        self.version = version
        self.version_hash = version_hash(node, version)
        self.failed_at = failed_at
        self.evidence = evidence
        self.accusers = accusers
        self.last = last

    def verdict(self, node: NodeId, now: float) -> wire.Verdict:
        """The claim as it is told, with its age."""
        return wire.Verdict(
            node,
            self.version.life,
            self.version.incarnation,
            max(0, int((now - self.failed_at) * 1000)),
            self.evidence,
            self.accusers,
        )


Claim: TypeAlias = SignedRecord | Tombstone | SignedEntry


class View:
    """All claims that one node holds."""

    def __init__(self) -> None:
        self.nodes: dict[NodeId, SignedRecord | Tombstone] = {}
        self.guests: dict[str, SignedEntry] = {}
        self.buckets: list[int] = [0] * BUCKETS
        self.highest = Life(0, 0, 0)  # the highest stamp ever seen
        self.highest_epoch = 0
        self.claimant = 0  # the mark of who claimed it; 0: not known
        self.alive_count = 0
        #: Whose claims were held when this process slept, and nobody has said since.
        self.hearsay: set[NodeId | str] = set()
        self._ended: dict[NodeId | str, float] = {}  # nodes and guests that are gone, since when
        self._hash: bytes | None = None
        self._leader: SignedRecord | None = None
        self._leader_known = True

    # --- offers ---------------------------------------------------------------

    def offer_record(self, offered: SignedRecord, now: float, age: float = 0.0) -> Change:
        """A node's own word: alive or left (``age`` seconds ago)."""
        node = offered.id
        held = self.nodes.get(node)
        if held is offered:
            return Change.NONE
        was_alive = held is not None and held.is_alive
        is_alive = offered.is_alive
        if held is not None and offered.version <= held.version:
            is_buried = not was_alive and offered.version < held.version
            return Change.BURIED if is_buried else Change.NONE
        if is_alive:
            if not was_alive and self.alive_count >= limits.MEMBERS_MAX:
                return Change.FULL
        elif age >= timing.TOMBSTONE_TTL:
            return Change.NONE
        elif not self._make_room(held, now - age):
            return Change.FULL
        self._put(node, offered, now, None if is_alive else now - age)
        if offered.version.life > self.highest:
            self.highest = offered.version.life
        if offered.record.epoch is not None:
            self.note_claim(offered.record.epoch, claim_mark(offered.version.life, node))
        if not is_alive:
            return Change.LEFT
        same_life = held is not None and held.version.life == offered.version.life
        return Change.UPDATED if same_life and was_alive else Change.JOINED

    def note_claim(self, epoch: int, claimant: int) -> None:
        """Somebody claimed this epoch.  When two did (each on its side of a split), no
        token of that epoch is above both, and the highest becomes one that nobody has:
        whoever leads has to claim above it."""
        if epoch > self.highest_epoch:
            self.highest_epoch, self.claimant = epoch, claimant
        elif epoch == self.highest_epoch and claimant:
            if not self.claimant:
                self.claimant = claimant
            elif claimant != self.claimant:
                self.highest_epoch, self.claimant = epoch + 1, 0

    def offer_verdict(self, verdict: wire.Verdict, now: float) -> Change:
        """Others' word that a life failed."""
        node, version = verdict.subject, verdict_version(verdict)
        held = self.nodes.get(node)
        if held is not None and version <= held.version:
            return Change.NONE
        if verdict.age >= timing.TOMBSTONE_TTL * 1000:
            return Change.NONE
        failed_at = now - verdict.age / 1000
        if not self._make_room(held, failed_at):
            return Change.FULL
        last = held.last if isinstance(held, Tombstone) else held
        made = Tombstone(node, version, failed_at, verdict.evidence, verdict.accusers, last)
        was_alive = self.is_alive(node)
        self._put(node, made, now, failed_at)
        self.highest = max(self.highest, version.life)
        return Change.FAILED if was_alive else Change.UPDATED

    def offer_entry(self, offered: SignedEntry, now: float, age: float = 0.0) -> Change:
        """A home's word about its guest, which ended ``age`` seconds ago (if it did)."""
        guest = offered.entry.instance_id
        held = self.guests.get(guest)
        if held is offered or offered.entry.home not in self.nodes:
            return Change.NONE
        if held is not None and offered.version <= held.version:
            return Change.NONE
        is_void = self._is_void(offered.entry)
        if is_void and age >= timing.TOMBSTONE_TTL:
            return Change.NONE
        if held is None and not self._make_guest_room(now - age if is_void else inf):
            return Change.FULL
        if held is not None:
            self._toggle(held)
        self._toggle(offered)
        self.guests[guest] = offered
        self.hearsay.discard(guest)
        self._ended.pop(guest, None)
        self._follow(guest, offered.entry, now - age)
        self.highest = max(self.highest, offered.entry.life)
        return Change.JOINED if held is None else Change.UPDATED

    def copy(self) -> View:
        """The same claims, for another to hold."""
        made = copy(self)
        made.nodes, made.guests = dict(self.nodes), dict(self.guests)
        made.buckets, made.hearsay = list(self.buckets), set(self.hearsay)
        made._ended = dict(self._ended)
        return made

    # --- forgetting -------------------------------------------------------------

    def forget(self, node: NodeId) -> None:
        """Drop a claim altogether (it will be learnt anew if anyone holds it)."""
        held = self.nodes.pop(node, None)
        if held is None:
            return
        self._toggle(held)
        self._ended.pop(node, None)
        self.hearsay.discard(node)
        self.alive_count -= held.is_alive
        self._changed(held, None)
        for guest in [g for g, claim in self.guests.items() if claim.entry.home == node]:
            self.forget_guest(guest)

    def forget_guest(self, guest: str) -> None:
        self._toggle(self.guests.pop(guest))
        self._ended.pop(guest, None)
        self.hearsay.discard(guest)

    def doubt(self, me: NodeId) -> None:
        """Nobody knows for how long this process slept: who lived then may be gone, and
        forgotten by all others.  Only my own word is more than hearsay."""
        self.hearsay.update(held.id for held in self.all_alive() if held.id != me)
        self.hearsay.update(guest for guest, claim in self.guests.items() if claim.entry.home != me)

    def expire(self, now: float) -> None:
        """Forget what ended 24 hours ago."""
        old = now - timing.TOMBSTONE_TTL
        for guest in [g for g in self.guests if self._ended.get(g, now) <= old]:
            self.forget_guest(guest)
        if len(self.nodes) > self.alive_count:
            for node in [n for n, ended_at in self._all_ended() if ended_at <= old]:
                self.forget(node)

    # --- questions ------------------------------------------------------------

    def alive(self, node: NodeId) -> SignedRecord | None:
        """The record of a member that is not failed or left."""
        held = self.nodes.get(node)
        return held if isinstance(held, SignedRecord) and held.is_alive else None

    def is_alive(self, node: NodeId) -> bool:
        return self.alive(node) is not None

    def all_alive(self) -> Iterator[SignedRecord]:
        for held in self.nodes.values():
            if isinstance(held, SignedRecord) and held.is_alive:
                yield held

    def tombstones(self) -> Iterator[tuple[NodeId, Tombstone]]:
        for node, held in self.nodes.items():
            if isinstance(held, Tombstone):
                yield node, held

    def ended_at(self, key: NodeId | str) -> float | None:
        """When this node or guest ended, as far as is known; None: it did not, or is
        not known."""
        return self._ended.get(key)

    def leader(self) -> SignedRecord | None:
        """The least seniority over alive and suspect candidates."""
        if not self._leader_known:
            candidates = (held for held in self.all_alive() if held.is_candidate)
            self._leader = min(candidates, key=lambda held: held.seniority, default=None)
            self._leader_known = True
        return self._leader

    def hash(self) -> bytes:
        """8 bytes: equal on two nodes when they hold the same claims."""
        if self._hash is None:
            self._hash = reduce(xor, self.buckets).to_bytes(8)
        return self._hash

    def claims(self) -> Iterator[tuple[NodeId | str, Claim]]:
        """Nodes first: an entry is taken by who holds its home."""
        yield from self.nodes.items()
        yield from self.guests.items()

    def told(self) -> Iterator[tuple[NodeId | str, Claim]]:
        """What others may have from me: all but hearsay."""
        if not self.hearsay:
            return self.claims()
        return ((key, claim) for key, claim in self.claims() if key not in self.hearsay)

    def item(self, key: NodeId | str, claim: Claim, now: float) -> bytes:
        """A claim that is held, as a news item with its age."""
        if isinstance(claim, Tombstone):
            assert isinstance(key, bytes)
            return wire.encode(claim.verdict(key, now))
        ended_at = self._ended.get(key)
        if ended_at is None:
            return claim.item
        age = max(0, int((now - ended_at) * 1000))
        kind = wire.RecordItem if isinstance(claim, SignedRecord) else wire.EntryItem
        return wire.encode(kind(claim.signed, age))

    # --- private ----------------------------------------------------------------

    def _put(
        self, node: NodeId, made: SignedRecord | Tombstone, now: float, ended_at: float | None
    ) -> None:
        held = self.nodes.get(node)
        if held is not None:
            self.buckets[held.subject >> _BUCKET_SHIFT] ^= held.version_hash
            self.alive_count -= held.is_alive
        self.buckets[made.subject >> _BUCKET_SHIFT] ^= made.version_hash
        self._hash = None
        self.alive_count += made.is_alive
        self.nodes[node] = made
        self.hearsay.discard(node)
        self._changed(held, made)
        if ended_at is not None:
            self._ended[node] = ended_at
        elif self._ended:
            self._ended.pop(node, None)
        if self.guests and (
            held is None
            or held.version.life != made.version.life
            or held.version.state != made.version.state
        ):
            for guest, claim in self.guests.items():
                if claim.entry.home == node:
                    self._follow(guest, claim.entry, now if ended_at is None else ended_at)

    def _is_void(self, entry: GuestEntry) -> bool:
        """Is there no living home that says it is alive?"""
        home = self.alive(entry.home)
        return (
            entry.state is not State.ALIVE or home is None or home.version.life != entry.home_life
        )

    def _follow(self, guest: str, entry: GuestEntry, ended_at: float) -> None:
        """Note since when a guest is void, if it is."""
        if self._is_void(entry):
            self._ended.setdefault(guest, ended_at)
        else:
            self._ended.pop(guest, None)

    def _all_ended(self) -> Iterator[tuple[NodeId, float]]:
        for key, ended_at in self._ended.items():
            if isinstance(key, bytes):
                yield key, ended_at

    def _make_room(self, held: SignedRecord | Tombstone | None, ended_at: float) -> bool:
        """Room for one more that ended then: the longest gone makes it.  What is held
        already always has it."""
        if len(self.nodes) - self.alive_count < limits.TOMBSTONES_MAX:
            return True
        if held is not None and held.version.state is not State.ALIVE:
            return True
        oldest, oldest_ended_at = min(self._all_ended(), key=lambda ended: ended[1])
        if held is None and oldest_ended_at >= ended_at:
            return False
        self.forget(oldest)
        return True

    def _make_guest_room(self, ended_at: float) -> bool:
        """The same among guests, for one that lives (``inf``) or ended then."""
        if len(self.guests) < limits.GUESTS_MAX:
            return True
        ended = [(at, guest) for guest in self.guests if (at := self._ended.get(guest)) is not None]
        if not ended or min(ended)[0] >= ended_at:
            return False
        self.forget_guest(min(ended)[1])
        return True

    def _toggle(self, claim: Claim) -> None:
        self.buckets[bucket_of(claim.subject)] ^= claim.version_hash
        self._hash = None

    def _changed(self, old: Claim | None, new: Claim | None) -> None:
        """Keep the remembered leader right without scanning at every join."""
        leader = self._leader
        if old is not None and old is leader:
            self._leader_known = False
        elif (
            self._leader_known
            and isinstance(new, SignedRecord)
            and new.is_candidate
            and (leader is None or new.seniority < leader.seniority)
        ):
            self._leader = new


def verdict_version(verdict: wire.Verdict) -> Version:
    return Version(verdict.life, verdict.incarnation, State.FAILED, 0)


def bucket_of(subject: int) -> int:
    return subject >> _BUCKET_SHIFT
