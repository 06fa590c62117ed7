"""No bytes that a client sends make a traceback, a 500 or a hang."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http import strict
from tests.http.contract import MESSAGE, NOT_JSON, POISON, REGISTRATION
from tests.http.serving import Served, serve
from tests.http.wire import Connection, get, post

#: Every status that the API has for something a client did.
STATUSES: Final = {200, 202, 204, 400, 403, 404, 405, 409, 413, 415, 421, 422, 429, 504}

PATHS: Final = [
    "/registry/register", "/registry/agents", "/registry/heartbeat/{id}", "/messages/{id}",
    "/registry/deregister/{id}", "/messages/send/{id}", "/messages/ack/{id}", "/messages/{id}/ack",
    "/health", "/v1/self", "/v1/members", "/v1/members/{id}", "/v1/leader", "/v1/links",
    "/v1/stats", "/v1/messages/{id}", "/v1/request/{id}", "/v1/ping/{id}", "/v1/leave",
    "/openapi.json", "/metrics", "/{id}", "/",
]  # fmt: skip
METHODS: Final = ["GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "PATCH", "TRACE", "BREW"]
HEADERS: Final = [
    "origin", "sec-fetch-site", "content-type", "content-encoding", "idempotency-key", "expect",
    "last-event-id", "accept", "connection", "upgrade", "cookie", "authorization", "x",
]  # fmt: skip
VALUES: Final = [
    "", "null", "cross-site", "http://evil.example", "application/json", "text/plain", "gzip",
    "100-continue", "close", "keep-alive", "upgrade", "websocket", "h2c", "é", "a" * 300, "\t", "1",
]  # fmt: skip

segments = st.text(max_size=12) | st.sampled_from(["agent-1", "ack", "send", "x" * 129, "..", "%"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    [*REGISTRATION, *MESSAGE, "status", "metrics", "message_ids", "timeout", "target_instance"]
)
bodies = st.one_of(
    st.binary(max_size=64),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(fields, json_values).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([REGISTRATION, MESSAGE, {"status": "x"}, {"message_ids": ["m"]}])
    .flatmap(lambda base: st.dictionaries(fields, json_values, max_size=2).map(base.__or__))
    .map(lambda value: json.dumps(value).encode()),
    st.sampled_from([*NOT_JSON.values(), *POISON.values()]),
)
unhurried = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serve() as served:
        # A request must end, whatever it asks whom.
        served.mesh.handlers["agent-1"] = lambda payload: payload
        yield served


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged that anybody would have to read."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Well framed, and otherwise anything: method, bytes."""
    method, template = draw(st.sampled_from(METHODS)), draw(st.sampled_from(PATHS))
    path = template.replace("{id}", encoded(draw(segments), draw(st.booleans())))
    query = draw(
        st.sampled_from(["", "?", "?limit=0", "?limit=5", "?state=%ff", "?a=b&c", "?limit="])
    )
    lines = [
        f"{draw(st.sampled_from(HEADERS))}: {draw(st.sampled_from(VALUES))}"
        for _ in range(draw(st.integers(0, 2)))
    ]
    body = draw(bodies)
    if draw(st.booleans()):
        lines.append("content-type: application/json")
    request = post(path + query, body, *lines, content_type=None)
    return method, request.replace(b"POST", method.encode(), 1)


def encoded(text: str, always: bool) -> str:
    plain = re.compile(r"[A-Za-z0-9._~-]")
    return "".join(
        each if not always and plain.fullmatch(each) else f"%{byte:02X}"
        for each in text
        for byte in each.encode("utf-8", "replace")[: None if always else 1]
    )


def statuses(answers: bytes) -> set[int]:
    return {int(found) for found in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", answers, re.MULTILINE)}


@unhurried
@given(requests())
@pytest.mark.usefixtures("quiet")
def test_every_framed_request_gets_one_whole_answer(
    server: Served, request_made: tuple[str, bytes]
) -> None:
    method, request = request_made
    with Connection(server.addresses[0]) as door:
        door.send(request)
        reply = door.read(is_head=method == "HEAD")
        assert reply.status in STATUSES, request
        assert reply.headers["server"] == ""
        if reply.body and reply.headers["content-type"].endswith("json"):
            strict.loads(reply.body)
        else:
            reply.body.decode()
        assert b"Traceback" not in reply.body


@unhurried
@given(st.lists(requests(), min_size=1, max_size=3), st.data())
@pytest.mark.usefixtures("quiet")
def test_damaged_requests_end(server: Served, made: list[tuple[str, bytes]], data: Any) -> None:
    """Cut, doubled, overwritten, sent in pieces: the connection ends with the client's
    last byte at the latest, and whatever was answered is no error of ours."""
    text = bytearray(b"".join(request for _, request in made))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        match data.draw(st.sampled_from(["cut", "drop", "overwrite", "insert", "chunked"])):
            case "cut":
                del text[at + 1 :]
            case "drop":
                del text[at : at + data.draw(st.integers(1, 20))]
            case "overwrite":
                text[at] = data.draw(st.integers(0, 255))
            case "insert":
                text[at:at] = data.draw(st.binary(max_size=8) | st.just(b"\r\n"))
            case "chunked":
                text[:] = text.replace(b"content-length:", b"transfer-encoding: chunked\r\nx:", 1)
        if not text:
            return
    cut = data.draw(st.integers(0, len(text)))
    with Connection(server.addresses[0]) as door:
        for piece in (text[:cut], text[cut:]):
            if not piece:
                continue
            try:
                door.send(bytes(piece))
            except ConnectionError:  # a time-out is none
                return  # it said no and hung up before the rest
        assert_ends(door)


@unhurried
@given(st.binary(max_size=200))
@pytest.mark.usefixtures("quiet")
def test_any_bytes_end(server: Served, junk: bytes) -> None:
    with Connection(server.addresses[0]) as door:
        door.send(junk)
        assert_ends(door)


def assert_ends(door: Connection) -> None:
    try:
        door.end_of_input()
        found = statuses(door.rest())
    except TimeoutError:
        raise AssertionError("neither an answer nor an end") from None
    except OSError:
        return  # it hung up while we were still talking
    assert found <= STATUSES | {100}


def test_the_server_lives_after_all_that(server: Served) -> None:
    with Connection(server.addresses[0]) as door:
        assert door.ask(get("/health")).json["status"] == "healthy"
        assert door.ask(get("/registry/agents")).status == 200
    assert not server.uncaught
