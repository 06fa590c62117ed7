"""Framing: any messages, in any grouping, through any cuts, come out as they went in."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import frames
from p2pmesh.protocol.frames import MESSAGE_MAX, BadFrame, FrameReader, FrameWriter
from p2pmesh.protocol.limits import CHUNK_MAX, FRAME_MAX
from p2pmesh.protocol.noise import NoiseCipher, PlainCipher

KEY = b"\x07" * 32


def ends(cipher=lambda: NoiseCipher(KEY)):
    return FrameWriter(cipher()), FrameReader(cipher())


def frame_lengths(stream):
    lengths = []
    while stream:
        lengths.append(int.from_bytes(stream[:2], "big"))
        stream = stream[2 + lengths[-1] :]
    return lengths


def plain_frame(plaintext):
    """A frame that a key holder could send, with whatever inside."""
    return (len(plaintext) + 16).to_bytes(2, "big") + plaintext + bytes(16)


@given(
    groups=st.lists(st.lists(st.binary(max_size=300), max_size=5), max_size=5),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
)
def test_messages_survive_any_grouping_and_any_cuts(groups, cuts):
    writer, reader = ends()
    stream = b"".join(writer.seal(group) for group in groups)
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    arrived = []
    for start, end in itertools.pairwise(bounds):
        arrived += reader.feed(stream[start:end])
    assert arrived == [message for group in groups for message in group]


def test_messages_survive_a_cut_at_every_byte():
    writer, reader = ends()
    stream = writer.seal([b"one", b"two"]) + writer.seal([b"three"])
    arrived = [
        message for index in range(len(stream)) for message in reader.feed(stream[index:][:1])
    ]
    assert arrived == [b"one", b"two", b"three"]


def test_queued_messages_share_a_frame():
    writer, _ = ends()
    assert frame_lengths(writer.seal([b"x" * 20] * 64)) == [64 * 22 + 16]


def test_messages_that_fit_no_single_frame_are_spread_in_order():
    writer, reader = ends()
    messages = [bytes([n]) * CHUNK_MAX for n in range(5)] + [b"last"]
    stream = writer.seal(messages)
    assert len(frame_lengths(stream)) == 5
    assert reader.feed(stream) == messages


def test_the_longest_message_fits_and_one_byte_more_is_the_callers_mistake():
    writer, reader = ends()
    longest = b"x" * MESSAGE_MAX
    stream = writer.seal([b"before", longest, b"after"])
    assert max(frame_lengths(stream)) == FRAME_MAX
    assert reader.feed(stream) == [b"before", longest, b"after"]
    for messages in ([longest + b"x"], [b"before", longest + b"x"]):
        with pytest.raises(ValueError, match="65518 bytes"):
            writer.seal(messages)


def test_a_frame_is_filled_to_its_last_byte_and_no_further():
    first = b"x" * 30_000
    for second, lengths in ((35_515, [FRAME_MAX]), (35_516, [30_018, 35_534])):
        writer, reader = ends()
        stream = writer.seal([first, b"y" * second])
        assert frame_lengths(stream) == lengths
        assert reader.feed(stream) == [first, b"y" * second]


def test_no_messages_are_no_bytes():
    writer, _ = ends()
    assert writer.seal([]) == b""


@given(st.binary(max_size=200))
def test_junk_is_refused_or_waited_for_and_never_raises_anything_else(junk):
    _, reader = ends()
    with contextlib.suppress(BadFrame):
        assert reader.feed(junk) == []


@given(st.binary(max_size=60))
def test_junk_inside_a_valid_frame_is_refused_or_read_as_messages(junk):
    _, reader = ends(PlainCipher)
    try:
        messages = reader.feed(plain_frame(junk))
    except BadFrame:
        return
    assert b"".join(len(m).to_bytes(2, "big") + m for m in messages) == junk


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        pytest.param(b"\x00\x00", "shorter than a tag", id="nothing"),
        pytest.param(b"\x00\x0f" + bytes(15), "shorter than a tag", id="less than a tag"),
        pytest.param(plain_frame(b"\x00"), "without its length", id="half a length"),
        pytest.param(plain_frame(b"\x00\x02x"), "longer than its frame", id="cut message"),
        pytest.param(plain_frame(b"\xff\xff"), "longer than its frame", id="declared length"),
    ],
)
def test_a_frame_that_contradicts_itself_is_refused(stream, why):
    _, reader = ends(PlainCipher)
    with pytest.raises(BadFrame, match=why):
        reader.feed(stream)


def test_a_declared_length_allocates_nothing():
    """The reader keeps what came, and no more."""
    _, reader = ends()
    assert reader.feed(b"\xff\xff" + b"x" * 10) == []
    assert len(reader._rest) == 12


def test_a_changed_repeated_or_missing_frame_is_refused():
    writer, _ = ends()
    first, second = writer.seal([b"first"]), writer.seal([b"second"])
    for stream in (first[:-1] + b"\0", first + first, second):
        _, reader = ends()
        with pytest.raises(BadFrame, match="not encrypted"):
            reader.feed(stream)


def test_frames_behind_a_rekey_use_another_key():
    class OldKeyKept(NoiseCipher):
        def rekey(self):
            pass

    writer, reader = ends()
    stream = writer.seal([b"before"]) + writer.rekey() + writer.seal([b"after"])
    assert reader.feed(stream) == [b"before", b"after"]
    with pytest.raises(BadFrame):
        FrameReader(OldKeyKept(KEY)).feed(stream)


@pytest.mark.parametrize("cipher", [lambda: NoiseCipher(KEY), PlainCipher], ids=["aead", "plain"])
def test_the_key_changes_by_itself_after_a_number_of_frames(monkeypatch, cipher):
    monkeypatch.setattr(frames, "REKEY_FRAMES", 3)
    writer, reader = ends(cipher)
    sizes = []
    for n in range(7):
        sealed = writer.seal([bytes([n])])
        sizes.append(len(sealed))
        assert reader.feed(sealed) == [bytes([n])]
    plain, with_rekey = 2 + 3 + 16, 2 + 3 + 16 + 2 + 16
    assert sizes == [plain, plain, with_rekey, plain, plain, with_rekey, plain]
