"""What is told, how often, and in which order."""

from __future__ import annotations

from p2pmesh.protocol.types import (
    Candidate,
    FoundBy,
    Joined,
    MemberJoined,
    RequestArrived,
    RequestEnded,
)
from p2pmesh.testing import SimNetwork


def test_a_host_with_another_key_is_rejected_once_however_often_it_dials() -> None:
    network = SimNetwork(seed=4)
    mine, other = network.add("mine"), network.add("other", keys=(b"k" * 32,))
    network.run(60.0)
    for node in (mine, other):
        (event,) = node.seen("peer_rejected")
        assert event.reason == "other mesh or key"


def test_a_member_that_is_stopped_is_not_reported_as_one_that_cannot_be_a_peer() -> None:
    network = SimNetwork(seed=5)
    asking, member, *_ = [network.add(name) for name in ("asking", "member", "b", "c")]
    network.run_until(network.agrees, within=10)
    stranger = network.add("stranger", start=False)
    network.start(stranger)
    network.stop(stranger)  # before it says a word
    network.stop(member)
    network.reset(asking, member)
    network.offer(asking, Candidate("stranger", (stranger.address,), FoundBy.RUNTIME))
    network.run(10.0)
    assert [event.address for event in asking.seen("peer_rejected")] == [stranger.address]


def test_one_that_failed_and_is_still_stopped_is_not_reported_either() -> None:
    """It is dialled until it is back."""
    with SimNetwork(seed=5) as network:
        for name in "abc":
            network.add(name)
        network.run_until(network.agrees, within=10)
        stopped, *others = network.nodes
        network.stop(stopped)
        network.run(25.0)
        assert {node.state_of(stopped) for node in others} == {"failed"}
        assert not [event for node in others for event in node.seen("peer_rejected")]


def test_joined_is_the_first_event_and_whom_it_joined_come_next() -> None:
    network = SimNetwork(seed=6)
    for number in range(12):
        network.add(f"n{number}")
    network.run_until(network.agrees, within=20)
    for node in network.nodes:
        first, *others = node.events
        assert isinstance(first, Joined)
        met = {event.node_id for event in others if isinstance(event, MemberJoined)}
        assert met == {each.node_id for each in network.nodes if each is not node}


def test_the_first_leader_is_told_as_the_first() -> None:
    network = SimNetwork(seed=8)
    for name in ("a", "b"):
        network.add(name)
    network.run_until(network.agrees, within=10)
    late = network.add("late")
    network.run_until(network.agrees, within=10)
    assert [event.reason for event in late.seen("leader_changed")] == ["first"]


def test_an_agents_own_error_code_reaches_who_asked_and_the_nodes_words_cannot_be_borrowed() -> (
    None
):
    network = SimNetwork(seed=10)
    asker, asked = network.add("asker"), network.add("asked")
    network.run_until(network.agrees, within=10)
    for code in ("no_such_city", "timeout"):
        network.command(
            asker, "request", source=asker.instance_id, target=asked.instance_id, named=False,
            type="Query", payload=b"\xc0", timeout=30.0,
        )  # fmt: skip
        network.run(0.1)
        arrived = [a for a in asked.outcomes if isinstance(a, RequestArrived)][-1]
        network.command(
            asked, "respond", request=arrived.request, payload=None, error=code, detail="why"
        )
        network.run(0.1)
    ended = [a for a in asker.outcomes if isinstance(a, RequestEnded)]
    assert [(each.error, each.detail) for each in ended] == [
        ("no_such_city", "why"), ("failed", "why"),
    ]  # fmt: skip
