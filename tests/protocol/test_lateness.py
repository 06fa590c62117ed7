"""Processes that run late: what they make of that, and what they leave for later."""

from __future__ import annotations

import random

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.lateness import Lateness
from p2pmesh.protocol.types import Candidate, FoundBy
from p2pmesh.testing import SimNetwork
from tests.protocol.conftest import Simulate

# --- the rule -------------------------------------------------------------------------


def test_one_pause_is_remembered_and_holds_nothing_up() -> None:
    lateness = Lateness()
    assert not lateness.is_late(0.0)
    lateness.note(10.0, 8.0)
    assert lateness.is_late(10.0 + timing.LAG_MEMORY - 0.1)
    assert not lateness.is_late(10.0 + timing.LAG_MEMORY)
    assert [lateness.turn(10.0), lateness.turn(10.0)] == [10.0, 10.0]


def test_who_is_late_again_takes_turns_as_far_apart_as_it_is_slow() -> None:
    lateness = Lateness()
    lateness.note(0.0, 0.5)
    lateness.note(1.0, 0.5)
    assert lateness.turn(1.0) == 1.0
    assert lateness.turn(1.0) == lateness.turn(2.9) == 1.0 + timing.LATE_PACE * 0.5
    assert lateness.turn(3.0) == 3.0, "the next turn"
    assert lateness.turn(3.0) == 5.0
    assert lateness.turn(1.0 + timing.LAG_MEMORY) == 1.0 + timing.LAG_MEMORY, "over"


def test_turns_come_however_late_it_is_and_however_often() -> None:
    lateness = Lateness()
    taken = 0
    for second in range(100):
        lateness.note(float(second), 30.0)
        taken += lateness.turn(float(second)) == second
    assert taken >= 100 / timing.LATE_PACE_MAX


def test_a_pause_after_a_time_without_is_the_first_again() -> None:
    lateness = Lateness()
    lateness.note(0.0, 1.0)
    lateness.note(1.0, 1.0)
    lateness.note(10.0, 1.0)
    assert [lateness.turn(10.0), lateness.turn(10.0)] == [10.0, 10.0]


# --- in a mesh ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_many_that_start_on_an_overloaded_machine_do_not_add_to_its_load(seed: int) -> None:
    """Each has a handshake with a few: without turns, with twelve."""
    chance = random.Random(seed)
    with SimNetwork(seed, expected=40, multicast=False) as net:
        for number in range(40):
            net.add(peers=chance.sample(net.nodes, min(3, number)))
        for node in net.nodes:
            net.starve(node, runs=0.02, stops=0.6, seconds=30.0)
        net.run_until(net.agrees, within=30.0)
        accepted = sum(len(node.host.sockets) for node in net.nodes)
        dials = sum(node.mesh._core.connections._dials for node in net.nodes)
        assert dials <= 8 * len(net.nodes)
        assert accepted >= 6 * len(net.nodes), "they are linked nevertheless"


def test_who_is_late_waits_longer_for_a_handshake_that_may_be_there_unread(
    simulate: Simulate,
) -> None:
    def gave_up() -> int:
        return late.mesh.counters().get("link handshake timeout", 0)

    net = simulate(0, multicast=False)
    mute, late = net.add(), net.add()
    net.stop(mute)
    net.offer(late, Candidate("mute", (mute.address,), FoundBy.RUNTIME, None))
    net.starve(late, runs=0.05, stops=0.6, seconds=60.0)
    net.run(timing.HANDSHAKE_TIMEOUT + 3.0)
    assert gave_up() == 0
    net.run(timing.HANDSHAKE_LATEST)
    assert gave_up() >= 1


def test_who_is_late_flags_nobody_whose_answer_it_may_not_have_read(simulate: Simulate) -> None:
    net = simulate(2)
    late, mute = net.nodes
    net.starve(late, runs=0.05, stops=0.6, seconds=12.0)
    net.run(2.0)
    net.stop(mute)
    net.reset(late, mute)  # its kernel accepts the dial of the probe, and nothing follows
    net.run(9.0)
    assert not late.seen("member_stalled")
    net.run_until(lambda: bool(late.seen("member_stalled")), within=10.0)
