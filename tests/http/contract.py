"""The registry's contract, request by request, against any three doors of one mesh.

``Contract`` is the table of docs/http.md as tests: subclass it where a fixture
``doors`` yields the addresses of three nodes (or of one node three times).  It is
held against nodes in memory in ``test_contract`` and against real processes in
``tests/mesh``; nothing in it may know which of them it talks to.

Every test uses ids of its own, so that the same mesh serves all of them.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest

from tests.http.wire import HANG_GUARD, Connection, Reply, get, post

BODY_MAX: Final = 2_097_152
NESTING_MAX: Final = 124

TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

#: The eight fields that every client needs, in their order, and ours after them.
INSTANCE_FIELDS: Final = [
    "instance_id", "hostname", "port", "capabilities", "is_leader", "last_heartbeat",
    "created_at", "agent_profiles", "status", "metrics", "state", "node_id",
]  # fmt: skip
MESSAGE_FIELDS: Final = [
    "message_id", "source_instance", "target_instance", "message_type", "payload",
    "correlation_id", "created_at",
]  # fmt: skip
KNOWN_TYPES: Final = [
    "Query", "Response", "Notification", "TaskDelegation", "TaskResult", "GraphSync",
    "CapabilityUpdate", "CapabilityQuery", "LearningShare", "ProposalSubmit",
    "ProposalVote", "WorkflowAssignment", "WorkflowStageResult",
]  # fmt: skip

REGISTRATION: Final[dict[str, Any]] = {
    "instance_id": "never-registered", "hostname": "127.0.0.1", "port": 4101,
    "capabilities": ["query"], "agent_profiles": ["default"],
}  # fmt: skip
MESSAGE: Final[dict[str, Any]] = {
    "target_instance": None, "message_type": "Notification", "payload": {"n": 1},
    "correlation_id": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Doors:
    addresses: tuple[str, str, str]
    agents: tuple[str, str, str]  # the instance ids of the nodes' own agents

    @contextmanager
    def open(self, number: int = 0) -> Iterator[Connection]:
        with Connection(self.addresses[number]) as connection:
            yield connection


def fresh(name: str = "guest") -> str:
    return f"{name}-{secrets.token_hex(6)}"


def registration(instance_id: str, **fields: Any) -> bytes:
    return post("/registry/register", REGISTRATION | {"instance_id": instance_id} | fields)


def send(source: str, target: str | None, payload: Any = None, **fields: Any) -> bytes:
    body = MESSAGE | {"target_instance": target, "payload": payload} | fields
    return post(f"/messages/send/{source}", body)


def register(door: Connection, instance_id: str | None = None, **fields: Any) -> str:
    instance_id = instance_id or fresh()
    assert door.ask(registration(instance_id, **fields)).status == 200
    return instance_id


def messages(door: Connection, instance_id: str) -> list[dict[str, Any]]:
    reply = door.ask(get(f"/messages/{instance_id}"))
    assert reply.status == 200
    listed: list[dict[str, Any]] = reply.json["messages"]
    return listed


def instances(door: Connection) -> dict[str, dict[str, Any]]:
    reply = door.ask(get("/registry/agents"))
    assert reply.status == 200
    return {each["instance_id"]: each for each in reply.json["instances"]}


def eventually(holds: Callable[[], Any], what: str, *, within: float = HANG_GUARD) -> Any:
    """The first true value of ``holds()``: what one door was told, another knows soon."""
    deadline = time.monotonic() + within
    while not (value := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def awaited(door: Connection, instance_id: str, count: int = 1, source: str = "") -> Any:
    """The messages (of one source), once there are so many."""

    def found() -> list[dict[str, Any]] | None:
        listed = messages(door, instance_id)
        wanted = [each for each in listed if source in ("", each["source_instance"])]
        return wanted if len(wanted) == count else None

    if count == 0:
        return found()
    return eventually(found, f"not {count} messages for {instance_id}")


def all_list(doors: Iterable[Connection], *ids: str) -> None:
    """Waits until each door lists these instances."""
    for door in doors:
        eventually(partial(_lists, door, ids), f"{door.address} does not list {ids}")


def _lists(door: Connection, ids: Iterable[str]) -> bool:
    return set(ids) <= set(instances(door))


def _accepts(door: Connection, source: str, target: str) -> bool:
    return door.ask(send(source, target)).status == 200


def _lists_not(door: Connection, instance_id: str) -> bool:
    return instance_id not in instances(door)


def _shows(door: Connection, instance_id: str, fields: dict[str, Any]) -> bool:
    return fields.items() <= instances(door).get(instance_id, {}).items()


def assert_refused(reply: Reply, status: int) -> None:
    """A refusal says in a line of text what is wrong, and nothing of the inside."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.headers["content-security-policy"].startswith("default-src 'none';")
    assert 0 < len(reply.body) < 500
    assert not re.search(rb"Traceback|File \"|/p2pmesh/|aiohttp|msgspec", reply.body)


def without(body: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != field}


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def with_payload(payload: bytes) -> bytes:
    """A send's body around a literal payload."""
    return b'{"target_instance":null,"message_type":"Query","payload":%b}' % payload


# --- what is refused, and with which status ------------------------------------

NOT_JSON: Final = {
    "nothing": b"",
    "an open brace": b"{",
    "trailing characters": b'{"message_ids":[]} x',
    "two values": b'{"message_ids":[]}{}',
    "a byte order mark": b'\xef\xbb\xbf{"message_ids":[]}',
    "invalid UTF-8": b'{"message_ids":["\xff"]}',
    "an overlong sequence": b'{"message_ids":["\xc0\x80"]}',
    "a surrogate in UTF-8": b'{"message_ids":["\xed\xa0\x80"]}',
    "UTF-16": '{"message_ids":[]}'.encode("utf-16"),
    "single quotes": b"{'message_ids':[]}",
    "a trailing comma": b'{"message_ids":[],}',
    "a comment": b'{"message_ids":[]/**/}',
    "a bare word": b"message_ids",
    "a control character in a string": b'{"message_ids":["\x01"]}',
    "a leading zero": b'{"message_ids":[],"x":01}',
}
POISON: Final = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "a number beyond all floats": b"1e400",
    "a negative number beyond all floats": b"-1e400",
    "a number with four hundred digits": b"1" * 400 + b".0",
    "a lone high surrogate": rb'"\ud800"',
    "a lone low surrogate": rb'"\udc00x"',
    "surrogates in the wrong order": rb'"\udc00\ud800"',
    "a lone surrogate as a key": rb'{"\ud800":1}',
    "an integer above 64 bits": b"18446744073709551616",
    "an integer below 64 bits": b"-9223372036854775809",
    "an integer of a thousand digits": b"1" * 1000,
    "a repeated key": b'{"a":1,"a":2}',
    "a repeated key, once escaped": rb'{"a":1,"\u0061":2}',
    "a repeated key whose value hides a colon": rb'{"a":1,"a":"\u003a"}',
    "a repeated key deep inside": b'[[{"b":[{"c":1,"d":2,"c":1}]}]]',
    "one level too many": nested(NESTING_MAX + 1),
    "one level of objects too many": b'{"a":' * 124 + b"[]" + b"}" * 124,
    "a hundred thousand levels": b"[" * 100_000,
}
SENDABLE: Final = {
    "null": b"null",
    "the largest integer": b"18446744073709551615",
    "the smallest integer": b"-9223372036854775808",
    "the largest float": b"1.7976931348623157e308",
    "a float that rounds to nothing": b"1e-400",
    "a long fraction": b"0." + b"1" * 400,
    "a pair of surrogates": rb'"\ud83d\ude00"',
    "an escaped NUL": rb'"\u0000"',
    "a repeated key in a string": rb'"{\"a\":1,\"a\":2}"',
    "equal keys in different objects": b'[{"a":1},{"a":{"a":2}}]',
    "brackets in strings": b'["' + b"[" * 500 + rb'", "\"' + b"[" * 500 + b'"]',
    "long digits in a string": b'"99999999999999999999999999"',
    "an escaped colon": rb'{"a":"\u003a\\u003a","b":":"}',
    "as many levels as a list can carry": nested(NESTING_MAX),
    "as many objects as a list can carry": b'{"a":' * 123 + b"[]" + b"}" * 123,
    "an empty key": b'{"":{"":0}}',
    "white space": b" [ 1 ,\t2\r\n] ",
}
MESSAGE_TYPES: Final = {
    **{name: (name, name) for name in KNOWN_TYPES},
    "a known name as an object": ({"Query": None}, "Query"),
    "a custom type": ({"Custom": "weather report"}, {"Custom": "weather report"}),
    "a custom type of two lines": ({"Custom": "a\nb"}, {"Custom": "a\nb"}),
    "an empty custom type": ({"Custom": ""}, {"Custom": ""}),
    "a custom type called Query": ({"Custom": "Query"}, {"Custom": "Query"}),
    "a custom type with a prefix": ({"Custom": "Custom:Query"}, {"Custom": "Custom:Query"}),
    "a custom type in other letters": ({"Custom": "größe"}, {"Custom": "größe"}),
}
WRONG_TYPES: Final = {
    "in lower case": ("query", 422),
    "in upper case": ("QUERY", 422),
    "bare Custom": ("Custom", 422),
    "unknown": ("Nonsense", 422),
    "empty": ("", 422),
    "a custom number": ({"Custom": 5}, 422),
    "a custom null": ({"Custom": None}, 422),
    "a known name with a value": ({"Query": {}}, 422),
    "an unknown name as an object": ({"Nonsense": None}, 422),
    "two names": ({"Query": None, "Custom": "x"}, 422),
    "an empty object": ({}, 422),
    "null": (None, 400),
    "a number": (5, 400),
}
WRONG_REGISTRATIONS: Final = {
    **{f"without {field}": without(REGISTRATION, field) for field in REGISTRATION},
    "port 70000": REGISTRATION | {"port": 70000},
    "port 65536": REGISTRATION | {"port": 65536},
    "port -1": REGISTRATION | {"port": -1},
    "port as text": REGISTRATION | {"port": "4101"},
    "a fractional port": REGISTRATION | {"port": 4101.5},
    "port true": REGISTRATION | {"port": True},
    "port null": REGISTRATION | {"port": None},
    "instance_id null": REGISTRATION | {"instance_id": None},
    "instance_id a number": REGISTRATION | {"instance_id": 7},
    "instance_id empty": REGISTRATION | {"instance_id": ""},
    "instance_id of 129 bytes": REGISTRATION | {"instance_id": "ä" * 64 + "x"},
    "instance_id with a line feed": REGISTRATION | {"instance_id": "a\nb"},
    "hostname a number": REGISTRATION | {"hostname": 7},
    "capabilities a string": REGISTRATION | {"capabilities": "query"},
    "capabilities null": REGISTRATION | {"capabilities": None},
    "capabilities with a number": REGISTRATION | {"capabilities": ["a", 1]},
    "33 capabilities": REGISTRATION | {"capabilities": [f"c{n}" for n in range(33)]},
    "a capability of 65 bytes": REGISTRATION | {"capabilities": ["c" * 65]},
    "an empty profile": REGISTRATION | {"agent_profiles": [""]},
    "an array": [REGISTRATION],
    "a string": "register me",
    "null": None,
}
WRONG_MESSAGES: Final = {
    "without a payload": without(MESSAGE, "payload"),
    "without a type": without(MESSAGE, "message_type"),
    "a target that is a number": MESSAGE | {"target_instance": 5},
    "a correlation_id that is a number": MESSAGE | {"correlation_id": 5},
    "a correlation_id of 257 bytes": MESSAGE | {"correlation_id": "x" * 257},
    "an array": [MESSAGE],
    "a string": "hello",
    "null": None,
}
ALLOWED: Final = {
    "/registry/register": "POST",
    "/registry/agents": "GET, HEAD",
    "/registry/heartbeat/x": "POST",
    "/registry/deregister/x": "DELETE",
    "/messages/send/x": "POST",
    "/messages/x": "GET, HEAD",
    "/messages/ack/x": "POST",
    "/messages/x/ack": "POST",
    "/health": "GET, HEAD",
}
NO_PATHS: Final = [
    "/", "/registry", "/registry/", "/registry/agent", "/registry/register/x", "/Registry/agents",
    "/registry/heartbeat", "/registry/heartbeat/", "/registry/heartbeat/a/b",
    "/registry/deregister/",
    "/messages", "/messages/", "/messages/send/", "/messages/send/a/b", "/messages/ack/",
    "/messages//ack", "/messages/a/b", "/messages/a/ack/b", "/registry/%61gents", "//health",
    "/health/x", "/registry/agents#x", "/./health", "/v2/self",
    *(f"{path}/" for path in ALLOWED),
]  # fmt: skip
NOT_OURS: Final = [
    "evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost:{other}",
    "localhost.evil.example",
    "127.0.0.1.evil.example", "127.0.0.1:{port}.evil.example", "user@127.0.0.1:{port}",
    "2130706433",
    "0x7f000001:{port}", "192.0.2.77:{port}", "[2001:db8::77]:{port}", "127.0.0.1:",
    "127.0.0.1:+{port}",
    "127.0.0.1:{port}/x", "", "[::1", "a b",
]  # fmt: skip
FOREIGN_ORIGINS: Final = [
    "http://evil.example", "https://127.0.0.1:{port}", "http://localhost:3000", "null",
    "http://evil.example:{port}", "http://127.0.0.1:{port}.evil.example", "file://",
    "127.0.0.1:{port}",
]  # fmt: skip


class Contract:
    """Subclassed where ``doors`` is defined."""

    # --- registering ------------------------------------------------------------

    def test_a_registered_instance_gets_itself_and_everybody_else(self, doors: Doors) -> None:
        with doors.open() as door:
            me = fresh()
            reply = door.ask(registration(me, capabilities=["a", "b"], agent_profiles=["p"]))
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/json"
            answer = reply.json
            assert list(answer) == ["success", "instance_id", "is_leader", "leader_id", "peers"]
            assert (answer["success"], answer["instance_id"]) == (True, me)
            assert answer["is_leader"] is False
            assert answer["leader_id"] in doors.agents
            mine = next(each for each in answer["peers"] if each["instance_id"] == me)
            assert list(mine) == INSTANCE_FIELDS
            assert (mine["hostname"], mine["port"]) == ("127.0.0.1", 4101)
            assert (mine["capabilities"], mine["agent_profiles"]) == (["a", "b"], ["p"])
            assert (mine["is_leader"], mine["state"]) == (False, "alive")
            assert TIME.fullmatch(mine["last_heartbeat"])
            assert TIME.fullmatch(mine["created_at"])
            assert {doors.agents[0], me} <= {each["instance_id"] for each in answer["peers"]}

    def test_ports_from_0_to_65535_can_be_registered(self, doors: Doors) -> None:
        with doors.open() as door:
            me = fresh()
            for port in (0, 65535):
                register(door, me, port=port)
                assert instances(door)[me]["port"] == port

    def test_an_id_may_be_any_text_of_128_bytes(self, doors: Doors) -> None:
        with doors.open() as door:
            me = "ü" + secrets.token_hex(31) + " /?%&+\"'<>#" + "é" * 26
            assert len(me.encode()) == 128 - 1
            register(door, me + "x")
            assert me + "x" in instances(door)

    def test_unknown_fields_are_ignored(self, doors: Doors) -> None:
        with doors.open() as door:
            register(door, color="green", nested={"a": [1]})

    @pytest.mark.parametrize("body", WRONG_REGISTRATIONS.values(), ids=WRONG_REGISTRATIONS)
    def test_a_registration_of_the_wrong_shape_is_422(self, doors: Doors, body: Any) -> None:
        with doors.open() as door:
            assert_refused(door.ask(post("/registry/register", body)), 422)
            assert REGISTRATION["instance_id"] not in instances(door)

    def test_registering_again_keeps_created_at_and_seniority(self, doors: Doors) -> None:
        with doors.open() as door:
            older, younger = register(door), register(door)
            before = instances(door)[older]
            register(door, older, port=9999)
            after = instances(door)[older]
            assert after["created_at"] == before["created_at"]
            assert after["port"] == 9999
            listed = list(instances(door))
            assert listed.index(older) < listed.index(younger)

    def test_the_id_of_a_nodes_own_agent_cannot_be_registered(self, doors: Doors) -> None:
        with doors.open() as door:
            for agent in set(doors.agents):
                assert_refused(door.ask(registration(agent)), 409)

    # --- the list ---------------------------------------------------------------

    def test_the_list_has_every_live_instance_oldest_first(self, doors: Doors) -> None:
        with doors.open() as door:
            first, second = register(door), register(door)
            reply = door.ask(get("/registry/agents"))
            assert list(reply.json) == ["instances", "leader_id"]
            listed = reply.json["instances"]
            assert all(list(each) == INSTANCE_FIELDS for each in listed)
            ids = [each["instance_id"] for each in listed]
            assert ids.index(doors.agents[0]) < ids.index(first) < ids.index(second)
            leaders = [each["instance_id"] for each in listed if each["is_leader"]]
            assert leaders == [reply.json["leader_id"]] == ids[:1]

    def test_head_is_get_without_the_body(self, doors: Doors) -> None:
        with doors.open() as door:
            for path in ("/registry/agents", "/health", f"/messages/{fresh()}"):
                whole, head = door.ask(get(path)), door.ask(get(path, method="HEAD"))
                assert (head.status, head.body) == (200, b"")
                assert head.headers["content-type"] == whole.headers["content-type"]
                if path.startswith("/messages"):
                    assert head.headers["content-length"] == whole.headers["content-length"]

    # --- heartbeats -------------------------------------------------------------

    def test_a_heartbeat_is_acknowledged_and_its_status_is_shown(self, doors: Doors) -> None:
        with doors.open() as door:
            me = register(door)
            assert instances(door)[me]["status"] is None
            metrics = {"cpu": 0.5, "nested": {"queue": [1, 2]}}
            body = {"status": "busy", "metrics": metrics}
            reply = door.ask(post(f"/registry/heartbeat/{me}", body))
            assert reply.status == 200
            assert list(reply.json) == ["acknowledged", "leader_id", "should_sync"]
            assert reply.json["acknowledged"] is True
            assert reply.json["leader_id"] in doors.agents
            assert reply.json["should_sync"] is False
            mine = instances(door)[me]
            assert (mine["status"], mine["metrics"]) == ("busy", metrics)

    @pytest.mark.parametrize(
        "body", [{"status": "healthy"}, {"status": "healthy", "metrics": None}], ids=str
    )
    def test_metrics_are_optional(self, doors: Doors, body: Any) -> None:
        with doors.open() as door:
            me = register(door)
            assert door.ask(post(f"/registry/heartbeat/{me}", body)).status == 200
            assert instances(door)[me]["metrics"] is None

    def test_a_heartbeat_of_an_unknown_instance_is_404_with_json(self, doors: Doors) -> None:
        with doors.open() as door:
            for unknown in (fresh(), "x" * 129, "a%0Ab"):
                reply = door.ask(post(f"/registry/heartbeat/{unknown}", {"status": "healthy"}))
                assert reply.status == 404
                assert reply.json["acknowledged"] is False
                assert reply.json["leader_id"] in doors.agents
                assert reply.json["should_sync"] is False

    @pytest.mark.parametrize(
        "body",
        [{}, {"status": None}, {"status": 1}, {"status": "ok", "metrics": []},
         {"status": "ok", "metrics": "none"}, {"metrics": None}, [], "healthy"],
        ids=str,
    )  # fmt: skip
    def test_the_body_of_a_heartbeat_is_checked_before_the_id(
        self, doors: Doors, body: Any
    ) -> None:
        with doors.open() as door:
            assert_refused(door.ask(post(f"/registry/heartbeat/{fresh()}", body)), 422)

    # --- deregistering ----------------------------------------------------------

    def test_deregistering_is_204_once_and_404_then(self, doors: Doors) -> None:
        with doors.open() as door:
            me = register(door)
            for status in (204, 404):
                reply = door.ask(get(f"/registry/deregister/{me}", method="DELETE"))
                assert (reply.status, reply.body) == (status, b"")
                assert me not in instances(door)

    def test_a_nodes_own_agent_cannot_be_deregistered(self, doors: Doors) -> None:
        with doors.open() as door:
            for agent in set(doors.agents):
                path = f"/registry/deregister/{agent}"
                assert_refused(door.ask(get(path, method="DELETE")), 403)

    # --- sending ----------------------------------------------------------------

    def test_a_sent_message_is_listed_with_its_seven_fields(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source = register(door), fresh("source")
            reply = door.ask(send(source, me, {"a": [1, "x"]}, correlation_id="c-1"))
            assert reply.status == 200
            assert list(reply.json)[:3] == ["message_id", "status", "delivered_to"]
            assert UUID7.fullmatch(reply.json["message_id"])
            assert reply.json["status"] == "queued"
            assert reply.json["delivered_to"] == [me]
            (message,) = awaited(door, me)
            assert list(message) == MESSAGE_FIELDS
            assert TIME.fullmatch(message.pop("created_at"))
            assert message == {
                "message_id": reply.json["message_id"],
                "source_instance": source,
                "target_instance": me,
                "message_type": "Notification",
                "payload": {"a": [1, "x"]},
                "correlation_id": "c-1",
            }

    def test_what_is_missing_in_a_message_is_null_in_the_list(self, doors: Doors) -> None:
        with doors.open() as door:
            me = register(door)
            body = {"message_type": "Query", "payload": None, "target_instance": me}
            assert door.ask(post(f"/messages/send/{fresh()}", body)).status == 200
            (message,) = awaited(door, me)
            assert message["payload"] is None
            assert message["correlation_id"] is None

    def test_an_unknown_target_is_400_with_json_and_stores_nothing(self, doors: Doors) -> None:
        with doors.open() as door:
            nobody = fresh("nobody")
            for target in (nobody, "x" * 129):
                reply = door.ask(send(fresh(), target))
                assert reply.status == 400
                assert reply.json["error"] == f"Target instance '{target}' not found"
                assert set(reply.json) <= {"error", "nearest"}
            register(door, nobody)
            assert messages(door, nobody) == []

    @pytest.mark.parametrize("body", WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
    def test_a_message_of_the_wrong_shape_is_422(self, doors: Doors, body: Any) -> None:
        with doors.open() as door:
            assert_refused(door.ask(post(f"/messages/send/{fresh()}", body)), 422)

    def test_a_source_that_can_be_no_id_is_422(self, doors: Doors) -> None:
        with doors.open() as door:
            for source in ("x" * 129, "a%00b"):
                assert_refused(door.ask(post(f"/messages/send/{source}", MESSAGE)), 422)

    @pytest.mark.parametrize(("said", "read"), MESSAGE_TYPES.values(), ids=MESSAGE_TYPES)
    def test_a_message_type_is_read_back_as_it_was_meant(
        self, doors: Doors, said: Any, read: Any
    ) -> None:
        with doors.open() as door:
            me = register(door)
            assert door.ask(send(fresh(), me, message_type=said)).status == 200
            (message,) = awaited(door, me)
            assert message["message_type"] == read

    @pytest.mark.parametrize(("said", "status"), WRONG_TYPES.values(), ids=WRONG_TYPES)
    def test_a_message_type_that_is_none_is_refused(
        self, doors: Doors, said: Any, status: int
    ) -> None:
        with doors.open() as door:
            body = MESSAGE | {"message_type": said}
            assert_refused(door.ask(post(f"/messages/send/{fresh()}", body)), status)

    @pytest.mark.parametrize("payload", SENDABLE.values(), ids=SENDABLE)
    def test_a_payload_that_json_can_carry_arrives_as_it_was(
        self, doors: Doors, payload: bytes
    ) -> None:
        with doors.open() as door:
            me = register(door)
            body = b'{"target_instance":"%b","message_type":"Query","payload":%b}'
            request = post(f"/messages/send/{fresh()}", body % (me.encode(), payload))
            assert door.ask(request).status == 200
            (message,) = awaited(door, me)
            assert message["payload"] == json.loads(payload)
            assert type(message["payload"]) is type(json.loads(payload))

    @pytest.mark.parametrize("payload", POISON.values(), ids=POISON)
    def test_a_payload_that_would_poison_a_list_is_400(self, doors: Doors, payload: bytes) -> None:
        with doors.open() as door:
            me = register(door)
            request = post(f"/messages/send/{fresh()}", with_payload(payload))
            assert_refused(door.ask(request), 400)
            assert messages(door, me) == []

    @pytest.mark.parametrize("payload", POISON.values(), ids=POISON)
    def test_poison_is_refused_in_metrics_and_in_unknown_fields(
        self, doors: Doors, payload: bytes
    ) -> None:
        with doors.open() as door:
            me = register(door)
            # Metrics are one level deeper than a payload: below the body and a key.
            for body in (b'{"status":"x","metrics":{"m":%b}}', b'{"status":"x","other":%b}'):
                request = post(f"/registry/heartbeat/{me}", body % payload)
                assert_refused(door.ask(request), 400)

    # --- broadcasting -----------------------------------------------------------

    def test_a_broadcast_reaches_everybody_alive_but_its_sender(self, doors: Doors) -> None:
        with doors.open() as door:
            source, one, two = register(door), register(door), register(door)
            reply = door.ask(send(source, None, "to all"))
            assert reply.status == 200
            assert {one, two, *doors.agents} <= set(reply.json["delivered_to"])
            assert source not in reply.json["delivered_to"]
            for each in (one, two):
                (message,) = awaited(door, each, source=source)
                assert message["target_instance"] is None
                assert message["message_id"] == reply.json["message_id"]
            assert awaited(door, source, 0, source) == []
            late = register(door)
            assert messages(door, late) == []

    def test_acknowledging_a_broadcast_hides_no_other_copy(self, doors: Doors) -> None:
        with doors.open() as door:
            source, one, two = register(door), register(door), register(door)
            message_id = door.ask(send(source, None)).json["message_id"]

            def has(each: str) -> bool:
                return message_id in [m["message_id"] for m in messages(door, each)]

            eventually(lambda: has(one) and has(two), "no copies")
            acknowledged = post(f"/messages/ack/{one}", {"message_ids": [message_id]})
            assert door.ask(acknowledged).status == 204
            eventually(lambda: not has(one), "not acknowledged")
            assert has(two)

    # --- reading and acknowledging ----------------------------------------------

    def test_reading_removes_nothing_and_keeps_the_order(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source = register(door), fresh("source")
            for n in range(20):
                assert door.ask(send(source, me, n)).status == 200
            for _ in range(2):
                listed = awaited(door, me, 20)
                assert [message["payload"] for message in listed] == list(range(20))

    def test_an_unknown_instance_has_no_messages(self, doors: Doors) -> None:
        with doors.open() as door:
            for unknown in (fresh(), "x" * 129, "a%0Ab"):
                assert messages(door, unknown) == []

    @pytest.mark.parametrize("path", ["/messages/ack/{id}", "/messages/{id}/ack"])
    def test_acknowledged_messages_are_listed_no_more(self, doors: Doors, path: str) -> None:
        with doors.open() as door:
            me = register(door)
            sent = [door.ask(send(fresh(), me, n)).json["message_id"] for n in range(3)]
            awaited(door, me, 3)
            body = {"message_ids": [sent[0], sent[2]]}
            reply = door.ask(post(path.replace("{id}", me), body))
            assert (reply.status, reply.body) == (204, b"")
            (left,) = awaited(door, me)
            assert left["message_id"] == sent[1]

    @pytest.mark.parametrize("path", ["/messages/ack/{id}", "/messages/{id}/ack"])
    def test_acknowledging_is_always_204(self, doors: Doors, path: str) -> None:
        with doors.open() as door:
            me = register(door)
            for each in (me, fresh(), "x" * 129):
                for ids in ([], ["no such message"], [fresh()] * 1000, [""]):
                    reply = door.ask(post(path.replace("{id}", each), {"message_ids": ids}))
                    assert (reply.status, reply.body) == (204, b"")

    def test_only_the_recipient_in_the_path_is_acknowledged_for(self, doors: Doors) -> None:
        with doors.open() as door:
            me, other = register(door), register(door)
            message_id = door.ask(send(fresh(), me)).json["message_id"]
            awaited(door, me)
            stolen = post(f"/messages/ack/{other}", {"message_ids": [message_id]})
            assert door.ask(stolen).status == 204
            assert [m["message_id"] for m in messages(door, me)] == [message_id]

    @pytest.mark.parametrize(
        "body", [{}, {"message_ids": None}, {"message_ids": "x"}, {"message_ids": [1]}, []], ids=str
    )
    def test_an_acknowledgement_of_the_wrong_shape_is_422(self, doors: Doors, body: Any) -> None:
        with doors.open() as door:
            for path in ("/messages/ack/x", "/messages/x/ack"):
                assert_refused(door.ask(post(path, body)), 422)

    # --- waiting ----------------------------------------------------------------

    def test_a_read_waits_for_a_message_at_any_node(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            me = register(a)
            all_list((b, c), me)
            for door in (a, b, c):
                door.send(get(f"/messages/{me}?wait=60"))
            with doors.open(2) as sender:
                sent = sender.ask(send(fresh(), me, "at last")).json["message_id"]
            for door in (a, b, c):  # each within its hang guard, which is no minute
                reply = door.read()
                assert reply.status == 200
                assert [each["message_id"] for each in reply.json["messages"]] == [sent]
            # What lies there is not waited for, and a limit is kept.
            assert b.ask(send(fresh(), me, 2)).status == 200
            awaited(c, me, 2)
            reply = c.ask(get(f"/messages/{me}?wait=60&limit=1"))
            assert [each["message_id"] for each in reply.json["messages"]] == [sent]

    def test_a_read_that_waits_in_vain_is_empty_at_the_end(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b:
            me = register(a)
            all_list((b,), me)
            for door, who in ((a, me), (b, me), (a, fresh())):
                started = time.monotonic()
                assert door.ask(get(f"/messages/{who}?wait=0.3")).json == {"messages": []}
                assert time.monotonic() - started > 0.25  # timers round by milliseconds

    @pytest.mark.parametrize(
        "query",
        ["wait=61", "wait=-1", "wait=soon", "wait=nan", "limit=0", "limit=1e2", "limit=1&limit=2"],
    )
    def test_a_wait_or_limit_that_does_not_fit_is_400(self, doors: Doors, query: str) -> None:
        with doors.open() as door:
            assert_refused(door.ask(get(f"/messages/{fresh()}?{query}")), 400)

    # --- bounds, repeats --------------------------------------------------------

    def test_a_full_queue_is_429_and_says_when_to_try_again(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source = register(door), fresh("source")
            for n in range(1000):
                assert door.ask(send(source, me, n)).status == 200
            awaited(door, me, 1000)
            reply = door.ask(send(source, me, 1000))
            assert_refused(reply, 429)
            assert int(reply.headers["retry-after"]) > 0
            ids = [message["message_id"] for message in messages(door, me)]
            assert door.ask(post(f"/messages/ack/{me}", {"message_ids": ids})).status == 204
            eventually(lambda: door.ask(send(source, me)).status == 200, "still full")

    def test_a_queue_that_is_full_is_so_at_every_node(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            me, source = register(a), fresh("source")
            all_list((b, c), me)
            for n in range(1000):
                assert (b if n % 2 else c).ask(send(source, me, n)).status == 200
            accepted = 1000
            for door in (a, b, c):
                # What finds it full is kept until there is room, one message a node.
                found = [door.ask(send(source, me)).status for _ in range(3)]
                assert found[1:] == [429, 429]
                accepted += found.count(200)
            seen: set[str] = set()

            def all_came() -> bool:
                ids = [message["message_id"] for message in messages(a, me)]
                assert b.ask(post(f"/messages/ack/{me}", {"message_ids": ids})).status == 204
                seen.update(ids)
                return len(seen) == accepted

            eventually(all_came, "what was accepted does not come")
            for door in (a, b, c):
                eventually(partial(_accepts, door, source, me), "still full")

    def test_a_queue_is_full_at_64_mib_too(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source, large = register(door), fresh("source"), "x" * 2_000_000
            found = [door.ask(send(source, me, large)).status for _ in range(40)]
            taken = found.count(200)
            assert found == [200] * taken + [429] * (40 - taken)
            assert 64 * 2**20 - len(large) <= taken * len(large) <= 64 * 2**20

    def test_one_answer_holds_8_mib_of_messages_at_most(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source = register(door), fresh("source")
            for n in range(5):
                assert door.ask(send(source, me, f"{n}" + "x" * 2_000_000)).status == 200
            listed = awaited(door, me, 4)
            assert [message["payload"][0] for message in listed] == ["0", "1", "2", "3"]
            ids = [message["message_id"] for message in listed]
            assert door.ask(post(f"/messages/ack/{me}", {"message_ids": ids})).status == 204
            (last,) = awaited(door, me)
            assert last["payload"][0] == "4"

    def test_a_repeated_idempotency_key_is_one_message(self, doors: Doors) -> None:
        with doors.open() as door:
            me, source, key = register(door), fresh("source"), fresh("key")
            body = MESSAGE | {"target_instance": me}
            request = post(f"/messages/send/{source}", body, f"idempotency-key: {key}")
            first, second = door.ask(request), door.ask(request)
            assert (first.status, second.status) == (200, 200)
            assert first.body == second.body
            awaited(door, me)
            assert len(messages(door, me)) == 1
            other = post(
                f"/messages/send/{source}", body | {"payload": 2}, f"idempotency-key: {key}"
            )
            assert_refused(door.ask(other), 422)

    # --- health -----------------------------------------------------------------

    def test_health_tells_version_uptime_and_sessions(self, doors: Doors) -> None:
        with doors.open() as door:
            before = door.ask(get("/health")).json
            assert list(before)[:4] == ["status", "version", "uptime_seconds", "active_sessions"]
            assert before["status"] == "healthy"
            assert re.fullmatch(r"\d+\.\d+\.\d+.*", before["version"])
            assert type(before["uptime_seconds"]) is type(before["active_sessions"]) is int
            register(door)
            after = door.ask(get("/health")).json
            assert after["active_sessions"] > 0
            assert after["uptime_seconds"] >= before["uptime_seconds"]

    # --- refusals ---------------------------------------------------------------

    @pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
    def test_a_body_that_is_not_json_is_400(self, doors: Doors, body: bytes) -> None:
        with doors.open() as door:
            assert_refused(door.ask(post("/messages/ack/x", body)), 400)

    @pytest.mark.parametrize(
        "content_type",
        [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
         "application/jsonx", "json", "text/json", "application/+json/x",
         "application/json, text/plain"],
    )  # fmt: skip
    def test_a_body_that_does_not_say_json_is_415(
        self, doors: Doors, content_type: str | None
    ) -> None:
        with doors.open() as door:
            request = post("/messages/ack/x", {"message_ids": []}, content_type=content_type)
            assert_refused(door.ask(request), 415)

    @pytest.mark.parametrize(
        "content_type",
        ["application/json; charset=utf-8", "Application/JSON", "application/json;x",
         "application/hal+json",
         "application/vnd.api+json; a=b"],
    )  # fmt: skip
    def test_every_way_to_say_json_is_read(self, doors: Doors, content_type: str) -> None:
        with doors.open() as door:
            request = post("/messages/ack/x", {"message_ids": []}, content_type=content_type)
            assert door.ask(request).status == 204

    def test_a_compressed_body_is_415(self, doors: Doors) -> None:
        with doors.open() as door:
            for coding in ("gzip", "deflate", "br", "identity, gzip"):
                body = post("/messages/ack/x", {"message_ids": []}, f"content-encoding: {coding}")
                assert_refused(door.ask(body), 415)
            plain = post("/messages/ack/x", {"message_ids": []}, "content-encoding: identity")
            assert door.ask(plain).status == 204

    def test_a_body_of_exactly_two_mebibytes_is_read(self, doors: Doors) -> None:
        body = b'{"message_ids":[]}'
        with doors.open() as door:
            exact = body + b" " * (BODY_MAX - len(body))
            assert door.ask(post("/messages/ack/x", exact)).status == 204
            assert_refused(door.ask(post("/messages/ack/x", exact + b" ")), 413)
        with doors.open() as door:
            assert_refused(door.ask(post("/messages/ack/x", exact + b" " * 1_000_000)), 413)

    def test_a_large_body_is_refused_by_its_length_alone(self, doors: Doors) -> None:
        with doors.open() as door:
            head = post("/messages/ack/x", b"", "expect: 100-continue")
            door.send(head.replace(b"content-length: 0", b"content-length: 99999999999"))
            assert_refused(door.read(), 413)

    def test_a_large_chunked_body_is_refused_when_it_has_grown(self, doors: Doors) -> None:
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with doors.open() as door:
            door.send(chunked("/messages/ack/x", chunk * 33))
            assert_refused(door.read(), 413)

    def test_a_chunked_body_is_read(self, doors: Doors) -> None:
        with doors.open() as door:
            body = b'3\r\n{"m\r\nf;x=y\r\nessage_ids":[]}\r\n0\r\n\r\n'
            assert door.ask(chunked("/messages/ack/x", body)).status == 204
            assert door.ask(get("/health")).status == 200

    def test_a_client_that_waits_for_100_continue_gets_it(self, doors: Doors) -> None:
        with doors.open() as door:
            request = post("/messages/ack/x", {"message_ids": []}, "expect: 100-continue")
            head, _, body = request.partition(b"\r\n\r\n")
            door.send(head + b"\r\n\r\n")
            assert door.read_head() == (100, {})
            door.send(body)
            assert door.read().status == 204

    @pytest.mark.parametrize("path", NO_PATHS)
    def test_an_unknown_path_or_a_trailing_slash_is_404(self, doors: Doors, path: str) -> None:
        with doors.open() as door:
            for request in (get(path), post(path, {}), get(path, method="OPTIONS")):
                assert_refused(door.ask(request), 404)

    @pytest.mark.parametrize(("path", "allow"), ALLOWED.items())
    def test_a_method_that_a_path_does_not_take_is_405(
        self, doors: Doors, path: str, allow: str
    ) -> None:
        with doors.open() as door:
            for method in {"GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"} - set(
                allow.split(", ")
            ):
                reply = door.ask(get(path, method=method))
                assert_refused(reply, 405)
                assert reply.headers["allow"] == allow

    # --- paths ------------------------------------------------------------------

    @pytest.mark.parametrize(
        "me", ["a b", "a/b", "größe", "100%", "a+b", "a?b#c", "..", "%2F", "😀", "a:b@c"]
    )
    def test_path_parameters_are_percent_decoded(self, doors: Doors, me: str) -> None:
        with doors.open() as door:
            me = f"{me} {secrets.token_hex(4)}"
            register(door, me)
            path = "".join(f"%{byte:02X}" for byte in me.encode())
            reply = door.ask(post(f"/registry/heartbeat/{path}", {"status": "healthy"}))
            assert reply.json["acknowledged"] is True
            assert door.ask(send(path.lower(), me, path)).status == 200
            (message,) = awaited(door, path)
            assert message["source_instance"] == me
            ids = {"message_ids": [message["message_id"]]}
            assert door.ask(post(f"/messages/{path}/ack", ids)).status == 204
            eventually(lambda: not messages(door, path), "not acknowledged")
            gone = get(f"/registry/deregister/{path}", method="DELETE")
            assert door.ask(gone).status == 204

    def test_a_plus_in_a_path_is_a_plus(self, doors: Doors) -> None:
        with doors.open() as door:
            me = register(door, f"{fresh()}+x")
            assert door.ask(post(f"/registry/heartbeat/{me}", {"status": "ok"})).status == 200

    def test_a_path_that_is_not_utf_8_is_400(self, doors: Doors) -> None:
        with doors.open() as door:
            for path in ("/messages/%FF", "/messages/%ED%A0%80", "/messages/a%C3"):
                assert_refused(door.ask(get(path)), 400)

    def test_literal_segments_beat_parameters(self, doors: Doors) -> None:
        with doors.open() as door:
            ack, sender = register(door, "ack"), register(door, "send")
            ids = [door.ask(send(fresh(), ack)).json["message_id"] for _ in range(2)]
            awaited(door, ack, 2)
            # /messages/ack/ack is the first form of the two, for the instance "ack".
            for message_id, path in zip(ids, ("/messages/ack/ack",) * 2, strict=True):
                assert door.ask(post(path, {"message_ids": [message_id]})).status == 204
            eventually(lambda: not messages(door, ack), "not acknowledged")
            # /messages/send/ack is a send by "ack", not an acknowledgement of "send".
            reply = door.ask(post("/messages/send/ack", MESSAGE | {"target_instance": sender}))
            assert reply.json["delivered_to"] == [sender]
            (message,) = awaited(door, sender)
            assert message["source_instance"] == "ack"
            assert_refused(door.ask(get("/messages/send/ack")), 405)

    # --- names and origins ------------------------------------------------------

    @pytest.mark.parametrize("host", NOT_OURS)
    def test_a_host_that_is_not_ours_is_421(self, doors: Doors, host: str) -> None:
        with doors.open() as door:
            port = int(door.address.rpartition(":")[2])
            host = host.format(port=port, other=port ^ 1)
            request = get("/health").replace(b"{host}", host.encode())
            assert_refused(door.ask(request), 421)

    def test_a_request_that_names_no_host_or_two_is_refused(self, doors: Doors) -> None:
        with doors.open() as door:
            assert_refused(door.ask(b"GET /health HTTP/1.0\r\n\r\n"), 421)
        # HTTP/1.1 itself asks for one host, and has a status of its own for that.
        for request in (b"GET /health HTTP/1.1\r\n\r\n", get("/health", "host: {host}")):
            with doors.open() as door:
                assert_refused(door.ask(request), 400)

    @pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "[::1]"])
    def test_our_own_names_are_answered_with_the_port_or_without(
        self, doors: Doors, name: str
    ) -> None:
        with doors.open() as door:
            port = door.address.rpartition(":")[2]
            for host in (name, f"{name}:{port}"):
                assert door.ask(get("/health").replace(b"{host}", host.encode())).status == 200

    def test_an_absolute_target_is_held_against_our_names_too(self, doors: Doors) -> None:
        with doors.open() as door:
            assert door.ask(get(f"http://{door.address}/health")).status == 200
            assert_refused(door.ask(get("http://evil.example/health")), 421)

    @pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
    def test_a_foreign_origin_is_403_whatever_it_asks(
        self, doors: Doors, origin: str, method: str
    ) -> None:
        with doors.open() as door:
            origin = origin.format(port=door.address.rpartition(":")[2])
            reply = door.ask(get("/health", f"origin: {origin}", method=method))
            assert reply.status == 403

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
    def test_a_request_from_another_site_is_403(self, doors: Doors, method: str) -> None:
        with doors.open() as door:
            for site in ("cross-site", "same-site", "some-site"):
                reply = door.ask(get("/health", f"sec-fetch-site: {site}", method=method))
                assert reply.status == 403

    def test_our_own_origin_may_ask(self, doors: Doors) -> None:
        with doors.open() as door:
            port = door.address.rpartition(":")[2]
            for origin in (f"http://{door.address}", f"http://localhost:{port}"):
                headers = (f"origin: {origin}", "sec-fetch-site: same-origin")
                reply = door.ask(get("/health", *headers))
                assert reply.status == 200
                assert not [name for name in reply.headers if name.startswith("access-control")]

    # --- the order of checks ----------------------------------------------------

    def test_the_doors_stand_in_order(self, doors: Doors) -> None:
        """Each request has everything wrong from one door on; that door answers."""
        large = b" " * (BODY_MAX + 1)
        foreign, zipped = "origin: http://evil.example", "content-encoding: gzip"
        steps = [
            (421, post("/x", large, foreign, content_type="x").replace(b"{host}", b"evil")),
            (403, post("/x", large, foreign, content_type="x")),
            (404, post("/registry/agents/", large, zipped, content_type="x")),
            (405, post("/messages/%FF", large, zipped, content_type="x")),
            (400, post("/messages/send/%FF", large, zipped, content_type="x")),
            (415, post("/messages/send/a", large, zipped, content_type="x")),
            (415, post("/messages/send/a", large, zipped)),
            (413, post("/messages/send/a", large)),
            (400, post("/messages/send/a", b'{"target_instance":"nobody"')),
            (422, post("/messages/send/a", {"target_instance": "nobody"})),
            (400, post("/messages/send/a", MESSAGE | {"target_instance": fresh("nobody")})),
        ]
        for status, request in steps:
            with doors.open() as door:
                reply = door.ask(request)
                assert reply.status == status, request[:200]
        assert "not found" in reply.json["error"]

    # --- every answer -----------------------------------------------------------

    def test_every_answer_is_plain_and_says_nothing_of_the_inside(self, doors: Doors) -> None:
        with doors.open() as door:
            requests = (
                get("/health"), get("/nowhere"), post("/messages/ack/x", {"message_ids": []}),
                post("/messages/ack/x", b"{"), get("/health", "origin: null"), get("/v1/self"),
                get("/v1/nowhere"), get(f"/registry/deregister/{fresh()}", method="DELETE"),
            )  # fmt: skip
            for request in requests:
                reply = door.ask(request)
                assert reply.headers["server"] == ""
                assert reply.headers["x-content-type-options"] == "nosniff"
                assert reply.headers["cache-control"] == "no-store"
                policy = "default-src 'none'; frame-ancestors 'none'"
                assert reply.headers["content-security-policy"] == policy
                assert reply.headers["cross-origin-resource-policy"] == "same-origin"
                assert {*reply.headers} <= {
                    "server", "x-content-type-options", "cache-control", "date",
                    "content-security-policy", "cross-origin-resource-policy",
                    "content-type", "content-length", "allow",
                }  # fmt: skip

    # --- one connection ---------------------------------------------------------

    def test_one_connection_takes_any_number_of_requests(self, doors: Doors) -> None:
        with doors.open() as door:
            for _ in range(50):
                assert door.ask(get("/health")).status == 200
                assert door.ask(get("/nowhere")).status == 404
                assert door.ask(post("/messages/ack/x", b"{")).status == 400
                assert door.ask(post("/messages/ack/x", {"message_ids": []})).status == 204
            assert door.is_silent()

    def test_requests_that_are_written_at_once_are_answered_in_order(self, doors: Doors) -> None:
        with doors.open() as door:
            for path in ("/health", "/nowhere", "/registry/agents"):
                door.send(get(path))
            assert [door.read().status for _ in range(3)] == [200, 404, 200]

    # --- through any node -------------------------------------------------------

    def test_a_guest_of_one_node_is_served_by_every_other(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            me, source = register(a), register(c)
            all_list((b, c), me, source)
            assert instances(b)[me]["created_at"] == instances(a)[me]["created_at"]
            sent = [c.ask(send(source, me, n)).json for n in range(3)]
            assert all(each["delivered_to"] == [me] for each in sent)
            listed = awaited(b, me, 3)
            assert [message["payload"] for message in listed] == [0, 1, 2]
            ids = {"message_ids": [message["message_id"] for message in listed[:2]]}
            assert b.ask(post(f"/messages/ack/{me}", ids)).status == 204
            for door in (a, b, c):
                (left,) = awaited(door, me)
                assert left["payload"] == 2
            beat = c.ask(post(f"/registry/heartbeat/{me}", {"status": "healthy"}))
            assert beat.json["acknowledged"] is True
            assert b.ask(get(f"/registry/deregister/{me}", method="DELETE")).status == 204
            for door in (a, b, c):
                eventually(partial(_lists_not, door, me), "still listed")

    def test_a_status_that_one_node_is_told_is_shown_by_all(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            me = register(a)
            all_list((b, c), me)
            body = {"status": "via C", "metrics": {"n": 1}}
            assert c.ask(post(f"/registry/heartbeat/{me}", body)).status == 200
            for door in (a, b, c):
                eventually(partial(_shows, door, me, body), "the status is not shown")

    def test_every_node_names_the_same_leader(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            leaders = {
                door.ask(get(path)).json["leader_id"]
                for door in (a, b, c)
                for path in ("/registry/agents", "/v1/leader", "/v1/self", "/v1/members", "/health")
            }
            assert len(leaders) == 1
            assert leaders <= set(doors.agents)

    def test_a_broadcast_through_one_node_reaches_the_guests_of_all(self, doors: Doors) -> None:
        with doors.open(0) as a, doors.open(1) as b, doors.open(2) as c:
            at_a, at_b, at_c = register(a), register(b), register(c)
            all_list((a, b, c), at_a, at_b, at_c)
            reply = b.ask(send(at_a, None, "hello"))
            assert {at_b, at_c, *doors.agents} <= set(reply.json["delivered_to"])
            for door, guest in ((a, at_b), (b, at_c)):
                awaited(door, guest, source=at_a)
            assert awaited(c, at_a, 0, at_a) == []


def chunked(path: str, body: bytes) -> bytes:
    """A request whose body comes in chunks, given as they stand."""
    head = post(path, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    return head + body
