"""Dead letters: what ended dead is kept where it was accepted, and can be sent again."""

from __future__ import annotations

import pytest

from p2pmesh.errors import QueueFull, UnknownTarget
from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import MessageDead, MessageMoved
from tests.protocol.offices import Office, World, audit

FAILED_FOR_GOOD = 200.0  # seconds: longer than all retries of a handler take


def pair(*, is_durable: bool | None = None) -> tuple[World, Office, Office]:
    """Two linked offices; ``is_durable`` None: as the run says."""
    world = World(is_durable=is_durable)
    a, b = world.add("a", persistent=True), world.add("b", persistent=True)
    world.link(a, b)
    return world, a, b


def one_dead(*, is_durable: bool | None = None) -> tuple[World, Office, Office, str]:
    """A message of a that b's handler could not handle."""
    world, a, b = pair(is_durable=is_durable)
    b.auto_completes = False
    message_id = a.send("b-1", b"hard")
    b.fails.add(message_id)
    b.auto_completes = True
    b.run(message_id)
    world.run()
    world.pass_time(FAILED_FOR_GOOD)
    assert a.moves(message_id)[-1] == ("b-1", "dead")
    return world, a, b, message_id


# --- what becomes one -------------------------------------------------------------------


def test_what_a_handler_gave_up_is_kept_with_its_content_where_it_was_accepted() -> None:
    world, a, b, _ = one_dead()
    (letter,) = a.commands.dead_letters()
    assert letter.envelope.payload == b"hard"
    assert (letter.recipient, letter.name, letter.reason) == ("b-1", None, "broken")
    assert 0 < letter.died_at <= world.at.wall * 1000
    assert b.dead() == []
    assert a.post.load().depths["dead_letters"] == 1
    for office in (a, b):
        audit(office)


def test_what_an_agent_sent_to_itself_and_could_not_handle_is_one() -> None:
    world, a, _ = pair()
    a.auto_completes = False
    message_id = a.send("a-1")
    a.fails.add(message_id)
    a.auto_completes = True
    a.run(message_id)
    world.run()
    world.pass_time(FAILED_FOR_GOOD)
    assert a.dead() == [(message_id, "a-1", "broken")]


def test_what_waits_for_one_who_leaves_for_good_is_one() -> None:
    world, a, b = pair()
    b.is_persistent = False
    world.block(a, b)
    message_id = a.send("b-1")
    world.kill(b, "left")
    assert a.dead() == [(message_id, "b-1", "left")]
    assert a.moves(message_id) == [("b-1", "dead")]
    audit(a)


def test_what_waits_for_one_who_left_and_comes_back_is_none() -> None:
    world, a, b = pair()
    world.block(a, b)
    a.send("b-1")
    world.kill(b, "left")
    assert a.dead() == []


def test_what_expired_is_none() -> None:
    world, a, b = pair()
    world.kill(b)
    message_id = a.send("b-1", ttl=10.0)
    world.pass_time(11.0)
    assert a.moves(message_id) == [("b-1", "expired")]
    assert a.dead() == []


def test_a_copy_of_a_broadcast_that_a_full_mailbox_refused_is_one_and_the_others_are_not() -> None:
    world, a, b = pair()
    c = world.add("c", persistent=True)
    world.link_all(a, b, c)
    b.auto_completes = False
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("b-1")
    message_id = a.broadcast(b"all")
    assert a.dead() == [(message_id, "b-1", "mailbox full")]
    (letter,) = a.commands.dead_letters()
    assert letter.envelope.payload == b"all"
    assert c.arrived() == [b"all"]


def test_a_name_whose_waiting_message_no_queue_takes_any_more_loses_nothing() -> None:
    world, a, b = pair()
    b.is_persistent = True
    world.kill(b, "left")
    message_id = a.send("b", b"by name", named=True)
    c = world.add("c", persistent=True)
    world.block(a, c)
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("c-1")
    c.name = "b"
    world.changed(c)
    assert [each[:2] for each in a.dead()] == [(message_id, "b")]
    assert a.moves(message_id)[-1] == ("b", "dead")
    audit(a)


# --- bounds -----------------------------------------------------------------------------


def test_when_they_are_too_many_the_oldest_go_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "DEAD_LETTERS_MAX", 3)
    world, a, b = pair()
    b.is_persistent = False
    world.block(a, b)
    ids = [a.send("b-1") for _ in range(5)]
    world.kill(b, "left")
    assert [each[0] for each in a.dead()] == ids[2:]
    assert a.post.counters["dead_letters_dropped"] == 2
    audit(a)


def test_when_they_are_too_large_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEAD_LETTERS_BYTES_MAX", 5000)
    world, a, b = pair()
    b.is_persistent = False
    world.block(a, b)
    ids = [a.send("b-1", b"x" * 1000) for _ in range(6)]
    world.kill(b, "left")
    assert [each[0] for each in a.dead()] == ids[2:]
    audit(a)


def test_they_are_forgotten_after_thirty_days_whatever_the_wall_clock_says() -> None:
    world, a, _, message_id = one_dead()
    world.at = world.at._replace(wall=world.at.wall + 400 * 86_400_000)
    world.pass_time(timing.DEAD_LETTER_TTL - FAILED_FOR_GOOD - 100.0)
    assert [each[0] for each in a.dead()] == [message_id]
    world.pass_time(FAILED_FOR_GOOD + 100.0)
    assert a.dead() == []
    assert a.post.counters["dead_letters_forgotten"] == 1
    audit(a)


# --- again ------------------------------------------------------------------------------


def test_one_that_is_sent_again_is_queued_under_its_id_and_handled_once() -> None:
    world, a, b, message_id = one_dead()
    b.fails.clear()
    world.block(a, b)
    assert a.retry(message_id) == ("b-1",)
    (state,) = a.commands.message_state(message_id) or ()
    assert (state.instance_id, state.state, state.reason) == ("b-1", "queued", "")
    assert a.dead() == []
    world.unblock(a, b)
    world.link(a, b)
    assert b.runs == [(message_id, 1)]
    assert [state for _, state in a.moves(message_id)] == [
        "stored", "dead", "queued", "stored", "done"
    ]  # fmt: skip
    assert a.retry(message_id) == ()
    for office in (a, b):
        audit(office)


def test_one_that_dies_again_is_one_again() -> None:
    world, a, b, message_id = one_dead()
    a.retry(message_id)
    world.pass_time(FAILED_FOR_GOOD)
    assert a.dead() == [(message_id, "b-1", "broken")]
    assert b.runs == []
    audit(a)


def test_one_that_was_sent_to_a_name_goes_to_who_has_it_now() -> None:
    world, a, b = pair()
    b.auto_completes = False
    message_id = a.send("b", b"hard", named=True)
    b.fails.add(message_id)
    b.auto_completes = True
    b.run(message_id)
    world.run()
    world.pass_time(FAILED_FOR_GOOD)
    b.name = "other"
    c = world.add("c", persistent=True)
    c.name = "b"
    world.changed(b, c)
    world.link(a, c)
    a.retry(message_id)
    assert c.runs == [(message_id, 1)]
    assert b.runs == []
    (state,) = a.commands.message_state(message_id) or ()
    assert (state.instance_id, state.state) == ("c-1", "done")


def test_one_whose_recipient_left_for_good_stays_and_says_so() -> None:
    world, a, b, message_id = one_dead()
    b.is_persistent = False
    world.kill(b, "left")
    with pytest.raises(UnknownTarget, match="'b-1' has left"):
        a.retry(message_id)
    assert [each[0] for each in a.dead()] == [message_id]


def test_one_for_whom_there_is_no_room_stays() -> None:
    world, a, b, message_id = one_dead()
    world.block(a, b)
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("b-1")
    with pytest.raises(QueueFull):
        a.retry(message_id)
    assert [each[0] for each in a.dead()] == [message_id]
    audit(a)


def test_single_copies_of_a_broadcast_are_sent_again_and_its_state_shows_all() -> None:
    world, a, b = pair()
    c, d = world.add("c", persistent=True), world.add("d", persistent=True)
    world.link_all(a, b, c, d)
    for full in (b, c):
        full.auto_completes = False
        for _ in range(limits.MAILBOX_MESSAGES_MAX):
            a.send(full.agent or "")
    message_id = a.broadcast(b"all")
    assert {each[1] for each in a.dead()} == {"b-1", "c-1"}
    b.auto_completes = True
    for arrived in list(b.attempts):
        b.run(arrived)
    world.run()
    b.runs.clear()
    assert a.retry(message_id, "b-1") == ("b-1",)
    world.pass_time(1.0)
    assert [each for each, _ in b.runs] == [message_id]
    assert [each[1] for each in a.dead()] == ["c-1"]
    states = {each.instance_id: each.state for each in a.commands.message_state(message_id) or ()}
    assert states == {"b-1": "done", "c-1": "dead", "d-1": "stored"}
    audit(a)


def test_one_that_nobody_wants_can_be_dropped() -> None:
    world, a, _, message_id = one_dead()
    assert a.commands.drop_dead_letters(world.at, message_id, "c-1") == 0
    assert a.commands.drop_dead_letters(world.at, message_id) == 1
    world.run()
    assert a.dead() == []
    assert a.commands.drop_dead_letters(world.at, message_id) == 0
    audit(a)


# --- crashes ----------------------------------------------------------------------------


def test_they_survive_their_node_and_so_does_their_state() -> None:
    world, a, b, message_id = one_dead(is_durable=True)
    before = a.commands.dead_letters()
    world.restart(a)
    world.link(a, b)
    assert a.commands.dead_letters() == before
    (state,) = a.commands.message_state(message_id) or ()
    assert (state.instance_id, state.state, state.reason) == ("b-1", "dead", "broken")
    b.fails.clear()
    a.retry(message_id)
    assert b.runs == [(message_id, 1)]
    assert not [place for place in a.disk if place[0] in ("outbox", "dead_letters")]


@pytest.mark.parametrize("is_saved", [False, True])
def test_one_is_in_the_outbox_or_dead_whenever_its_node_dies(is_saved: bool) -> None:
    world, a, b, message_id = one_dead(is_durable=True)
    world.saves_at_once = False
    world.block(a, b)
    a.retry(message_id)
    if is_saved:
        a.save()
    world.restart(a)
    world.saves_at_once = True
    world.run()
    (state,) = a.commands.message_state(message_id) or ()
    assert state.state == ("queued" if is_saved else "dead")
    assert bool(a.dead()) is not is_saved
    audit(a)


def test_one_that_is_sent_again_is_kept_where_the_store_has_no_room() -> None:
    world, a, b, message_id = one_dead(is_durable=True)
    b.fails.clear()
    world.saves_at_once = False
    a.retry(message_id)
    a.post.save_failed(world.at, "the disk is full")
    world.run()
    assert b.runs == []
    world.saves_at_once = True
    world.run()
    world.pass_time(1.0)
    assert b.runs == [(message_id, 1)]


def test_a_refused_copy_of_a_broadcast_does_not_die_twice_when_its_node_restarts() -> None:
    world, a, b = pair(is_durable=True)
    c = world.add("c", persistent=True)
    world.link(a, b)
    world.block(a, c)
    world.block(b, c)
    b.auto_completes = False
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("b-1")
    message_id = a.broadcast(b"all")
    assert a.dead() == [(message_id, "b-1", "mailbox full")]
    a.commands.drop_dead_letters(world.at, message_id)
    world.run()
    world.restart(a)
    world.link(a, b)
    world.pass_time(120.0)
    assert a.dead() == []
    world.unblock(a, c)
    world.link(a, c)
    world.pass_time(120.0)
    assert c.arrived() == [b"all"]


def test_each_death_of_a_broadcast_s_copy_is_told_once_at_each_node() -> None:
    _, a, b = pair()
    a.call("register", "g")
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("g")
    message_id = a.broadcast(source="a-1")
    assert a.moves(message_id).count(("g", "dead")) == 1
    assert a.of(MessageDead) == [], "its MessageMoved is told as an event"
    b.auto_completes = False
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("b-1")
    message_id = a.broadcast()
    assert a.moves(message_id).count(("b-1", "dead")) == 1
    assert [each.message_id for each in b.of(MessageDead)] == [message_id]


def test_each_death_is_told_once() -> None:
    _, a, _, message_id = one_dead()
    deaths = [each for each in a.of(MessageMoved) if each.state == "dead"]
    assert [(each.message_id, each.reason) for each in deaths] == [(message_id, "broken")]
