"""Registry calls on their way to another node.

    Forwarding   call ──Call──► home ──CallResult──► answered()
                 no answer in FORWARD_TIMEOUT, or the home died ─► mute(), gone()
                 a read that waits: "waiting" ─► hold() ──CallResult──► answered()

A call is said when there is a way to the home, and once more on every new one.  While
one is held, a way to its home is kept: that is how mail is told.

Not here: who is asked, and what a mute home means (``guestdesk``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import milliseconds
from p2pmesh.protocol.types import Envelope, Instant, Life, NodeId
from p2pmesh.protocol.ways import NEVER, Ways

#: The arguments of a call, by their type; None: to deregister, or a ping.
Body: TypeAlias = (
    wire.RegisterBody | wire.HeartbeatBody | wire.ReadBody | wire.AckBody | Envelope | None
)
_BODIES: Final[dict[str, msgspec.msgpack.Decoder[Body] | None]] = {
    "register": msgspec.msgpack.Decoder(wire.RegisterBody),
    "heartbeat": msgspec.msgpack.Decoder(wire.HeartbeatBody),
    "deregister": None,
    "ping": None,
    "read": msgspec.msgpack.Decoder(wire.ReadBody),
    "ack": msgspec.msgpack.Decoder(wire.AckBody),
    "respond": msgspec.msgpack.Decoder(Envelope),
}
_LETTERS: Final = msgspec.msgpack.Decoder(wire.Letters)
NO_LETTERS: Final = wire.Letters((), ())

_T = TypeVar("_T")


def body_of(message: wire.Call) -> Body | Literal["malformed"]:
    """The arguments of a peer's call."""
    if message.operation not in _BODIES:
        return "malformed"
    decoder = _BODIES[message.operation]
    if decoder is None:
        return None
    body = _decoded(decoder, message.body)
    return "malformed" if body is None else body


def letters_of(message: wire.CallResult) -> wire.Letters | None:
    """What a read brought; None: malformed."""
    letters = _decoded(_LETTERS, message.body)
    if letters is None or len(letters.messages) != len(letters.vias):
        return None
    return letters


def _decoded(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T | None:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None


class Forwarded:
    """A call of this node's users, until it ends."""

    __slots__ = (
        "asked", "body", "call", "deadline", "home", "instance_id", "is_held", "life",
        "operation", "said_at", "until",
    )  # fmt: skip

    def __init__(
        self, call: int, operation: str, instance_id: str, body: Body, until: float = 0.0
    ) -> None:
        self.call = call  # 0: nobody waits for it
        self.operation = operation
        self.instance_id = instance_id
        self.body = body
        self.deadline = NEVER
        self.home: NodeId = b""  # the last one that was asked
        self.life: Life | None = None
        self.asked = 0  # homes asked so far
        self.until = until  # of a read that waits for mail; 0: it does not
        self.said_at = 0.0  # the last time
        self.is_held = False  # its home has no mail yet, and answers when it has

    def body_at(self, at: Instant) -> Body:
        """The arguments as they are now: a wait grows shorter."""
        if self.until and isinstance(self.body, wire.ReadBody):
            return wire.ReadBody(self.body.limit, milliseconds(self.until - at.now))
        return self.body


class Forwarding:
    """Calls that wait for another node."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.next_at = NEVER
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._number = int.from_bytes(entropy(6))  # of this life: see requests
        self._calls: dict[int, Forwarded] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[int]:
        return iter(self._calls)

    def forward(self, at: Instant, call: Forwarded, home: NodeId) -> bool:
        """Ask this home.  False: too many calls wait."""
        if len(self._calls) >= limits.CALLS_MAX:
            self._counters["calls_full"] += 1
            return False
        call.home = home
        call.life = self._directory.node_life(home)
        call.asked += 1
        call.is_held = False
        call.deadline = at.now + timing.FORWARD_TIMEOUT
        self.next_at = min(self.next_at, call.deadline)
        self._number += 1
        self._calls[self._number] = call
        if self._ways.is_open(home):
            self._say(at, self._number, call)
        else:
            self._ways.want(at, home)
        return True

    def _say(self, at: Instant, number: int, call: Forwarded) -> None:
        body = b"" if call.body is None else msgspec.msgpack.encode(call.body_at(at))
        call.said_at = at.now
        self._ways.send(call.home, wire.Call(number, call.operation, call.instance_id, body))

    def opened(self, at: Instant, peer: NodeId) -> None:
        """There is a new way to this peer: what was called or answered may be lost."""
        for number, call in self._calls.items():
            if call.home == peer:
                self._say(at, number, call)

    def closed(self, at: Instant, peer: NodeId) -> None:
        """No way to this peer is left."""
        if any(call.home == peer for call in self._calls.values()):
            self._ways.want(at, peer)

    def answered(self, peer: NodeId, number: int) -> Forwarded | None:
        """The call that the peer answers; None: none that was asked of it."""
        call = self._calls.get(number)
        if call is None or call.home != peer:
            self._counters["call_result_late"] += 1
            return None
        return self._calls.pop(number)

    def hold(self, number: int, call: Forwarded) -> None:
        """Its home has taken it, and answers when there is mail."""
        call.is_held = True
        call.asked = 0
        call.deadline = call.until
        self.next_at = min(self.next_at, call.deadline)
        self._calls[number] = call

    def moved(
        self, instances: Collection[str], home_of: Callable[[str], NodeId | None]
    ) -> list[Forwarded]:
        """The calls about these whose home is another by now, taken out: what the former
        one still answers is of yesterday.  Where there is none (any more), that one's
        answer says more, unless it only waits."""
        found: list[int] = []
        for number, call in self._calls.items():
            if call.instance_id in instances:
                home = home_of(call.instance_id)
                if home != call.home and (home is not None or call.is_held):
                    found.append(number)
        return self._taken(found)

    def held(self) -> list[Forwarded]:
        """All held calls, taken out."""
        return self._taken([number for number, call in self._calls.items() if call.is_held])

    def give_up(self, call: int) -> None:
        """Nobody waits for this read any more.  What changes something goes on."""
        for number, forwarded in self._calls.items():
            if forwarded.call == call and forwarded.operation == "read":
                del self._calls[number]
                if self._ways.is_open(forwarded.home):
                    self._ways.send(forwarded.home, wire.CallCancel(number))
                return

    def gone(self, nodes: Collection[NodeId]) -> list[Forwarded]:
        """The calls whose home died, or lives anew, taken out."""
        return self._taken(
            [
                number
                for number, call in self._calls.items()
                if call.home in nodes and self._directory.node_life(call.home) != call.life
            ]
        )

    def mute(self, at: Instant) -> list[Forwarded]:
        """The calls that were not answered in time, or held as long as they may be, taken out."""
        if at.now < self.next_at:
            return []
        late = [number for number, call in self._calls.items() if call.deadline <= at.now]
        self._counters["call_unanswered"] += sum(not self._calls[n].is_held for n in late)
        taken = self._taken(late)
        self.next_at = min((call.deadline for call in self._calls.values()), default=NEVER)
        return taken

    def _taken(self, numbers: list[int]) -> list[Forwarded]:
        return [self._calls.pop(number) for number in numbers]
