"""Registry calls and guests' messages, at the home and through any other node."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import GuestEntry, Instant, MessageMoved, RequestArrived, State
from tests.protocol.offices import Office, World, audit


def three() -> tuple[World, Office, Office, Office]:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    return world, a, b, c


def entry(office: Office, instance_id: str = "g") -> GuestEntry:
    return office.view.entries[instance_id]


def ids(office: Office, instance_id: str = "g") -> tuple[str, ...]:
    return tuple(envelope.message_id for envelope in office.read(instance_id))


def test_a_guest_registered_at_one_is_messaged_through_another_and_reads_through_a_third() -> None:
    _, a, b, c = three()
    a.call("register", "g")
    assert a.status() == "ok"
    assert entry(c).home == a.id
    message_id = c.send("g", b"hello")
    assert c.moves(message_id) == [("g", "stored")]
    (read,) = b.read("g")
    assert (read.payload, read.message_id, read.source) == (b"hello", message_id, "c-1")
    assert b.call_ended().vias == (c.id,)
    assert ids(b) == (message_id,), "reading removes nothing"
    b.call("acknowledge", "g", (message_id,))
    assert b.status() == "ok"
    assert c.moves(message_id)[-1] == ("g", "done")
    assert ids(a) == ()


def test_only_the_recipient_named_can_acknowledge_its_message() -> None:
    _, a, b, _ = three()
    a.call("register", "g")
    a.call("register", "h")
    message_id = b.send("g")
    a.call("acknowledge", "h", (message_id,))
    assert a.status() == "ok"
    assert ids(a) == (message_id,)


def test_a_message_that_two_nodes_accepted_under_one_id_is_one_message() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    for office in (b, c):
        office.commands.send(
            world.at, source="s", target="g", named=False, type="Notification", payload=b"x",
            ttl=60.0, correlation_id=None, message_id="its-own",
        )  # fmt: skip
        world.run()
    assert ids(a) == ("its-own",)
    b.call("acknowledge", "g", ("its-own",))
    assert ids(a) == ()
    assert b.moves("its-own")[-1] == c.moves("its-own")[-1] == ("g", "done")
    for office in (a, b, c):
        audit(office)


def test_a_message_from_its_own_home_is_queued_until_acknowledged() -> None:
    _, a, _, _ = three()
    a.call("register", "g")
    message_id = a.send("g")
    assert a.moves(message_id) == []
    assert a.commands.message_state(message_id)[0].state == "queued"
    a.call("acknowledge", "g", (message_id,))
    assert a.moves(message_id) == [("g", "done")]


def test_a_silent_guest_fails_its_mail_waits_and_a_heartbeat_revives_it() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    first = c.send("g", b"1")
    world.pass_time(timing.GUEST_TIMEOUT + 1.1)
    assert entry(b).state is State.FAILED
    second = c.send("g", b"2")
    assert c.commands.message_state(second)[0].state == "queued"
    b.call("heartbeat", "g")
    assert b.status() == "ok"
    assert entry(c).state is State.ALIVE
    assert entry(c).home == a.id
    assert ids(b) == (first, second)


def test_after_an_hour_of_silence_a_heartbeat_is_unknown() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    world.pass_time(timing.GUEST_TIMEOUT + timing.GUEST_REVIVAL + 2)
    b.call("heartbeat", "g")
    assert b.status() == "unknown"
    b.call("register", "g")
    assert b.status() == "ok"
    assert (entry(b).home, entry(b).term) == (a.id, 1)


def test_a_heartbeat_of_one_who_is_unknown_is_unknown() -> None:
    _, a, _, _ = three()
    a.call("heartbeat", "nobody")
    assert a.status() == "unknown"
    a.call("deregister", "nobody")
    assert a.status() == "unknown"
    a.call("read", "nobody", None)
    assert (a.status(), a.call_ended().messages) == ("ok", ())
    a.call("acknowledge", "nobody", ("x",))
    assert a.status() == "ok"


def test_a_registration_through_another_node_refreshes_at_the_home() -> None:
    _, a, b, _ = three()
    a.call("register", "g")
    before = entry(a)
    b.call("register", "g", "10.0.0.9", 5, ("new",), ())
    assert b.status() == "ok"
    after = entry(b)
    assert (after.home, after.term, after.port) == (a.id, 1, 5)
    assert (after.created_at, after.life) == (before.created_at, before.life)


@pytest.mark.parametrize("through", ["a", "b"])
def test_the_id_of_a_live_nodes_own_agent_is_refused(through: str) -> None:
    world, *_ = three()
    office = world.offices[through]
    office.call("register", "a-1")
    assert office.status() == "conflict"
    office.call("deregister", "a-1")
    assert office.status() == "forbidden"
    office.call("heartbeat", "a-1")
    assert office.status() == "ok"


@pytest.mark.parametrize("state", ["failed", "left"])
def test_a_guest_whose_home_is_gone_is_adopted_where_its_heartbeat_arrives(state: str) -> None:
    world, a, b, c = three()
    a.call("register", "g")
    before = entry(a)
    message_id = c.send("g", b"kept by its sender")
    world.kill(a, state)
    b.call("heartbeat", "g", "healthy", b"m")
    assert b.status() == "ok"
    after = entry(c)
    assert (after.home, after.term) == (b.id, 2)
    assert (after.created_at, after.life) == (before.created_at, before.life)
    assert ids(b) == (message_id,)
    guest = b.post.guest("g")
    assert guest is not None
    assert (guest.status, guest.metrics) == ("healthy", b"m")


def test_a_guest_of_a_home_that_restarted_is_adopted_too() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    world.restart(a, wiped=True)
    a.call("heartbeat", "g")
    assert a.status() == "ok"
    assert (entry(b).home, entry(b).home_life, entry(b).term) == (a.id, a.life, 2)
    assert ids(b) == (message_id,)


def test_a_home_that_does_not_answer_for_a_second_is_outbid() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    world.lost = {wire.CallResult}
    assert b.call("heartbeat", "g") is None
    world.pass_time(timing.FORWARD_TIMEOUT - 0.1)
    assert b.status() is None
    world.pass_time(0.2)
    assert b.status() == "ok"
    assert (entry(a).home, entry(a).term) == (b.id, 2)
    assert a.post.guest("g") is None


def test_a_read_or_deregistration_whose_home_does_not_answer_is_unavailable() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    world.lost = {wire.CallResult, wire.Call}
    for operation in ("read", "deregister"):
        b.call(operation, "g", *((None,) if operation == "read" else ()))
        world.pass_time(1.1)
        assert b.status() == "unavailable"
    assert entry(b).home == a.id


def test_a_call_waits_for_a_link_that_comes_in_time() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    a.call("register", "g")
    world.links_on_demand = False
    assert b.call("heartbeat", "g") is None
    world.pass_time(0.5)
    world.link(a, b)
    assert b.status() == "ok"
    assert entry(b).term == 1


def test_an_acknowledgement_its_home_did_not_take_is_kept_and_sent_again() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    world.block(a, b)
    assert b.call("acknowledge", "g", (message_id,)) is None
    world.pass_time(1.1)
    assert b.status() == "ok"
    assert ids(a) == (message_id,)
    world.unblock(a, b)
    world.pass_time(10.0)
    assert ids(a) == ()
    assert c.moves(message_id)[-1] == ("g", "done")
    assert len(b.post._desk._acks) == 0


def test_an_acknowledgement_given_while_there_was_no_home_counts_at_the_next() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    world.kill(a)
    b.call("acknowledge", "g", (message_id,))
    assert b.status() == "ok"
    c.call("heartbeat", "g")
    world.pass_time(10.0)
    assert ids(c) == ()
    assert c.moves(message_id)[-1] == ("g", "done")


def test_deregistering_ends_what_was_not_read_and_a_new_registration_is_a_new_life() -> None:
    _, a, b, c = three()
    a.call("register", "g")
    before = entry(a)
    message_id = c.send("g")
    b.call("deregister", "g")
    assert b.status() == "ok"
    assert entry(c).state is State.LEFT
    assert c.moves(message_id)[-1] == ("g", "dead")
    b.call("heartbeat", "g")
    assert b.status() == "unknown"
    c.call("register", "g")
    assert (entry(a).home, entry(a).term) == (c.id, 2)
    assert entry(a).life > before.life
    assert ids(c) == ()


def test_an_orphan_can_be_deregistered_anywhere() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    world.kill(a)
    b.call("deregister", "g")
    assert b.status() == "ok"
    assert entry(c).state is State.LEFT


def test_a_home_outbid_after_a_split_hands_over_what_it_held_and_nothing_twice() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    read, unread = c.send("g", b"read"), c.send("g", b"unread")
    world.lost = {wire.Done}
    a.call("acknowledge", "g", (read,))  # the sender does not hear of it …
    world.lost.clear()
    world.split(a, b)
    world.split(a, c)
    b.call("heartbeat", "g")
    assert ids(b) == (read, unread), "… and its copies go to the new home"
    world.heal(a, b)
    assert entry(a).home == b.id
    assert a.post.guest("g") is None
    assert ids(b) == (unread,), "the former home knew that it was read"
    world.heal(a, c)
    b.call("acknowledge", "g", (unread,))
    assert {c.commands.message_state(each)[0].state for each in (read, unread)} == {"done"}
    assert a.post._outbox._by_id == {}, "the former home keeps nothing"


def test_what_only_the_former_home_holds_reaches_the_new_one() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    mine = c.send("g", b"its sender dies")
    cast = c.broadcast(b"to all")
    query = c.commands.request(
        world.at, source="c-1", target="g", named=False, type="Query", payload=b"?", timeout=60.0
    )
    world.run()
    assert len(ids(a)) == 3
    assert query
    world.kill(c)
    world.split(a, b)
    b.call("heartbeat", "g")
    assert ids(b) == ()
    world.heal(a, b)
    assert set(ids(b)) == {mine, cast}
    vias = b.call("read", "g", None).vias
    assert vias == (c.id, c.id), "the node that accepted them, not the one that handed over"
    b.call("acknowledge", "g", (mine, cast))
    assert a.post._outbox._by_id == {}


def test_a_guest_that_returns_to_its_former_home_loses_and_doubles_nothing() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    first = c.send("g", b"1")
    world.split(a, b)
    world.split(b, c)
    b.call("heartbeat", "g")
    second = b.send("g", b"2")
    world.heal(a, b)
    world.heal(b, c)
    assert set(ids(b)) == {first, second}
    world.kill(b)
    a.call("heartbeat", "g")
    assert entry(c).home == a.id
    assert ids(a) == (first,), "the second was accepted by the node that died"
    a.call("acknowledge", "g", (first,))
    assert c.moves(first)[-1] == ("g", "done")


def test_an_agent_outbids_a_guest_of_its_id() -> None:
    world, a, _, c = three()
    a.call("register", "d-1")
    message_id = c.send("d-1", b"for whoever has it")
    d = world.add("d")
    assert a.post.guest("d-1") is None
    assert d.arrived() == [b"for whoever has it"]
    assert c.moves(message_id)[-1] == ("d-1", "done")


def test_a_new_life_of_the_home_announces_its_guests_again() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    a.life = world.next_life()  # a re-stamp: memory stays
    world.changed(a)
    assert entry(b).home_life == a.life


def test_nothing_can_be_registered_before_this_node_has_joined() -> None:
    world = World()
    a = world.add("a")
    a.life = None
    a.call("register", "g")
    assert a.status() == "unavailable"


def test_guests_of_a_home_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GUESTS_MAX", 3)
    world = World()
    a = world.add("a")
    for number in range(3):
        a.call("register", f"g{number}")
        assert a.status() == "ok"
    a.call("register", "g3")
    assert a.status() == "full"
    a.call("register", "g0")
    assert a.status() == "ok"


# --- time ---------------------------------------------------------------------------


def test_what_a_guest_does_not_finish_in_a_day_is_over() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    kept = [office.send("g", ttl=timing.MESSAGE_TTL) for office in (a, b)]
    world.pass_time(timing.MESSAGE_TTL - 1.0)
    a.call("register", "g")
    assert set(ids(a)) == set(kept)
    world.pass_time(2.0)
    assert ids(a) == ()
    assert a.moves(kept[0])[-1] == b.moves(kept[1])[-1] == ("g", "expired")


@pytest.mark.parametrize("jump", [-10 * 365 * 24 * 3600 * 1000, 10 * 365 * 24 * 3600 * 1000])
def test_a_step_of_the_wall_clock_fails_nobody_and_ends_nothing(jump: int) -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g", ttl=60.0)
    world.at = Instant(world.at.now, world.at.wall + jump)
    world.pass_time(timing.GUEST_TIMEOUT - 1.0)
    assert entry(b).state is State.ALIVE
    assert ids(b) == (message_id,)
    world.pass_time(2.1)
    assert entry(b).state is State.FAILED, "by the time that went by"


# --- pings --------------------------------------------------------------------------


def ping(office: Office, other: Office) -> None:
    office.called = office.commands.ping(office.world.at, other.id)
    office.world.run()


def test_a_ping_is_answered_by_the_node_and_takes_as_long_as_it_takes() -> None:
    world, a, b, _ = three()
    ping(a, b)
    assert (a.status(), a.call_ended().rtt) == ("ok", 0.0)
    world.lost = {wire.CallResult}
    ping(a, b)
    world.lost.clear()
    world.pass_time(0.25)
    world.unlink(a, b)
    world.link(a, b)
    assert a.call_ended().rtt == 0.0, "from when it was said last"
    ping(a, a)
    assert (a.status(), a.call_ended().rtt) == ("ok", 0.0)


def test_a_ping_of_a_node_that_is_gone_or_silent_is_unavailable() -> None:
    world, a, b, c = three()
    world.lost = {wire.CallResult}
    ping(a, b)
    world.pass_time(timing.FORWARD_TIMEOUT - 0.1)
    assert a.status() is None
    world.pass_time(0.2)
    assert (a.status(), a.call_ended().rtt) == ("unavailable", None)
    ping(a, c)
    world.kill(c)
    assert a.status() == "unavailable"
    ping(a, c)
    assert a.status() == "unavailable"


# --- requests to guests -----------------------------------------------------------


@pytest.mark.parametrize("through", ["a", "b", "c"])
@pytest.mark.parametrize("source", ["c-1", "a-1", "anybody at all", "g2"])
def test_a_guests_response_through_any_node_reaches_the_asking_nodes_request(
    through: str, source: str
) -> None:
    world, a, b, c = three()
    a.call("register", "g")
    b.call("register", "g2")
    call = c.request("g", b"?", source=source)
    (query,) = a.read("g")
    assert (query.payload, query.source) == (b"?", source)
    responder = world.offices[through]
    message_id = responder.send(
        source, b"42", type="Response", source="g", correlation_id=query.message_id
    )
    end = c.ended(call)
    assert end is not None
    assert end.answer is not None
    assert (end.answer.payload, end.answer.source) == (b"42", "g")
    assert responder.commands.message_state(message_id)[0].state == "done"
    world.pass_time(2.0)
    for office in (a, b, c):
        assert office.arrived() == []
    assert ids(b, "g2") == ()


def test_a_guests_late_response_is_a_message_if_its_target_is_known() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    call = c.request("g", timeout=2.0)
    (query,) = a.read("g")
    world.pass_time(2.1)
    assert c.ended(call).error == "timeout"
    assert ids(a) == (), "nobody waits for the query any more"
    message_id = b.send(
        "c-1", b"late", type="Response", source="g", correlation_id=query.message_id
    )
    assert c.arrived() == [b"late"]
    assert b.moves(message_id)[0] == ("c-1", "queued")


def test_a_cancelled_query_disappears_from_the_guests_mailbox() -> None:
    world, a, _, c = three()
    a.call("register", "g")
    call = c.request("g")
    assert len(ids(a)) == 1
    c.commands.cancel(world.at, call)
    world.run()
    assert ids(a) == ()


def test_a_request_to_a_guest_ends_at_once_when_its_home_dies_or_it_moves() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    call = c.request("g")
    world.kill(a)
    assert c.ended(call).error == "unreachable"
    call = c.request("g")
    assert c.ended(call).error == "unreachable", "it has no home now"
    b.call("heartbeat", "g")
    call = c.request("g")
    assert c.ended(call) is None


def test_a_request_to_a_guest_whose_mailbox_is_full_is_refused() -> None:
    _, a, _, c = three()
    a.call("register", "g")
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send("g")
    call = c.request("g")
    end = c.ended(call)
    assert end is not None
    assert (end.error, end.detail) == ("refused", "its mailbox is full")


def test_a_response_whose_home_is_mute_becomes_a_message() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    c.request("g")
    (query,) = a.read("g")
    world.lost = {wire.CallResult}
    message_id = b.send("c-1", b"!", type="Response", source="g", correlation_id=query.message_id)
    assert b.commands.message_state(message_id) == ()
    world.lost.clear()
    world.pass_time(1.1)
    assert MessageMoved(message_id, "c-1", "queued") in b.effects
    assert c.of(RequestArrived) == []


def test_a_read_says_that_the_home_is_gone_until_a_heartbeat_brings_the_guest_to_another() -> None:
    """Its mail may lie with senders, or on the disk of the home: an empty list would lie."""
    world, a, b, c = three()
    a.call("register", "g")
    world.kill(a)
    message_id = c.send("g")
    b.call("read", "g", None)
    assert b.status() == "unavailable"
    b.call("heartbeat", "g")
    assert ids(b) == (message_id,)


def test_a_read_that_waited_in_vain_for_a_home_says_so() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    world.kill(a)
    b.call("read", "g", None, 2.0)
    assert b.call_ended() is None
    world.pass_time(2.0)
    assert b.status() == "unavailable"
