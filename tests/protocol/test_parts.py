"""Streamed answers: every part once and in order, and none that nobody reads."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.parts import Incoming, Outgoing
from p2pmesh.protocol.types import (
    Envelope,
    PartArrived,
    PartWanted,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
)
from p2pmesh.testing import SimNetwork
from p2pmesh.testing.node import SimNode
from tests.protocol.offices import Office, World, audit, pair


class Stream:
    """One streamed request between two offices: its generator and its reader."""

    def __init__(
        self, world: World, asker: Office, home: Office, *, parts: int, size: int = 0,
        timeout: float = 30.0,
    ) -> None:  # fmt: skip
        self.world = world
        self.asker = asker
        self.home = home
        self.parts = [b"%d" % n + bytes(size) for n in range(1, parts + 1)]
        self.made = 0
        self.read: list[bytes] = []
        self.call = asker.commands.request(
            world.at, source="s", target=str(home.agent), named=False, type="Query",
            payload=b"?", timeout=timeout, streams=True,
        )  # fmt: skip
        world.run()

    @property
    def number(self) -> int:
        return self.home.of(RequestArrived)[-1].request

    @property
    def arrived(self) -> list[bytes]:
        return [part.payload for part in self.asker.of(PartArrived) if part.call == self.call]

    @property
    def end(self) -> RequestEnded | None:
        return self.asker.ended(self.call)

    def make(self, most: int = 10**6) -> None:
        """The generator goes on as far as it may."""
        if self.made:
            wanted = self.home.of(PartWanted)
            self.home.effects = [each for each in self.home.effects if each not in wanted]
            if not wanted:
                return
        for part in self.parts[self.made : self.made + most]:
            self.made += 1
            if not self.home.commands.respond_part(self.world.at, self.number, part):
                break
        self.world.run()
        if self.made == len(self.parts):
            self.home.commands.respond_end(self.world.at, self.number)
        self.world.run()

    def make_one(self) -> None:
        part = self.parts[self.made]
        self.made += 1
        assert self.home.commands.respond_part(self.world.at, self.number, part)
        self.world.run()

    def take(self, most: int = 10**6) -> None:
        """The reader reads what came."""
        for part in self.arrived[len(self.read) :][:most]:
            self.read.append(part)
            self.asker.commands.part_taken(self.world.at, self.call)
            self.world.run()

    def finish(self) -> None:
        for _ in range(10_000):
            before = (self.made, len(self.read), self.end)
            self.take()
            self.make()
            if before == (self.made, len(self.read), self.end):
                return
        raise AssertionError("it never ends")


def holds_nothing(*offices: Office) -> bool:
    return not any(
        len(office.post._answering) or office.post._answering.parts_bytes or
        office.post._answering._without_credit or len(office.post._asking)
        for office in offices
    )  # fmt: skip


# --- the whole way ------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 1, 3, limits.PARTS_AHEAD_MAX, 1000])
def test_every_part_comes_once_in_order_and_then_the_end(parts: int) -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=parts)
    assert b.of(RequestArrived)[0].streams
    stream.make()
    stream.finish()
    assert stream.read == stream.parts
    assert stream.end == RequestEnded(stream.call, None, b.id)
    assert holds_nothing(a, b) or parts == 0  # an end without parts is kept as any answer
    audit(a)
    audit(b)


def test_one_s_own_agent_streams_without_a_wire() -> None:
    world = World()
    a = world.add("a")
    stream = Stream(world, a, a, parts=200)
    stream.make()
    stream.finish()
    assert (stream.read, a.sent) == (stream.parts, [])
    assert stream.end is not None


def test_a_whole_answer_to_who_would_take_parts_comes_as_the_end() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=0)
    b.commands.respond(world.at, stream.number, b"whole")
    world.run()
    assert stream.arrived == []
    assert stream.end is not None
    assert stream.end.answer is not None
    assert stream.end.answer.payload == b"whole"


def test_a_guest_s_response_is_the_whole_answer() -> None:
    world, a, b = pair()
    b.call("register", "g")
    call = a.commands.request(
        world.at, source="a-1", target="g", named=False, type="Query", payload=b"?",
        timeout=30.0, streams=True,
    )  # fmt: skip
    world.run()
    (query,) = b.read("g")
    b.send("a-1", b"!", source="g", type="Response", correlation_id=query.message_id)
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None
    assert end.answer.payload == b"!"


def test_who_asks_for_a_whole_answer_is_not_offered_parts() -> None:
    world, a, b = pair()
    a.request("b-1")
    (arrived,) = b.of(RequestArrived)
    assert not arrived.streams
    assert not b.commands.respond_part(world.at, arrived.request, b"part")
    world.run()
    assert b.of(RequestCancelled) == [RequestCancelled(arrived.request)]


def test_an_error_in_the_middle_comes_behind_the_parts() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=9)
    for _ in range(3):
        stream.make_one()
    b.commands.respond(world.at, stream.number, None, "failed", "ValueError: no")
    world.run()
    assert stream.arrived == stream.parts[:3]
    assert stream.end is not None
    assert (stream.end.error, stream.end.detail) == ("failed", "ValueError: no")


# --- the reader's pace --------------------------------------------------------------


def test_a_reader_that_does_not_read_stops_the_generator_at_the_window() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=1000)
    stream.make()
    assert stream.made == len(stream.arrived) == limits.PARTS_AHEAD_MAX
    assert b.post.counters["parts_held_back"] == 1
    stream.take(limits.PARTS_AHEAD_MAX // 2 - 1)
    assert b.of(PartWanted) == []
    stream.take(1)
    assert len(b.of(PartWanted)) == 1
    stream.make()
    assert stream.made == limits.PARTS_AHEAD_MAX * 3 // 2


def test_large_parts_are_bounded_by_their_bytes() -> None:
    world, a, b = pair()
    size = limits.PARTS_BYTES_MAX // 4
    stream = Stream(world, a, b, parts=50, size=size)
    stream.make()
    assert stream.made == 4
    assert b.post.load().bytes >= 4 * size
    assert a.post.load().bytes >= 4 * size
    most = 0
    while stream.end is None:
        stream.take(1)
        stream.make()
        most = max(most, b.post._answering.parts_bytes, a.post._asking.unread_bytes())
    assert most <= limits.PARTS_BYTES_MAX + size + 1000
    stream.take()
    assert stream.read == stream.parts


def test_all_streams_of_a_node_share_one_bound_and_none_starves() -> None:
    world, a, b = pair()
    size = limits.PARTS_BYTES_MAX - 1000
    streams = []
    for _ in range(limits.PARTS_KEPT_BYTES_MAX // limits.PARTS_BYTES_MAX + 5):
        stream = Stream(world, a, b, parts=3, size=size)
        numbers = stream.number
        b.commands.respond_part(world.at, numbers, stream.parts[0])
        b.commands.respond_part(world.at, numbers, stream.parts[1])
        world.run()
        streams.append((stream, numbers))
    full = b.post._answering.parts_bytes
    assert full >= limits.PARTS_KEPT_BYTES_MAX
    late = Stream(world, a, b, parts=1)
    assert not b.commands.respond_part(world.at, late.number, b"small"), "and then it waits"
    world.run()
    late.take()
    assert late.read == [b"small"], "one that keeps nothing may say one"
    for stream, _ in streams:
        a.commands.cancel(world.at, stream.call)
    world.run()
    assert PartWanted(late.number) in b.of(PartWanted)


def test_what_a_node_has_no_room_for_ends_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NODE_BYTES_MAX", 5000)
    world, a, b = pair()
    stream = Stream(world, a, b, parts=9, size=1000)
    stream.make()
    assert stream.arrived == stream.parts[:4]
    assert stream.end is not None
    assert (stream.end.error, b.post.counters["parts_full"]) == ("refused", 1)
    assert len(b.of(RequestCancelled)) == 1
    assert holds_nothing(a, b)


def test_a_part_beyond_the_credit_is_not_kept() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=1)
    for number in (0, -5, limits.PARTS_AHEAD_MAX + 1, 2**63 - 1):
        a.post.received(world.at, b.id, wire.Part(stream.call, number, b"x"))
    large = bytes(limits.PARTS_BYTES_MAX + limits.PAYLOAD_MAX)
    a.post.received(world.at, b.id, wire.Part(stream.call, 2, large))
    a.post.received(world.at, b.id, wire.Part(stream.call, 3, b"x"))
    world.run()
    assert a.post.counters["part_beyond_credit"] == 5
    assert stream.arrived == []


def test_a_credit_that_is_nonsense_frees_no_more_than_there_is() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=3)
    stream.make_one()
    for number in (-(2**63), 2**63 - 1):
        b.post.received(world.at, a.id, wire.Credit(stream.call, number, number, True))
        world.run()
    assert b.post._answering.parts_bytes == 0
    b.post.received(world.at, a.id, wire.Credit(99, 1, 1))
    assert b.post.counters["credit_late"] == 1


# --- what is lost -------------------------------------------------------------------


def test_over_a_hundred_resets_no_part_is_lost_or_comes_twice() -> None:
    world, a, b = pair()
    rng = random.Random(5)
    stream = Stream(world, a, b, parts=5000)
    stream.make()
    resets = 0
    while stream.end is None or len(stream.read) < len(stream.parts):
        world.lost = {
            kind
            for kind in (wire.Part, wire.Credit, wire.Ask, wire.Answer, wire.Cancel)
            if rng.random() < 0.4
        }
        stream.take(rng.randrange(40))
        stream.make()
        world.unlink(a, b)
        stream.take(rng.randrange(10))
        stream.make()
        world.lost.clear()
        world.link(a, b)
        resets += 1
        assert resets < 5000
    assert resets > 100
    assert stream.read == stream.parts
    assert len(b.of(RequestArrived)) == 1, "its handler ran once"
    assert stream.end.error == ""


def test_a_link_in_place_of_another_repeats_what_the_first_one_had() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=10)
    world.lost = {wire.Part, wire.Answer}
    stream.make()
    assert stream.arrived == []
    world.lost.clear()
    world.link(a, b)
    assert stream.arrived == stream.parts
    assert stream.end is not None


def test_it_goes_on_over_a_relay_and_back_on_a_link() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    stream = Stream(world, a, b, parts=300)
    stream.make()
    stream.take(100)
    world.block(a, b)
    world.pass_time(timing.RELAY_AFTER + 1)
    stream.take()
    stream.make()
    stream.take()
    assert len(stream.read) > limits.PARTS_AHEAD_MAX, "over the relay"
    world.unblock(a, b)
    world.link(a, b)
    stream.finish()
    assert stream.read == stream.parts
    assert stream.end is not None


def test_what_a_backed_up_relay_dropped_is_asked_for_again() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=20)
    stream.make_one()
    stream.take()
    world.lost = {wire.Part, wire.Answer}  # and no link ends
    stream.make(19)
    for _ in range(19):
        if stream.made < 20:
            stream.make_one()
    b.commands.respond_end(world.at, stream.number)
    world.run()
    world.lost.clear()
    assert stream.arrived == stream.parts[:1]
    world.pass_time(2 * timing.CREDIT_AGAIN + 0.1)
    assert stream.arrived == stream.parts
    assert stream.end is not None


def test_parts_that_overtake_each_other_are_put_in_order() -> None:
    incoming = Incoming(0.0)
    assert incoming.put(wire.Part(1, 3, b"3")) == []
    assert incoming.put(wire.Part(1, 1, b"1")) == [b"1"]
    incoming.end = wire.Answer(1, None, parts=3)
    assert not incoming.is_over
    assert incoming.put(wire.Part(1, 1, b"1")) == []
    assert incoming.put(wire.Part(1, 2, b"2")) == [b"2", b"3"]
    assert incoming.is_over
    assert incoming.bytes == 3


def test_a_part_that_takes_long_is_doubted_ever_more_rarely() -> None:
    incoming = Incoming(0.0)
    assert incoming.put(wire.Part(1, 1, b"1")) == [b"1"]
    doubts = [incoming.credit(5.0 * n, 1, in_passing=True).again for n in range(18)]
    assert [number for number, again in enumerate(doubts) if again] == [1, 2, 4, 8, 16]
    assert incoming.put(wire.Part(1, 2, b"2")) == [b"2"]
    assert not incoming.credit(100.0, 1, in_passing=True).again


def test_a_home_repeats_from_what_is_missing() -> None:
    outgoing = Outgoing(7, 8)
    for number in (1, 2, 3, 4):
        outgoing.put(b"%d" % number)
    assert [part.number for part in outgoing.due()] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert list(outgoing.due()) == []
    outgoing.confirm(1)
    outgoing.repeat(2)
    assert [part.number for part in outgoing.due()] == [3, 4]  # type: ignore[attr-defined]
    outgoing.repeat(0)
    assert [part.number for part in outgoing.due()] == [2, 3, 4]  # type: ignore[attr-defined]
    outgoing.confirm(99)
    assert (outgoing.taken, outgoing.bytes) == (4, 0)
    outgoing.end = wire.Answer(7, None, parts=4)
    assert list(outgoing.due()) == [outgoing.end]
    assert not outgoing.has_credit


# --- its ends -----------------------------------------------------------------------


def test_one_that_gives_up_cancels_the_generator_and_frees_its_parts() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=100)
    stream.make()
    a.commands.cancel(world.at, stream.call)
    world.run()
    assert b.of(RequestCancelled) == [RequestCancelled(stream.number)]
    assert holds_nothing(a, b)


def test_a_cancel_that_is_lost_is_said_again_when_a_part_comes() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=100)
    stream.make_one()
    world.lost = {wire.Cancel}
    a.commands.cancel(world.at, stream.call)
    world.run()
    world.lost.clear()
    assert b.of(RequestCancelled) == []
    stream.make_one()
    assert b.of(RequestCancelled) == [RequestCancelled(stream.number)]
    assert a.post.counters["part_late"] == 1
    assert holds_nothing(a, b)


def test_an_asker_that_is_not_heard_of_any_more_has_given_up() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=1000, timeout=2.0)
    stream.make()
    world.lost = {wire.Cancel}
    a.commands.cancel(world.at, stream.call)
    world.run()
    world.pass_time(2.0 + timing.CREDIT_GRACE - 0.1)
    assert b.of(RequestCancelled) == []
    world.pass_time(0.2)
    assert len(b.of(RequestCancelled)) == 1
    assert holds_nothing(a, b)


def test_what_was_given_up_is_not_run_anew_for_who_comes_back() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=1000, timeout=2.0)
    stream.make()
    world.block(a, b)
    world.pass_time(60.0)
    assert len(b.of(RequestCancelled)) == 1
    world.unblock(a, b)
    world.link(a, b)
    assert len(b.of(RequestArrived)) == 1
    assert stream.end is not None
    assert (stream.end.error, len(stream.arrived)) == ("failed", limits.PARTS_AHEAD_MAX)


@pytest.mark.parametrize("how", ["failed", "left"])
def test_a_target_that_goes_in_the_middle_ends_it_at_once_behind_what_came(how: str) -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=100)
    for _ in range(5):
        stream.make_one()
    world.kill(b, how)
    assert stream.arrived == stream.parts[:5]
    assert stream.end is not None
    assert (stream.end.error, how in stream.end.detail) == ("unreachable", True)


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_an_asker_that_goes_in_the_middle_ends_the_generator(how: str) -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=100)
    stream.make()
    getattr(world, how)(a)
    assert b.of(RequestCancelled) == [RequestCancelled(stream.number)]
    assert holds_nothing(b)


def test_the_timeout_is_for_each_part() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=10, timeout=3.0)
    for _ in range(5):
        world.pass_time(2.9)
        stream.make_one()
        stream.take()
    assert stream.end is None, "it took five times its timeout"
    world.pass_time(3.1)
    assert stream.end is not None
    assert stream.end.error == "timeout"
    assert len(b.of(RequestCancelled)) == 1
    assert holds_nothing(a, b)


def test_a_reader_may_take_as_long_as_it_likes() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=200, timeout=1.0)
    stream.make()
    world.pass_time(3600.0)
    assert (stream.end, b.of(RequestCancelled)) == (None, [])
    stream.finish()
    assert stream.read == stream.parts


def test_who_leaves_says_first_what_its_generator_made() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=10)
    b.post.paused(world.at, a.id)
    stream.make()
    assert stream.arrived == []
    b.post.begin_leave(world.at)
    assert not b.post.is_drained
    b.post.resumed(world.at, a.id)
    world.run()
    assert stream.arrived == stream.parts
    assert b.post.is_drained


def test_a_response_of_the_agent_itself_ends_its_stream_and_stops_its_generator() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=100)
    stream.make_one()
    query = b.of(RequestArrived)[0].envelope
    b.send("s", b"by hand", type="Response", correlation_id=query.message_id)
    assert stream.arrived == [stream.parts[0], b"by hand"]
    assert stream.end is not None
    assert not b.commands.respond_part(world.at, stream.number, b"more")
    world.run()
    assert len(b.of(RequestCancelled)) == 1


# --- other versions -----------------------------------------------------------------


def test_a_home_that_knows_no_parts_answers_whole_and_is_told_nothing_of_them() -> None:
    world, a, b = pair()
    stream = Stream(world, a, b, parts=0, timeout=30.0)
    world.pass_time(20.0)
    answer = Envelope("id", "b-1", "a-1", "Response", b"whole", None, 0)
    a.post.received(world.at, b.id, wire.Answer(stream.call, answer))
    world.run()
    assert stream.end is not None
    assert stream.end.answer == answer
    assert a.said(wire.Credit) == []


# --- a network ----------------------------------------------------------------------


def streamed(network: SimNetwork, asker: SimNode, asked: SimNode) -> int:
    call: int = network.command(
        asker, "request", source=asker.instance_id, target=asked.instance_id, named=False,
        type="Query", payload=b"\xc0", timeout=30.0, streams=True,
    )  # fmt: skip
    network.run(0.1)
    return call


def outcomes(node: SimNode, kind: type) -> list:  # type: ignore[type-arg]
    return [each for each in node.outcomes if isinstance(each, kind)]


@pytest.mark.parametrize("seed", range(5))
def test_in_a_network_large_and_small_parts_arrive_in_order(seed: int) -> None:
    network = SimNetwork(seed=seed)
    asker, asked = network.add("asker"), network.add("asked")
    network.run_until(network.agrees, within=10)
    streamed(network, asker, asked)
    (arrived,) = outcomes(asked, RequestArrived)
    rng = random.Random(seed)
    parts = iter([bytes([n % 256]) * rng.choice([1, 50, 40_000, 300_000]) for n in range(200)])
    said: list[bytes] = []
    read = wanted = 0
    is_held = is_ended = False
    for _ in range(2000):
        now_wanted = len(outcomes(asked, PartWanted))
        is_held = is_held and now_wanted == wanted
        wanted = now_wanted
        for part in () if is_held or is_ended else islice(parts, 5):
            said.append(part)
            if not network.command(asked, "respond_part", request=arrived.request, payload=part):
                is_held = True
                break
        if len(said) == 200 and not is_ended:
            is_ended = True
            network.command(asked, "respond_end", request=arrived.request)
        network.run(0.05)
        for part in outcomes(asker, PartArrived)[read:]:
            read += 1
            network.command(asker, "part_taken", call=part.call)
        if outcomes(asker, RequestEnded):
            break
    assert [part.payload for part in outcomes(asker, PartArrived)] == said
    assert len(said) == 200
    (ended,) = outcomes(asker, RequestEnded)
    assert ended.error == ""


def test_in_a_network_a_kill_ends_it_within_a_second_behind_what_came() -> None:
    network = SimNetwork(seed=3)
    asker, asked = network.add("asker"), network.add("asked")
    network.run_until(network.agrees, within=10)
    streamed(network, asker, asked)
    (arrived,) = outcomes(asked, RequestArrived)
    for number in range(5):
        network.command(asked, "respond_part", request=arrived.request, payload=bytes([number]))
    network.run(0.1)
    network.kill(asked)
    network.run(1.0)
    assert [part.payload for part in outcomes(asker, PartArrived)] == [bytes([n]) for n in range(5)]
    (ended,) = outcomes(asker, RequestEnded)
    assert ended.error == "unreachable"
