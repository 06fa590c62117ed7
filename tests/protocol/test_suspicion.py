"""Questions, vouches and refutations, as each node takes them in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, suspicion, timing, wire
from p2pmesh.protocol.suspicion import Heard, Suspicions
from p2pmesh.protocol.types import Evidence
from tests.protocol.claims import life, node_id, question, vouch

X = node_id(1)
OLD, NEW, FIRST, CONVICTED, CLEARED = (
    Heard.OLD,
    Heard.NEW,
    Heard.FIRST,
    Heard.CONVICTED,
    Heard.CLEARED,
)
Said = wire.Question | wire.Vouch


def hear(heard: Suspicions, said: Said, now: float = 0.0) -> Heard:
    match said:
        case wire.Question():
            return heard.ask(said, now)
        case wire.Vouch():
            return heard.vouch(said, now)


def having_heard(*said: Said) -> Suspicions:
    heard = Suspicions()
    for each in said:
        hear(heard, each)
    return heard


# --- what each is to a node -----------------------------------------------------

ASKED = question(1, by=90)
WEAK = question(1, by=91, evidence="unreachable", runs=1000)
LONGER = question(1, by=92, evidence="stalled", runs=3000)
TOMBSTONE = question(1, by=90, tombstone=True)


@pytest.mark.parametrize(
    ("before", "said", "what"),
    [
        ([], ASKED, FIRST),
        ([ASKED], ASKED, OLD),
        ([ASKED], question(1, by=90, number=2), NEW),
        ([question(1, by=90, number=5)], question(1, by=90, number=4), OLD),
        ([WEAK], ASKED, NEW),
        ([LONGER], WEAK, NEW),
        ([ASKED], question(1, by=91), CONVICTED),
        # Asked already, to stand sooner.
        ([ASKED], WEAK, OLD),
        ([WEAK], LONGER, OLD),
        ([ASKED], question(1, by=91, evidence="refused by a later version"), OLD),
        # Other lives and incarnations of the subject.
        ([ASKED], question(1, 2, 0, by=91), NEW),
        ([ASKED], question(1, 1, 1, by=91), NEW),
        ([WEAK], question(1, 1, 1, by=92, evidence="stalled", runs=3000), NEW),
        ([question(1, 1, 1)], question(1, 1, 0, by=91), OLD),
        ([question(1, 2)], question(1, 1, 5, by=91), OLD),
        # Another subject.
        ([ASKED], question(2, by=91), FIRST),
        # Vouches.
        ([], vouch(1, (90, 1)), NEW),
        ([vouch(1, (90, 1))], vouch(1, (90, 1)), OLD),
        ([vouch(1, (90, 1))], vouch(1, (90, 1), by=81), NEW),
        ([vouch(1, (90, 1), number=7)], vouch(1, (90, 2), number=6), OLD),
        ([ASKED], vouch(1, (90, 1)), CLEARED),
        ([ASKED], vouch(1, (90, 9)), CLEARED),
        ([question(1, by=90, number=2)], vouch(1, (90, 1)), NEW),
        ([ASKED], vouch(1, (91, 1)), NEW),
        ([ASKED], vouch(2, (90, 1)), NEW),
        # Not everyone holds the same weak question: any vouch answers all of them.
        ([WEAK], vouch(1, (92, 1)), CLEARED),
        ([LONGER, WEAK], vouch(1, (93, 1)), CLEARED),
        ([WEAK, ASKED], vouch(1, (91, 1)), NEW),
        ([WEAK, ASKED], vouch(1, (90, 1)), CLEARED),
        ([question(1, 1, 1, by=91, evidence="stalled")], vouch(1, (93, 1)), NEW),
        # Tombstones.
        ([], TOMBSTONE, FIRST),
        ([ASKED], question(1, by=91, tombstone=True), NEW),
        ([TOMBSTONE], question(1, by=91, tombstone=True), OLD),
        ([TOMBSTONE], WEAK, OLD),
        ([TOMBSTONE], question(1, by=91), NEW),
        ([TOMBSTONE], vouch(1, (90, 1)), NEW),
        ([LONGER, TOMBSTONE], vouch(1, (90, 1), (92, 1)), NEW),
    ],
)
def test_what_a_question_or_vouch_is(before: list[Said], said: Said, what: Heard) -> None:
    heard = having_heard(*before)
    assert hear(heard, said) is what
    if what is CLEARED:
        assert not heard.open
    if what in (FIRST, CONVICTED):
        assert isinstance(said, wire.Question)
        assert said.accuser in heard.open[said.subject].questions


def test_a_question_whose_answer_overtook_it_is_passed_on_and_not_asked() -> None:
    heard = having_heard(vouch(1, (90, 3)))
    assert hear(heard, question(1, number=3)) is NEW
    assert not heard.open
    assert hear(heard, question(1, number=4)) is FIRST


def test_an_answer_does_not_overtake_a_question_that_carries_a_tombstone() -> None:
    heard = having_heard(vouch(1, (90, 3)))
    assert hear(heard, question(1, number=3, tombstone=True)) is FIRST


def test_a_newer_life_or_incarnation_in_question_makes_the_older_questions_void() -> None:
    heard = having_heard(LONGER, ASKED, question(1, 1, 1, by=93))
    assert heard.open[X].accusers == (node_id(93),)
    assert heard.open[X].incarnation == 1


# --- two monitors ---------------------------------------------------------------


def test_two_monitors_that_were_refused_convict_at_once() -> None:
    heard = having_heard(WEAK, question(1, by=90))
    assert hear(heard, question(1, by=92)) is CONVICTED


def test_one_monitor_that_asks_twice_is_no_second_monitor() -> None:
    heard = having_heard(question(1, by=90, number=1))
    assert hear(heard, question(1, by=90, number=2)) is NEW


def test_questions_about_tombstones_count_no_accusers() -> None:
    heard = having_heard(TOMBSTONE)
    assert hear(heard, question(1, by=91)) is NEW
    assert hear(heard, question(1, by=93)) is CONVICTED


@pytest.mark.parametrize("answer", ["vouch", "refutation"])
def test_who_was_answered_within_a_minute_is_no_second_monitor(answer: str) -> None:
    for later, what in ((60.0, NEW), (60.1, CONVICTED)):
        heard = having_heard(question(1, by=90))
        if answer == "vouch":
            heard.vouch(vouch(1, (90, 1)), 0.0)
        else:
            assert heard.refuted(X, life(1), 1, 0.0)
        heard.ask(question(1, 1, 1, by=91), later)
        assert heard.ask(question(1, 1, 1, by=90, number=2), later) is what


def test_an_answer_from_an_earlier_life_of_the_subject_does_not_count() -> None:
    heard = having_heard(question(1, by=90), vouch(1, (90, 1)))
    heard.new_life(X)
    heard.ask(question(1, 2, by=91), 1.0)
    assert heard.ask(question(1, 2, by=90, number=2), 1.0) is CONVICTED


# --- time -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "seconds"),
    [(250, 0.25), (1000, 1.0), (3000, 3.0), (0, 0.25), (-5000, 0.25), (2**62, 5.0)],
)
def test_a_question_stands_unanswered_when_its_time_is_over(runs: int, seconds: float) -> None:
    heard = Suspicions()
    heard.ask(question(1, runs=runs), 100.0)
    assert heard.next_deadline() == 100.0 + seconds
    assert heard.due(100.0 + seconds - 0.001) == []
    assert heard.due(100.0 + seconds) == [X]


def test_a_question_about_a_tombstone_runs_a_second_whatever_it_says() -> None:
    for runs in (0, 250, 3000):
        heard = Suspicions()
        heard.ask(question(1, runs=runs, tombstone=True), 100.0)
        assert heard.next_deadline() == 101.0


def test_the_first_question_to_run_out_decides() -> None:
    heard = Suspicions()
    heard.ask(question(1, by=90, evidence="unreachable", runs=1000), 0.0)
    heard.ask(question(1, by=91, runs=250), 0.5)
    heard.ask(question(2, runs=250), 0.7)
    assert heard.next_deadline() == 0.75
    assert heard.due(0.8) == [X]
    heard.vouch(vouch(1, (91, 1)), 0.8)
    assert X not in heard.open, "and answers the weak one as well"
    assert heard.next_deadline() == 0.95
    assert heard.due(1.0) == [node_id(2)]
    heard.drop(node_id(2))
    assert heard.next_deadline() is None


def test_a_subject_whose_time_is_over_is_told_once_and_may_be_given_a_moment() -> None:
    heard = having_heard(WEAK)
    assert heard.due(1.0) == [X]
    assert heard.due(2.0) == []
    heard.extend(X, 2.5)
    assert heard.next_deadline() == 2.5
    assert heard.due(2.4) == []
    assert heard.due(2.5) == [X]


def test_who_asks_again_is_answered_anew() -> None:
    heard = Suspicions()
    heard.ask(question(1, number=1), 0.0)
    heard.ask(question(1, number=2), 0.2)
    assert heard.next_deadline() == pytest.approx(0.45)


def test_a_plain_question_does_not_soften_the_same_accusers_tombstone() -> None:
    heard = Suspicions()
    heard.ask(question(1, tombstone=True), 0.0)
    assert heard.ask(question(1, number=2), 0.1) is NEW
    assert heard.vouch(vouch(1, (90, 2)), 0.2) is NEW
    assert heard.open[X].about_tombstone
    assert heard.due(1.0) == [X]
    # The other way round the question becomes harder to answer.
    heard = having_heard(question(1), question(1, number=2, tombstone=True))
    assert heard.vouch(vouch(1, (90, 2)), 0.2) is NEW


# --- answers --------------------------------------------------------------------


@pytest.mark.parametrize("tombstone", [False, True])
def test_only_a_higher_version_of_the_subject_refutes(tombstone: bool) -> None:
    heard = having_heard(question(1, 2, 3, tombstone=tombstone))
    assert not heard.refuted(node_id(2), life(9), 9, 0.0)
    assert not heard.refuted(X, life(1), 9, 0.0)
    assert not heard.refuted(X, life(2), 3, 0.0)
    assert heard.refuted(X, life(2), 4, 0.0)
    assert not heard.open
    assert not heard.refuted(X, life(2), 5, 0.0)
    # A copy of the question that is still on its way finds it answered.
    assert heard.ask(question(1, 2, 3, tombstone=tombstone), 0.0) is OLD


def test_a_vouch_names_every_open_question_but_those_about_tombstones() -> None:
    heard = having_heard(
        question(1, by=92, evidence="stalled", runs=3000),
        question(1, by=90, number=4),
        question(1, by=91, tombstone=True),
        question(2, by=93),
    )
    assert heard.answers_for(X) == ((node_id(92), 1), (node_id(90), 4))
    assert heard.answers_for(node_id(3)) == ()
    assert heard.vouch(vouch(1, (90, 4), (92, 1)), 0.0) is NEW
    assert heard.open[X].accusers == (node_id(91),)
    assert heard.answers_for(X) == ()


def test_the_strongest_evidence_is_what_a_suspicion_is_about() -> None:
    heard = having_heard(question(1, by=90, evidence="a later kind", runs=4000))
    assert heard.open[X].evidence is Evidence.UNREACHABLE
    for by, evidence, strongest in (
        (91, "stalled", Evidence.STALLED),
        (92, "unreachable", Evidence.UNREACHABLE),
        (93, "refused", Evidence.REFUSED),
    ):
        hear(heard, question(1, by=by, evidence=evidence, runs=1000 * (94 - by)))
        assert heard.open[X].evidence is strongest
    assert len(heard.open[X].accusers) == 4


def test_a_subject_that_is_gone_is_in_question_no_more() -> None:
    heard = having_heard(ASKED)
    dropped = heard.drop(X)
    assert dropped is not None
    assert dropped.life == life(1)
    assert heard.drop(X) is None
    assert heard.due(1e9) == []


# --- numbers --------------------------------------------------------------------


def test_a_restarted_accuser_and_voucher_count_from_one_again() -> None:
    heard = having_heard(question(1, by=90, number=8), vouch(1, (90, 8), by=80, number=8))
    assert hear(heard, question(1, by=90, number=1)) is OLD
    assert hear(heard, vouch(1, (90, 1), by=80, number=1)) is OLD
    heard.new_life(node_id(90))
    assert hear(heard, question(1, by=90, number=1)) is FIRST
    assert hear(heard, vouch(1, (90, 1), by=80, number=1)) is OLD
    heard.new_life(node_id(80))
    assert hear(heard, vouch(1, (90, 1), by=80, number=1)) is CLEARED


def test_numbers_are_of_one_accuser_about_one_subject() -> None:
    heard = having_heard(question(1, by=90, number=8))
    assert hear(heard, question(2, by=90, number=1)) is FIRST
    assert hear(heard, question(1, by=91, number=1)) is CONVICTED


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_every_copy_of_a_flood_is_new_once(rng: random.Random, several: int) -> None:
    said = [question(n % 5, by=50 + n % 7, number=n // 35) for n in range(40)]
    copies = [each for each in said[:several] for _ in range(3)]
    rng.shuffle(copies)
    heard = Suspicions()
    passed_on = [copy for copy in copies if hear(heard, copy) is not OLD]
    assert len(passed_on) == len({(q.subject, q.accuser, q.number) for q in passed_on})
    assert {(q.subject, q.accuser) for q in passed_on} == {(q.subject, q.accuser) for q in copies}


# --- bounds ---------------------------------------------------------------------


def test_what_is_remembered_is_bounded_and_what_is_on_its_way_stays_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suspicion, "_REMEMBERED", 10)
    heard = Suspicions()
    for number in range(200):
        assert hear(heard, question(number, evidence="stalled")) is FIRST
        for recent in range(max(0, number - 9), number + 1):
            assert hear(heard, question(recent, evidence="stalled")) is OLD
        heard.drop(node_id(number))
    for number in range(200):
        hear(heard, vouch(number, (number, 1)))
    for table in (heard._asked, heard._vouched, heard._answered, heard._answered_at):
        assert 10 <= len(table._new) + len(table._old) <= 20


def test_a_new_life_is_new_in_all_that_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspicion, "_REMEMBERED", 2)
    heard = having_heard(*(question(number, number=8) for number in range(4)))
    heard.new_life(node_id(90))
    for number in range(4):
        assert hear(heard, question(number, 1, 1)) is NEW


def test_one_suspicion_holds_a_bounded_number_of_questions() -> None:
    heard = Suspicions()
    for by in range(100, 100 + 2 * limits.QUESTIONS_MAX):
        hear(heard, question(1, by=by, evidence="unreachable", runs=4000 - by))
    assert len(heard.open[X].questions) == limits.QUESTIONS_MAX
    assert len(heard.answers_for(X)) == limits.QUESTIONS_MAX
    assert hear(heard, question(1, by=100, number=2)) is NEW  # it has its place
    assert heard.open[X].evidence is Evidence.REFUSED


def test_the_bounds_of_time_are_those_of_the_table() -> None:
    longest = max(timing.REFUSED_SUSPICION, timing.SILENT_SUSPICION, timing.UNMET_SUSPICION)
    assert timing.REFUSED_SUSPICION <= longest <= suspicion._RUNS_MAX
