"""The monitoring desk: silence, and what this node does about it.

It notices when a ring neighbour falls silent or its link breaks, lets the detector's
case decide what to ask the peer's kernel, and accuses (``questions``) where the kernel
says that it is gone.

    bytes stop ──► case (detector) ──► question ──► everyone
                        ▲                             │
                        └───────── answered ◄─────────┘
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.detector import Accuse, Detector, FlagStalled, Probe, Stage, Step, Wait
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.members import Change, Claim, Tombstone
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.records import SignedRecord
from p2pmesh.protocol.session import NOT_P2PMESH, OTHER_KEY
from p2pmesh.protocol.types import AskUnacked, DialOutcome, Evidence, FoundBy, NodeId

_SWEEP_MIN: Final = 8
_SWEEP_MAX: Final = 64
#: Members that are no ring neighbours are accused within this time, at random.
_SPREAD: Final = 1.0


class Monitoring:
    """Who this node watches, and what it makes of silence."""

    def __init__(self, core: Core, neighbours: Neighbours, questions: Questions) -> None:
        self._core = core
        self._neighbours = neighbours
        self._questions = questions
        self.detector = Detector()
        self._pending: dict[NodeId, Accuse] = {}
        self._swept_at = -timing.DIAL_TIMEOUT
        self._sweep_size = _SWEEP_MIN

    # --- links come and go ------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A member completed a handshake and HELLO."""
        self._neighbours.link_up(link)
        self.heard(link)
        self._neighbours.claim_link(link)

    def link_ended(self, link: Link, *, orderly: bool) -> None:
        """The link in use is gone: an end without CLOSE is evidence on a ring link."""
        peer = link.peer
        if peer is None or self._core.view.alive(peer) is None:
            return
        if link.is_ring and not orderly:
            self._investigate(peer, heard_at=self._watched_silence(link), ended=True)
        self._neighbours.link_ended(peer)

    def connect_failed(self, peer: NodeId, outcome: DialOutcome) -> None:
        """No address of a wanted member brought a link.  Unless it was refused that may be
        this process's own lateness."""
        is_wanted = self._neighbours.connect_failed(peer)
        is_own = outcome is DialOutcome.LOCAL_ERROR or (
            outcome is not DialOutcome.REFUSED and self._core.is_late
        )
        if is_wanted and not is_own:
            self._investigate(peer, heard_at=self._core.at.now)

    # --- silence ----------------------------------------------------------------------

    def silence_due(self) -> None:
        """Some ring link's silence limit may be reached; look at them all."""
        core = self._core
        now = core.at.now
        earliest = inf
        for peer, link in tuple(core.links_up.items()):
            if not link.is_ring:
                continue
            if core.is_late:
                link.heard_at = now
            due = link.heard_at + link.silence_after
            if now >= due - 0.001:
                self._investigate(peer, heard_at=self._watched_silence(link))
                due = now + link.silence_after
            if due < earliest:
                earliest = due
        if earliest != inf:
            core.timers.set("silence", None, earliest)

    def slept(self) -> None:
        """This process did not run for so long that others may have buried it: what
        I investigated is void, and every peer has to speak, or be dialled, anew."""
        core = self._core
        core.lateness.note(core.at.now)
        for peer in tuple(self.detector.cases):
            self._close(peer)
        for link in core.links_up.values():
            link.heard_at = core.at.now
            core.tell(link, wire.Ping(0))
        self._neighbours.slept()

    @property
    def is_asking(self) -> bool:
        """Is anybody under investigation or in question?"""
        return bool(self.detector.cases or self._questions.suspicions.open)

    def pong(self, link: Link) -> None:
        if link.pinged_at is not None:
            link.rtt = self._core.at.now - link.pinged_at
        self.heard(link, pong=True)

    def heard(self, link: Link, *, pong: bool = False) -> None:
        """Bytes of a peer: the answer, if it is under investigation or in question."""
        peer = link.peer
        assert peer is not None
        case = self.detector.cases.get(peer)
        if case is not None:
            self._sweep_size = _SWEEP_MIN
            if case.stalled:
                self._questions.flag(peer, case.life, stalled=False)
            if case.stage is not Stage.ACCUSED:
                self._close(peer)
        self._questions.answer_for(peer, link, pong=pong)
        if case is not None and peer not in self._questions.suspicions.open:
            self._close(peer)

    def follow_questions(self) -> None:
        """What was said of those whom I investigate.  My accusation was answered: that is
        over where I hear the peer, else I ask again later.  Or others lost their links to
        it, too."""
        questions = self._questions
        answered, questions.answered = questions.answered, []
        for peer in answered:
            if peer in self._core.links_up and self._core.hears(peer):
                self._close(peer)
            else:
                self._step(peer, self.detector.answered(peer, self._core.at.now))
        while questions.ended:
            peer = questions.ended.pop()
            self._step(peer, self.detector.ended_for_all(peer))

    # --- the case -----------------------------------------------------------------------

    def probe_failed(self, attempt: Attempt) -> None:
        """The probe's dial brought no link."""
        peer = attempt.target
        assert isinstance(peer, bytes)
        now = self._core.at.now
        self._core.timers.cancel("probe", peer)
        if attempt.accepted:
            self._step(peer, self.detector.dropped(peer, now))
        else:
            self._step(peer, self.detector.dial_failed(peer, attempt.outcome, now))

    def probe_broken(self, peer: NodeId, reason: str) -> None:
        """Somebody answered the probe who cannot be the peer."""
        if reason in (OTHER_KEY, NOT_P2PMESH):
            self.another_answered(peer)

    def another_answered(self, peer: NodeId) -> None:
        self._step(peer, self.detector.another_answered(peer, self._core.at.now))

    def probe_due(self, peer: NodeId) -> None:
        """The probe's time is over: accepted, and nothing followed?"""
        core = self._core
        attempt = core.connections.attempts.get((Purpose.PROBE, peer))
        if attempt is None or not attempt.accepted:
            return
        if core.is_late:  # perhaps it followed, and is not read yet
            core.timers.set("probe", peer, core.at.now + timing.DIAL_TIMEOUT)
            return
        core.connections.finish(attempt)
        for number in tuple(attempt.links):
            core.connections.close(core.connections.links[number], "too late")
        self._step(peer, self.detector.accepted_in_vain(peer, core.at.now))

    def case_due(self, peer: NodeId) -> None:
        met = self._neighbours.met_address(peer) is not None
        self._step(peer, self.detector.wake(peer, self._core.at.now, met=met))

    def accuse_due(self, peer: NodeId) -> None:
        """The kernel said nothing against it: ask everyone."""
        accuse = self._pending.pop(peer, None)
        if accuse is not None:
            self._accuse(peer, accuse)

    def kernel_unacked(self, link: Link, unacked: int) -> None:
        """What was written to a silent peer, a PING among it, is acknowledged."""
        peer = link.peer
        if unacked == 0 and peer is not None and self._pending.pop(peer, None) is not None:
            self._step(peer, self.detector.kernel_answers(peer, self._core.at.now))

    def _investigate(self, peer: NodeId, *, heard_at: float, ended: bool = False) -> None:
        core = self._core
        held = core.view.alive(peer)
        if held is None or core.has_left:
            return
        met = self._neighbours.met_address(peer) is not None
        step = self.detector.open(
            peer, held.version.life, core.at.now, heard_at=heard_at, met=met, ended=ended
        )
        self._step(peer, step)
        if step is not None and self._is_cut_off():
            again = max(core.at.now + 0.01, self._swept_at + timing.DIAL_TIMEOUT)
            core.timers.set_earlier("sweep", None, again)

    def _watched_silence(self, link: Link) -> float:
        """When the silence began that counts against its peer.  A link that was idle off the
        rings until just now was silent because nothing was to be said on it."""
        return max(link.heard_at, self._core.at.now - link.silence_after)

    def _step(self, peer: NodeId, step: Step | None) -> None:
        core = self._core
        match step:
            case Probe():
                self._probe(peer)
            case Wait(at):
                core.timers.set("case", peer, at)
            case FlagStalled(at):
                core.timers.set("case", peer, at)
                case = self.detector.cases[peer]
                self._questions.flag(peer, case.life, stalled=True, ended=case.ended)
            case Accuse() as accuse:
                link = core.links_up.get(peer)
                if link is not None and accuse.evidence is not Evidence.STALLED:
                    core.act(AskUnacked(link.id))
                    self._accuse_later(peer, accuse, 0.0)
                elif (
                    accuse.evidence is Evidence.UNREACHABLE and peer not in self._neighbours.targets
                ):
                    # Hundreds who lost their half of the mesh find out in one moment:
                    # one of them is to ask, and the others to hear it.
                    self._accuse_later(peer, accuse, core.rng.uniform(0.0, _SPREAD))
                else:
                    self._accuse(peer, accuse)
            case None:
                pass

    def _accuse_later(self, peer: NodeId, accuse: Accuse, delay: float) -> None:
        self._pending[peer] = accuse
        self._core.timers.set("accuse", peer, self._core.at.now + delay)

    def _probe(self, peer: NodeId) -> None:
        core = self._core
        now = core.at.now
        link = core.links_up.get(peer)
        if link is not None:
            core.tell(link, wire.Ping(0))
            link.pinged_at = now
        addresses = self._neighbours.addresses(peer)[:1]
        if not addresses:
            self._step(peer, self.detector.nowhere_to_dial(peer, now))
            return
        attempt = core.connections.attempt(
            Purpose.PROBE,
            peer,
            addresses,
            FoundBy.GOSSIP,
            replaces=link.session.handshake_hash if link is not None else None,
        )
        if attempt is None:
            core.timers.set("case", peer, now + 1.0)
            self.detector.dial_failed(peer, DialOutcome.LOCAL_ERROR, now)
        else:
            core.timers.set("probe", peer, now + timing.DIAL_TIMEOUT)

    def _accuse(self, peer: NodeId, accuse: Accuse) -> None:
        core = self._core
        held = core.view.alive(peer)
        case = self.detector.cases.get(peer)
        if held is None or case is None or case.life != held.version.life:
            self._close(peer)
            return
        if core.is_late and accuse.evidence is not Evidence.REFUSED:
            self._close(peer)
            link = core.links_up.get(peer)
            if link is None:
                self._neighbours.connect(peer)
            else:
                link.heard_at = core.at.now
            return
        self._questions.ask(held, accuse.evidence, accuse.runs)

    def _close(self, peer: NodeId) -> None:
        self.detector.close(peer)
        self._pending.pop(peer, None)
        for kind in ("case", "accuse", "probe"):
            self._core.timers.cancel(kind, peer)
        attempt = self._core.connections.attempts.get((Purpose.PROBE, peer))
        if attempt is not None:
            self._core.connections.finish(attempt)
            for number in tuple(attempt.links):
                link = self._core.connections.links[number]
                if not link.is_up:
                    self._core.connections.close(link, "answered")

    def _is_cut_off(self) -> bool:
        """Half of my ring links lost."""
        lost = sum(1 for node in self._neighbours.targets if node in self.detector.cases)
        return lost >= 2 and lost * 2 >= len(self._neighbours.targets)

    def sweep(self) -> None:
        """I am cut off: dial members at random to find the mesh, or to bury the other
        side, whose monitors are all on the other side too.  A few at first: hundreds do
        so in one moment; twice as many each time that nobody answers."""
        core = self._core
        if not self._is_cut_off():
            self._sweep_size = _SWEEP_MIN
            return
        unheard = [
            held.id
            for held in core.view.all_alive()
            if held.id != core.me
            and held.id not in core.links_up
            and held.id not in self.detector.cases
            and held.id not in self._questions.suspicions.open
        ]
        if len(unheard) > self._sweep_size:
            unheard = core.rng.sample(unheard, self._sweep_size)
        for peer in unheard:
            self._investigate(peer, heard_at=core.at.now)
        self._swept_at = core.at.now
        self._sweep_size = min(2 * self._sweep_size, _SWEEP_MAX)
        core.timers.set("sweep", None, core.at.now + timing.DIAL_TIMEOUT)

    def doubt(self) -> None:
        """Ask the kernels of those whom nobody has named since this process slept."""
        core = self._core
        for peer in sorted(key for key in core.view.hearsay if isinstance(key, bytes)):
            is_asked = peer in self.detector.cases or peer in self._questions.suspicions.open
            if not is_asked and len(self.detector.cases) < _SWEEP_MAX:
                self._investigate(peer, heard_at=core.at.now)
        if core.view.hearsay:
            core.timers.set("doubt", None, core.at.now + timing.DIAL_TIMEOUT)

    # --- settling ----------------------------------------------------------------------

    def settle(self, changes: Iterable[Changed]) -> None:
        """The view changed."""
        core = self._core
        for changed in changes:
            node = changed.key
            if isinstance(node, bytes):
                held = core.view.alive(node)
                if held is None:
                    self._gone(node, changed.change)
                else:
                    self._settle_live(held, changed.before)
                    if (
                        changed.change is Change.JOINED
                        and node not in self._questions.suspicions.open
                    ):
                        self._neighbours.join_rings(node)
        self.follow_questions()

    def _settle_live(self, held: SignedRecord, before: Claim | None) -> None:
        core, node = self._core, held.record.id
        known = before if isinstance(before, SignedRecord | Tombstone) else None
        is_new_life = known is None or known.version.life != held.version.life
        if is_new_life or isinstance(known, Tombstone):
            link = core.links_up.get(node)
            if link is not None and link.is_outbound:
                self._neighbours.note_met(node, link.address)
        if known is not None and is_new_life:
            self._questions.new_life(node)
            self._close(node)
        else:
            self._questions.refuted(held)

    def _gone(self, node: NodeId, change: Change) -> None:
        core = self._core
        self._questions.forget(node)
        self._close(node)
        self._neighbours.gone(node)
        link = core.links_up.get(node)
        if link is not None and change is Change.FAILED and not core.hears(node):
            core.connections.close(link, "failed")
            core.links_up.pop(node, None)
