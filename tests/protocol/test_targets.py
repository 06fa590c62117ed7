from __future__ import annotations

import pytest

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import SendRefused
from tests.protocol.offices import World


def test_an_unknown_target_is_waited_for_a_second_and_then_refused_with_near_names() -> None:
    world = World()
    a = world.add("a")
    world.add("worker")
    message_id = a.send("workre-1")
    assert a.commands.message_state(message_id) == ()
    world.pass_time(timing.UNKNOWN_TARGET_WAIT - 0.1)
    assert a.of(SendRefused) == []
    world.pass_time(0.2)
    (refused,) = a.of(SendRefused)
    assert (refused.message_id, refused.error) == (message_id, "unknown")
    assert refused.detail.split("\n")[0] == "worker-1"
    assert a.commands.message_state(message_id) is None


def test_a_target_that_appears_within_the_second_gets_the_message() -> None:
    world = World()
    a = world.add("a")
    message_id = a.send("b", b"soon", named=True)
    world.pass_time(0.5)
    b = world.add("b")
    assert b.arrived() == [b"soon"]
    assert a.moves(message_id)[0] == ("b-1", "queued")
    world.pass_time(5.0)
    assert a.of(SendRefused) == []


def test_before_this_node_has_joined_nobody_is_unknown() -> None:
    world = World()
    a = world.add("a")
    life, a.life = a.life, None
    message_id = a.send("b-1", b"early")
    world.pass_time(7.0)
    assert a.commands.message_state(message_id) == ()
    a.life = life
    b = world.add("b")
    assert b.arrived() == [b"early"]


def test_a_name_of_several_is_refused_naming_their_ids() -> None:
    world = World()
    a, one, other = world.add("a"), world.add("one"), world.add("other")
    one.name = other.name = "worker"
    a.send("worker", named=True)
    (refused,) = a.of(SendRefused)
    assert refused.error == "ambiguous"
    assert refused.detail.split("\n") == ["one-1", "other-1"]


def test_a_name_that_became_ambiguous_while_it_was_waited_for_goes_to_the_oldest() -> None:
    world = World()
    a, one, other = world.add("a"), world.add("one"), world.add("other")
    a.send("worker", b"job", named=True)
    one.name = other.name = "worker"
    world.changed(one, other)
    assert (one.arrived(), other.arrived()) == ([b"job"], [])


def test_a_name_means_nothing_where_only_an_id_is_meant() -> None:
    world = World()
    a = world.add("a")
    world.add("worker")
    a.send("worker")
    world.pass_time(2.0)
    assert [refused.error for refused in a.of(SendRefused)] == ["unknown"]


def test_a_name_whose_holder_failed_waits_as_long_as_the_message_lives() -> None:
    world = World()
    a, b = world.add("a"), world.add("worker")
    world.kill(b)
    message_id = a.send("worker", b"job", named=True, ttl=100.0)
    world.pass_time(50.0)
    assert a.commands.message_state(message_id)[0].state == "queued"
    world.pass_time(51.0)
    assert a.commands.message_state(message_id)[0].state == "expired"
    assert a.moves(message_id) == [("worker", "expired")]


def test_a_request_to_a_name_whose_holder_failed_ends_at_once() -> None:
    world = World()
    a, b = world.add("a"), world.add("worker")
    world.kill(b)
    ended = a.ended(a.request("worker", named=True))
    assert ended is not None
    assert ended.error == "unreachable"
    assert "it has failed" in ended.detail


@pytest.mark.parametrize("named", [False, True])
def test_a_new_message_to_one_who_left_for_good_is_refused_at_once(named: bool) -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.kill(b, "left")
    a.send("b-1", named=named)
    assert [refused.error for refused in a.of(SendRefused)] == ["left"]


def test_a_new_message_to_a_guest_that_deregistered_is_refused_at_once() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    b.call("register", "g")
    b.call("deregister", "g")
    a.send("g", named=True)
    assert [refused.error for refused in a.of(SendRefused)] == ["left"]


def test_an_id_that_was_also_its_owners_name_is_waited_for_as_a_name() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    b.name = "b-1"
    world.kill(b, "left")
    message_id = a.send("b-1", b"later", named=True)
    assert a.of(SendRefused) == []
    c = world.add("c")
    c.name = "b-1"
    world.changed(c)
    assert c.arrived() == [b"later"]
    assert a.moves(message_id)[-1] == ("c-1", "done")


def test_what_waits_for_unknown_targets_is_bounded() -> None:
    world = World()
    a = world.add("a")
    for number in range(limits.WAITING_TARGETS_MAX):
        a.send(f"nobody{number}")
    with pytest.raises(QueueFull):
        a.send("one too many")
    world.pass_time(2.0)
    assert len(a.of(SendRefused)) == limits.WAITING_TARGETS_MAX
    a.send("now there is room")
