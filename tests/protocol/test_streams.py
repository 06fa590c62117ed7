"""Both ends of one stream, mouth to ear, without anything around them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import wire
from p2pmesh.protocol.streams import Flight, InStream, Item, OutStream, Verdict
from p2pmesh.protocol.types import Envelope

ME = b"m" * 32


def item(number: int, deadline: float = 1e9) -> Item:
    return Item(Envelope(f"id{number}", "s", "r", "T", b"%d" % number, None, 0), "r", deadline)


def stream_of(count: int) -> OutStream:
    stream = OutStream(b"stream00", ME, "r", is_own=True)
    for number in range(1, count + 1):
        stream.append(item(number))
    return stream


def posts(stream: OutStream) -> list[wire.Post]:
    made = [stream.next(0.0) for _ in range(len(stream.unsent))]
    return [message for message in made if isinstance(message, wire.Post)]


def test_each_message_names_the_one_before_it() -> None:
    assert [(post.prev, post.seq) for post in posts(stream_of(3))] == [(0, 1), (1, 2), (2, 3)]


def test_what_is_over_is_not_sent_and_not_named() -> None:
    stream = stream_of(4)
    stream.remove(stream.items[2])
    assert [(post.prev, post.seq) for post in posts(stream)] == [(0, 1), (1, 3), (3, 4)]


def test_a_rewind_goes_back_to_the_watermark_and_names_what_is_still_held() -> None:
    stream = stream_of(5)
    posts(stream)
    assert [stored.seq for stored in stream.receipt(3)] == [1, 2, 3]
    stream.remove(stream.items[3])
    stream.rewind()
    assert [(post.prev, post.seq) for post in posts(stream)] == [(2, 4), (4, 5)]


def test_bytes_are_in_flight_from_the_wire_to_the_receipt() -> None:
    stream = stream_of(3)
    flight = Flight()
    stream.board(flight)
    posts(stream)
    size = stream.items[1].size
    assert flight.bytes == 3 * size
    stream.receipt(1)
    stream.remove(stream.items[2])
    assert flight.bytes == size
    stream.board(Flight())
    assert flight.bytes == 0


def test_a_recipient_judges_by_watermark_and_prev_alone() -> None:
    stream = InStream(b"stream00", ME, "r", 0.0)
    stream.store(5)
    assert stream.judge(prev=0, seq=5) is Verdict.AGAIN
    assert stream.judge(prev=5, seq=6) is Verdict.NEXT
    assert stream.judge(prev=2, seq=9) is Verdict.NEXT
    assert stream.judge(prev=7, seq=9) is Verdict.GAP
    for prev, seq in ((-1, 6), (6, 6), (7, 6), (0, 0), (0, -3), (5, 2**63)):
        assert stream.judge(prev, seq) is Verdict.MALFORMED


def test_only_stored_numbers_that_are_not_in_the_mailbox_have_ended() -> None:
    stream = InStream(b"stream00", ME, "r", 0.0)
    for seq in range(1, 8):
        stream.store(seq)
        stream.keep(seq)
    stream.end(2, "done", "")
    stream.end(3, "dead", "boom")
    stream.end(7, "done", "")
    assert stream.ended_among(((1, 3), (6, 9))) == wire.Done(
        b"stream00", ((2, 2), (7, 7)), ((3, "dead", "boom"),)
    )
    assert stream.ended_among(((4, 5),)) is None
    assert stream.take_ends() == wire.Done(b"stream00", ((2, 2), (7, 7)), ((3, "dead", "boom"),))
    assert stream.take_ends() is None


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_over_any_cuts_ends_and_expiries_nothing_is_stored_twice_or_out_of_order(
    seed: int, count: int
) -> None:
    rng = random.Random(seed)
    sender = OutStream(b"stream00", ME, "r", is_own=True)
    recipient = InStream(b"stream00", ME, "r", 0.0)
    stored: list[int] = []
    expired: set[int] = set()
    flying: list[wire.Post] = []
    appended = 0
    for _ in range(400):
        match rng.randrange(7):
            case 0 if appended < count:
                appended += 1
                sender.append(item(appended))
            case 1:  # a link ends: what flies is lost, from the receipt on it is sent again
                flying = flying[: rng.randrange(len(flying) + 1)]
                sender.rewind()
            case 2 if sender.items:
                gone = rng.choice(list(sender.items.values()))
                sender.remove(gone)
                if gone.seq > recipient.watermark:
                    expired.add(gone.seq)
            case 3:
                sender.receipt(recipient.watermark)
            case _:
                if sender.unsent and (message := sender.next(0.0)) is not None:
                    assert isinstance(message, wire.Post)
                    flying.append(message)
                if flying and rng.random() < 0.8:
                    post = flying.pop(0)
                    if recipient.judge(post.prev, post.seq) is Verdict.NEXT:
                        recipient.store(post.seq)
                        stored.append(post.seq)
    sender.rewind()
    for post in (*flying, *posts(sender)):
        if recipient.judge(post.prev, post.seq) is Verdict.NEXT:
            recipient.store(post.seq)
            stored.append(post.seq)
    assert stored == sorted(set(stored))
    assert set(stored) | expired == set(range(1, appended + 1))
