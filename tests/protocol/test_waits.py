"""Reads that wait for mail: the table alone, and readers at any node while guests roam."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import CallEnded, Instant
from p2pmesh.protocol.waits import Reader, Wait, Waits
from tests.protocol.offices import Office, World

ME, PEER = b"m" * 32, b"p" * 32
WAIT = 30.0


# --- the table ----------------------------------------------------------------------


def wait(call: int, instance_id: str = "g", node: bytes = ME, until: float = 10.0) -> Wait:
    return Wait(instance_id, Reader(node, call), 0, until)


def at(now: float) -> Instant:
    return Instant(now, 0)


def test_mail_takes_out_all_who_wait_for_its_instance_and_nobody_else() -> None:
    waits = Waits(Counter())
    for each in (wait(1), wait(2, node=PEER), wait(3, "h")):
        assert waits.add(each)
    waits.mail_came("nobody's")
    assert waits.take_due() == []
    waits.mail_came("g")
    waits.mail_came("g")
    assert waits.take_due() == [wait(1), wait(2, node=PEER)]
    assert waits.take_due() == []
    assert len(waits) == 1


def test_a_wait_ends_when_its_time_is_over_and_not_before() -> None:
    waits = Waits(Counter())
    waits.add(wait(1, until=5.0))
    waits.add(wait(2, until=7.0))
    assert waits.next_at == 5.0
    assert waits.tick(at(4.9)) == []
    assert waits.tick(at(5.0)) == [wait(1, until=5.0)]
    assert waits.next_at == 7.0


def test_the_same_call_again_waits_once() -> None:
    waits = Waits(Counter())
    waits.add(wait(1))
    waits.add(wait(1, until=3.0))
    assert len(waits) == 1
    assert waits.drop(Reader(ME, 1)) == wait(1, until=3.0)
    assert waits.drop(Reader(ME, 1)) is None
    waits.mail_came("g")
    assert waits.take_due() == []


def test_readers_of_nodes_that_are_gone_are_forgotten() -> None:
    waits = Waits(Counter())
    waits.add(wait(1))
    waits.add(wait(1, node=PEER))
    waits.forget([PEER])
    assert waits.take("g") == [wait(1)]


def test_waits_are_bounded_in_all_and_for_each_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITS_MAX", 3)
    monkeypatch.setattr(limits, "WAITS_PER_INSTANCE_MAX", 2)
    counters: Counter[str] = Counter()
    waits = Waits(counters)
    assert [waits.add(wait(n)) for n in range(3)] == [True, True, False]
    assert [waits.add(wait(n, "h")) for n in range(3, 5)] == [True, False]
    assert waits.add(wait(0)), "who waits already may say so again"
    assert counters["waits_full"] == 2


# --- readers and homes --------------------------------------------------------------


def three() -> tuple[World, Office, Office, Office]:
    """Three nodes; the guest g is registered at a."""
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    a.call("register", "g")
    return world, a, b, c


def poll(office: Office, instance_id: str = "g", seconds: float = WAIT) -> int:
    """A read that waits; the number of its call."""
    office.call("read", instance_id, None, seconds)
    return office.called


def end(office: Office, call: int) -> CallEnded | None:
    return next((each for each in office.of(CallEnded) if each.call == call), None)


def got(office: Office, call: int) -> tuple[str, ...] | None:
    """What a read brought; None: it still waits."""
    ended = end(office, call)
    if ended is None:
        return None
    assert ended.status == "ok"
    return tuple(envelope.message_id for envelope in ended.messages)


def waiting(*offices: Office) -> int:
    return sum(
        len(office.post._desk._waits) + len(office.post._desk._forwarding) for office in offices
    )


@pytest.mark.parametrize("through", ["a", "b"])
def test_a_wait_ends_as_soon_as_mail_comes(through: str) -> None:
    world, a, b, c = three()
    reader = world.offices[through]
    call = poll(reader)
    world.pass_time(timing.GUEST_TIMEOUT - 1)
    assert got(reader, call) is None
    message_id = c.send("g")
    assert got(reader, call) == (message_id,)
    assert waiting(a, b, c) == 0


@pytest.mark.parametrize("through", ["a", "b"])
def test_a_wait_for_nothing_ends_with_nothing_at_its_end(through: str) -> None:
    world, a, b, c = three()
    reader = world.offices[through]
    call = poll(reader)
    world.pass_time(WAIT - 0.01)
    assert got(reader, call) is None
    world.pass_time(0.02)
    assert got(reader, call) == ()
    assert waiting(a, b, c) == 0
    assert reader.post.counters["call_unanswered"] == 0


@pytest.mark.parametrize("through", ["a", "b"])
def test_what_lies_there_already_is_read_at_once(through: str) -> None:
    world, a, _, c = three()
    message_id = c.send("g")
    reader = world.offices[through]
    assert got(reader, poll(reader)) == (message_id,)
    assert a.post._desk._waits.take("g") == []


def test_what_comes_together_is_told_together_and_within_the_limit() -> None:
    world, a, b, c = three()
    a.call("read", "g", 2, WAIT)
    limited = a.called
    free = poll(b)
    sent = [
        c.commands.send(
            world.at, source="c-1", target="g", named=False, type="Query", payload=b"x",
            ttl=60.0, correlation_id=None,
        )
        for _ in range(3)
    ]  # fmt: skip
    world.run()
    assert got(a, limited) in (tuple(sent[:1]), tuple(sent[:2]))
    assert set(got(b, free) or ()) <= set(sent)
    assert got(b, free)


def test_all_who_wait_for_a_guest_get_what_comes() -> None:
    _, a, b, c = three()
    calls = [(office, poll(office)) for office in (a, a, b, c)]
    message_id = c.broadcast()
    assert [got(office, call) for office, call in calls] == [(message_id,)] * 4


def test_a_home_that_does_not_answer_in_a_second_is_not_waited_for() -> None:
    world, _, b, _ = three()
    world.lost = {wire.CallResult}
    call = poll(b)
    world.pass_time(timing.FORWARD_TIMEOUT - 0.1)
    assert end(b, call) is None
    world.pass_time(0.2)
    ended = end(b, call)
    assert ended is not None
    assert ended.status == "unavailable"
    assert waiting(b) == 0


def test_a_link_that_ends_while_somebody_waits_is_made_again_and_nothing_is_missed() -> None:
    world, a, b, c = three()
    call = poll(b)
    world.block(a, b)
    message_id = c.send("g")
    assert got(b, call) is None
    world.unblock(a, b)
    world.pass_time(2 * timing.LINK_ASKED_AGAIN)
    assert got(b, call) == (message_id,)


def test_an_answer_that_was_lost_with_its_link_is_told_again() -> None:
    world, a, b, c = three()
    call = poll(b)
    world.lost = {wire.CallResult}
    message_id = c.send("g")
    world.lost.clear()
    assert got(b, call) is None
    world.unlink(a, b)
    world.pass_time(0.1)
    assert got(b, call) == (message_id,)


@pytest.mark.parametrize("state", ["failed", "left"])
@pytest.mark.parametrize("adopter", ["b", "c"])
def test_a_wait_outlives_the_home_and_is_told_by_the_next(state: str, adopter: str) -> None:
    world, a, b, c = three()
    call = poll(b)
    world.kill(a, state)
    message_id = c.send("g")
    world.pass_time(1.0)
    assert got(b, call) is None, "nobody has its mail now"
    world.offices[adopter].call("heartbeat", "g")
    assert got(b, call) == (message_id,)


def test_a_wait_outlives_a_restart_of_the_home() -> None:
    world, a, b, c = three()
    call = poll(b)
    world.restart(a)
    world.link_all(a, b, c)
    assert got(b, call) is None
    c.call("heartbeat", "g")
    message_id = c.send("g")
    assert got(b, call) == (message_id,)


def test_waits_follow_a_guest_that_roams() -> None:
    world, a, b, c = three()
    calls = [(office, poll(office)) for office in (a, b, c)]
    for former, home in ((a, c), (c, a), (a, c), (c, a)):
        world.split(former, home)
        home.call("heartbeat", "g")
        world.heal(former, home)
    world.pass_time(1.0)
    assert [got(office, call) for office, call in calls] == [None] * 3
    message_id = b.send("g")
    assert [got(office, call) for office, call in calls] == [(message_id,)] * 3


def test_a_wait_follows_its_guest_though_the_former_home_is_out_of_reach() -> None:
    world, a, b, c = three()
    call = poll(b)
    world.block(a, b)
    world.split(a, c)
    c.call("heartbeat", "g")
    message_id = c.send("g")
    assert got(b, call) == (message_id,)


def test_a_home_that_was_outbid_says_so_before_the_reader_s_node_knows() -> None:
    world, a, b, c = three()
    call = poll(b)
    b.view.buried.add(c.id)  # what c announces does not reach b yet
    world.split(a, c)
    c.call("heartbeat", "g")
    world.heal(a, c)
    assert a.post.guest("g") is None
    world.pass_time(2.0)
    assert got(b, call) is None
    b.view.buried.discard(c.id)
    world.heal(b, c)
    message_id = a.send("g")
    assert got(b, call) == (message_id,)


def test_a_reader_may_wait_before_its_guest_is_registered() -> None:
    world, a, b, c = three()
    here, there = poll(b, "later"), poll(c, "later")
    world.pass_time(1.0)
    b.call("register", "later")
    message_id = a.send("later")
    assert got(b, here) == got(c, there) == (message_id,)


def test_a_wait_for_one_who_deregisters_goes_on_and_finds_it_elsewhere() -> None:
    world, a, b, c = three()
    calls = [(office, poll(office)) for office in (a, b)]
    c.call("deregister", "g")
    world.pass_time(1.0)
    assert [got(office, call) for office, call in calls] == [None, None]
    c.call("register", "g")
    message_id = c.send("g")
    assert [got(office, call) for office, call in calls] == [(message_id,)] * 2


def test_waiting_is_no_sign_of_life() -> None:
    """Only a heartbeat is: a guest whose reader hangs about while it is stuck fails."""
    world, a, b, c = three()
    call = poll(b, seconds=60.0)
    world.pass_time(timing.GUEST_TIMEOUT + timing.GUEST_SWEEP + 0.1)
    message_id = c.send("g")
    assert got(b, call) is None, "its mail waits at the sender"
    a.call("heartbeat", "g")
    assert got(b, call) == (message_id,)


def test_the_mail_of_another_nodes_agent_can_be_waited_for_too() -> None:
    _, a, b, c = three()
    a.auto_completes = False
    call = poll(b, "a-1")
    message_id = c.send("a-1")
    assert got(b, call) == (message_id,)


@pytest.mark.parametrize("through", ["a", "b"])
def test_a_reader_that_goes_away_is_forgotten_everywhere(through: str) -> None:
    world, a, b, c = three()
    reader = world.offices[through]
    call = poll(reader)
    assert waiting(a, b) > 0
    reader.commands.give_up(world.at, call)
    world.run()
    assert waiting(a, b, c) == 0
    c.send("g")
    world.pass_time(2 * WAIT)
    assert end(reader, call) is None


def test_giving_up_is_for_reads_alone() -> None:
    world, a, b, _ = three()
    world.block(a, b)
    b.call("acknowledge", "g", ("x",))
    b.commands.give_up(world.at, b.called)
    b.commands.give_up(world.at, 12345)
    world.pass_time(1.1)
    assert b.status() == "ok"


def test_readers_of_a_node_that_dies_are_forgotten() -> None:
    world, a, b, _ = three()
    poll(b)
    world.kill(b)
    assert waiting(a) == 0


def test_a_reader_too_many_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITS_PER_INSTANCE_MAX", 1)
    _, a, b, c = three()
    first = poll(b)
    for office in (a, b):
        refused = end(office, poll(office))
        assert refused is not None
        assert refused.status == "busy"
    message_id = c.send("g")
    assert got(b, first) == (message_id,)
    assert b.read("g"), "who does not wait may read"


def test_a_node_that_leaves_ends_the_waits_of_its_readers() -> None:
    world, a, b, c = three()
    calls = [poll(b), poll(b, "nobody"), poll(b, "b-1")]
    b.post.begin_leave(world.at)
    world.run()
    assert [got(b, call) for call in calls] == [(), (), ()]
    assert got(b, poll(b, "nobody")) == ()
    elsewhere = poll(a)
    a.post.begin_leave(world.at)
    world.run()
    assert got(a, elsewhere) == ()
    assert waiting(b, c) == 0


def test_nobody_waits_longer_than_a_minute() -> None:
    world, a, b, _ = three()
    calls = [(office, poll(office, seconds=1e9)) for office in (a, b)]
    world.pass_time(timing.READ_WAIT_MAX + 0.1)
    assert [got(office, call) for office, call in calls] == [(), ()]
    for_ever = msgspec.msgpack.encode(wire.ReadBody(0, 2**62))
    a.post.received(world.at, b.id, wire.Call(7, "read", "g", for_ever))
    world.pass_time(timing.READ_WAIT_MAX + 0.1)
    assert waiting(a) == 0


def test_a_node_that_knows_no_waiting_is_answered_as_ever() -> None:
    world, a, _, c = three()
    body = wire.encode((0,))  # the one field that a read had
    a.post.received(world.at, c.id, wire.Call(7, "read", "g", body))
    world.run()
    (answer,) = a.said(wire.CallResult)
    assert answer.status == "ok"


# --- random lives ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_no_wait_goes_on_beside_mail_or_beyond_its_time(seed: int) -> None:
    rng = random.Random(f"waits {seed}")
    world = World()
    offices = [world.add(f"n{n}", persistent=True) for n in range(4)]
    world.link_all(*offices)
    offices[0].call("register", "g")
    begun: list[tuple[Office, int, float]] = []

    def cut() -> None:
        one, other = rng.sample(offices, 2)
        world.lost = {
            kind for kind in (wire.Call, wire.CallResult, wire.Post) if rng.random() < 0.3
        }
        rng.choice(offices).send("g")
        world.lost.clear()
        (world.block if rng.random() < 0.3 else world.unlink)(one, other)

    def split() -> None:
        one, other = rng.sample(offices, 2)
        world.split(one, other)

    def mend() -> None:
        for pair in list(world.blocked):
            one, other = (world.offices[name] for name in pair)
            world.heal(one, other)

    def begin() -> None:
        office = rng.choice(offices)
        begun.append((office, poll(office, seconds=rng.uniform(1, 60)), world.at.now))

    def acknowledge() -> None:
        office = rng.choice(offices)
        ended = office.call("read", "g", None)
        if ended is not None and ended.messages:
            ids = tuple(each.message_id for each in ended.messages)
            office.call("acknowledge", "g", ids)

    def life() -> None:
        rng.choice(offices).call(
            rng.choice(["heartbeat", "heartbeat", "register", "deregister"]), "g"
        )

    def restart() -> None:
        office = rng.choice(offices)
        begun[:] = [each for each in begun if each[0] is not office]
        world.restart(office)

    deeds = [begin, begin, begin, acknowledge, acknowledge, life, life, cut, split, mend, restart]
    for _ in range(60):
        rng.choice(deeds)()
        world.pass_time(rng.choice([0.0, 0.1, 1.2, 5.0]))
        for office, call, since in begun:
            assert end(office, call) or world.at.now - since <= 60.0 + timing.FORWARD_TIMEOUT
    mend()
    rng.choice(offices).call("register", "g")
    world.pass_time(5.0)
    last = rng.choice(offices)
    calls = [(office, poll(office)) for office in offices]
    last.send("g")
    world.pass_time(10.0)
    assert all(end(office, call) for office, call in calls)
    world.pass_time(61.0)
    assert all(end(office, call) for office, call, _ in begun)
    assert waiting(*offices) == 0
