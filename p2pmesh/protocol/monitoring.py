"""The monitoring desk: ring links, silence, probes, suspicion, verdicts.

It keeps links to the ring neighbours, notices when one falls silent or breaks,
lets the detector's case decide what to ask the peer's kernel, floods the question
that follows, answers others' questions, and passes the verdict on those that
stand unanswered.

    bytes stop ──► case (detector) ──► Question ──► everyone
                        ▲                             │ vouch · refutation · nothing
                        └──────── answered ◄──────────┴──► verdict
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
from p2pmesh.protocol.members import Change, Claim, Tombstone, verdict_version
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.records import SignedRecord
from p2pmesh.protocol.reporting import evidence_of, who
from p2pmesh.protocol.rings import POSITIONS
from p2pmesh.protocol.session import NOT_P2PMESH, OTHER_KEY
from p2pmesh.protocol.stamps import is_clock_set
from p2pmesh.protocol.suspicion import Heard, Suspicions, question_version
from p2pmesh.protocol.types import (
    AskUnacked,
    DialOutcome,
    Evidence,
    FoundBy,
    Life,
    MemberRecovered,
    MemberStalled,
    MemberSuspected,
    NodeId,
)

_SWEEP_MIN: Final = 8
_SWEEP_MAX: Final = 64
#: The higher id of two ring neighbours waits this long for the other's dial.
_YIELD: Final = 0.3
_UNLINKABLE_FOR: Final = 30.0
#: Members that are no ring neighbours are accused within this time, at random.
_SPREAD: Final = 1.0


class Monitoring:
    """Who this node watches, and what it makes of silence."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.detector = Detector()
        self.suspicions = Suspicions()
        self.stalls: dict[NodeId, dict[NodeId, tuple[int, float]]] = {}
        self.stalled_since: dict[NodeId, float] = {}
        self.targets: set[NodeId] = set()
        #: Where I completed a handshake with this life by dialling.
        self.met: dict[NodeId, tuple[Life, str]] = {}
        self._wanted_since: dict[NodeId, float] = {}
        self._unlinkable: dict[NodeId, float] = {}
        self._pending: dict[NodeId, Accuse] = {}
        self._rings_at = -timing.RING_SETTLE
        self._lagged_at = -timing.LAG_MEMORY
        self._swept_at = -timing.DIAL_TIMEOUT
        self._sweep_size = _SWEEP_MIN
        #: What I say is numbered on from the start of this process, so that it is above
        #: what my last life said, also where that life is still held.
        self._numbers = max(0, core.at.wall)

    # --- rings ----------------------------------------------------------------------

    def _on_rings(self, node: NodeId) -> None:
        """It is alive, and nobody asks whether it is gone."""
        self._core.rings.add(node)
        if self._unlinkable or self._core.rings.concerns(node):
            self.rings_changed()

    def _off_rings(self, node: NodeId) -> None:
        self._core.rings.remove(node)
        if self._unlinkable or self._core.rings.concerns(node):
            self.rings_changed()

    def rings_changed(self) -> None:
        self._core.timers.set_earlier(
            "rings", None, max(self._core.at.now, self._rings_at + timing.RING_SETTLE)
        )

    def follow_rings(self) -> None:
        """Link to whom my rings name now; tell the others that they are released."""
        core = self._core
        now = self._rings_at = core.at.now
        if core.life is None or core.has_left:
            return
        self._unlinkable = {n: until for n, until in self._unlinkable.items() if until > now}
        if self._unlinkable:  # then they are tried again
            core.timers.set_earlier("rings", None, min(self._unlinkable.values()))
        targets = {
            target
            for position in POSITIONS
            if (target := core.rings.at(core.me, position, self._unlinkable)) is not None
        }
        # A suspect is off the rings, but stays watched until the verdict.
        targets |= {node for node in self.targets if node in self.suspicions.open}
        for node in targets - self.targets:
            self._wanted_since[node] = now
        for node in self.targets - targets:
            self._wanted_since.pop(node, None)
        self.targets = targets
        for link in tuple(core.links_up.values()):
            if link.peer is not None and link.ring_mine != (link.peer in targets):
                self.claim_link(link)
        for node in sorted(targets):
            if node not in core.links_up:
                self.connect(node)

    def claim_link(self, link: Link) -> None:
        """Say whether my rings want this link, and watch it if either end's do."""
        assert link.peer is not None
        link.claim(mine=link.peer in self.targets)
        self._beat(link)
        self._watch(link)

    def beat_all(self) -> None:
        """The heartbeat round."""
        core = self._core
        interval = timing.PRESETS[core.config.preset].heartbeat_interval
        core.timers.set("beat", None, core.at.now + interval)
        if core.life is None:
            return
        beats: dict[bool, bytes] = {}
        for link in core.links_up.values():
            if link.is_ring:
                mine = link.ring_mine
                if mine not in beats:
                    beats[mine] = wire.encode(self._heartbeat(mine))
                link.say_encoded(beats[mine])
                core.touch(link)

    def heartbeat(self, link: Link, beat: wire.Heartbeat) -> None:
        theirs = bool(beat.flags & wire.HEARTBEAT_RING)
        if theirs != link.ring_theirs:
            link.claim(theirs=theirs)
            self._watch(link)

    def connect(self, peer: NodeId, *, at_once: bool = False) -> None:
        """Have a link to this member.  Of two ring neighbours the lower id dials
        first, so that they do not dial each other."""
        core = self._core
        held = core.view.alive(peer)
        if held is None or peer in core.links_up or peer == core.me:
            return
        if (Purpose.CONNECT, peer) in core.connections.attempts:
            return
        if not at_once and core.me > peer:
            core.timers.set_earlier("connect", peer, core.at.now + _YIELD)
            return
        attempt = core.connections.attempt(
            Purpose.CONNECT, peer, self.addresses(peer), FoundBy.GOSSIP
        )
        if attempt is not None and attempt.waiting:
            core.timers.set("stagger", (attempt.purpose, peer), core.at.now + timing.DIAL_STAGGER)

    def addresses(self, peer: NodeId) -> tuple[str, ...]:
        """Where to dial a member: where I met this life first, then its own word."""
        held = self._core.view.alive(peer)
        if held is None:
            return ()
        met = self.met_address(peer)
        own = held.record.addresses
        return own if met is None else (met, *(a for a in own if a != met))

    def met_address(self, peer: NodeId) -> str | None:
        life, address = self.met.get(peer, (None, None))
        held = self._core.view.alive(peer)
        return address if held is not None and held.version.life == life else None

    def connect_failed(self, peer: NodeId, outcome: DialOutcome) -> None:
        """No address of a wanted member brought a link: investigate, try again, and
        let the next member of that ring fill in after 3 s."""
        core = self._core
        now = core.at.now
        if core.view.alive(peer) is None or peer not in self.targets:
            return
        core.timers.set("connect", peer, now + 1.0)
        if now - self._wanted_since.get(peer, now) >= timing.RING_FILL_AFTER:
            self._unlinkable[peer] = now + _UNLINKABLE_FOR
            self.rings_changed()
        if outcome is not DialOutcome.LOCAL_ERROR:
            self._investigate(peer, heard_at=now)

    # --- links come and go ------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A member completed a handshake and HELLO."""
        peer = link.peer
        assert peer is not None
        self._unlinkable.pop(peer, None)
        self._wanted_since.pop(peer, None)
        if link.is_outbound:
            self.note_met(peer, link.address)
        self.heard(link)
        self.claim_link(link)

    def note_met(self, peer: NodeId, address: str) -> None:
        held = self._core.view.alive(peer)
        if held is not None:
            self.met[peer] = held.version.life, address

    def check(self, peer: NodeId) -> None:
        """Dial an inbound ring neighbour once: does its address work for me?"""
        core = self._core
        if peer in core.links_up and self.met_address(peer) is None:
            core.connections.attempt(Purpose.CHECK, peer, self.addresses(peer), FoundBy.GOSSIP)

    def link_ended(self, link: Link, *, orderly: bool) -> None:
        """The link in use is gone: an end without CLOSE is evidence on a ring link."""
        peer = link.peer
        if peer is None or self._core.view.alive(peer) is None:
            return
        if peer in self.targets:
            self._wanted_since.setdefault(peer, self._core.at.now)
        if link.is_ring and not orderly:
            self._investigate(peer, heard_at=link.heard_at)
        if peer in self.targets:
            self.connect(peer)

    # --- silence ----------------------------------------------------------------------

    def silence_due(self) -> None:
        """Some ring link's silence limit may be reached; look at them all."""
        core = self._core
        now = core.at.now
        has_lagged = self._has_lagged()
        earliest = inf
        for peer, link in tuple(core.links_up.items()):
            if not link.is_ring:
                continue
            if has_lagged:
                link.heard_at = now
            due = link.heard_at + link.silence_after
            if now >= due - 0.001:
                self._investigate(peer, heard_at=link.heard_at)
                due = now + link.silence_after
            if due < earliest:
                earliest = due
        if earliest != inf:
            core.timers.set("silence", None, earliest)

    def lagged(self) -> None:
        """This process was late: its own silence says nothing about others."""
        self._lagged_at = self._core.at.now

    def slept(self) -> None:
        """This process did not run for so long that others may have buried it: what
        I investigated is void, and every peer has to speak, or be dialled, anew."""
        core = self._core
        self.lagged()
        for peer in tuple(self.detector.cases):
            self._close(peer)
        for link in core.links_up.values():
            link.heard_at = core.at.now
            core.tell(link, wire.Ping(0))
        self._unlinkable.clear()
        self.rings_changed()

    @property
    def is_asking(self) -> bool:
        """Is anybody under investigation or in question?"""
        return bool(self.detector.cases or self.suspicions.open)

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
                self._flag(peer, case.life, stalled=False)
            if case.stage is not Stage.ACCUSED:
                self._close(peer)
        self._answer_for(peer, link, pong=pong)
        if case is not None and peer not in self.suspicions.open:
            self._close(peer)

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
        core.connections.finish(attempt)
        for number in tuple(attempt.links):
            core.connections.close(core.connections.links[number])
        self._step(peer, self.detector.accepted_in_vain(peer, core.at.now))

    def case_due(self, peer: NodeId) -> None:
        met = self.met_address(peer) is not None
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

    def _investigate(self, peer: NodeId, *, heard_at: float) -> None:
        core = self._core
        held = core.view.alive(peer)
        if held is None or core.has_left:
            return
        met = self.met_address(peer) is not None
        step = self.detector.open(peer, held.version.life, core.at.now, heard_at=heard_at, met=met)
        self._step(peer, step)
        if step is not None and self._is_cut_off():
            again = max(core.at.now + 0.01, self._swept_at + timing.DIAL_TIMEOUT)
            core.timers.set_earlier("sweep", None, again)

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
                self._flag(peer, case.life, stalled=True)
            case Accuse() as accuse:
                link = core.links_up.get(peer)
                if link is not None and accuse.evidence is not Evidence.STALLED:
                    core.act(AskUnacked(link.id))
                    self._accuse_later(peer, accuse, 0.0)
                elif accuse.evidence is Evidence.UNREACHABLE and peer not in self.targets:
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
        addresses = self.addresses(peer)[:1]
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
        if self._has_lagged() and accuse.evidence is not Evidence.REFUSED:
            self._close(peer)
            link = core.links_up.get(peer)
            if link is None:
                self.connect(peer, at_once=True)
            else:
                link.heard_at = core.at.now
            return
        self.question(self._make_question(held, accuse.evidence, accuse.runs), None)

    def _make_question(
        self, held: SignedRecord, evidence: str, runs: float, *, tombstone: bool = False
    ) -> wire.Question:
        return wire.Question(
            subject=held.id,
            life=held.version.life,
            incarnation=held.version.incarnation,
            evidence=evidence,
            accuser=self._core.me,
            number=self._next_number(),
            runs=int(runs * 1000),
            tombstone=tombstone,
        )

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
        lost = sum(1 for node in self.targets if node in self.detector.cases)
        return lost >= 2 and lost * 2 >= len(self.targets)

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
            and held.id not in self.suspicions.open
        ]
        if len(unheard) > self._sweep_size:
            unheard = core.rng.sample(unheard, self._sweep_size)
        for peer in unheard:
            self._investigate(peer, heard_at=core.at.now)
        self._swept_at = core.at.now
        self._sweep_size = min(2 * self._sweep_size, _SWEEP_MAX)
        core.timers.set("sweep", None, core.at.now + timing.DIAL_TIMEOUT)

    # --- questions, vouches, verdicts ---------------------------------------------------

    def question(
        self, question: wire.Question, source: Link | None, item: bytes | None = None
    ) -> None:
        """Somebody (perhaps I) asks whether a life is gone.  ``item`` is passed on as
        it came, with what a later version appended."""
        if self.suspicions.knows(question):
            return
        core = self._core
        held = core.view.alive(question.subject)
        if held is None or not core.view.is_alive(question.accuser):
            return
        if question_version(question) < (held.version.life, held.version.incarnation):
            if source is not None:
                core.tell(source, wire.News((held.item,)))
            return
        heard = self.suspicions.ask(question, core.at.now)
        if heard is Heard.OLD:
            return
        item = item or wire.encode(question)
        core.flood(("q", question.subject, question.accuser), item, Urgency.QUESTION, source=source)
        if heard is Heard.FIRST:
            self._suspect(held, question)
        if heard is Heard.CONVICTED:
            self._convict(question.subject)
            return
        suspicion = self.suspicions.open.get(question.subject)
        if suspicion is not None:
            core.timers.set_earlier("suspicions", None, suspicion.deadline)
        link = core.links_up.get(question.subject)
        if link is not None:
            if question.evidence == Evidence.REFUSED:
                core.tell(link, wire.Ping(0))
                link.pinged_at = core.at.now
            else:
                self._answer_for(question.subject, link, pong=False)

    def _suspect(self, held: SignedRecord, question: wire.Question) -> None:
        core = self._core
        self._off_rings(held.id)
        core.act(
            MemberSuspected(
                **who(held.record),
                evidence=evidence_of(question.evidence),
                accusers=(question.accuser.hex(),),
            )
        )

    def _answer_for(self, subject: NodeId, link: Link, *, pong: bool) -> None:
        """Vouch for a suspect whom I hear.  A refused one must have answered a PING
        that was sent after the question: bytes may come out of a dead kernel."""
        core = self._core
        suspicion = self.suspicions.open.get(subject)
        if suspicion is None or not core.hears(subject):
            return
        ponged = pong and link.pinged_at is not None and link.pinged_at >= suspicion.opened_at
        answers = tuple(
            (accuser, number)
            for accuser, number in self.suspicions.answers_for(subject)
            if ponged or suspicion.questions[accuser].evidence != Evidence.REFUSED
        )
        if not answers:
            if not pong and link.pinged_at is None:
                core.tell(link, wire.Ping(0))
                link.pinged_at = core.at.now
            return
        number = self._next_number()
        self.vouch(
            wire.Vouch(subject, suspicion.life, suspicion.incarnation, core.me, number, answers),
            None,
        )

    def vouch(self, vouch: wire.Vouch, source: Link | None, item: bytes | None = None) -> None:
        core = self._core
        held = core.view.alive(vouch.subject)
        if held is None or vouch.life != held.version.life:
            return
        if not core.view.is_alive(vouch.voucher):
            return
        heard = self.suspicions.vouch(vouch, core.at.now)
        if heard is Heard.OLD:
            return
        core.flood(
            ("v", vouch.subject, vouch.voucher),
            item or wire.encode(vouch),
            Urgency.QUESTION,
            source=source,
        )
        if heard is Heard.CLEARED:
            self._cleared(held)
        if heard is Heard.CLEARED or any(accuser == core.me for accuser, _ in vouch.answers):
            self._rest(vouch.subject)

    def _cleared(self, held: SignedRecord) -> None:
        core = self._core
        self._on_rings(held.id)
        if held.id not in self.stalled_since:
            core.act(MemberRecovered(**who(held.record)))

    def _rest(self, peer: NodeId) -> None:
        """My accusation was answered."""
        link = self._core.links_up.get(peer)
        if link is not None and self._core.hears(peer):
            self._close(peer)
        else:
            self._step(peer, self.detector.answered(peer, self._core.at.now))

    def verdict(self, verdict: wire.Verdict, source: Link | None, *, flood: bool) -> None:
        """Others passed a verdict.  Fresh ones are applied; an old one about a member
        that I hold alive, or any about one that I hear, is asked instead."""
        core = self._core
        if core.life is not None and is_clock_set(core.life) and not is_clock_set(verdict.life):
            core.count("stamped_before_2024")
            return
        held = core.view.alive(verdict.subject)
        if held is None:
            before = core.view.nodes.get(verdict.subject)
            change = core.view.offer_verdict(verdict, core.at.now)
            if change is not Change.NONE and flood:
                core.flood(verdict.subject, wire.encode(verdict), Urgency.ENDING, source=source)
            if change is Change.FULL:
                core.count("tombstones_full")
            elif change is not Change.NONE:
                core.changes.append(Changed(verdict.subject, change, before))
            return
        if verdict_version(verdict) <= held.version:
            if source is not None:
                core.tell(source, wire.News((held.item,)))
            return
        if verdict.age <= timing.VERDICT_FRESH * 1000 and not core.hears(verdict.subject):
            self._pass(verdict, source)
            return
        asked = self.suspicions.open.get(verdict.subject)
        if asked is not None and asked.about_tombstone:
            return
        question = wire.Question(
            verdict.subject, verdict.life, verdict.incarnation, verdict.evidence, core.me,
            self._next_number(), int(timing.SILENT_SUSPICION * 1000), True,
        )  # fmt: skip
        self.question(question, None)

    def suspicions_due(self) -> None:
        """Questions whose time is over.  When this process itself was late, what the
        subject answered may still wait in our sockets: give it one more moment."""
        core = self._core
        for subject in self.suspicions.due(core.at.now):
            suspicion = self.suspicions.open[subject]
            late = core.at.now - suspicion.deadline
            if late > timing.LAG_TOLERANCE:
                self.suspicions.extend(subject, core.at.now + timing.LAG_TOLERANCE)
            elif suspicion.about_tombstone and core.hears(subject):
                self.suspicions.drop(subject)
                held = core.view.alive(subject)
                if held is not None:
                    self._cleared(held)
            else:
                self._convict(subject)
        self._arm_suspicions()

    def _convict(self, subject: NodeId) -> None:
        suspicion = self.suspicions.open[subject]
        self._pass(
            wire.Verdict(
                subject,
                suspicion.life,
                suspicion.incarnation,
                0,
                suspicion.evidence,
                suspicion.accusers[:8],
            ),
            None,
        )

    def _pass(self, verdict: wire.Verdict, source: Link | None) -> None:
        core = self._core
        before = core.view.nodes.get(verdict.subject)
        change = core.view.offer_verdict(verdict, core.at.now)
        if change is Change.FAILED:
            core.changes.append(Changed(verdict.subject, change, before))
            core.flood(verdict.subject, wire.encode(verdict), Urgency.ENDING, source=source)

    def _arm_suspicions(self) -> None:
        deadline = self.suspicions.next_deadline()
        if deadline is not None:
            self._core.timers.set("suspicions", None, deadline)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # --- stalled -----------------------------------------------------------------------

    def _flag(self, peer: NodeId, life: Life, *, stalled: bool) -> None:
        self.stall(wire.Stall(peer, life, self._core.me, self._next_number(), stalled), None)

    def stall(self, stall: wire.Stall, source: Link | None, item: bytes | None = None) -> None:
        """A monitor's flag, kept while somebody renews it."""
        core = self._core
        held = core.view.alive(stall.subject)
        if held is None or held.version.life != stall.life or stall.subject == core.me:
            return
        if not core.view.is_alive(stall.monitor):
            return
        flags = self.stalls.setdefault(stall.subject, {})
        number, _ = flags.get(stall.monitor, (-1, 0.0))
        if stall.number <= number:
            return
        was_stalled = stall.subject in self.stalled_since
        until = core.at.now + (timing.STALL_MEMORY if stall.stalled else 0.0)
        flags[stall.monitor] = stall.number, until
        core.flood(
            ("s", stall.subject, stall.monitor),
            item or wire.encode(stall),
            Urgency.QUESTION,
            source=source,
        )
        if stall.stalled and not was_stalled:
            self.stalled_since[stall.subject] = core.at.now
            core.act(MemberStalled(**who(held.record)))
        core.timers.set_earlier("stalls", None, core.at.now + timing.STALL_MEMORY)
        self._settle_stall(stall.subject)

    def stalls_due(self) -> None:
        """Flags end when nobody renews them; their numbers are kept a while longer, so
        that one still on its way is not new again."""
        now = self._core.at.now
        for subject, flags in tuple(self.stalls.items()):
            self._settle_stall(subject)
            if all(until + timing.STALL_NUMBERS_KEPT < now for _, until in flags.values()):
                del self.stalls[subject]
        if self.stalls:
            self._core.timers.set("stalls", None, now + 1.0)

    def _settle_stall(self, subject: NodeId) -> None:
        """Over when no monitor's flag is left."""
        core = self._core
        flags = self.stalls.get(subject, {})
        if any(until > core.at.now for _, until in flags.values()):
            return
        if self.stalled_since.pop(subject, None) is not None:
            held = core.view.alive(subject)
            if held is not None and subject not in self.suspicions.open:
                core.act(MemberRecovered(**who(held.record)))

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
                    if changed.change is Change.JOINED and node not in self.suspicions.open:
                        self._on_rings(node)

    def _settle_live(self, held: SignedRecord, before: Claim | None) -> None:
        core, node = self._core, held.record.id
        known = before if isinstance(before, SignedRecord | Tombstone) else None
        is_new_life = known is None or known.version.life != held.version.life
        if is_new_life or isinstance(known, Tombstone):
            link = core.links_up.get(node)
            if link is not None and link.is_outbound:
                self.note_met(node, link.address)
        if known is not None and is_new_life:
            self.suspicions.new_life(node)
            self.suspicions.drop(node)
            self._close(node)
            self._forget_stall(node)
        elif self.suspicions.refuted(
            node, held.version.life, held.version.incarnation, core.at.now
        ):
            self._rest(node)
            self._cleared(held)

    def _gone(self, node: NodeId, change: Change) -> None:
        core = self._core
        self.suspicions.drop(node)
        self._close(node)
        self._forget_stall(node)
        self.met.pop(node, None)
        self._unlinkable.pop(node, None)
        self._off_rings(node)
        link = core.links_up.get(node)
        if link is not None and change is Change.FAILED and not core.hears(node):
            core.connections.close(link, "failed")
            core.links_up.pop(node, None)

    def _forget_stall(self, node: NodeId) -> None:
        self.stalls.pop(node, None)
        self.stalled_since.pop(node, None)

    # --- private -------------------------------------------------------------------------

    def _heartbeat(self, mine: bool) -> wire.Heartbeat:
        view = self._core.view
        flags = wire.HEARTBEAT_RING if mine else 0
        return wire.Heartbeat(view.hash(), view.highest_epoch, flags, view.claimant)

    def _beat(self, link: Link) -> None:
        if self._core.life is not None:
            self._core.tell(link, self._heartbeat(link.ring_mine))

    def _watch(self, link: Link) -> None:
        """Watch a ring link for silence; learn soon whether its peer can be dialled."""
        core, peer = self._core, link.peer
        if link.is_ring and peer is not None:
            core.timers.set_earlier("silence", None, link.heard_at + link.silence_after)
            if self.met_address(peer) is None:
                pause = core.rng.uniform(timing.CHECK_DIAL_MIN, timing.CHECK_DIAL_MAX)
                core.timers.set_earlier("check", peer, core.at.now + pause)

    def _has_lagged(self) -> bool:
        return self._core.at.now - self._lagged_at < timing.LAG_MEMORY
