"""What monitors make of a peer that is gone: killed, switched off, or gone politely."""

from __future__ import annotations

from itertools import pairwise

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import (
    Evidence,
    LeaderChanged,
    MemberFailed,
    MemberLeft,
    MemberStalled,
    MemberSuspected,
)
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

WELL_UNDER_A_SECOND = 0.6


def survivors(net: SimNetwork, node: SimNode) -> list[SimNode]:
    return [other for other in net.running() if other is not node]


def neighbours(net: SimNetwork) -> tuple[SimNode, SimNode]:
    """Two who watch each other, neither of them the leader."""
    one = net.nodes[1]
    for link in one.mesh.links(one.now()):
        if link.ring and link.node_id != net.nodes[0].node_id:
            return one, next(node for node in net.nodes if node.node_id == link.node_id)
    raise AssertionError("nobody watches the second node")


# --- killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 20, 50])
def test_a_killed_leader_is_buried_by_all_and_followed_by_the_next_oldest(
    simulate: Simulate, count: int
) -> None:
    net = simulate(count)
    watch = Watch(net)
    leader, heir = net.nodes[:2]
    epoch = leader.token().epoch
    net.kill(leader)
    net.run_until(net.agrees, within=WELL_UNDER_A_SECOND)
    assert {node.leader() for node in net.running()} == {heir.instance_id}
    assert heir.token().epoch > epoch
    assert {t.event.evidence for t in watch.deaths()} == {Evidence.REFUSED}
    assert len(watch.deaths()) == count - 1
    watch.assert_led(net.running())


@pytest.mark.parametrize("seed", range(5))
def test_any_three_of_twenty_can_be_killed_at_once(simulate: Simulate, seed: int) -> None:
    net = simulate(20, seed=seed)
    watch = Watch(net)
    for node in (net.nodes[0], net.nodes[5 + seed], net.nodes[19 - seed]):
        net.kill(node)
    net.run_until(net.agrees, within=WELL_UNDER_A_SECOND)
    watch.assert_led(net.running())
    assert len(watch.deaths()) == 3 * 17


def test_a_killed_process_is_refused_twice_before_it_is_accused(simulate: Simulate) -> None:
    """An immediate dial after kill -9 is often still accepted; the second counts."""
    net = simulate(5)
    watch = Watch(net)
    net.kill(net.nodes[2])
    killed_at = net.clock.now
    net.run(1.0)
    first = watch.events(MemberSuspected)[0]
    assert first.t - killed_at >= timing.REDIAL_GAP


def test_one_refused_monitor_waits_for_an_answer_and_a_second_convicts(
    simulate: Simulate,
) -> None:
    """With two nodes there is one monitor, and its question runs 250 ms."""
    verdicts = {}
    for count in (2, 5):
        net = simulate(count)
        watch = Watch(net)
        net.kill(net.nodes[0])
        net.run(1.0)
        asked = min(told.t for told in watch.events(MemberSuspected))
        verdicts[count] = min(told.t for told in watch.events(MemberFailed)) - asked
    assert verdicts[2] >= timing.REFUSED_SUSPICION
    assert verdicts[5] < timing.REFUSED_SUSPICION / 2


# --- gone without a sign --------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 20])
@pytest.mark.parametrize("fault", ["power_off", "unplug"])
def test_a_host_that_vanished_is_buried_after_silence_a_dial_and_a_question(
    simulate: Simulate, count: int, fault: str
) -> None:
    net = simulate(count)
    watch = Watch(net)
    node = net.nodes[0]
    others = survivors(net, node)
    getattr(net, fault)(node)
    took = net.run_until(lambda: net.agrees(others), within=4.5)
    lan = timing.PRESETS["lan"]
    least = lan.silence_after - lan.heartbeat_interval + timing.DIAL_TIMEOUT
    assert took > least + timing.SILENT_SUSPICION
    assert {t.event.evidence for t in watch.deaths(node)} == {Evidence.UNREACHABLE}
    watch.assert_led(others)


def test_an_idle_mesh_accuses_nobody(simulate: Simulate) -> None:
    net = simulate(20, loss=0.05)
    watch = Watch(net)
    net.run(60.0)
    watch.assert_nobody_failed()
    assert not watch.events(MemberStalled)


# --- gone politely --------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 20])
def test_who_says_goodbye_is_left_at_once_and_never_suspected(
    simulate: Simulate, count: int
) -> None:
    net = simulate(count)
    watch = Watch(net)
    leader = net.nodes[0]
    net.leave(leader)
    others = survivors(net, leader)
    net.run_until(lambda: net.agrees(others), within=0.2)
    assert leader.stopped_because == "left"
    assert len(watch.events(MemberLeft)) == count - 1
    assert not watch.events(MemberSuspected, MemberFailed)
    assert {node.state_of(leader) for node in others} == {"left"}
    net.run(1.0)
    assert watch.leader_changes() == 1
    assert {t.event.reason for t in watch.events(LeaderChanged)} == {"leader_left"}


def test_who_leaves_while_two_links_to_it_become_one_has_left(simulate: Simulate) -> None:
    """Both dialled: the other end may have closed the one that the goodbye goes over."""
    for seed in range(150):
        net = simulate(seed=seed, delay=0.002, jitter=0.004)
        one, other = net.add(), net.add()
        net.run_until(lambda: one.state_of(other) == other.state_of(one) == "alive", within=10)  # noqa: B023
        net.run(seed % 10 / 1000)
        net.leave(other)
        net.run(2.0)
        assert one.state_of(other) == "left", seed


def test_who_left_and_died_before_its_goodbye_was_read_is_not_failed(simulate: Simulate) -> None:
    net = simulate(5)
    watch = Watch(net)
    node = net.nodes[3]
    net.leave(node)
    net.kill(node)
    net.run(5.0)
    watch.assert_nobody_failed()
    assert net.nodes[0].state_of(node) == "left"


# --- whose kernel answers? ------------------------------------------------------------


def test_a_process_of_another_mesh_at_its_port_is_no_sign_of_life(simulate: Simulate) -> None:
    net = simulate(5)
    node = net.nodes[2]
    net.kill(node)
    net.add("stranger", address_of=node, mesh="other")
    others = survivors(net, net.nodes[5])
    net.run_until(lambda: net.agrees(others), within=2.0)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_a_proxy_that_accepts_for_a_dead_process_does_not_keep_it_alive(
    simulate: Simulate, count: int
) -> None:
    """Its links ended at two monitors without a goodbye: a kernel closed them."""
    net = simulate(count)
    watch = Watch(net)
    node = net.nodes[1]
    net.set_proxy(node, has=True)
    net.kill(node)
    net.run_until(net.agrees, within=timing.DIAL_TIMEOUT + 1.0)
    assert {t.event.evidence for t in watch.deaths(node)} == {Evidence.REFUSED}
    assert {t.event.instance_id for t in watch.deaths()} == {node.instance_id}


def test_a_proxy_in_front_of_a_host_that_vanished_keeps_it_until_the_grace_ends(
    simulate: Simulate,
) -> None:
    """No kernel closed a link: nothing tells it from a process that is stopped."""
    net = simulate(5)
    watch = Watch(net)
    node = net.nodes[1]
    net.set_proxy(node, has=True)
    net.power_off(node)
    net.run(timing.STALL_GRACE - 1.0)
    watch.assert_nobody_failed()
    net.run_until(net.agrees, within=1.0 + timing.SILENT_SUSPICION + timing.DIAL_TIMEOUT + 1.0)
    assert {t.event.evidence for t in watch.deaths(node)} == {Evidence.STALLED}


def test_one_link_that_breaks_does_not_bury_a_stopped_process(simulate: Simulate) -> None:
    """A middlebox reset one connection: the others stand, its kernel answers."""
    net = simulate(5)
    one, other = neighbours(net)
    watch = Watch(net)
    net.stop(other)
    net.run(0.1)
    net.reset(one, other)
    net.run(10.0)
    watch.assert_nobody_failed()
    assert watch.events(MemberStalled, nodes=[one])


def test_a_refusal_where_this_monitor_never_met_it_is_weak_evidence(simulate: Simulate) -> None:
    """172.17.0.1 exists on every docker host: a member that dials out, and announces an
    address at which everybody's own machine refuses, is not buried for that."""
    net = simulate(4, multicast=False)
    nobody = net.add("docker", start=False)
    hidden = net.add("hidden", peers=[net.nodes[0]], addresses=(nobody.address,))
    members = [*net.nodes[:4], hidden]
    net.run_until(lambda: net.agrees(members), within=10)
    watch = Watch(net)
    net.run(60.0)
    watch.assert_nobody_failed()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("victim", [0, 1])
def test_who_dies_just_after_two_have_met_is_known_as_soon_as_later(
    simulate: Simulate, victim: int, seed: int
) -> None:
    """Its address was dialled at once, so that a refusal there means something."""
    net = simulate(seed=seed)
    net.add()
    net.run(1.5)
    net.add(peers=net.nodes)
    net.run_until(net.agrees, within=5.0)
    net.run(0.1)
    net.kill(net.nodes[victim])
    net.run_until(net.agrees, within=WELL_UNDER_A_SECOND)


def test_a_member_that_only_others_met_runs_the_longer_question(simulate: Simulate) -> None:
    net = simulate(4, multicast=False)
    nobody = net.add("docker", start=False)
    hidden = net.add("hidden", peers=[net.nodes[0]], addresses=(nobody.address,))
    members = [*net.nodes[:4], hidden]
    net.run_until(lambda: net.agrees(members), within=10)
    net.run(5.0)
    watch = Watch(net)
    killed_at = net.clock.now
    net.kill(hidden)
    net.run_until(lambda: net.agrees(net.nodes[:4]), within=10)
    first = min(t.t for t in watch.deaths(hidden))
    assert {t.event.evidence for t in watch.deaths(hidden)} == {Evidence.UNREACHABLE}
    assert first - killed_at >= timing.UNMET_SUSPICION


def test_my_own_machines_errors_say_nothing_about_a_peer(simulate: Simulate) -> None:
    """A process without descriptors cannot dial; it accuses nobody for that."""
    net = simulate(5)
    poor, peer = net.nodes[1], net.nodes[2]
    watch = Watch(net)
    net.set_dials(poor, work=False)
    net.cut(poor, peer)
    net.run(12.0)
    watch.assert_nobody_failed()
    assert not watch.events(MemberSuspected, nodes=[poor])


# --- what keeps an accusation in check ------------------------------------------------


def test_a_monitor_that_cannot_reach_a_peer_is_answered_by_those_who_can(
    simulate: Simulate,
) -> None:
    net = simulate(5)
    watch = Watch(net)
    one, other = neighbours(net)
    net.cut(one, other)
    net.run(60.0)
    watch.assert_nobody_failed()
    assert watch.leader_changes() == 0


def test_the_accuser_who_was_answered_asks_again_ever_more_rarely(simulate: Simulate) -> None:
    net = simulate(5)
    watch = Watch(net)
    one, other = neighbours(net)
    net.cut(one, other)
    net.run(120.0)
    asked = [
        t.t for t in watch.events(MemberSuspected, nodes=[one]) if t.event.node_id == other.node_id
    ]
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert len(asked) >= 3
    assert pauses[0] >= timing.REACCUSE_AFTER
    assert len(asked) < 12


# --- ages -----------------------------------------------------------------------------


@pytest.mark.parametrize("happens", ["kill", "stop", "cut"])
def test_word_of_a_death_makes_nobody_look_heard(simulate: Simulate, happens: str) -> None:
    """Seen from everyone, its last heartbeat grows old until it speaks again itself."""
    net = simulate(8)
    subject = net.nodes[3]
    others = [node for node in net.nodes if node is not subject]
    net.run(3.0)
    if happens == "cut":
        net.partition([subject], others)
    else:
        getattr(net, happens)(subject)
    net.run(0.05)  # what it said before is on its way
    ages = [age(other, subject) for other in others]
    while net.clock.now < 30.0:
        net.run(0.1)
        later = [age(other, subject) for other in others]
        assert all(before <= now for before, now in zip(ages, later, strict=True)), later
        ages = later
    assert {other.state_of(subject) for other in others} == {"failed"}
    net.resume(subject)
    net.heal()
    if happens == "kill":
        net.start(subject)
    net.run_until(net.agrees, within=10)
    assert max(age(other, subject) for other in others) < 3.0


def age(node: SimNode, other: SimNode) -> float:
    member = node.lists(other)
    assert member is not None
    return member.last_heartbeat_age
