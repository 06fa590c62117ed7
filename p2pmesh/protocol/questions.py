"""The questions desk: what monitors say of a member, and what everyone makes of it.

    Question ──► everyone: suspect ──┬── vouch, refutation ──► cleared
                                     └── nothing ──► verdict ──► failed
    Stall ─────► everyone: flagged while some monitor renews it

It floods what is new, answers for whom it hears, and passes the verdict on those that
stand unanswered.  The arithmetic of questions is ``suspicion``.

Not here: why somebody is accused (``monitoring``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.members import Change, verdict_version
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.records import SignedRecord
from p2pmesh.protocol.reporting import evidence_of, who
from p2pmesh.protocol.stamps import is_clock_set
from p2pmesh.protocol.suspicion import Heard, Suspicions, question_version
from p2pmesh.protocol.types import (
    Evidence,
    Life,
    MemberRecovered,
    MemberStalled,
    MemberSuspected,
    NodeId,
)

#: So many nodes may not have two monitors for each.
_SMALL: Final = 3


class _Flag(NamedTuple):
    """What one monitor last said of a member that stalls."""

    number: int
    until: float
    ended: bool


class Questions:
    """Who is in question, and who is flagged as stalled."""

    def __init__(self, core: Core, neighbours: Neighbours) -> None:
        self._core = core
        self._neighbours = neighbours
        self.suspicions = Suspicions()
        self.stalled_since: dict[NodeId, float] = {}
        #: Members whom I accused, and about whom I was answered, for ``monitoring``.
        self.answered: list[NodeId] = []
        #: Members whose links ended at as many monitors as convict, for ``monitoring``.
        self.ended: list[NodeId] = []
        self._stalls: dict[NodeId, dict[NodeId, _Flag]] = {}
        #: What I say is numbered on from the start of this process, so that it is above
        #: what my last life said, also where that life is still held.
        self._numbers = max(0, core.at.wall)

    # --- questions ------------------------------------------------------------------

    def ask(self, held: SignedRecord, evidence: str, runs: float) -> None:
        """Accuse a member: is it gone?  ``runs`` seconds until that stands."""
        self.question(
            self._make_question(
                held.id, held.version.life, held.version.incarnation, evidence, runs
            ),
            None,
        )

    def _make_question(
        self,
        subject: NodeId,
        life: Life,
        incarnation: int,
        evidence: str,
        runs: float,
        *,
        tombstone: bool = False,
    ) -> wire.Question:
        return wire.Question(
            subject, life, incarnation, evidence, self._core.me, self._next_number(),
            int(runs * 1000), tombstone,
        )  # fmt: skip

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
            if question.evidence == Evidence.REFUSED or not core.hears(question.subject):
                core.tell(link, wire.Ping(0))  # off the rings a link says nothing by itself
                link.pinged_at = core.at.now
            else:
                self.answer_for(question.subject, link, pong=False)

    def _suspect(self, held: SignedRecord, question: wire.Question) -> None:
        core = self._core
        self._neighbours.leave_rings(held.id)
        core.act(
            MemberSuspected(
                **who(held.record),
                evidence=evidence_of(question.evidence),
                accusers=(question.accuser.hex(),),
            )
        )

    def answer_for(self, subject: NodeId, link: Link, *, pong: bool) -> None:
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
            self.answered.append(vouch.subject)

    def _cleared(self, held: SignedRecord) -> None:
        core = self._core
        self._neighbours.join_rings(held.id)
        if held.id not in self.stalled_since:
            core.act(MemberRecovered(**who(held.record)))

    def verdict(self, verdict: wire.Verdict, source: Link | None, *, flood: bool) -> None:
        """Others passed a verdict.  About a member that I hold alive one on a refusal is
        applied, if it is fresh and I know its question; on weaker evidence my own count
        of that question decides.  An old one, one that nobody asked here, and any about
        whom I hear, is asked: where a split heals, verdicts of its other side arrive,
        with the questions that nobody there could answer just before them."""
        core = self._core
        if core.life is not None and is_clock_set(core.life) and not is_clock_set(verdict.life):
            core.count("stamped_before_2024")
            return
        held = core.view.alive(verdict.subject)
        if held is None:
            before = core.view.nodes.get(verdict.subject)
            change = core.view.offer_verdict(verdict, core.at.now)
            if before is not None and before.version == verdict_version(verdict) and source:
                core.news.known(verdict.subject, source.id)
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
        asked = self.suspicions.open.get(verdict.subject)
        is_fresh = verdict.age <= timing.VERDICT_FRESH * 1000
        if asked is not None and is_fresh and not core.hears(verdict.subject):
            if verdict.evidence == asked.evidence == Evidence.REFUSED:
                self._pass(verdict, source)
            return
        if asked is not None and asked.about_tombstone:
            return
        question = self._make_question(
            verdict.subject, verdict.life, verdict.incarnation, verdict.evidence,
            timing.SILENT_SUSPICION, tombstone=True,
        )  # fmt: skip
        self.question(question, None)

    def due(self) -> None:
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

    def flag(self, peer: NodeId, life: Life, *, stalled: bool, ended: bool = False) -> None:
        """Say of a member that its kernel answers and its process does not, or that it
        does again; ``ended``: its link to me ended without a goodbye."""
        number = self._next_number()
        self.stall(wire.Stall(peer, life, self._core.me, number, stalled, ended), None)

    def stall(self, stall: wire.Stall, source: Link | None, item: bytes | None = None) -> None:
        """A monitor's flag, kept while somebody renews it."""
        core = self._core
        held = core.view.alive(stall.subject)
        if held is None or held.version.life != stall.life or stall.subject == core.me:
            return
        if not core.view.is_alive(stall.monitor):
            return
        flags = self._stalls.setdefault(stall.subject, {})
        known = flags.get(stall.monitor)
        if known is not None and stall.number <= known.number:
            return
        was_stalled = stall.subject in self.stalled_since
        until = core.at.now + (timing.STALL_MEMORY if stall.stalled else 0.0)
        flags[stall.monitor] = _Flag(stall.number, until, stall.ended)
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
        if self._has_ended(flags):
            self.ended.append(stall.subject)

    def _has_ended(self, flags: dict[NodeId, _Flag]) -> bool:
        """One link may break by itself; two at once were closed by a kernel.  In a small
        mesh there may be no second monitor."""
        core = self._core
        count = sum(flag.ended and flag.until > core.at.now for flag in flags.values())
        return count >= 2 or (count == 1 and sum(1 for _ in core.view.all_alive()) <= _SMALL)

    def stalls_due(self) -> None:
        """Flags end when nobody renews them; their numbers are kept a while longer, so
        that one still on its way is not new again."""
        now = self._core.at.now
        for subject, flags in tuple(self._stalls.items()):
            self._settle_stall(subject)
            if all(flag.until + timing.STALL_NUMBERS_KEPT < now for flag in flags.values()):
                del self._stalls[subject]
        if self._stalls:
            self._core.timers.set("stalls", None, now + 1.0)

    def _settle_stall(self, subject: NodeId) -> None:
        """Over when no monitor's flag is left."""
        core = self._core
        flags = self._stalls.get(subject, {})
        if any(flag.until > core.at.now for flag in flags.values()):
            return
        if self.stalled_since.pop(subject, None) is not None:
            held = core.view.alive(subject)
            if held is not None and subject not in self.suspicions.open:
                core.act(MemberRecovered(**who(held.record)))

    # --- the view changes -------------------------------------------------------------

    def new_life(self, node: NodeId) -> None:
        """What was asked was about an earlier one."""
        self.suspicions.new_life(node)
        self.forget(node)

    def refuted(self, held: SignedRecord) -> None:
        """A member said something newer of itself: perhaps the answer."""
        version = held.version
        if self.suspicions.refuted(held.id, version.life, version.incarnation, self._core.at.now):
            self.answered.append(held.id)
            self._cleared(held)

    def forget(self, node: NodeId) -> None:
        """It failed, left, or lives anew."""
        self.suspicions.drop(node)
        self._stalls.pop(node, None)
        self.stalled_since.pop(node, None)
