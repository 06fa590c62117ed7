"""SimNetwork: what is done to it happens, and happens again from the same seed."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol.types import Joined, MeshConfig
from p2pmesh.testing import Scenario, SimNetwork, SimNode, Timeout
from p2pmesh.testing.node import State


def meshed(count: int, *, seed: int = 3) -> SimNetwork:
    """So many nodes that agree, one after the other."""
    net = SimNetwork(seed=seed)
    for _ in range(count):
        net.add()
        net.run(0.2)
    net.run_until(net.agrees, within=20)
    net.run(3.0)
    return net


def eventful(seed: int) -> SimNetwork:
    """A run with something of everything."""
    net = SimNetwork(seed=seed, loss=0.02)
    nodes = [net.add("agent", wall_offset=number * 1000, persistent=True) for number in range(5)]
    net.run(5.0)
    net.command(
        nodes[1],
        "send",
        source=nodes[1].instance_id,
        target=nodes[2].instance_id,
        named=False,
        type="Notification",
        payload=b"\x01",
        ttl=60.0,
        correlation_id=None,
    )
    net.starve(nodes[3], runs=0.2, stops=1.0, seconds=5.0)
    net.run(3.3)
    net.partition(nodes[:2], nodes[2:])
    net.run(7.0)
    net.heal()
    net.kill(nodes[0])
    net.run(0.5)
    net.start(nodes[0], peers=[nodes[4]])
    net.sleep(nodes[2])
    net.run(4.0)
    net.wake(nodes[2])
    net.run(5.0)
    net.leave(nodes[1])
    net.run(5.0)
    return net


def test_a_mesh_that_begins_converged_goes_on_as_one_that_joined() -> None:
    net = SimNetwork(seed=5)
    net.add_converged(12, "agent")
    assert len({node.mesh.view_hash() for node in net.nodes}) == 1
    net.run_until(net.agrees, within=1.0)
    first, second, *others = net.nodes
    assert net.oldest() is first
    assert all(node.leader() == first.instance_id for node in net.nodes)
    assert all(node.lists(other) for node in net.nodes for other in net.nodes)
    assert not any(node.seen("member_joined") for node in net.nodes)
    net.run(3.0)
    net.kill(first)
    net.run_until(lambda: net.agrees() and second.leads(), within=2.0)
    assert {node.counts["member_failed"] for node in (second, *others)} == {1}
    newcomer = net.add(peers=[others[0]])
    net.run_until(net.agrees, within=5.0)
    assert newcomer.life == max(node.life for node in net.running() if node.life)
    assert SimNetwork.replay(net.scenario).trace_hash() == net.trace_hash()


def test_a_large_network_keeps_no_events_of_single_members_and_tells_them_to_observers() -> None:
    net = SimNetwork(seed=6, expected=201)
    told: list[str] = []
    net.observers.append(lambda node, event: told.append(type(event).__name__))
    net.add_converged(5)
    net.run_until(net.agrees, within=1.0)
    net.kill(4)
    net.run_until(net.agrees, within=2.0)
    assert told.count("MemberFailed") == 4
    assert all(node.counts["member_failed"] == 1 for node in net.running())
    assert not any(node.seen("member_failed") for node in net.nodes)


# --- replay -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    assert eventful(1).trace_hash() == eventful(1).trace_hash() != eventful(2).trace_hash()


def test_the_null_cipher_changes_nothing_about_that() -> None:
    def large() -> str:
        net = SimNetwork(seed=4, expected=201)
        for _ in range(10):
            net.add()
        net.run_until(net.agrees, within=20)
        return net.trace_hash()

    assert large() == large()


def test_a_run_can_be_replayed_from_its_scenario() -> None:
    net = eventful(3)
    assert SimNetwork.replay(net.scenario).trace_hash() == net.trace_hash()


def test_a_scenario_prints_as_the_program_that_repeats_it() -> None:
    net = eventful(3)
    known: dict[str, object] = {"SimNetwork": SimNetwork}
    exec(str(net.scenario), known)
    again = known["net"]
    assert isinstance(again, SimNetwork)
    assert again.trace_hash() == net.trace_hash()


def test_a_scenario_without_a_step_is_another_run() -> None:
    whole = eventful(3).scenario
    shorter = Scenario(whole.options, whole.steps[:-1], whole.until)
    assert SimNetwork.replay(shorter).trace_hash() != eventful(3).trace_hash()


def test_waiting_for_a_condition_leaves_no_mark_on_the_run() -> None:
    def run(wait: Callable[[SimNetwork], object]) -> str:
        net = SimNetwork(seed=9)
        for _ in range(3):
            net.add()
        wait(net)
        net.run_to(8.0)
        return net.trace_hash()

    assert run(lambda net: net.run_until(net.agrees, within=8)) == run(lambda net: None)


def test_a_failing_run_says_how_to_repeat_it() -> None:
    def run() -> None:
        with SimNetwork(seed=42) as net:
            node = net.add("lonely")
            net.run(2.0)
            net.stop(node)
            net.run_until(lambda: False, within=1.0)

    with pytest.raises(Timeout) as raised:
        run()
    text = "".join(traceback.format_exception(raised.value))
    assert "not within 1.0 virtual seconds (seed 42)" in text
    assert "net = SimNetwork(seed=42, " in text
    assert "net.add('lonely')\nnet.run_to(2.0)\nnet.stop(0)\nnet.run_to(3.0" in text


# --- processes and machines ---------------------------------------------------------------


def test_nodes_meet_and_agree_by_themselves() -> None:
    net = meshed(5)
    assert {node.leader() for node in net.nodes} == {net.nodes[0].instance_id}
    assert net.oldest() is net.nodes[0]


def test_agreement_is_about_everybody_and_nobody_else() -> None:
    net = meshed(3)
    assert net.agrees()
    assert not net.agrees(net.nodes[:2])
    net.add()
    assert not net.agrees()


def test_a_killed_process_forgets_and_a_restart_has_its_identity() -> None:
    net = meshed(3)
    node = net.nodes[1]
    node_id, life = node.node_id, node.life
    net.kill(node)
    assert node.state is State.DEAD
    assert node not in net.running()
    net.start(node)
    net.run_until(net.agrees, within=10)
    assert node.node_id == node_id
    assert node.life is not None
    assert life is not None
    assert node.life > life


def test_a_stopped_process_takes_nothing_until_it_goes_on() -> None:
    net = meshed(3)
    node = net.nodes[1]
    taken: list[str] = []
    node.mesh.bytes_received = _noting(taken, "", node.mesh.bytes_received)
    net.stop(node)
    net.run(3.0)
    assert not taken
    net.resume(node)
    assert taken


def test_a_process_that_stood_still_hears_of_the_lag_before_anything_else() -> None:
    net = meshed(3)
    node = net.nodes[1]
    told: list[str] = []
    for name in ("loop_lagged", "bytes_received", "handle_timer"):
        setattr(node.mesh, name, _noting(told, name, getattr(node.mesh, name)))
    net.stop(node)
    net.run(3.0)
    net.resume(node)
    net.run(0.0)
    assert told[:2] == ["loop_lagged", "bytes_received"]
    assert told[-1] == "handle_timer"
    assert told.count("loop_lagged") == 1


def _noting(told: list[str], name: str, method: Callable[..., None]) -> Callable[..., None]:
    def noted(*arguments: object) -> None:
        told.append(name)
        method(*arguments)

    return noted


def test_a_process_that_runs_is_never_told_of_a_lag() -> None:
    net = SimNetwork(seed=1)
    nodes = [net.add() for _ in range(5)]
    told: list[str] = []
    for node in nodes:
        node.mesh.loop_lagged = _noting(told, "", node.mesh.loop_lagged)
    net.run(10.0)
    net.power_off(nodes[0])
    net.run(30.0)
    assert not told


def test_a_sleeping_machine_answers_nothing_and_goes_on_where_it_was() -> None:
    net = meshed(3)
    node, other = net.nodes[:2]
    life = node.life
    net.sleep(node)
    net.run(2.0)
    before = len(node.events)
    net.run(20.0)
    assert len(node.events) == before
    assert other.state_of(node) == "failed"
    net.wake(node)
    net.run_until(net.agrees, within=15)
    assert node.life == life


def test_an_unplugged_process_goes_on_and_buries_the_others() -> None:
    net = meshed(3)
    node, *others = net.nodes
    net.unplug(node)
    net.run_until(lambda: net.agrees([node]) and net.agrees(others), within=20)


def test_a_host_that_was_switched_off_boots_as_a_new_process() -> None:
    net = meshed(3)
    node = net.nodes[0]
    net.power_off(node)
    net.run(5.0)
    net.start(node)
    net.run_until(net.agrees, within=10)


def test_who_leaves_ends_by_itself() -> None:
    net = meshed(3)
    node = net.nodes[0]
    net.leave(node)
    net.run(1.0)
    assert node.stopped_because == "left"
    assert node.state is State.DEAD


def test_clocks_are_each_nodes_own() -> None:
    net = SimNetwork()
    one, other = net.add(), net.add(wall_offset=-5000)
    net.jump(one, 100.0)
    net.set_wall(one, 7)
    assert one.now().now == 100.0
    assert one.now().wall - other.now().wall == 5007


def test_timers_are_never_early_on_a_clock_that_jumped() -> None:
    """Sums of odd numbers round: a timer that fires a bit early would fire for ever."""
    net = SimNetwork(seed=5)
    nodes = [net.add() for _ in range(3)]
    for step in range(60):
        net.jump(nodes[step % 3], 0.1 * step + 1e-7 * step)
        net.run(0.7)
    assert net.clock.now == pytest.approx(42.0)


def told_addresses(net: SimNetwork, of: SimNode) -> set[tuple[str, ...]]:
    """Under which addresses the others list it."""
    others = [node for node in net.running() if node is not of]
    return {member.addresses for node in others if (member := node.lists(of)) is not None}


def test_a_host_with_another_address_is_mute_until_its_process_notices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = meshed(3)
    heard: list[int] = []
    node, old = net.nodes[1], net.nodes[1].address
    net.readdress(node)
    assert node.address != old
    monkeypatch.setattr(net, "trace", lambda number, link, data: heard.append(number))
    net.run(0.45)  # then it misses the others, and dials them
    assert heard
    assert node.number not in heard
    assert told_addresses(net, node) == {(old,)}
    net.run(4.0)
    assert net.agrees()
    assert told_addresses(net, node) == {(node.address,)}


def test_a_process_can_start_at_another_address_and_another_at_its_old_one() -> None:
    net = meshed(3)
    node, old = net.nodes[1], net.nodes[1].address
    net.kill(node)
    net.readdress(node)
    net.start(node)
    net.run_until(net.agrees, within=5.0)
    assert told_addresses(net, node) == {(node.address,)}
    other = net.add("other", addresses=(old,))
    net.run_until(net.agrees, within=5.0)
    assert told_addresses(net, other) == {(old,)}


def test_a_copy_of_an_identity_knows_what_its_data_directory_knew() -> None:
    net = SimNetwork(seed=3)
    node = net.add(persistent=True)
    net.run_until(node.leads, within=3.0)
    copy = net.add("copy", identity_of=node, start=False, persistent=True)
    assert (copy.seed, copy.restored) == (node.seed, node.restored)
    assert copy.restored.epoch is not None


def test_a_store_keeps_life_and_epoch_over_a_restart() -> None:
    net = SimNetwork(seed=2)
    node = net.add(persistent=True)
    net.run_until(node.leads, within=5)
    net.run(0.1)
    epoch = node.token().epoch
    assert (node.restored.life, node.restored.epoch) == (node.life, epoch)
    net.kill(node)
    net.start(node)
    net.run_until(node.leads, within=5)
    assert node.token().epoch > epoch


@pytest.mark.parametrize("ask", [False, True])
def test_a_node_that_does_not_run_shows_no_token_and_asking_it_changes_nothing(ask: bool) -> None:
    net = meshed(3)
    leader = net.oldest()
    net.stop(leader)
    for _ in range(200):
        net.run(0.1)
        if ask:
            with pytest.raises(NotAuthoritative, match="does not run: it is stopped"):
                leader.token()
    net.resume(leader)
    with pytest.raises(NotAuthoritative):
        leader.token()
    net.run(0.1)
    (demoted,) = leader.seen("demoted")
    assert demoted.reason.startswith("this process did not run for 2")
    net.kill(leader)
    with pytest.raises(NotAuthoritative, match="does not run: it is dead"):
        leader.token()


def test_a_store_that_fails_keeps_nothing() -> None:
    net = SimNetwork(seed=2)
    node = net.add(persistent=True)
    net.set_store(node, works=False)
    net.run(5.0)
    assert (node.restored.life, node.restored.epoch) == (None, None)
    assert not node.leads()


def test_observers_are_told_each_event_with_its_virtual_time() -> None:
    net = SimNetwork(seed=2)
    told: list[tuple[SimNode, float]] = []
    net.observers.append(
        lambda node, event: told.append((node, event.t)) if isinstance(event, Joined) else None
    )
    node = net.add()
    net.run(5.0)
    (first,) = told
    assert first[0] is node
    assert 0.9 < first[1] < 1.2


def test_without_multicast_nodes_meet_by_the_peers_they_are_given() -> None:
    net = SimNetwork(seed=2, multicast=False)
    one = net.add()
    net.add()
    net.run(5.0)
    assert not net.agrees()
    net.add(peers=[one])
    net.run_until(lambda: net.agrees([net.nodes[0], net.nodes[2]]), within=5)


def test_a_node_takes_any_setting_of_the_core() -> None:
    net = SimNetwork()
    node = net.add("watcher", agent=None, preset="local", mesh="other")
    assert {"preset", "mesh"} <= set(MeshConfig.__struct_fields__)
    net.run(2.0)
    assert node.leader() is None  # an observer never leads
