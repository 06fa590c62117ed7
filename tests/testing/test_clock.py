"""Virtual time."""

from __future__ import annotations

from p2pmesh.testing.clock import Clock


def test_calls_come_in_the_order_of_their_times_then_of_their_asking() -> None:
    clock = Clock()
    done: list[tuple[float, str]] = []
    for at, what in ((2.0, "b"), (1.0, "a"), (2.0, "c")):
        clock.at(at, lambda what=what: done.append((clock.now, what)))
    clock.run_to(3.0)
    assert done == [(1.0, "a"), (2.0, "b"), (2.0, "c")]
    assert clock.now == 3.0


def test_nothing_that_is_due_later_is_done() -> None:
    clock = Clock()
    done: list[str] = []
    clock.at(2.0, done.append, "later")
    clock.run_to(1.999)
    assert done == []


def test_a_call_for_the_past_comes_now_and_never_turns_the_clock_back() -> None:
    clock = Clock()
    clock.run_to(5.0)
    times: list[float] = []
    clock.at(1.0, lambda: times.append(clock.now))
    clock.run_to(5.0)
    assert times == [5.0]


def test_what_a_call_asks_for_is_done_in_the_same_run() -> None:
    clock = Clock()
    times: list[float] = []
    clock.at(1.0, lambda: clock.after(0.5, lambda: times.append(clock.now)))
    clock.run_to(2.0)
    assert times == [1.5]
