"""The registry's calls: answered here, or by the home of the instance.

Where an instance is decides (``places``), for a caller here as for a peer's Call:

    place     register          heartbeat       deregister    read        acknowledge
    MINE      refreshed         revives         leaves        its mail    done
    AGENT     conflict          ok              forbidden     at its node at its node
    REMOTE    at its home       at its home     at its home   its home    its home
     (mute)   adopted here      adopted here    unavailable   unavailable ok, kept
    ORPHAN    adopted here      adopted here    left here     unavailable ok, kept
    NOWHERE   new here          unknown         unknown       nothing     ok

Before this node has joined it knows nobody: all are unavailable, and acknowledgements
are kept; and so it is with whom it does not know until it is told what its contact knows.
A forwarded call waits FORWARD_TIMEOUT (*mute*: no answer by then, or the home died
meanwhile).  A read that waits for mail waits at the home, which says so at once, and
answers when there is some; where nobody is home, it waits here for a home.  Whenever
the place may have changed it asks anew.  An acknowledgement that its home did not take
is kept (``acks``) and sent on as soon as the home answers or is another; until then its
messages are not listed here.  A guest's Response goes to its home first, which knows who
asked; if it answers nothing there, it becomes a message.

Not here: the answers (``registrar``), what is in mailboxes (``home``), and calls on
their way (``calls``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Final, NamedTuple

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.acks import KeptAcks
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.calls import (
    NO_LETTERS,
    Body,
    Forwarded,
    Forwarding,
    body_of,
    letters_of,
)
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.envelopes import milliseconds
from p2pmesh.protocol.home import HandOver, Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.places import Place, Places
from p2pmesh.protocol.registrar import WAITING, Outcome, Registrar
from p2pmesh.protocol.types import CallEnded, Envelope, Instant, NodeId
from p2pmesh.protocol.waits import Reader, Wait
from p2pmesh.protocol.ways import Ways

_ASKED_HOMES_MAX: Final = 2
_STATUSES: Final = frozenset(
    {"ok", "unknown", "conflict", "forbidden", "too_large", "full", "busy", "unavailable"}
)


_NOTHING: Final = Outcome("ok")
_ELSEWHERE: Final = Outcome("elsewhere")


class Responded(NamedTuple):
    """What became of a guest's Response that its home was asked about."""

    envelope: Envelope
    is_answer: bool  # False: it answers nothing there, and is a message


class GuestDesk:
    """Registry calls of this node's users, and of its peers."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        home: Home,
        answering: Answering,
        acks: KeptAcks,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._acks = acks
        self._registrar = Registrar(
            directory, ways, home, answering, acks, counters, entropy, ledger
        )
        self.guests = self._registrar.guests
        agent = home.mailboxes.agent
        self._places = Places(directory, self.guests, agent.instance_id if agent else None)
        self._responded: list[Responded] = []
        self._directory = directory
        self._ways = ways
        self._waits = home.waits
        self._counters = counters
        self._forwarding = Forwarding(directory, ways, counters, entropy)
        self._calls = 0

    @property
    def next_at(self) -> float:
        return min(
            self.guests.next_at, self._forwarding.next_at, self._acks.next_at, self._waits.next_at
        )

    def depths(self) -> dict[str, int]:
        return {
            "calls_forwarded": len(self._forwarding),
            "reads_waiting": len(self._waits),
            "acks_kept": len(self._acks),
        }

    # --- calls ------------------------------------------------------------------------

    def call(
        self, at: Instant, operation: str, instance_id: str, body: Body, wait: float = 0.0
    ) -> int:
        """A user's call; the number in the CallEnded that follows, perhaps at once.
        ``wait``: how long a read waits for mail, in seconds."""
        self._calls += 1
        until = at.now + min(wait, timing.READ_WAIT_MAX) if wait > 0 else 0.0
        self._go(at, Forwarded(self._calls, operation, instance_id, body, until))
        return self._calls

    def ping(self, at: Instant, node: NodeId) -> int:
        """How long a node takes to answer; ``rtt`` of the CallEnded says it."""
        self._calls += 1
        call = Forwarded(self._calls, "ping", "", None)
        if node == self._ways.me:
            self._end(call, _NOTHING, 0.0)
        elif self._directory.node_life(node) is None or not self._forwarding.forward(
            at, call, node
        ):
            self._end(call, Outcome("unavailable"))
        return self._calls

    def give_up(self, call: int) -> None:
        """Nobody waits for this read any more: nothing follows."""
        if self._waits.drop(Reader(self._ways.me, call)) is None:
            self._forwarding.give_up(call)

    def respond(self, at: Instant, response: Envelope) -> bool:
        """A Response of a guest of another home: ask there whether it is an answer.

        ``take_responded`` tells the outcome.  False: there is no such home.
        """
        where = self._places.find(response.source)
        if where.place is not Place.REMOTE:
            return False
        self._go(at, Forwarded(0, "respond", response.source, response))
        return True

    def take_responded(self) -> list[Responded]:
        """What became of Responses since the last call."""
        if not self._responded:
            return []
        responded, self._responded = self._responded, []
        return responded

    def _go(self, at: Instant, call: Forwarded) -> None:
        """To the home, or an outcome at once."""
        if call.operation == "ping":  # it did not answer
            self._end(call, Outcome("unavailable"))
            return
        where = self._places.find(call.instance_id)
        is_remote = where.place is Place.REMOTE or (
            where.place is Place.AGENT
            and where.home != self._ways.me
            and call.operation in ("read", "ack")
        )
        is_new = where.home is not None and where.home != call.home
        if not is_remote or not is_new or call.asked >= _ASKED_HOMES_MAX:
            reader = Reader(self._ways.me, call.call)
            outcome = self._registrar.perform(at, where, call.instance_id, call.body_at(at), reader)
            self._end(call, outcome)
        elif where.home is not None and not self._forwarding.forward(at, call, where.home):
            self._end(call, Outcome("unavailable"))

    def _end(self, call: Forwarded, outcome: Outcome, rtt: float | None = None) -> None:
        if outcome is WAITING:
            return
        if isinstance(call.body, Envelope):
            self._responded.append(Responded(call.body, outcome.status == "ok"))
        elif call.call:
            letters = outcome.letters
            ended = CallEnded(call.call, outcome.status, letters.messages, letters.vias, rtt)
            if isinstance(call.body, wire.AckBody):
                self._ledger.after(lambda: self._ways.effects.append(ended), gives_way=True)
            else:
                self._ways.effects.append(ended)

    # --- answered elsewhere -----------------------------------------------------------

    def result(self, at: Instant, peer: NodeId, message: wire.CallResult) -> None:
        """Another home answers."""
        call = self._forwarding.answered(peer, message.call)
        if call is None:
            return
        if message.status == "waiting" and call.until:
            self._forwarding.hold(message.call, call)
            return
        if message.status == "elsewhere":  # not its guest (any more): what do we know by now?
            is_news = self._places.find(call.instance_id).home != peer
            if call.until and not is_news:
                self._end(call, self._wait_here(call))  # where it went will be told
            else:
                self._go(at, call)
            return
        rtt = at.now - call.said_at
        status = message.status if message.status in _STATUSES else "unavailable"
        letters: wire.Letters | None = NO_LETTERS
        if call.operation == "read" and status == "ok":
            letters = self._without_acknowledged(call.instance_id, letters_of(message))
        if isinstance(call.body, wire.AckBody):
            if status == "ok":
                self._acks.forget(call.instance_id, call.body.message_ids)
        else:
            self._send_kept(at, call.instance_id)  # its home answers again
        outcome = Outcome("unavailable") if letters is None else Outcome(status, letters)
        self._end(call, outcome, rtt)

    def _without_acknowledged(
        self, instance_id: str, letters: wire.Letters | None
    ) -> wire.Letters | None:
        """Less what its home does not know yet to be done."""
        if letters is None or not self._acks.of(instance_id):
            return letters
        pairs = zip(letters.messages, letters.vias, strict=True)
        left = [pair for pair in pairs if not self._acks.has(instance_id, pair[0].message_id)]
        return wire.Letters(tuple(each for each, _ in left), tuple(via for _, via in left))

    def _send_kept(self, at: Instant, instance_id: str) -> None:
        """Acknowledgements that wait here, to the home that it has by now elsewhere."""
        kept = self._acks.of(instance_id)
        if kept and self._places.find(instance_id).home not in (None, self._ways.me):
            self._go(at, Forwarded(0, "ack", instance_id, wire.AckBody(kept)))

    def _wait_here(self, call: Forwarded) -> Outcome:
        assert isinstance(call.body, wire.ReadBody)
        reader = Reader(self._ways.me, call.call)
        return self._registrar.wait(Wait(call.instance_id, reader, call.body.limit, call.until))

    def opened(self, at: Instant, peer: NodeId) -> None:
        """There is a new way to this peer."""
        self._forwarding.opened(at, peer)

    def closed(self, at: Instant, peer: NodeId) -> None:
        """No way to this peer is left."""
        self._forwarding.closed(at, peer)

    def called(self, at: Instant, peer: NodeId, message: wire.Call) -> None:
        """A peer's call about an instance that it takes to live here."""
        body = body_of(message)
        if isinstance(body, str):
            self._counters["call_malformed"] += 1
            return
        if message.operation == "ping":
            self._reply(peer, message.call, _NOTHING)
            return
        where = self._places.find(message.instance_id)
        is_new = where.place is Place.NOWHERE and message.operation == "register"
        if is_new or where.place in (Place.REMOTE, Place.ORPHAN):
            outcome = _ELSEWHERE
        else:
            reader = Reader(peer, message.call)
            outcome = self._registrar.perform(at, where, message.instance_id, body, reader)
        if message.operation == "ack":
            reply = partial(self._reply, peer, message.call, outcome)
            self._ledger.after(reply, gives_way=True)
        else:
            self._reply(peer, message.call, outcome)

    def _reply(self, peer: NodeId, call: int, outcome: Outcome) -> None:
        letters = b"" if outcome.letters is NO_LETTERS else wire.encode(outcome.letters)
        self._ways.send(peer, wire.CallResult(call, outcome.status, letters))

    def cancelled(self, peer: NodeId, message: wire.CallCancel) -> None:
        """A peer's reader went away."""
        self._waits.drop(Reader(peer, message.call))

    # --- reads that wait --------------------------------------------------------------

    def settle(self, at: Instant) -> None:
        """Mail came: tell who waits for it."""
        for wait in self._waits.take_due():
            self._read_again(at, wait)

    def _read_again(self, at: Instant, wait: Wait) -> None:
        """There may be something to read, or another place to ask."""
        node, call = wait.reader
        if node == self._ways.me:
            body = wire.ReadBody(wait.limit)
            self._go(at, Forwarded(call, "read", wait.instance_id, body, wait.until))
        elif self._ways.is_open(node):  # else it asks again, once there is a way
            where = self._places.find(wait.instance_id)
            outcome = _ELSEWHERE
            if where.place not in (Place.REMOTE, Place.ORPHAN):
                body = wire.ReadBody(wait.limit, milliseconds(wait.until - at.now))
                outcome = self._registrar.read(at, where, wait.instance_id, body, wait.reader)
            if outcome is not WAITING:
                self._reply(node, call, outcome)

    def end_waits(self) -> None:
        """This node leaves: its readers are told that nothing came."""
        for wait in self._waits.take_own(self._ways.me):
            self._ways.effects.append(CallEnded(wait.reader.call, "ok"))
        for call in self._forwarding.held():
            self._end(call, _NOTHING)

    def restore(self, at: Instant) -> None:
        """Take up the guests of an earlier process."""
        self._registrar.restore(at)

    # --- changes and time -------------------------------------------------------------

    def look(
        self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]
    ) -> list[tuple[str, list[HandOver]]]:
        """States, homes or lives changed.  Returns what guests that live elsewhere
        by now had not finished here."""
        moved = self._registrar.follow(at, instances)
        for call in self._forwarding.gone(nodes):
            self._go(at, call)
        for instance_id in instances:
            self._send_kept(at, instance_id)
        self._look_at_waits(at, nodes, instances)
        return moved

    def _look_at_waits(
        self, at: Instant, nodes: Collection[NodeId], instances: Collection[str]
    ) -> None:
        if self._waits:
            self._waits.forget([node for node in nodes if self._directory.node_life(node) is None])
            for instance_id in instances:
                for wait in self._waits.take(instance_id):
                    self._read_again(at, wait)
        for call in self._forwarding.moved(instances, lambda each: self._places.find(each).home):
            self._go(at, call)

    def tick(self, at: Instant) -> None:
        self._registrar.sweep(at)
        for wait in self._waits.tick(at):
            if wait.reader.node == self._ways.me:
                is_orphan = self._places.find(wait.instance_id).place is Place.ORPHAN
                status = "unavailable" if is_orphan else "ok"
                self._ways.effects.append(CallEnded(wait.reader.call, status))
        for call in self._forwarding.mute(at):
            if call.is_held:
                self._end(call, _NOTHING)
            else:
                self._go(at, call)
        for instance_id in self._acks.due(at):
            self._send_kept(at, instance_id)
