"""The view as people see it."""

from __future__ import annotations

from p2pmesh.testing import SimNetwork, SimNode


def test_a_guests_status_travels_at_once_and_then_at_most_every_ten_seconds() -> None:
    network = SimNetwork(seed=11)
    home, other = network.add("home"), network.add("other")
    network.run_until(network.agrees, within=10)
    network.command(
        home, "register", instance_id="g", hostname="h", port=1, capabilities=(), profiles=()
    )

    def beat(status: str) -> None:
        network.command(home, "heartbeat", instance_id="g", status=status, metrics=b"\x81\xa1n\x01")

    def seen(node: SimNode) -> tuple[str | None, object]:
        (guest,) = (member for member in node.members() if member.kind == "guest")
        return guest.status, guest.metrics

    beat("healthy")
    network.run(0.5)
    assert seen(other) == ("healthy", {"n": 1})
    beat("busy")
    network.run(0.5)
    assert seen(home)[0] == "busy"
    assert seen(other)[0] == "healthy"
    network.run(9.5)
    beat("busy")
    network.run(0.5)
    assert seen(other)[0] == "busy"
