"""Calls between nodes, as a peer says them."""

from __future__ import annotations

import msgspec
import pytest

from p2pmesh.protocol import limits, wire
from tests.protocol.offices import Office, World, pair

REGISTER = msgspec.msgpack.encode(wire.RegisterBody("h", 1, (), ()))
HEARTBEAT = msgspec.msgpack.encode(wire.HeartbeatBody("ok", None))
READ = msgspec.msgpack.encode(wire.ReadBody(0))
ACK = msgspec.msgpack.encode(wire.AckBody(("id",)))


def call(world: World, caller: Office, home: Office, operation: str, body: bytes) -> str | None:
    """The status that a home answers to a call about "g"."""
    home.sent.clear()
    home.post.received(world.at, caller.id, wire.Call(7, operation, "g", body))
    world.run()
    answers = home.said(wire.CallResult)
    return answers[0].status if answers else None


@pytest.mark.parametrize(
    ("operation", "body", "where_it_lives", "nowhere", "elsewhere"),
    [
        ("register", REGISTER, "ok", "elsewhere", "elsewhere"),
        ("heartbeat", HEARTBEAT, "ok", "unknown", "elsewhere"),
        ("read", READ, "ok", "ok", "elsewhere"),
        ("ack", ACK, "ok", "ok", "elsewhere"),
        ("deregister", b"", "ok", "unknown", "elsewhere"),
    ],
)
def test_a_home_answers_for_its_own_guests_only(
    operation: str, body: bytes, where_it_lives: str, nowhere: str, elsewhere: str
) -> None:
    world, a, b = pair()
    assert call(world, a, b, operation, body) == nowhere
    b.call("register", "g")
    assert call(world, a, b, operation, body) == where_it_lives
    world, a, b = pair()
    a.call("register", "g")
    assert call(world, a, b, operation, body) == elsewhere
    assert b.post.guest("g") is None, "a peer's call adopts nobody"


@pytest.mark.parametrize(
    ("operation", "body"),
    [("register", b""), ("register", READ), ("read", b"\xc1"), ("fly", b""), ("ack", b"\x91\x01")],
)
def test_a_malformed_call_is_counted_and_not_answered(operation: str, body: bytes) -> None:
    world, a, b = pair()
    b.call("register", "g")
    assert call(world, a, b, operation, body) is None
    assert b.post.counters["call_malformed"] == 1


@pytest.mark.parametrize(
    "result",
    [
        wire.CallResult(0, "what?"),
        wire.CallResult(0, "ok", b"\xc1"),
        wire.CallResult(0, "ok", msgspec.msgpack.encode(wire.Letters((), (b"via",)))),
    ],
)
def test_a_malformed_answer_is_no_answer(result: wire.CallResult) -> None:
    world, a, b = pair()
    b.call("register", "g")
    world.lost = {wire.CallResult}
    a.call("read", "g", None)
    number = a.said(wire.Call)[-1].call
    a.post.received(world.at, b.id, msgspec.structs.replace(result, call=number))
    world.run()
    assert a.status() == "unavailable"


def test_a_strangers_answer_is_not_believed() -> None:
    world, a, b = pair()
    c = world.add("c")
    b.call("register", "g")
    world.lost = {wire.CallResult}
    a.call("read", "g", None)
    number = a.said(wire.Call)[-1].call
    a.post.received(world.at, c.id, wire.CallResult(number, "ok"))
    world.run()
    assert a.status() is None
    assert a.post.counters["call_result_late"] == 1


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALLS_MAX", 3)
    world, a, b = pair()
    b.call("register", "g")
    world.lost = {wire.CallResult}
    for _ in range(3):
        assert a.call("read", "g", None) is None
    a.call("read", "g", None)
    assert a.status() == "unavailable"
