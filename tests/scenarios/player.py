"""Plays a scenario on a stage, and has a judge hear and see what comes of it.

Whatever the scenario was, it ends in the same way: the wall clocks of all who are left jump,
which changes nothing (13), and the oldest leaves, which all are told (12).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from p2pmesh.protocol import timing
from tests.scenarios.judge import Judge, Told, View, disagreement
from tests.scenarios.steps import (
    DAY,
    IN_1970,
    IN_2038,
    Add,
    BringUp,
    Copy,
    Expected,
    Heal,
    Kill,
    Leave,
    PlugIn,
    Replace,
    Resume,
    Scenario,
    SetClock,
    Settle,
    Sleep,
    Split,
    Start,
    Step,
    Stop,
    TakeDown,
    Unplug,
    Wait,
    Wake,
)

_TOLD_SHOWN: Final = 60


class Stage(Protocol):
    """Where scenarios are played."""

    #: Seconds for which one that may fail is taken for failed.
    forgives: float

    def begin(self, scenario: Scenario) -> None:
        """So many agents, who have met; 0 is the oldest."""

    def do(self, step: Step) -> None:
        """Everything but ``Settle``."""

    def until(self, reason: Callable[[], str], within: float) -> None:
        """Time passes until there is no reason left; then or at the latest after ``within``
        seconds of the protocol raises an AssertionError with the last one."""

    def told(self) -> Sequence[Told]:
        """What was told since this was asked last."""

    def view(self, agent: int) -> View | None:
        """None: its process has ended."""

    def now(self) -> float: ...


def settles_within(count: int) -> float:
    """1: seconds, after all faults stopped, in which ``count`` live nodes come to hold one
    view: the last dead one is noticed (silence, a dial, the longest question), the last
    buried one is dialled by a healing node and asked about, and what news missed is
    found by two beats and a repair."""
    lan = timing.PRESETS["lan"]
    noticed = lan.silence_after + timing.DIAL_TIMEOUT + timing.UNMET_SUSPICION
    healed = max(timing.HEAL_INTERVAL, count / 10) + timing.DIAL_TIMEOUT + timing.SILENT_SUSPICION
    repaired = 2 * lan.heartbeat_interval + timing.REPAIR_INTERVAL
    return noticed + healed + repaired


class World:
    """Who should be there, and who of them reach each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.living = set(range(count))
        self.copied: list[frozenset[int]] = []  # one of each pair ends
        self._still: set[int] = set()  # stopped, or asleep
        self._unplugged: set[int] = set()
        self._sides: tuple[tuple[int, ...], ...] = ()

    def do(self, step: Step) -> None:
        match step:
            case Split(sides):
                self._sides = sides
            case Heal():
                self._sides = ()
            case Unplug(agent) | TakeDown(agent):
                self._unplugged.add(agent)
            case PlugIn(agent) | BringUp(agent):
                self._unplugged.discard(agent)
            case Kill(agent) | Leave(agent):
                self.living.discard(agent)
            case Start(agent):
                self.living.add(agent)
            case Add() | Replace():
                self._add()
            case Copy(agent):
                self.copied.append(frozenset((agent, self._add())))
            case Stop(agent) | Sleep(agent):
                self._still.add(agent)
            case Resume(agent) | Wake(agent):
                self._still.discard(agent)
            case _:
                pass

    def _add(self) -> int:
        self.living.add(self.count)
        self.count += 1
        return self.count - 1

    def parts(self) -> list[list[int]]:
        """Those of each part reach each other; who stands still is in none."""
        there = self.living - self._still
        alone = [[agent] for agent in sorted(there & self._unplugged)]
        first, *others = map(set, self._sides or ((),))
        first |= set(range(self.count)).difference(first, *others)
        together = [sorted(there & side - self._unplugged) for side in (first, *others)]
        return [part for part in (*together, *alone) if part]


def play(scenario: Scenario, stage: Stage) -> None:
    """Raises an AssertionError that prints the scenario, what went against it, and the end of
    what was told."""
    judge = Judge(stage.forgives)
    try:
        stage.begin(scenario)
        world = _begin(scenario, stage, judge)
        _do(scenario.steps, stage, world, judge)
        _find_nothing_wrong(judge, scenario.expected, stage)
        _end(stage, world, judge)
    except AssertionError as error:
        told = "\n".join(map(str, judge.told[-_TOLD_SHOWN:]))
        error.add_note(f"The scenario:\n{scenario}\nTold, at the end:\n{told}")
        raise


def _begin(scenario: Scenario, stage: Stage, judge: Judge) -> World:
    world = World(scenario.agents)
    for agent in world.living:
        view = stage.view(agent)
        assert view is not None
        judge.knows(agent, view.node_id)
        judge.lives(agent)
    stage.told()  # the beginning is no part of it
    _settle(stage, world, judge)
    return world


def _do(steps: Iterable[Step], stage: Stage, world: World, judge: Judge) -> None:
    for step in steps:
        if isinstance(step, Settle):
            _settle(stage, world, judge, step.within)
            continue
        stage.do(step)
        world.do(step)
        for told in stage.told():
            judge.hear(told)


def _find_nothing_wrong(judge: Judge, expected: Expected, stage: Stage) -> None:
    wrong = judge.judge(expected, stage.now())
    assert not wrong, "\n".join(wrong)


def _end(stage: Stage, world: World, judge: Judge) -> None:
    (living,) = world.parts()
    views = {agent: view for agent in living if (view := stage.view(agent)) is not None}
    oldest = min(views, key=lambda agent: (views[agent].life, views[agent].node_id))
    jumps = map(SetClock, living, itertools.cycle((-DAY, IN_1970, DAY, IN_2038)))
    steps = (*jumps, Wait(5.0, real=2.0), Settle(), Leave(oldest), Settle())
    _do(steps, stage, world, judge)
    _find_nothing_wrong(judge, Expected(leaves=frozenset({oldest}), leader_changes=1), stage)


def _settle(stage: Stage, world: World, judge: Judge, within: float | None = None) -> None:
    seen: list[dict[int, View]] = []

    def reason() -> str:
        seen.clear()
        views = {agent: stage.view(agent) for agent in sorted(world.living)}
        _end_copies(world, views)
        for part in world.parts():
            held = {agent: view for agent in part if (view := views[agent]) is not None}
            if gone := [agent for agent in part if agent not in held]:
                return f"no longer there: {gone}"
            if disagrees := disagreement(list(held.values())):
                return f"{part}: {disagrees}"
            seen.append(held)
        return "".join(f"both live: {sorted(pair)}" for pair in world.copied)

    stage.until(reason, settles_within(world.count) if within is None else within)
    for told in stage.told():
        judge.hear(told)
    for part in seen:
        for agent, view in part.items():
            judge.knows(agent, view.node_id)
        judge.settled(part)


def _end_copies(world: World, views: dict[int, View | None]) -> None:
    """Of a pair with one identity exactly one ends."""
    for pair in list(world.copied):
        over = [agent for agent in pair if views[agent] is None]
        if len(over) == 1:
            world.copied.remove(pair)
            world.living.discard(over[0])
