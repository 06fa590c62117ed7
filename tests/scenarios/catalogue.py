"""Every scenario, for each stage that can play it.

Where the design says that nobody dies and the leader stays, ``Expected()`` says so by itself:
each exception is written down.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.scenarios.steps import (
    DAY,
    IN_1970,
    IN_2038,
    Add,
    Besiege,
    BringUp,
    Busy,
    ChangeInterface,
    Copy,
    Cut,
    CutOneWay,
    Expected,
    Fork,
    Heal,
    HoldInterpreter,
    Kill,
    Leave,
    Lose,
    PlugIn,
    Readdress,
    Replace,
    Resume,
    Scenario,
    SetClock,
    Settle,
    Sleep,
    Split,
    Start,
    Starve,
    Step,
    Stop,
    TakeDown,
    Unplug,
    Wait,
    Wake,
)

HEALED: Final = 5.0  # a heal may take this long

UNREACHABLE: Final = frozenset({"unreachable"})
REFUSED: Final = frozenset({"refused"})
STALLED: Final = frozenset({"stalled"})

QUESTION: Final = frozenset({"member_suspected"})
STALL: Final = frozenset({"member_stalled"})
DOUBLE: Final = frozenset({"identity_conflict"})


def only(*agents: int) -> frozenset[int]:
    return frozenset(agents)


def all_of(count: int) -> frozenset[int]:
    return frozenset(range(count))


# --- splits -----------------------------------------------------------------------------


def split(name: str, *sides: tuple[int, ...], is_real: bool = False) -> Scenario:
    """Each side buries the others and goes on; the heal keeps the oldest.  Sides meet two at a
    time, and each time the younger leader steps down."""
    count = sum(map(len, sides))
    return Scenario(
        f"{name}, {count} agents",
        count,
        (Split(sides), Settle(), Wait(10.0, real=1.0), Heal(), Settle(within=HEALED)),
        Expected(fails=all_of(count), evidence=UNREACHABLE, leader_changes=len(sides)),
        is_real=is_real,
    )


SPLITS: Final = (
    split("an even split", (0, 1, 2), (3, 4, 5), is_real=True),
    split("an even split", (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)),
    split("an even split", (0, 1), (2, 3)),
    split("a split in three", (0, 1), (2, 3), (4, 5), is_real=True),
    split("a split in three", (0, 3, 6), (1, 4, 7, 9), (2, 5, 8)),
    split("the oldest against all", (0,), (1, 2, 3, 4), is_real=True),
    split("the youngest against all", (0, 1, 2), (3,), is_real=True),
    split("the leader with the few", (0, 1, 2), (3, 4, 5, 6, 7, 8, 9)),
    split("the leader with the many", (0, 2, 3, 4, 6, 7, 8), (1, 5, 9)),
    split("every other one", (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)),
    Scenario(
        "a split that comes and goes",
        8,
        (
            *(
                step
                for pause in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
                for step in (
                    Split(((0, 2, 4, 6), (1, 3, 5, 7))), Wait(pause), Heal(), Wait(pause / 2)
                )
            ),
            Settle(),
        ),
        Expected(fails=all_of(8), evidence=UNREACHABLE, leader_changes=14),
    ),
    Scenario(
        "some die and some leave on the other side of a split",
        8,
        (
            Split(((0, 1, 2, 3), (4, 5, 6, 7))),
            Settle(),
            Kill(7),
            Leave(6),
            Settle(),
            Wait(60.0),
            Heal(),
            Settle(),
        ),
        Expected(
            fails=all_of(8), evidence=UNREACHABLE | REFUSED, leaves=only(6), leader_changes=2
        ),
    ),
    Scenario(
        "one leaves in the moment of a split",
        4,
        (Split(((0, 1), (2, 3))), Leave(3), Settle(), Heal(), Settle()),
        Expected(fails=all_of(4), evidence=UNREACHABLE, leaves=only(3), leader_changes=2),
        is_real=True,
    ),
)  # fmt: skip


# --- some paths -------------------------------------------------------------------------


def between(
    name: str, count: int, *cuts: Step, is_real: bool = False, real: float | None = 20.0
) -> Scenario:
    """Others reach both ends of these cuts, for two minutes: each lives on by their word."""
    ends = {
        agent
        for cut in cuts
        for agent in ((cut.one, cut.other) if isinstance(cut, Cut) else (cut.source, cut.target))
    }
    return Scenario(
        f"{name}, {count} agents",
        count,
        (*cuts, Wait(120.0, real=real), Heal(), Settle()),
        Expected(
            may_fail=frozenset(ends),
            leader_changes=1,
            notices=QUESTION if count == 3 else frozenset(),  # of more not all are neighbours
        ),
        is_real=is_real,
    )


def later(scenario: Scenario) -> Scenario:
    """When no link is left but those of the rings."""
    name = f"a minute after they met: {scenario.name}"
    return replace(scenario, name=name, steps=(Wait(60.0), *scenario.steps))


PATHS: Final = (
    between("a triangle without one side", 3, Cut(0, 1), is_real=True),
    between("two who do not reach each other", 4, Cut(0, 1)),
    between("two who do not reach each other", 6, Cut(0, 1)),
    between("two who do not reach each other", 10, Cut(2, 7)),
    between("the leader is not heard by one", 3, CutOneWay(0, 1), is_real=True, real=None),
    between("the leader does not hear one", 3, CutOneWay(1, 0), is_real=True),
    between("the leader is not heard by one", 6, CutOneWay(0, 1)),
    between("the leader does not hear one", 10, CutOneWay(1, 0)),
    between("the leader is not heard by half", 9, *(CutOneWay(0, n) for n in (1, 3, 5, 7))),
    between("the leader does not hear half", 9, *(CutOneWay(n, 0) for n in (1, 3, 5, 7))),
    later(between("the leader is not heard by half", 9, *(CutOneWay(0, n) for n in (1, 3, 5, 7)))),
    Scenario(
        "the cable of one comes out, and is put in again",
        4,
        (Unplug(1), Settle(), PlugIn(1), Settle()),
        Expected(fails=all_of(4), evidence=UNREACHABLE, leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "the cable of the leader comes out, and is put in again",
        5,
        (Unplug(0), Settle(), PlugIn(0), Settle()),
        Expected(fails=all_of(5), evidence=UNREACHABLE, leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "the interface of one goes down, and comes up again",
        4,
        (TakeDown(1), Settle(), BringUp(1), Settle()),
        Expected(fails=all_of(4), evidence=UNREACHABLE, leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "a fifth of all packets is lost for a minute",
        6,
        (Lose(0.2), Wait(60.0, real=20.0), Heal(), Settle()),
        is_real=True,
    ),
)


# --- addresses --------------------------------------------------------------------------

ADDRESSES: Final = (
    Scenario(
        "the leader's host gets another address",
        4,
        (Readdress(0), Wait(10.0), Settle()),
        Expected(may_fail=only(0), leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "the leader goes from one interface to another",
        4,
        (ChangeInterface(0), Wait(10.0), Settle()),
        Expected(may_fail=only(0), leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "one dies and comes back at another address",
        4,
        (Kill(1), Readdress(1), Start(1), Settle()),
        Expected(may_fail=only(1), evidence=REFUSED | UNREACHABLE),
        is_real=True,
    ),
    Scenario(
        "another takes the address and the port of one that died",
        4,
        (Kill(1), Replace(1), Settle()),
        Expected(fails=only(1), evidence=REFUSED),
        is_real=True,
    ),
    Scenario(
        "one stops and one dies, and every address of theirs leads elsewhere, too",
        4,
        (Stop(1), Wait(8.0), Resume(1), Settle(), Kill(0), Settle()),
        Expected(fails=only(0), evidence=REFUSED, leader_changes=1, notices=STALL),
        is_ambiguous=True,
        is_real=True,
    ),
)


# --- ends and beginnings ----------------------------------------------------------------


def rolling(end: type[Kill | Leave], count: int) -> tuple[Step, ...]:
    """One after the other."""
    return tuple(
        step for agent in range(count) for step in (end(agent), Settle(), Start(agent), Settle())
    )


RESTARTS: Final = (
    Scenario(
        "all leave and come back, one after the other",
        3,
        rolling(Leave, 3),
        Expected(leaves=all_of(3), leader_changes=3),
        is_real=True,
    ),
    Scenario(
        "all die and come back, one after the other",
        5,
        rolling(Kill, 5),
        Expected(fails=all_of(5), evidence=REFUSED, leader_changes=5),
        is_real=True,
    ),
    Scenario(
        "all die and come back at once",
        4,
        (*map(Kill, range(4)), Wait(2.0), *map(Start, range(4)), Settle()),
        # Their addresses are all that is left of those who are not back yet.
        Expected(may_fail=all_of(4), leader_changes=3),
        is_real=True,
    ),
    Scenario(
        "one dies and comes back before anybody asked",
        4,
        (Kill(2), Start(2), Settle()),
        Expected(may_fail=only(2), evidence=REFUSED),
        is_real=True,
    ),
    Scenario(
        "an identity is copied while it lives",
        4,
        (Copy(2), Settle()),
        Expected(may_fail=only(2), new_lives=only(2, 4), notices=DOUBLE),
        is_real=True,
    ),
    Scenario(
        "an identity is copied to the other side of a split",
        4,
        (Split(((2, 3), (0, 1))), Settle(), Copy(1), Wait(10.0, real=4.0), Heal(), Settle()),
        Expected(fails=all_of(4), leader_changes=2, new_lives=only(1, 4), notices=DOUBLE),
        is_real=True,
    ),
)


# --- time -------------------------------------------------------------------------------


def starved(runs: float, stops: float, *agents: int, delay: float = 0.0005) -> Scenario:
    """6: who hardly runs neither dies of it nor has anybody else die."""
    starving = (Starve(agent, runs, stops, 60.0) for agent in agents)
    return Scenario(
        f"{len(agents)} of 5 run {runs:g} s and stop {stops:g} s for a minute, {delay:g} s apart",
        5,
        (*starving, Wait(65.0), Settle()),
        delay=delay,
    )


TIME: Final = (
    Scenario(
        "wall clocks jump by a day, to 1970 and to 2038, and one more joins",
        4,
        (
            SetClock(0, DAY),
            SetClock(1, -DAY),
            SetClock(2, IN_1970),
            SetClock(3, IN_2038),
            Wait(10.0, real=4.0),
            Add(),
            Settle(),
            SetClock(0, IN_1970),
            SetClock(1, IN_2038),
            Wait(20.0, real=4.0),
            Settle(),
        ),
        is_real=True,
    ),
    Scenario(
        "the leader is stopped for longer than the grace",
        5,
        (Stop(0), Settle(), Wait(10.0, real=1.0), Resume(0), Settle()),
        Expected(fails=only(0), evidence=STALLED, leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "the leader's machine sleeps",
        4,
        (Sleep(0), Settle(), Wait(600.0, real=14.0), Wake(0), Settle()),
        Expected(fails=only(0), evidence=UNREACHABLE, leader_changes=2),
        is_real=True,
    ),
    Scenario(
        "one sleeps while another dies and a third leaves",
        6,
        (Sleep(1), Wait(10.0), Kill(2), Leave(3), Wait(60.0, real=10.0), Wake(1), Settle()),
        Expected(fails=only(1, 2), leaves=only(3)),
        is_real=True,
    ),
    Scenario(
        "all machines sleep, and wake at once",
        4,
        (
            *map(Sleep, range(4)),
            Wait(600.0, real=16.0),
            *map(Wake, range(4)),
            Wait(6.0),
            Settle(),
        ),
        Expected(leader_changes=1),  # the same one leads, under a new epoch
        is_real=True,
    ),
    starved(0.5, 0.5, 0, 4),
    starved(0.2, 1.0, 0, 4),
    starved(0.05, 1.5, 0, 4),
    starved(0.1, 2.5, 0, 4),
    starved(0.01, 5.0, 0, 4),
    starved(0.1, 1.5, 0, 1, 2, 3, 4),
    starved(0.1, 2.5, 0, 4, delay=0.02),
    Scenario(
        "two hardly run for twenty seconds, the leader one of them",
        4,
        (Starve(0, 0.02, 0.98, 20.0), Starve(2, 0.05, 4.0, 20.0), Wait(21.0), Settle()),
        Expected(notices=STALL),
        is_real=True,
    ),
    Scenario(
        "the leader computes for ten seconds, and a library of another holds the interpreter",
        4,
        (Busy(0, 10.0), HoldInterpreter(2, 5.0), Wait(11.0), Settle()),
        Expected(notices=STALL),
        is_real=True,
    ),
    Scenario(
        "one forks and dies, and its child lives on",
        3,
        (Fork(0), Wait(2.0), Kill(0), Settle()),
        Expected(fails=only(0), evidence=REFUSED, leader_changes=1),
        is_real=True,
    ),
    Scenario(
        "150 strangers fill the backlog of a leader that is stopped",
        4,
        (Stop(0), Besiege(0, 150), Wait(9.0, real=4.0), Resume(0), Settle()),
        Expected(notices=STALL),
        is_real=True,
    ),
)

CATALOGUE: Final = (*SPLITS, *PATHS, *ADDRESSES, *RESTARTS, *TIME)
