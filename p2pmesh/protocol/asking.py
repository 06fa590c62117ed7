"""Requests: the questions of this node, until they are answered; none of it is stored.

    asker ──Ask──► home of the target ──► handler, or a guest's mailbox
    asker ◄─Answer─ home ◄── respond(), or the guest's Response
    asker ──Cancel──► home               nobody waits any more

The answer is the receipt; a streamed one comes in parts before its end (``parts``).
On a new way to the home the asker asks again, and the home, which knows the number,
either still works on it or repeats its answer.  A request ends *at once* when its
target fails, leaves, or lives in another home or life: what it was asked is lost there.

Numbers start at random in each life of the asker, so that those of an earlier
life mean nothing.

Not here: the home's side (``answering``), whom a name means (``targets``), and
Responses that arrive as messages (the door of the message plane hands them to
``Asking.responded``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory, is_live, why_unreachable
from p2pmesh.protocol.envelopes import OVERHEAD, Account, milliseconds
from p2pmesh.protocol.parts import Incoming
from p2pmesh.protocol.types import (
    Envelope,
    Instance,
    Instant,
    Life,
    NodeId,
    PartArrived,
    RequestEnded,
)
from p2pmesh.protocol.ways import NEVER, Ways


class Asked:
    """A request of this node, until it ends."""

    __slots__ = (
        "call",
        "deadline",
        "envelope",
        "home",
        "incoming",
        "is_sent",
        "recipient",
        "size",
        "target",
        "timeout",
        "was_sent",
    )

    def __init__(self, call: int, envelope: Envelope, target: str, deadline: float) -> None:
        self.call = call
        self.envelope = envelope
        self.target = target  # as the asker wrote it
        self.deadline = deadline
        self.size = OVERHEAD + len(envelope.payload)
        self.recipient = ""  # an instance id, once the target is found
        self.home: tuple[NodeId, Life] | None = None
        self.is_sent = False  # on the present way
        self.was_sent = False  # at all: a handler may be running
        self.incoming: Incoming | None = None  # None: the answer is wanted whole
        self.timeout = 0.0  # for each part


class Asking:
    """The requests of this node."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        account: Account,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.next_at = NEVER
        self._directory = directory
        self._ways = ways
        self._account = account
        self._counters = counters
        self._number = int.from_bytes(entropy(6))
        self._asked: dict[int, Asked] = {}
        self._by_message: dict[str, Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def unread_bytes(self) -> int:
        """Of the parts of streamed answers that came and were not taken."""
        return sum(a.incoming.bytes for a in self._asked.values() if a.incoming is not None)

    def open(self, envelope: Envelope, target: str, deadline: float) -> Asked:
        """Number a request; it waits for its target.  Raises QueueFull."""
        self._number += 1
        asked = Asked(self._number, envelope, target, deadline)
        if len(self._asked) >= limits.REQUESTS_MAX or not self._account.has_room(asked.size):
            self._counters["requests_full"] += 1
            raise QueueFull(f"{len(self._asked)} requests wait for answers")
        self._account.used += asked.size
        self._asked[asked.call] = asked
        self._by_message[envelope.message_id] = asked
        self.next_at = min(self.next_at, deadline)
        return asked

    def stream(self, at: Instant, asked: Asked) -> None:
        """Its answer is wanted in parts, each within what is left until its deadline."""
        asked.incoming = Incoming(at.now)
        asked.timeout = asked.deadline - at.now

    def get(self, call: int) -> Asked | None:
        return self._asked.get(call)

    def go(self, at: Instant, asked: Asked, instance: Instance) -> None:
        """The target is found: ask its home."""
        home = (instance.home, instance.home_life)
        if not is_live(instance) or self._directory.node_life(instance.home) != home[1]:
            self.end(asked, "unreachable", why_unreachable(instance))
            return
        asked.recipient = instance.instance_id
        if asked.envelope.target != asked.recipient:
            asked.envelope = _to(asked.envelope, asked.recipient)
        asked.home = home
        self._send(at, asked)

    def _send(self, at: Instant, asked: Asked) -> None:
        assert asked.home is not None
        node = asked.home[0]
        if self._ways.is_clear(node):
            self._ways.send(node, _question(at, asked))
            asked.is_sent = asked.was_sent = True
        else:
            self._ways.want(at, node)
            self.next_at = min(self.next_at, at.now + timing.LINK_WANTED_AGAIN)

    # --- how it ends ----------------------------------------------------------------

    def end(self, asked: Asked, error: str, detail: str = "") -> None:
        self._close(asked)
        via = asked.home[0] if asked.home is not None else None
        self._ways.effects.append(RequestEnded(asked.call, None, via, error, detail))

    def cancel(self, call: int) -> None:
        """The caller gave up; it is told no more of it."""
        asked = self._asked.get(call)
        if asked is not None:
            self._close(asked)
            self._withdraw(asked)

    def _withdraw(self, asked: Asked) -> None:
        if asked.was_sent and asked.home is not None and self._ways.is_open(asked.home[0]):
            self._ways.send(asked.home[0], wire.Cancel(asked.call))

    def _close(self, asked: Asked) -> None:
        del self._asked[asked.call]
        self._by_message.pop(asked.envelope.message_id, None)
        self._account.used -= asked.size

    def answer(self, at: Instant, peer: NodeId, message: wire.Answer) -> None:
        asked = self._asked.get(message.request)
        if asked is None or asked.home is None or asked.home[0] != peer:
            self._counters["answer_late"] += 1
            return
        if asked.incoming is not None and message.envelope is None:
            asked.incoming.end = message
            self._end_stream(at, asked, asked.incoming)
            return
        if message.envelope is None:
            self.end(asked, _their_error(message) or "failed", message.detail[: limits.REASON_MAX])
            return
        self._close(asked)
        self._ways.effects.append(RequestEnded(asked.call, message.envelope, peer))

    # --- in parts -------------------------------------------------------------------

    def part(self, at: Instant, peer: NodeId, part: wire.Part) -> None:
        asked = self._asked.get(part.request)
        if asked is None:
            self._counters["part_late"] += 1
            if self._ways.is_open(peer):  # what was said when it ended was lost
                self._ways.send(peer, wire.Cancel(part.request))
            return
        incoming = asked.incoming
        if incoming is None or asked.home is None or asked.home[0] != peer:
            self._counters["part_unexpected"] += 1
            return
        ready = incoming.put(part)
        if ready is None:
            self._counters["part_beyond_credit"] += 1
            return
        self._ways.effects += [PartArrived(asked.call, payload, peer) for payload in ready]
        self._next_part(at, asked, incoming)
        self._end_stream(at, asked, incoming)

    def taken(self, at: Instant, call: int) -> None:
        """Its reader has the next part."""
        asked = self._asked.get(call)
        if asked is None or asked.incoming is None or asked.incoming.is_read_up:
            return
        if asked.incoming.take(at.now):
            self._credit(at, asked, asked.incoming)
        self._next_part(at, asked, asked.incoming)

    def _next_part(self, at: Instant, asked: Asked, incoming: Incoming) -> None:
        """Nobody waits for the next part while there is one to read."""
        asked.deadline = at.now + asked.timeout if incoming.is_read_up else NEVER
        self.next_at = min(self.next_at, asked.deadline, incoming.tell_at)

    def _credit(
        self, at: Instant, asked: Asked, incoming: Incoming, *, in_passing: bool = False
    ) -> None:
        credit = incoming.credit(at.now, asked.call, in_passing=in_passing)
        if asked.home is not None and self._ways.is_open(asked.home[0]):
            self._ways.send(asked.home[0], credit)

    def _end_stream(self, at: Instant, asked: Asked, incoming: Incoming) -> None:
        """If the end is here, and every part before it."""
        if incoming.end is None or not incoming.is_over:
            return
        self._withdraw(asked)  # no part is wanted again
        self.end(asked, _their_error(incoming.end), incoming.end.detail[: limits.REASON_MAX])

    # --- what changes -----------------------------------------------------------------

    def responded(self, response: Envelope, via: NodeId) -> bool:
        """A Response came as a message: does it answer a request of mine?"""
        asked = self._by_message.get(response.correlation_id or "")
        if asked is None:
            return False
        self._close(asked)
        self._ways.effects.append(RequestEnded(asked.call, response, via))
        return True

    def look(self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]) -> None:
        """States, homes or lives changed: what is lost by that ends."""
        for asked in list(self._asked.values()):
            home = asked.home
            if home is None or (asked.recipient not in instances and home[0] not in nodes):
                continue
            instance = self._directory.instance(asked.recipient)
            if (
                is_live(instance)
                and (instance.home, instance.home_life) == home
                and self._directory.node_life(home[0]) == home[1]
            ):
                continue
            if is_live(instance) and not asked.was_sent:
                self.go(at, asked, instance)
            else:
                self.end(asked, "unreachable", why_unreachable(instance))

    def way_changed(self, at: Instant, peer: NodeId) -> None:
        """A new way to this peer, or none any more: what was asked or answered may
        be lost."""
        for asked in self._at_home(peer):
            asked.is_sent = False
            self._send(at, asked)

    def clear(self, at: Instant, peer: NodeId) -> None:
        """The way to this peer is no longer backed up."""
        for asked in self._at_home(peer):
            if not asked.is_sent:
                self._send(at, asked)

    def _at_home(self, peer: NodeId) -> list[Asked]:
        return [
            asked
            for asked in self._asked.values()
            if asked.home is not None and asked.home[0] == peer
        ]

    def tick(self, at: Instant) -> list[Asked]:
        """Requests whose time is over; those whose target never came are returned
        (``end`` them with what is known of it)."""
        if at.now < self.next_at:
            return []
        lost: list[Asked] = []
        for asked in [asked for asked in self._asked.values() if asked.deadline <= at.now]:
            if asked.home is None:
                lost.append(asked)
            else:
                self.end(asked, "timeout", f"no answer from {asked.recipient}")
                self._withdraw(asked)
        left = (asked.deadline for asked in self._asked.values() if asked.deadline > at.now)
        self.next_at = min(left, default=NEVER)
        for asked in self._asked.values():
            if asked.incoming is not None:
                if asked.incoming.tell_at <= at.now:
                    self._credit(at, asked, asked.incoming, in_passing=True)
                self.next_at = min(self.next_at, asked.incoming.tell_at)
        for asked in list(self._asked.values()):
            if asked.home is not None and not asked.is_sent:
                self._send(at, asked)
        return lost


def _question(at: Instant, asked: Asked) -> wire.Ask:
    incoming = asked.incoming
    if incoming is None:
        left = milliseconds(asked.deadline - at.now)
        return wire.Ask(asked.call, asked.recipient, left, asked.envelope)
    return wire.Ask(
        asked.call, asked.recipient, milliseconds(asked.timeout), asked.envelope,
        incoming.window, incoming.received, incoming.taken,
    )  # fmt: skip


#: What only the asker's own node can say of a request.
_OURS = frozenset({"unknown", "gone", "ambiguous", "timeout", "queue_full"})


def _their_error(message: wire.Answer) -> str:
    error = message.error[: limits.TYPE_MAX]
    return "failed" if error in _OURS else error


def _to(envelope: Envelope, target: str) -> Envelope:
    return Envelope(
        envelope.message_id,
        envelope.source,
        target,
        envelope.type,
        envelope.payload,
        envelope.correlation_id,
        envelope.created_at,
    )
