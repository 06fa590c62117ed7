"""The node's own view under /v1, and requests that wait for their answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import msgspec
import pytest

from p2pmesh import __version__, errors
from p2pmesh.messages import DeadLetter, encode
from tests.http.contract import (
    MESSAGE_FIELDS,
    POISON,
    awaited,
    eventually,
    fresh,
    register,
    send,
    with_payload,
)
from tests.http.serving import Served
from tests.http.wire import Connection, Reply, get, post

MEMBER_FIELDS = [
    "instance_id", "node_id", "name", "kind", "home", "state", "stalled", "life", "incarnation",
    "capabilities", "agent_profiles", "status", "metrics", "addresses", "last_heartbeat_age",
    "is_leader", "candidate",
]  # fmt: skip


@pytest.fixture
def door(served: Served) -> Any:
    with Connection(served.addresses[0]) as connection:
        yield connection


def problem(reply: Reply, status: int) -> dict[str, Any]:
    """The problem document of a refusal."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = reply.json
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    assert document["detail"]
    return document


def ask(door: Connection, target: str | None = "agent-1", **fields: Any) -> Reply:
    body = {"target_instance": target, "payload": {"n": 1}} | fields
    return door.ask(post("/v1/request/me", body))


# --- the view --------------------------------------------------------------------


def test_self_is_the_own_member_and_what_runs_here(door: Connection) -> None:
    answer = door.ask(get("/v1/self")).json
    assert set(answer) == {
        *MEMBER_FIELDS, "leader_id", "epoch", "mesh", "http", "uptime", "version", "durable",
    }  # fmt: skip
    assert answer["instance_id"] == answer["leader_id"] == "agent-1"
    assert answer["node_id"] == "1" * 64
    assert (answer["epoch"], answer["mesh"], answer["durable"]) == (7, "memory", False)
    assert answer["version"] == __version__
    assert isinstance(answer["uptime"], float)


def test_members_are_all_of_them_oldest_first(served: Served, door: Connection) -> None:
    gone = register(door)
    guest = register(door, capabilities=["see", "hear"])
    served.run(lambda: served.mesh.set_state(gone, "failed"))
    answer = door.ask(get("/v1/members")).json
    assert list(answer) == ["node_id", "leader_id", "epoch", "members"]
    assert [set(member) for member in answer["members"]] == [set(MEMBER_FIELDS)] * 3
    assert [member["instance_id"] for member in answer["members"]] == ["agent-1", gone, guest]
    assert [member["state"] for member in answer["members"]] == ["alive", "failed", "alive"]
    assert [member["kind"] for member in answer["members"]] == ["node", "guest", "guest"]
    # The compatible list has no place for what is not alive.
    listed = door.ask(get("/registry/agents")).json["instances"]
    assert [each["instance_id"] for each in listed] == ["agent-1", guest]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=alive", {"agent-1", "blind"}),
        ("state=failed", {"seeing"}),
        ("state=alive&state=failed", {"agent-1", "seeing", "blind"}),
        ("state=left", set()),
        ("capability=see", {"seeing"}),
        ("capability=echo&capability=hear", {"agent-1", "blind"}),
        ("capability=see&state=alive", set()),
        ("capability=s%65%65&color=green", {"seeing"}),
        ("state=&capability=", {"agent-1", "seeing", "blind"}),
        ("", {"agent-1", "seeing", "blind"}),
    ],
)
def test_members_can_be_narrowed(
    served: Served, door: Connection, query: str, found: set[str]
) -> None:
    register(door, "seeing", capabilities=["see"])
    register(door, "blind", capabilities=["hear"])
    served.run(lambda: served.mesh.set_state("seeing", "failed"))
    answer = door.ask(get(f"/v1/members?{query}")).json
    assert {member["instance_id"] for member in answer["members"]} == found


def test_a_state_that_there_is_not_is_400(door: Connection) -> None:
    for query in ("state=dead", "state=Alive", "state=%FF", "state=alive&state=x"):
        assert "alive, suspect" in problem(door.ask(get(f"/v1/members?{query}")), 400)["detail"]


def test_a_member_is_found_by_instance_node_or_name(served: Served, door: Connection) -> None:
    for wanted in ("agent-1", "1" * 64):
        answer = door.ask(get(f"/v1/members/{wanted}")).json
        assert set(answer) == {*MEMBER_FIELDS, "leader_id", "epoch"}
        assert answer["instance_id"] == "agent-1"
    guest = register(door, "a guest/1")
    assert door.ask(get("/v1/members/a%20guest%2F1")).json["instance_id"] == guest


def test_an_unknown_member_is_404_and_an_ambiguous_name_409(
    served: Served, door: Connection
) -> None:
    assert "'nobody'" in problem(door.ask(get("/v1/members/nobody")), 404)["detail"]
    mistyped = problem(door.ask(get("/v1/members/agnet-1")), 404)
    assert mistyped["nearest"] == ["agent-1"]
    assert mistyped["detail"].endswith("; did you mean 'agent-1'?")
    one, two = register(door), register(door)

    def rename(instance_id: str) -> None:
        agent = served.mesh.agents[instance_id]
        agent.member = msgspec.structs.replace(agent.member, name="twin")

    for each in (one, two):
        served.run(partial(rename, each))
    document = problem(door.ask(get("/v1/members/twin")), 409)
    assert document["candidates"] == [one, two]
    # Of two with one name the living one is meant.
    served.run(lambda: served.mesh.set_state(one, "failed"))
    assert door.ask(get("/v1/members/twin")).json["instance_id"] == two


def test_the_leader_and_its_epoch(door: Connection) -> None:
    assert door.ask(get("/v1/leader")).json == {
        "node_id": "1" * 64, "leader_id": "agent-1", "epoch": 7, "token": None,
        "authoritative": False, "lacks": None, "policy": "available", "since": 1.5,
    }  # fmt: skip


def test_links_and_counters(served: Served, door: Connection) -> None:
    assert door.ask(get("/v1/links")).json["links"] == []
    stats = door.ask(get("/v1/stats")).json
    assert stats["counters"] == {"links_opened": 1}
    assert list(stats)[:3] == ["node_id", "leader_id", "epoch"]


# --- this node, and others -------------------------------------------------------


def patch(body: Any) -> bytes:
    return post("/v1/self", body).replace(b"POST", b"PATCH", 1)


def test_the_own_agent_says_how_it_is_and_everybody_lists_it(door: Connection) -> None:
    answer = door.ask(patch({"status": "busy", "metrics": {"queue": 3}})).json
    assert (answer["status"], answer["metrics"]) == ("busy", {"queue": 3})
    assert set(answer) == set(door.ask(get("/v1/self")).json)
    (listed,) = door.ask(get("/registry/agents")).json["instances"]
    assert (listed["status"], listed["metrics"]) == ("busy", {"queue": 3})
    answer = door.ask(patch({"metrics": None, "color": "green"})).json
    assert (answer["status"], answer["metrics"]) == ("busy", None), "what is not given stays"
    assert door.ask(patch({"status": None})).json["status"] is None
    for wrong in ({"status": 1}, {"metrics": []}, {"metrics": "none"}, []):
        problem(door.ask(patch(wrong)), 422)
    problem(door.ask(patch(b'{"metrics":{"n":NaN}}')), 400)


def test_a_member_s_node_is_pinged_by_any_of_its_names(served: Served, door: Connection) -> None:
    guest = register(door)
    for wanted in ("agent-1", "1" * 64, guest):
        answer = door.ask(get(f"/v1/ping/{wanted}", method="POST")).json
        assert set(answer) == {"node_id", "leader_id", "epoch", "instance_id", "home", "rtt"}
        assert (answer["home"], answer["rtt"]) == ("1" * 64, 0.0)
    problem(door.ask(get("/v1/ping/nobody", method="POST")), 404)
    agent = served.mesh.agents[guest]
    agent.member = msgspec.structs.replace(agent.member, home="2" * 64)
    unreachable = problem(door.ask(get(f"/v1/ping/{guest}", method="POST")), 502)
    assert unreachable["code"] == "unreachable"


def test_a_node_that_is_asked_to_leave_says_that_it_does(served: Served, door: Connection) -> None:
    reply = door.ask(get("/v1/leave", method="POST"))
    assert (reply.status, reply.json["node_id"]) == (202, "1" * 64)
    assert served.mesh.nodes[0].has_left


# --- dead letters ------------------------------------------------------------


def died(served: Served, number: int, payload: Any = 1, **fields: Any) -> DeadLetter:
    """One more dead letter at the node."""
    known: dict[str, Any] = {
        "message_id": f"m-{number}", "source_instance": "ada-1", "recipient": "bob-1",
        "name": "bob", "message_type": "Greeting", "correlation_id": None,
        "created_at": 1_760_000_000_000_000, "died_at": 1_760_000_000_000_001,
        "reason": "broken", "attempts": 1, "_content": encode(payload),
    }  # fmt: skip
    letter = DeadLetter(**(known | fields))
    served.mesh.dead[letter.message_id] = letter
    return letter


def test_dead_letters_are_listed_with_their_content(served: Served, door: Connection) -> None:
    assert door.ask(get("/v1/dead-letters")).json["dead_letters"] == []
    died(served, 1, {"job": 7})
    answer = door.ask(get("/v1/dead-letters")).json
    assert {"node_id", "leader_id", "epoch"} < set(answer)
    assert answer["total"] == 1
    assert answer["dead_letters"] == [{
        "message_id": "m-1", "source_instance": "ada-1", "recipient": "bob-1", "name": "bob",
        "message_type": {"Custom": "Greeting"}, "payload": {"job": 7}, "payload_bytes": 6,
        "correlation_id": None, "created_at": "2025-10-09T08:53:20.000000Z",
        "died_at": "2025-10-09T08:53:20.000001Z", "reason": "broken", "attempts": 1,
    }]  # fmt: skip


def test_a_list_of_dead_letters_is_bounded_and_shows_no_large_payload(
    served: Served, door: Connection
) -> None:
    for number in range(3):
        died(served, number, ["x" * 5000, b"\xff", 1][number])
    answer = door.ask(get("/v1/dead-letters?limit=2")).json
    assert [each["message_id"] for each in answer["dead_letters"]] == ["m-0", "m-1"]
    assert [each["payload"] for each in answer["dead_letters"]] == [None, None]
    assert (answer["total"], answer["dead_letters"][0]["payload_bytes"]) == (3, 5003)
    for wrong in ("0", "1001", "many"):
        problem(door.ask(get(f"/v1/dead-letters?limit={wrong}")), 400)


def test_a_dead_letter_is_sent_again_or_dropped(served: Served, door: Connection) -> None:
    for number in (1, 2, 3):
        died(served, number)
    retry = "/v1/dead-letters/m-1/retry"
    problem(door.ask(get(f"{retry}?recipient=eve-1", method="POST")), 404)
    answer = door.ask(get(f"{retry}?recipient=bob-1", method="POST")).json
    assert answer["message_id"] == "m-1"
    assert [each["state"] for each in answer["recipients"]] == ["queued"]
    problem(door.ask(get(retry, method="POST")), 404)
    assert door.ask(get("/v1/dead-letters/m-2", method="DELETE")).status == 204
    problem(door.ask(get("/v1/dead-letters/m-2", method="DELETE")), 404)
    died(served, 3, reason="left")
    gone = problem(door.ask(get("/v1/dead-letters/m-3/retry", method="POST")), 404)
    assert "has left" in gone["detail"]
    assert door.ask(get("/v1/dead-letters")).json["total"] == 1


# --- messages --------------------------------------------------------------------


def test_a_sent_message_can_be_followed(door: Connection) -> None:
    guest = register(door)
    message_id = door.ask(send("me", guest)).json["message_id"]
    answer = door.ask(get(f"/v1/messages/{message_id}")).json
    assert list(answer) == ["node_id", "leader_id", "epoch", "message_id", "recipients"]
    assert answer["recipients"] == [
        {"instance_id": guest, "state": "stored", "attempts": 1, "reason": ""}
    ]
    door.ask(post(f"/messages/ack/{guest}", {"message_ids": [message_id]}))
    answer = door.ask(get(f"/v1/messages/{message_id}")).json
    assert answer["recipients"][0]["state"] == "done"
    problem(door.ask(get(f"/v1/messages/{fresh()}")), 404)


# --- requests --------------------------------------------------------------------


def test_a_request_returns_the_response(served: Served, door: Connection) -> None:
    served.mesh.handlers["agent-1"] = lambda payload: {"doubled": payload["n"] * 2}
    reply = ask(door)
    assert reply.status == 200
    assert list(reply.json) == MESSAGE_FIELDS
    assert reply.json["payload"] == {"doubled": 2}
    assert (reply.json["message_type"], reply.json["source_instance"]) == ("Response", "agent-1")
    assert reply.json["target_instance"] == "me"


def test_a_guest_answers_with_a_response_that_names_the_query(
    served: Served, door: Connection
) -> None:
    guest = register(door)

    def answer() -> None:
        with Connection(served.addresses[0]) as own:
            (query,) = awaited(own, guest)
            assert query["message_type"] == "Query"
            fields = {"message_type": "Response", "correlation_id": query["message_id"]}
            assert own.ask(send(guest, query["source_instance"], "pong", **fields)).status in {
                200,
                400,  # the asker need not be an instance
            }

    register(door, "me")
    guest_at_work = threading.Thread(target=answer)
    guest_at_work.start()
    reply = ask(door, guest)
    guest_at_work.join()
    assert reply.json["payload"] == "pong"


def test_an_unknown_target_is_404_and_an_ambiguous_name_409_and_silence_504(
    served: Served, door: Connection
) -> None:
    assert problem(ask(door, "nobody"), 404)["nearest"] == ["agent-1"]
    assert problem(ask(door, "x" * 200), 404)["nearest"] == []
    guest = register(door)
    late = problem(ask(door, guest, timeout=0.01), 504)
    assert late["code"] == "timeout"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.RemoteError("no_handler", "nothing answers Query", "x"), 502, "no_handler"),
        (errors.PeerUnreachable("agent-1 left"), 502, "unreachable"),
        (errors.AmbiguousTarget("x", ("a", "b")), 409, None),
        (errors.QueueFull("too many requests"), 429, None),
        (errors.MessageTooLarge("17 MiB"), 413, None),
        (errors.NotStarted("this node has left"), 503, None),
        (errors.StoreFull("no room"), 507, None),
        (errors.ConfigError("an entry of 5 KiB"), 422, None),
    ],
)
def test_what_the_mesh_cannot_do_has_a_status(
    served: Served, door: Connection, error: errors.MeshError, status: int, code: str | None
) -> None:
    def fail(payload: Any) -> Any:
        raise error

    served.mesh.handlers["agent-1"] = fail
    reply = ask(door)
    assert problem(reply, status).get("code") == code
    assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": 301}, {"timeout": "30"}, {"timeout": True},
     {"timeout": None}, {"target_instance": None}, {"target_instance": 5},
     {"message_type": "query"}],
    ids=str,
)  # fmt: skip
def test_a_request_of_the_wrong_shape_is_422(door: Connection, wrong: dict[str, Any]) -> None:
    problem(ask(door, **wrong), 422)


def test_a_request_may_wait_300_seconds(served: Served, door: Connection) -> None:
    served.mesh.handlers["agent-1"] = lambda payload: "soon"
    assert ask(door, timeout=300).status == 200
    assert ask(door, timeout=0.5, message_type={"Custom": "ask"}).status == 200


@pytest.mark.parametrize("payload", POISON.values(), ids=POISON)
def test_poison_is_refused_in_requests_too(door: Connection, payload: bytes) -> None:
    problem(door.ask(post("/v1/request/me", with_payload(payload))), 400)


def test_a_client_that_goes_away_ends_its_request(served: Served, door: Connection) -> None:
    guest = register(door)
    with Connection(served.addresses[0]) as impatient:
        impatient.send(
            post("/v1/request/me", {"target_instance": guest, "payload": 1, "timeout": 300})
        )
        eventually(lambda: served.run(lambda: len(served.mesh.waiting) == 1), "not waiting")
    eventually(lambda: served.run(lambda: not served.mesh.waiting), "still waiting")


# --- answers in parts --------------------------------------------------------------


def ask_for_parts(door: Connection, target: str = "agent-1", **fields: Any) -> bytes:
    body = {"target_instance": target, "payload": {"n": 1}} | fields
    return post("/v1/request/me?stream=1", body)


def parts_of(reply: Reply) -> list[tuple[str, Any]]:
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "text/event-stream"
    frames = [frame.split(b"\n") for frame in reply.body.split(b"\n\n")[:-1]]
    return [
        (event.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: ")))
        for event, data in frames
    ]


def test_parts_come_as_events_and_then_the_end(served: Served, door: Connection) -> None:
    async def generate(payload: Any) -> AsyncGenerator[Any, None]:
        for part in ("one", payload["n"], {"line\n": "\u2028"}, None, "\ud800", b"bytes"):
            yield part

    served.mesh.generators["agent-1"] = generate
    assert parts_of(door.ask(ask_for_parts(door))) == [
        ("part", "one"), ("part", 1), ("part", {"line\n": "\u2028"}), ("part", None),
        ("part", None), ("part", "Ynl0ZXM="), ("end", {"parts": 6}),
    ]  # fmt: skip


def test_an_answer_that_is_whole_is_the_only_part(served: Served, door: Connection) -> None:
    served.mesh.handlers["agent-1"] = lambda payload: "whole"
    assert parts_of(door.ask(ask_for_parts(door))) == [("part", "whole"), ("end", {"parts": 1})]
    whole = door.ask(ask_for_parts(door).replace(b"stream=1", b"stream=0"))
    assert whole.json["payload"] == "whole"
    odd = door.ask(ask_for_parts(door).replace(b"stream=1", b"stream=yes"))
    assert "stream is 1" in problem(odd, 400)["detail"]


def test_an_error_before_the_first_part_is_a_status_and_behind_it_an_event(
    served: Served, door: Connection
) -> None:
    async def fail(payload: Any) -> AsyncGenerator[Any, None]:
        if payload is not None:
            yield payload
        raise errors.RemoteError("failed", "no more", "agent-1")

    served.mesh.generators["agent-1"] = fail
    assert problem(door.ask(ask_for_parts(door, payload=None)), 502)["code"] == "failed"
    part, (event, document) = parts_of(door.ask(ask_for_parts(door)))
    assert (part, event) == (("part", {"n": 1}), "error")
    assert (document["status"], document["code"]) == (502, "failed")
    assert "no more" in document["detail"]
    assert problem(door.ask(ask_for_parts(door, "nobody")), 404)["nearest"] == ["agent-1"]


def test_a_client_that_goes_away_closes_the_generator(served: Served) -> None:
    closed = threading.Event()

    async def generate(payload: Any) -> AsyncGenerator[Any, None]:
        try:
            for part in range(payload):
                yield part
            await asyncio.Event().wait()
        finally:
            closed.set()

    served.mesh.generators["agent-1"] = generate
    for count in (0, 1):  # before the first part, and behind it
        closed.clear()
        with Connection(served.addresses[0]) as door:
            door.send(ask_for_parts(door, payload=count))
            if count:
                assert door.read_head()[0] == 200
                assert door.read_chunk() == b"event: part\ndata: 0\n\n"
            else:
                assert door.is_silent()
        assert closed.wait(20)


# --- refusals --------------------------------------------------------------------


REFUSED: dict[str, tuple[bytes, int]] = {
    "an unknown path": (get("/v1/nowhere"), 404),
    "an empty id": (get("/v1/members/"), 404),
    "a trailing slash": (get("/v1/self/"), 404),
    "another method": (get("/v1/self", method="DELETE"), 405),
    "a read of what is written": (get("/v1/request/me"), 405),
    "a path that is not UTF-8": (get("/v1/members/%FF"), 400),
    "a foreign origin": (get("/v1/self", "origin: http://evil.example"), 403),
    "a foreign host": (get("/v1/self").replace(b"{host}", b"evil.example"), 421),
    "a host of bytes": (get("/v1/self").replace(b"{host}", b"\xff\xfe"), 421),
    "a body of text": (post("/v1/request/me", b"{", content_type="text/plain"), 415),
    "half a body": (post("/v1/request/me", b"{"), 400),
    "a list": (post("/v1/request/me", []), 422),
    "a source that is no id": (
        post("/v1/request/" + "x" * 129, {"target_instance": "a", "payload": 1}),
        422,
    ),
}


@pytest.mark.parametrize(("asked", "status"), REFUSED.values(), ids=REFUSED)
def test_refusals_under_v1_are_problem_documents(
    door: Connection, asked: bytes, status: int
) -> None:
    document = problem(door.ask(asked), status)
    assert "Traceback" not in json.dumps(document)
