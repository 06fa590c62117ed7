"""The view: which lives this node holds, and the one rule of precedence.

A subject (a node id, or a guest's instance id) has one claim at a time: the
signed record of an alive or left node, the verdict about a failed one, or the
signed entry of a guest.  ``Version`` decides between two claims, and nothing
else does; suspicion is not a claim (it lasts a second) and lives in the
detector.

The view keeps 32 XOR buckets of version hashes: equal buckets mean equal claims,
whatever the order in which they arrived.

It returns what changed and never tells anyone: flooding, events and links are
the door's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import reduce
from operator import xor
from typing import Final, TypeAlias

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.records import (
    SignedEntry,
    SignedRecord,
    Version,
    subject_hash,
    version_hash,
)
from p2pmesh.protocol.types import Life, NodeId, State

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
        self.alive_count = 0
        self._left_at: dict[NodeId, float] = {}
        self._hash: bytes | None = None
        self._leader: SignedRecord | None = None
        self._leader_known = True

    # --- offers ---------------------------------------------------------------

    def offer_record(self, offered: SignedRecord, now: float) -> Change:
        """A node's own word: alive or left."""
        node = offered.record.id
        held = self.nodes.get(node)
        if held is offered:
            return Change.NONE
        if held is None:
            if len(self.nodes) >= limits.MEMBERS_MAX + limits.TOMBSTONES_MAX or (
                offered.record.state is State.ALIVE and self.alive_count >= limits.MEMBERS_MAX
            ):
                return Change.FULL
        elif offered.version <= held.version:
            buried = held.version.state is not State.ALIVE and offered.version < held.version
            return Change.BURIED if buried else Change.NONE
        self._put(node, held, offered)
        self.highest = max(self.highest, offered.version.life)
        if offered.record.epoch is not None:
            self.highest_epoch = max(self.highest_epoch, offered.record.epoch)
        if offered.record.state is State.LEFT:
            self._left_at[node] = now
            return Change.LEFT
        self._left_at.pop(node, None)
        same_life = held is not None and held.version.life == offered.version.life
        was_alive = held is not None and held.version.state is State.ALIVE
        return Change.UPDATED if same_life and was_alive else Change.JOINED

    def offer_verdict(self, verdict: wire.Verdict, now: float) -> Change:
        """Others' word that a life failed."""
        version = verdict_version(verdict)
        held = self.nodes.get(verdict.subject)
        if held is None:
            if len(self.nodes) >= limits.TOMBSTONES_MAX:
                return Change.FULL
        elif version <= held.version:
            return Change.NONE
        if verdict.age >= timing.TOMBSTONE_TTL * 1000:
            return Change.NONE
        last = held if isinstance(held, SignedRecord) else None
        made = Tombstone(
            verdict.subject,
            version,
            now - verdict.age / 1000,
            verdict.evidence,
            verdict.accusers,
            last if last is not None and last.version.life == version.life else None,
        )
        was_alive = self.is_alive(verdict.subject)
        self._put(verdict.subject, held, made)
        self.highest = max(self.highest, version.life)
        return Change.FAILED if was_alive else Change.UPDATED

    def offer_entry(self, offered: SignedEntry) -> Change:
        """A home's word about its guest."""
        guest = offered.entry.instance_id
        held = self.guests.get(guest)
        if held is offered:
            return Change.NONE
        if held is None and len(self.guests) >= limits.GUESTS_MAX:
            return Change.FULL
        if held is not None and offered.version <= held.version:
            return Change.NONE
        if held is not None:
            self._toggle(held)
        self._toggle(offered)
        self.guests[guest] = offered
        self.highest = max(self.highest, offered.entry.life)
        return Change.JOINED if held is None else Change.UPDATED

    def forget(self, node: NodeId) -> None:
        """Drop a claim altogether (it will be learnt anew if anyone holds it)."""
        held = self.nodes.pop(node, None)
        if held is not None:
            self._toggle(held)
            self._left_at.pop(node, None)
            self._count(held, -1)
            self._changed(held, None)

    def expire(self, now: float) -> None:
        """Forget tombstones and goodbyes older than their 24 hours."""
        if len(self.nodes) == self.alive_count:
            return
        old = now - timing.TOMBSTONE_TTL
        gone = [n for n, t in self.tombstones() if t.failed_at < old]
        gone += [n for n, at in self._left_at.items() if at < old]
        for node in gone:
            self.forget(node)

    # --- questions ------------------------------------------------------------

    def alive(self, node: NodeId) -> SignedRecord | None:
        """The record of a member that is not failed or left."""
        held = self.nodes.get(node)
        if isinstance(held, SignedRecord) and held.record.state is State.ALIVE:
            return held
        return None

    def is_alive(self, node: NodeId) -> bool:
        return self.alive(node) is not None

    def all_alive(self) -> Iterator[SignedRecord]:
        for held in self.nodes.values():
            if isinstance(held, SignedRecord) and held.record.state is State.ALIVE:
                yield held

    def tombstones(self) -> Iterator[tuple[NodeId, Tombstone]]:
        for node, held in self.nodes.items():
            if isinstance(held, Tombstone):
                yield node, held

    def leader(self) -> SignedRecord | None:
        """The least seniority over alive and suspect candidates."""
        if not self._leader_known:
            candidates = (held for held in self.all_alive() if is_candidate(held))
            self._leader = min(candidates, key=lambda held: held.seniority, default=None)
            self._leader_known = True
        return self._leader

    def hash(self) -> bytes:
        """8 bytes: equal on two nodes when they hold the same claims."""
        if self._hash is None:
            self._hash = reduce(xor, self.buckets).to_bytes(8)
        return self._hash

    def claims(self) -> Iterator[tuple[NodeId | str, Claim]]:
        yield from self.nodes.items()
        yield from self.guests.items()

    # --- private ----------------------------------------------------------------

    def _put(self, node: NodeId, held: Claim | None, made: SignedRecord | Tombstone) -> None:
        if held is not None:
            self._toggle(held)
            self._count(held, -1)
        self._toggle(made)
        self._count(made, 1)
        self.nodes[node] = made
        self._changed(held, made)

    def _toggle(self, claim: Claim) -> None:
        self.buckets[bucket_of(claim.subject)] ^= claim.version_hash
        self._hash = None

    def _count(self, claim: Claim, step: int) -> None:
        if isinstance(claim, SignedRecord) and claim.record.state is State.ALIVE:
            self.alive_count += step

    def _changed(self, old: Claim | None, new: Claim | None) -> None:
        """Keep the remembered leader right without scanning at every join."""
        if old is not None and old is self._leader:
            self._leader_known = False
        elif (
            self._leader_known
            and isinstance(new, SignedRecord)
            and is_candidate(new)
            and (self._leader is None or new.seniority < self._leader.seniority)
        ):
            self._leader = new


def is_candidate(held: SignedRecord) -> bool:
    """May this member lead?  Candidates are nodes with an agent that did not opt out."""
    record = held.record
    return record.state is State.ALIVE and record.candidate and record.agent is not None


def verdict_version(verdict: wire.Verdict) -> Version:
    return Version(verdict.life, verdict.incarnation, State.FAILED, 0)


def bucket_of(subject: int) -> int:
    return subject >> _BUCKET_SHIFT


def claim_item(key: NodeId | str, claim: Claim, now: float) -> bytes:
    """The claim as a news item."""
    if isinstance(claim, Tombstone):
        assert isinstance(key, bytes)
        return msgspec.msgpack.encode(claim.verdict(key, now))
    return claim.item
