"""One link's bytes: preface, handshake, then frames.

What each side reads and writes, in order:

    side        reads                 writes                  and then is
    initiator   (the link opened)     preface, message 1
                preface, message 2    message 3               established
    responder   preface, message 1    preface, message 2
                message 3                                     established

    preface = magic "p2pm" · version (1) · flags (1) · kid (6)

The initiator's preface is the handshake's prologue, so that a byte changed on
the way fails it; the responder repeats it.  A responder that cannot go on writes
a *refusal* in its place and closes.  A refusal is not authenticated: a hint for
people, no evidence of anything.

The version is that of preface, handshake and framing; which messages the two
ends understand is settled by their HELLOs.

Not here: time (who owns the link ends a handshake that takes too long, and calls
:meth:`Session.rekey` every hour), and whom the remote key belongs to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import Enum, IntEnum, auto
from typing import Final

from p2pmesh.protocol.frames import BadFrame, FrameReader, FrameWriter
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.noise import (
    MESSAGE_1_SIZE,
    MESSAGE_2_SIZE,
    MESSAGE_3_SIZE,
    Handshake,
    NoiseHandshake,
    PlainHandshake,
    StaticKey,
    Unverified,
)

MAGIC: Final = b"p2pm"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
PREFACE_SIZE: Final = 12

NOT_P2PMESH: Final = "not p2pmesh"
OTHER_KEY: Final = "other mesh or key"
HANDSHAKE_FAILED: Final = "handshake failed"
BAD_FRAME: Final = "bad frame"
NO_HANDSHAKE: Final = "handshake timeout"

_preface: Final = struct.Struct("4sBB6s")


REFUSED: Final = 0x80  # the bit in the flags of every refusal, of this version or a later one


class Refusal(IntEnum):
    """The flags byte of a refusal, and what its last six bytes then hold."""

    VERSION = REFUSED | 1  # the lowest and the highest version spoken, zeros
    KID = REFUSED | 2  # the kid that is not known
    HANDSHAKE = REFUSED | 3  # the kid


class SessionError(Exception):
    """The link is of no more use: write ``reply``, if any, then close.

    ``reason`` is for people and counters: one of the constants above, or
    ``version 3 is not among 1..1``.
    """

    def __init__(self, reason: str, reply: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class _Next(Enum):
    """What this end reads next."""

    OFFER = auto()  # the initiator's preface
    MESSAGE_1 = auto()
    ANSWER = auto()  # the responder's preface
    MESSAGE_2 = auto()
    MESSAGE_3 = auto()
    FRAMES = auto()


_SIZES: Final = {
    _Next.OFFER: PREFACE_SIZE,
    _Next.MESSAGE_1: MESSAGE_1_SIZE,
    _Next.ANSWER: PREFACE_SIZE,
    _Next.MESSAGE_2: MESSAGE_2_SIZE,
    _Next.MESSAGE_3: MESSAGE_3_SIZE,
}


class Session:
    """One end of a link.  Of no more use once it raised :class:`SessionError`.

    ``null_cipher`` replaces all cryptography by bytes of equal length: for
    simulations only.
    """

    __slots__ = (
        "_buffer", "_entropy", "_handshake", "_initiator", "_keys", "_next", "_null_cipher",
        "_offer", "_reader", "_static", "_writer", "established", "handshake_hash", "remote_key",
    )  # fmt: skip

    def __init__(
        self,
        *,
        initiator: bool,
        static: StaticKey,
        keys: KeyRing,
        entropy: Callable[[int], bytes],
        null_cipher: bool = False,
    ) -> None:
        self.established = False  # the handshake is done on this side
        self.remote_key = b""  # once established: the other side's X25519 key
        self.handshake_hash = b""  # once established: 32 bytes, the same at both ends only
        self._initiator = initiator
        self._static = static
        self._keys = keys
        self._entropy = entropy
        self._null_cipher = null_cipher
        self._offer = b""  # the initiator's preface
        self._handshake: Handshake | None = None
        self._writer: FrameWriter | None = None
        self._reader: FrameReader | None = None
        self._buffer = b""  # less than what is read next
        self._next = _Next.ANSWER if initiator else _Next.OFFER

    # --- what the owner of the link calls --------------------------------------

    def start(self) -> bytes:
        """What to write when the connection has opened; once, before ``feed``."""
        if not self._initiator:
            return b""
        key = self._keys.offered
        self._offer = _preface.pack(MAGIC, VERSION_MAX, 0, key.kid)
        self._handshake = self._begin(key.psk)
        return self._offer + self._handshake.write()

    def feed(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """Take received bytes, however they were cut.

        Returns the bytes to write and the messages that are complete and
        verified.  Raises :class:`SessionError`.
        """
        written = b""
        if self._reader is None:
            written, data = self._shake(data)
            if self._reader is None:
                return written, []
        try:
            return written, self._reader.feed(data)
        except BadFrame:
            raise SessionError(BAD_FRAME) from None

    def seal(self, messages: Sequence[bytes]) -> bytes:
        """The bytes that carry these messages, in order; once established.
        ``ValueError`` when one is longer than ``frames.MESSAGE_MAX``."""
        assert self._writer is not None, "sealed before the handshake was done"
        return self._writer.seal(messages)

    def rekey(self) -> bytes:
        """Bytes behind which everything uses the next key.  ``seal`` does this
        every 2**20 frames; the owner of the link does it every hour."""
        assert self._writer is not None, "rekeyed before the handshake was done"
        return self._writer.rekey()

    # --- the handshake ---------------------------------------------------------

    def _shake(self, data: bytes) -> tuple[bytes, bytes]:
        """Take what the handshake wants of ``data``: (bytes to write, the rest)."""
        data = self._buffer + data
        written = b""
        while self._next is not _Next.FRAMES:
            size = _SIZES[self._next]
            if size == PREFACE_SIZE and not MAGIC.startswith(data[: len(MAGIC)]):
                raise SessionError(NOT_P2PMESH)
            if len(data) < size:
                self._buffer = data
                return written, b""
            written += self._take(data[:size])
            data = data[size:]
        self._buffer = b""
        return written, data

    def _take(self, read: bytes) -> bytes:
        """Take what was to be read next; the bytes to write for it."""
        match self._next:
            case _Next.OFFER:
                self._handshake = self._accept(read)
                self._next = _Next.MESSAGE_1
                return b""
            case _Next.ANSWER:
                self._check_answer(read)
                self._next = _Next.MESSAGE_2
                return b""
            case _Next.MESSAGE_1:
                handshake = self._read(read, _refusal(Refusal.HANDSHAKE, self._offer[-6:]))
                self._next = _Next.MESSAGE_3
                return self._offer + handshake.write()
            case _Next.MESSAGE_2:
                handshake = self._read(read)
                message = handshake.write()
                self._establish(handshake)
                return message
            case _:
                self._establish(self._read(read))
                return b""

    def _accept(self, offer: bytes) -> Handshake:
        """The handshake that the initiator's preface asks for, or a refusal."""
        _, version, flags, kid = _preface.unpack(offer)
        if flags & REFUSED:
            raise SessionError(HANDSHAKE_FAILED)
        if not VERSION_MIN <= version <= VERSION_MAX:
            raise SessionError(
                _foreign(version, VERSION_MIN, VERSION_MAX),
                _refusal(Refusal.VERSION, bytes((VERSION_MIN, VERSION_MAX))),
            )
        psk = self._keys.accepted.get(kid)
        if psk is None:
            raise SessionError(OTHER_KEY, _refusal(Refusal.KID, kid))
        self._offer = offer
        return self._begin(psk)

    def _check_answer(self, answer: bytes) -> None:
        """The responder repeats our preface, or says why there is no handshake."""
        if answer == self._offer:
            return
        _, _, flags, rest = _preface.unpack(answer)
        match flags:
            case Refusal.VERSION:
                raise SessionError(_foreign(VERSION_MAX, rest[0], rest[1]))
            case Refusal.KID:
                raise SessionError(OTHER_KEY)
            case _:
                raise SessionError(HANDSHAKE_FAILED)

    def _begin(self, psk: bytes) -> Handshake:
        begin = PlainHandshake if self._null_cipher else NoiseHandshake
        return begin(
            initiator=self._initiator,
            prologue=self._offer,
            psk=psk,
            static=self._static,
            entropy=self._entropy,
        )

    def _read(self, message: bytes, refusal: bytes = b"") -> Handshake:
        assert self._handshake is not None, "fed before it was started"
        try:
            self._handshake.read(message)
        except Unverified:
            raise SessionError(HANDSHAKE_FAILED, refusal) from None
        return self._handshake

    def _establish(self, handshake: Handshake) -> None:
        sending, receiving = handshake.split()
        self._writer = FrameWriter(sending)
        self._reader = FrameReader(receiving)
        self.remote_key = handshake.remote_key
        self.handshake_hash = handshake.hash
        self.established = True
        self._handshake = None  # its secrets are of no more use
        self._next = _Next.FRAMES


def _refusal(why: Refusal, detail: bytes) -> bytes:
    return _preface.pack(MAGIC, VERSION_MAX, why, detail)


def _foreign(version: int, lowest: int, highest: int) -> str:
    return f"version {version} is not among {lowest}..{highest}"
