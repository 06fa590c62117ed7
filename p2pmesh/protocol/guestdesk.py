"""The registry's calls: answered here, or by the home of the instance.

Where an instance is decides (``_place``), for a caller here as for a peer's Call:

    place     register          heartbeat       deregister    read        acknowledge
    MINE      refreshed         revives         leaves        its mail    done
    AGENT     conflict          ok              forbidden     at its node at its node
    REMOTE    at its home       at its home     at its home   its home    its home
     (mute)   adopted here      adopted here    unavailable   unavailable ok, kept
    ORPHAN    adopted here      adopted here    left here     nothing     ok, kept
    NOWHERE   new here          unknown         unknown       nothing     ok

A forwarded call waits FORWARD_TIMEOUT (*mute*: no answer by then, or the home died
meanwhile).  An acknowledgement that its home did not take is kept and sent again.
A guest's Response goes to its home first, which knows who asked; if it answers
nothing there, it becomes a message.

Not here: what a guest's entry says (``guests``), and what is in mailboxes (``home``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from enum import Enum
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.dispatch import NEVER, Announce, Dispatch
from p2pmesh.protocol.guests import Guests, is_registrable
from p2pmesh.protocol.home import HandOver, Home
from p2pmesh.protocol.requests import Answering
from p2pmesh.protocol.stamps import joining_stamp
from p2pmesh.protocol.types import (
    CallEnded,
    Envelope,
    GuestEntry,
    Instant,
    Life,
    NodeId,
    State,
)

_ACK_RETRY: Final = 5.0
_ACKS_KEPT_FOR: Final = 3600.0
_ASKED_HOMES_MAX: Final = 2


_T = TypeVar("_T")


class Place(Enum):
    """Where an instance is, to a registry call."""

    MINE = "mine"  # a guest of this home
    AGENT = "agent"  # a live node's own
    REMOTE = "remote"  # a guest of another live home
    ORPHAN = "orphan"  # a guest whose home is gone
    NOWHERE = "nowhere"


class _Where(NamedTuple):
    place: Place
    home: NodeId | None = None
    entry: GuestEntry | None = None  # the highest known


_Body = wire.RegisterBody | wire.HeartbeatBody | wire.ReadBody | wire.AckBody | Envelope | None
_BODIES: Final[dict[str, msgspec.msgpack.Decoder[_Body] | None]] = {
    "register": msgspec.msgpack.Decoder(wire.RegisterBody),
    "heartbeat": msgspec.msgpack.Decoder(wire.HeartbeatBody),
    "deregister": None,
    "read": msgspec.msgpack.Decoder(wire.ReadBody),
    "ack": msgspec.msgpack.Decoder(wire.AckBody),
    "respond": msgspec.msgpack.Decoder(Envelope),
}
_LETTERS: Final = msgspec.msgpack.Decoder(wire.Letters)
_STATUSES: Final = frozenset({"ok", "unknown", "conflict", "forbidden", "full", "unavailable"})
_NO_LETTERS: Final = wire.Letters((), ())


class _Outcome(NamedTuple):
    status: str
    letters: wire.Letters = _NO_LETTERS


class Responded(NamedTuple):
    """What became of a guest's Response that its home was asked about."""

    envelope: Envelope
    is_answer: bool  # False: it answers nothing there, and is a message


class _Forwarded:
    """A call that waits for another node."""

    __slots__ = ("asked", "body", "call", "deadline", "home", "instance_id", "life", "operation")

    def __init__(self, call: int, operation: str, instance_id: str, body: _Body) -> None:
        self.call = call  # 0: nobody waits for it
        self.operation = operation
        self.instance_id = instance_id
        self.body = body
        self.deadline = NEVER
        self.home: NodeId = b""
        self.life: Life | None = None
        self.asked = 0  # homes asked so far


class GuestDesk:
    """Registry calls of this node's users, and of its peers."""

    def __init__(
        self,
        directory: Directory,
        dispatch: Dispatch,
        home: Home,
        answering: Answering,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.guests = Guests(directory.me)
        self._responded: list[Responded] = []
        self._next_at = NEVER
        self._directory = directory
        self._dispatch = dispatch
        self._home = home
        self._answering = answering
        self._counters = counters
        self._entropy = entropy
        self._life = directory.my_life()
        self._calls = 0
        self._number = int.from_bytes(entropy(6))  # of a life: see requests
        self._forwarded: dict[int, _Forwarded] = {}
        self._acks: dict[str, dict[str, float]] = {}  # instance -> message -> kept until
        self._acks_kept = 0

    @property
    def next_at(self) -> float:
        return min(self._next_at, self.guests.next_at)

    # --- calls ------------------------------------------------------------------------

    def call(self, at: Instant, operation: str, instance_id: str, body: _Body) -> int:
        """A user's call; the number in the CallEnded that follows, perhaps at once."""
        self._calls += 1
        self._go(at, _Forwarded(self._calls, operation, instance_id, body))
        return self._calls

    def respond(self, at: Instant, response: Envelope) -> bool:
        """A Response of a guest of another home: ask there whether it is an answer.

        ``take_responded`` tells the outcome.  False: there is no such home.
        """
        where = self._where(response.source)
        if where.place is not Place.REMOTE:
            return False
        self._go(at, _Forwarded(0, "respond", response.source, response))
        return True

    def take_responded(self) -> list[Responded]:
        """What became of Responses since the last call."""
        if not self._responded:
            return []
        responded, self._responded = self._responded, []
        return responded

    def _where(self, instance_id: str) -> _Where:
        agent = self._home.mailboxes.agent
        if agent is not None and agent.instance_id == instance_id:
            return _Where(Place.AGENT, self._dispatch.me)
        instance = self._directory.instance(instance_id)
        if is_live(instance) and instance.kind == "node":
            return _Where(Place.AGENT, instance.home)
        guest = self.guests.get(instance_id)
        if guest is not None:
            return _Where(Place.MINE, self._dispatch.me, guest.entry)
        entry = self._directory.entry(instance_id)
        if entry is None or entry.state is State.LEFT:
            return _Where(Place.NOWHERE, None, entry)
        if self._directory.node_life(entry.home) != entry.home_life:
            return _Where(Place.ORPHAN, None, entry)
        if entry.home == self._dispatch.me:  # it just left
            return _Where(Place.NOWHERE, None, entry)
        return _Where(Place.REMOTE, entry.home, entry)

    def _go(self, at: Instant, call: _Forwarded) -> None:
        """To the home, or an outcome at once."""
        where = self._where(call.instance_id)
        is_remote = where.place is Place.REMOTE or (
            where.place is Place.AGENT
            and where.home != self._dispatch.me
            and call.operation in ("read", "ack")
        )
        is_new = where.home is not None and where.home != call.home
        if is_remote and is_new and call.asked < _ASKED_HOMES_MAX:
            assert where.home is not None
            self._forward(at, call, where.home)
        else:
            self._end(call, self._perform(at, where, call.operation, call.instance_id, call.body))

    def _perform(
        self, at: Instant, where: _Where, operation: str, instance_id: str, body: _Body
    ) -> _Outcome:
        """Answer here; whoever should have, did not."""
        match body:
            case wire.RegisterBody():
                return self._register(at, where, instance_id, body)
            case wire.HeartbeatBody():
                return self._heartbeat(at, where, instance_id, body)
            case wire.ReadBody():
                return self._read(where, instance_id, body)
            case wire.AckBody():
                return self._acknowledge(at, where, instance_id, body)
            case Envelope():
                return self._respond(body)
            case None:
                return self._deregister(at, where, instance_id)

    def _end(self, call: _Forwarded, outcome: _Outcome) -> None:
        if isinstance(call.body, Envelope):
            self._responded.append(Responded(call.body, outcome.status == "ok"))
        elif call.call:
            letters = outcome.letters
            self._dispatch.effects.append(
                CallEnded(call.call, outcome.status, letters.messages, letters.vias)
            )

    # --- answered here ----------------------------------------------------------------

    def _register(
        self, at: Instant, where: _Where, instance_id: str, body: wire.RegisterBody
    ) -> _Outcome:
        life = self._directory.my_life()
        if where.place is Place.AGENT:
            return _Outcome("conflict")
        if life is None:
            return _Outcome("unavailable")
        if not is_registrable(instance_id, body):
            return _Outcome("forbidden")
        if where.place is not Place.MINE and self.guests.is_full():
            self._counters["guests_full"] += 1
            return _Outcome("full")
        random = int.from_bytes(self._entropy(4))
        stamp = joining_stamp(at.wall, self._directory.highest(), at.wall, None, random)
        self._announce(
            self.guests.register(at, instance_id, body, life=life, known=where.entry, stamp=stamp)
        )
        self._home.mailboxes.open(instance_id)
        return _Outcome("ok")

    def _heartbeat(
        self, at: Instant, where: _Where, instance_id: str, body: wire.HeartbeatBody
    ) -> _Outcome:
        if where.place is Place.AGENT:
            return _Outcome("ok")
        if where.place is Place.NOWHERE or where.entry is None:
            return _Outcome("unknown")
        if where.place is not Place.MINE:
            refused = self._adopt(at, instance_id, where.entry)
            if refused is not None:
                return refused
        elif not self.guests.can_revive(at, instance_id):
            return _Outcome("unknown")
        self._announce(self.guests.beat(at, instance_id, body.status, body.metrics))
        return _Outcome("ok")

    def _adopt(self, at: Instant, instance_id: str, entry: GuestEntry) -> _Outcome | None:
        """Its home does not answer for it any more; None: it lives here now."""
        life = self._directory.my_life()
        if life is None:
            return _Outcome("unavailable")
        if self.guests.is_full():
            self._counters["guests_full"] += 1
            return _Outcome("full")
        self._counters["guest_adopted"] += 1
        self._announce(self.guests.adopt(at, entry, life))
        self._home.mailboxes.open(instance_id)
        return None

    def _deregister(self, at: Instant, where: _Where, instance_id: str) -> _Outcome:
        match where.place:
            case Place.AGENT:
                return _Outcome("forbidden")
            case Place.NOWHERE:
                return _Outcome("unknown")
            case Place.REMOTE:
                return _Outcome("unavailable")
            case Place.ORPHAN:
                assert where.entry is not None
                refused = self._adopt(at, instance_id, where.entry)
                if refused is not None:
                    return refused
        self._announce(self.guests.leave(instance_id))
        self._home.close(instance_id)
        return _Outcome("ok")

    def _read(self, where: _Where, instance_id: str, body: wire.ReadBody) -> _Outcome:
        box = self._home.mailboxes.get(instance_id)
        if box is None or where.home != self._dispatch.me:
            is_elsewhere = where.place in (Place.REMOTE, Place.AGENT)
            return _Outcome("unavailable" if is_elsewhere else "ok")
        letters = box.read(body.limit)
        return _Outcome(
            "ok",
            wire.Letters(
                tuple(letter.envelope for letter in letters),
                tuple(letter.via for letter in letters),
            ),
        )

    def _acknowledge(
        self, at: Instant, where: _Where, instance_id: str, body: wire.AckBody
    ) -> _Outcome:
        if where.home == self._dispatch.me:
            self._home.acknowledge(instance_id, body.message_ids)
        elif where.place is not Place.NOWHERE:
            self._keep_acks(at, instance_id, body.message_ids)
        return _Outcome("ok")

    def _respond(self, response: Envelope) -> _Outcome:
        query = self._answering.asked_with(response.correlation_id)
        if query is None or query.instance_id != response.source:
            return _Outcome("unknown")
        self._answering.answer(query, response)
        return _Outcome("ok")

    def _announce(self, entry: GuestEntry | None) -> None:
        if entry is not None:
            self._dispatch.effects.append(Announce(entry))

    # --- answered elsewhere -----------------------------------------------------------

    def _forward(self, at: Instant, call: _Forwarded, home: NodeId) -> None:
        if len(self._forwarded) >= limits.CALLS_MAX:
            self._counters["calls_full"] += 1
            self._end(call, _Outcome("unavailable"))
            return
        call.home = home
        call.life = self._directory.node_life(home)
        call.asked += 1
        call.deadline = at.now + timing.FORWARD_TIMEOUT
        self._next_at = min(self._next_at, call.deadline)
        self._number += 1
        self._forwarded[self._number] = call
        if self._dispatch.is_open(home):
            self._say(self._number, call)
        else:
            self._dispatch.want(at, home)

    def _say(self, number: int, call: _Forwarded) -> None:
        body = b"" if call.body is None else msgspec.msgpack.encode(call.body)
        self._dispatch.send(call.home, wire.Call(number, call.operation, call.instance_id, body))

    def result(self, at: Instant, peer: NodeId, message: wire.CallResult) -> None:
        """Another home answers."""
        call = self._forwarded.get(message.call)
        if call is None or call.home != peer:
            self._counters["call_result_late"] += 1
            return
        del self._forwarded[message.call]
        if message.status == "elsewhere":
            self._go(at, call)  # not its guest (any more): what do we know by now?
            return
        status = message.status if message.status in _STATUSES else "unavailable"
        letters = _NO_LETTERS
        if call.operation == "read" and status == "ok":
            decoded = _decoded(_LETTERS, message.body)
            if decoded is None or len(decoded.messages) != len(decoded.vias):
                status = "unavailable"
            else:
                letters = decoded
        if call.operation == "ack" and status == "ok":
            assert isinstance(call.body, wire.AckBody)
            self._forget_acks(call.instance_id, call.body.message_ids)
        self._end(call, _Outcome(status, letters))

    def opened(self, peer: NodeId) -> None:
        """There is a new way to this peer: what was called or answered may be lost."""
        for number, call in self._forwarded.items():
            if call.home == peer:
                self._say(number, call)

    def called(self, at: Instant, peer: NodeId, message: wire.Call) -> None:
        """A peer's call about an instance that it takes to live here."""
        body = _body_of(message)
        if isinstance(body, str):
            self._counters["call_malformed"] += 1
            return
        where = self._where(message.instance_id)
        if where.home == self._dispatch.me or where.place is Place.AGENT:
            outcome = self._perform(at, where, message.operation, message.instance_id, body)
        elif where.place is Place.NOWHERE and message.operation != "register":
            outcome = _Outcome("unknown")
        else:
            outcome = _Outcome("elsewhere")
        letters = b"" if outcome.letters is _NO_LETTERS else msgspec.msgpack.encode(outcome.letters)
        self._dispatch.send(peer, wire.CallResult(message.call, outcome.status, letters))

    # --- acknowledgements that their home did not take --------------------------------

    def _keep_acks(self, at: Instant, instance_id: str, message_ids: Collection[str]) -> None:
        kept = self._acks.setdefault(instance_id, {})
        for message_id in message_ids:
            if self._acks_kept >= limits.ACKS_KEPT_MAX:
                self._counters["acks_full"] += 1
                break
            if message_id not in kept:
                kept[message_id] = at.now + _ACKS_KEPT_FOR
                self._acks_kept += 1
        if not kept:
            del self._acks[instance_id]
        self._next_at = min(self._next_at, at.now + _ACK_RETRY)

    def _forget_acks(self, instance_id: str, message_ids: Collection[str]) -> None:
        kept = self._acks.get(instance_id)
        if kept is None:
            return
        for message_id in message_ids:
            if kept.pop(message_id, None) is not None:
                self._acks_kept -= 1
        if not kept:
            del self._acks[instance_id]

    def _resend_acks(self, at: Instant) -> None:
        for instance_id, kept in list(self._acks.items()):
            over = [message_id for message_id, until in kept.items() if until <= at.now]
            self._forget_acks(instance_id, over)
            where = self._where(instance_id)
            if kept and where.home is not None:
                self._go(at, _Forwarded(0, "ack", instance_id, wire.AckBody(tuple(kept))))

    # --- changes and time -------------------------------------------------------------

    def look(
        self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]
    ) -> list[tuple[str, list[HandOver]]]:
        """States, homes or lives changed.  Returns what guests that live elsewhere
        by now had not finished here."""
        life = self._directory.my_life()
        if life is not None and life != self._life:
            self._life = life
            for entry in self.guests.relive(life):
                self._announce(entry)
        for number, call in list(self._forwarded.items()):
            if call.home in nodes and self._directory.node_life(call.home) != call.life:
                del self._forwarded[number]
                self._go(at, call)
        moved: list[tuple[str, list[HandOver]]] = []
        for instance_id in instances:
            if instance_id not in self.guests:
                continue
            instance = self._directory.instance(instance_id)
            if is_live(instance) and instance.kind == "node":
                self._announce(self.guests.leave(instance_id))  # an agent outbids a guest
            elif self.guests.is_outbid(self._directory.entry(instance_id), instance_id):
                self.guests.drop(instance_id)
            else:
                continue
            self._counters["guest_outbid"] += 1
            moved.append((instance_id, self._home.move_out(at, instance_id)))
        return moved

    def tick(self, at: Instant) -> None:
        for entry in self.guests.sweep(at):
            self._announce(entry)
            if entry.state is State.LEFT:
                self._home.close(entry.instance_id)
        if at.now < self._next_at:
            return
        self._next_at = NEVER
        for number, call in list(self._forwarded.items()):
            if call.deadline <= at.now:
                self._counters["call_unanswered"] += 1
                del self._forwarded[number]
                self._go(at, call)
        if self._acks:
            self._resend_acks(at)
            self._next_at = min(self._next_at, at.now + _ACK_RETRY)
        for call in self._forwarded.values():
            self._next_at = min(self._next_at, call.deadline)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T | None:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None


def _body_of(message: wire.Call) -> _Body | Literal["malformed"]:
    if message.operation not in _BODIES:
        return "malformed"
    decoder = _BODIES[message.operation]
    if decoder is None:
        return None
    body = _decoded(decoder, message.body)
    return "malformed" if body is None else body
