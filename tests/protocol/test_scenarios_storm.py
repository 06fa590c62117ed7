"""Many who go, or find out, at once: what everyone asks is asked, told and answered once."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.dials import Purpose
from p2pmesh.protocol.types import MemberFailed, MemberSuspected
from p2pmesh.testing import SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch
from tests.protocol.test_scenarios_split import forged


def test_a_newcomer_that_never_heard_the_question_hears_the_verdict(simulate: Simulate) -> None:
    net = simulate(8)
    victim = net.nodes[3]
    watch = Watch(net)
    net.power_off(victim)
    net.run_until(lambda: bool(watch.events(MemberSuspected)), within=6.0)
    newcomer = net.add(peers=net.nodes[:1])
    others = [node for node in net.running() if node is not newcomer]
    net.run_until(lambda: len(watch.deaths(victim)) >= len(others), within=4.0)
    net.run(0.3 + timing.SILENT_SUSPICION)  # it asks what it did not hear asked
    assert newcomer.state_of(victim) == "failed"
    assert net.agrees()


def test_a_subject_that_is_asked_about_again_is_told_of_once(simulate: Simulate) -> None:
    """Also when the second question is about a later incarnation than the first."""
    net = simulate(6)
    subject, hearer, *monitors = net.nodes[2:]
    watch = Watch(net)
    assert subject.life is not None
    net.power_off(subject)
    net.run(1.7)  # nobody hears it any more, and no dial has timed out
    for number, monitor in enumerate(monitors):
        question = wire.Question(
            subject.mesh.node_id, subject.life, number, "unreachable",
            monitor.mesh.node_id, 2**62, 900 - 300 * number,
        )  # fmt: skip
        forged(net, hearer, subject, question)
        net.run(0.1)
    for node in net.running():
        assert len(watch.events(MemberSuspected, nodes=[node])) == 1


def test_what_a_restarted_node_says_is_above_what_it_said_before(simulate: Simulate) -> None:
    """Where its new record has not come yet, its questions are no copies of old ones."""
    net = simulate(3)
    node = net.nodes[1]
    last = [node.mesh._questions._next_number() for _ in range(500)][-1]
    net.kill(node)
    net.run(1.0)
    net.start(node, peers=net.nodes[:1])
    assert node.mesh._questions._next_number() > last


def probes(node: SimNode) -> int:
    return sum(purpose is Purpose.PROBE for purpose, _ in node.mesh._core.connections.attempts)


@pytest.mark.parametrize("count", [20, 60])
def test_a_node_cut_off_from_all_dials_ever_more_of_them_at_once(
    simulate: Simulate, count: int
) -> None:
    net = simulate(count)
    lone, rest = net.nodes[7], [node for node in net.nodes if node is not net.nodes[7]]
    watch = Watch(net)
    net.unplug(lone)
    most = []
    for _ in range(6):
        net.run(timing.DIAL_TIMEOUT)
        most.append(probes(lone))
    assert 0 < most[0] <= 6 + 8, "its neighbours, and a first handful"
    net.run_until(lambda: len(watch.events(MemberFailed, nodes=[lone])) == len(rest), within=20.0)
    assert net.agrees(rest)


def test_one_of_many_who_are_cut_off_together_dials_a_handful(simulate: Simulate) -> None:
    """Half of those whom it dials answer: the mesh is found."""
    net = simulate(40)
    halves = net.nodes[:20], net.nodes[20:]
    net.partition(*halves)
    most = 0
    for _ in range(100):
        net.run(0.1)
        most = max(most, *map(probes, net.nodes))
    assert all(map(net.agrees, halves))
    assert most <= 6 + 2 * 8
