"""The stage in the lab: real processes, each on a host of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from p2pmesh.protocol.timing import LEAVE_TIMEOUT
from tests.lab.network import CONTAINER_BRIDGE, Host, Lab
from tests.lab.starving import Starvation
from tests.processes import HANG_GUARD, Process, eventually
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

#: A machine that does much else takes several times as long; nothing rests on how long.
SLOWNESS: Final = 4.0
#: Less than that, and a busy machine at times takes it back before the process had it.
SHORTEST_SLICE: Final = 0.02
_MET_AFTER: Final = 2.5  # each ring neighbour has been dialled once
_LOOKS: Final = 0.05
_LEAVES_WITHIN: Final = LEAVE_TIMEOUT + 1.0
_NOTHING_YET: Final = View("", "", (), "", frozenset(), None, None, False)


def can_play(scenario: Scenario) -> bool:
    starved = (step for step in scenario.steps if isinstance(step, Starve))
    return all(step.runs >= SHORTEST_SLICE for step in starved)


class Agent:
    """One agent, and the processes that it had."""

    def __init__(self, host: Host, data: Path, config: dict[str, Any]) -> None:
        self.host = host
        self.data = data
        self.runs = 0
        self.process: Process
        self._view = _NOTHING_YET
        self._orders = data.with_suffix(".orders")
        self._given = 0
        self._config = config | {"data": str(data), "orders": str(self._orders), "ahead": 0.0}
        self._read = 0  # lines

    def start(self) -> None:
        self._orders.write_text("")
        self._given = self._read = 0
        self._view = _NOTHING_YET
        self.runs += 1
        command = (sys.executable, "-m", "tests.lab.agent", json.dumps(self._config))
        self.process = self.host.start(*command)

    @property
    def life(self) -> tuple[int, ...]:
        return life_of(self.process.event("joined")["life"])

    @property
    def view(self) -> View | None:
        return None if self.process.is_over else self._view

    def news(self) -> list[tuple[float, dict[str, Any]]]:
        """The events since the last time; the latest view is kept."""
        news = []
        for line in self.process.lines[self._read :]:
            self._read += 1
            value = dict(line.value)
            if value["event"] == "view":
                del value["event"]
                value |= {"life": life_of(value["life"]), "live": frozenset(value["live"])}
                self._view = View(**value)
            else:
                news.append((line.at, value))
        return news

    def order(self, what: str, seconds: float = 0.0) -> None:
        self._given += 1
        with self._orders.open("a") as orders:
            orders.write(json.dumps({"do": what, "seconds": seconds}) + "\n")

    def has_done(self) -> None:
        """Waits until all orders are carried out."""
        self.process.event("did", number=self._given)

    def set_clock(self, ahead: float) -> None:
        self._config["ahead"] = ahead
        self.order("set_clock", ahead)
        self.has_done()


class LabStage:
    """A context manager: what is done by threads ends with it."""

    forgives = 10.0

    def __init__(self, lab: Lab, mesh: str) -> None:
        self.lab = lab
        self._mesh = mesh
        self._agents: list[Agent] = []
        self._sides: tuple[tuple[int, ...], ...] = ()
        self._starving: list[Starvation] = []
        self._scenario: Scenario
        self._peers: list[str] = []
        self._unheard: list[Told] = []

    def __enter__(self) -> LabStage:
        return self

    def __exit__(self, *error: object) -> None:
        for starvation in self._starving:
            starvation.end()

    def begin(self, scenario: Scenario) -> None:
        self._scenario = scenario
        hosts = [self._new_host() for _ in range(scenario.agents)]
        self._peers = [host.address for host in hosts]
        self._agents = [self._new(host) for host in hosts]
        first, *others = self._agents
        first.start()
        first.process.event("joined")
        for agent in others:  # all at once: who is older than whom is not known before
            agent.start()
        self._agents.sort(key=lambda agent: agent.life)
        eventually(self._have_views, "all have views")
        time.sleep(_MET_AFTER)

    def _have_views(self) -> bool:
        self._listen()
        return all(agent.view not in (None, _NOTHING_YET) for agent in self._agents)

    def _new(self, host: Host, data: str = "data") -> Agent:
        is_ambiguous = self._scenario.is_ambiguous
        bind = [host.address, CONTAINER_BRIDGE] if is_ambiguous else []
        config = {"mesh": self._mesh, "peers": self._peers, "bind": bind}
        return Agent(host, host.home / data, config)

    # --- steps ------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        lab = self.lab
        match step:
            case Split(sides):
                self._sides = sides
                self._split()
            case Cut(one, other):
                lab.cut(self._host(one), self._host(other))
            case CutOneWay(source, target):
                lab.cut_one_way(self._host(source), self._host(target))
            case Lose(share):
                lab.lose(share)
            case Heal():
                self._sides = ()
                lab.heal()
            case Unplug(agent):
                self._host(agent).unplug()
            case PlugIn(agent):
                self._host(agent).plug_in()
            case Readdress(agent):
                host = self._host(agent)
                host.readdress(_another(host.address))
            case ChangeInterface(agent):
                host = self._host(agent)
                host.change_interface("wlan0", _another(host.address))
            case TakeDown(agent):
                self._host(agent).take_down()
            case BringUp(agent):
                self._host(agent).bring_up()
            case Besiege(agent, strangers):
                self._besiege(agent, strangers)
            case Wait(seconds, real):
                time.sleep(seconds if real is None else real)
            case Add():
                self._add(self._new(self._new_host()))
            case Copy(agent):
                copy = self._new(self._new_host())
                shutil.copytree(self._agents[agent].data, copy.data)
                self._add(copy)
            case Replace(agent):
                self._add(self._new(self._host(agent), "other"))
            case _:
                self._do_to_process(step)

    def _do_to_process(self, step: Step) -> None:
        agent = self._agents[step.agent]  # type: ignore[union-attr]
        match step:
            case Kill():
                agent.process.kill()
            case Leave():
                asked_at = time.monotonic()
                assert agent.process.leave(_LEAVES_WITHIN * SLOWNESS) == 0
                print(f"{step}: took {time.monotonic() - asked_at:.2f} s")
            case Start():
                self._listen()
                agent.start()
            case Stop():
                agent.process.signal(signal.SIGSTOP)
            case Resume():
                agent.process.signal(signal.SIGCONT)
            case Sleep():
                agent.process.signal(signal.SIGSTOP)
                agent.host.unplug()
            case Wake():
                agent.host.plug_in()
                agent.process.signal(signal.SIGCONT)
            case Starve(_, runs, stops, seconds):
                self._starving.append(
                    Starvation(agent.process, runs=runs, stops=stops, seconds=seconds)
                )
            case Busy(_, seconds):
                agent.order("compute", seconds)
            case HoldInterpreter(_, seconds):
                agent.order("hold_interpreter", seconds)
            case Fork():
                agent.order("fork")
                agent.has_done()
            case SetClock(_, ahead):
                agent.set_clock(ahead)
            case _:
                raise AssertionError(f"not in the lab: {step}")

    def _host(self, agent: int) -> Host:
        return self._agents[agent].host

    def _new_host(self) -> Host:
        (host,) = self.lab.hosts(1)
        host.home.mkdir(parents=True)
        host.limit_backlogs(BACKLOG)
        if self._scenario.is_ambiguous:
            host.add_container_bridge()
        return host

    def _add(self, agent: Agent) -> None:
        self._agents.append(agent)
        self._split()
        agent.start()

    def _split(self) -> None:
        """Who is not named is with the first side."""
        if self._sides:
            first, *others = ({self._host(agent) for agent in side} for side in self._sides)
            first |= {agent.host for agent in self._agents}.difference(first, *others)
            for one, other in itertools.combinations((first, *others), 2):
                self.lab.split(one, other)

    def _besiege(self, agent: int, strangers: int) -> None:
        command = (sys.executable, "-m", "tests.lab.probe", "besiege")
        besieger = self._new_host().start(*command, self._host(agent).address, str(strangers))
        assert besieger.event("besieging")["connected"] <= BACKLOG + 1

    # --- what is told -----------------------------------------------------------------

    def until(self, reason: Callable[[], str], within: float) -> None:
        deadline = time.monotonic() + max(within * SLOWNESS, HANG_GUARD)
        while True:
            self._listen()
            last = reason()
            if not last:
                return
            if time.monotonic() > deadline:
                errors = "\n".join(agent.process.errors[-2000:] for agent in self._agents)
                raise AssertionError(f"{last}\n{errors}")
            time.sleep(_LOOKS)

    def _listen(self) -> None:
        news = [
            Told(at, number, agent.runs, event)
            for number, agent in enumerate(self._agents)
            for at, event in agent.news()
        ]
        self._unheard += sorted(news, key=lambda told: told.at)

    def told(self) -> Sequence[Told]:
        self._listen()
        told, self._unheard = self._unheard, []
        return told

    def view(self, agent: int) -> View | None:
        return self._agents[agent].view

    def now(self) -> float:
        return time.monotonic()


def _another(address: str) -> str:
    network, _, number = address.rpartition(".")
    return f"{network}.{int(number) + 100}"
