"""Requests: a question and its answer, neither of them stored.

    asker ──Ask──► home of the target ──► handler, or a guest's mailbox
    asker ◄─Answer─ home ◄── respond(), or the guest's Response
    asker ──Cancel──► home               nobody waits any more

The answer is the receipt.  On a new way to the home the asker asks again, and the
home, which knows the number, either still works on it or repeats its answer.  A
request ends *at once* when its target fails, leaves, or lives in another home or
life: what it was asked is lost there.

Numbers start at random in each life of the asker, so that those of an earlier
life mean nothing.

Not here: whom a name means (``targets``), and Responses that arrive as messages
(the door of the message plane hands them to ``Asking.responded``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.envelopes import OVERHEAD, Account, milliseconds, seconds_left
from p2pmesh.protocol.types import (
    Envelope,
    Instance,
    Instant,
    Life,
    NodeId,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
)
from p2pmesh.protocol.ways import NEVER, Ways

# --- the asker --------------------------------------------------------------------


class Asked:
    """A request of this node, until it ends."""

    __slots__ = (
        "call",
        "deadline",
        "envelope",
        "home",
        "is_sent",
        "recipient",
        "size",
        "target",
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

    def get(self, call: int) -> Asked | None:
        return self._asked.get(call)

    def go(self, at: Instant, asked: Asked, instance: Instance) -> None:
        """The target is found: ask its home."""
        home = (instance.home, instance.home_life)
        if not is_live(instance) or self._directory.node_life(instance.home) != home[1]:
            self.end(asked, "unreachable", f"{instance.instance_id} is {_how_gone(instance)}")
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
            left = milliseconds(asked.deadline - at.now)
            self._ways.send(node, wire.Ask(asked.call, asked.recipient, left, asked.envelope))
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

    def answer(self, peer: NodeId, message: wire.Answer) -> None:
        asked = self._asked.get(message.request)
        if asked is None or asked.home is None or asked.home[0] != peer:
            self._counters["answer_late"] += 1
            return
        if message.envelope is None:
            error = message.error[: limits.TYPE_MAX]
            if not error or error in _OURS:
                error = "failed"
            self.end(asked, error, message.detail[: limits.REASON_MAX])
            return
        self._close(asked)
        self._ways.effects.append(RequestEnded(asked.call, message.envelope, peer))

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
                self.end(asked, "unreachable", f"{asked.recipient} is {_how_gone(instance)}")

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
        for asked in list(self._asked.values()):
            if asked.home is not None and not asked.is_sent:
                self._send(at, asked)
        return lost


#: What only the asker's own node can say of a request.
_OURS = frozenset({"unknown", "ambiguous", "timeout", "queue_full"})


def _how_gone(instance: Instance | None) -> str:
    if instance is None:
        return "not known any more"
    return instance.state if not is_live(instance) else "in another life than it was asked in"


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


# --- the asked --------------------------------------------------------------------


class Query:
    """A request to an instance of this node, until it is answered."""

    __slots__ = (
        "deadline", "instance_id", "is_guests", "life", "message_id", "number", "peer",
        "request", "source",
    )  # fmt: skip

    def __init__(
        self,
        peer: NodeId,
        life: Life | None,
        message: wire.Ask,
        deadline: float,
        *,
        is_guests: bool,
    ) -> None:
        self.peer = peer  # who asks
        self.life = life
        self.request = message.request  # the asker's number
        self.message_id = message.envelope.message_id
        self.source = message.envelope.source
        self.instance_id = message.recipient
        self.deadline = deadline
        self.is_guests = is_guests  # it lies in a guest's mailbox
        self.number = 0  # the node's, for RequestArrived


class _Kept:
    """An answer, until it is sure that nobody asks for it again."""

    __slots__ = ("answer", "is_sent", "size")

    def __init__(self, answer: wire.Answer) -> None:
        self.answer = answer
        self.is_sent = False
        self.size = OVERHEAD + (len(answer.envelope.payload) if answer.envelope else 0)


class Answering:
    """The requests to the instances of this node."""

    def __init__(self, directory: Directory, ways: Ways, counters: Counter[str]) -> None:
        self.next_at = NEVER
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._number = 0
        self._queries: dict[tuple[NodeId, int], Query] = {}
        self._by_message: dict[str, Query] = {}
        self._by_number: dict[int, Query] = {}
        self._kept: OrderedDict[tuple[NodeId, int], _Kept] = OrderedDict()  # oldest first
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._queries)

    def is_asked(self) -> bool:
        """Does a request to the own agent wait for its handler?"""
        return any(not query.is_guests for query in self._by_number.values())

    def is_known(self, peer: NodeId, request: int) -> bool:
        """Was this asked before?  If so it is in work, or its answer is repeated."""
        kept = self._kept.get((peer, request))
        if kept is not None:
            self._send(peer, kept)
            return True
        return (peer, request) in self._queries

    def open(
        self, at: Instant, peer: NodeId, message: wire.Ask, *, is_guests: bool
    ) -> Query | None:
        """Take a request that is not known; None: too many."""
        if len(self._queries) >= limits.REQUESTS_MAX:
            self._counters["queries_full"] += 1
            return None
        deadline = at.now + seconds_left(message.timeout)
        life = self._directory.node_life(peer)
        query = Query(peer, life, message, deadline, is_guests=is_guests)
        self._number += 1
        query.number = self._number
        self._queries[peer, message.request] = query
        self._by_message[query.message_id] = query
        self._by_number[query.number] = query
        self.next_at = min(self.next_at, deadline)
        if not is_guests:
            self._ways.effects.append(
                RequestArrived(query.number, message.envelope, peer, deadline - at.now)
            )
        return query

    def numbered(self, number: int) -> Query | None:
        return self._by_number.get(number)

    def asked_with(self, message_id: str | None) -> Query | None:
        """The unanswered request whose query has this id."""
        return self._by_message.get(message_id or "")

    def answer(
        self, query: Query, envelope: Envelope | None, error: str = "", detail: str = ""
    ) -> None:
        self._close(query)
        self.reply(query.peer, wire.Answer(query.request, envelope, error, detail))

    def reply(self, peer: NodeId, answer: wire.Answer) -> None:
        """Answer, and keep the answer in case the link loses it."""
        key = (peer, answer.request)
        old = self._kept.pop(key, None)
        if old is not None:
            self._kept_bytes -= old.size
        kept = self._kept[key] = _Kept(answer)
        self._kept_bytes += kept.size
        self._send(peer, kept)
        while len(self._kept) > limits.ANSWERS_KEPT_MAX or (
            self._kept_bytes > limits.ANSWERS_KEPT_BYTES_MAX and len(self._kept) > 1
        ):
            self._kept_bytes -= self._kept.popitem(last=False)[1].size

    def _send(self, peer: NodeId, kept: _Kept) -> None:
        kept.is_sent = self._ways.is_clear(peer)
        if kept.is_sent:
            self._ways.send(peer, kept.answer)

    def cancel(self, peer: NodeId, request: int) -> Query | None:
        """The asker waits no more: cancel the handler, or empty the mailbox (the
        caller's part, if it is a guest's)."""
        query = self._queries.get((peer, request))
        if query is not None:
            self._drop(query)
        return query

    def _drop(self, query: Query) -> None:
        self._close(query)
        if not query.is_guests:
            self._ways.effects.append(RequestCancelled(query.number))

    def _close(self, query: Query) -> None:
        del self._queries[query.peer, query.request]
        del self._by_number[query.number]
        if self._by_message.get(query.message_id) is query:
            del self._by_message[query.message_id]

    def look(self, nodes: Collection[NodeId]) -> list[Query]:
        """Askers that are gone wait for nothing: their queries, dropped."""
        gone = [
            query
            for query in self._queries.values()
            if query.peer in nodes and self._directory.node_life(query.peer) != query.life
        ]
        for query in gone:
            self._drop(query)
        return gone

    def clear(self, peer: NodeId) -> None:
        """The way to this peer is new, or no longer backed up."""
        for (asker, _), kept in list(self._kept.items()):
            if asker == peer and not kept.is_sent:
                self._send(peer, kept)

    def tick(self, at: Instant) -> list[Query]:
        """Queries whose asker has given up by now, dropped."""
        if at.now < self.next_at:
            return []
        over = [query for query in self._queries.values() if query.deadline <= at.now]
        for query in over:
            self._drop(query)
        self.next_at = min((query.deadline for query in self._queries.values()), default=NEVER)
        return over
