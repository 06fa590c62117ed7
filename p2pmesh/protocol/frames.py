"""Frames: messages packed into ciphertexts, and back out of a stream of bytes.

    stream    = frame*
    frame     = length (u16, big endian) of the ciphertext, ciphertext
    plaintext = (length (u16, big endian), message)*

Everything that is queued when a link writes shares frames: one call of the
cipher costs as much as twenty messages.  A frame without any message says that
the sender's key changes behind it.

Nothing is allocated from a length that the other side declares: bytes are kept
as they came, at most one frame of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from p2pmesh.protocol.limits import FRAME_MAX
from p2pmesh.protocol.noise import TAG_SIZE, Cipher, Unverified

REKEY_FRAMES: Final = 2**20
PLAINTEXT_MAX: Final = FRAME_MAX - TAG_SIZE
MESSAGE_MAX: Final = PLAINTEXT_MAX - 2

_u16: Final = struct.Struct(">H").pack


class BadFrame(Exception):
    """The stream cannot be followed any further."""


class FrameWriter:
    """Packs and encrypts what one end of a link sends."""

    __slots__ = ("_cipher", "_left")

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self._left = REKEY_FRAMES

    def seal(self, messages: Sequence[bytes]) -> bytes:
        """The messages in as few frames as they fit; ``ValueError`` when one is
        longer than ``MESSAGE_MAX``."""
        if len(messages) == 1:
            message = messages[0]
            return self._frame(_u16(_fits(len(message))) + message)
        written = []
        parts: list[bytes] = []
        room = PLAINTEXT_MAX
        for message in messages:
            needed = _fits(len(message)) + 2
            if needed > room:
                written.append(self._frame(b"".join(parts)))
                parts = []
                room = PLAINTEXT_MAX
            parts.append(_u16(needed - 2))
            parts.append(message)
            room -= needed
        if parts:
            written.append(self._frame(b"".join(parts)))
        return b"".join(written)

    def rekey(self) -> bytes:
        """An empty frame; those behind it use the next key."""
        ciphertext = self._cipher.encrypt(b"")
        self._cipher.rekey()
        self._left = REKEY_FRAMES
        return _u16(len(ciphertext)) + ciphertext

    def _frame(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt(plaintext)
        self._left -= 1
        if self._left:
            return _u16(len(ciphertext)) + ciphertext
        return _u16(len(ciphertext)) + ciphertext + self.rekey()


class FrameReader:
    """Decrypts and unpacks what one end of a link receives."""

    __slots__ = ("_cipher", "_rest")

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self._rest = b""  # less than one frame

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes, however the stream was cut;
        raises :class:`BadFrame`, after which the link is of no more use."""
        if self._rest:
            data = self._rest + data
        messages: list[bytes] = []
        size = len(data)
        start = 0
        while start + 2 <= size:
            end = start + 2 + (data[start] << 8 | data[start + 1])
            if end > size:
                break
            self._open(data[start + 2 : end], messages)
            start = end
        self._rest = data[start:]
        return messages

    def _open(self, ciphertext: bytes, messages: list[bytes]) -> None:
        if len(ciphertext) < TAG_SIZE:
            raise BadFrame("shorter than a tag")
        try:
            plaintext = self._cipher.decrypt(ciphertext)
        except Unverified:
            raise BadFrame("not encrypted with this link's key") from None
        if not plaintext:
            self._cipher.rekey()
        size = len(plaintext)
        start = 0
        while start < size:
            if start + 2 > size:
                raise BadFrame("a message without its length")
            end = start + 2 + (plaintext[start] << 8 | plaintext[start + 1])
            if end > size:
                raise BadFrame("a message longer than its frame")
            messages.append(plaintext[start + 2 : end])
            start = end


def _fits(size: int) -> int:
    if size > MESSAGE_MAX:
        raise ValueError(f"a message of {size} bytes, over {MESSAGE_MAX}, does not fit a frame")
    return size
