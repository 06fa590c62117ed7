"""One identity, several lives: restarts, copies, and lives that others remember."""

from __future__ import annotations

import pytest

from p2pmesh.protocol.types import (
    Agent,
    Demoted,
    DoubleIdentity,
    Joined,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    PeerRejected,
)
from p2pmesh.testing.node import State
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2, 2.0, 60.0])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_restart_is_a_new_life_that_replaces_the_old_one_at_once(
    simulate: Simulate, pause: float, persistent: bool
) -> None:
    net = simulate(5, persistent=persistent)
    node = net.nodes[0]
    life = node.life
    watch = Watch(net)
    net.kill(node)
    net.run(pause)
    net.start(node)
    watch.assert_settles()
    assert node.life > life
    assert net.oldest() is net.nodes[1]  # a restart costs the seniority
    net.run(3.0)
    watch.assert_nobody_resurrected()
    watch.assert_tokens_rise()
    for other in net.nodes[1:]:
        assert [m.state for m in other.members() if m.node_id == node.node_id] == ["alive"]


@pytest.mark.parametrize("seed", range(4))
def test_a_leader_that_restarts_in_a_loop_leaves_one_mesh_behind(
    simulate: Simulate, seed: int
) -> None:
    net = simulate(4, seed=seed, persistent=True)
    watch = Watch(net)
    for pause in (0.01, 0.1, 0.3, 0.5, 1.0):
        net.kill(net.nodes[0])
        net.run(pause)
        net.start(net.nodes[0])
        net.run(pause)
    watch.assert_settles()
    watch.assert_nobody_resurrected()
    watch.assert_tokens_rise()


def test_who_left_comes_back_as_a_new_life(simulate: Simulate) -> None:
    net = simulate(4, persistent=True)
    node = net.nodes[2]
    life = node.life
    net.leave(node)
    net.run(10.0)
    watch = Watch(net)
    net.start(node)
    watch.assert_settles()
    assert node.life > life
    assert len(watch.events(MemberJoined, nodes=net.nodes[:2])) == 2
    watch.assert_nobody_resurrected()


def test_a_machine_whose_clock_went_back_restarts_above_its_last_life(simulate: Simulate) -> None:
    net = simulate(1, persistent=True)
    (node,) = net.nodes
    life = node.life
    net.kill(node)
    net.set_wall(node, -365 * 86_400_000)
    net.start(node)
    net.run(3.0)
    assert node.life > life


def test_a_node_that_forgot_its_last_life_rises_above_its_tombstone(simulate: Simulate) -> None:
    """Its state file was lost, its clock is behind, and it founded a mesh of its own."""
    net = simulate(3)
    node = net.nodes[2]
    life = node.life
    net.kill(node)
    net.run(3.0)
    net.set_wall(node, -365 * 86_400_000)
    net.partition(net.nodes[:2], [node])
    net.start(node)
    net.run(3.0)
    assert node.life < life
    net.heal()
    watch = Watch(net)
    watch.assert_settles()
    assert node.life > life
    assert net.nodes[0].state_of(node) == "alive"
    watch.assert_nobody_resurrected()


def test_a_node_that_forgot_rises_above_its_own_higher_life_once(simulate: Simulate) -> None:
    """The others never noticed that it was gone: they hold its old life alive."""
    net = simulate(3)
    node, *others = net.nodes
    life = node.life
    net.partition([node], others)
    net.power_off(node)
    net.set_wall(node, -365 * 86_400_000)
    net.start(node)
    net.run(1.4)  # nobody missed it yet
    assert node.life < life
    assert {other.state_of(node) for other in others} == {"alive"}
    net.heal()
    net.discover()
    watch = Watch(net)
    watch.assert_settles()
    assert node.life > life
    assert len(watch.events(Joined, nodes=[node])) == 1
    assert not watch.events(DoubleIdentity)


def test_a_leader_with_a_new_stamp_claims_anew(simulate: Simulate) -> None:
    """A claim is bound to the life that made it; here a copy of the leader lived and
    died beyond a split, and only an observer was there."""
    net = simulate(1)
    (leader,) = net.nodes
    observer = net.add("observer", agent=None)
    net.run_until(net.agrees, within=5)
    net.partition([leader], [observer])
    copy = net.add("copy", identity_of=leader, start=False, agent=Agent(leader.instance_id))
    net.partition([leader], [observer, copy])
    net.run(5.0)
    net.start(copy, peers=[observer])
    net.run(3.0)
    net.kill(copy)
    net.run(3.0)
    life, token = leader.life, leader.token()
    assert copy.life > life
    watch = Watch(net)
    net.heal()
    watch.assert_settles()
    assert leader.life > copy.life
    assert leader.token().life == leader.life
    assert leader.token().epoch > token.epoch
    assert watch.events(Demoted)[0].event.reason == "a new life"


# --- copies ---------------------------------------------------------------------------


def test_of_two_copies_of_an_identity_the_higher_life_keeps_it(simulate: Simulate) -> None:
    net = simulate(4)
    original = net.nodes[2]
    agent = Agent(original.instance_id)
    copy = net.add("copy", identity_of=original, agent=agent)
    watch = Watch(net)
    net.run(20.0)
    alive = [node for node in (original, copy) if node.is_running]
    assert len(alive) == 1
    stopped = copy if alive == [original] else original
    assert stopped.stopped_because == "double"
    assert alive[0].life > stopped.life or stopped.life is None
    told = watch.events(DoubleIdentity)
    assert {t.node for t in told} <= {original, copy}
    assert told
    assert not watch.events(MemberLeft)
    watch.assert_settles()


def test_a_node_that_finds_itself_is_no_double(simulate: Simulate) -> None:
    """Its own address comes back to it as a candidate."""
    net = simulate(2, multicast=False)
    node = net.nodes[0]
    watch = Watch(net)
    net.kill(net.nodes[1])
    net.start(net.nodes[1], peers=net.nodes)
    net.run(10.0)
    assert not watch.events(DoubleIdentity, PeerRejected)
    assert node.is_running
    assert net.nodes[1].state is State.RUNNING
    assert not watch.deaths(node)
    assert not [t for t in watch.events(MemberFailed) if t.event.node_id == node.node_id]
