"""Guests whose readers wait at one node while they live at another, on real cores."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import CallEnded
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate

REGISTRATION: dict[str, Any] = {
    "instance_id": "g", "hostname": "h", "port": 1, "capabilities": (), "profiles": (),
}  # fmt: skip


class Mesh:
    """Twenty nodes; the guest lives at one and is read through one without a link to it."""

    def __init__(self, net: SimNetwork) -> None:
        self.net = net
        self.home = net.nodes[0]
        net.command(self.home, "register", **REGISTRATION)
        net.run(1.0)
        linked = {link.node_id for link in self.home.mesh.links(self.home.now())}
        far = [node for node in net.nodes[1:] if node.node_id not in linked]
        self.reader, self.sender, self.other = far[:3]

    def poll(self, seconds: float = 60.0) -> int:
        call: int = self.net.command(self.reader, "read", instance_id="g", limit=None, wait=seconds)
        return call

    def beat(self, through: SimNode) -> None:
        self.net.command(through, "heartbeat", instance_id="g", status="ok", metrics=None)

    def send(self) -> str:
        message_id: str = self.net.command(
            self.sender, "send", source="s", target="g", named=False, type="Notification",
            payload=b"x", ttl=3600.0, correlation_id=None,
        )  # fmt: skip
        return message_id

    def ended(self, call: int) -> CallEnded | None:
        ends = [each for each in self.reader.outcomes if isinstance(each, CallEnded)]
        return next((each for each in ends if each.call == call), None)

    def is_told(self, call: int, message_id: str) -> bool:
        ended = self.ended(call)
        return ended is not None and [m.message_id for m in ended.messages] == [message_id]


@pytest.fixture
def mesh(simulate: Simulate) -> Mesh:
    return Mesh(simulate(20))


def test_mail_is_told_at_once_though_its_link_was_idle_for_long(mesh: Mesh) -> None:
    call = mesh.poll()
    for _ in range(5):
        mesh.net.run(10.0)
        mesh.beat(mesh.home)
    assert mesh.ended(call) is None
    message_id = mesh.send()
    took = mesh.net.run_until(lambda: mesh.is_told(call, message_id), within=1.0)
    assert took < 1.0


def test_nothing_comes_and_the_wait_ends_in_time(mesh: Mesh) -> None:
    call = mesh.poll(20.0)
    mesh.net.run(19.9)
    assert mesh.ended(call) is None
    mesh.net.run(0.2)
    assert mesh.ended(call) == CallEnded(call, "ok")


def test_a_home_that_dies_is_followed_by_whoever_adopts_the_guest(mesh: Mesh) -> None:
    call = mesh.poll()
    mesh.net.run(1.0)
    mesh.net.kill(mesh.home)
    mesh.net.run(2.0)
    message_id = mesh.send()
    assert mesh.ended(call) is None
    mesh.beat(mesh.other)
    mesh.net.run_until(lambda: mesh.is_told(call, message_id), within=2.0)


def test_a_guest_that_roams_takes_its_reader_along(mesh: Mesh) -> None:
    call = mesh.poll()
    mesh.net.run(1.0)
    mesh.net.cut(mesh.other, mesh.home)
    mesh.beat(mesh.other)
    mesh.net.run(timing.FORWARD_TIMEOUT + 4.0)
    assert mesh.home.mesh._plane.office.guest("g") is None, "adopted elsewhere"
    assert mesh.ended(call) is None
    message_id = mesh.send()
    mesh.net.run_until(lambda: mesh.is_told(call, message_id), within=2.0)


def test_a_home_that_is_stopped_is_not_waited_for_but_one_that_stops_later_is(
    mesh: Mesh,
) -> None:
    waiting = mesh.poll()
    mesh.net.run(1.0)
    mesh.net.stop(mesh.home)
    refused = mesh.poll()
    mesh.net.run(timing.FORWARD_TIMEOUT + 0.1)
    assert mesh.ended(refused) == CallEnded(refused, "unavailable")
    assert mesh.ended(waiting) is None
    message_id = mesh.send()
    mesh.net.run(3.0)
    mesh.net.resume(mesh.home)
    mesh.net.run_until(lambda: mesh.is_told(waiting, message_id), within=3.0)
