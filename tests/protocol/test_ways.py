"""Ways to peers: one hop of relay where no link can be made."""

from __future__ import annotations

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.types import RequestArrived
from p2pmesh.protocol.ways import NeedLink
from tests.protocol.offices import Office, World


def triangle() -> tuple[World, Office, Office, Office]:
    """a and c cannot link; b is linked to both."""
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.block(a, c)
    world.link(a, b)
    world.link(b, c)
    return world, a, b, c


def test_without_a_link_for_three_seconds_a_message_goes_over_one_hop_and_back() -> None:
    world, a, b, c = triangle()
    message_id = a.send("c-1", b"around")
    world.pass_time(timing.RELAY_AFTER - 0.1)
    assert c.arrived() == []
    world.pass_time(0.2)
    assert c.arrived() == [b"around"]
    assert a.moves(message_id) == [("c-1", "stored"), ("c-1", "done")]
    assert b.post.counters["relayed"] >= 3
    a.send("c-1", b"at once now")
    assert c.arrived() == [b"around", b"at once now"]


def test_a_link_is_asked_for_again_right_after_a_dial_that_nobody_answered() -> None:
    world, a, _, _ = triangle()
    a.send("c-1")
    world.pass_time(timing.DIAL_TIMEOUT)
    assert len(a.of(NeedLink)) == 1, "that dial is still under way"
    world.pass_time(0.2)
    assert len(a.of(NeedLink)) == 2


def test_requests_broadcasts_and_registry_calls_are_relayed_too() -> None:
    world, a, _, c = triangle()
    c.call("register", "g")
    a.send("c-1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    call = a.request("c-1")
    c.commands.respond(world.at, c.of(RequestArrived)[0].request, b"!")
    world.run()
    assert a.ended(call) is not None
    assert a.call("heartbeat", "g") is not None
    assert a.status() == "ok"
    world.rings = {a.id: [c.id]}  # the tree is of no use here
    a.broadcast(b"all")
    world.pass_time(timing.CAST_REPAIR_AFTER + 0.1)
    assert c.arrived()[-1] == b"all"


def test_a_link_that_comes_takes_over_from_the_relay() -> None:
    world, a, b, c = triangle()
    a.send("c-1", b"1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    world.unblock(a, c)
    world.link(a, c)
    relayed = b.post.counters["relayed"]
    a.send("c-1", b"2")
    assert c.arrived() == [b"1", b"2"]
    assert b.post.counters["relayed"] == relayed


def test_the_other_side_is_asked_to_dial_back() -> None:
    world, a, _, c = triangle()
    a.send("c-1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    assert [need.peer for need in c.of(NeedLink)] == [a.id]


def test_a_relay_that_ends_is_replaced_by_another() -> None:
    world, a, b, c = triangle()
    d = world.add("d")
    a.send("c-1", b"1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    world.link(a, d)
    world.link(d, c)
    world.kill(b)
    a.send("c-1", b"2")
    world.pass_time(2 * timing.RELAY_AFTER)
    assert c.arrived() == [b"1", b"2"]
    assert d.post.counters["relayed"] > 0


def test_a_partner_without_a_link_refuses_and_the_next_is_asked() -> None:
    world, a, _, c = triangle()
    useless = [world.add(f"u{n}") for n in range(3)]
    world.block(a, world.offices["b"])
    for office in useless:
        world.link(a, office)
    a.send("c-1", b"1")
    world.pass_time(timing.RELAY_AFTER + 1)
    assert c.arrived() == []
    assert {office.post.counters["relay_refused"] for office in useless} == {1}
    world.unblock(a, world.offices["b"])
    world.link(a, world.offices["b"])
    world.pass_time(4 * timing.RELAY_AFTER)
    assert c.arrived() == [b"1"]


def test_nothing_is_relayed_twice_for_strangers_or_for_itself() -> None:
    world, a, b, c = triangle()
    post = wire.encode(wire.Cancel(1))
    b.post.received(world.at, a.id, wire.Relay(b.id, b.id, post))  # from myself
    b.post.received(world.at, a.id, wire.Relay(b.id, b"?" * 32, post))  # a stranger's
    b.post.received(world.at, a.id, wire.Relay(b.id, c.id, b"\xc1"))
    b.post.received(world.at, a.id, wire.Relay(b.id, c.id, wire.encode(wire.Ping(1))))
    nested = wire.encode(wire.Relay(b.id, a.id, post))
    b.post.received(world.at, a.id, wire.Relay(b.id, c.id, nested))
    assert b.post.counters["relay_malformed"] == 4
    assert b.post.counters["relay_from_stranger"] == 1
    b.post.received(world.at, a.id, wire.Relay(b"?" * 32, c.id, post))
    world.run()
    assert b.post.counters["relay_refused"] == 1
    b.post.received(world.at, a.id, wire.Relay(c.id, b"whoever" * 4, post))
    world.run()
    assert c.post.counters["relay_malformed"] == 0, "the origin is who sent it"


def test_a_message_for_a_backed_up_peer_is_not_piled_up_at_the_relay() -> None:
    world, a, b, c = triangle()
    a.send("c-1", b"1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    b.post.paused(world.at, c.id)
    a.send("c-1", b"2")
    assert b.post.counters["relay_backed_up"] == 1
    b.post.resumed(world.at, c.id)
    world.pass_time(timing.STREAM_PROBE_AFTER + 0.1)
    assert c.arrived() == [b"1", b"2"]


def test_a_route_that_nothing_uses_is_given_up_and_made_again_when_needed() -> None:
    world, a, _, c = triangle()
    a.send("c-1", b"1")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    world.pass_time(4 * timing.LINK_WANTED_FOR)
    assert a.post._ways._routes == c.post._ways._routes == {}
    asked = len(a.of(NeedLink))
    world.pass_time(600.0)
    assert len(a.of(NeedLink)) == asked
    a.send("c-1", b"2")
    world.pass_time(timing.RELAY_AFTER + 0.1)
    assert c.arrived() == [b"1", b"2"]
