"""What outlives a process: nothing is said, started or confirmed before it is safe."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from p2pmesh.errors import StoreFull
from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.types import (
    MessageArrived,
    MessageKept,
    MessageMayStart,
    SendRefused,
    State,
)
from tests.protocol.offices import Office, World


def pair(*, saves_at_once: bool = True) -> tuple[World, Office, Office]:
    """Two linked offices with a disk each."""
    world = World(is_durable=True)
    a, b = world.add("a", persistent=True), world.add("b", persistent=True)
    world.link(a, b)
    world.saves_at_once = saves_at_once
    return world, a, b


# --- before it is safe ------------------------------------------------------------------


def test_a_message_is_on_the_wire_only_once_it_is_on_disk() -> None:
    _, a, b = pair(saves_at_once=False)
    message_id = a.send("b-1")
    assert not a.said(wire.Post)
    assert not a.of(MessageKept)
    a.save()
    assert [kept.message_id for kept in a.of(MessageKept)] == [message_id]
    assert len(a.said(wire.Post)) == 1
    assert not b.arrived()


def test_it_is_receipted_and_handed_to_the_agent_only_once_it_is_on_the_other_disk() -> None:
    _, a, b = pair(saves_at_once=False)
    message_id = a.send("b-1")
    a.save()
    assert not b.said(wire.Receipt)
    assert not b.of(MessageArrived)
    b.save()
    assert b.arrived() == [b"x"]
    assert a.moves(message_id) == [("b-1", "stored")]


def test_a_handler_starts_only_once_that_is_on_disk_and_done_is_told_once_its_end_is() -> None:
    _, a, b = pair(saves_at_once=False)
    message_id = a.send("b-1")
    a.save()
    b.save()
    assert not b.runs
    b.save()  # the start
    assert b.runs == [(message_id, 1)]
    assert a.moves(message_id)[-1] == ("b-1", "stored")
    b.save()  # the end
    assert a.moves(message_id)[-1] == ("b-1", "done")


def test_a_broadcast_leaves_only_once_it_is_on_disk() -> None:
    _, a, b = pair(saves_at_once=False)
    a.broadcast()
    assert not a.said(wire.Cast)
    a.save()
    assert len(a.said(wire.Cast)) == 1
    assert not b.said(wire.CastReceipt)
    b.save()
    assert a.moves() == [("b-1", "stored")]


def test_a_guest_is_told_that_its_ack_counts_only_once_that_is_on_disk() -> None:
    _, a, b = pair(saves_at_once=False)
    b.call("register", "g")
    b.save()
    a.send("g")
    a.save()
    assert b.read("g") == []  # it has come, and might yet be lost
    b.save()
    (message,) = b.read("g")
    assert b.call("acknowledge", "g", (message.message_id,)) is None
    b.save()
    assert b.status() == "ok"


# --- restarts ---------------------------------------------------------------------------


def test_what_was_accepted_reaches_its_recipient_after_the_sender_died() -> None:
    world, a, b = pair()
    world.block(a, b)
    ids = [a.send("b-1", b"%d" % n) for n in range(3)]
    world.restart(a)
    assert [a.commands.message_state(each)[0].state for each in ids] == ["queued"] * 3  # type: ignore[index]
    world.unblock(a, b)
    world.link(a, b)
    assert b.arrived() == [b"0", b"1", b"2"]


def test_what_was_not_saved_when_the_sender_died_was_not_accepted() -> None:
    world, a, b = pair(saves_at_once=False)
    a.send("b-1")
    world.restart(a)
    world.saves_at_once = True
    world.link(a, b)
    assert not b.arrived()


def test_what_was_receipted_is_handled_after_the_recipient_died_and_counts_as_the_first_time() -> (
    None
):
    world, a, b = pair(saves_at_once=False)
    message_id = a.send("b-1")
    a.save()
    b.save()  # stored; the start of its handler is not
    world.saves_at_once = True
    world.restart(b)
    world.link(a, b)
    assert b.runs == [(message_id, 1)]
    assert a.moves(message_id)[-1] == ("b-1", "done")


def test_a_handler_that_death_interrupted_runs_again_and_knows_it() -> None:
    world, a, b = pair()
    b.auto_completes = False
    message_id = a.send("b-1")
    b.commands.message_started(world.at, message_id)
    world.run()
    assert b.of(MessageMayStart)
    b.auto_completes = True
    world.restart(b)
    world.link(a, b)
    assert b.runs == [(message_id, 2)]


def test_no_handler_starts_again_for_what_is_recorded_as_done() -> None:
    world, a, b = pair()
    world.lost = {wire.Done}
    message_id = a.send("b-1")
    world.restart(b)
    world.lost = set()
    world.link(a, b)
    world.pass_time(timing.STREAM_UNSURE_MAX)
    assert b.runs == [(message_id, 1)]
    assert a.moves(message_id)[-1] == ("b-1", "done")


def test_a_message_that_died_is_not_called_done_after_a_restart() -> None:
    world, a, b = pair()
    b.auto_completes = False
    world.lost = {wire.Done}
    message_id = a.send("b-1")
    for _ in range(timing.HANDLER_RETRIES + 1):
        b.commands.message_completed(world.at, message_id, False, "broken")
        world.run()
        world.pass_time(timing.HANDLER_RETRY * timing.HANDLER_RETRY_GROWTH**timing.HANDLER_RETRIES)
    world.restart(b)
    world.lost = set()
    world.link(a, b)
    world.pass_time(timing.STREAM_UNSURE_MAX)
    assert a.moves(message_id)[-1] == ("b-1", "dead")


def test_a_sender_that_restarts_with_nothing_left_gives_no_number_twice() -> None:
    world, a, b = pair()
    first = a.send("b-1", b"first")
    assert a.moves(first)[-1] == ("b-1", "done")
    world.restart(a)
    world.link(a, b)
    second = a.send("b-1", b"second")
    assert b.arrived() == [b"first", b"second"]
    assert a.moves(second)[-1] == ("b-1", "done")


def test_a_message_that_waits_for_a_name_survives_its_sender() -> None:
    world, a, b = pair()
    b.is_persistent = True
    world.kill(b, "left")
    message_id = a.send("b", named=True)
    assert a.of(MessageKept)
    world.restart(a)
    assert a.commands.message_state(message_id)
    b.state, b.is_persistent = "alive", True
    world.restart(b)
    world.link(a, b)
    assert b.arrived() == [b"x"]


def test_a_broadcast_survives_its_sender_and_is_taken_once() -> None:
    world, a, b = pair()
    c = world.add("c", persistent=True)
    world.link_all(a, b, c)
    world.block(a, c)
    world.block(b, c)
    a.broadcast(b"all")
    assert b.arrived() == [b"all"]
    world.restart(a)
    world.unblock(a, c)
    world.unblock(b, c)
    world.link_all(a, b, c)
    world.pass_time(60.0)
    assert c.arrived() == [b"all"]
    assert len(b.runs) == 1


def test_a_broadcast_that_a_home_took_before_it_died_is_not_taken_again() -> None:
    world, a, b = pair()
    world.lost = {wire.CastReceipt}
    a.broadcast(b"all")
    world.restart(b)
    world.lost = set()
    world.link(a, b)
    world.pass_time(60.0)
    assert len(b.runs) == 1


def test_time_to_live_goes_on_while_a_process_is_away_and_no_clock_step_ends_it() -> None:
    world, a, b = pair()
    world.kill(b)
    short, long = a.send("b-1", ttl=100.0), a.send("b-1", ttl=1000.0)
    world.pass_time(50.0)
    a.state = "stopped"
    world.pass_time(100.0)  # of the machine, which runs on
    world.at = world.at._replace(wall=world.at.wall + 86_400_000)
    world.restart(a)
    world.pass_time(1.0)
    assert a.moves(short) == [("b-1", "expired")]
    assert not a.moves(long)
    world.pass_time(800.0)
    assert not a.moves(long)
    world.pass_time(60.0)
    assert a.moves(long) == [("b-1", "expired")]


# --- guests -----------------------------------------------------------------------------


def test_a_home_that_restarts_keeps_the_mail_of_its_guests_until_they_beat() -> None:
    world, a, b = pair()
    b.call("register", "g")
    before = b.view.entries["g"]
    a.send("g", b"kept")
    world.restart(b)
    world.pass_time(1.0)
    entry = b.view.entries["g"]
    assert (entry.state, entry.life, entry.created_at) == (
        State.FAILED,
        before.life,
        before.created_at,
    )
    world.link(a, b)
    b.call("heartbeat", "g")
    assert b.status() == "ok"
    assert b.view.entries["g"].state is State.ALIVE
    assert [message.payload for message in b.read("g")] == [b"kept"]


def test_a_guest_that_moved_while_its_home_was_away_gets_its_mail_from_there() -> None:
    world, a, b = pair()
    c = world.add("c", persistent=True)
    world.link_all(a, b, c)
    b.call("register", "g")
    a.send("g", b"kept")
    world.kill(b)
    a.state = "alive"
    assert c.call("heartbeat", "g") is not None
    assert c.view.entries["g"].home == c.id
    world.kill(a)
    b.state = "alive"
    world.restart(b)
    world.link(b, c)
    world.pass_time(5.0)
    assert [message.payload for message in c.read("g")] == [b"kept"]


# --- a store that is full ----------------------------------------------------------------


def test_what_a_full_store_did_not_take_was_not_accepted_and_nothing_is_until_it_can() -> None:
    world, a, b = pair(saves_at_once=False)
    kept = a.send("b-1", b"kept")
    a.save()
    refused = a.send("b-1", b"refused")
    a.post.save_failed(world.at, "the disk is full")
    world.run()
    assert [each.message_id for each in a.of(SendRefused)] == [refused]
    with pytest.raises(StoreFull):
        a.send("b-1")
    with pytest.raises(StoreFull):
        a.broadcast()
    a.save()
    b.save()
    assert a.moves(kept) == [("b-1", "stored")]
    a.send("b-1", b"later")
    a.save()
    b.save()
    assert b.arrived() == [b"kept", b"later"]


def test_a_recipient_whose_store_is_full_holds_its_senders_and_loses_nothing() -> None:
    world, a, b = pair(saves_at_once=False)
    a.send("b-1", b"first")
    a.save()
    b.post.save_failed(world.at, "the disk is full")
    a.send("b-1", b"second")
    a.save()
    world.pass_time(10.0)
    assert not b.arrived()
    world.saves_at_once = True
    world.run()
    world.pass_time(timing.STREAM_RETRY_MAX)
    assert b.arrived() == [b"first", b"second"]


def test_a_full_store_still_answers_for_its_guests() -> None:
    world, a, b = pair(saves_at_once=False)
    b.call("register", "g")
    a.send("g")
    a.save()
    b.save()
    (message,) = b.read("g")
    b.send("g", b"too much")
    b.post.save_failed(world.at, "the disk is full")
    world.run()
    assert len(b.of(SendRefused)) == 1
    for operation in ("heartbeat", "register"):
        b.call(operation, "g")
        assert b.status() == "ok"
    assert [each.message_id for each in b.read("g")] == [message.message_id]
    b.call("acknowledge", "g", (message.message_id,))
    assert b.status() == "ok"
    assert b.read("g") == []


def test_handlers_go_on_where_the_store_is_full_since_only_they_make_room() -> None:
    world, a, b = pair(saves_at_once=False)
    message_id = a.send("b-1")
    a.save()
    b.save()
    b.post.save_failed(world.at, "the disk is full")
    world.run()
    assert b.runs == [(message_id, 1)]


def test_a_message_to_a_guest_of_this_node_can_be_read_when_it_is_safe() -> None:
    _, a, _ = pair(saves_at_once=False)
    a.call("register", "g")
    a.save()
    a.send("g")
    a.save()
    assert a.of(MessageKept)
    assert len(a.read("g")) == 1


# --- random lives -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_whatever_dies_what_was_safe_is_handled_in_order_and_not_after_its_end_is_on_record(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some handlers fail for good; what is dead then is sent again, and handled once."""
    monkeypatch.setattr(timing, "HANDLER_RETRY", 0.001)
    rng = random.Random(f"durability {seed}")
    world = World(is_durable=True)
    offices = [world.add(f"n{n}", persistent=True) for n in range(3)]
    world.link_all(*offices)
    world.saves_at_once = False
    sent: dict[str, tuple[Office, Office, int]] = {}
    safe: set[str] = set()
    hard: set[str] = set()  # for the handlers: no order is kept
    died: set[str] = set()

    def note_what_is_safe() -> None:
        safe.update(kept.message_id for office in offices for kept in office.of(MessageKept))

    def send() -> None:
        sender, recipient = rng.sample(offices, 2)
        message_id = sender.send(f"{recipient.name}-1", b"x" * rng.choice([1, 1, 5000]))
        sent[message_id] = (sender, recipient, len(sent))
        if rng.random() < 0.2:
            hard.add(message_id)
            recipient.fails.add(message_id)

    def save() -> None:
        rng.choice(offices).save()

    def retry() -> None:
        office = rng.choice(offices)
        for message_id, _, _ in office.dead():
            died.add(message_id)
            if rng.random() < 0.5:
                sent[message_id][1].fails.discard(message_id)
            office.retry(message_id)

    def die() -> None:
        office = rng.choice(offices)
        note_what_is_safe()
        world.restart(office)
        for other in offices:
            if other is not office:
                world.link(office, other)

    def cut() -> None:
        one, other = rng.sample(offices, 2)
        world.unlink(one, other)
        world.link(one, other)

    for _ in range(80):
        rng.choice([send, send, send, save, save, save, save, die, cut, retry])()
        world.pass_time(rng.choice([0.0, 0.0, 0.1, 2.0]))
    note_what_is_safe()
    world.saves_at_once = True
    for one in offices:
        for other in offices:
            if one is not other and other.id not in one.links:
                world.link(one, other)
    world.pass_time(timing.STREAM_UNSURE_MAX * 0.9)  # of the time to live
    for office in offices:
        office.fails.clear()
        for message_id, _, _ in office.dead():
            died.add(message_id)
            office.retry(message_id)
    world.pass_time(timing.STREAM_UNSURE_MAX * 4)
    note_what_is_safe()

    assert died <= hard
    runs = Counter(message_id for office in offices for message_id, _ in office.runs)
    assert safe <= set(runs)
    for office in offices:
        firsts = [message_id for message_id, attempt in office.runs if attempt == 1]
        assert len(firsts) == len(set(firsts))
        for sender in offices:
            mine = [each for each in firsts if sent[each][0] is sender]
            order = [sent[each][2] for each in mine if each not in hard]
            assert order == sorted(order)
    for message_id in safe:
        sender = sent[message_id][0]
        state = sender.commands.message_state(message_id)
        assert state is None or state[0].state == "done"
    for office in offices:
        kept = ("outbox", "mailbox", "dead_letters")
        assert not [place for place in office.disk if place[0] in kept]


def test_a_message_by_name_keeps_its_number_while_the_holder_is_away() -> None:
    world, a, b = pair()
    world.lost = {wire.Receipt, wire.Done}
    message_id = a.send("b", named=True)
    world.kill(b)
    world.lost = set()
    b.state = "alive"
    world.restart(b)
    world.link(a, b)
    assert b.runs == [(message_id, 1)]
    assert a.moves(message_id)[-1] == ("b-1", "done")


def test_a_message_by_name_goes_to_another_holder_who_comes_meanwhile() -> None:
    world, a, b = pair()
    world.block(a, b)
    message_id = a.send("b", named=True)
    world.kill(b)
    world.unblock(a, b)
    c = world.add("c", persistent=True)
    c.name = "b"
    world.changed(c)
    world.link(a, c)
    assert c.runs == [(message_id, 1)]
    assert a.moves(message_id)[-1] == ("c-1", "done")
