"""One link: what it says in which order, what it puts together, and which of two stays."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.links import Link, stays
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.session import Session
from p2pmesh.protocol.types import Envelope, FoundBy, NodeId
from tests.protocol.claims import node_id

A, B = sorted((node_id(1), node_id(2)))
KEYS = KeyRing("test")


def entropy(seed: str) -> Callable[[int], bytes]:
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


class Pair(NamedTuple):
    """Both ends of one link: the dialler's and the other's."""

    dialler: Link
    other: Link

    def carry(self, data: bytes) -> list[wire.Message]:
        """What the other end makes of the dialler's bytes, chunks put together."""
        return list(put_together(self.other, self.other.session.feed(data)[1]))


def put_together(link: Link, encoded: list[bytes]) -> Iterator[wire.Message]:
    for each in encoded:
        message = wire.decode(each)
        if isinstance(message, wire.Chunk):
            if not link.incoming.take(message):
                continue
            message = link.incoming.put_together(message)
        assert message is not None
        yield message


def pair(
    dialler: NodeId = A, other: NodeId = B, *, dial: int = 1, replaces: bytes | None = None
) -> Pair:
    """A link between two nodes, its HELLOs read."""
    attempt = Attempt(Purpose.CONNECT, other, [], FoundBy.PEER, replaces)
    ends = []
    for seed, is_dialler in ((b"\x01" * 32, True), (b"\x02" * 32, False)):
        session = Session(
            initiator=is_dialler,
            static=StaticKey.from_seed(seed),
            keys=KEYS,
            entropy=entropy(f"{dialler!r} {dial} {is_dialler}"),
            null_cipher=True,
        )
        made = Link(
            dial, "10.0.0.1:1", session, 0.0,
            attempt=attempt if is_dialler else None,
            found_by=FoundBy.PEER if is_dialler else FoundBy.INBOUND,
            dial=dial if is_dialler else 0,
        )  # fmt: skip
        ends.append(made)
    mine, theirs = ends
    answer, _ = theirs.session.feed(mine.session.start())
    finish, _ = mine.session.feed(answer)
    theirs.session.feed(finish)
    mine.peer, theirs.peer = other, dialler
    mine.hello = wire.Hello(b"", (1, 1), b"theirs", 0, 0)
    theirs.hello = wire.Hello(b"", (1, 1), b"mine", 0, 0, replaces=replaces, dial=dial)
    return Pair(mine, theirs)


def post(size: int, number: int = 0) -> wire.Post:
    envelope = Envelope(str(number), "s", "t", "Query", bytes(size), None, 0)
    return wire.Post(b"stream00", number, 0, 1, envelope)


# --- saying ---------------------------------------------------------------------


def test_urgent_messages_go_before_news_and_those_before_bulk() -> None:
    ends = pair()
    link = ends.dialler
    link.say(post(10))
    link.backlog.put("x", b"item", Urgency.CHANGE, None)
    link.say(wire.Ping(1))
    link.say(wire.Ping(2))
    kinds = [type(message) for message in ends.carry(link.flush(1.0))]
    assert kinds == [wire.Ping, wire.Ping, wire.News, wire.Post]
    assert link.said_at == 1.0
    assert link.flush(2.0) == b""
    assert link.said_at == 1.0


@pytest.mark.parametrize(
    "message",
    [post(1), wire.Offer(()), wire.Digest(1, b""), wire.Relay(A, B, b""),
     wire.Cast(A, b"", 1, 1, True, 1, wire.Life(0, 0, 0), post(1).envelope),
     wire.Handed(A, b"", 1, 1, 1, "", None)],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_what_carries_payloads_or_views_yields_to_the_rest(message: wire.Message) -> None:
    ends = pair()
    ends.dialler.say(message)
    assert ends.dialler.has_more()
    ends.dialler.say(wire.Ping(1))
    assert ends.carry(ends.dialler.flush(0.0)) == [wire.Ping(1), message]
    assert not ends.dialler.has_more()


@given(st.lists(st.sampled_from([1, 32_768, 32_769, 65_000, 100_000]), max_size=12))
def test_messages_of_any_size_arrive_whole_and_in_order(sizes: list[int]) -> None:
    ends = pair()
    sent = [post(size, number) for number, size in enumerate(sizes)]
    for message in sent:
        ends.dialler.say(message)
    arrived: list[wire.Message] = []
    while ends.dialler.has_more():
        arrived += ends.carry(ends.dialler.flush(0.0))
    assert arrived == sent


def test_the_first_size_that_is_cut_is_one_above_the_chunk() -> None:
    for size, is_cut in ((limits.CHUNK_MAX, False), (limits.CHUNK_MAX + 1, True)):
        ends = pair()
        ends.dialler.say_encoded(bytes(size))
        assert ends.dialler.has_more() is is_cut
        (_, *more) = ends.other.session.feed(ends.dialler.flush(0.0))[1]
        assert bool(more) is is_cut


@pytest.mark.parametrize("size", [65_407, 65_408, 65_409])
def test_each_large_message_is_a_transfer_of_its_own_and_its_last_chunk_says_so(size: int) -> None:
    ends = pair()
    for _ in range(2):
        ends.dialler.say_encoded(bytes(size))
    chunks = [wire.decode(each) for each in ends.other.session.feed(ends.dialler.flush(0.0))[1]]
    each = [(0, False), (0, True)] if size < 65_409 else [(0, False), (0, False), (0, True)]
    assert [(chunk.transfer - 1, chunk.last) for chunk in chunks] == each + [
        (1, last) for _, last in each
    ]


def test_nothing_is_written_while_the_transport_is_backed_up() -> None:
    ends = pair()
    link = ends.dialler
    link.is_paused = True
    link.say(wire.Ping(1))
    link.say(post(1))
    link.backlog.put("x", b"item", Urgency.QUESTION, None)
    assert link.flush(0.0) == b""
    assert not link.has_more()
    assert link.has_waiting()
    link.is_paused = False
    assert len(ends.carry(link.flush(0.0))) == 3
    assert not link.has_waiting()


def test_a_peer_that_makes_us_speak_and_does_not_read_is_noticed() -> None:
    link = pair().dialler
    link.is_paused = True
    for _ in range(limits.LINK_QUEUE_MAX // 32_768 + 1):
        assert not link.is_overfull()
        link.say_encoded(bytes(32_768))
    assert link.is_overfull()
    link.is_paused = False
    link.flush(0.0)
    assert not link.is_overfull()


def test_the_key_is_changed_every_hour() -> None:
    ends = pair()
    link = ends.dialler
    for hour in range(3):
        for minute in (0, 59):
            link.say(wire.Ping(minute))
            data = link.flush(hour * timing.REKEY_INTERVAL + minute * 60)
            assert ends.carry(data) == [wire.Ping(minute)]
            is_renewed = minute == 0 and hour > 0
            assert (len(data) > 30) is is_renewed


def test_the_last_words_are_all_that_waits_and_then_the_goodbye() -> None:
    ends = pair()
    link = ends.dialler
    sent = [post(300_000, 1), post(300_000, 2)]
    for message in sent:
        link.say(message)
    link.backlog.put("x", b"item", Urgency.CHANGE, None)
    link.is_paused = True
    goodbye = wire.CloseReason("idle")
    arrived = [m for data in link.last_words(goodbye) for m in ends.carry(data)]
    assert arrived == [wire.News((b"item",)), *sent, goodbye]


# --- repairs asked of us ----------------------------------------------------------


def test_so_many_repair_questions_are_answered_in_an_interval() -> None:
    link = pair().dialler
    for interval in range(3):
        now = interval * timing.REPAIR_INTERVAL
        answers = [link.may_ask_repair(now + 0.1 * number) for number in range(20)]
        assert answers == [True] * limits.REPAIRS_SERVED_MAX + [False] * 12


def test_no_more_answers_are_kept_for_a_peer_that_does_not_read_them() -> None:
    link = pair().dialler
    link.is_paused = True
    answered = 0
    for interval in range(50):
        if link.may_ask_repair(interval * timing.REPAIR_INTERVAL):
            answered += 1
            for _ in range(10):
                link.say(wire.Offer((bytes(30_000),)))
    assert answered == 4
    link.is_paused = False
    while link.flush(0.0):
        pass
    assert link.may_ask_repair(1000.0)


# --- which of two ---------------------------------------------------------------


def test_a_link_is_a_ring_link_while_either_end_says_so() -> None:
    link = pair().dialler
    for mine, theirs in itertools.product((False, True), repeat=2):
        link.claim(mine=mine)
        link.claim(theirs=theirs)
        assert link.is_ring is (mine or theirs)


class Case(NamedTuple):
    first_dialler: NodeId
    second_dialler: NodeId
    replaces: bool  # the second names the first as dead
    seen_by_a: tuple[int, int]  # in which order A completed the two links
    seen_by_b: tuple[int, int]


CASES = [
    Case(first, second, replaces, seen_by_a, seen_by_b)
    for first, second in itertools.product((A, B), repeat=2)
    for replaces in (False, True)
    for seen_by_a, seen_by_b in itertools.product(((0, 1), (1, 0)), repeat=2)
]


def kept_by(me: NodeId, ends: list[Pair], seen: tuple[int, int]) -> int:
    """Which of two links this node keeps, having completed them in that order."""
    mine = [end.dialler if end.other.peer == me else end.other for end in ends]
    old, new = (mine[number] for number in seen)
    return mine.index(stays(me, new, old))


@pytest.mark.parametrize("case", CASES)
def test_both_ends_keep_the_same_link_whichever_they_saw_first(case: Case) -> None:
    other = {A: B, B: A}
    first = pair(case.first_dialler, other[case.first_dialler], dial=5)
    dead = first.dialler.session.handshake_hash if case.replaces else None
    second = pair(case.second_dialler, other[case.second_dialler], dial=6, replaces=dead)
    ends = [first, second]
    kept = kept_by(A, ends, case.seen_by_a)
    assert kept == kept_by(B, ends, case.seen_by_b)
    if case.replaces or case.first_dialler == case.second_dialler:
        assert kept == 1
    else:
        assert kept == (0 if case.first_dialler == A else 1)  # A is the lower


def test_who_says_nothing_of_its_dials_keeps_the_newer() -> None:
    """A version before the count."""
    first, second = pair(dial=1), pair(dial=2)
    for each in (first, second):
        each.other.hello = wire.Hello(b"", (1, 1), b"mine", 0, 0)
    assert stays(B, second.other, first.other) is second.other
    assert stays(B, first.other, second.other) is first.other
