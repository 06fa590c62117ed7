"""Suspicion is a question, and this is what each node makes of it.

A monitor with evidence floods a question.  The subject answers by raising its
incarnation; whoever hears the subject vouches.  What stands unanswered when its
time is over is a verdict, passed by everyone alike; no number of accusers is
needed, so the small side of a split can bury the large one::

    monitor ── Question(X, refused, runs 250 ms) ──► all
    X ── record with a higher incarnation ──► all          (a refutation), or
    Y, who hears X ── Vouch(answers: that question) ──► all, or
    nobody … 250 ms … each: X failed.   Two monitors, both refused: at once.

A question with ``tombstone`` asks about a verdict that somebody passed elsewhere
or long ago.  It runs a second, counts no accusers, and a vouch does not stop it:
only the subject's higher incarnation does, because nothing less would beat that
tombstone where it is already held.

Every table here is bounded by the members it is about; stale numbers are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.types import Evidence, Life, NodeId

#: Longest a question may claim to run; its ``runs`` is the accuser's word.
_RUNS_MAX = 5.0
_MEMORY_MAX = 8192


class Heard(Enum):
    """What a question or vouch was to this node."""

    OLD = "old"  # known, or about another life: do not pass it on
    NEW = "new"  # pass it on
    FIRST = "first"  # pass it on; the subject is suspect from now
    CONVICTED = "convicted"  # pass it on; a second monitor was refused as well
    CLEARED = "cleared"  # pass it on; no question is left


@dataclass(slots=True)
class Suspicion:
    """The open questions about one life."""

    life: Life
    incarnation: int
    opened_at: float
    questions: dict[NodeId, wire.Question] = field(default_factory=dict)
    deadlines: dict[NodeId, float] = field(default_factory=dict)

    @property
    def deadline(self) -> float:
        return min(self.deadlines.values())

    @property
    def about_tombstone(self) -> bool:
        return any(question.tombstone for question in self.questions.values())

    @property
    def evidence(self) -> Evidence:
        """The strongest kind in the field's order: refused, unreachable, stalled."""
        kinds = {question.evidence for question in self.questions.values()}
        for kind in Evidence:
            if kind in kinds:
                return kind
        return Evidence.UNREACHABLE

    @property
    def accusers(self) -> tuple[NodeId, ...]:
        return tuple(self.questions)


class Suspicions:
    """All open questions this node has heard, its own included."""

    def __init__(self) -> None:
        self.open: dict[NodeId, Suspicion] = {}
        self._numbers: dict[tuple[NodeId, NodeId], int] = {}  # (subject, accuser) -> last
        self._vouches: dict[tuple[NodeId, NodeId], int] = {}  # (subject, voucher) -> last
        self._answered: dict[tuple[NodeId, NodeId], int] = {}  # (subject, accuser) -> last
        self._answered_at: dict[tuple[NodeId, NodeId], float] = {}

    def ask(self, question: wire.Question, now: float) -> Heard:
        """A question, about the life and incarnation that the caller holds."""
        key = question.subject, question.accuser
        if question.number <= self._numbers.get(key, -1):
            return Heard.OLD
        _remember(self._numbers, key, question.number)
        if question.number <= self._answered.get(key, -1) and not question.tombstone:
            return Heard.NEW  # its answer overtook it
        suspicion = self.open.get(question.subject)
        version = question.life, question.incarnation
        if suspicion is not None and version > (suspicion.life, suspicion.incarnation):
            suspicion = None
        is_first = suspicion is None
        if suspicion is None:
            suspicion = Suspicion(question.life, question.incarnation, now)
            self.open[question.subject] = suspicion
        elif version < (suspicion.life, suspicion.incarnation):
            return Heard.OLD
        suspicion.questions[question.accuser] = question
        suspicion.deadlines[question.accuser] = now + min(question.runs / 1000, _RUNS_MAX)
        if self._is_convicted(suspicion, now):
            return Heard.CONVICTED
        return Heard.FIRST if is_first else Heard.NEW

    def vouch(self, vouch: wire.Vouch, now: float) -> Heard:
        """Somebody hears the subject: the questions it names are answered."""
        key = vouch.subject, vouch.voucher
        if vouch.number <= self._vouches.get(key, -1):
            return Heard.OLD
        _remember(self._vouches, key, vouch.number)
        suspicion = self.open.get(vouch.subject)
        for accuser, number in vouch.answers:
            self._note_answered(vouch.subject, accuser, number, now)
            if suspicion is None:
                continue
            question = suspicion.questions.get(accuser)
            if question is not None and question.number <= number and not question.tombstone:
                del suspicion.questions[accuser], suspicion.deadlines[accuser]
        if suspicion is not None and not suspicion.questions:
            del self.open[vouch.subject]
            return Heard.CLEARED
        return Heard.NEW

    def refuted(self, subject: NodeId, life: Life, incarnation: int, now: float) -> bool:
        """The subject spoke with this version.  True: it is suspect no more."""
        suspicion = self.open.get(subject)
        if suspicion is None or (life, incarnation) <= (suspicion.life, suspicion.incarnation):
            return False
        for accuser, question in suspicion.questions.items():
            self._note_answered(subject, accuser, question.number, now)
        del self.open[subject]
        return True

    def answers_for(self, subject: NodeId) -> tuple[tuple[NodeId, int], ...]:
        """What a vouch for this subject has to name."""
        suspicion = self.open.get(subject)
        if suspicion is None:
            return ()
        return tuple((a, q.number) for a, q in suspicion.questions.items() if not q.tombstone)

    def drop(self, subject: NodeId) -> Suspicion | None:
        """The subject failed, left or changed its life."""
        return self.open.pop(subject, None)

    def new_life(self, node: NodeId) -> None:
        """A node restarted: it counts its questions and vouches from 1 again."""
        for table in (self._numbers, self._vouches, self._answered):
            for key in [key for key in table if key[1] == node]:
                del table[key]

    def due(self, now: float) -> list[NodeId]:
        """Subjects of whom a question stands unanswered."""
        return [node for node, suspicion in self.open.items() if suspicion.deadline <= now]

    def next_deadline(self) -> float | None:
        return min((suspicion.deadline for suspicion in self.open.values()), default=None)

    # --- private ----------------------------------------------------------------

    def _is_convicted(self, suspicion: Suspicion, now: float) -> bool:
        """Two monitors refused.  One whose question was answered lately is not a
        second opinion: it may simply not reach the subject."""
        refused = 0
        for accuser, question in suspicion.questions.items():
            answered_at = self._answered_at.get((question.subject, accuser))
            fresh = answered_at is None or now - answered_at > timing.REACCUSE_MAX
            if question.evidence == Evidence.REFUSED and not question.tombstone and fresh:
                refused += 1
        return refused >= 2

    def _note_answered(self, subject: NodeId, accuser: NodeId, number: int, now: float) -> None:
        key = subject, accuser
        _remember(self._answered, key, max(number, self._answered.get(key, -1)))
        if len(self._answered_at) >= _MEMORY_MAX:
            self._answered_at.clear()
        self._answered_at[key] = now


def _remember(
    table: dict[tuple[NodeId, NodeId], int], key: tuple[NodeId, NodeId], number: int
) -> None:
    """Forgetting everything at the bound costs one repeated flood, no more."""
    if len(table) >= _MEMORY_MAX and key not in table:
        table.clear()
    table[key] = number
