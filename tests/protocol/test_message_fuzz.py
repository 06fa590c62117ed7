"""No message of this plane, however odd, raises; nothing it does outgrows its bounds."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pmesh.protocol import wire
from p2pmesh.protocol.types import Envelope, Life, MessageArrived
from tests.protocol.offices import Office, World, audit

STREAMS = st.sampled_from([b"stream00", b"stream01", b"", b"short"])
IDS = st.sampled_from(["a-1", "b-1", "c-1", "g", "h", "nobody", "", "x" * 300, "\ud7ff\x00"])
NUMBERS = st.one_of(
    st.integers(-2, 6),
    st.sampled_from([2**31, 2**62, 2**62 + 1, 2**63 - 1, -(2**63), 1023, 1025, 3000]),
)
OPERATIONS = st.sampled_from(["register", "heartbeat", "deregister", "read", "ack", "respond", "?"])
BODIES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            msgspec.msgpack.encode(body)
            for body in (
                wire.RegisterBody("h", 1, ("c",), ()),
                wire.RegisterBody("h" * 9999, -1, ("c" * 99,) * 99, ()),
                wire.HeartbeatBody("ok", b"m"),
                wire.ReadBody(-5),
                wire.ReadBody(2**62),
                wire.AckBody(("id0", "id1", "nothing")),
                Envelope("id0", "g", "a-1", "Response", b"", "id1", 0),
                wire.Letters((), (b"via",)),
            )
        ]
    ),
)


class Odd:
    """Strategies for the fields of wire messages: odd, but of their types."""

    def __init__(self, nodes: list[bytes]) -> None:
        self._nodes = st.sampled_from([*nodes, b"", b"?" * 32])
        self.envelopes = st.builds(
            Envelope,
            message_id=st.sampled_from(["id0", "id1", "id2", "", "x" * 99]),
            source=IDS,
            target=st.one_of(st.none(), IDS),
            type=st.sampled_from(["Query", "Response", "Notification", "", "x" * 999]),
            payload=st.binary(max_size=4),
            correlation_id=st.one_of(st.none(), st.sampled_from(["id0", "id1", "y" * 999])),
            created_at=NUMBERS,
        )

    def message(self, kind: type[Any]) -> st.SearchStrategy[Any]:
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: self._field(name, hints[name]) for name in hints})

    def _field(self, name: str, hint: Any) -> st.SearchStrategy[Any]:
        match name:
            case "stream":
                return STREAMS
            case "root" | "origin" | "to":
                return self._nodes
            case "recipient" | "instance_id":
                return IDS
            case "operation":
                return OPERATIONS
            case "body":
                return BODIES
            case "message":
                return st.one_of(st.binary(max_size=9), self._inner())
            case "homes":
                return st.lists(self._nodes, max_size=4).map(tuple)
            case "delivered":
                return st.lists(IDS, max_size=4).map(tuple)
        return self._of(hint)

    def _inner(self) -> st.SearchStrategy[bytes]:
        kinds = [kind for kind in wire.MESSAGE_PLANE if kind is not wire.Relay]
        return st.sampled_from(kinds).flatmap(self.message).map(wire.encode)

    def _of(self, hint: Any) -> st.SearchStrategy[Any]:
        if get_origin(hint) in (types.UnionType, Union):
            return st.one_of(*map(self._of, get_args(hint)))
        if get_origin(hint) is tuple:
            args = get_args(hint)
            if args[-1] is ...:
                return st.lists(self._of(args[0]), max_size=4).map(tuple)
            return st.tuples(*map(self._of, args))
        return {
            int: NUMBERS,
            bool: st.booleans(),
            str: st.text(max_size=3),
            bytes: st.binary(max_size=9),
            type(None): st.none(),
            Life: st.builds(Life, NUMBERS, NUMBERS, NUMBERS),
            Envelope: self.envelopes,
        }[hint]


def busy_world() -> tuple[World, Office, list[bytes]]:
    """A node in the middle of everything: copies, requests, calls and casts under way."""
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    b.auto_completes = False
    b.call("register", "g")
    a.call("register", "h")
    for office in (a, b, c):
        for target in ("a-1", "b-1", "g", "h", "nobody"):
            office.send(target)
    a.request("b-1")
    b.request("g")
    c.request("b-1")
    world.lost = {wire.Cast, wire.CallResult}
    b.broadcast()
    b.commands.heartbeat(world.at, "h", "ok", None)
    world.run()
    world.lost.clear()
    return world, b, [a.id, b.id, c.id]


ODD = Odd(busy_world()[2])
MESSAGES = st.sampled_from(wire.MESSAGE_PLANE).flatmap(ODD.message)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 2), MESSAGES), min_size=1, max_size=12), st.data())
def test_odd_messages_never_raise_and_the_node_goes_on(
    odd: list[tuple[int, wire.Message]], data: st.DataObject
) -> None:
    world, b, nodes = busy_world()
    for sender, message in odd:
        _use_a_known_number(b, message, data)
        received = wire.decode(wire.encode(message))
        assert received is not None
        b.post.received(world.at, nodes[sender], received)
        world.run()
        audit(b)
    world.pass_time(3.0)
    for arrived in b.of(MessageArrived):
        b.commands.message_completed(world.at, arrived.envelope.message_id, True)
    world.run()
    a = world.offices["a"]
    a.broadcast(b"still here")
    world.pass_time(40.0)
    for office in (a, b):
        audit(office)


def _use_a_known_number(office: Office, message: wire.Message, data: st.DataObject) -> None:
    """Half of the time, odd answers name something that is really under way."""
    known: list[Any] = []
    match message:
        case wire.Receipt() | wire.Done() | wire.Unsure():
            known = list(office.post._outbox._by_id)
            field = "stream"
        case wire.CastReceipt():
            known, field = [office.post._broadcasts.stream], "stream"
        case wire.Answer():
            known, field = list(office.post._asking._asked), "request"
        case wire.Cancel() | wire.Ask():
            known, field = [key[1] for key in office.post._answering._queries], "request"
        case wire.CallResult():
            known, field = list(office.post._desk._forwarding), "call"
    if known and data.draw(st.booleans()):
        msgspec.structs.force_setattr(message, field, data.draw(st.sampled_from(known)))
