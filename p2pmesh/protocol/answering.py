"""The requests to the instances of this node, until they are answered.

A request is known by its asker and the asker's number for it: asked again, on a new
way, it is in work still, or its answer is repeated.  It is dropped, and its handler
cancelled, when its asker cancels, gives up or is gone.  A streamed answer (``parts``)
stays here until its asker has all of it.

Not here: the asker's side (``asking``), and what a mailbox does with the query of a
guest (``home``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import OVERHEAD, seconds_left
from p2pmesh.protocol.parts import Outgoing
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.types import (
    Envelope,
    Instant,
    Life,
    NodeId,
    PartWanted,
    RequestArrived,
    RequestCancelled,
)
from p2pmesh.protocol.ways import NEVER, Ways


class Query:
    """A request to an instance of this node, until it is answered."""

    __slots__ = (
        "deadline", "instance_id", "is_guests", "life", "message_id", "number", "outgoing",
        "patience", "peer", "request", "source",
    )  # fmt: skip

    def __init__(
        self, at: Instant, peer: NodeId, life: Life | None, message: wire.Ask, *, is_guests: bool
    ) -> None:
        self.peer = peer  # who asks
        self.life = life
        self.request = message.request  # the asker's number
        self.message_id = message.envelope.message_id
        self.source = message.envelope.source
        self.instance_id = message.recipient
        self.is_guests = is_guests  # it lies in a guest's mailbox
        self.number = 0  # the node's, for RequestArrived
        self.outgoing: Outgoing | None = None  # None: it is to be answered whole
        self.patience = seconds_left(message.timeout)  # of a silent asker
        if message.window > 0 and not is_guests:
            self.outgoing = Outgoing(message.request, message.window)
            self.patience += timing.CREDIT_GRACE
        self.deadline = at.now + self.patience


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
        self._parts_bytes = 0
        self._without_credit: set[int] = set()  # numbers of queries whose generators wait

    def __len__(self) -> int:
        return len(self._queries)

    def is_asked(self) -> bool:
        """Does a request to the own agent wait for its handler, or its asker for parts?"""
        return any(not query.is_guests for query in self._queries.values())

    @property
    def parts_bytes(self) -> int:
        """Of the parts of streamed answers that their readers have not taken."""
        return self._parts_bytes

    def is_known(self, at: Instant, peer: NodeId, message: wire.Ask) -> bool:
        """Was this asked before?  If so it is in work, or its answer is repeated."""
        kept = self._kept.get((peer, message.request))
        if kept is not None:
            self._send(peer, kept)
            return True
        query = self._queries.get((peer, message.request))
        if query is None:
            return False
        if query.outgoing is not None:
            query.outgoing.repeat(message.received)
            self._confirm(at, query, query.outgoing, message.taken)
        return True

    def open(
        self, at: Instant, peer: NodeId, message: wire.Ask, *, is_guests: bool
    ) -> Query | None:
        """Take a request that is not known; None: too many."""
        if len(self._queries) >= limits.REQUESTS_MAX:
            self._counters["queries_full"] += 1
            return None
        life = self._directory.node_life(peer)
        query = Query(at, peer, life, message, is_guests=is_guests)
        self._number += 1
        query.number = self._number
        self._queries[peer, message.request] = query
        self._by_message[query.message_id] = query
        self._by_number[query.number] = query
        self.next_at = min(self.next_at, query.deadline)
        if not is_guests:
            timeout, streams = seconds_left(message.timeout), query.outgoing is not None
            arrived = RequestArrived(query.number, message.envelope, peer, timeout, streams)
            self._ways.effects.append(arrived)
        return query

    def numbered(self, number: int) -> Query | None:
        return self._by_number.get(number)

    def asked_with(self, message_id: str | None) -> Query | None:
        """The unanswered request whose query has this id."""
        return self._by_message.get(message_id or "")

    def answer(
        self, query: Query, envelope: Envelope | None, error: str = "", detail: str = ""
    ) -> None:
        outgoing = query.outgoing
        if outgoing is None or not outgoing.count:
            self._close(query)
            self.reply(query.peer, wire.Answer(query.request, envelope, error, detail))
            return
        if envelope is not None:  # it sent a Response, too
            self._put(outgoing, envelope.payload)
        outgoing.end = wire.Answer(query.request, None, error, detail, outgoing.count)
        self._forget(query)
        self._say_parts(query, outgoing)

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

    # --- in parts -------------------------------------------------------------------

    def part(self, number: int, payload: Payload) -> bool:
        """The next part of an answer; False: no more before PartWanted says so."""
        query = self._by_number.get(number)
        if query is None or query.outgoing is None:
            self._ways.effects.append(RequestCancelled(number))  # answered, or asked whole
            return False
        outgoing = query.outgoing
        if self._parts_bytes + len(payload) > limits.NODE_BYTES_MAX:
            self._counters["parts_full"] += 1
            self.answer(query, None, "refused", "its node keeps too many parts that nobody reads")
            self._ways.effects.append(RequestCancelled(number))
            return False
        self._put(outgoing, payload)
        self._say_parts(query, outgoing)
        if self._has_credit(outgoing):
            return True
        self._counters["parts_held_back"] += 1
        self._without_credit.add(number)
        return False

    def _put(self, outgoing: Outgoing, payload: Payload) -> None:
        before = outgoing.bytes
        outgoing.put(payload)
        self._parts_bytes += outgoing.bytes - before

    def _has_credit(self, outgoing: Outgoing) -> bool:
        """One that keeps nothing may go on however much the others keep."""
        has_room = self._parts_bytes < limits.PARTS_KEPT_BYTES_MAX or not outgoing.bytes
        return outgoing.has_credit and has_room

    def _say_parts(self, query: Query, outgoing: Outgoing) -> None:
        if self._ways.is_clear(query.peer):
            for message in outgoing.due():
                self._ways.send(query.peer, message)

    def credit(self, at: Instant, peer: NodeId, message: wire.Credit) -> None:
        query = self._queries.get((peer, message.request))
        if query is None or query.outgoing is None:
            self._counters["credit_late"] += 1
            return
        if message.again:
            query.outgoing.repeat(message.received)
        self._confirm(at, query, query.outgoing, message.taken)

    def _confirm(self, at: Instant, query: Query, outgoing: Outgoing, taken: int) -> None:
        """The asker lives, and its reader has these."""
        query.deadline = at.now + query.patience
        before = outgoing.bytes
        outgoing.confirm(taken)
        self._parts_bytes += outgoing.bytes - before
        self._say_parts(query, outgoing)
        self._let_go_on()

    def _let_go_on(self) -> None:
        """Generators for which there is credit now."""
        for number in sorted(self._without_credit):
            query = self._by_number.get(number)
            if query is None or query.outgoing is None:
                self._without_credit.discard(number)
            elif self._has_credit(query.outgoing):
                self._without_credit.discard(number)
                self._ways.effects.append(PartWanted(number))

    # --- its end --------------------------------------------------------------------

    def cancel(self, peer: NodeId, request: int) -> Query | None:
        """The asker waits no more: cancel the handler, or empty the mailbox (the
        caller's part, if it is a guest's)."""
        query = self._queries.get((peer, request))
        if query is not None:
            self._drop(query)
        return query

    def _drop(self, query: Query) -> None:
        if not query.is_guests and query.number in self._by_number:
            self._ways.effects.append(RequestCancelled(query.number))
        self._close(query)

    def _close(self, query: Query) -> None:
        del self._queries[query.peer, query.request]
        self._forget(query)
        if query.outgoing is not None:
            self._parts_bytes -= query.outgoing.bytes
            self._let_go_on()

    def _forget(self, query: Query) -> None:
        """Its handler is done with it."""
        self._by_number.pop(query.number, None)
        self._without_credit.discard(query.number)
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
        for query in self._queries.values():
            if query.peer == peer and query.outgoing is not None:
                self._say_parts(query, query.outgoing)

    def tick(self, at: Instant) -> list[Query]:
        """Queries whose asker has given up by now, dropped."""
        if at.now < self.next_at:
            return []
        over = [query for query in self._queries.values() if query.deadline <= at.now]
        for query in over:
            self._drop(query)
        self.next_at = min((query.deadline for query in self._queries.values()), default=NEVER)
        return over
