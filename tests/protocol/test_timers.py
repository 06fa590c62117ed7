"""Named deadlines: setting moves, what is left of the old one is ignored."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol.timers import Timers


def due(timers: Timers, now: float) -> list[tuple[str, object]]:
    return list(timers.due(now))


def test_timers_come_up_in_order_of_time_then_of_setting() -> None:
    timers = Timers()
    timers.set("c", 1, 3.0)
    timers.set("b", 1, 2.0)
    timers.set("a", 2, 2.0)
    timers.set("a", 1, 1.0)
    assert timers.next() == 1.0
    assert due(timers, 0.9) == []
    assert due(timers, 2.0) == [("a", 1), ("b", 1), ("a", 2)]
    assert timers.next() == 3.0
    assert due(timers, 99.0) == [("c", 1)]
    assert timers.next() is None


def test_setting_again_moves_a_timer_either_way() -> None:
    timers = Timers()
    timers.set("a", None, 5.0)
    timers.set("a", None, 1.0)
    assert timers.next() == 1.0
    timers.set("a", None, 7.0)
    assert timers.next() == 7.0
    assert due(timers, 6.0) == []
    assert due(timers, 7.0) == [("a", None)]
    assert due(timers, 9.0) == []


def test_a_timer_set_twice_to_one_time_comes_up_once() -> None:
    timers = Timers()
    timers.set("a", None, 5.0)
    timers.set("a", None, 5.0)
    assert due(timers, 5.0) == [("a", None)]
    assert timers.next() is None


def test_set_earlier_never_delays() -> None:
    timers = Timers()
    timers.set_earlier("a", None, 5.0)
    timers.set_earlier("a", None, 7.0)
    assert timers.next() == 5.0
    timers.set_earlier("a", None, 3.0)
    assert timers.next() == 3.0


def test_a_cancelled_timer_does_not_come_up() -> None:
    timers = Timers()
    timers.set("a", 1, 1.0)
    timers.set("a", 2, 2.0)
    timers.cancel("a", 1)
    timers.cancel("a", 3)
    assert not timers.is_set("a", 1)
    assert timers.is_set("a", 2)
    assert timers.next() == 2.0
    assert due(timers, 5.0) == [("a", 2)]
    assert not timers.is_set("a", 2)


def test_a_timer_set_while_others_come_up_is_not_lost() -> None:
    timers = Timers()
    timers.set("a", None, 1.0)
    timers.set("b", None, 2.0)
    for kind, _ in timers.due(2.0):
        if kind == "a":
            assert not timers.is_set("a", None)
            timers.set("a", None, 9.0)
    assert timers.next() == 9.0


NAMES = st.sampled_from(["a", "b", "c"])
TIMES = st.integers(0, 9).map(float)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), NAMES, TIMES),
            st.tuples(st.just("set_earlier"), NAMES, TIMES),
            st.tuples(st.just("cancel"), NAMES, TIMES),
            st.tuples(st.just("due"), NAMES, TIMES),
        )
    )
)
def test_a_set_of_timers_is_a_map_of_names_to_times(steps: list[tuple[str, str, float]]) -> None:
    timers, model = Timers(), dict[str, float]()
    for step, name, at in steps:
        match step:
            case "set":
                timers.set(name, None, at)
                model[name] = at
            case "set_earlier":
                timers.set_earlier(name, None, at)
                model[name] = min(at, model.get(name, at))
            case "cancel":
                timers.cancel(name, None)
                model.pop(name, None)
            case "due":
                times = [model.pop(kind) for kind, _ in timers.due(at)]
                assert times == sorted(times)
                assert all(then <= at for then in times)
                assert all(then > at for then in model.values())
        assert timers.next() == min(model.values(), default=None)
        assert all(timers.is_set(n, None) is (n in model) for n in "abc")


def test_many_moves_of_one_timer_leave_one() -> None:
    timers = Timers()
    for step in range(1000):
        timers.set("a", None, 1000.0 - step)
    assert timers.next() == 1.0
    assert due(timers, 2000.0) == [("a", None)]


def test_timers_that_are_moved_for_ever_take_no_more_room() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set("a", number % 10, 1e6 - number)
        timers.set("b", None, 5.0)
    assert len(timers._heap) < 100
    assert [name for name, _ in due(timers, 1e9)] == ["b", *["a"] * 10]
