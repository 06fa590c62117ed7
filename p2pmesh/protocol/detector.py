"""Evidence: what a monitor does when a ring neighbour falls silent.

Silence alone is weak and waiting for it is slow, so a monitor that stops hearing
a peer *dials it afresh*: the dial asks the peer's kernel, and its answer
separates cases that look the same from above.

    what the dial says                         evidence      then
    refused twice, at least 30 ms apart        refused       accuse, runs 250 ms
      (or another identity answers there)
    no answer in 1.5 s, or unreachable         unreachable   accuse, runs 1 s
      for 1.5 s
    accepted, but no handshake in 1.5 s        stalled       flag; accuse 15 s after
      (or accepted and dropped for 1.5 s)                    the last byte, runs 1 s
    it has no address                          stalled       accuse 15 s after the
                                                             last byte, runs 1 s
    stalled, and its links ended without a     refused       accuse, runs 250 ms
      goodbye at two monitors
    our own error (EMFILE …)                   none          dial again in 1 s

A dial is evidence only at an address where this monitor has completed a
handshake with this very life: 172.17.0.1 exists on every docker host.  Elsewhere
everything but an acceptance asks as ``unreachable`` and runs 3 s.

Measured on Linux: after ``kill -9`` a peer reads EOF within a millisecond, but
half of the *immediate* re-dials were still accepted; hence the gap, and hence
only a completed handshake is life.

This file is one peer's *case* at one monitor.  What others make of an accusation
is ``suspicion``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import DialOutcome, Evidence, Life, NodeId


class Stage(Enum):
    PROBING = "probing"  # a dial is under way, or its handshake
    WAITING = "waiting"  # until the next dial
    ACCUSED = "accused"  # the question is out


@dataclass(frozen=True, slots=True)
class Probe:
    """Dial the peer now; report ``dial_failed``, ``accepted_in_vain`` or ``alive``."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Call ``wake`` at this time."""

    at: float


@dataclass(frozen=True, slots=True)
class Accuse:
    """Ask everyone: is this peer gone?  ``runs`` seconds until it stands."""

    evidence: Evidence
    runs: float


@dataclass(frozen=True, slots=True)
class FlagStalled:
    """Say that its kernel answers and its process does not; wake at ``at``."""

    at: float


Step: TypeAlias = Probe | Wait | Accuse | FlagStalled


@dataclass(slots=True)
class Case:
    """One silent peer, as one monitor investigates it."""

    life: Life
    opened_at: float
    heard_at: float  # the last byte from this peer
    met: bool  # the dialled address is where this life shook hands with me
    ended: bool = False  # its link ended without a goodbye, and none came since
    stage: Stage = Stage.PROBING
    probed_at: float = 0.0
    refusals: int = 0
    stalled: bool = False
    accusations: int = 0
    unanswered_since: float | None = None  # the host, or the way to it
    dropped_since: float | None = None
    drops: int = 0


class Detector:
    """The open cases of one monitor."""

    def __init__(self) -> None:
        self.cases: dict[NodeId, Case] = {}

    def open(
        self, peer: NodeId, life: Life, now: float, *, heard_at: float, met: bool, ended: bool
    ) -> Step | None:
        """A peer is silent, or its link ended without a goodbye.  None: known."""
        case = self.cases.get(peer)
        if case is not None:
            case.ended |= ended
            return None
        self.cases[peer] = Case(life, now, heard_at, met, ended, probed_at=now)
        return Probe()

    def dial_failed(self, peer: NodeId, outcome: DialOutcome, now: float) -> Step | None:
        """The probe's dial brought no connection."""
        case = self._probing(peer)
        if case is None:
            return None
        match outcome:
            case DialOutcome.LOCAL_ERROR:
                case.stalled = False  # nothing is known of it now
                return self._wait(case, now + 1.0)
            case DialOutcome.REFUSED:
                return self._refused(case, now)
            case DialOutcome.TIMEOUT | DialOutcome.UNREACHABLE:
                return self._unanswered(case, now)

    def another_answered(self, peer: NodeId, now: float) -> Step | None:
        """Somebody else completed a handshake at the peer's address."""
        case = self._probing(peer)
        return None if case is None else self._refused(case, now)

    def accepted_in_vain(self, peer: NodeId, now: float) -> Step | None:
        """The connection opened, and no handshake followed in 1.5 s."""
        case = self._probing(peer)
        if case is None:
            return None
        case.dropped_since = None
        return self._stall(case, now)

    def dropped(self, peer: NodeId, now: float) -> Step | None:
        """The connection opened and broke before a handshake: a kernel that is
        tearing its process down.  It counts as nothing; dial again.  One that goes on
        for as long as a handshake may take is no kernel's last word."""
        case = self._probing(peer)
        if case is None:
            return None
        if case.dropped_since is None:
            case.dropped_since, case.drops = now, 0
        if now - case.dropped_since >= timing.DIAL_TIMEOUT:
            return self._stall(case, now)
        gap = min(timing.REDIAL_GAP * 2**case.drops, timing.DIAL_TIMEOUT)
        case.drops += 1
        return self._wait(case, now + gap)

    def nowhere_to_dial(self, peer: NodeId, now: float) -> Step | None:
        """The peer has no address.  Its silence runs the stall grace."""
        case = self._probing(peer)
        if case is None:
            return None
        grace_ends = case.heard_at + timing.STALL_GRACE
        if now < grace_ends:
            return self._wait(case, grace_ends)
        return self._accuse(case, Evidence.STALLED)

    def kernel_answers(self, peer: NodeId, now: float) -> Step | None:
        """The peer's kernel acknowledged bytes on the silent link: whatever the
        dial says, the host is there and the process exists."""
        case = self.cases.get(peer)
        if case is None:
            return None
        if case.stage is Stage.ACCUSED:
            case.accusations -= 1  # it was not said
        return self._stall(case, now)

    def ended_for_all(self, peer: NodeId) -> Step | None:
        """As many monitors lost their links to it as convict: a kernel closed them, and
        who accepts at its address does so for a process that is gone."""
        case = self.cases.get(peer)
        if case is None or not (case.ended and case.stalled) or case.stage is Stage.ACCUSED:
            return None
        self._accuse(case, Evidence.REFUSED)
        return Accuse(Evidence.REFUSED, timing.REFUSED_SUSPICION)

    def wake(self, peer: NodeId, now: float, *, met: bool) -> Step | None:
        """A ``Wait``, ``FlagStalled`` or rest after an answer is over."""
        case = self.cases.get(peer)
        if case is None or case.stage is not Stage.WAITING:
            return None
        if case.stalled and now >= case.heard_at + timing.STALL_GRACE:
            return self._accuse(case, Evidence.STALLED)
        case.stage, case.probed_at, case.met = Stage.PROBING, now, met
        return Probe()

    def answered(self, peer: NodeId, now: float) -> Step | None:
        """My accusation was refuted or vouched against, yet I still hear nothing:
        ask again after 3 s, doubling to 60 s."""
        case = self.cases.get(peer)
        if case is None or case.stage is not Stage.ACCUSED:
            return None
        case.heard_at = now
        case.stalled = case.ended = False
        rest = timing.REACCUSE_AFTER * 2 ** min(case.accusations - 1, 8)
        return self._wait(case, now + min(rest, timing.REACCUSE_MAX))

    def close(self, peer: NodeId) -> Case | None:
        """The peer was heard, failed, left or changed its life."""
        return self.cases.pop(peer, None)

    # --- private ----------------------------------------------------------------

    def _probing(self, peer: NodeId) -> Case | None:
        case = self.cases.get(peer)
        return case if case is not None and case.stage is Stage.PROBING else None

    def _refused(self, case: Case, now: float) -> Step:
        case.unanswered_since = case.dropped_since = None
        case.refusals += 1
        if case.refusals < 2:
            return self._wait(case, now + timing.REDIAL_GAP)
        return self._accuse(case, Evidence.REFUSED)

    def _unanswered(self, case: Case, now: float) -> Step:
        """Unreachable is said at once by a kernel without a route, which may come back."""
        case.refusals = 0
        case.dropped_since = None
        if case.unanswered_since is None:
            case.unanswered_since = case.probed_at
        answer_by = case.unanswered_since + timing.DIAL_TIMEOUT
        if now < answer_by - 0.001:
            return self._wait(case, answer_by)
        return self._accuse(case, Evidence.UNREACHABLE)

    def _stall(self, case: Case, now: float) -> Step:
        case.refusals = 0
        case.unanswered_since = None
        case.stalled = True
        case.stage = Stage.WAITING
        grace_ends = case.heard_at + timing.STALL_GRACE
        return FlagStalled(max(now, min(now + timing.STALL_RENEWAL, grace_ends)))

    def _wait(self, case: Case, until: float) -> Wait:
        case.stage = Stage.WAITING
        return Wait(until)

    def _accuse(self, case: Case, evidence: Evidence) -> Accuse:
        case.stage = Stage.ACCUSED
        case.accusations += 1
        case.refusals = 0
        case.unanswered_since = case.dropped_since = None
        if evidence is Evidence.STALLED:
            return Accuse(evidence, timing.SILENT_SUSPICION)
        if not case.met:
            return Accuse(Evidence.UNREACHABLE, timing.UNMET_SUSPICION)
        if evidence is Evidence.REFUSED:
            return Accuse(evidence, timing.REFUSED_SUSPICION)
        return Accuse(evidence, timing.SILENT_SUSPICION)
