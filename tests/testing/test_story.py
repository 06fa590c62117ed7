"""What a failed run tells: what was awaited, what happened, and who sees whom."""

from __future__ import annotations

import traceback

import pytest

from p2pmesh.protocol.types import MemberFailed
from p2pmesh.testing import SimNetwork, SimNode, Timeout
from p2pmesh.testing.story import NAMES_MAX, TOLD_MAX, VIEWS_MAX


def meshed(count: int, *, seed: int = 1) -> SimNetwork:
    net = SimNetwork(seed=seed)
    for _ in range(count):
        net.add("agent")
        net.run(0.2)
    net.run_until(net.agrees, within=5.0)
    return net


def timed_out(net: SimNetwork, condition: object) -> str:
    with pytest.raises(Timeout) as raised:
        net.run_until(condition, within=0.1)  # type: ignore[arg-type]
    return str(raised.value)


def never() -> bool:
    return False


def test_a_timeout_says_what_was_awaited_as_its_author_wrote_it() -> None:
    net = meshed(2)
    one, other = net.nodes
    said = "not within 0.1 virtual seconds (seed 1): "
    assert timed_out(net, other.leads) == f"{said}agent-1.leads()"
    assert timed_out(net, never) == f"{said}never"
    assert timed_out(net, lambda: not one.leads()) == f"{said}not one.leads()"
    assert timed_out(
        net, lambda: one.state_of(other) == "failed" and not net.agrees([one])
    ).startswith(f'{said}one.state_of(other) == "failed"')
    net.unplug(net.add("late"))
    assert timed_out(net, net.agrees) == f"{said}agrees()"
    assert timed_out(net, eval("lambda: False")).startswith(said)  # a source that nobody has


def test_a_timeout_says_what_held_instead() -> None:
    net = meshed(4)
    one, other, *rest = net.nodes
    net.partition([one, other], rest)
    net.run(5.0)
    with pytest.raises(Timeout) as raised:
        net.run_until(net.agrees, within=1.0)
    text = "".join(traceback.format_exception(raised.value))
    assert "net.partition([0, 1], [2, 3])" in text
    assert "agent-0: member_failed agent-2 evidence=unreachable accusers=" in text
    assert (
        "agent-0, agent-1 (running) alive: agent-0, agent-1; failed: agent-2, agent-3; "
        "leader: agent-0, epoch "
    ) in text
    assert (
        "agent-2, agent-3 (running) alive: agent-2, agent-3; failed: agent-0, agent-1; "
        "leader: agent-2, epoch "
    ) in text


def test_an_assertion_that_fails_in_the_network_is_told_with_the_story_once() -> None:
    def run() -> None:
        with SimNetwork(seed=1) as net:
            node = net.add("lonely")
            net.run_until(node.leads, within=5.0)
            net.kill(node)
            assert node.is_running

    def wait() -> None:
        with SimNetwork(seed=1) as net:
            net.add("lonely")
            net.run_until(never, within=5.0)

    for fail in (run, wait):
        with pytest.raises(AssertionError) as raised:
            fail()
        text = "".join(traceback.format_exception(raised.value))
        assert text.count("What was done and told, in virtual seconds:") == 1
        assert text.count("To repeat this run:") == 1
        assert "lonely-0: elected token=(epoch " in text


def test_steps_and_events_of_all_nodes_are_told_in_the_order_of_time() -> None:
    net = meshed(3)
    net.kill(0)
    net.run(2.0)
    lines = net.story().splitlines()
    end = lines.index(next(line for line in lines if line.startswith("Who sees whom at ")))
    times = [float(line.split()[0]) for line in lines[1:end]]
    assert times == sorted(times)
    killed = next(n for n, line in enumerate(lines) if line.endswith("net.kill(0)"))
    failed = [n for n, line in enumerate(lines) if "member_failed agent-0" in line]
    assert len(failed) == 2
    assert all(n > killed for n in failed)
    assert "    agent-0 (dead)" in lines[end:]


def test_the_story_survives_the_restart_of_a_node() -> None:
    net = meshed(2)
    node = net.nodes[1]
    net.kill(node)
    net.run(1.0)
    net.start(node)
    net.run_until(net.agrees, within=5.0)
    assert len(node.seen("joined")) == 1
    assert net.story(last=100, nodes=[node]).count("agent-1: joined") == 2


def test_the_last_lines_are_told_and_the_others_counted() -> None:
    net = meshed(3)
    whole = net.story(last=1000).splitlines()
    steps_and_events = next(n for n, line in enumerate(whole) if line.startswith("Who sees")) - 1
    lines = net.story(last=3).splitlines()
    assert lines[1].strip() == f"({steps_and_events - 3} before that)"
    assert lines[2:5] == whole[steps_and_events - 2 : steps_and_events + 1]


def test_of_the_nodes_that_are_asked_for_all_is_told_and_of_others_nothing() -> None:
    net = meshed(3)
    story = net.story(nodes=[1])
    assert "agent-1: joined" in story
    assert "agent-0: joined" not in story
    assert story.splitlines()[-1].startswith(
        "    agent-1 (running) alive: agent-0, agent-1, agent-2"
    )


def test_nodes_that_never_ran_or_stopped_or_left_are_told_as_such() -> None:
    net = meshed(3)
    net.add("host", start=False)
    net.stop(1)
    net.leave(2)
    net.run(0.5)
    story = net.story()
    assert "    host-3 (never started)" in story
    assert "    agent-2 (left)" in story
    assert "    agent-1 (stopped) alive: " in story


def test_telling_the_story_leaves_no_mark_on_the_run() -> None:
    told, other = meshed(3), meshed(3)
    for net in (told, other):
        net.kill(0)
        net.run(0.05)
        if net is told:
            net.story()
        net.run(5.0)
    assert told.trace_hash() == other.trace_hash()


def test_a_story_of_many_nodes_is_bounded() -> None:
    net = SimNetwork(seed=1, expected=201, multicast=False)
    net.add_converged(VIEWS_MAX + 5)
    net.run(0.1)
    event = MemberFailed(
        instance_id="x", node_id="", name="x", kind="node",
        evidence="refused", accusers=(),  # type: ignore[arg-type]
    )  # fmt: skip
    for _ in range(TOLD_MAX + 5):
        net.happened(net.nodes[0], event)
    assert len(net.told) == TOLD_MAX
    story = net.story(last=5).splitlines()
    assert story[-1] == "    and 5 more nodes"
    assert f"and {len(net.nodes) - NAMES_MAX} more; leader: " in story[-2]
    assert all(len(line) < 600 for line in story)


def test_a_node_is_shown_by_its_number_and_instance_id() -> None:
    node: SimNode = SimNetwork().add("agent")
    assert repr(node) == "<SimNode 0, agent-0>"
