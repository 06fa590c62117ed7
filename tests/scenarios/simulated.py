"""The stage in the simulator: real cores, a model of the kernel, and virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import Agent, Event, MemberFailed, MemberJoined, MemberLeft
from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.node import BEGINNING
from tests.scenarios.judge import Told, View, life_of
from tests.scenarios.steps import (
    BACKLOG,
    Add,
    Besiege,
    BringUp,
    Busy,
    ChangeInterface,
    Copy,
    Cut,
    CutOneWay,
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

#: What only a real process can do: of its child's memory and files nobody else sees anything.
REAL_ONLY: Final = (Fork,)
#: True time, as ``SetClock`` means it (unix seconds).
TRUE_TIME: Final = BEGINNING / 1000
#: What is left of a host's addresses when its only interface is down.
LOOPBACK: Final = "127.0.0.1:8078"
_MET_AFTER: Final = 3.0  # each ring neighbour has been dialled once


def can_play(scenario: Scenario) -> bool:
    return not any(isinstance(step, REAL_ONLY) for step in scenario.steps)


class SimStage:
    """One simulated network, of agents with data directories."""

    forgives = timing.SILENT_SUSPICION

    def __init__(self, net: SimNetwork) -> None:
        self.net = net
        self._told: list[Told] = []
        self._leaves_within = timing.LEAVE_TIMEOUT + 1.0
        net.observers.append(self._hear)

    def begin(self, scenario: Scenario) -> None:
        first = "10.0.0.0:8078"
        for number in range(scenario.agents):
            others: dict[str, Any] = {}
            if scenario.is_ambiguous and number:
                others["addresses"] = (f"10.0.0.{number}:8078", first)
            self.net.add(persistent=True, **others)
            self.net.run(0.15)
        self.net.run_until(self.net.agrees, within=20.0)
        self.net.run(_MET_AFTER)

    def do(self, step: Step) -> None:
        net = self.net
        match step:
            case Split(sides):
                net.partition(*sides)
            case Cut(one, other):
                net.cut(one, other)
            case CutOneWay(source, target):
                net.cut(source, target, both=False)
            case Lose(share):
                net.set_loss(share)
            case Heal():
                net.set_loss(0.0)
                net.heal()
            case Unplug(agent):
                net.unplug(agent)
            case PlugIn(agent):
                net.plug_in(agent)
            case Readdress(agent) | ChangeInterface(agent):
                net.readdress(agent)
            case TakeDown(agent):
                net.unplug(agent)
                net.set_addresses(agent, (LOOPBACK,))
            case BringUp(agent):
                net.plug_in(agent)
                addresses = (net.nodes[agent].address,)
                net.set_addresses(agent, addresses)
            case Besiege(agent, strangers):
                net.besiege(agent, strangers, backlog=BACKLOG)
            case SetClock(agent, ahead):
                net.set_wall(agent, round(ahead * 1000))
            case Wait(seconds):
                net.run(seconds)
            case _:
                self._do_to_process(step)

    def _do_to_process(self, step: Step) -> None:
        net = self.net
        match step:
            case Kill(agent):
                net.kill(agent)
            case Leave(agent):
                net.leave(agent)
                net.run_until(lambda: not net.nodes[agent].is_running, within=self._leaves_within)
            case Start(agent):
                net.start(agent)
            case Add():
                net.add(persistent=True)
            case Copy(agent):
                same = Agent(net.nodes[agent].instance_id, persistent=True)
                net.add(identity_of=agent, agent=same, persistent=True)
            case Replace(agent):
                net.add(address_of=agent, persistent=True)
            case Stop(agent):
                net.stop(agent)
            case Resume(agent):
                net.resume(agent)
            case Sleep(agent):
                net.sleep(agent)
            case Wake(agent):
                net.wake(agent)
            case Starve(agent, runs, stops, seconds):
                net.starve(agent, runs=runs, stops=stops, seconds=seconds)
            case Busy(agent, seconds) | HoldInterpreter(agent, seconds):
                net.starve(agent, runs=0.0, stops=seconds, seconds=seconds)
            case _:
                raise AssertionError(f"not in the simulator: {step}")

    def until(self, reason: Callable[[], str], within: float) -> None:
        last = ""

        def is_over() -> bool:
            nonlocal last
            last = reason()
            return not last

        try:
            self.net.run_until(is_over, within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None

    def told(self) -> Sequence[Told]:
        told, self._told = self._told, []
        return told

    def view(self, agent: int) -> View | None:
        node = self.net.nodes[agent]
        if not node.is_running:
            return None
        leadership = node.leadership()
        me = node.mesh.me(node.now())
        return View(
            node_id=me.node_id,
            instance_id=me.instance_id,
            life=life_of(me.life or "0"),
            hash=node.mesh.view_hash().hex(),
            live=frozenset(member.node_id for member in node.members("alive", "suspect")),
            leader=leadership.leader_id,
            epoch=leadership.epoch,
            leads=leadership.token is not None,
        )

    def now(self) -> float:
        return self.net.clock.now

    def _hear(self, node: SimNode, event: Event) -> None:
        told = msgspec.to_builtins(event)
        if isinstance(event, MemberJoined | MemberFailed | MemberLeft):
            member = next((m for m in node.members() if m.node_id == event.node_id), None)
            if member is None or not member.life:
                return
            told["version"] = [member.life, member.incarnation]
        self._told.append(Told(self.net.clock.now, node.number, node.runs, told))
