"""What is asked, and what an answer means: no connection is needed to say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest

from p2pmesh.client import calls
from p2pmesh.client.calls import Answer
from p2pmesh.errors import (
    ConfigError,
    IdentityConflict,
    MeshError,
    MessageTooLarge,
    PeerUnreachable,
    QueueFull,
    RemoteError,
    RequestTimeout,
    StoreFull,
    UnknownTarget,
)

URL = "http://127.0.0.1:8077"
MESSAGE = {
    "message_id": "m", "source_instance": "s", "target_instance": None,
    "message_type": "Query", "payload": {"n": [1, None]}, "correlation_id": None,
    "created_at": "2026-11-22T07:39:35.388278Z", "of a later version": 1,
}  # fmt: skip


def answer(body: Any, status: int = 200) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(URL, status, content, 0.0)


def send(target: str | None = "g", payload: Any = 1, **fields: Any) -> Any:
    given = {"type": "Notification", "correlation_id": None, "idempotency_key": "k"} | fields
    return calls.send_message("me", target, payload, **given)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ConfigError), (401, ConfigError), (403, ConfigError), (409, IdentityConflict),
        (413, MessageTooLarge), (421, ConfigError), (422, ConfigError), (429, QueueFull),
        (500, RemoteError), (503, PeerUnreachable), (504, RequestTimeout), (507, StoreFull),
        (302, RemoteError), (404, RemoteError), (999, RemoteError),
    ],
)  # fmt: skip
def test_a_refusal_is_an_error_with_the_nodes_words_and_its_url(
    status: int, error: type[MeshError]
) -> None:
    for body in (b"what is wrong\n", {"detail": "what is wrong"}, {"error": "what is wrong"}):
        with pytest.raises(error) as caught:
            calls.list_instances().decode(answer(body, status))
        assert "what is wrong" in str(caught.value)
        assert URL in str(caught.value)
    with pytest.raises(error, match=str(status)):
        calls.list_instances().decode(answer(b"", status))


def test_a_missing_token_is_said_to_be_missing() -> None:
    with pytest.raises(ConfigError, match=r"token=….*P2PMESH_HTTP_TOKEN"):
        calls.list_instances().decode(answer(b"who are you?", 401))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"instances":1}', b"\xff", b"[" * 9999, b"null"]
)
def test_what_no_node_would_say_is_an_error_and_not_an_accident(body: bytes) -> None:
    for request in (calls.list_instances(), calls.get_messages("g"), send()):
        with pytest.raises(RemoteError, match="as a p2pmesh node does"):
            request.decode(answer(body))
    for status in (400, 500):
        with pytest.raises(MeshError):
            send().decode(answer(body, status))


def test_an_unknown_target_names_the_mesh_that_does_not_have_it() -> None:
    unknown = answer({"error": "Target instance 'g' not found"}, 400)
    with pytest.raises(UnknownTarget, match=f"'g'.*{URL}"):
        send().decode(unknown)
    near = answer({"error": "Target instance 'g' not found", "nearest": ["g-1"]}, 400)
    with pytest.raises(UnknownTarget, match=r"did you mean 'g-1'\?") as caught:
        send().decode(near)
    assert caught.value.nearest == ("g-1",)
    with pytest.raises(ConfigError):  # a body that is not JSON, say
        send().decode(answer(b"the body is not JSON", 400))


def test_a_heartbeat_of_one_who_is_unknown_is_an_answer() -> None:
    body = {"acknowledged": False, "leader_id": "a", "should_sync": False}
    beat = calls.heartbeat("g", "healthy", None).decode(answer(body, 404))
    assert (beat.acknowledged, beat.leader_id) == (False, "a")
    with pytest.raises(MeshError):
        calls.heartbeat("g", "healthy", None).decode(answer(b"no such path", 404))


@pytest.mark.parametrize(("status", "was_registered"), [(204, True), (404, False)])
def test_deregistering_says_whether_there_was_anything(status: int, was_registered: bool) -> None:
    assert calls.deregister("g").decode(answer(b"", status)) is was_registered


@pytest.mark.parametrize(
    ("on_the_wire", "type"),
    [
        ("Query", "Query"), ({"Query": None}, "Query"), ({"Custom": "weather"}, "weather"),
        ({"Custom": "Query"}, "Custom:Query"), ("OfALaterVersion", "OfALaterVersion"),
        ({"Later": 1}, '{"Later":1}'), (None, "null"),
    ],
)  # fmt: skip
def test_a_message_is_read_whatever_its_type(on_the_wire: Any, type: str) -> None:
    body = {"messages": [MESSAGE | {"message_type": on_the_wire}]}
    (message,) = calls.get_messages("g").decode(answer(body))
    assert message.message_type == type
    assert message.payload == {"n": [1, None]}
    assert message.created_at == datetime(2026, 11, 22, 7, 39, 35, 388278, UTC)


@pytest.mark.parametrize(
    ("type", "on_the_wire"),
    [("TaskResult", "TaskResult"), ("weather", {"Custom": "weather"}),
     ("Custom:Query", {"Custom": "Query"})],
)  # fmt: skip
def test_a_type_goes_out_as_the_registry_spells_it(type: str, on_the_wire: Any) -> None:
    request = send(type=type)
    assert json.loads(request.body)["message_type"] == on_the_wire
    assert request.headers["Idempotency-Key"] == "k"


def test_ids_are_percent_encoded() -> None:
    assert calls.deregister("a/b c?#%ä").path == "/registry/deregister/a%2Fb%20c%3F%23%25%C3%A4"
    assert calls.get_messages("g", wait=2.5, limit=7).path == "/messages/g?wait=2.5&limit=7"


@pytest.mark.parametrize("bad", ["", "x" * 129, "a\nb", "..", ".", 7, None])
def test_an_id_that_no_instance_can_have_is_refused_before_anybody_is_asked(bad: Any) -> None:
    for make in (
        calls.get_messages, calls.deregister, lambda bad: calls.heartbeat(bad, "healthy", None),
        lambda bad: calls.register(bad, "h", 0, (), ()),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="instance_id"):
            make(bad)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"image": b"\0"}, TypeError), ({1: 2}, TypeError), ({1, 2}, TypeError),
        (datetime.now(UTC), TypeError), (float("nan"), ValueError), (2**64, ValueError),
        ("\ud800", ValueError), ("x" * 2_097_153, MessageTooLarge),
    ],
)  # fmt: skip
def test_a_payload_that_json_does_not_have_is_refused_and_never_changed(
    payload: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        send(payload=payload)
    with pytest.raises(error):
        calls.heartbeat("g", "healthy", {"m": payload})


def test_metrics_are_called_metrics_when_they_are_refused() -> None:
    with pytest.raises(TypeError, match=r"metrics\['image'\] is of type bytes"):
        calls.heartbeat("g", "healthy", {"image": b""})


WRONG = {
    "a wait of over a minute": lambda: calls.get_messages("g", wait=61),
    "a negative wait": lambda: calls.get_messages("g", wait=-1),
    "a limit of 0": lambda: calls.get_messages("g", limit=0),
    "a limit of 1001": lambda: calls.get_messages("g", limit=1001),
    "one id for many": lambda: calls.acknowledge_messages("g", "one id"),
    "no timeout": lambda: calls.check_timeout(0),
    "a timeout for ever": lambda: calls.check_timeout(float("inf")),
    "a text for a timeout": lambda: calls.check_timeout(cast(Any, "x")),
    "a text for a wait": lambda: calls.get_messages("g", wait=cast(Any, "1")),
    "a text for a limit": lambda: calls.get_messages("g", limit=cast(Any, "1")),
    "a limit of 2.5": lambda: calls.get_messages("g", limit=cast(Any, 2.5)),
    "a text for a port": lambda: calls.register("g", "h", cast(Any, "80"), (), ()),
    "a key of two lines": lambda: send(idempotency_key="a\r\nX: y"),
    "a key that ends in a space": lambda: send(idempotency_key="a "),
    "an empty key": lambda: send(idempotency_key=""),
    "a key of 257 characters": lambda: send(idempotency_key="k" * 257),
    "a number for a key": lambda: send(idempotency_key=7),
    "a port of 70000": lambda: calls.register("g", "h", 70_000, (), ()),
    "a hostname of two lines": lambda: calls.register("g", "h\n", 0, (), ()),
    "a text for capabilities": lambda: calls.register("g", "h", 0, "see", ()),
    "33 profiles": lambda: calls.register("g", "h", 0, (), ["x"] * 33),
    "a type of 129 bytes": lambda: send(type="x" * 129),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_an_argument_that_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_answers_are_values_that_compare_and_print() -> None:
    body = {"acknowledged": True, "leader_id": None, "should_sync": False}
    beat = calls.heartbeat("g", "healthy", None).decode(answer(body))
    assert beat == msgspec.structs.replace(beat)
    assert "acknowledged=True" in repr(beat)
