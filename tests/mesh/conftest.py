"""A mesh of real ``p2pmesh run`` processes on this machine."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.cli.local import NodeClient
from tests.processes import P2PMESH, Process, eventually


class RealMesh:
    """Starts processes of one mesh name that share this test's runtime directory, and
    asks them; all of them end with the test."""

    def __init__(self, home: Path, name: str, stack: ExitStack) -> None:
        self.home = home
        self.name = name
        self._stack = stack

        self._processes: list[Process] = []

    def launch(self, command: Sequence[str]) -> Process:
        process = self._stack.enter_context(Process(command, home=self.home))
        self._processes.append(process)
        return process

    def end(self) -> None:
        """Ask all at once to leave: one after the other would take long."""
        for process in self._processes:
            process.signal(signal.SIGTERM)

    def start(self, *flags: str, command: Sequence[str] = P2PMESH) -> Process:
        """``run --json --mesh NAME FLAGS``, which is not waited for."""
        return self.launch((*command, "run", "--json", "--mesh", self.name, *flags))

    def joined(self, *flags: str, command: Sequence[str] = P2PMESH) -> Process:
        process = self.start(*flags, command=command)
        process.event("joined")
        return process

    def started(self, count: int) -> list[Process]:
        """So many, one after the other: the first is the oldest."""
        return [self.joined() for _ in range(count)]


@pytest.fixture
def real_mesh(home: Path, mesh: str) -> Iterator[RealMesh]:
    with ExitStack() as stack:
        real = RealMesh(home, mesh, stack)
        yield real
        real.end()


# --- what a process says of itself and of the others -------------------------------


def instance(process: Process) -> str:
    return str(process.event("ready")["instance_id"])


def life(process: Process) -> tuple[int, ...]:
    return tuple(map(int, process.event("joined")["life"].split(".")))


def ask(process: Process, path: str) -> Any:
    with NodeClient(process.event("ready")["http"]) as node:
        return node.get(path)


def states(process: Process) -> dict[str, str]:
    """Instance id -> state, oldest first."""
    members = ask(process, "/v1/members")["members"]
    return {member["instance_id"]: member["state"] for member in members}


def all_see(processes: Sequence[Process], expected: Callable[[Process], bool], what: str) -> float:
    """Waits until each process sees what is expected; the seconds that took."""
    started = time.monotonic()
    for process in processes:
        eventually(lambda process=process: expected(process), what)  # type: ignore[misc]
    return time.monotonic() - started


def all_alive(processes: Sequence[Process]) -> float:
    """Waits until all list exactly these, alive."""
    everyone = {instance(process): "alive" for process in processes}
    return all_see(processes, lambda each: states(each) == everyone, "all list all, alive")


def all_follow(processes: Sequence[Process], leader: Process) -> float:
    """Waits until all name this leader, with one epoch."""
    leader_id = instance(leader)

    def follows(process: Process) -> bool:
        view = ask(process, "/v1/leader")
        return bool(view["leader_id"] == leader_id and view["epoch"])

    return all_see(processes, follows, f"all follow {leader_id}")


def epoch(process: Process) -> int:
    return int(ask(process, "/v1/leader")["epoch"])


def events(process: Process, *names: str) -> list[dict[str, Any]]:
    """Those printed so far."""
    return [line.value for line in process.lines if line["event"] in names]


def figure(name: str, seconds: float) -> None:
    """A measured time, for whoever runs with -s; never asserted on."""
    sys.stdout.write(json.dumps({"figure": name, "seconds": round(seconds, 4)}) + "\n")


def hold(seconds: float, since: float) -> None:
    """Until so long after ``since``: where the passing of time is the scenario itself."""
    time.sleep(max(0.0, since + seconds - time.monotonic()))
