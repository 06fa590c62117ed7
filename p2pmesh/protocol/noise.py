"""``Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s``, and its stand-in for simulations.

The pattern, in the words of the Noise specification (revision 34):

    -> e                     48 bytes (32, and 16 of tag over nothing)
    <- e, ee, s, es          96 bytes
    -> s, se, psk            64 bytes

Both ends prove a static X25519 key and the pre-shared key; neither static key
is readable on the wire; no payload travels inside the handshake.  With it come
two :class:`Cipher`, one a direction.

What the handshake does not prove is *who* the static key belongs to: the
signed record in the HELLO that follows says so.

:class:`PlainHandshake` and :class:`PlainCipher` have the same interface and
lengths and no cryptography at all.  Only a simulator of many nodes may use them.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

# The two calls that every frame makes go to libsodium directly: the checks and
# allocations of the public wrapper cost four times the encryption of a small
# frame.  A test holds them against the wrapper.
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]  # compiled, without stubs
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

PROTOCOL_NAME: Final = b"Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s"
KEY_SIZE: Final = 32
TAG_SIZE: Final = 16
MESSAGE_1_SIZE: Final = KEY_SIZE + TAG_SIZE
MESSAGE_2_SIZE: Final = KEY_SIZE + KEY_SIZE + TAG_SIZE + TAG_SIZE
MESSAGE_3_SIZE: Final = KEY_SIZE + TAG_SIZE + TAG_SIZE

_nonce: Final = struct.Struct("<4xQ").pack
_REKEY_NONCE: Final = _nonce(2**64 - 1)


class Unverified(Exception):
    """Bytes of the other side that do not verify."""


class StaticKey(NamedTuple):
    """A node's long-lived X25519 key pair.

    The secret is BLAKE2b-256 of nothing, keyed with the identity seed, with
    person ``p2pmesh x25519``.  The Ed25519 key of the node id comes from the same
    seed by another road, so neither key says anything about the other.
    """

    secret: bytes
    public: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> StaticKey:
        """The key pair that belongs to a 32-byte identity seed."""
        secret = hashlib.blake2b(key=seed, digest_size=32, person=b"p2pmesh x25519").digest()
        return cls(secret, crypto_scalarmult_base(secret))


class Cipher(Protocol):
    """One direction of an established link; each call is for the next frame."""

    def encrypt(self, plaintext: bytes) -> bytes:
        """The ciphertext, ``TAG_SIZE`` longer."""

    def decrypt(self, ciphertext: bytes) -> bytes:
        """The plaintext of at least ``TAG_SIZE`` bytes; raises :class:`Unverified`."""

    def rekey(self) -> None:
        """Replace the key by one from which it cannot be computed."""


class Handshake(Protocol):
    """The three messages, written and read in turn, with the result at their end."""

    remote_key: bytes  # after message 2 (initiator), message 3 (responder)
    hash: bytes  # 32 bytes that only the two ends of this handshake share

    def write(self) -> bytes: ...

    def read(self, message: bytes) -> None:
        """Take a message of the exact size; raises :class:`Unverified`."""

    def split(self) -> tuple[Cipher, Cipher]:
        """The ciphers for sending and for receiving, after message 3."""


class NoiseCipher:
    """Noise's CipherState after the handshake: no associated data, counted nonces."""

    __slots__ = ("_count", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        size = len(plaintext)
        out = _new(_CHARS, size + TAG_SIZE)
        _encrypt(out, _NULL, plaintext, size, _NULL, 0, _NULL, _nonce(self._count), self._key)
        self._count += 1
        ciphertext: bytes = _buffer(out)[:]
        return ciphertext

    def decrypt(self, ciphertext: bytes) -> bytes:
        size = len(ciphertext)
        out = _new(_CHARS, size - TAG_SIZE)
        nonce = _nonce(self._count)
        if _decrypt(out, _NULL, _NULL, ciphertext, size, _NULL, 0, nonce, self._key) != 0:
            raise Unverified("frame")
        self._count += 1
        plaintext: bytes = _buffer(out)[:]
        return plaintext

    def rekey(self) -> None:
        """REKEY of section 4.2; the count goes on."""
        self._key = crypto_aead_chacha20poly1305_ietf_encrypt(
            bytes(KEY_SIZE), None, _REKEY_NONCE, self._key
        )[:KEY_SIZE]


_new: Final = ffi.new
_buffer: Final = ffi.buffer
_CHARS: Final = ffi.typeof("unsigned char[]")
_NULL: Final = ffi.NULL
_encrypt: Final = lib.crypto_aead_chacha20poly1305_ietf_encrypt
_decrypt: Final = lib.crypto_aead_chacha20poly1305_ietf_decrypt


class NoiseHandshake:
    """Noise's SymmetricState and HandshakeState for this one pattern."""

    __slots__ = (
        "_chain", "_count", "_entropy", "_ephemeral", "_initiator", "_key", "_psk",
        "_remote_ephemeral", "_static", "_step", "hash", "remote_key",
    )  # fmt: skip

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        psk: bytes,
        static: StaticKey,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._initiator = initiator
        self._psk = psk
        self._static = static
        self._entropy = entropy
        self._key = b""
        self._count = 0
        self._step = 0
        self._chain = hashlib.blake2s(PROTOCOL_NAME).digest()
        self.hash = self._chain
        self.remote_key = b""
        self._mix_hash(prologue)

    def write(self) -> bytes:
        self._step += 1
        match self._step:
            case 1:  # e
                return self._write_ephemeral() + self._encrypt(b"")
            case 2:  # e, ee, s, es
                message = self._write_ephemeral()
                self._mix_ee()
                message += self._encrypt(self._static.public)
                self._mix_es()
                return message + self._encrypt(b"")
            case _:  # s, se, psk
                message = self._encrypt(self._static.public)
                self._mix_se()
                self._mix_psk()
                return message + self._encrypt(b"")

    def read(self, message: bytes) -> None:
        self._step += 1
        try:
            match self._step:
                case 1:
                    self._read_ephemeral(message[:KEY_SIZE])
                    self._decrypt(message[KEY_SIZE:])
                case 2:
                    self._read_ephemeral(message[:KEY_SIZE])
                    self._mix_ee()
                    self.remote_key = self._decrypt(message[KEY_SIZE:-TAG_SIZE])
                    self._mix_es()
                    self._decrypt(message[-TAG_SIZE:])
                case _:
                    self.remote_key = self._decrypt(message[:-TAG_SIZE])
                    self._mix_se()
                    self._mix_psk()
                    self._decrypt(message[-TAG_SIZE:])
        except CryptoError:  # a wrong tag, or a public key of low order
            raise Unverified(f"handshake message {self._step}") from None

    def split(self) -> tuple[NoiseCipher, NoiseCipher]:
        first, second, _ = _hkdf(self._chain, b"")
        sends, receives = (first, second) if self._initiator else (second, first)
        return NoiseCipher(sends), NoiseCipher(receives)

    # --- tokens: a key agreement is named by whose key meets whose ---------------

    def _write_ephemeral(self) -> bytes:
        secret = self._entropy(KEY_SIZE)
        self._ephemeral = StaticKey(secret, crypto_scalarmult_base(secret))
        self._mix_ephemeral(self._ephemeral.public)
        return self._ephemeral.public

    def _read_ephemeral(self, public: bytes) -> None:
        self._remote_ephemeral = public
        self._mix_ephemeral(public)

    def _mix_ephemeral(self, public: bytes) -> None:
        self._mix_hash(public)
        self._mix_key(public)  # section 9.2: in a psk pattern e is mixed twice

    def _mix_ee(self) -> None:
        self._mix_key(crypto_scalarmult(self._ephemeral.secret, self._remote_ephemeral))

    def _mix_es(self) -> None:
        if self._initiator:
            self._mix_key(crypto_scalarmult(self._ephemeral.secret, self.remote_key))
        else:
            self._mix_key(crypto_scalarmult(self._static.secret, self._remote_ephemeral))

    def _mix_se(self) -> None:
        if self._initiator:
            self._mix_key(crypto_scalarmult(self._static.secret, self._remote_ephemeral))
        else:
            self._mix_key(crypto_scalarmult(self._ephemeral.secret, self.remote_key))

    def _mix_psk(self) -> None:
        self._chain, mixed, self._key = _hkdf(self._chain, self._psk)
        self._count = 0
        self._mix_hash(mixed)

    # --- symmetric state ---------------------------------------------------------

    def _mix_key(self, material: bytes) -> None:
        self._chain, self._key, _ = _hkdf(self._chain, material)
        self._count = 0

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.blake2s(self.hash + data).digest()

    def _encrypt(self, plaintext: bytes) -> bytes:
        ciphertext = crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, self.hash, _nonce(self._count), self._key
        )
        self._count += 1
        self._mix_hash(ciphertext)
        return ciphertext

    def _decrypt(self, ciphertext: bytes) -> bytes:
        plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(
            ciphertext, self.hash, _nonce(self._count), self._key
        )
        self._count += 1
        self._mix_hash(ciphertext)
        return plaintext


def _hkdf(chain: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    """Section 4.3; the first two outputs are the same whether two or three are used."""
    secret = hmac.digest(chain, material, "blake2s")
    first = hmac.digest(secret, b"\x01", "blake2s")
    second = hmac.digest(secret, first + b"\x02", "blake2s")
    return first, second, hmac.digest(secret, second + b"\x03", "blake2s")


# --- the stand-in ----------------------------------------------------------------


class PlainCipher:
    """A cipher that hides and proves nothing: sixteen zero bytes behind the plaintext."""

    __slots__ = ()

    def encrypt(self, plaintext: bytes) -> bytes:
        return plaintext + _NO_TAG

    def decrypt(self, ciphertext: bytes) -> bytes:
        return ciphertext[:-TAG_SIZE]

    def rekey(self) -> None:
        pass


class PlainHandshake:
    """Random bytes where the ephemeral keys go, the static keys in the clear."""

    __slots__ = ("_entropy", "_initiator", "_nonce", "_public", "_step", "hash", "remote_key")

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        psk: bytes,
        static: StaticKey,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._initiator = initiator
        self._public = static.public
        self._entropy = entropy
        self._nonce = b""
        self._step = 0
        self.hash = b""
        self.remote_key = b""

    def write(self) -> bytes:
        self._step += 1
        if self._step == 3:
            return self._public + _NO_TAG + _NO_TAG
        half = self._entropy(16)
        self.hash += half
        if self._step == 1:
            return half + _NO_TAG + _NO_TAG
        return half + _NO_TAG + self._public + _NO_TAG + _NO_TAG

    def read(self, message: bytes) -> None:
        self._step += 1
        if self._step < 3:
            self.hash += message[:16]
        if self._step > 1:
            self.remote_key = message[-KEY_SIZE - 2 * TAG_SIZE : -2 * TAG_SIZE]

    def split(self) -> tuple[PlainCipher, PlainCipher]:
        return PlainCipher(), PlainCipher()


_NO_TAG: Final = bytes(TAG_SIZE)
