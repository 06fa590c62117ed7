"""The seeking desk: whom to dial, of those offered and those that failed.

    offered ─► candidate ─┬─ a member already: spared
                          └─ dialled, an address after the other ─► tried, again later
    failed  ─► addresses kept ─► one of them dialled now and then, while anyone is failed

A dial teaches both sides, so whoever discovers somebody dials; a member waits a moment,
so that a newcomer comes first.

Not here: what is said once somebody answers (``joining``), links to members
(``neighbours``), and how often a candidate is tried (``candidates``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.candidates import Candidates, Offer
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.members import Change, Tombstone
from p2pmesh.protocol.records import SignedRecord
from p2pmesh.protocol.types import Alone, Candidate, DialOutcome, FoundBy, NodeId

_AT_ONCE: Final = 3  # candidates that an unstamped node dials together; a member: one
_NEXT_AFTER: Final = 0.1  # then it is looked again who became a member meanwhile
#: Of dials, as people read them.
_OUTCOMES: Final = {
    DialOutcome.REFUSED: "refused",
    DialOutcome.TIMEOUT: "no answer",
    DialOutcome.UNREACHABLE: "unreachable",
    DialOutcome.LOCAL_ERROR: "",
}
_MET_REST: Final = 1.0  # a member that met one: whom that one knows is known soon


class Seeking:
    """Whom this node looks for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.candidates = Candidates()
        self._failed_addresses: dict[NodeId, tuple[str, ...]] = {}
        self._looks_at = 0.0  # no earlier

    def start(self) -> None:
        core = self._core
        core.timers.set("lonely", None, core.at.now + timing.ALONE_WARNING_AFTER)
        self._arm_candidates()

    def lonely_due(self) -> None:
        """Alone for 10 s: say what was tried."""
        if not self._core.links_up and self._core.view.alive_count <= 1:
            self._core.act(Alone(tried=self.candidates.tried_addresses()))

    # --- candidates -------------------------------------------------------------------

    def candidate_found(self, candidate: Candidate) -> None:
        """An unstamped node dials at once; a member lets a newcomer come first."""
        core = self._core
        delay = 0.0
        if core.life is not None and candidate.found_by is not FoundBy.PEER:
            delay = self._newcomers_turn()
        if not self.candidates.add(candidate, core.at.now, delay):
            core.count("candidate_known_or_deferred")
        offer = self.candidates.offers.get(candidate.key)
        if offer is not None and not offer.is_dialling:
            at = max(offer.due_at, core.at.now, self._looks_at)
            core.timers.set_earlier("candidates", None, at)

    def _newcomers_turn(self) -> float:
        """How long a member leaves it to others to dial."""
        return self._core.rng.uniform(timing.NEWCOMER_DIAL_MIN, timing.NEWCOMER_DIAL_MAX)

    def joined(self) -> None:
        """I am a member now, and those found before may be known to others."""
        self.candidates.wait(self._core.at.now, self._newcomers_turn)

    def candidate_lost(self, key: str) -> None:
        self.candidates.remove(key, self._core.at.now)
        self._arm_candidates()

    def dial_candidates(self) -> None:
        """A few at a time: where hundreds start together, most become members before
        they are dialled."""
        core = self._core
        now = core.at.now
        at_once = _AT_ONCE if core.life is None else 1
        room = at_once - self._under_way()
        if now >= self._looks_at:
            self._looks_at = now + _NEXT_AFTER if room <= 0 else self._dial_due(room)
        self._arm_candidates()

    def _dial_due(self, room: int) -> float:
        """Dial so many of those that are due; when to look again."""
        core = self._core
        now = core.at.now
        lived_at: frozenset[str] | None = None
        for offer in self.candidates.due(now, core.rng):
            candidate = offer.candidate
            if lived_at is None:
                lived_at = self._members_addresses()
            if self._is_member(offer, lived_at):
                self.candidates.spare(candidate.key, now)
                continue
            if room == 0:
                return now + _NEXT_AFTER
            turn_at = core.lateness.turn(now) if core.life is not None else now
            if turn_at > now:
                return turn_at
            attempt = core.connections.attempt(
                Purpose.CANDIDATE, candidate.key, candidate.addresses, candidate.found_by
            )
            if attempt is None:  # offered, withdrawn and offered again: the first dial lasts
                offer.due_at = now + timing.CANDIDATE_RETRY
            else:
                offer.is_dialling, offer.due_at = True, now
                room -= 1
                self._stagger(attempt)
        return now

    def _under_way(self) -> int:
        """Dials that others wait for: begun just now, or answered by a kernel lately."""
        core = self._core
        under_way = 0
        for offer in self.candidates.dialling():
            attempt = core.connections.attempts.get((Purpose.CANDIDATE, offer.candidate.key))
            if attempt is not None:
                patience = timing.DIAL_TIMEOUT if attempt.accepted else timing.DIAL_STAGGER
                under_way += core.at.now < offer.due_at + patience
        return under_way

    def _members_addresses(self) -> frozenset[str]:
        """Where other live members are."""
        core = self._core
        if core.life is None:
            return frozenset()
        return frozenset(
            address
            for held in core.view.all_alive()
            if held.id != core.me
            for address in held.record.addresses
        )

    def _is_member(self, offer: Offer, lived_at: frozenset[str]) -> bool:
        """Is who is offered a live member already?  Its addresses decide, so that a
        lying advertisement keeps nobody from being dialled."""
        core = self._core
        if core.life is None:
            return False
        if offer.node is not None and core.view.alive(offer.node) is not None:
            return True
        return not lived_at.isdisjoint(offer.candidate.addresses)

    def _stagger(self, attempt: Attempt) -> None:
        if attempt.waiting:
            self._core.timers.set(
                "stagger",
                (attempt.purpose, attempt.target),
                self._core.at.now + timing.DIAL_STAGGER,
            )

    def stagger_due(self, key: tuple[Purpose, NodeId | str]) -> None:
        """Dial the attempt's next address beside the first."""
        attempt = self._core.connections.attempts.get(key)
        if attempt is not None:
            self._core.connections.dial_next(attempt)
            self._stagger(attempt)

    def _arm_candidates(self) -> None:
        due = self.candidates.next_due()
        if due is not None:
            self._core.timers.set("candidates", None, max(due, self._core.at.now, self._looks_at))

    def candidate_tried(self, attempt: Attempt, node: NodeId | None) -> None:
        assert isinstance(attempt.target, str)
        now = self._core.at.now
        outcome = "" if node is not None else _OUTCOMES[attempt.outcome]
        if node is None and attempt.accepted:
            outcome = "something answers, but not as this mesh does"
        self.candidates.tried(attempt.target, now, node=node, outcome=outcome)
        if node is not None and self._core.life is not None:
            self._looks_at = now + _MET_REST
        self._arm_candidates()

    # --- healing ----------------------------------------------------------------------

    def settle(self, changes: Iterable[Changed]) -> None:
        """Remember where failed members were; forget it when they are back or left."""
        for node, change, before in changes:
            if not isinstance(node, bytes):
                continue
            if change is Change.FAILED:
                if isinstance(before, SignedRecord):
                    if len(self._failed_addresses) < limits.FAILED_ADDRESSES_MAX:
                        self._failed_addresses[node] = before.record.addresses
                    self._arm_heal(first=True)
            elif self._failed_addresses:
                self._failed_addresses.pop(node, None)

    def _arm_heal(self, *, first: bool = False) -> None:
        """The more live, the longer each waits.  The first time anything up to that: all
        of a side begin at once, and none may be late."""
        core = self._core
        if self._failed_addresses and not core.timers.is_set("heal", None):
            pause = max(timing.HEAL_INTERVAL, core.view.alive_count / 10)
            share = core.rng.uniform(0.0 if first else 0.5, 1.0)
            core.timers.set("heal", None, core.at.now + pause * share)

    def heal(self) -> None:
        """While anyone is failed, dial one of them now and then."""
        core = self._core
        for node in tuple(self._failed_addresses):
            if not isinstance(core.view.nodes.get(node), Tombstone):
                del self._failed_addresses[node]
        if self._failed_addresses:
            node = core.rng.choice(sorted(self._failed_addresses))
            attempt = core.connections.attempt(
                Purpose.HEAL, node, self._failed_addresses[node], FoundBy.GOSSIP
            )
            if attempt is not None:
                self._stagger(attempt)
        self._arm_heal()
