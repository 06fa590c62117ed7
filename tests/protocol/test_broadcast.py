"""Broadcasts between post offices: tree, summed receipts, direct repair."""

from __future__ import annotations

import random

import pytest

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import Envelope, Life, MessageDead
from tests.protocol.offices import Office, World


def mesh(count: int) -> tuple[World, list[Office]]:
    """Nodes with the ring links that they would have."""
    world = World()
    offices = [world.add(f"n{number}") for number in range(count)]
    world.links_on_demand = False
    for office in offices:
        for node in office.view.ring_neighbours(office.id):
            if node not in office.links:
                world.link(office, world.by_id[node])
    world.links_on_demand = True
    return world, offices


def states(office: Office, message_id: str) -> dict[str, str]:
    return {
        each.instance_id: each.state for each in office.commands.message_state(message_id) or ()
    }


def test_a_broadcast_reaches_everyone_but_its_source_once_and_every_receipt_comes_back() -> None:
    _, offices = mesh(40)
    root = offices[7]
    message_id = root.broadcast(b"hear")
    others = [office for office in offices if office is not root]
    assert [office.arrived() for office in others] == [[b"hear"]] * 39
    assert root.arrived() == []
    assert set(root.delivered_to) == {office.agent for office in others}
    assert states(root, message_id) == {str(office.agent): "stored" for office in others}
    assert sum(len(office.said(wire.Cast)) for office in offices) == 39, "no link carries it twice"
    receipts = [receipt for office in others for receipt in office.said(wire.CastReceipt)]
    assert len(receipts) == 39, "receipts are summed"
    assert root.post._broadcasts._held == {}


def test_each_guest_has_its_own_copy_and_its_own_acknowledgement() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    a.call("register", "g")
    a.call("register", "h")
    b.call("register", "i")
    message_id = b.broadcast(source="i")
    assert set(b.delivered_to) == {"a-1", "b-1", "g", "h"}
    assert b.arrived() == [b"all"], "the sender's own agent is not the sender"
    assert b.read("i") == []
    a.call("acknowledge", "g", (message_id,))
    assert a.read("g") == []
    assert [envelope.message_id for envelope in a.read("h")] == [message_id]
    assert states(b, message_id) == {"a-1": "stored", "b-1": "stored", "g": "done", "h": "stored"}


def test_a_guest_that_outlives_its_home_keeps_what_was_broadcast_to_it() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    b.call("register", "g")
    done, read = a.broadcast(b"1"), a.broadcast(b"2")
    assert [envelope.message_id for envelope in b.read("g")] == [done, read]
    b.call("acknowledge", "g", (done,))
    world.kill(b)
    c.call("heartbeat", "g")
    assert [envelope.message_id for envelope in c.read("g")] == [read]
    c.call("acknowledge", "g", (read,))
    assert states(a, read)["g"] == states(a, done)["g"] == "done"


def test_one_who_is_born_after_it_was_sent_does_not_get_it() -> None:
    world, offices = mesh(3)
    root, other = offices[0], offices[1]
    world.lost = {wire.Cast}
    root.broadcast(b"before")
    world.lost.clear()
    other.call("register", "late")
    world.pass_time(timing.CAST_REPAIR_AFTER + 0.1)
    assert other.arrived() == [b"before"]
    assert other.read("late") == []


def test_a_home_without_a_receipt_after_a_second_gets_it_directly() -> None:
    world, offices = mesh(30)
    root = offices[0]
    world.lost = {wire.Cast}
    message_id = root.broadcast(b"again")
    world.lost.clear()
    world.pass_time(timing.CAST_REPAIR_AFTER - 0.1)
    assert [office.arrived() for office in offices] == [[]] * 30
    world.pass_time(0.2)
    assert [office.arrived() for office in offices[1:]] == [[b"again"]] * 29
    assert set(states(root, message_id).values()) == {"stored"}


def test_a_lost_receipt_costs_a_repair_and_no_second_copy() -> None:
    world, offices = mesh(20)
    root = offices[0]
    world.lost = {wire.CastReceipt}
    message_id = root.broadcast()
    world.lost.clear()
    world.pass_time(timing.CAST_REPAIR_AFTER + 0.1)
    assert [office.arrived() for office in offices[1:]] == [[b"all"]] * 19
    assert set(states(root, message_id).values()) == {"stored"}
    assert root.post._broadcasts._held == {}


def test_an_inner_node_passes_up_what_it_has_and_the_rest_as_it_comes() -> None:
    world = World()
    root, inner, leaf, slow = (world.add(name) for name in ("root", "inner", "leaf", "slow"))
    world.rings = {root.id: [inner.id], inner.id: [root.id, leaf.id, slow.id]}
    world.links_on_demand = False
    for low, high in ((root, inner), (inner, leaf), (inner, slow)):
        world.link(low, high)
    slow.state = "stopped"  # takes nothing, says nothing
    message_id = root.broadcast()
    assert states(root, message_id)["leaf-1"] == "queued"
    world.pass_time(timing.CAST_SUM_WITHIN + 0.01)
    assert states(root, message_id)["leaf-1"] == "stored"
    assert not inner.said(wire.CastReceipt)[0].last
    key = inner.said(wire.CastReceipt)[0]
    receipt = wire.CastReceipt(root.id, key.stream, key.seq, (slow.id,), ("slow-1",))
    inner.post.received(world.at, slow.id, receipt)
    world.run()
    assert inner.said(wire.CastReceipt)[1].last
    assert set(states(root, message_id).values()) == {"stored"}
    assert inner.post._tree._sums == {}


def test_a_child_whose_link_ends_is_not_waited_for() -> None:
    world = World()
    root, inner, leaf = (world.add(name) for name in ("root", "inner", "leaf"))
    world.rings = {root.id: [inner.id], inner.id: [root.id, leaf.id]}
    world.links_on_demand = False
    world.link(root, inner)
    world.link(inner, leaf)
    leaf.state = "stopped"
    root.broadcast()
    assert inner.said(wire.CastReceipt) == []
    world.unlink(inner, leaf)
    assert [receipt.homes for receipt in inner.said(wire.CastReceipt)] == [(inner.id,)]


def test_relays_that_die_half_way_leave_nobody_without_it() -> None:
    world, offices = mesh(60)
    rng = random.Random(3)
    root = offices[0]
    dead = rng.sample(offices[1:], 6)
    for office in dead:
        office.state = "stopped"
    message_id = root.broadcast(b"through")
    for office in dead:
        world.kill(office)
    world.pass_time(2.0)
    living = [office for office in offices[1:] if office not in dead]
    assert [office.arrived() for office in living] == [[b"through"]] * len(living)
    known = states(root, message_id)
    assert {known[str(office.agent)] for office in living} == {"stored"}
    assert {known[str(office.agent)] for office in dead} == {"queued"}, "they may come back"


def test_a_home_back_after_a_cut_gets_what_it_missed() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    a.broadcast(b"1")
    world.split(a, b)
    world.pass_time(5.0)
    a.broadcast(b"for the living")
    assert a.delivered_to == ()
    world.heal(a, b)
    world.link(a, b)
    world.block(a, b)
    message_id = a.broadcast(b"2")
    world.split(a, b)
    world.pass_time(600.0)
    world.heal(a, b)
    world.pass_time(2.0)
    assert b.arrived() == [b"1", b"2"]
    assert states(a, message_id) == {"b-1": "stored"}


def test_one_who_restarts_or_leaves_before_it_came_is_owed_nothing_any_more() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.links_on_demand = False
    message_id = a.broadcast()
    world.restart(b)
    world.kill(c, "left")
    world.pass_time(2.0)
    reasons = {each.instance_id: each.reason for each in a.commands.message_state(message_id) or ()}
    assert states(a, message_id) == {"b-1": "dead", "c-1": "dead"}
    assert reasons == {"b-1": "restarted", "c-1": "left"}
    assert a.post._broadcasts._held == {}


def test_a_guest_that_moved_before_it_came_gets_it_at_its_new_home() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    b.call("register", "g")
    world.lost = {wire.Cast}
    message_id = a.broadcast(b"follow me")
    world.lost.clear()
    world.kill(b)
    c.call("heartbeat", "g")
    world.pass_time(2.0)
    assert c.arrived() == [b"follow me"]
    assert [envelope.message_id for envelope in c.read("g")] == [message_id]
    assert states(a, message_id) == {"b-1": "queued", "c-1": "stored", "g": "stored"}


def test_a_guest_that_was_not_at_the_home_that_took_it_gets_it_all_the_same() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    b.call("register", "g")
    held = a.post._broadcasts
    envelope = Envelope("id", "a-1", None, "T", b"x", None, 0)
    made = held.accept(world.at, envelope, world.at.now + 60, a.view.live_instances())
    for home, delivered in ((a.id, ("a-1",)), (b.id, ("b-1",)), (c.id, ("c-1",))):
        held.receipt(wire.CastReceipt(a.id, held.stream, made.seq, (home,), delivered))
    world.pass_time(timing.CAST_REPAIR_AFTER + 0.1)
    assert [each.message_id for each in b.read("g")] == ["id"]


def test_a_full_mailbox_loses_its_own_copy_and_no_others() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    b.call("register", "full")
    b.call("register", "free")
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        b.send("full")
    message_id = a.broadcast()
    assert states(a, message_id) == {"b-1": "stored", "full": "dead", "free": "stored"}
    assert a.post.counters["broadcast_refused"] == 1
    ours = b.broadcast()
    assert states(b, ours) == {"a-1": "stored", "full": "dead", "free": "stored"}
    assert b.moves(ours).count(("full", "dead")) == 1
    assert b.of(MessageDead) == [], "its own message: that it moved says it"
    assert b.post.counters["cast_mailbox_full"] == 1


def test_more_broadcasts_than_live_homes_receipt_are_refused_to_the_caller() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.links_on_demand = False
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.broadcast()
    with pytest.raises(QueueFull):
        a.broadcast()
    world.kill(b)
    first = min(a.post._broadcasts._held)
    a.broadcast()
    assert first not in a.post._broadcasts._held, "what is owed to the failed makes room"


def test_a_burst_over_a_cut_longer_than_the_window_arrives_whole() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    for number in range(3):
        a.broadcast(b"%d" % number)
    world.block(a, c)
    world.split(a, c)
    for number in range(3, limits.CAST_WINDOW + 300):
        a.broadcast(b"%d" % number)
    world.heal(a, c)
    for number in range(2000, 2010):
        a.broadcast(b"%d" % number)
    world.pass_time(5.0)
    assert b.arrived()[-10:] == c.arrived()[-10:]
    assert sorted(c.arrived()) == sorted([b"0", b"1", b"2", *c.arrived()[-10:]])
    assert a.post._broadcasts._held == {}


def test_a_late_joiner_far_above_the_floor_takes_everything_it_is_owed() -> None:
    world = World()
    a, gone = world.add("a"), world.add("gone")
    world.kill(gone)
    stuck = a.broadcast  # what follows keeps the floor low for ever
    gone.state = "alive"
    world.changed(gone)
    world.links_on_demand = False
    stuck(b"never taken")
    world.kill(gone)
    b = world.add("b")
    world.links_on_demand = True
    world.link(a, b)
    for number in range(limits.CAST_WINDOW + 50):
        a.broadcast(b"%d" % number)
        if number % 100 == 0:
            world.pass_time(0.1)
    world.pass_time(5.0)
    assert sorted(b.arrived()) == sorted(b"%d" % n for n in range(limits.CAST_WINDOW + 50))


def test_a_backed_up_child_is_held_back_within_bounds_and_the_rest_repaired() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    a.post.paused(world.at, b.id)
    payload = bytes(100_000)
    for _ in range(20):
        a.broadcast(payload)
    assert a.said(wire.Cast) == []
    assert a.post.counters["cast_child_backed_up"] == 10
    a.post.resumed(world.at, b.id)
    world.run()
    assert len(b.arrived()) == 10
    world.pass_time(3.0)
    assert len(b.arrived()) == 20


def test_a_broadcast_expires_for_those_it_did_not_reach() -> None:
    world = World()
    a, _ = world.add("a"), world.add("b")
    world.links_on_demand = False
    message_id = a.broadcast(ttl=5.0)
    world.pass_time(5.1)
    assert states(a, message_id) == {"b-1": "expired"}


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0, "floor": 0},
        {"floor": 2},
        {"seq": 2**63 - 1, "floor": 1},
        {"stream": b"short"},
        {"root": b"short"},
        {"direct": True},
        {"envelope": Envelope("", "s", None, "T", b"", None, 0)},
    ],
)
def test_a_malformed_broadcast_is_counted_and_goes_nowhere(change: dict[str, object]) -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    good: dict[str, object] = {
        "root": b"r" * 32, "stream": b"stream00", "seq": 1, "floor": 1, "direct": False,
        "ttl": 1000, "born_below": Life(2**60, 0, 0),
        "envelope": Envelope("id", "s", None, "T", b"", None, 0),
    }  # fmt: skip
    b.post.received(world.at, a.id, wire.Cast(**{**good, **change}))
    assert b.post.counters["cast_malformed"] == 1
    b.post.received(world.at, a.id, wire.Cast(**good))
    world.run()
    assert len(b.arrived()) == 1
