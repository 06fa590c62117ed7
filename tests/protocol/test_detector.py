"""One silent peer at one monitor: the evidence table, state by state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import timing
from p2pmesh.protocol.detector import Accuse, Case, Detector, FlagStalled, Probe, Stage, Step, Wait
from p2pmesh.protocol.types import DialOutcome, Evidence
from tests.protocol.claims import life, node_id

PEER = node_id(1)
LOCAL, UNREACHABLE, TIMEOUT, REFUSED = (
    DialOutcome.LOCAL_ERROR,
    DialOutcome.UNREACHABLE,
    DialOutcome.TIMEOUT,
    DialOutcome.REFUSED,
)
GRACE = timing.STALL_GRACE


class Monitor:
    """A detector with one case, open from t = 0, and a clock."""

    def __init__(self, *, met: bool = True, heard_at: float = 0.0, ended: bool = False) -> None:
        self.detector = Detector()
        self.now = 0.0
        self.met = met
        step = self.detector.open(PEER, life(1), 0.0, heard_at=heard_at, met=met, ended=ended)
        assert step == Probe()

    @property
    def case(self) -> Case:
        return self.detector.cases[PEER]

    def failed(self, outcome: DialOutcome, *, after: float = 0.0) -> Step | None:
        self.now += after
        return self.detector.dial_failed(PEER, outcome, self.now)

    def in_vain(self) -> Step | None:
        self.now += timing.DIAL_TIMEOUT
        return self.detector.accepted_in_vain(PEER, self.now)

    def wake(self, step: Step | None = None) -> Step | None:
        """Go on to when the step said; by default, now."""
        if isinstance(step, Wait | FlagStalled):
            assert step.at >= self.now
            self.now = step.at
        return self.detector.wake(PEER, self.now, met=self.met)

    def answered(self) -> Step | None:
        return self.detector.answered(PEER, self.now)


# --- the table ------------------------------------------------------------------


def test_a_peer_is_refused_twice_before_it_is_accused() -> None:
    monitor = Monitor()
    step = monitor.failed(REFUSED)
    assert step == Wait(monitor.now + timing.REDIAL_GAP)
    assert monitor.wake(step) == Probe()
    assert monitor.failed(REFUSED) == Accuse(Evidence.REFUSED, 0.25)
    assert monitor.case.stage is Stage.ACCUSED


def test_another_identity_at_its_address_counts_as_refused() -> None:
    monitor = Monitor()
    step = monitor.detector.another_answered(PEER, monitor.now)
    assert step == Wait(monitor.now + timing.REDIAL_GAP)
    monitor.wake(step)
    step = monitor.detector.another_answered(PEER, monitor.now)
    assert step == Accuse(Evidence.REFUSED, 0.25)


def test_no_answer_in_time_is_unreachable() -> None:
    monitor = Monitor()
    step = monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT)
    assert step == Accuse(Evidence.UNREACHABLE, 1.0)


def test_no_route_said_at_once_is_dialled_again_before_it_counts() -> None:
    monitor = Monitor()
    step = monitor.failed(UNREACHABLE, after=0.01)
    assert step == Wait(timing.DIAL_TIMEOUT)
    assert monitor.wake(step) == Probe()
    assert monitor.failed(UNREACHABLE) == Accuse(Evidence.UNREACHABLE, 1.0)


def test_a_route_that_comes_back_in_time_leaves_no_trace() -> None:
    monitor = Monitor()
    monitor.wake(monitor.failed(UNREACHABLE))
    assert isinstance(monitor.failed(REFUSED), Wait)
    monitor.wake()
    step = monitor.failed(UNREACHABLE)
    assert isinstance(step, Wait)  # counted anew
    assert step.at == monitor.case.probed_at + timing.DIAL_TIMEOUT


@pytest.mark.parametrize("between", ["unreachable", "in vain"])
def test_two_refusals_with_something_else_between_are_not_two(between: str) -> None:
    monitor = Monitor()
    monitor.wake(monitor.failed(REFUSED))
    monitor.wake(monitor.in_vain() if between == "in vain" else monitor.failed(UNREACHABLE))
    assert isinstance(monitor.failed(REFUSED), Wait)


def test_an_acceptance_in_vain_is_flagged_and_accused_when_the_grace_is_over() -> None:
    monitor = Monitor()
    step = monitor.in_vain()
    flagged = 0
    while isinstance(step, FlagStalled):
        flagged += 1
        assert step.at <= max(GRACE, monitor.now)
        step = monitor.wake(step)
        if step == Probe():
            step = monitor.in_vain()
    assert step == Accuse(Evidence.STALLED, 1.0)
    # The flag is renewed before it is forgotten.
    assert flagged >= GRACE / timing.STALL_MEMORY
    assert GRACE <= monitor.now < GRACE + timing.DIAL_TIMEOUT + 0.1


def test_the_grace_runs_from_the_last_byte() -> None:
    monitor = Monitor(heard_at=-1.5)
    monitor.now = GRACE - 3.2
    assert monitor.in_vain() == FlagStalled(GRACE - 1.5)
    assert Monitor(heard_at=-60.0).in_vain() == FlagStalled(timing.DIAL_TIMEOUT)


def test_a_stalled_peer_that_dies_is_refused_as_any_other() -> None:
    monitor = Monitor()
    monitor.wake(monitor.in_vain())
    monitor.wake(monitor.failed(REFUSED))
    assert monitor.failed(REFUSED) == Accuse(Evidence.REFUSED, 0.25)


def test_an_error_of_our_own_says_nothing() -> None:
    monitor = Monitor()
    for _ in range(40):
        step = monitor.failed(LOCAL)
        assert step == Wait(monitor.now + 1.0)
        assert monitor.wake(step) == Probe()
    assert monitor.now > 2 * GRACE


def test_nobody_is_accused_of_stalling_by_who_cannot_ask_any_more() -> None:
    monitor = Monitor()
    monitor.wake(monitor.in_vain())
    monitor.now = GRACE - 0.5
    step = monitor.failed(LOCAL)
    assert monitor.wake(step) == Probe()
    assert monitor.now > GRACE
    step = monitor.in_vain()  # asked at last, and in vain as before
    assert step == FlagStalled(monitor.now)
    assert monitor.wake(step) == Accuse(Evidence.STALLED, 1.0)


# --- connections that open and break ---------------------------------------------


def test_a_connection_that_breaks_at_once_is_a_dying_kernel_and_counts_as_nothing() -> None:
    monitor = Monitor()
    step = monitor.detector.dropped(PEER, monitor.now)
    assert step == Wait(timing.REDIAL_GAP)
    monitor.wake(step)
    step = monitor.failed(REFUSED)
    assert isinstance(step, Wait)
    monitor.wake(step)
    assert monitor.failed(REFUSED) == Accuse(Evidence.REFUSED, 0.25)


def test_connections_that_break_again_and_again_are_dialled_ever_more_slowly_and_stalled() -> None:
    """A full table at the peer, or another program at its port."""
    monitor = Monitor()
    dials = 0
    step = monitor.detector.dropped(PEER, monitor.now)
    while isinstance(step, Wait):
        dials += 1
        monitor.wake(step)
        step = monitor.detector.dropped(PEER, monitor.now)
    assert isinstance(step, FlagStalled)
    assert dials <= 8
    assert timing.DIAL_TIMEOUT <= monitor.now <= 2 * timing.DIAL_TIMEOUT + 0.1
    while not isinstance(step, Accuse):
        dials += 1
        if monitor.wake(step) == Probe():
            step = monitor.detector.dropped(PEER, monitor.now)
        else:
            step = Accuse(Evidence.STALLED, 1.0)
    assert monitor.now == GRACE
    assert dials < 20


@pytest.mark.parametrize("other", ["refused", "timeout", "in vain", "answered"])
def test_other_answers_end_a_series_of_broken_connections(other: str) -> None:
    monitor = Monitor()
    monitor.wake(monitor.detector.dropped(PEER, monitor.now))
    match other:
        case "refused":
            monitor.failed(REFUSED)
        case "timeout":
            monitor.failed(TIMEOUT)
        case "in vain":
            monitor.in_vain()
        case "answered":
            monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT)
            monitor.answered()
    monitor.now += 5.0
    monitor.wake()
    assert monitor.detector.dropped(PEER, monitor.now) == Wait(monitor.now + timing.REDIAL_GAP)


# --- addresses ------------------------------------------------------------------


@pytest.mark.parametrize("evidence", [REFUSED, TIMEOUT])
def test_at_an_address_that_only_others_met_all_is_unreachable(evidence: DialOutcome) -> None:
    monitor = Monitor(met=False)
    if evidence is REFUSED:
        monitor.wake(monitor.failed(REFUSED))
    step = monitor.failed(evidence, after=timing.DIAL_TIMEOUT)
    assert step == Accuse(Evidence.UNREACHABLE, 3.0)


def test_an_address_met_meanwhile_makes_the_next_dial_evidence() -> None:
    monitor = Monitor(met=False)
    step = monitor.failed(REFUSED)
    monitor.met = True
    monitor.wake(step)
    assert monitor.failed(REFUSED) == Accuse(Evidence.REFUSED, 0.25)


def test_an_acceptance_where_only_others_met_it_stalls_as_well() -> None:
    monitor = Monitor(met=False)
    assert isinstance(monitor.in_vain(), FlagStalled)
    monitor.now = GRACE
    assert monitor.wake() == Accuse(Evidence.STALLED, 1.0)


def test_the_silence_of_a_peer_without_an_address_runs_the_grace() -> None:
    monitor = Monitor(met=False)
    step = monitor.detector.nowhere_to_dial(PEER, monitor.now)
    assert step == Wait(GRACE)
    assert monitor.wake(step) == Probe()
    step = monitor.detector.nowhere_to_dial(PEER, monitor.now)
    assert step == Accuse(Evidence.STALLED, 1.0)


# --- the kernel -----------------------------------------------------------------


@pytest.mark.parametrize("outcome", [TIMEOUT, REFUSED])
def test_a_kernel_that_answers_makes_it_stalled_whatever_the_dial_says(
    outcome: DialOutcome,
) -> None:
    monitor = Monitor()
    if outcome is REFUSED:
        monitor.wake(monitor.failed(REFUSED))
    assert isinstance(monitor.failed(outcome, after=timing.DIAL_TIMEOUT), Accuse)
    step = monitor.detector.kernel_answers(PEER, monitor.now)
    assert step == FlagStalled(monitor.now + timing.STALL_RENEWAL)
    assert monitor.wake(step) == Probe()
    # Judged anew: this time it says nothing for the peer.
    if outcome is REFUSED:
        monitor.wake(monitor.failed(REFUSED))
    assert isinstance(monitor.failed(outcome, after=timing.DIAL_TIMEOUT), Accuse)


# --- answers --------------------------------------------------------------------


def test_after_an_answer_the_next_accusation_waits_three_seconds_and_doubles() -> None:
    monitor = Monitor()
    rests = []
    for _ in range(8):
        assert isinstance(monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT), Accuse)
        step = monitor.answered()
        assert isinstance(step, Wait)
        rests.append(step.at - monitor.now)
        assert monitor.wake(step) == Probe()
    assert rests == pytest.approx([3, 6, 12, 24, 48, 60, 60, 60])


def test_what_was_not_said_does_not_make_the_next_rest_longer() -> None:
    monitor = Monitor()
    for _ in range(3):
        assert isinstance(monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT), Accuse)
        monitor.wake(monitor.detector.kernel_answers(PEER, monitor.now))
    monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT)
    step = monitor.answered()
    assert step == Wait(monitor.now + timing.REACCUSE_AFTER)


def test_an_answer_is_as_good_as_a_byte() -> None:
    """It starts the grace anew, and nothing before it counts."""
    monitor = Monitor()
    monitor.in_vain()
    monitor.now = GRACE
    assert monitor.wake() == Accuse(Evidence.STALLED, 1.0)
    monitor.now += 0.1
    step = monitor.answered()
    assert step == Wait(monitor.now + timing.REACCUSE_AFTER)
    answered_at = monitor.now
    assert monitor.wake(step) == Probe()
    assert isinstance(monitor.failed(REFUSED), Wait)
    assert monitor.case.heard_at == answered_at


def test_a_long_rest_is_no_silence_of_which_it_could_be_accused_at_once() -> None:
    monitor = Monitor()
    for _ in range(5):
        monitor.in_vain()
        monitor.now = monitor.case.heard_at + GRACE
        assert monitor.wake() == Accuse(Evidence.STALLED, 1.0)
        step = monitor.answered()
        assert monitor.wake(step) == Probe()
    assert monitor.now - monitor.case.heard_at > GRACE


@pytest.mark.parametrize("outcome", [REFUSED, UNREACHABLE])
def test_each_accusation_needs_evidence_of_its_own(outcome: DialOutcome) -> None:
    monitor = Monitor()
    for _ in range(3):
        step = monitor.failed(outcome)
        assert isinstance(step, Wait)
        monitor.wake(step)
        assert isinstance(monitor.failed(outcome), Accuse)
        monitor.wake(monitor.answered())


def test_a_stalled_peer_whose_route_goes_is_given_the_time_of_a_dial() -> None:
    monitor = Monitor()
    monitor.wake(monitor.failed(UNREACHABLE))
    monitor.wake(monitor.in_vain())
    step = monitor.failed(UNREACHABLE)
    assert step == Wait(monitor.now + timing.DIAL_TIMEOUT)


# --- cases ----------------------------------------------------------------------


def test_a_peer_has_one_case() -> None:
    monitor = Monitor()
    again = monitor.detector.open(PEER, life(2), 5.0, heard_at=5.0, met=False, ended=False)
    assert again is None
    assert monitor.case.life == life(1)
    assert monitor.detector.close(PEER) is not None
    assert monitor.detector.close(PEER) is None
    again = monitor.detector.open(PEER, life(2), 5.0, heard_at=5.0, met=False, ended=False)
    assert again == Probe()


EVENTS: dict[str, Callable[[Monitor], Any]] = {
    **{outcome.value: lambda m, o=outcome: m.failed(o) for outcome in DialOutcome},
    "another": lambda m: m.detector.another_answered(PEER, m.now),
    "in vain": lambda m: m.detector.accepted_in_vain(PEER, m.now),
    "dropped": lambda m: m.detector.dropped(PEER, m.now),
    "nowhere": lambda m: m.detector.nowhere_to_dial(PEER, m.now),
    "wake": lambda m: m.wake(),
    "answered": lambda m: m.answered(),
    "kernel": lambda m: m.detector.kernel_answers(PEER, m.now),
}
#: What each stage hears; everything else is stale there and changes nothing.
HEARS = {
    Stage.PROBING: set(EVENTS) - {"wake", "answered"},
    Stage.WAITING: {"wake", "kernel"},
    Stage.ACCUSED: {"answered", "kernel"},
}


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("event", list(EVENTS))
def test_each_stage_hears_its_own_events_and_no_stale_ones(stage: Stage, event: str) -> None:
    monitor = Monitor()
    match stage:
        case Stage.WAITING:
            monitor.failed(LOCAL)
        case Stage.ACCUSED:
            monitor.failed(TIMEOUT, after=timing.DIAL_TIMEOUT)
    assert monitor.case.stage is stage
    before = repr(monitor.case)
    step = EVENTS[event](monitor)
    if event in HEARS[stage]:
        assert step is not None
    else:
        assert step is None
        assert repr(monitor.case) == before


@pytest.mark.parametrize("event", list(EVENTS))
def test_nothing_comes_of_events_about_a_closed_case(event: str) -> None:
    monitor = Monitor()
    monitor.detector.close(PEER)
    assert EVENTS[event](monitor) is None


@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 4)), max_size=60))
def test_whatever_happens_the_case_goes_on_and_no_dial_follows_another_at_once(
    happened: list[tuple[str, float]],
) -> None:
    """Every step leaves a stage in which something is awaited: a dial's outcome, a
    time, or an answer; and refused means refused twice in a row, 30 ms apart."""
    monitor = Monitor()
    refusals: list[float] = []
    for event, pause in happened:
        monitor.now += pause
        stage = monitor.case.stage
        step = EVENTS[event](monitor)
        if stage is Stage.PROBING and event in ("refused", "another"):
            refusals.append(monitor.now)
        match step:
            case Probe():
                assert (stage, event) == (Stage.WAITING, "wake")
                assert monitor.case.stage is Stage.PROBING
            case Wait(at) | FlagStalled(at):
                assert monitor.case.stage is Stage.WAITING
                assert at >= monitor.now - 0.001
            case Accuse(evidence):
                assert monitor.case.stage is Stage.ACCUSED
                if evidence is Evidence.REFUSED:
                    assert len(refusals) >= 2
                if evidence is Evidence.STALLED:
                    assert monitor.now >= monitor.case.heard_at + GRACE
        if stage is Stage.PROBING and event in ("unreachable", "timeout", "in vain"):
            refusals.clear()
        if event == "answered" and step is not None:
            refusals.clear()
