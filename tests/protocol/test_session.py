"""A link's bytes from the first: two ends wired mouth to ear."""

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.protocol import session
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.session import (
    BAD_FRAME,
    HANDSHAKE_FAILED,
    NOT_P2PMESH,
    OTHER_KEY,
    PREFACE_SIZE,
    Refusal,
    Session,
    SessionError,
)

A, B = StaticKey.from_seed(b"\x01" * 32), StaticKey.from_seed(b"\x02" * 32)
OLD, NEW = b"\x01" * 32, b"\x02" * 32
OPEN = KeyRing("test")
both_ciphers = pytest.mark.parametrize("null_cipher", [False, True], ids=["noise", "null"])


def entropy_of(seed):
    counter = itertools.count()
    return lambda size: hashlib.shake_256(seed + next(counter).to_bytes(4)).digest(size)


def initiator(keys=OPEN, null_cipher=False, seed=b"i"):
    return Session(
        initiator=True, static=A, keys=keys, entropy=entropy_of(seed), null_cipher=null_cipher
    )


def responder(keys=OPEN, null_cipher=False):
    end = Session(
        initiator=False, static=B, keys=keys, entropy=entropy_of(b"r"), null_cipher=null_cipher
    )
    assert end.start() == b""
    return end


def shake(a, b):
    """Run the handshake in whole pieces; the bytes of each side in turn."""
    offer = a.start()
    answer, _ = b.feed(offer)
    finish, _ = a.feed(answer)
    assert b.feed(finish) == (b"", [])
    return offer, answer, finish


def refused(end, data):
    with pytest.raises(SessionError) as error:
        end.feed(data)
    return error.value


@both_ciphers
def test_two_ends_establish_a_link_and_talk(null_cipher):
    a, b = initiator(null_cipher=null_cipher), responder(null_cipher=null_cipher)
    assert [len(part) for part in shake(a, b)] == [12 + 48, 12 + 96, 64]
    assert a.established
    assert b.established
    assert (a.remote_key, b.remote_key) == (B.public, A.public)
    assert a.handshake_hash == b.handshake_hash
    assert len(a.handshake_hash) == 32
    assert b.feed(a.seal([b"one", b"two"])) == (b"", [b"one", b"two"])
    assert a.feed(b.seal([b"back"])) == (b"", [b"back"])
    assert b.feed(a.rekey() + a.seal([b"renewed"])) == (b"", [b"renewed"])


@both_ciphers
def test_the_initiator_speaks_right_behind_its_last_handshake_message(null_cipher):
    a, b = initiator(null_cipher=null_cipher), responder(null_cipher=null_cipher)
    answer, _ = b.feed(a.start())
    finish, _ = a.feed(answer)
    assert a.established
    assert not b.established
    assert b.feed(finish + a.seal([b"hello"])) == (b"", [b"hello"])
    assert b.established


def test_the_ends_of_another_link_have_another_hash():
    first, second = initiator(), initiator(seed=b"again")
    shake(first, responder())
    shake(second, responder())
    assert first.handshake_hash != second.handshake_hash


@both_ciphers
@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_link_survives_being_cut_into_pieces(null_cipher, size):
    a, b = initiator(null_cipher=null_cipher), responder(null_cipher=null_cipher)

    def deliver(end, data):
        written, messages = b"", []
        for start in range(0, len(data), size):
            more, arrived = end.feed(data[start : start + size])
            written += more
            messages += arrived
        return written, messages

    answer, _ = deliver(b, a.start())
    finish, _ = deliver(a, answer)
    assert deliver(b, finish + a.seal([b"one", b"two"])) == (b"", [b"one", b"two"])
    assert deliver(a, b.seal([b"three"])) == (b"", [b"three"])


def test_a_link_survives_a_cut_at_every_byte():
    """Both ends derive the same bytes each time, so one recording serves all cuts."""
    a, b = initiator(), responder()
    offer, answer, finish = shake(a, b)
    to_b = offer + finish + a.seal([b"one", b"two"]) + a.seal([b"three"])
    for cut in range(len(to_b) + 1):
        end = responder()
        first, second = end.feed(to_b[:cut]), end.feed(to_b[cut:])
        assert first[0] + second[0] == answer
        assert first[1] + second[1] == [b"one", b"two", b"three"]
    to_a = answer + b.seal([b"four"])
    for cut in range(len(to_a) + 1):
        end = initiator()
        end.start()
        first, second = end.feed(to_a[:cut]), end.feed(to_a[cut:])
        assert first[0] + second[0] == finish
        assert first[1] + second[1] == [b"four"]


@pytest.mark.parametrize("part", [0, 1, 2], ids=["offer", "answer", "finish"])
def test_every_byte_of_the_handshake_flipped_is_refused(part):
    """Prefaces included.  A flip is refused at once or, where it makes a refusal of a
    preface, read as one: nobody ends up with a link."""
    recorded = shake(initiator(), responder())
    for index in range(len(recorded[part])):
        for bit in (0x01, 0x80):
            flipped = bytearray(recorded[part])
            flipped[index] ^= bit
            a, b = initiator(), responder()
            a.start()
            if part == 0:
                refused(b, bytes(flipped))
            elif part == 1:
                refused(a, bytes(flipped))
            else:
                b.feed(recorded[0])
                refused(b, bytes(flipped))
            assert not a.established
            assert not b.established


@both_ciphers
def test_another_key_is_refused_and_both_sides_say_so(null_cipher):
    a = initiator(KeyRing("test", (NEW,)), null_cipher)
    b = responder(KeyRing("test", (OLD,)), null_cipher)
    error = refused(b, a.start())
    assert error.reason == OTHER_KEY
    assert len(error.reply) == PREFACE_SIZE
    hint = refused(a, error.reply)
    assert (hint.reason, hint.reply) == (OTHER_KEY, b"")


@both_ciphers
def test_a_mesh_of_another_name_has_another_key(null_cipher):
    a, b = initiator(KeyRing("one"), null_cipher), responder(KeyRing("two"), null_cipher)
    assert refused(b, a.start()).reason == OTHER_KEY


def test_keys_are_rotated_without_a_moment_apart():
    """add everywhere, use everywhere, remove everywhere: whoever is a step ahead or
    behind still links, whichever side dials."""
    steps = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    for behind, ahead in itertools.pairwise(steps):
        for first, second in ((behind, ahead), (ahead, behind)):
            a, b = initiator(KeyRing("test", first)), responder(KeyRing("test", second))
            shake(a, b)
            assert b.feed(a.seal([b"met"])) == (b"", [b"met"])


def test_a_kid_alone_opens_nothing(monkeypatch):
    """Two keys with one kid: the psk decides, in the initiator's last message."""
    other = KeyRing("test", (NEW,))
    kid = OPEN.offered.kid
    monkeypatch.setattr(other, "accepted", {kid: other.offered.psk}, raising=False)
    a, b = initiator(), responder(other)
    answer, _ = b.feed(a.start())
    finish, _ = a.feed(answer)
    error = refused(b, finish)
    assert (error.reason, error.reply) == (HANDSHAKE_FAILED, b"")


@pytest.mark.parametrize("version", [0, 3])
def test_an_unknown_version_is_refused_with_one_line_naming_both(monkeypatch, version):
    monkeypatch.setattr(session, "VERSION_MAX", version)
    a = initiator()
    offer = a.start()
    monkeypatch.undo()
    error = refused(responder(), offer)
    assert error.reason == f"version {version} is not among 1..1"
    monkeypatch.setattr(session, "VERSION_MAX", version)
    assert refused(a, error.reply).reason == f"version {version} is not among 1..1"


def test_a_flag_of_a_later_version_is_carried_not_refused():
    """Flags are part of the prologue, so what is not understood is still agreed on."""
    a, b = initiator(), responder()
    a._offer = a.start()[:5] + b"\x01" + OPEN.offered.kid
    a._handshake = a._begin(OPEN.offered.psk)
    answer, _ = b.feed(a._offer + a._handshake.write())
    finish, _ = a.feed(answer)
    assert b.feed(finish) == (b"", [])
    assert b.established


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"SSH-2.0-x", b"\0", b"p2pM", b"pp"]
)
def test_another_protocol_is_recognised_by_its_first_bytes(greeting):
    for end in (initiator(), responder()):
        end.start()
        error = refused(end, greeting)
        assert (error.reason, error.reply) == (NOT_P2PMESH, b"")


@pytest.mark.parametrize("refusal", list(Refusal))
def test_a_refusal_is_never_answered_by_another(refusal):
    error = refused(responder(), session._refusal(refusal, b"abcdef"))
    assert (error.reason, error.reply) == (HANDSHAKE_FAILED, b"")


def test_a_responder_that_cannot_read_the_first_message_says_so():
    offer = initiator().start()
    error = refused(responder(), offer[:-1] + bytes([offer[-1] ^ 1]))
    assert error.reason == HANDSHAKE_FAILED
    a = initiator()
    a.start()
    assert refused(a, error.reply).reason == HANDSHAKE_FAILED


def test_a_bad_frame_ends_the_link():
    a, b = initiator(), responder()
    shake(a, b)
    sealed = a.seal([b"message"])
    error = refused(b, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert (error.reason, error.reply) == (BAD_FRAME, b"")


def test_a_bad_frame_right_behind_the_handshake_ends_the_link():
    a, b = initiator(), responder()
    answer, _ = b.feed(a.start())
    finish, _ = a.feed(answer)
    assert refused(b, finish + b"\0\0").reason == BAD_FRAME


def test_bytes_of_one_link_mean_nothing_on_another():
    a, b = initiator(), responder()
    shake(a, b)
    other_a, other_b = initiator(seed=b"other"), responder()
    shake(other_a, other_b)
    assert refused(other_b, a.seal([b"replayed"])).reason == BAD_FRAME


def test_a_replayed_initiator_gets_no_link():
    """The responder's ephemeral key is new each time, so the last message does not fit."""
    a, b = initiator(), responder()
    offer, _, finish = shake(a, b)
    later = Session(initiator=False, static=B, keys=OPEN, entropy=entropy_of(b"later"))
    later.feed(offer)
    assert refused(later, finish).reason == HANDSHAKE_FAILED


@settings(max_examples=200)
@given(data=st.data())
def test_junk_at_any_point_is_refused_or_waited_for(data):
    a, b = initiator(), responder()
    offer = a.start()
    if data.draw(st.booleans(), label="after the offer"):
        b.feed(offer)
    junk = data.draw(st.binary(max_size=200) | st.binary(max_size=200).map(b"p2pm\x01\x00".__add__))
    try:
        _, messages = b.feed(junk)
    except SessionError:
        return
    assert messages == []
    assert not b.established


def test_nothing_can_be_sealed_before_the_handshake():
    for use in (lambda end: end.seal([b"early"]), lambda end: end.rekey()):
        with pytest.raises(AssertionError):
            use(initiator())
