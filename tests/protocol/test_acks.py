"""Acknowledgements that are ahead of their message, or of their home."""

from __future__ import annotations

from collections import Counter

import pytest

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.acks import ACK_RETRY, KeptAcks
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.types import Instant, Restored
from tests.protocol.offices import Office, World, audit


def three(*, is_durable: bool | None = None) -> tuple[World, Office, Office, Office]:
    """Three linked offices; ``is_durable`` None: as the run says."""
    world = World(is_durable=is_durable)
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    return world, a, b, c


def ids(office: Office) -> tuple[str, ...]:
    return tuple(envelope.message_id for envelope in office.read("g"))


def kept(office: Office) -> tuple[str, ...]:
    return office.post._desk._acks.of("g")


# --- the table ------------------------------------------------------------------------


def at(now: float) -> Instant:
    return Instant(now, round(now * 1000))


def in_memory() -> Ledger:
    return Ledger(Restored(), 0.0, is_durable=False)


def test_each_is_kept_for_an_hour_and_is_due_again_and_again() -> None:
    acks = KeptAcks(Counter(), in_memory())
    acks.keep(at(0), "g", ("1", "2"))
    acks.keep(at(10), "h", ("1",))
    assert acks.next_at == ACK_RETRY
    assert acks.due(at(ACK_RETRY - 1)) == ()
    assert acks.due(at(ACK_RETRY)) == ("g", "h")
    assert acks.has("g", "2")
    assert not acks.has("h", "2")
    assert acks.due(at(3600)) == ("h",)
    assert not acks.has("g", "2")
    assert acks.due(at(3610)) == ()
    assert (len(acks), acks.next_at) == (0, float("inf"))


def test_what_its_home_has_taken_is_forgotten() -> None:
    acks = KeptAcks(Counter(), in_memory())
    acks.keep(at(0), "g", ("1", "2", "3"))
    acks.forget("g", ("1", "3", "unknown"))
    acks.forget("nobody", ("1",))
    assert acks.of("g") == ("2",)
    acks.keep(at(0), "g", ("2",))
    assert len(acks) == 1


def test_of_too_many_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACKS_KEPT_MAX", 3)
    counters: Counter[str] = Counter()
    acks = KeptAcks(counters, in_memory())
    acks.keep(at(0), "g", ("1", "2"))
    acks.keep(at(1), "h", ("1", "2", "3"))
    assert (acks.of("g"), acks.of("h")) == ((), ("1", "2", "3"))
    assert counters["acks_full"] == 2


def test_what_no_message_is_called_is_not_kept() -> None:
    counters: Counter[str] = Counter()
    acks = KeptAcks(counters, in_memory())
    acks.keep(at(0), "g", ("x" * (limits.MESSAGE_ID_MAX + 1), "1"))
    assert acks.of("g") == ("1",)
    assert counters["acks_malformed"] == 1


# --- ahead of its message ---------------------------------------------------------------


def test_what_was_read_at_a_home_that_died_may_be_acknowledged_before_it_comes_to_the_next() -> (
    None
):
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    assert ids(a) == (message_id,)
    world.block(b, c)
    world.kill(a)
    b.call("heartbeat", "g")
    b.call("acknowledge", "g", (message_id,))
    assert b.status() == "ok"
    assert c.commands.message_state(message_id)[0].state == "stored"
    world.unblock(b, c)
    world.link(b, c)
    assert ids(b) == (), "it was acknowledged"
    assert c.moves(message_id)[-1] == ("g", "done")
    for office in (b, c):
        audit(office)


def test_an_acknowledgement_goes_where_its_guest_goes() -> None:
    world, a, b, c = three()
    d = world.add("d")
    world.link_all(a, b, c, d)
    a.call("register", "g")
    message_id = c.send("g")
    world.block(b, c)
    world.block(c, d)
    world.kill(a)
    b.call("heartbeat", "g")
    b.call("acknowledge", "g", (message_id,))
    world.lost = {wire.CallResult}
    d.call("heartbeat", "g")
    world.pass_time(1.1)
    world.lost.clear()
    assert d.post.guest("g") is not None, "b did not answer, and is outbid"
    world.unblock(c, d)
    world.link(c, d)
    assert ids(d) == ()
    assert c.moves(message_id)[-1] == ("g", "done")


def test_an_acknowledgement_of_nothing_harms_nobody() -> None:
    _, a, b, c = three()
    a.call("register", "g")
    b.call("acknowledge", "g", ("no such message",))
    assert b.status() == "ok"
    message_id = c.send("g")
    assert ids(b) == (message_id,)
    a.call("acknowledge", "a-1", ("no such message",))
    assert len(a.post._desk._acks) == 1, "an own agent is where its mail is"


# --- ahead of its home -------------------------------------------------------------------


def test_given_while_there_is_no_home_it_is_sent_on_as_soon_as_there_is_one() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    world.kill(a)
    b.call("acknowledge", "g", (message_id,))
    assert kept(b) == (message_id,)
    c.call("heartbeat", "g")
    assert ids(c) == (), "no time has passed"
    assert c.moves(message_id)[-1] == ("g", "done")
    assert kept(b) == ()


def test_given_to_a_home_that_is_mute_it_counts_where_it_was_given() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    first, second = c.send("g"), c.send("g")
    world.lost = {wire.Call}
    b.call("acknowledge", "g", (first,))
    world.pass_time(1.1)
    assert b.status() == "ok"
    world.lost.clear()
    assert set(ids(a)) == {first, second}, "its home does not know yet"
    assert ids(b) == (second,), "but who took it does not list it"
    assert ids(a) == (second,), "and told its home, which answers again"
    assert kept(b) == ()


def test_it_is_sent_on_when_there_is_a_way_to_its_home_again() -> None:
    world, a, b, c = three()
    a.call("register", "g")
    message_id = c.send("g")
    world.block(a, b)
    b.call("acknowledge", "g", (message_id,))
    world.pass_time(1.1)
    assert b.status() == "ok"
    assert kept(b) == (message_id,)
    world.unblock(a, b)
    world.pass_time(ACK_RETRY)
    assert kept(b) == ()
    assert ids(a) == ()
    assert c.moves(message_id)[-1] == ("g", "done")


def test_a_home_that_refuses_it_is_not_asked_all_the_time() -> None:
    world, a, b, _ = three()
    a.call("register", "g")
    world.lost = {wire.CallResult}
    b.call("acknowledge", "g", ("x",))
    number = b.said(wire.Call)[-1].call
    world.lost.clear()
    b.post.received(world.at, a.id, wire.CallResult(number, "full"))
    world.pass_time(ACK_RETRY - 0.1)
    assert len(b.said(wire.Call)) == 1


# --- crashes -----------------------------------------------------------------------------


def test_what_was_taken_for_a_home_that_is_away_survives_the_node_that_took_it() -> None:
    world, a, b, c = three(is_durable=True)
    a.call("register", "g")
    message_id = c.send("g")
    world.kill(a)
    b.call("acknowledge", "g", (message_id,))
    world.restart(b)
    world.link(b, c)
    assert kept(b) == (message_id,)
    audit(b)
    c.call("heartbeat", "g")
    world.pass_time(ACK_RETRY)
    assert ids(c) == ()
    assert kept(b) == ()
    assert not [place for place in b.disk if place[0] == "acks"]


def test_whoever_acknowledges_is_told_that_it_counts_only_once_that_is_on_disk() -> None:
    world, a, b, c = three(is_durable=True)
    a.call("register", "g")
    message_id = c.send("g")
    world.kill(a)
    world.saves_at_once = False
    assert b.call("acknowledge", "g", (message_id,)) is None
    b.save()
    assert b.status() == "ok"


def test_one_that_was_kept_by_an_earlier_process_is_kept_no_longer_than_an_hour() -> None:
    world, a, b, c = three(is_durable=True)
    a.call("register", "g")
    c.send("g")
    world.kill(a)
    b.call("acknowledge", "g", ("1",))
    world.pass_time(3000.0)
    world.restart(b)
    world.pass_time(590.0)
    assert kept(b) == ("1",)
    world.pass_time(20.0)
    assert kept(b) == ()
    audit(b)
