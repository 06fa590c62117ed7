"""What the simulator is given is checked where it is given, and refused in words."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.arguments import READERS

OF_NODES = {
    "node",
    "source",
    "target",
    "one",
    "other",
    "peers",
    "address_of",
    "identity_of",
    "sides",
}
OF_COMMANDS = {"method", "arguments"}
SEND: dict[str, Any] = {
    "source": "agent-0", "target": "agent-1", "named": False, "type": "Notification",
    "payload": b"\x01", "ttl": 60.0, "correlation_id": None,
}  # fmt: skip

Do = Callable[[SimNetwork, SimNode], Any]


@pytest.fixture
def net() -> SimNetwork:
    net = SimNetwork(seed=1)
    for _ in range(3):
        net.add("agent")
    net.run_until(net.agrees, within=5.0)
    return net


NUMBERS: dict[str, tuple[Do, str]] = {
    "a loss in percent": (lambda net, _: net.set_loss(20), r"loss 20: .*share .*0\.2 is 20 %"),
    "a loss of all": (lambda net, _: net.set_loss(1), "partition, cut and unplug"),
    "a loss below nothing": (lambda net, _: net.set_loss(-0.1), "loss -0.1: .*share"),
    "a delay in milliseconds": (lambda net, _: net.set_delay(50), "delay 50: .*seconds one way"),
    "a jitter below nothing": (
        lambda net, _: net.set_delay(0.1, jitter=-1.0), "jitter -1.0: .*seconds one way",
    ),
    "a run backwards": (lambda net, _: net.run(-1), "seconds -1: .*virtual seconds"),
    "a run for ever": (lambda net, _: net.run(math.inf), "seconds inf: .*virtual seconds"),
    "a run of no number": (lambda net, _: net.run(math.nan), "seconds nan: .*virtual seconds"),
    "a time in the past": (lambda net, _: net.run_to(0.0), "time 0.0: it is .* already"),
    "a wait for ever": (
        lambda net, _: net.run_until(lambda: False, within=math.inf), "within inf: .*seconds",
    ),
    "stops of no time, one after the other for ever": (
        lambda net, node: net.starve(node, runs=0.0, stops=0.0, seconds=1.0), "stops 0.0: ",
    ),
    "a jump back": (lambda net, node: net.jump(node, -1.0), "seconds -1.0: .*seconds"),
    "a message that lives no time": (
        lambda net, node: net.command(node, "send", **{**SEND, "ttl": -1.0}), "ttl -1.0: .*seconds",
    ),
    "text for the bytes of a message": (
        lambda net, node: net.command(node, "send", **{**SEND, "payload": "hello"}),
        "payload 'hello': Expected `bytes`",
    ),
    "a port of no guest": (
        lambda net, node: net.command(
            node, "register", instance_id="g", hostname="", port=80780, capabilities=(), profiles=()
        ),
        "port 80780: give a port, from 0 to 65,535",
    ),
    "a wall clock of another age": (
        lambda net, node: net.set_wall(node, 10**16), "offset 10000000000000000: .*milliseconds",
    ),
    "fewer strangers than none": (
        lambda net, node: net.besiege(node, -1), "strangers -1: .*connections",
    ),
    "a loss from the beginning": (lambda net, _: SimNetwork(loss=5), "loss 5: .*share"),
    "fewer nodes than none": (lambda net, _: SimNetwork(expected=-1), "expected -1: .*nodes"),
    "a mesh of nobody": (lambda net, _: SimNetwork().add_converged(0), "count 0: .*nodes"),
    "a port that is none": (
        lambda net, node: net.set_addresses(node, ["10.0.0.1:80780"]), "0 to 65535",
    ),
    "an address without a port": (
        lambda net, node: net.set_addresses(node, ["10.0.0.1"]), "host:port",
    ),
}  # fmt: skip

KINDS: dict[str, tuple[Do, str]] = {
    "a number as text": (lambda net, _: net.set_loss("0.2"), "loss '0.2': .*share.*not str"),
    "a count that is a yes": (lambda net, _: SimNetwork(expected=True), "expected True: .*nodes"),
    "a seed that is chance": (lambda net, _: SimNetwork(seed=None), "seed None: .*the same run"),
    "a wall clock in seconds": (lambda net, node: net.set_wall(node, 1.5), "whole .*milliseconds"),
    "an answer instead of a question": (
        lambda net, _: net.run_until(net.agrees(), within=1), "condition True: give a function",
    ),
    "a word for a flag": (lambda net, node: net.set_store(node, "no"), "works 'no': give True"),
    "one address for several": (
        lambda net, node: net.set_addresses(node, node.address), 'a list of "host:port"',
    ),
    "no candidate": (lambda net, node: net.offer(node, node.address), "candidate .*: give a "),
}  # fmt: skip


@pytest.mark.parametrize("what", NUMBERS)
def test_a_value_that_cannot_be_meant_is_refused_by_its_name_with_its_unit(
    net: SimNetwork, what: str
) -> None:
    do, said = NUMBERS[what]
    with pytest.raises(ValueError, match=said):
        do(net, net.nodes[0])


@pytest.mark.parametrize("what", KINDS)
def test_another_kind_of_thing_is_refused_by_its_name(net: SimNetwork, what: str) -> None:
    do, said = KINDS[what]
    with pytest.raises(TypeError, match=said):
        do(net, net.nodes[0])


def test_every_argument_of_every_step_is_read_by_something() -> None:
    methods = [each for each in vars(SimNetwork).values() if inspect.isfunction(each)]
    steps = [each for each in methods if hasattr(each, "__wrapped__")]
    assert len(steps) > 25
    taken = {name for each in steps for name in inspect.signature(each).parameters}
    assert taken - {"self"} <= set(READERS) | OF_NODES | OF_COMMANDS


def test_a_loss_and_a_delay_at_their_bounds_end_a_run() -> None:
    net = SimNetwork(seed=2, loss=0.99, delay=10.0, jitter=10.0)
    net.add()
    net.add()
    net.run(60.0)
    assert net.clock.now == 60.0


# --- names --------------------------------------------------------------------------

NAMES: dict[str, tuple[Do, type[Exception], str]] = {
    "a name for a node": (
        lambda net, _: net.kill("agent"), TypeError,
        "node 'agent': give a node .* or its number; .*those with this name are 0, 1, 2",
    ),
    "an instance id for a node": (
        lambda net, _: net.stop("agent-1"), TypeError, r"net\.nodes\[1\] has this instance id",
    ),
    "a wrong id for a node": (
        lambda net, _: net.cut(0, "agnt-1"), TypeError, "target 'agnt-1': .*did you mean 'agent-1'",
    ),
    "a number that is too high": (
        lambda net, _: net.kill(3), ValueError, "node 3: there are 3 nodes, numbered from 0",
    ),
    "a node of another network": (
        lambda net, _: net.kill(SimNetwork().add()), ValueError, "a node of another network",
    ),
    "an id for another node": (
        lambda net, node: node.state_of("agent-1"), TypeError, "other 'agent-1': give a node",
    ),
    "a node for an id": (
        lambda net, node: net.command(node, "deregister", instance_id=node), TypeError,
        r"instance_id <SimNode 0, agent-0>: give an instance id \(node\.instance_id\)",
    ),
    "a node for a name": (lambda net, node: net.add(node), TypeError, "name <.*: give the name"),
    "one node for several": (
        lambda net, node: net.add(peers=node), TypeError, "peers <.*: give a list of nodes",
    ),
    "one node for all to agree": (
        lambda net, node: net.agrees(node), TypeError, "nodes <.*: give a list of nodes",
    ),
    "the oldest of none": (lambda net, _: net.oldest([]), ValueError, "there is no oldest"),
    "nodes for sides": (
        lambda net, node: net.partition(node, net.nodes[1]), TypeError, "each side as a list",
    ),
    "one side": (lambda net, node: net.partition([node]), ValueError, "at least two sides"),
    "a node on both sides": (
        lambda net, node: net.partition([node], net.nodes), ValueError, "is named twice",
    ),
    "a command that is none": (
        lambda net, node: net.command(node, "sendd"), ValueError, "'sendd': .*did you mean 'send'",
    ),
    "a command that lacks something": (
        lambda net, node: net.command(node, "send", target="agent-1"), TypeError,
        r"command 'send': missing .*; it takes \(\*, source, target, named, ",
    ),
    "a command of one who is gone": (
        lambda net, node: (net.kill(node), net.command(node, "deregister", instance_id="g")),
        ValueError, "command .deregister.: agent-0 does not run",
    ),
    "an event that is none": (
        lambda net, node: node.seen("member_fialed"), ValueError,
        "'member_fialed': .*did you mean 'member_failed'",
    ),
    "an event of real nodes": (
        lambda net, node: node.seen("message_done"), ValueError, "look into SimNode.outcomes",
    ),
    "a state that is none": (
        lambda net, node: node.members("aliv"), ValueError, "'aliv': .*did you mean 'alive'",
    ),
    "a setting that is none": (
        lambda net, _: net.add(quorm=2), ValueError, "'quorm': .*did you mean 'quorum'",
    ),
    "a setting of another type": (
        lambda net, _: net.add(quorum="2"), ValueError, "quorum '2': Expected `int",
    ),
    "an argument that is none": (
        lambda net, node: net.starve(node, run=1.0), TypeError,
        r"net\.starve: .*; it takes \(node, \*, runs, stops, seconds\)",
    ),
    "a question to one who never ran": (
        lambda net, _: net.add("host", start=False).leader(), ValueError,
        "host-3 was never started",
    ),
    "a start of one who runs": (
        lambda net, node: net.start(node), ValueError, "agent-0>: runs already",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NAMES)
def test_a_wrong_name_is_refused_and_says_what_was_meant(net: SimNetwork, what: str) -> None:
    do, error, said = NAMES[what]
    with pytest.raises(error, match=said):
        do(net, net.nodes[0])


def test_what_is_refused_is_not_in_the_scenario(net: SimNetwork) -> None:
    before = str(net.scenario)
    with pytest.raises(ValueError, match="loss 20"):
        net.set_loss(20)
    with pytest.raises(TypeError, match="node 'agent'"):
        net.kill("agent")  # type: ignore[arg-type]
    assert str(net.scenario) == before


def test_sides_may_be_any_collections_and_the_scenario_has_their_nodes(net: SimNetwork) -> None:
    one, *others = net.nodes
    net.partition({one}, (node for node in others))
    assert str(net.scenario).endswith("net.partition([0], [1, 2])")
    net.run(10.0)
    assert SimNetwork.replay(net.scenario).trace_hash() == net.trace_hash()
