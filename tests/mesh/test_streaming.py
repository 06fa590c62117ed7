"""Streamed answers between real processes: their links reset, and either end killed."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.mesh.conftest import RealMesh, figure
from tests.processes import P2PMESH, Process, run

FOR_EVER = 10**9


def start(real_mesh: RealMesh, count: int) -> tuple[Process, Process]:
    program = str(Path(__file__).with_name("streaming.py"))
    asker, worker = (
        real_mesh.launch((sys.executable, program, role, real_mesh.name, str(count)))
        for role in ("asker", "worker")
    )
    asker.event("joined")
    return asker, worker


def test_the_command_prints_what_an_agent_yields(real_mesh: RealMesh) -> None:
    start(real_mesh, 200)
    asked = run(*P2PMESH, "request", "--stream", "worker", home=real_mesh.home)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.splitlines() == [str(number) for number in range(200)]


@pytest.mark.skipif(sys.platform != "linux", reason="resets sockets as Linux does")
def test_resets_of_its_link_neither_lose_nor_double_a_part(real_mesh: RealMesh) -> None:
    asker, _ = start(real_mesh, 2000)
    for number in range(0, 1950, 100):
        asker.event("part", number=number)
        asker.signal(signal.SIGUSR1)
    ended = asker.event("ended")
    assert (ended["parts"], ended["is_gapless"], ended["error"]) == (2000, True, "")


def test_a_killed_worker_ends_it_at_once_behind_the_parts_that_came(real_mesh: RealMesh) -> None:
    asker, worker = start(real_mesh, FOR_EVER)
    asker.event("part", number=1000)  # by then it has met the worker at its address
    killed_at = time.monotonic()
    worker.kill()
    ended = asker.event("ended")
    figure("a streamed answer ends after kill -9 of its worker", ended.at - killed_at)
    assert ended["parts"] > 1000
    assert (ended["is_gapless"], ended["error"]) == (True, "PeerUnreachable")


def test_a_killed_asker_closes_the_generator(real_mesh: RealMesh) -> None:
    asker, worker = start(real_mesh, FOR_EVER)
    asker.event("part", number=100)
    killed_at = time.monotonic()
    asker.kill()
    figure(
        "a generator is closed after kill -9 of its asker", worker.event("closed").at - killed_at
    )
