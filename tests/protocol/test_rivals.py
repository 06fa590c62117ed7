"""Two identities, one instance id: the older agent keeps it."""

from __future__ import annotations

from p2pmesh.protocol.types import Agent
from p2pmesh.testing import SimNetwork


def two_agents_of_one_id() -> tuple[SimNetwork, list[str]]:
    network = SimNetwork(seed=5)
    network.add("first", agent=Agent("worker"))
    network.run(1.5)
    network.add("second", agent=Agent("worker"))
    network.add("third")
    network.run(2.0)
    return network, [member.node_id for member in network.nodes[2].members("alive")]


def test_the_older_agent_keeps_the_id_and_the_younger_is_not_listed() -> None:
    network, listed = two_agents_of_one_id()
    first, second, third = network.nodes
    assert first.node_id in listed
    assert third.node_id in listed
    assert second.node_id not in listed


def test_the_younger_agent_ends_when_the_holder_stays() -> None:
    network, _ = two_agents_of_one_id()
    first, second, _ = network.nodes
    network.run(5.0)
    assert second.stopped_because == "an older agent has this instance id"
    assert second.seen("identity_conflict")
    assert first.is_running


def test_the_younger_agent_gets_the_id_when_the_holder_goes_in_time() -> None:
    network, _ = two_agents_of_one_id()
    first, second, third = network.nodes
    network.kill(first)
    network.run(10.0)
    assert second.is_running
    assert second.node_id in [member.node_id for member in third.members("alive")]
