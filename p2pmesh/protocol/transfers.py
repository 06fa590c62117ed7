"""Large messages on one link: cut into chunks that yield to everything small.

    Outgoing:  put ─► waiting ─► active ──chunk by chunk, in turn──► the wire
                                   ▲                                   │
                                   └───────────── Taken ◄──────────────┘ Incoming

At most TRANSFER_WINDOW bytes of chunks are under way that the peer's process has not
taken, so neither end's kernel nor transport fills up, and whatever else is said waits
for so much at most.  A message is cut as it goes: beside the payload, which whoever
sends it holds anyway, a link keeps no copy of it.

Of messages above PROGRESS_MIN one at a time is under way, of smaller ones several, so
that neither waits for the other.  A numbered message that waits or is under way
already is not taken a second time.

Not here: order within a stream (a large message travels alone in it: ``outbox``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from io import BytesIO
from typing import Final, NamedTuple

from p2pmesh.protocol import limits, payloads, timing, wire

CHUNK_DATA: Final = limits.CHUNK_MAX - 64
_RESERVE_FROM: Final = 512 * 1024  # bytes of a value that are here


class TransferError(Exception):
    """Chunks that break the rules."""


class Progress(NamedTuple):
    """So much of the payload of this message has the peer's process."""

    message: wire.Message
    sent: int
    total: int


class _Transfer:
    """One message on its way."""

    __slots__ = ("at", "is_long", "message", "number", "payload", "told_at")

    def __init__(self, message: wire.Message) -> None:
        self.message = message
        self.payload = wire.payload_of(message)
        self.is_long = len(self.payload) > limits.PROGRESS_MIN
        self.number = 0
        self.at = 0  # bytes of the payload that were cut off
        self.told_at = 0.0

    @property
    def is_cut(self) -> bool:
        return self.at == len(self.payload)

    def cut(self) -> tuple[bytes, int]:
        """The next chunk, encoded, and how much of the payload it carries."""
        around = wire.encode(wire.carrying(self.message, b"")) if self.at == 0 else b""
        data = self.payload[self.at : self.at + CHUNK_DATA - len(around)]
        self.at += len(data)
        return wire.encode(wire.Chunk(self.number, self.is_cut, data, around)), len(data)


class Outgoing:
    """What a link has to say that is larger than LARGE_MIN."""

    __slots__ = ("_active", "_chunked", "_numbers", "_on_way", "_sent", "_taken", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[_Transfer] = deque()
        self._active: deque[_Transfer] = deque()  # in turn
        self._on_way: dict[tuple[bytes, int], None] = {}  # the numbered ones that are here
        self._chunked: deque[tuple[int, int, _Transfer]] = deque()  # cut, not taken
        self._numbers = 0
        self._sent = 0  # bytes of all chunks
        self._taken = 0

    def __bool__(self) -> bool:
        return bool(self._active or self._waiting)

    def put(self, message: wire.Message) -> None:
        key = _key(message)
        if key is not None:
            if key in self._on_way:
                return
            self._on_way[key] = None
        self._waiting.append(_Transfer(message))

    def may_go(self) -> bool:
        """Is there a chunk, and room for it on the way?"""
        return bool(self) and self._sent - self._taken < limits.TRANSFER_WINDOW

    def next(self) -> bytes:
        """The next chunk, of the message whose turn it is; ``self`` may not be empty."""
        self._start()
        transfer = self._active.popleft()
        encoded, size = transfer.cut()
        if not transfer.is_cut:
            self._active.append(transfer)
        elif (key := _key(transfer.message)) is not None:
            del self._on_way[key]
        self._sent += size
        if transfer.is_long:
            self._chunked.append((self._sent, transfer.at, transfer))
        return encoded

    def pieces(self, encoded: bytes) -> Iterator[bytes]:
        """The chunks of a message that goes in one go, between others of its queue."""
        number = self._number()
        for at in range(0, len(encoded), CHUNK_DATA):
            data = encoded[at : at + CHUNK_DATA]
            self._sent += len(data)
            yield wire.encode(wire.Chunk(number, at + CHUNK_DATA >= len(encoded), data))

    def taken(self, size: int, now: float) -> list[Progress]:
        """The peer's process has so many bytes of chunks by now.  Raises TransferError.
        Returns how far long messages are, now and then of each, and always its end."""
        if not self._taken <= size <= self._sent:
            raise TransferError("taken")
        self._taken = size
        reached: dict[_Transfer, int] = {}
        while self._chunked and self._chunked[0][0] <= size:
            _, at, transfer = self._chunked.popleft()
            reached[transfer] = at
        found = []
        for transfer, at in reached.items():
            total = len(transfer.payload)
            if at < total and now < transfer.told_at + timing.PROGRESS_INTERVAL:
                continue
            transfer.told_at = now
            found.append(Progress(transfer.message, at, total))
        return found

    def _start(self) -> None:
        """Begin what may be under way together."""
        long = sum(transfer.is_long for transfer in self._active)
        short = len(self._active) - long
        for transfer in list(self._waiting):
            if transfer.is_long:
                if long:
                    continue
                long += 1
            else:
                if short == limits.TRANSFERS_AT_ONCE:
                    continue
                short += 1
            self._waiting.remove(transfer)
            transfer.number = self._number()
            self._active.append(transfer)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def _key(message: wire.Message) -> tuple[bytes, int] | None:
    match message:
        case wire.Post() | wire.Handed():
            return message.stream, message.seq
        case wire.Part():
            return b"part %d" % message.request, message.number
    return None


class _Half:
    """A message of which not all is here."""

    __slots__ = ("around", "data", "head", "message", "reserved", "size")

    def __init__(self, around: bytes) -> None:
        self.around = around
        self.message = wire.decode(around) if around else None
        if self.message is not None:
            wire.carrying(self.message, b"")  # Malformed, if it carries nothing
        self.head = b""  # of a payload that opens as one large value
        self.data = BytesIO()  # gives its bytes away without copying them
        self.size = 0
        self.reserved = 0

    def reserve(self, room: int) -> int:
        """Once enough is here, have room for all of a large value, so that the rest does
        not move it again and again; how much, at most ``room``, was reserved."""
        if self.reserved or not self.head or self.size < _RESERVE_FROM:
            return 0
        declared = payloads.declared_size(self.head)
        if not self.size < declared <= room:
            return 0
        self.reserved = declared
        grown = BytesIO(bytes(declared))
        grown.write(self.data.getbuffer())
        self.data = grown
        return declared

    def take(self, data: bytes) -> None:
        if not self.size and self.around and payloads.opens_blob(data):
            self.head = data[: payloads.HEAD_SIZE]
        self.data.write(memoryview(data)[len(self.head) :] if not self.size else data)
        self.size += len(data)

    def whole(self) -> wire.Message | None:
        """None: of a kind that is not known here."""
        self.data.truncate()  # what was reserved and did not come
        data = self.data.getvalue()
        if not self.around:
            return wire.decode(data)
        if self.message is None:
            return None
        payload = payloads.of_pieces(self.head, data) if self.head else data
        return wire.carrying(self.message, payload)


class Incoming:
    """Half-received messages of one link, and how much of chunks was taken."""

    __slots__ = ("_bytes", "_halves", "_is_due", "_reserved", "_said", "_taken")

    def __init__(self) -> None:
        self._halves: dict[int, _Half] = {}
        self._bytes = 0
        self._reserved = 0  # at most one message's worth
        self._taken = 0
        self._said = 0
        self._is_due = False  # a large message is whole

    def take(self, chunk: wire.Chunk) -> bool:
        """Is the message of this chunk whole by it?  Then ``put_together`` it.  Raises
        TransferError and Malformed."""
        half = self._halves.get(chunk.transfer)
        if half is None:
            if len(self._halves) >= limits.TRANSFERS_MAX:
                raise TransferError("transfers")
            half = self._halves[chunk.transfer] = _Half(chunk.around)
        half.take(chunk.data)
        self._reserved += half.reserve(limits.LARGE_MESSAGE_MAX - self._reserved)
        size = len(chunk.data)
        self._taken += size
        self._bytes += size
        if half.size > limits.LARGE_MESSAGE_MAX or self._bytes > limits.TRANSFER_BYTES_MAX:
            raise TransferError("transfer_size")
        return chunk.last

    def put_together(self, chunk: wire.Chunk) -> wire.Message | None:
        """The message whose last chunk this was; None: of a kind that is not known here.
        Raises Malformed."""
        half = self._halves.pop(chunk.transfer)
        self._bytes -= half.size
        self._reserved -= half.reserved
        self._is_due = self._is_due or bool(half.around)
        return half.whole()

    def word(self) -> wire.Taken | None:
        """What the peer is to be told of that, if it is due."""
        if self._taken - self._said < limits.TRANSFER_WINDOW // 4 and not self._is_due:
            return None
        self._is_due = False
        self._said = self._taken
        return wire.Taken(self._taken)
