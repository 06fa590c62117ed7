"""Guests that live at one node while another remembers them: what is remembered never beats
what is heard, whoever starts first."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.protocol.types import CallEnded, MemberFailed
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

REGISTRATION: dict[str, Any] = {
    "instance_id": "g", "hostname": "h", "port": 1, "capabilities": (), "profiles": (),
}  # fmt: skip


def live_often(net: SimNetwork, home: SimNode) -> None:
    """The guest registers and leaves there and registers again: its term is high."""
    for _ in range(3):
        net.command(home, "register", **REGISTRATION)
        net.run(0.2)
        net.command(home, "deregister", instance_id="g")
        net.run(0.2)
    net.command(home, "register", **REGISTRATION)
    net.run(0.2)


def remembering(simulate: Simulate) -> tuple[SimNetwork, SimNode]:
    """A node that was killed while a guest lived there, with a store."""
    net = simulate(1, persistent=True)
    live_often(net, net.nodes[0])
    message = {"source": "s", "type": "Notification", "payload": b"x", "ttl": 3600.0}
    net.command(
        net.nodes[0], "send", target="g", named=False, correlation_id=None, **message
    )  # fmt: skip
    net.run(1.0)
    net.kill(net.nodes[0])
    return net, net.nodes[0]


def founded(net: SimNetwork) -> SimNode:
    """A fresh node that is alone."""
    node = net.add()
    net.run_until(lambda: node.life is not None, within=10.0)
    return node


def homes(net: SimNetwork) -> set[tuple[bytes, str] | None]:
    """Where each running node has the guest, and its state."""
    seen = (node.mesh.instance("g") for node in net.running())
    return {None if instance is None else (instance.home, instance.state) for instance in seen}


def failures(watch: Watch) -> int:
    return sum(t.event.instance_id == "g" for t in watch.events(MemberFailed))


def letters(net: SimNetwork, node: SimNode) -> int:
    call = net.command(node, "read", instance_id="g", limit=None)
    net.run(0.5)
    (end,) = [e for e in node.outcomes if isinstance(e, CallEnded) and e.call == call]
    assert end.status == "ok"
    return len(end.messages)


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 3.0])
def test_a_guest_that_registered_elsewhere_stays_there_when_its_old_home_starts(
    simulate: Simulate, pause: float
) -> None:
    net, old = remembering(simulate)
    here = founded(net)
    net.command(here, "register", **REGISTRATION)
    net.run(pause)
    watch = Watch(net)
    net.start(old)
    net.run_until(lambda: len(here.members()) == 3 and old.life is not None, within=10.0)
    net.run(0.1)
    assert homes(net) == {(here.mesh.node_id, "alive")}
    net.run(1.0)
    assert homes(net) == {(here.mesh.node_id, "alive")}
    assert failures(watch) == 0
    assert letters(net, here) == 1, "the old home handed over what it kept"


@pytest.mark.parametrize("pause", [0.001, 0.01, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_a_guest_that_registers_elsewhere_while_its_old_home_starts_is_served_at_once(
    simulate: Simulate, pause: float
) -> None:
    net, old = remembering(simulate)
    here = founded(net)
    net.start(old)
    net.run(pause)
    net.command(here, "register", **REGISTRATION)
    net.run_until(lambda: old.life is not None, within=10.0)
    net.run(1.5)
    ((_, state),) = {home for home in homes(net) if home is not None}
    assert state == "alive"
    assert letters(net, here) == 1


def test_a_goodbye_that_others_remember_does_not_end_a_later_life_here(
    simulate: Simulate,
) -> None:
    net = simulate(2)
    old, witness = net.nodes
    live_often(net, old)
    net.command(old, "deregister", instance_id="g")
    net.run(1.0)
    net.kill(old)
    net.run(3.0)
    net.partition([witness], [])
    here = net.add()
    net.cut(here, witness)
    net.run_until(lambda: here.life is not None, within=10.0)
    net.command(here, "register", **REGISTRATION)
    net.run(1.0)
    net.heal()
    net.discover()
    net.run_until(lambda: len(net.running()) == 2 and net.agrees(), within=10.0)
    net.run(0.2)
    assert homes(net) == {(here.mesh.node_id, "alive")}
    term = here.mesh._plane.office.guest("g").entry.term  # type: ignore[union-attr]
    net.run(5.0)
    assert here.mesh._plane.office.guest("g").entry.term == term  # type: ignore[union-attr]
