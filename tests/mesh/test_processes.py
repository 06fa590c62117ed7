"""Real processes on one machine: they meet, lead, fail, stop and leave.

Times here are guards against hanging; what is asserted is what happened and in which
order.  ``pytest -s`` prints the times that were measured.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.mesh.conftest import (
    RealMesh,
    all_alive,
    all_follow,
    all_see,
    ask,
    epoch,
    events,
    figure,
    hold,
    instance,
    life,
    states,
)
from tests.processes import P2PMESH, Process

STOPPED_SECONDS = 10.0
TEN_YEARS = 10 * 365.25 * 24 * 3600.0

#: p2pmesh under another wall clock; monotonic clocks stay as they are.
UNDER_ANOTHER_CLOCK = """
import runpy, sys, time
offset = {offset}
real_time, real_time_ns = time.time, time.time_ns
time.time = lambda: real_time() + offset
time.time_ns = lambda: real_time_ns() + int(offset) * 10**9
sys.argv[0] = "p2pmesh"
runpy.run_module("p2pmesh", run_name="__main__")
"""

#: p2pmesh, loaded, but held until a file exists: so all of them start at once.
BEHIND_A_BARRIER = """
import os, runpy, sys, time
import p2pmesh.cli.run
print('{{"event": "waiting"}}', flush=True)
while not os.path.exists({gate!r}):
    time.sleep(0.001)
sys.argv[0] = "p2pmesh"
runpy.run_module("p2pmesh", run_name="__main__")
"""

#: An agent whose handler holds the event loop.
BLOCKS_ITS_LOOP = """
import asyncio, json, sys, time
from p2pmesh import Node

async def main():
    node = Node("blocker", mesh=sys.argv[1])

    @node.on("Query")
    async def block(message):
        print(json.dumps({"event": "blocked"}), flush=True)
        time.sleep(float(message.payload))
        return {"event": "answered"}

    async with node:
        ready = {"event": "ready", "instance_id": node.instance_id, "http": node.http_url}
        print(json.dumps(ready), flush=True)
        print(json.dumps({"event": "joined"}), flush=True)
        await node.serve_forever()

asyncio.run(main())
"""


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


# --- meeting -----------------------------------------------------------------------


def test_three_with_nothing_but_a_mesh_name_meet_and_follow_the_first(real_mesh: RealMesh) -> None:
    processes = real_mesh.started(3)
    figure("3 processes: all list all after the last joined", all_alive(processes))
    all_follow(processes, processes[0])
    lives = [life(process) for process in processes]
    assert lives == sorted(lives)
    for process in processes:
        assert list(states(process)) == [instance(each) for each in processes]
        assert process.lines[0]["event"] == "ready"
        assert process.lines[1]["event"] == "joined"
    assert processes[0].event("joined")["contact"] is None
    assert processes[1].event("joined")["contact"] == processes[0].event("ready")["node_id"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [3, 20])
def test_started_at_once_they_follow_the_least_life(
    count: int, real_mesh: RealMesh, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    command = python(BEHIND_A_BARRIER.format(gate=str(gate)))
    processes = [real_mesh.start(command=command) for _ in range(count)]
    for process in processes:
        process.event("waiting", timeout=120)
    gate.touch()
    opened = time.monotonic()
    for process in processes:
        process.event("joined", timeout=60)
    figure(f"{count} at once: all joined", time.monotonic() - opened)
    figure(f"{count} at once: all list all after the last joined", all_alive(processes))
    oldest = min(processes, key=life)
    all_follow(processes, oldest)
    assert len({epoch(process) for process in processes}) == 1


# --- the leader's end ----------------------------------------------------------------


def test_a_killed_leader_is_followed_by_the_second_oldest_under_a_higher_epoch(
    real_mesh: RealMesh,
) -> None:
    leader, heir, *others = processes = real_mesh.started(5)
    all_alive(processes)
    all_follow(processes, leader)
    before = epoch(heir)
    killed_at = time.monotonic()
    leader.kill()
    survivors = [heir, *others]
    failed = [each.event("member_failed", instance_id=instance(leader)) for each in survivors]
    changed = [each.event("leader_changed", leader_id=instance(heir)) for each in survivors]
    figure("kill -9: the last of 4 knows", max(line.at for line in failed) - killed_at)
    figure("kill -9: the last of 4 follows", max(line.at for line in changed) - killed_at)
    assert {line["evidence"] for line in failed} == {"refused"}
    assert {line["reason"] for line in changed} == {"leader_failed"}
    assert {line["epoch"] for line in changed} == {epoch(heir)}
    assert epoch(heir) > before
    for survivor in survivors:
        assert states(survivor)[instance(leader)] == "failed"
        assert len(events(survivor, "member_failed")) == 1


def test_a_leader_that_was_asked_to_leave_has_left_and_not_failed(real_mesh: RealMesh) -> None:
    leader, heir, *others = processes = real_mesh.started(5)
    all_alive(processes)
    all_follow(processes, leader)
    before = epoch(heir)
    asked_at = time.monotonic()
    assert leader.leave() == 0
    survivors = [heir, *others]
    left = [each.event("member_left", instance_id=instance(leader)) for each in survivors]
    changed = [each.event("leader_changed", leader_id=instance(heir)) for each in survivors]
    figure("SIGTERM: the last of 4 knows", max(line.at for line in left) - asked_at)
    figure("SIGTERM: the last of 4 follows", max(line.at for line in changed) - asked_at)
    assert {line["reason"] for line in changed} == {"leader_left"}
    assert epoch(heir) > before
    for survivor in survivors:
        assert states(survivor)[instance(leader)] == "left"
        assert not events(survivor, "member_failed", "member_suspected")


# --- stopped, not dead ------------------------------------------------------------------


def assert_stalled_and_forgiven(leader: Process, others: list[Process]) -> None:
    """Everyone flagged the leader, nobody buried anybody, and it leads on."""
    for other in others:
        assert events(other, "member_stalled")
        assert not events(other, "member_failed", "member_left")
        assert ask(other, "/v1/leader")["leader_id"] == instance(leader)
        assert len(events(other, "leader_changed")) <= 1  # the first claim, if it saw that


def not_stalled(process: Process) -> bool:
    return not any(member["stalled"] for member in ask(process, "/v1/members")["members"])


def test_a_leader_stopped_for_ten_seconds_is_flagged_and_leads_on(real_mesh: RealMesh) -> None:
    leader, *others = processes = real_mesh.started(3)
    all_alive(processes)
    all_follow(processes, leader)
    claimed = epoch(leader)
    leader.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    for other in others:
        stalled = other.event("member_stalled", instance_id=instance(leader))
        figure("SIGSTOP: flagged stalled", stalled.at - stopped_at)
        assert ask(other, "/v1/members")["members"][0]["stalled"]
    hold(STOPPED_SECONDS, stopped_at)
    assert_stalled_and_forgiven(leader, others)
    leader.signal(signal.SIGCONT)
    figure("SIGCONT: nobody is flagged", all_see(others, not_stalled, "nobody is flagged"))
    all_alive(processes)
    assert_stalled_and_forgiven(leader, others)
    assert {epoch(process) for process in processes} == {claimed}
    assert not events(leader, "member_failed", "member_left", "leader_changed")[1:]


def test_a_handler_that_holds_the_loop_for_ten_seconds_is_as_harmless(real_mesh: RealMesh) -> None:
    blocker = real_mesh.launch((*python(BLOCKS_ITS_LOOP), real_mesh.name))
    blocker.event("joined")
    others = [real_mesh.joined(), real_mesh.joined()]
    processes = [blocker, *others]
    all_alive(processes)
    all_follow(processes, blocker)
    asker = real_mesh.launch(
        (
            *P2PMESH, "request", "blocker", f"{STOPPED_SECONDS}", "--json", "--mesh",
            real_mesh.name, "--url", others[0].event("ready")["http"],
        )
    )  # fmt: skip
    blocker.event("blocked")
    for other in others:
        other.event("member_stalled", instance_id=instance(blocker))
    asker.event("answered")
    assert asker.wait() == 0
    all_see(others, not_stalled, "nobody is flagged")
    all_alive(processes)
    assert_stalled_and_forgiven(blocker, others)


# --- clocks --------------------------------------------------------------------------------

CLOCKS = {"ten years ahead": TEN_YEARS, "ten years behind": -TEN_YEARS, "1970": -time.time() + 60}


def test_whatever_the_clock_of_a_newcomer_it_does_not_lead(real_mesh: RealMesh) -> None:
    first = real_mesh.joined()
    odd = [
        real_mesh.joined(command=python(UNDER_ANOTHER_CLOCK.format(offset=offset)))
        for offset in CLOCKS.values()
    ]
    processes = [first, *odd, real_mesh.joined()]
    all_alive(processes)
    all_follow(processes, first)
    lives = [life(process) for process in processes]
    assert lives == sorted(lives)


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_node_with_an_odd_clock_that_was_first_leads(clock: str, real_mesh: RealMesh) -> None:
    offset = CLOCKS[clock]
    first = real_mesh.joined(command=python(UNDER_ANOTHER_CLOCK.format(offset=offset)))
    processes = [first, real_mesh.joined(), real_mesh.joined()]
    all_alive(processes)
    all_follow(processes, first)
