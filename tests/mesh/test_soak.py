"""Processes that come and go beside those that stay: what stays does not grow.

``tox -e soak`` runs twenty processes for half an hour; here it is seconds.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import urllib.request
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.mesh.conftest import RealMesh, all_follow, all_see, figure, instance, states
from tests.processes import HANG_GUARD, Process

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "8"))
PROCESSES: Final = int(os.environ.get("SOAK_PROCESSES", "6"))
CHURN_EVERY: Final = float(os.environ.get("SOAK_CHURN_EVERY", "2"))
STAYING: Final = 3
#: What a run of any length may add: arenas and caches that fill once.
GROWTH_MIB: Final = 8
TASKS_MORE: Final = 4
FILES_MORE: Final = 12  # links of the rings, which are not the same twice


class Cost(NamedTuple):
    """Of one process, at rest."""

    resident: float  # MiB
    tasks: int
    files: int


def cost(process: Process) -> Cost:
    text = call(process, "/metrics")
    found = {
        name: float(value)
        for name, value in re.findall(r"^(\w+) ([\d.e+]+)$", text, flags=re.MULTILINE)
    }
    return Cost(
        found["process_resident_memory_bytes"] / 2**20,
        int(found["p2pmesh_tasks"]),
        int(found["process_open_fds"]),
    )


def rest(processes: list[Process]) -> list[Cost]:
    """Until all see all and nothing is under way; then what those who stay cost."""
    everyone = [instance(process) for process in processes]

    def sees_all(process: Process) -> bool:
        return [each for each, state in states(process).items() if state == "alive"] == everyone

    all_see(processes, sees_all, "all list all, oldest first")
    all_follow(processes, processes[0])
    return [cost(process) for process in processes[:STAYING]]


def call(process: Process, path: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    url = process.event("ready")["http"] + path
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=HANG_GUARD) as answer:
        return str(answer.read(), "utf-8")


@pytest.mark.timeout(SECONDS + 240)
def test_who_stays_neither_grows_nor_loses_sight_of_anybody(
    real_mesh: RealMesh, tmp_path: Path
) -> None:
    chance = random.Random(5)
    processes = [real_mesh.joined("--data-dir", str(tmp_path / f"d{n}")) for n in range(STAYING)]
    processes += [real_mesh.joined() for _ in range(PROCESSES - STAYING)]
    before = rest(processes)
    began = warm = time.monotonic()
    churned = 0
    while time.monotonic() - began < SECONDS:
        time.sleep(CHURN_EVERY)
        victim = chance.choice(processes[STAYING:])
        processes.remove(victim)
        victim.kill() if churned % 2 else victim.leave()
        churned += 1
        processes.append(real_mesh.joined())
        said = {"message_type": "Notification", "payload": churned}
        call(processes[0], f"/messages/send/{instance(processes[0])}", said)
        if warm == began and time.monotonic() - began > SECONDS / 5:
            warm = time.monotonic()
            before = rest(processes)
    after = rest(processes)
    figure(f"{churned} of {PROCESSES} came and went: before {before}, after {after}", SECONDS)
    for then, now in zip(before, after, strict=True):
        assert now.resident < then.resident + GROWTH_MIB, (before, after)
        assert now.tasks <= then.tasks + TASKS_MORE, (before, after)
        assert now.files <= then.files + FILES_MORE, (before, after)
    for process in processes[:STAYING]:
        assert "Traceback" not in process.errors
