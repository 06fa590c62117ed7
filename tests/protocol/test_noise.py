"""The handshake and the ciphers, held against another implementation of Noise."""

import hashlib

import pytest
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from noise.connection import Keypair, NoiseConnection

from p2pmesh.protocol.noise import (
    MESSAGE_1_SIZE,
    MESSAGE_2_SIZE,
    MESSAGE_3_SIZE,
    PROTOCOL_NAME,
    TAG_SIZE,
    NoiseCipher,
    NoiseHandshake,
    PlainCipher,
    PlainHandshake,
    StaticKey,
    Unverified,
)

PSK = hashlib.sha256(b"psk").digest()
PROLOGUE = b"p2pm\x01\x00abcdef"
OURS = StaticKey.from_seed(b"\x01" * 32)
THEIRS = StaticKey.from_seed(b"\x02" * 32)
SIZES = [MESSAGE_1_SIZE, MESSAGE_2_SIZE, MESSAGE_3_SIZE]
KEY = b"\x07" * 32


def entropy_of(seed):
    counter = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(seed + bytes([next(counter)])).digest(size)


def handshake(initiator, *, kind=NoiseHandshake, static=None, psk=PSK, prologue=PROLOGUE):
    return kind(
        initiator=initiator,
        prologue=prologue,
        psk=psk,
        static=static or (OURS if initiator else THEIRS),
        entropy=entropy_of(b"i" if initiator else b"r"),
    )


def oracle(initiator):
    other = NoiseConnection.from_name(PROTOCOL_NAME)
    if initiator:
        other.set_as_initiator()
    else:
        other.set_as_responder()
    other.set_psks(PSK)
    other.set_prologue(PROLOGUE)
    other.set_keypair_from_private_bytes(Keypair.STATIC, THEIRS.secret)
    other.start_handshake()
    return other


def run(initiator, responder, change=lambda step, message: message):
    """Pass the three messages on; returns them."""
    messages = []
    for step, (writer, reader) in enumerate(
        [(initiator, responder), (responder, initiator), (initiator, responder)]
    ):
        messages.append(writer.write())
        reader.read(change(step, messages[-1]))
    return messages


def talk_both_ways(sending, receiving, other):
    for count in range(3):
        text = b"to you" * count
        assert bytes(other.decrypt(sending.encrypt(text))) == text
        assert receiving.decrypt(bytes(other.encrypt(text))) == text
    sending.rekey()
    other.noise_protocol.cipher_state_decrypt.rekey()
    receiving.rekey()
    other.noise_protocol.cipher_state_encrypt.rekey()
    assert bytes(other.decrypt(sending.encrypt(b"renewed"))) == b"renewed"
    assert receiving.decrypt(bytes(other.encrypt(b"renewed"))) == b"renewed"


def test_our_initiator_meets_another_implementations_responder():
    ours, other = handshake(True), oracle(initiator=False)
    assert other.read_message(ours.write()) == b""
    ours.read(bytes(other.write_message()))
    assert other.read_message(ours.write()) == b""
    assert other.handshake_finished
    assert ours.remote_key == THEIRS.public
    assert ours.hash == other.get_handshake_hash()
    talk_both_ways(*ours.split(), other)


def test_our_responder_meets_another_implementations_initiator():
    ours, other = handshake(False, static=OURS), oracle(initiator=True)
    ours.read(bytes(other.write_message()))
    assert other.read_message(ours.write()) == b""
    ours.read(bytes(other.write_message()))
    assert other.handshake_finished
    assert ours.remote_key == THEIRS.public
    assert ours.hash == other.get_handshake_hash()
    talk_both_ways(*ours.split(), other)


@pytest.mark.parametrize("kind", [NoiseHandshake, PlainHandshake])
def test_two_ends_agree_on_everything(kind):
    initiator, responder = handshake(True, kind=kind), handshake(False, kind=kind)
    messages = run(initiator, responder)
    assert [len(message) for message in messages] == SIZES
    assert (initiator.remote_key, responder.remote_key) == (THEIRS.public, OURS.public)
    assert initiator.hash == responder.hash
    assert len(initiator.hash) == 32
    (a_sends, a_receives), (b_sends, b_receives) = initiator.split(), responder.split()
    assert b_receives.decrypt(a_sends.encrypt(b"there")) == b"there"
    assert a_receives.decrypt(b_sends.encrypt(b"back")) == b"back"


@pytest.mark.parametrize("step", [0, 1, 2])
def test_every_byte_of_every_message_flipped_is_refused(step):
    """Each bit once over the length: the top bit of a public key means nothing to
    X25519 itself, and is still covered by the transcript."""
    for index in range(SIZES[step]):
        for bit in (0x01, 0x80):

            def flip(at, message, index=index, bit=bit):
                if at != step:
                    return message
                return message[:index] + bytes([message[index] ^ bit]) + message[index + 1 :]

            with pytest.raises(Unverified, match=f"message {step + 1}"):
                run(handshake(True), handshake(False), flip)


@pytest.mark.parametrize("step", [0, 1])
def test_a_public_key_of_low_order_is_refused(step):
    """libsodium refuses the all-zero secret that it would agree on."""

    def replace(at, message):
        return bytes(32) + message[32:] if at == step else message

    with pytest.raises(Unverified):
        run(handshake(True), handshake(False), replace)


def test_the_psk_and_the_prologue_must_be_the_same():
    with pytest.raises(Unverified, match="message 3"):
        run(handshake(True), handshake(False, psk=b"\0" * 32))
    with pytest.raises(Unverified, match="message 1"):
        run(handshake(True), handshake(False, prologue=b"other"))


def test_a_static_key_cannot_be_claimed_without_its_secret():
    thief = StaticKey(secret=b"\x09" * 32, public=OURS.public)
    with pytest.raises(Unverified, match="message 3"):
        run(handshake(True, static=thief), handshake(False))
    with pytest.raises(Unverified, match="message 2"):
        run(handshake(True), handshake(False, static=thief))


def test_neither_static_key_is_readable_on_the_wire():
    messages = b"".join(run(handshake(True), handshake(False)))
    assert OURS.public not in messages
    assert THEIRS.public not in messages


def test_the_static_key_of_a_seed_never_changes():
    """A node restarts with its seed and must be recognised."""
    assert (
        StaticKey.from_seed(bytes(range(32))).public.hex()
        == "5e96c56d4527626464cf30bd71a69fedb59121e7c97d411f7ab34fe8aeed493a"
    )


@pytest.mark.parametrize("size", [0, 1, 20, 65_519])
def test_the_direct_calls_do_what_the_public_wrapper_does(size):
    """noise.py calls libsodium without PyNaCl's wrapper; this is what makes that safe."""
    cipher, text = NoiseCipher(KEY), bytes(size)
    for count in range(3):
        nonce = bytes(4) + count.to_bytes(8, "little")
        expected = crypto_aead_chacha20poly1305_ietf_encrypt(text, None, nonce, KEY)
        assert cipher.encrypt(text) == expected
        assert crypto_aead_chacha20poly1305_ietf_decrypt(expected, None, nonce, KEY) == text


def test_a_ciphertext_is_taken_once_in_order_and_whole():
    sender, receiver = NoiseCipher(KEY), NoiseCipher(KEY)
    first, second = sender.encrypt(b"first"), sender.encrypt(b"second")
    for wrong in (second, first[:-1], first + b"\0", first[:-1] + bytes([first[-1] ^ 1])):
        with pytest.raises(Unverified):
            receiver.decrypt(wrong)
    assert receiver.decrypt(first) == b"first"
    with pytest.raises(Unverified):
        receiver.decrypt(first)
    assert receiver.decrypt(second) == b"second"


def test_the_plain_cipher_has_the_length_of_the_real_one():
    text = b"x" * 20
    plain, real = PlainCipher(), NoiseCipher(KEY)
    assert len(plain.encrypt(text)) == len(real.encrypt(text)) == len(text) + TAG_SIZE
    plain.rekey()
    assert plain.decrypt(plain.encrypt(text)) == text


def test_plain_handshakes_have_different_hashes():
    pairs = [
        tuple(
            PlainHandshake(
                initiator=i, prologue=b"", psk=b"", static=OURS, entropy=entropy_of(seed)
            )
            for i in (True, False)
        )
        for seed in (b"1", b"2")
    ]
    for pair in pairs:
        run(*pair)
    assert pairs[0][0].hash != pairs[1][0].hash
