"""Candidate addresses: what to dial, when, and when to stop.

mDNS, the runtime directory, ``--peer`` and the last addresses of failed members
offer addresses.  None of them is a member until it proved itself on a link.  A
``--peer`` is dialled for ever while no live member has it (1 s, doubling to
30 s), the others until their offer is withdrawn.  The newest are deferred when
the table is full; one not yet dialled is never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import Candidate, FoundBy, NodeId


@dataclass(slots=True)
class Offer:
    """One candidate and its dialling state."""

    candidate: Candidate
    due_at: float
    tries: int = 0
    is_dialling: bool = False
    node: NodeId | None = None  # who answered there last


class Candidates:
    """All offered addresses."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}
        self.deferred: dict[str, Candidate] = {}
        self.own: set[str] = set()  # keys that turned out to be this very process

    def add(self, candidate: Candidate, due_at: float) -> bool:
        """False: known with these addresses, or deferred (the table is full)."""
        if candidate.key in self.own:
            return False
        known = self.offers.get(candidate.key)
        if known is not None:
            if known.candidate.addresses == candidate.addresses:
                return False
            known.candidate, known.due_at, known.tries = candidate, due_at, 0
            return True
        if len(self.offers) >= limits.CANDIDATES_MAX:
            if len(self.deferred) < limits.CANDIDATES_MAX:
                self.deferred[candidate.key] = candidate
            return False
        self.offers[candidate.key] = Offer(candidate, due_at)
        return True

    def remove(self, key: str, now: float) -> None:
        """The offer was withdrawn."""
        self.own.discard(key)
        self.deferred.pop(key, None)
        if self.offers.pop(key, None) is not None and self.deferred:
            key, candidate = next(iter(self.deferred.items()))
            del self.deferred[key]
            self.offers[key] = Offer(candidate, now)

    def due(self, now: float) -> list[Offer]:
        """Offers to dial now, ``--peer`` first."""
        ready = [o for o in self.offers.values() if o.due_at <= now and not o.is_dialling]
        return sorted(ready, key=lambda offer: offer.candidate.found_by is not FoundBy.PEER)

    def next_due(self) -> float | None:
        return min((o.due_at for o in self.offers.values() if not o.is_dialling), default=None)

    def tried(self, key: str, now: float, *, node: NodeId | None) -> None:
        """A dial ended; ``node`` is who answered, None if nobody did."""
        offer = self.offers.get(key)
        if offer is None:
            return
        offer.is_dialling = False
        offer.node = node or offer.node
        delay = min(timing.CANDIDATE_RETRY * 2 ** min(offer.tries, 8), timing.CANDIDATE_RETRY_MAX)
        offer.tries += 1
        offer.due_at = now + delay

    def is_myself(self, key: str) -> None:
        """This candidate is this very process: never dial it again."""
        self.offers.pop(key, None)
        self.own.add(key)

    def pending(self) -> bool:
        """Is any candidate being dialled, or never dialled yet?"""
        return any(offer.is_dialling or not offer.tries for offer in self.offers.values())

    def tried_addresses(self) -> tuple[str, ...]:
        """For people: what was tried, and where it came from."""
        return tuple(
            f"{address} ({offer.candidate.found_by})"
            for offer in self.offers.values()
            for address in offer.candidate.addresses
        )
