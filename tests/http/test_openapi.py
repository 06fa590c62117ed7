"""/openapi.json: all that is served is described, and answers are as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from p2pmesh import __version__
from p2pmesh.http.calls import Media, Route
from p2pmesh.http.openapi import PARAMETERS, describe
from p2pmesh.messages import DeadLetter
from tests.http.contract import MESSAGE, fresh, register, send
from tests.http.serving import Served
from tests.http.wire import Connection, get, post


@pytest.fixture
def door(served: Served) -> Any:
    with Connection(served.addresses[0]) as connection:
        yield connection


@pytest.fixture
def document(door: Connection) -> Any:
    reply = door.ask(get("/openapi.json"))
    assert reply.status == 200
    return reply.json


def served_routes(served: Served) -> list[Route]:
    """Every route that the server answers, whatever the description says."""
    house = served.servers[0]._house
    return [
        route
        for paths in house._paths.values()
        for path in paths
        for route in path.methods.values()
    ]  # fmt: skip


def operations(document: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from [inner] if key == "$ref" else references(inner)
        case list():
            for inner in value:
                yield from references(inner)


def test_everything_that_is_served_is_described_and_nothing_else(
    served: Served, document: Any
) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    described = {(method, path) for method, path, _ in operations(document)}
    assert described == {(route.method, route.template) for route in served_routes(served)}


def test_every_route_says_what_it_is_for_and_what_it_answers(served: Served) -> None:
    for route in served_routes(served):
        where = f"{route.method} {route.template}"
        assert route.summary.endswith("."), where
        assert any(status < 300 for status in route.answers), where


def test_every_operation_has_an_id_of_its_own(document: Any) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(each.replace("_", "").isalnum() for each in ids)


def test_every_schema_that_is_referred_to_is_there(document: Any) -> None:
    schemas = document["components"]["schemas"]
    found = set(references(document))
    assert found == {f"#/components/schemas/{name}" for name in schemas}


def test_whatever_a_path_holds_is_a_parameter(document: Any) -> None:
    for _, path, operation in operations(document):
        named = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert named == [part[1:-1] for part in path.split("/") if part.startswith("{")]
        assert set(named) <= set(PARAMETERS)


def test_queries_and_headers_that_are_read_are_parameters(document: Any) -> None:
    listed = {
        (each["name"], each["in"]): each["schema"]
        for _, _, operation in operations(document)
        for each in operation["parameters"]
    }
    assert {"limit", "state", "capability"} <= {name for name, where in listed if where == "query"}
    assert ("Idempotency-Key", "header") in listed
    assert ("Last-Event-ID", "header") in listed
    assert (listed["limit", "query"]["minimum"], listed["limit", "query"]["maximum"]) == (1, 1000)


def test_refusals_are_text_or_problems_and_say_when_to_come_back(document: Any) -> None:
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status in ("401", "403", "421", "503"):
                kind = "application/problem+json" if path.startswith("/v1/") else "text/plain"
                assert [each.partition(";")[0] for each in response["content"]] == [kind]
            assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))


#: What changes the node itself; everything else is read or written by its method.
ADMIN: set[tuple[str, str]] = {("PATCH", "/v1/self"), ("POST", "/v1/leave")}


def test_every_call_says_which_token_it_needs(document: Any) -> None:
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for method, path, operation in operations(document):
        scope = "read" if method == "GET" else "write"
        wanted = "admin" if (method, path) in ADMIN else scope
        assert operation["security"] == [{"token": [wanted]}, {}]


async def nobody(call: Any) -> Any:
    raise AssertionError("only described")


def test_a_route_without_types_is_described_too() -> None:
    route = Route("GET", "/x/{id}", nobody, answers={200: Media("image/png", "A picture.")})
    responses = describe([route], "1")["paths"]["/x/{id}"]["get"]["responses"]
    assert responses["200"]["content"] == {"image/png": {"schema": {"type": "string"}}}
    assert set(responses) == {"200", "400", "401", "403", "421", "503"}


def test_answers_are_of_the_types_that_describe_them(served: Served, door: Connection) -> None:
    """Each whole answer read as its type and written again loses nothing."""
    guest = register(door, "me")
    message_id = door.ask(send("x", guest, {"a": 1})).json["message_id"]
    served.mesh.handlers["agent-1"] = lambda payload: payload
    served.mesh.dead["m-1"] = DeadLetter(
        "m-1", "x", guest, "me", "Greeting", None, 1, 2, "broken", 1, b"\x81\xa1a\x01"
    )
    asked = {
        ("POST", "/registry/register"): post("/registry/register", registration()),
        ("GET", "/registry/agents"): get("/registry/agents"),
        ("POST", "/registry/heartbeat/{id}"): post("/registry/heartbeat/me", {"status": "x"}),
        ("POST", "/messages/send/{source}"): post(
            "/messages/send/x", MESSAGE | {"target_instance": guest}
        ),
        ("GET", "/messages/{id}"): get("/messages/me"),
        ("GET", "/health"): get("/health"),
        ("GET", "/v1/self"): get("/v1/self"),
        ("PATCH", "/v1/self"): post("/v1/self", {"status": "x"}).replace(b"POST", b"PATCH", 1),
        ("POST", "/v1/ping/{id}"): get("/v1/ping/me", method="POST"),
        ("GET", "/v1/members"): get("/v1/members"),
        ("GET", "/v1/members/{id}"): get("/v1/members/me"),
        ("GET", "/v1/leader"): get("/v1/leader"),
        ("GET", "/v1/links"): get("/v1/links"),
        ("GET", "/v1/stats"): get("/v1/stats"),
        ("GET", "/v1/messages/{id}"): get(f"/v1/messages/{message_id}"),
        ("GET", "/v1/dead-letters"): get("/v1/dead-letters"),
        ("POST", "/v1/dead-letters/{id}/retry"): get("/v1/dead-letters/m-1/retry", method="POST"),
        ("POST", "/v1/request/{source}"): post(
            "/v1/request/me", {"target_instance": "agent-1", "payload": 1}
        ),
        ("GET", "/openapi.json"): get("/openapi.json"),
    }
    for route in served_routes(served):
        answer = route.answers.get(200)
        if answer is None or isinstance(answer, Media):
            continue
        reply = door.ask(asked.pop((route.method, route.template)))
        assert reply.status == 200, reply.body
        typed = msgspec.json.decode(reply.body, type=answer)
        again = msgspec.json.decode(msgspec.json.encode(typed))
        assert again == reply.json
    assert not asked


def registration() -> dict[str, Any]:
    return {
        "instance_id": fresh(), "hostname": "h", "port": 1, "capabilities": ["c"],
        "agent_profiles": [],
    }  # fmt: skip
