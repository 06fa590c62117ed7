"""Direct messages: streams between post offices, over cuts, restarts and full mailboxes."""

from __future__ import annotations

import pytest

from p2pmesh.errors import MessageTooLarge, QueueFull
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.types import MessageArrived, MessageMoved, SendRefused
from tests.protocol.offices import World, pair


def test_messages_arrive_in_the_order_in_which_they_were_sent() -> None:
    _, a, b = pair()
    for number in range(300):
        a.send("b-1", b"%d" % number)
    assert b.arrived() == [b"%d" % number for number in range(300)]
    assert len(a.moves()) == 600


def test_receipts_of_many_messages_travel_as_one() -> None:
    world, a, b = pair(linked=False)
    world.links_on_demand = False
    for _ in range(100):
        a.send("b-1")
    world.link(a, b)
    assert len(b.arrived()) == 100
    assert b.said(wire.Receipt) == [wire.Receipt(b.said(wire.Receipt)[0].stream, 100)]
    assert [done.done for done in b.said(wire.Done)] == [((1, 100),)]


@pytest.mark.parametrize(
    "lost", [{wire.Receipt}, {wire.Done}, {wire.Receipt, wire.Done}], ids=["receipt", "end", "both"]
)
def test_a_lost_receipt_or_end_is_told_again_on_the_next_link(lost: set[type]) -> None:
    world, a, b = pair()
    world.lost = lost.copy()
    message_ids = [a.send("b-1", b"%d" % n) for n in range(5)]
    world.unlink(a, b)
    world.lost.clear()
    world.link(a, b)
    assert [a.commands.message_state(each)[0].state for each in message_ids] == ["done"] * 5
    assert b.arrived() == [b"0", b"1", b"2", b"3", b"4"]


def test_how_it_ended_is_told_again_too() -> None:
    world, a, b = pair()
    b.auto_completes = False
    world.lost = {wire.Receipt, wire.Done}
    done, expired = a.send("b-1", b"0"), a.send("b-1", b"1", ttl=5.0)
    b.commands.message_completed(world.at, done, True)
    outbox = a.post._outbox  # its own clock says nothing yet
    outbox._expires_at = outbox.outlets.next_at = float("inf")
    world.pass_time(5.0)
    world.unlink(a, b)
    world.lost.clear()
    world.link(a, b)
    assert a.moves(done)[-1] == ("b-1", "done")
    assert a.moves(expired)[-1] == ("b-1", "expired")


def test_a_former_home_that_is_late_to_say_what_is_done_is_heard() -> None:
    world, a, b = pair()
    c = world.add("c")
    world.link_all(a, b, c)
    b.call("register", "g")
    message_id = a.send("g")
    stream = a.said(wire.Post)[0].stream
    world.lost = {wire.Done}
    b.call("acknowledge", "g", (message_id,))
    world.lost.clear()
    world.kill(b)
    world.block(a, c)
    c.call("heartbeat", "g")
    a.post.received(world.at, b.id, wire.Done(stream, ((1, 1),)))  # it was on its way
    world.run()
    assert a.moves(message_id)[-1] == ("g", "done")
    world.unblock(a, c)
    world.link(a, c)
    assert c.read("g") == []


def test_a_home_that_restarted_without_a_memory_gets_the_senders_copies() -> None:
    world, a, b = pair()
    b.auto_completes = False
    ids = [a.send("b-1", b"%d" % n) for n in range(3)]
    b.commands.message_completed(world.at, ids[1], True)
    world.run()
    b.auto_completes = True
    world.restart(b)
    assert b.arrived() == [b"0", b"2"]
    assert {a.commands.message_state(each)[0].state for each in ids} == {"done"}


def test_a_new_link_to_the_same_life_delivers_nothing_twice() -> None:
    world, a, b = pair()
    b.auto_completes = False
    ids = [a.send("b-1", b"%d" % n) for n in range(3)]
    for _ in range(5):
        world.unlink(a, b)
        world.link(a, b)
    assert b.arrived() == [b"0", b"1", b"2"]
    for each in ids:
        b.commands.message_completed(world.at, each, True)
    world.run()
    assert {a.commands.message_state(each)[0].state for each in ids} == {"done"}


def test_a_failed_home_that_comes_back_in_the_same_life_goes_on_where_it_was() -> None:
    world, a, b = pair()
    b.auto_completes = False
    a.send("b-1", b"0")
    world.split(a, b)
    a.send("b-1", b"1")
    assert a.moves()[-1] == ("b-1", "stored")
    world.heal(a, b)
    assert b.arrived() == [b"0", b"1"]


def test_a_watermark_above_all_numbers_starts_a_new_stream() -> None:
    world, a, b = pair()
    b.auto_completes = False
    first = a.send("b-1", b"0")
    world.lost = {wire.Post}
    waiting = a.send("b-1", b"1")
    world.lost.clear()
    stream = a.said(wire.Post)[0].stream
    a.post.received(world.at, b.id, wire.Receipt(stream, 17))  # as after a restored backup
    world.run()
    assert b.arrived() == [b"0", b"1"]
    assert a.said(wire.Post)[-1].stream != stream
    assert a.said(wire.Post)[-1].prev == 0
    for each in (first, waiting):
        b.commands.message_completed(world.at, each, True)
    world.run()
    assert {a.commands.message_state(each)[0].state for each in (first, waiting)} == {"done"}
    a.send("b-1", b"2")
    assert b.arrived() == [b"0", b"1", b"2"]


def test_time_to_live_is_elapsed_time_and_ends_at_both_ends() -> None:
    world, a, b = pair()
    b.auto_completes = False
    stored = a.send("b-1", b"stored", ttl=10.0)
    world.unlink(a, b)
    world.links_on_demand = False
    queued = a.send("b-1", b"queued", ttl=10.0)
    world.at = world.at._replace(wall=world.at.wall + 10**9)  # the clock jumps: nothing
    world.pass_time(9.0)
    assert a.commands.message_state(queued)[0].state == "queued"
    world.pass_time(1.5)
    assert a.commands.message_state(queued)[0].state == "expired"
    assert a.commands.message_state(stored)[0].state == "expired"
    world.link(a, b)
    assert b.arrived() == [b"stored"]
    b.auto_completes = True
    a.send("b-1", b"next")
    assert b.arrived() == [b"stored", b"next"], "the gap of what expired blocks nothing"


def test_what_expires_in_the_mailbox_is_withdrawn_from_the_agent() -> None:
    world, a, b = pair()
    b.auto_completes = False
    message_id = a.send("b-1", ttl=5.0)
    world.pass_time(6.0)
    assert [type(e).__name__ for e in b.effects if not isinstance(e, MessageArrived)] == [
        "MessageExpired", "MessageWithdrawn",
    ]  # fmt: skip
    assert a.moves(message_id)[-1] == ("b-1", "expired")


def test_a_message_to_a_failed_instance_waits_until_it_is_back() -> None:
    world, a, b = pair()
    world.kill(b)
    message_id = a.send("b-1", b"later")
    world.pass_time(100.0)
    assert a.commands.message_state(message_id)[0].state == "queued"
    world.restart(b)
    assert b.arrived() == [b"later"]


def test_what_was_for_an_instance_that_left_for_good_is_dead() -> None:
    world, a, b = pair()
    b.auto_completes = False
    message_id = a.send("b-1")
    world.kill(b, "left")
    assert a.moves(message_id)[-1] == ("b-1", "dead")
    assert a.of(MessageMoved)[-1].reason == "left"


def test_what_is_for_an_instance_that_left_with_its_identity_waits() -> None:
    world = World()
    a, b = world.add("a"), world.add("b", persistent=True)
    world.link(a, b)
    world.kill(b, "left")
    message_id = a.send("b-1", b"welcome back")
    assert a.commands.message_state(message_id)[0].state == "queued"
    world.restart(b)
    assert b.arrived() == [b"welcome back"]


def test_a_name_stays_a_name_until_the_message_is_stored() -> None:
    world = World()
    a, b = world.add("a"), world.add("worker")
    world.links_on_demand = False
    message_id = a.send("worker", b"job", named=True)
    assert a.commands.message_state(message_id)[0].instance_id == "worker-1"
    world.kill(b, "left")
    assert a.commands.message_state(message_id)[0].state == "queued", "it waits for another holder"
    other = world.add("other")
    other.name = "worker"
    world.changed(other)
    world.link(a, other)
    assert other.arrived() == [b"job"]
    assert a.moves(message_id) == [
        ("other-1", "queued"),
        ("other-1", "stored"),
        ("other-1", "done"),
    ]


def test_a_stored_message_does_not_follow_the_name() -> None:
    world = World()
    a, b, other = world.add("a"), world.add("worker"), world.add("other")
    world.link(a, b)
    b.auto_completes = False
    message_id = a.send("worker", b"job", named=True)
    other.name = "worker"
    world.kill(b, "left")
    assert a.moves(message_id)[-1] == ("worker-1", "dead")
    assert other.arrived() == []


def test_more_than_a_queue_holds_is_refused_to_the_caller() -> None:
    world, a, b = pair()
    b.auto_completes = False
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("b-1")
    with pytest.raises(QueueFull, match="b-1"):
        a.send("b-1")
    b.commands.message_completed(world.at, b.of(MessageArrived)[0].envelope.message_id, True)
    world.run()
    a.send("b-1")


def test_bytes_are_bounded_for_each_instance_and_for_the_node() -> None:
    world = World()
    a = world.add("a")
    for number in range(5):
        world.add(f"o{number}")
    world.links_on_demand = False
    big = bytes(limits.PAYLOAD_MAX - 1024)
    account = a.post._outbox._account
    for _ in range(4):
        a.send("o0-1", big, ttl=9.0)
    with pytest.raises(QueueFull):
        a.send("o0-1", bytes(8192))
    assert account.used <= limits.MAILBOX_BYTES_MAX
    for number in range(12):
        a.send(f"o{1 + number % 4}-1", big)
    with pytest.raises(QueueFull):
        a.send("o4-1", big)
    assert account.used <= limits.NODE_BYTES_MAX
    world.pass_time(10.0)
    a.send("o0-1", big)


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    _, a, _ = pair()
    with pytest.raises(MessageTooLarge, match=str(limits.PAYLOAD_MAX)):
        a.send("b-1", bytes(limits.PAYLOAD_MAX + 1))


def test_a_message_to_the_own_agent_stays_queued_until_it_is_done() -> None:
    world = World()
    a = world.add("a")
    a.auto_completes = False
    message_id = a.send("a-1", b"me")
    assert a.arrived() == [b"me"]
    assert a.moves(message_id) == [], "one copy: nothing is stored elsewhere"
    a.commands.message_completed(world.at, message_id, True)
    world.run()
    assert a.moves(message_id) == [("a-1", "done")]


def test_a_stranger_cannot_receipt_or_end_anothers_messages() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    b.auto_completes = False
    message_id = a.send("b-1")
    stream = a.said(wire.Post)[0].stream
    a.post.received(world.at, c.id, wire.Done(stream, ((1, 1),)))
    a.post.received(world.at, c.id, wire.Receipt(stream, 99))
    world.run()
    assert a.commands.message_state(message_id)[0].state == "stored"
    assert a.post.counters["receipt_of_unknown_stream"] == 2
    assert a.of(SendRefused) == []


def test_one_that_leaves_takes_nothing_new_for_its_agent() -> None:
    world, a, b = pair()
    b.post.begin_leave(world.at)
    message_id = a.send("b-1")
    assert b.arrived() == []
    assert a.commands.message_state(message_id)[0].state == "queued"
    assert [receipt.standing for receipt in b.said(wire.Receipt)] == [wire.RECEIPT_NOT_HERE]
