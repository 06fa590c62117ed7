"""Direct messages on their way: windows, turns, holds, and ways that are cut and made."""

from __future__ import annotations

import pytest

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import MessageArrived
from p2pmesh.protocol.ways import NeedLink
from tests.protocol.offices import Office, World, pair


def test_what_is_sent_before_there_is_a_link_asks_for_one_and_arrives() -> None:
    world, a, b = pair(linked=False)
    world.links_on_demand = False
    message_id = a.send("b-1", b"early")
    assert [need.peer for need in a.of(NeedLink)] == [b.id]
    assert a.commands.message_state(message_id)[0].state == "queued"
    world.link(a, b)
    assert b.arrived() == [b"early"]
    assert a.moves(message_id) == [("b-1", "stored"), ("b-1", "done")]


def test_a_missing_link_is_asked_for_again_while_messages_wait() -> None:
    world, a, b = pair(linked=False)
    world.links_on_demand = False
    a.send("b-1")
    world.pass_time(600.0)
    asked = a.of(NeedLink)
    assert 15 < len(asked) < 60
    assert {need.peer for need in asked} == {b.id}


def test_messages_lost_with_a_link_are_sent_again_in_order() -> None:
    world, a, b = pair()
    a.send("b-1", b"0")
    world.lost = {wire.Post}
    a.send("b-1", b"1")
    a.send("b-1", b"2")
    world.lost.clear()
    a.send("b-1", b"3")  # the recipient sees the gap and asks for what lies between
    assert b.arrived() == [b"0", b"1", b"2", b"3"]
    assert b.post.counters["post_gap"] == 1


def test_on_a_new_link_the_sender_asks_what_is_over_instead_of_sending_it() -> None:
    world, a, b = pair()
    b.auto_completes = False
    ids = [a.send("b-1", b"%d" % n) for n in range(4)]
    world.unlink(a, b)
    world.links_on_demand = False
    b.commands.message_completed(world.at, ids[0], True)
    b.commands.message_completed(world.at, ids[2], True)
    world.run()
    assert b.of(NeedLink), "the recipient wants to tell"
    sent = len(a.said(wire.Post))
    world.link(a, b)
    assert len(a.said(wire.Post)) == sent
    assert [unsure.stored for unsure in a.said(wire.Unsure)] == [((1, 4),)]
    states = [a.commands.message_state(each)[0].state for each in ids]
    assert states == ["done", "stored", "done", "stored"]


def test_a_backed_up_link_holds_the_stream_back() -> None:
    world, a, b = pair()
    a.post.paused(world.at, b.id)
    a.send("b-1", b"held")
    assert a.said(wire.Post) == []
    a.post.resumed(world.at, b.id)
    world.run()
    assert b.arrived() == [b"held"]


def test_no_more_than_a_window_is_under_way_to_one_home() -> None:
    world, a, b = pair()
    world.lost = {wire.Receipt, wire.Done}
    payload = bytes(100_000)
    for _ in range(40):
        a.send("b-1", payload)
    assert len(a.said(wire.Post)) == 11
    world.lost.clear()
    world.unlink(a, b)
    world.link(a, b)
    assert len(b.arrived()) == 40


def test_a_full_mailbox_holds_its_senders_until_there_is_room() -> None:
    world = World()
    senders = [world.add(f"s{n}") for n in range(3)]
    b = world.add("b")
    b.auto_completes = False
    world.link_all(*senders, b)
    accepted = [0, 0, 0]
    refused: set[str] = set()
    for number in range(500):
        for index, sender in enumerate(senders):
            try:
                sender.send("b-1", b"%d" % number)
                accepted[index] += 1
            except QueueFull as full:
                refused.add(str(full))
    assert len(b.of(MessageArrived)) == limits.MAILBOX_MESSAGES_MAX
    assert refused == {"the home of 'b-1' has no room for more: it has to finish some first"}
    assert sum(accepted) == limits.MAILBOX_MESSAGES_MAX + 3, "one of each found it full"
    world.pass_time(100.0)
    for sender in senders:
        with pytest.raises(QueueFull):
            sender.send("b-1", b"still")
    done = 0
    while done < len(b.of(MessageArrived)):
        for arrived in b.of(MessageArrived)[done : done + 100]:
            b.commands.message_completed(world.at, arrived.envelope.message_id, True)
            done += 1
        world.run()
    assert done == sum(accepted)
    for sender, count in zip(senders, accepted, strict=True):
        mine = [e.envelope.payload for e in b.of(MessageArrived) if e.via == sender.id]
        assert mine == [b"%d" % number for number in range(count)]
        assert len([move for move in sender.moves() if move[1] == "done"]) == count
        sender.send("b-1", b"there is room")
    assert b.post.counters["post_mailbox_full"] > 0


def test_a_held_stream_is_tried_again_should_the_word_that_there_is_room_be_lost() -> None:
    world, a, b = pair()
    b.auto_completes = False
    c = world.add("c")
    world.link(b, c)
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        c.send("b-1")
    a.send("b-1", b"late")
    world.lost = {wire.Receipt}
    for arrived in b.of(MessageArrived):
        b.commands.message_completed(world.at, arrived.envelope.message_id, True)
    world.run()
    world.lost.clear()
    assert b"late" not in b.arrived()
    world.pass_time(timing.STREAM_RETRY + 0.1)
    assert b.arrived()[-1] == b"late"


def test_a_message_that_vanished_without_a_gap_or_a_new_link_is_sent_again_in_the_end() -> None:
    world, a, b = pair()
    world.lost = {wire.Post}
    a.send("b-1", b"lost")
    world.lost.clear()
    assert b.arrived() == []
    world.pass_time(timing.STREAM_PROBE_AFTER + 0.1)
    assert b.arrived() == [b"lost"]


def test_leaving_waits_for_the_receipts_that_live_homes_owe() -> None:
    world, a, b = pair()
    assert a.post.is_drained
    a.post.paused(world.at, b.id)
    a.send("b-1")
    a.post.begin_leave(world.at)
    assert not a.post.is_drained
    a.post.resumed(world.at, b.id)
    world.run()
    assert a.post.is_drained


# --- large ones --------------------------------------------------------------------

LARGE = bytes(limits.LARGE_MIN + 1)


def posted(office: Office) -> list[int]:
    """The payload sizes of what it put on the wire, in order."""
    return [len(post.envelope.payload) for post in office.said(wire.Post)]


def test_a_large_message_leaves_alone_in_its_stream_and_in_order() -> None:
    world, a, b = pair()
    world.lost = {wire.Receipt, wire.Done}
    a.send("b-1", b"before")
    a.send("b-1", LARGE)
    assert posted(a) == [6], "it waits for what is before it"
    world.lost.clear()
    world.pass_time(timing.STREAM_PROBE_AFTER + 1.0)
    assert posted(a) == [6, 6, len(LARGE)]
    world.lost = {wire.Receipt, wire.Done}
    a.send("b-1", LARGE)
    a.send("b-1", b"behind")
    assert posted(a)[3:] == [len(LARGE)], "what is behind it waits for it"
    world.lost.clear()
    world.pass_time(2 * timing.STREAM_PROBE_AFTER + 1.0)
    assert [len(each) for each in b.arrived()] == [6, len(LARGE), len(LARGE), 6]
    assert b.post.counters["post_gap"] == 0


def test_no_other_stream_to_that_home_waits_for_a_large_message() -> None:
    world, a, b = pair()
    guests = [f"guest-{number}" for number in range(3)]
    for guest in guests:
        b.call("register", guest, "host", 1, (), ())
    world.run()
    world.lost = {wire.Receipt, wire.Done}
    a.send("b-1", bytes(limits.PAYLOAD_MAX - 300))  # as much as may be under way of these
    a.send(guests[0], LARGE)
    a.send(guests[1], LARGE)
    for _ in range(3):
        a.send(guests[2], b"small")
    sizes = posted(a)
    assert sizes == [limits.PAYLOAD_MAX - 300, len(LARGE), 5, 5, 5]
    world.lost.clear()
    world.pass_time(timing.STREAM_PROBE_AFTER + 1.0)
    assert posted(a)[-1] == len(LARGE)
    assert len(b.read(guests[1])) == 1


def test_a_large_message_that_moves_is_not_taken_for_lost() -> None:
    world, a, b = pair()
    world.lost = {wire.Receipt, wire.Done}
    a.send("b-1", LARGE)
    for _ in range(10):
        world.pass_time(timing.STREAM_PROBE_AFTER / 2)
        a.post.progressed(world.at, b.id)
    assert a.post.counters["stream_probed"] == 0
    world.pass_time(timing.STREAM_PROBE_AFTER + 1.0)
    assert a.post.counters["stream_probed"] == 1
