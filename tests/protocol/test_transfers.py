"""Large messages on one link: they yield, in turn, within a window, and say how far they are."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.payloads import Blob
from p2pmesh.protocol.transfers import Incoming, Outgoing, TransferError
from p2pmesh.protocol.types import Envelope, Life
from tests.protocol.claims import node_id
from tests.protocol.test_links import Pair, pair, post

MIB = 1024 * 1024
A, B = node_id(1), node_id(2)
LIFE = Life(0, 0, 0)


def answer(ends: Pair) -> None:
    """The other end's word on what it took comes back."""
    word = ends.other.incoming.word()
    if word is not None:
        ends.dialler.outgoing.taken(word.size, 0.0)


def carry_all(ends: Pair) -> list[wire.Message]:
    arrived = []
    while data := ends.dialler.flush(0.0):
        arrived += ends.carry(data)
        answer(ends)
    return arrived


def envelope(payload: bytes) -> Envelope:
    return Envelope("id", "s", "t", "Query", payload, "about", 7)


# --- sending ----------------------------------------------------------------------


def test_whatever_is_small_passes_a_large_message() -> None:
    ends = pair()
    large = post(3 * MIB)
    ends.dialler.say(large)
    arrived: list[wire.Message] = []
    number = 0
    while ends.dialler.outgoing:
        number += 1
        small = [wire.Ping(number), post(100, number), post(60_000, number)]
        for message in small:
            ends.dialler.say(message)
        came = ends.carry(ends.dialler.flush(0.0))
        assert came[:3] == small
        arrived += came[3:]
        answer(ends)
    assert arrived == [large]
    assert number > 10


def test_no_more_is_under_way_than_the_peer_has_taken_and_a_window() -> None:
    ends = pair()
    ends.dialler.say(post(MIB))
    written = b""
    while data := ends.dialler.flush(0.0):
        written += data
    assert limits.TRANSFER_WINDOW <= len(written) < limits.TRANSFER_WINDOW + limits.CHUNK_MAX
    assert not ends.dialler.has_more()
    assert ends.dialler.has_waiting()
    ends.carry(written)
    answer(ends)
    assert ends.dialler.has_more()
    assert len(carry_all(ends)) == 1


def test_small_messages_without_end_do_not_stop_a_large_one() -> None:
    ends = pair()
    large = post(MIB)
    ends.dialler.say(large)
    for _ in range(MIB // 32_000 + 1):
        for number in range(10):
            ends.dialler.say(post(32_000, number))
        came = ends.carry(ends.dialler.flush(0.0))
        answer(ends)
        if large in came:
            return
    pytest.fail("the large message did not arrive")


def test_a_long_message_is_not_waited_for_by_shorter_ones_of_other_streams() -> None:
    ends = pair()
    sent = [post(16 * MIB - 1024, 1), post(MIB, 2), post(300_000, 3)]
    for message in sent:
        ends.dialler.say(message)
    assert carry_all(ends) == sent[::-1]


def test_long_messages_go_one_after_the_other_so_that_the_receiver_holds_one() -> None:
    ends = pair()
    sent = [post(2 * MIB, number) for number in range(3)]
    for message in sent:
        ends.dialler.say(message)
    most = 0
    arrived: list[wire.Message] = []
    while data := ends.dialler.flush(0.0):
        arrived += ends.carry(data)
        most = max(most, ends.other.incoming._bytes)
        answer(ends)
    assert arrived == sent
    assert most <= 2 * MIB + 1000


def test_a_message_that_is_on_its_way_is_not_sent_a_second_time() -> None:
    ends = pair()
    for _ in range(3):
        ends.dialler.say(post(MIB))
    assert ends.carry(ends.dialler.flush(0.0)) == []
    answer(ends)
    ends.dialler.say(post(MIB))
    assert carry_all(ends) == [post(MIB)]
    ends.dialler.say(post(MIB))
    assert carry_all(ends) == [post(MIB)]


@pytest.mark.parametrize("size", [65_536, 300_000, MIB])
@pytest.mark.parametrize(
    "make",
    [
        lambda data: wire.Post(b"s", 1, 0, 5, envelope(data), "r"),
        lambda data: wire.Ask(1, "r", 2, envelope(data)),
        lambda data: wire.Answer(1, envelope(data), "error", "detail"),
        lambda data: wire.Cast(A, b"s", 1, 1, True, 1, LIFE, envelope(data)),
        lambda data: wire.Handed(A, b"s", 1, 0, 1, "r", envelope(data), ((1, 2),)),
        lambda data: wire.Relay(A, B, data),
        lambda data: wire.Call(1, "respond", "i", data),
        lambda data: wire.CallResult(1, "ok", data),
    ],
    ids=["Post", "Ask", "Answer", "Cast", "Handed", "Relay", "Call", "CallResult"],
)
def test_a_message_cut_at_its_payload_is_the_message(make, size: int) -> None:
    payload = bytes(range(256)) * (size // 256)
    message = make(payload)
    outgoing, incoming = Outgoing(), Incoming()
    outgoing.put(message)
    while outgoing:
        chunk = wire.decode(outgoing.next())
        assert isinstance(chunk, wire.Chunk)
        assert incoming.take(chunk) is not bool(outgoing)
    assert incoming.put_together(chunk) == message


@pytest.mark.parametrize("size", [65_536, 300_000, MIB])
@pytest.mark.parametrize(
    "make",
    [
        lambda payload: wire.Post(b"s", 1, 0, 5, envelope(payload), "r"),
        lambda payload: wire.Cast(A, b"s", 1, 1, True, 1, LIFE, envelope(payload)),
        lambda payload: wire.Part(1, 2, payload),
    ],
    ids=["Post", "Cast", "Part"],
)
def test_a_large_value_of_bytes_comes_out_of_its_chunks_as_that_value(make, size: int) -> None:
    message = make(Blob(bytes(range(256)) * (size // 256)))
    assert wire.decode(wire.encode(message)) == make(bytes(wire.payload_of(message)))
    outgoing, incoming = Outgoing(), Incoming()
    outgoing.put(message)
    while outgoing:
        chunk = wire.decode(outgoing.next())
        incoming.take(chunk)
    assert incoming.put_together(chunk) == message


@pytest.mark.parametrize("declared", [0, MIB - 1, MIB + 1, 16 * MIB, 2**32 - 1])
def test_a_payload_that_lies_about_its_length_arrives_as_it_was_sent(declared: int) -> None:
    payload = b"\xc6" + declared.to_bytes(4) + bytes(MIB)
    incoming = Incoming()
    incoming.take(wire.Chunk(1, False, payload[:7], wire.encode(wire.Part(1, 2, b""))))
    incoming.take(wire.Chunk(1, False, payload[7:700_000]))
    last = wire.Chunk(1, True, payload[700_000:])
    incoming.take(last)
    assert incoming.put_together(last) == wire.Part(1, 2, payload)


def test_what_passes_a_large_message_on_gets_it_in_one_piece() -> None:
    payload = b"\xc6" + (100_000).to_bytes(4) + bytes(100_000)
    for around in (wire.Relay(A, B, b""), wire.Call(1, "respond", "i", b"")):
        incoming = Incoming()
        chunk = wire.Chunk(1, True, payload, wire.encode(around))
        incoming.take(chunk)
        whole = incoming.put_together(chunk)
        assert wire.payload_of(whole) == payload


def test_a_large_value_is_not_copied_when_it_is_whole() -> None:
    tracemalloc.start()
    try:
        outgoing, incoming = Outgoing(), Incoming()
        outgoing.put(wire.Part(1, 1, Blob(bytes(8 * MIB))))
        while outgoing:
            chunk = wire.decode(outgoing.next())
            incoming.take(chunk)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        incoming.put_together(chunk)
        assert tracemalloc.get_traced_memory()[1] - before < MIB
    finally:
        tracemalloc.stop()


def test_room_is_reserved_for_one_value_of_which_enough_is_here() -> None:
    around = wire.encode(wire.Part(1, 2, b""))
    head = b"\xc6" + (16 * MIB - 5).to_bytes(4)
    incoming = Incoming()
    tracemalloc.start()
    try:
        for number in range(8):
            incoming.take(wire.Chunk(number, False, head + bytes(100_000), around))
        assert tracemalloc.get_traced_memory()[0] < 2 * MIB, "what is declared costs nothing"
        for number in range(8):
            incoming.take(wire.Chunk(number, False, bytes(500_000)))
        assert 16 * MIB < tracemalloc.get_traced_memory()[0] < 24 * MIB, "room for one"
    finally:
        tracemalloc.stop()


# --- how far it is ------------------------------------------------------------------


def test_progress_is_what_the_peer_took_now_and_then_and_always_the_end() -> None:
    outgoing, incoming = Outgoing(), Incoming()
    message = post(4 * MIB)
    outgoing.put(message)
    told = []
    now = 0.0
    while outgoing:
        chunk = wire.decode(outgoing.next())
        assert isinstance(chunk, wire.Chunk)
        if incoming.take(chunk):
            assert incoming.put_together(chunk) == message
        now += 0.01
        if (word := incoming.word()) is not None:
            told += [(now, each) for each in outgoing.taken(word.size, now)]
    assert all(each.message is message and each.total == 4 * MIB for _, each in told)
    sent = [each.sent for _, each in told]
    assert sent == sorted(set(sent))
    assert sent[-1] == 4 * MIB
    times = [at for at, _ in told[:-1]]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(gaps) > 5
    assert min(gaps) > 0.99 * timing.PROGRESS_INTERVAL


def test_of_what_is_not_long_nothing_is_told() -> None:
    outgoing = Outgoing()
    outgoing.put(post(MIB))
    while outgoing:
        outgoing.next()
    assert outgoing.taken(outgoing._sent, 1.0) == []


@pytest.mark.parametrize("size", [-1, 32_000, 10**9])
def test_nobody_can_have_taken_less_than_before_or_more_than_was_sent(size: int) -> None:
    outgoing = Outgoing()
    outgoing.put(post(MIB))
    for _ in range(3):
        outgoing.next()
    outgoing.taken(65_000, 0.0)
    with pytest.raises(TransferError, match="taken"):
        outgoing.taken(size, 0.0)


# --- receiving ----------------------------------------------------------------------


def chunks(transfer: int, message: wire.Message, *cuts: int) -> list[wire.Chunk]:
    """A message as chunks of its encoding."""
    data = wire.encode(message)
    pieces = [data[start:end] for start, end in pairwise((0, *cuts, len(data)))]
    return [
        wire.Chunk(transfer, number == len(pieces), piece)
        for number, piece in enumerate(pieces, start=1)
    ]


def test_transfers_may_come_interleaved() -> None:
    incoming = Incoming()
    one, two = chunks(1, post(10, 1), 3, 7), chunks(2, post(20, 2), 9)
    for chunk in (one[0], two[0], one[1]):
        assert not incoming.take(chunk)
    for chunk, message in ((two[1], post(20, 2)), (one[2], post(10, 1))):
        assert incoming.take(chunk)
        assert incoming.put_together(chunk) == message
    (again,) = chunks(1, post(10, 3))
    assert incoming.take(again)
    assert incoming.put_together(again) == post(10, 3)


@pytest.mark.parametrize(
    "around",
    [wire.Ping(1), wire.Chunk(1, True, b"", b"x"), wire.Answer(1, None), wire.News((b"a",))],
    ids=lambda message: type(message).__name__,
)
def test_around_a_payload_is_a_message_that_has_one(around: wire.Message) -> None:
    with pytest.raises(wire.Malformed):
        Incoming().take(wire.Chunk(1, False, b"data", wire.encode(around)))


def test_a_large_payload_of_a_later_kind_of_message_is_skipped() -> None:
    incoming = Incoming()
    assert not incoming.take(wire.Chunk(1, False, b"data", b"\x92\x7f\xc4\x00"))
    last = wire.Chunk(1, True, b"more")
    assert incoming.take(last)
    assert incoming.put_together(last) is None


def test_so_many_transfers_may_be_under_way() -> None:
    incoming = Incoming()
    for transfer in range(limits.TRANSFERS_MAX):
        incoming.take(wire.Chunk(transfer, False, b""))
    with pytest.raises(TransferError, match="transfers"):
        incoming.take(wire.Chunk(-1, False, b""))
    (last,) = chunks(0, post(1))
    assert incoming.take(last)
    assert incoming.put_together(last) == post(1)
    incoming.take(wire.Chunk(-1, False, b""))


@pytest.mark.parametrize(
    ("transfers", "most"),
    [(1, limits.LARGE_MESSAGE_MAX), (limits.TRANSFERS_MAX, limits.TRANSFER_BYTES_MAX)],
)
def test_half_received_messages_are_bounded_each_and_together(transfers: int, most: int) -> None:
    incoming = Incoming()
    piece = bytes(65_536)
    pieces = most // len(piece)
    for number in range(pieces):
        incoming.take(wire.Chunk(number % transfers, False, piece))
    with pytest.raises(TransferError, match="transfer_size"):
        incoming.take(wire.Chunk(pieces % transfers, False, piece))


def test_what_is_whole_counts_no_more() -> None:
    incoming = Incoming()
    for transfer in range(6):
        for chunk in chunks(transfer, post(limits.PAYLOAD_MAX - 300), 10):
            is_whole = incoming.take(chunk)
        assert is_whole
        assert incoming.put_together(chunk) == post(limits.PAYLOAD_MAX - 300)


def test_what_was_taken_is_said_a_few_times_a_window() -> None:
    incoming = Incoming()
    words = []
    for _ in range(32):
        incoming.take(wire.Chunk(1, False, bytes(32_768)))
        if (word := incoming.word()) is not None:
            words.append(word.size)
    assert words == [65_536 * number for number in range(1, 17)]
