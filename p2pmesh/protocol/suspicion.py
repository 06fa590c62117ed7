"""Suspicion is a question, and this is what each node makes of it.

A monitor with evidence floods a question.  The subject answers by raising its
incarnation; whoever hears the subject vouches.  What stands unanswered when its
time is over is a verdict, passed by everyone alike; no number of accusers is
needed, so the small side of a split can bury the large one::

    monitor ── Question(X, refused, runs 250 ms) ──► all
    X ── record with a higher incarnation ──► all          (a refutation), or
    Y, who hears X ── Vouch(answers: that question) ──► all, or
    nobody … 250 ms … each: X failed.   Two monitors, both refused: at once.

Hundreds may find out in one moment.  A question that adds nothing to what is asked
already is not passed on, so different nodes may hold different questions about one
subject; hence a vouch answers all that it names, and the weak ones that it does not.

A question with ``tombstone`` asks about a verdict that somebody passed elsewhere
or long ago.  It runs a second, counts no accusers, and a vouch does not stop it:
only the subject's higher incarnation does, because nothing less would beat that
tombstone where it is already held.

A question or vouch is new once: its number is above the last of its sender about
that subject.  What is remembered of numbers is bounded, and forgotten in two steps,
so that a flood which is still on its way never becomes new again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from math import inf
from typing import Final, Generic, TypeAlias, TypeVar

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import Evidence, Life, NodeId

#: Longest a question may claim to run; its ``runs`` is the accuser's word.
_RUNS_MAX: Final = 5.0
_REMEMBERED: Final = 4096  # at least, of each table
_Pair: TypeAlias = tuple[NodeId, NodeId]  # subject, and who speaks of it


class Heard(Enum):
    """What a question or vouch was to this node."""

    OLD = "old"  # known, about another life, or asked already: do not pass it on
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
    def version(self) -> tuple[Life, int]:
        return self.life, self.incarnation

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
        self._deadlines: list[tuple[float, NodeId]] = []  # a heap; some are void
        self._asked: _Recent[int] = _Recent()  # the last number of an accuser
        self._vouched: _Recent[int] = _Recent()  # the last number of a voucher
        self._answered: _Recent[int] = _Recent()  # the last that was answered
        self._answered_at: _Recent[float] = _Recent()

    def knows(self, question: wire.Question) -> bool:
        """Is this a copy of what was heard before?"""
        pair = question.subject, question.accuser
        return question.number <= self._asked.get(pair, -1)

    def ask(self, question: wire.Question, now: float) -> Heard:
        """A question, about the life and incarnation that the caller holds."""
        subject, accuser = question.subject, question.accuser
        if not self._asked.is_higher((subject, accuser), question.number):
            return Heard.OLD
        answered = self._answered.get((subject, accuser), -1)
        if question.number <= answered and not question.tombstone:
            return Heard.NEW  # its answer overtook it
        suspicion = self.open.get(subject)
        is_first = suspicion is None
        if suspicion is None or question_version(question) > suspicion.version:
            suspicion = Suspicion(question.life, question.incarnation, now)
            self.open[subject] = suspicion
        elif _adds_nothing(question, suspicion, now):
            return Heard.OLD
        earlier = suspicion.questions.get(accuser)
        if earlier is None and len(suspicion.questions) >= limits.QUESTIONS_MAX:
            return Heard.NEW  # it is in question, whoever else asks
        if earlier is not None and earlier.tombstone and not question.tombstone:
            return Heard.NEW  # what it asked before is harder to answer
        suspicion.questions[accuser] = question
        self._set_deadline(suspicion, question, now + _runs(question))
        if self._is_convicted(suspicion, now):
            return Heard.CONVICTED
        return Heard.FIRST if is_first else Heard.NEW

    def vouch(self, vouch: wire.Vouch, now: float) -> Heard:
        """Somebody hears the subject: the questions it names are answered, and all weak
        ones."""
        if not self._vouched.is_higher((vouch.subject, vouch.voucher), vouch.number):
            return Heard.OLD
        for accuser, number in vouch.answers:
            self._note_answered(vouch.subject, accuser, number, now)
        suspicion = self.open.get(vouch.subject)
        if suspicion is None:
            return Heard.NEW
        named = dict(vouch.answers)
        is_current = (vouch.life, vouch.incarnation) >= suspicion.version
        for accuser, question in tuple(suspicion.questions.items()):
            is_weak = question.evidence != Evidence.REFUSED and is_current
            is_named = question.number <= named.get(accuser, -1)
            if (is_named or is_weak) and not question.tombstone:
                del suspicion.questions[accuser], suspicion.deadlines[accuser]
                self._note_answered(vouch.subject, accuser, question.number, now)
        if suspicion.questions:
            return Heard.NEW
        del self.open[vouch.subject]
        return Heard.CLEARED

    def refuted(self, subject: NodeId, life: Life, incarnation: int, now: float) -> bool:
        """The subject spoke with this version.  True: it is suspect no more."""
        suspicion = self.open.get(subject)
        if suspicion is None or (life, incarnation) <= suspicion.version:
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
        """A node restarted: it counts its questions and vouches from 1 again, and
        whom it answered before says nothing of who reaches it now."""
        for table in (self._asked, self._vouched, self._answered):
            table.forget(lambda pair: pair[1] == node)
        self._answered_at.forget(lambda pair: pair[0] == node)

    def due(self, now: float) -> list[NodeId]:
        """Subjects of whom a question stands unanswered; each is told once."""
        due: dict[NodeId, None] = {}
        while self._deadlines and self._deadlines[0][0] <= now:
            _, subject = heappop(self._deadlines)
            suspicion = self.open.get(subject)
            if suspicion is not None and suspicion.deadline <= now:
                due[subject] = None
        return list(due)

    def extend(self, subject: NodeId, until: float) -> None:
        """Wait for an answer a moment longer."""
        suspicion = self.open[subject]
        for question in suspicion.questions.values():
            self._set_deadline(suspicion, question, until)

    def next_deadline(self) -> float | None:
        while self._deadlines:
            deadline, subject = self._deadlines[0]
            suspicion = self.open.get(subject)
            if suspicion is not None and suspicion.deadline == deadline:
                return deadline
            heappop(self._deadlines)
        return None

    # --- private ----------------------------------------------------------------

    def _set_deadline(self, suspicion: Suspicion, question: wire.Question, at: float) -> None:
        suspicion.deadlines[question.accuser] = at
        heappush(self._deadlines, (at, question.subject))

    def _is_convicted(self, suspicion: Suspicion, now: float) -> bool:
        """Two monitors refused.  One whose question was answered lately is not a
        second opinion: it may simply not reach the subject."""
        refused = 0
        for accuser, question in suspicion.questions.items():
            answered_at = self._answered_at.get((question.subject, accuser), -inf)
            fresh = now - answered_at > timing.REACCUSE_MAX
            if question.evidence == Evidence.REFUSED and not question.tombstone and fresh:
                refused += 1
        return refused >= 2

    def _note_answered(self, subject: NodeId, accuser: NodeId, number: int, now: float) -> None:
        self._answered.is_higher((subject, accuser), number)
        self._answered_at.put((subject, accuser), now)


def question_version(question: wire.Question) -> tuple[Life, int]:
    return question.life, question.incarnation


def _adds_nothing(question: wire.Question, suspicion: Suspicion, now: float) -> bool:
    """Is that asked already, of this version or a later one, to stand no later?"""
    if question_version(question) < suspicion.version:
        return True
    if question.accuser in suspicion.questions:
        return False
    if question.tombstone:
        return suspicion.about_tombstone
    if question.evidence == Evidence.REFUSED:
        return False  # two convict
    return suspicion.deadline <= now + _runs(question)


def _runs(question: wire.Question) -> float:
    """Seconds until it stands; what an accuser may say is bounded."""
    if question.tombstone:
        return timing.SILENT_SUSPICION
    return min(max(question.runs / 1000, timing.REFUSED_SUSPICION), _RUNS_MAX)


_T = TypeVar("_T", int, float)


class _Recent(Generic[_T]):
    """Values of the pairs that were written lately: the last ``_REMEMBERED`` at
    least, twice that at most."""

    __slots__ = ("_new", "_old")

    def __init__(self) -> None:
        self._new: dict[_Pair, _T] = {}
        self._old: dict[_Pair, _T] = {}

    def get(self, pair: _Pair, default: _T) -> _T:
        found = self._new.get(pair)
        return self._old.get(pair, default) if found is None else found

    def put(self, pair: _Pair, value: _T) -> None:
        if len(self._new) >= _REMEMBERED:
            self._old, self._new = self._new, {}
        self._new[pair] = value

    def is_higher(self, pair: _Pair, value: _T) -> bool:
        """Is this above the last one?  Then it is the last one."""
        last = self._new.get(pair)
        if last is None:
            last = self._old.get(pair)
        if last is not None and value <= last:
            return False
        self.put(pair, value)
        return True

    def forget(self, is_meant: Callable[[_Pair], bool]) -> None:
        for table in (self._new, self._old):
            for pair in [pair for pair in table if is_meant(pair)]:
                del table[pair]
