"""/metrics: what a node can be watched by, and no series that traffic could make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from p2pmesh import __version__
from tests.http.contract import fresh, register
from tests.http.serving import Served
from tests.http.wire import Connection, get, post


@pytest.fixture
def door(served: Served) -> Iterator[Connection]:
    with Connection(served.addresses[0]) as connection:
        yield connection


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(door: Connection) -> Samples:
    reply = door.ask(get("/metrics"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> Any:
    return (f"p2pmesh_{name}", tuple(sorted(labels.items())))


def test_a_node_says_what_runs_and_what_it_sees(served: Served, door: Connection) -> None:
    gone = register(door)
    register(door)
    served.run(lambda: served.mesh.set_state(gone, "failed"))
    found = scrape(door)
    assert found[key("build_info", version=__version__)] == 1
    assert found[key("node_info", node_id="1" * 64, instance_id="agent-1", mesh="memory")] == 1
    assert found[key("uptime_seconds")] > 0
    assert found[key("members", kind="node", state="alive")] == 1
    assert found[key("members", kind="guest", state="alive")] == 1
    assert found[key("members", kind="guest", state="failed")] == 1
    assert found[key("members", kind="guest", state="left")] == 0
    assert (found[key("is_leader")], found[key("leader_epoch")]) == (1, 7)
    assert found[key("has_authority")] == 0
    assert found[key("links", kind="ring")] == found[key("links", kind="other")] == 0


def test_it_says_what_waits_and_what_became_of_messages(door: Connection) -> None:
    found = scrape(door)
    assert found[key("queue_depth", queue="mailbox_guests")] == 3
    assert found[key("queued_bytes")] == 1000
    assert found[key("messages_total", state="accepted")] == 5
    assert found[key("messages_total", state="done")] == 2
    assert found[key("messages_total", state="dead")] == 0
    assert found[key("counted_total", reason="links_opened")] == 1


def test_it_says_how_late_the_loop_is(door: Connection) -> None:
    found = scrape(door)
    name = "event_loop_lag_seconds"
    assert found[key(f"{name}_bucket", le="0.01")] == 0
    assert found[key(f"{name}_bucket", le="0.025")] == 1
    assert found[key(f"{name}_bucket", le="+Inf")] == found[key(f"{name}_count")] == 1
    assert found[key(f"{name}_sum")] == 0.02


def test_requests_are_counted_by_what_answered_them(served: Served, door: Connection) -> None:
    def requests(method: str, route: str, status: int) -> float:
        labels = {"method": method, "route": route, "status": str(status)}
        return scrape(door).get(key("http_requests_total", **labels), 0)

    for _ in range(3):
        door.ask(get(f"/messages/{fresh()}"))
    door.ask(get("/health", method="HEAD"))
    door.ask(post("/messages/ack/x", b"{"))
    door.ask(post("/messages/ack/x", b"{}", content_type="text/plain"))
    with Connection(served.addresses[0]) as reader:
        reader.send(get("/v1/events"))
        reader.read_head()
    assert requests("GET", "/messages/{id}", 200) == 3
    assert requests("GET", "/health", 200) == 1
    assert requests("POST", "/messages/ack/{id}", 400) == 1
    assert requests("POST", "/messages/ack/{id}", 415) == 1
    assert requests("GET", "/v1/events", 200) == 1


def test_no_traffic_makes_series(door: Connection) -> None:
    door.ask(get("/nowhere"))
    before = scrape(door)
    for _ in range(50):
        door.ask(get(f"/nowhere/{fresh()}"))
        door.ask(get("/health", method="PUT"))
        register(door)
        door.ask(get(f"/messages/{fresh()}"))
    assert len(scrape(door)) <= len(before) + 4
    assert scrape(door)[key("http_requests_total", method="", route="", status="404")] == 51


def test_the_application_s_own_registry_is_left_alone(door: Connection) -> None:
    scrape(door)
    assert not [each.name for each in REGISTRY.collect() if each.name.startswith("p2pmesh")]
