"""Processes that do not run for a while: stopped, starved, late, or asleep."""

from __future__ import annotations

import re
from typing import Any

import pytest

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol import timing
from p2pmesh.protocol.detector import Detector
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.types import (
    Demoted,
    Elected,
    Evidence,
    LeaderChanged,
    LeaderStalled,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRecovered,
    MemberStalled,
    MemberSuspected,
)
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

GUEST: dict[str, Any] = {"hostname": "h", "port": 1, "capabilities": (), "profiles": ()}

# --- stopped --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 20])
def test_a_leader_stopped_for_10_s_is_flagged_and_leads_on(simulate: Simulate, count: int) -> None:
    net = simulate(count)
    leader, *others = net.nodes
    watch = Watch(net)
    net.stop(leader)
    net.run(5.0)
    assert {node.lists(leader).stalled for node in others} == {True}
    net.run(5.0)
    assert {node.lists(leader).stalled for node in others} == {True}
    assert {node.state_of(leader) for node in others} == {"alive"}
    net.resume(leader)
    net.run(3.0)
    assert {node.lists(leader).stalled for node in others} == {False}
    watch.assert_nobody_failed()
    assert watch.leader_changes() == 0
    assert not watch.events(Demoted)
    assert leader.leads()


def test_each_is_told_once_that_it_stalled_and_once_that_it_recovered(simulate: Simulate) -> None:
    net = simulate(5)
    leader, *others = net.nodes
    watch = Watch(net)
    net.stop(leader)
    net.run(10.0)
    net.resume(leader)
    net.run(5.0)
    for node in others:
        told = watch.events(MemberStalled, LeaderStalled, MemberRecovered, nodes=[node])
        kinds = [type(t.event) for t in told]
        assert kinds == [MemberStalled, LeaderStalled, MemberRecovered]
        assert told[1].t - told[0].t >= timing.LEADER_STALLED_AFTER - 0.01


def test_a_process_stopped_past_the_grace_is_buried_and_comes_back_by_itself(
    simulate: Simulate,
) -> None:
    net = simulate(5)
    leader, *others = net.nodes
    life = leader.life
    watch = Watch(net)
    net.stop(leader)
    stopped_at = net.clock.now
    net.run_until(lambda: net.agrees(others), within=20)
    first = min(told.t for told in watch.deaths(leader))
    assert {t.event.evidence for t in watch.deaths(leader)} == {Evidence.STALLED}
    lan = timing.PRESETS["lan"]
    assert first - stopped_at >= timing.STALL_GRACE - lan.heartbeat_interval
    net.run(10.0)
    net.resume(leader)
    watch.assert_settles()
    assert leader.life == life  # refuted; its seniority stays
    assert leader.lists(leader).incarnation > 0
    net.run(3.0)
    watch.assert_nobody_resurrected()
    watch.assert_tokens_rise()


def test_who_was_stopped_past_the_grace_shows_no_token_before_others_confirm_it(
    simulate: Simulate,
) -> None:
    net = simulate(5)
    leader = net.nodes[0]
    net.stop(leader)
    net.run(30.0)
    with pytest.raises(NotAuthoritative):
        leader.token()  # the first thing that it does when it runs again


def test_who_was_replaced_while_it_was_stopped_says_since_when_it_leads_again(
    simulate: Simulate,
) -> None:
    net = simulate(5)
    leader, *others = net.nodes
    net.stop(leader)
    net.run(30.0)
    assert others[0].leads()
    watch = Watch(net)
    net.resume(leader)
    watch.assert_settles()
    net.run(1.0)
    (demoted,) = watch.events(Demoted, nodes=[leader])
    assert isinstance(demoted.event, Demoted)
    assert re.fullmatch(r"this process did not run for (29|30|31) s", demoted.event.reason)
    (elected,) = watch.events(Elected, nodes=[leader])
    assert leader.leadership().since == pytest.approx(net.clock.now - elected.t, abs=0.01)
    (told,) = watch.events(LeaderChanged, nodes=[leader])
    assert isinstance(told.event, LeaderChanged)
    assert (told.event.epoch, told.event.reason) == (leader.token().epoch, "reclaimed")
    for other in others:
        reasons = [t.event.reason for t in watch.events(LeaderChanged, nodes=[other])]
        assert reasons == ["merge"]


@pytest.mark.parametrize("seed", range(8))
def test_a_probe_that_is_given_up_late_leaves_the_link_that_it_was_to_replace(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A process that runs for a moment answers a probe's handshake, is heard on its old link,
    and stops before it reads the rest: the HELLO that is to replace that link, and that the
    probe is given up.  Then it uses neither, and the old one ended without a goodbye: at
    two monitors that is how the death of a process looks."""
    broken = []
    link_ended = Monitoring.link_ended

    def record(self, link, *, orderly):
        if not orderly and self._core.me not in starved:
            broken.append(link)
        link_ended(self, link, orderly=orderly)

    net = simulate(5, seed=seed, delay=0.02, jitter=0.03)
    starved = {net.nodes[n].mesh.node_id for n in (0, 4)}
    monkeypatch.setattr(Monitoring, "link_ended", record)
    watch = Watch(net)
    for number in (0, 4):
        net.starve(number, runs=0.1, stops=2.5, seconds=60.0)
    net.run(65.0)
    assert not broken
    watch.assert_nobody_failed()
    watch.assert_settles()


# --- starved --------------------------------------------------------------------------


def test_starved_processes_on_a_lossy_network_kill_nobody(simulate: Simulate) -> None:
    net = simulate(20, loss=0.05)
    watch = Watch(net)
    for node in (net.nodes[3], net.nodes[11]):
        net.starve(node, runs=0.1, stops=2.0, seconds=60.0)
    net.run(70.0)
    watch.assert_nobody_failed()


def test_with_silence_as_the_only_evidence_the_starved_die(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control arm: what the dial asks is what keeps them alive."""
    opened = Detector.open

    def accuse_at_once(self, peer, life, now, **what):
        if opened(self, peer, life, now, **what) is None:
            return None
        return self._accuse(self.cases[peer], Evidence.UNREACHABLE)

    monkeypatch.setattr(Detector, "open", accuse_at_once)
    monkeypatch.setattr(Monitoring, "kernel_unacked", lambda self, link, unacked: None)
    net = simulate(5)
    watch = Watch(net)
    for node in (net.nodes[0], net.nodes[4]):
        net.starve(node, runs=0.1, stops=4.0, seconds=10.0)
    net.run(10.0)
    assert watch.deaths(net.nodes[0], net.nodes[4])


def test_a_process_whose_loop_was_late_accuses_nobody(simulate: Simulate) -> None:
    """All it did not hear waits in its own sockets."""
    net = simulate(5)
    late = net.nodes[2]
    watch = Watch(net)
    for _ in range(5):
        net.stop(late)
        net.run(4.0)
        net.resume(late)
        net.run(2.0)
    assert not watch.events(MemberSuspected, nodes=[late])
    watch.assert_nobody_failed()


# --- asleep ---------------------------------------------------------------------------


def test_who_slept_until_the_dead_were_forgotten_does_not_bring_them_back(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has a tombstone any more to answer it with: what it held is hearsay."""
    monkeypatch.setattr(timing, "TOMBSTONE_TTL", 30.0)
    net = simulate(6)
    sleeper, dead, left, home = net.nodes[1:5]
    net.command(home, "register", instance_id="g", **GUEST)
    net.run(1.0)
    assert {m.instance_id for m in sleeper.members("alive")} >= {"g"}
    net.sleep(sleeper)
    net.run(10.0)
    net.kill(dead)
    net.leave(left)
    net.command(home, "deregister", instance_id="g")
    net.run(60.0)
    watch = Watch(net)
    net.wake(sleeper)
    watch.assert_settles()
    others = [node for node in net.running() if node is not sleeper]
    joined = {t.event.instance_id for t in watch.events(MemberJoined, nodes=others)}
    assert joined == {sleeper.instance_id}
    assert {m.instance_id for m in sleeper.members("alive")} == {
        node.instance_id for node in net.running()
    }
    ended = {t.event.instance_id for t in watch.events(MemberFailed, MemberLeft, nodes=[sleeper])}
    assert ended == {dead.instance_id, left.instance_id, "g"}


def test_who_alone_knows_a_living_member_keeps_it_through_a_sleep(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others forgot a member that they cannot reach: a dial finds it alive."""
    monkeypatch.setattr(timing, "TOMBSTONE_TTL", 10.0)
    net = simulate(4)
    sleeper, far = net.nodes[1:3]
    others = [net.nodes[0], net.nodes[3]]
    for node in others:
        net.cut(node, far)
    net.sleep(sleeper)
    net.run_until(lambda: all(node.state_of(far) is None for node in others), within=40.0)
    net.wake(sleeper)
    net.run_until(lambda: all(node.state_of(far) == "alive" for node in others), within=10.0)
    assert sleeper.state_of(far) == "alive"


def test_a_machine_that_wakes_dials_those_whom_it_had_given_up(simulate: Simulate) -> None:
    """It fell asleep while it investigated a dead neighbour that it could not reach."""
    net = simulate(2)
    sleeper, dead = net.nodes
    net.cut(sleeper, dead, both=False)
    net.kill(dead)
    net.run(1.5)
    net.sleep(sleeper)
    net.run(30.0)
    net.heal()
    net.wake(sleeper)
    net.run(5.0)
    assert sleeper.state_of(dead) == "failed"


def test_a_leader_that_slept_alone_leads_again_after_it_asked_in_vain(simulate: Simulate) -> None:
    net = simulate(1)
    (leader,) = net.nodes
    net.sleep(leader)
    net.run(100.0)
    net.wake(leader)
    net.run(timing.HEARSAY_LATEST - 0.5)
    assert not leader.leads()
    net.run(1.5)
    assert leader.leads()


def test_a_jump_of_the_monotonic_clock_is_a_sleep(simulate: Simulate) -> None:
    net = simulate(5)
    leader = net.nodes[0]
    token = leader.token()
    watch = Watch(net)
    net.jump(leader, 3600.0)
    with pytest.raises(NotAuthoritative):
        leader.token()
    watch.assert_settles()
    net.run(2.0)
    watch.assert_nobody_failed()
    assert watch.events(Demoted, nodes=[leader])
    assert watch.events(Elected, nodes=[leader])
    assert leader.token() > token


def test_a_short_gap_costs_nobody_anything(simulate: Simulate) -> None:
    net = simulate(5)
    watch = Watch(net)
    for node in net.nodes:
        net.jump(node, 5.0)
        net.run(1.0)
    net.run(10.0)
    watch.assert_nobody_failed()
    assert watch.leader_changes() == 0
    assert net.nodes[0].leads()
