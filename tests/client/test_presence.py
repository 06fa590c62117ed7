"""An agent that stays registered, whatever happens to the nodes."""

from __future__ import annotations

import logging
from typing import cast

import pytest

from p2pmesh.client.nodes import Nodes
from p2pmesh.client.presence import Presence
from p2pmesh.errors import ConfigError, IdentityConflict
from tests.client.driving import REFUSED, Paused, World, said

A, B = "http://127.0.0.1:8001", "http://127.0.0.1:8002"
REGISTERED = said(
    {"success": True, "instance_id": "g", "is_leader": False, "leader_id": "a-1", "peers": []}
)
KNOWN = said({"acknowledged": True, "leader_id": "b-1", "should_sync": False})
UNKNOWN = said({"acknowledged": False, "leader_id": None, "should_sync": False}, 404)


def presence(*urls: str, interval: float = 5.0) -> Presence:
    return Presence(
        Nodes(urls or (A,), None, None), "g", hostname="h", port=7, capabilities=["see"],
        agent_profiles=(), interval=interval,
    )  # fmt: skip


def stay(world: World, kept: Presence, pauses: int) -> None:
    """Until it pauses for that time, counted from now."""
    world.paused.clear()
    with pytest.raises(Paused):
        world.run(kept.stay(), pauses_max=pauses)


def test_it_registers_beats_and_deregisters() -> None:
    world = World({A: [REGISTERED, KNOWN, KNOWN, said(b"", 204)]})
    kept = presence()
    assert world.run(kept.enter()).leader_id == kept.leader_id == "a-1"
    kept.status, kept.metrics = "busy", {"load": 0.5}
    stay(world, kept, 3)
    assert kept.leader_id == "b-1"
    world.run(kept.leave())
    assert world.calls == [
        "POST /registry/register", "POST /registry/heartbeat/g", "POST /registry/heartbeat/g",
        "DELETE /registry/deregister/g",
    ]  # fmt: skip
    assert world.bodies[0] == {
        "instance_id": "g", "hostname": "h", "port": 7, "capabilities": ["see"],
        "agent_profiles": [],
    }  # fmt: skip
    assert world.bodies[1] == {"status": "busy", "metrics": {"load": 0.5}}
    assert world.paused == [5.0, 5.0, 5.0]


def test_where_the_mesh_has_forgotten_it_it_registers_again() -> None:
    world = World({A: [REGISTERED, UNKNOWN, REGISTERED, KNOWN]})
    kept = presence()
    world.run(kept.enter())
    stay(world, kept, 3)
    assert [call.split("/")[2] for call in world.calls] == [
        "register", "heartbeat", "register", "heartbeat",
    ]  # fmt: skip
    assert kept.trouble is None


def test_when_its_node_dies_it_beats_at_another() -> None:
    world = World({A: REGISTERED, B: KNOWN})
    kept = presence(A, B)
    world.run(kept.enter())
    world.nodes[A] = REFUSED
    stay(world, kept, 2)
    assert world.urls == [A, A, B]
    assert kept.trouble is None


def test_when_no_node_answers_it_tries_sooner_says_so_once_and_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World({A: REGISTERED})
    kept = presence()
    world.run(kept.enter())
    world.nodes[A] = REFUSED
    with caplog.at_level(logging.WARNING, "p2pmesh.client"):
        stay(world, kept, 4)
    assert world.paused == [5.0, 1.0, 1.0, 1.0]
    assert len(caplog.records) == 1
    assert A in str(kept.trouble)
    world.nodes[A] = KNOWN
    stay(world, kept, 2)
    assert kept.trouble is None


@pytest.mark.parametrize("metrics", [{"image": b"\0"}, {"load": float("nan")}])
def test_metrics_that_cannot_be_told_are_trouble_and_do_not_end_it(
    metrics: dict[str, object],
) -> None:
    world = World({A: [REGISTERED, KNOWN]})
    kept = presence()
    world.run(kept.enter())
    kept.metrics = metrics
    stay(world, kept, 2)
    assert "metrics['" in str(kept.trouble)
    kept.metrics = None
    stay(world, kept, 2)
    assert kept.trouble is None


def test_an_id_that_a_live_node_has_is_an_error_at_once() -> None:
    world = World({A: said(b"'g' is the agent of a live node", 409)})
    with pytest.raises(IdentityConflict, match="register under another id"):
        world.run(presence().enter())


def test_leaving_when_nobody_answers_is_no_error() -> None:
    world = World()
    world.run(presence().leave())
    assert world.calls == ["DELETE /registry/deregister/g"]


@pytest.mark.parametrize("interval", [0.0, -1.0, 15.0, float("nan"), cast(float, "5")])
def test_an_interval_that_the_mesh_would_not_bear_is_refused(interval: float) -> None:
    with pytest.raises(ConfigError, match="interval"):
        presence(interval=interval)
