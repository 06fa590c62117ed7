"""An answer in parts, as a node sends it: server-sent events, out of bytes in any pieces.

    bytes ─► frames ─► part | end | error

Does not: ask (``calls``), or wait for bytes (the shells do).

Invariant: of one frame that does not end, at most ``ANSWER_MAX`` bytes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from p2pmesh.client.calls import ANSWER_MAX
from p2pmesh.errors import MeshError, PeerUnreachable, RemoteError

#: A node says something, if only a comment, every 15 s.
SILENCE_MAX: Final = 45.0


class Parts:
    """The parts of one answer."""

    def __init__(self, url: str, refused: Callable[[bytes], MeshError]) -> None:
        """``url``: of the node that sends them; ``refused``: what its problem document
        means."""
        self.is_over = False
        self._url = url
        self._refused = refused
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The parts that are whole by now.  Raises what the answer ended with."""
        searched = max(0, len(self._rest) - 1)
        self._rest += data
        while (end := self._rest.find(b"\n\n", searched)) >= 0:
            frame, searched = bytes(self._rest[:end]), 0
            del self._rest[: end + 2]
            event, content = _read(frame)
            match event:
                case b"part":
                    try:
                        yield msgspec.json.decode(content)
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                        raise self._malformed(str(error)) from None
                case b"end":
                    self.is_over = True
                    return
                case b"error":
                    raise self._refused(content)
        if len(self._rest) > ANSWER_MAX:
            raise self._malformed(f"a part exceeds {ANSWER_MAX:,} bytes")

    def broken_off(self, why: str) -> PeerUnreachable:
        """What it means that no more bytes come."""
        return PeerUnreachable(f"the answer broke off in the middle: {self._url} {why}; ask again")

    def _malformed(self, why: str) -> RemoteError:
        return RemoteError("malformed", f"does not answer as a p2pmesh node does: {why}", self._url)


def _read(frame: bytes) -> tuple[bytes, bytes]:
    """The event and the data of a frame; both empty for a comment."""
    event = data = b""
    for line in frame.split(b"\n"):
        if line.startswith(b"event:"):
            event = line[6:].strip()
        elif line.startswith(b"data:"):
            data = line[5:]
    return event, data
