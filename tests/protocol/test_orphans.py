"""Guests whose home is gone: what users are told, and when."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import MemberFailed, MemberJoined, MemberLeft
from p2pmesh.testing import SimNetwork
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

REGISTRATION: dict[str, Any] = {
    "instance_id": "g", "hostname": "h", "port": 1, "capabilities": (), "profiles": (),
}  # fmt: skip


@pytest.fixture
def net(simulate: Simulate) -> SimNetwork:
    """Five nodes; the fourth is the home of a guest."""
    net = simulate(5)
    net.command(net.nodes[3], "register", **REGISTRATION)
    net.run(1.0)
    return net


def told(watch: Watch, *kinds: type) -> list[tuple[str, str]]:
    """Who told of the guest, and what, in order."""
    return [
        (t.node.instance_id, type(t.event).__name__)
        for t in watch.events(*kinds)
        if t.event.instance_id == "g"
    ]


def each(net: SimNetwork, kind: str) -> list[tuple[str, str]]:
    return sorted((node.instance_id, kind) for node in net.running())


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_a_guest_that_nobody_adopts_fails_when_its_time_is_over(net: SimNetwork, end: str) -> None:
    watch = Watch(net)
    getattr(net, end)(net.nodes[3])
    net.run(timing.GUEST_TIMEOUT - 0.5)
    assert told(watch, MemberFailed, MemberLeft) == []
    net.run(2.0)
    assert sorted(told(watch, MemberFailed, MemberLeft)) == each(net, "MemberFailed")
    net.run(60.0)
    assert sorted(told(watch, MemberFailed, MemberLeft)) == each(net, "MemberFailed")


def test_a_guest_that_is_adopted_in_time_never_failed(net: SimNetwork) -> None:
    watch = Watch(net)
    net.kill(net.nodes[3])
    net.run(5.0)
    net.command(net.nodes[1], "heartbeat", instance_id="g", status="ok", metrics=None)
    for _ in range(4):
        net.run(5.0)
        net.command(net.nodes[1], "heartbeat", instance_id="g", status="ok", metrics=None)
    assert told(watch, MemberFailed, MemberLeft, MemberJoined) == []


def test_a_guest_that_comes_back_after_it_failed_has_joined(net: SimNetwork) -> None:
    net.kill(net.nodes[3])
    net.run(timing.GUEST_TIMEOUT + 2.0)
    watch = Watch(net)
    net.command(net.nodes[1], "heartbeat", instance_id="g", status="ok", metrics=None)
    net.run(1.0)
    assert sorted(told(watch, MemberFailed, MemberJoined)) == each(net, "MemberJoined")


def test_the_home_of_a_guest_says_when_it_was_heard_also_after_it_failed(net: SimNetwork) -> None:
    def age() -> tuple[str, float]:
        (guest,) = (member for member in net.nodes[3].members() if member.instance_id == "g")
        return guest.state, round(guest.last_heartbeat_age)

    net.run(9.0)
    assert age() == ("alive", 10)
    net.run(10.0)
    assert age() == ("failed", 20)
    net.command(net.nodes[3], "heartbeat", instance_id="g", status="ok", metrics=None)
    net.run(1.0)
    assert age() == ("alive", 1)
