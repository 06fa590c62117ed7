"""Candidate addresses: what to dial, when, and when to stop.

mDNS, the runtime directory, ``--peer`` and the last addresses of failed members
offer addresses.  None of them is a member until it proved itself on a link.  A
``--peer`` is dialled for ever while no live member has it (1 s, doubling to
30 s), the others until their offer is withdrawn.

When the table is full, a place goes from one that was dialled to one that was not,
and then in turn; ``--peer`` keeps its own.  The newest wait (*deferred*) while
nobody was dialled yet, and one not yet dialled is never dropped for another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import Candidate, FoundBy, NodeId

#: Due times are rounded up to this many seconds, so that hundreds of candidates are
#: looked at a few times a second and not one by one: what is due at once stays so.
_GRAIN: Final = 0.05
_RETRY_GRAIN: Final = 0.25


@dataclass(slots=True)
class Offer:
    """One candidate and its dialling state."""

    candidate: Candidate
    due_at: float  # while it is dialled: since when
    tries: int = 0
    is_dialling: bool = False
    node: NodeId | None = None  # who answered there last
    outcome: str = ""  # for people: what else the last dial met


class Candidates:
    """All offered addresses."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}
        self.deferred: dict[str, Offer] = {}  # offers that wait for a place
        self.own: set[str] = set()  # keys that turned out to be this very process
        # Was it looked for one that was dialled, and found none since?  A thousand that
        # start together would look at a full table for each of the others.
        self._all_new = False  # among the offers
        self._deferred_all_new = False

    def add(self, candidate: Candidate, now: float, after: float = 0.0) -> bool:
        """Dial it after so many seconds.  False: known with these addresses, or deferred
        (the table is full)."""
        key = candidate.key
        due_at = _rounded(now + after, _GRAIN) if after else now
        if key in self.own or not candidate.addresses:
            return False
        known = self.offers.get(key) or self.deferred.get(key)
        if known is not None:
            if known.candidate.addresses == candidate.addresses:
                return False
            known.candidate, known.due_at, known.tries = candidate, due_at, 0
            return key in self.offers
        made = Offer(candidate, due_at)
        if len(self.offers) >= limits.CANDIDATES_MAX:
            dialled = None if self._all_new else self._most_dialled()
            if dialled is None:
                self._all_new = True
                self._defer(made)
                return False
            del self.offers[dialled.candidate.key]
            self._defer(dialled)
        self.offers[key] = made
        return True

    def remove(self, key: str, now: float) -> None:
        """The offer was withdrawn."""
        self.own.discard(key)
        if self.deferred.pop(key, None) is not None:
            self._deferred_all_new = False
        self.offers.pop(key, None)
        self._fill(now)

    def due(self, now: float, rng: random.Random) -> list[Offer]:
        """Offers to dial now: ``--peer`` first, then what was dialled least.  Otherwise in
        any order: hundreds that start together shall not all dial the same few."""
        ready = [o for o in self.offers.values() if o.due_at <= now and not o.is_dialling]
        rng.shuffle(ready)
        return sorted(ready, key=lambda o: (o.candidate.found_by is not FoundBy.PEER, o.tries))

    def next_due(self) -> float | None:
        return min((o.due_at for o in self.offers.values() if not o.is_dialling), default=None)

    def tried(self, key: str, now: float, *, node: NodeId | None, outcome: str = "") -> None:
        """A dial ended; ``node`` is who answered, None if nobody did, but for what
        ``outcome`` says."""
        offer = self.offers.get(key)
        if offer is None:
            return
        offer.is_dialling = False
        offer.node = node or offer.node
        offer.outcome = outcome
        delay = min(timing.CANDIDATE_RETRY * 2 ** min(offer.tries, 8), timing.CANDIDATE_RETRY_MAX)
        offer.tries += 1
        self._rest(offer, now, delay)

    def spare(self, key: str, now: float) -> None:
        """There is nothing to dial: a live member has this address."""
        offer = self.offers.get(key)
        if offer is not None:
            offer.tries = 1  # once it has not, it is dialled again as at first
            self._rest(offer, now, timing.CANDIDATE_RETRY_MAX)

    def is_myself(self, key: str, now: float) -> None:
        """This candidate is this very process: never dial it again."""
        self.offers.pop(key, None)
        self.own.add(key)
        self._fill(now)

    def wait(self, now: float, turn: Callable[[], float]) -> None:
        """What was never dialled may become known otherwise: so long each, but for
        ``--peer``."""
        for offer in (*self.offers.values(), *self.deferred.values()):
            is_dialled = offer.is_dialling or offer.tries > 0
            if not is_dialled and offer.candidate.found_by is not FoundBy.PEER:
                offer.due_at = max(offer.due_at, _rounded(now + turn(), _GRAIN))

    def dialling(self) -> list[Offer]:
        """Those that are being dialled."""
        return [offer for offer in self.offers.values() if offer.is_dialling]

    def pending(self) -> bool:
        """Is any candidate being dialled, or never dialled yet?"""
        return any(offer.is_dialling or not offer.tries for offer in self.offers.values())

    def tried_addresses(self) -> tuple[str, ...]:
        """For people: what was tried, where it came from, and what it met."""
        return tuple(
            f"{address} ({', '.join(filter(None, (offer.candidate.found_by, offer.outcome)))})"
            for offer in self.offers.values()
            for address in offer.candidate.addresses
        )

    # --- private ----------------------------------------------------------------

    def _most_dialled(self) -> Offer | None:
        return max(filter(_may_wait, self.offers.values()), key=_tries, default=None)

    def _rest(self, offer: Offer, now: float, delay: float) -> None:
        """Look at it again after so long; meanwhile its place may be another's."""
        offer.due_at = _rounded(now + delay, _RETRY_GRAIN)
        self._all_new = False
        if self.deferred and _may_wait(offer):
            del self.offers[offer.candidate.key]
            self._fill(now)
            self._defer(offer)

    def _fill(self, now: float) -> None:
        """Free places go to those that wait, least dialled first."""
        self._all_new = False
        while self.deferred and len(self.offers) < limits.CANDIDATES_MAX:
            offer = min(self.deferred.values(), key=_tries)
            del self.deferred[offer.candidate.key]
            offer.due_at = max(offer.due_at, now)
            self.offers[offer.candidate.key] = offer

    def _defer(self, offer: Offer) -> bool:
        """False: there is no room to wait, and nobody who was dialled gives way."""
        if len(self.deferred) >= limits.CANDIDATES_MAX:
            if self._deferred_all_new and not offer.tries:
                return False
            most = max((offer, *self.deferred.values()), key=_tries)
            if most is offer:
                self._deferred_all_new = not offer.tries
                return False
            del self.deferred[most.candidate.key]
        self.deferred[offer.candidate.key] = offer
        self._deferred_all_new = self._deferred_all_new and not offer.tries
        return True


def _rounded(at: float, grain: float) -> float:
    return ceil(at / grain) * grain


def _tries(offer: Offer) -> int:
    return offer.tries


def _may_wait(offer: Offer) -> bool:
    """It was dialled, and is not what somebody insists on."""
    return (
        offer.tries > 0 and not offer.is_dialling and offer.candidate.found_by is not FoundBy.PEER
    )
