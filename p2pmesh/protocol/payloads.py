"""Payloads as they lie in memory: MessagePack in one piece, or a large value of ``bytes``.

In MessagePack such a value stands behind five bytes, and to put them before 16 MiB, or
to take them off again, is a copy that holds the event loop for ten milliseconds.  So the
sender's value stays as it is, chunks are cut out of it, and what comes out of chunks at
the other end is that value again.

Invariant: on a link and in a store a payload is MessagePack, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

_BIN_32: Final = b"\xc6"
#: Of a value that is not in memory as one of MessagePack's own: its kind and its length.
HEAD_SIZE: Final = 5


class Blob:
    """The MessagePack of a value of ``bytes`` of 64 KiB or more, without being made."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    @property
    def _head(self) -> bytes:
        return _BIN_32 + len(self.value).to_bytes(4)

    def __len__(self) -> int:
        return HEAD_SIZE + len(self.value)

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        body = self.value[max(0, start - HEAD_SIZE) : max(0, stop - HEAD_SIZE)]
        return self._head[start:stop] + body if start < HEAD_SIZE else body

    def __bytes__(self) -> bytes:
        return self._head + self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


if TYPE_CHECKING:
    Payload: TypeAlias = bytes | Blob
else:
    Payload = bytes  # what decoders make


def as_bytes(value: Any) -> bytes:
    """For encoders: what a Blob is where it is written."""
    if isinstance(value, Blob):
        return bytes(value)
    raise TypeError(f"a {type(value).__name__} is not written")


def opens_blob(data: bytes) -> bool:
    """Are these the first bytes of what could be a Blob?"""
    return len(data) >= HEAD_SIZE and data.startswith(_BIN_32)


def declared_size(head: bytes) -> int:
    """How long the value behind these first bytes of a Blob says it is."""
    return int.from_bytes(head[1:])


def of_pieces(head: bytes, rest: bytes) -> Payload:
    """The payload whose first HEAD_SIZE bytes open a Blob."""
    blob = Blob(rest)
    return blob if blob._head == head else head + rest
