"""Guests that roam a simulated mesh: they beat, read and acknowledge, each through any node.

A guest does one thing after the other, as a client does: it waits for the end of a call,
and takes the death of the node that it asked for the end of a connection.  What it was
told stands in ``Guest``; who sent what, and what became of it, in ``Sent``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from p2pmesh.protocol.types import CallEnded, MessageMoved
from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.node import State

STEP: Final = 0.005


@dataclass
class Sent:
    """One message to one guest, as its sender knows it."""

    message_id: str
    target: str
    via: SimNode
    run: int  # of the node that accepted it
    at: float
    is_own: bool  # a broadcast to a guest of that node itself: "stored" there, and only there
    states: dict[str, float] = field(default_factory=dict)  # state -> when

    @property
    def is_over(self) -> bool:
        return not self.states.keys().isdisjoint({"done", "dead", "expired"})


@dataclass
class Again:
    """A message that was listed after it was acknowledged."""

    guest: str
    message_id: str
    acked_at: float  # when the guest was told so
    listed_at: float
    acked_through: SimNode
    listed_through: SimNode
    was_firm: bool  # the acknowledgement
    settled_for: float  # seconds, when it was listed


class Guest:
    """A client without a node, and its memory."""

    def __init__(self, world: Roaming, instance_id: str) -> None:
        self.instance_id = instance_id
        self.read: dict[str, float] = {}  # message -> first listed
        self.acked: dict[str, tuple[float, SimNode]] = {}  # message -> when it was told so, where
        self.firm: set[str] = set()  # of these: while everybody agreed where it lives
        self.again: list[Again] = []
        self.refused: list[tuple[str, str]] = []  # operation, status
        self.node = world.net.nodes[0]
        self._world = world
        self._held: list[str] = []  # read, and not acknowledged
        self._call: tuple[str, int, int, tuple[str, ...]] | None = None
        self._beat_at = -1.0
        self._due = 0.0
        self._was_settled = False
        self._settled_at: float | None = None

    @property
    def settled_for(self) -> float:
        """Seconds for which all nodes that run have agreed where it lives; 0: they do not."""
        return 0.0 if self._settled_at is None else self._world.net.clock.now - self._settled_at

    def step(self) -> None:
        net = self._world.net
        if not self._world.is_settled(self):
            self._settled_at = None
        elif self._settled_at is None:
            self._settled_at = net.clock.now
        if self._call is not None:
            if not self._finish(*self._call):
                return
            self._call = None
        if net.clock.now >= self._due:
            self._begin()

    def forget_call(self) -> None:
        """What is being asked now is not firm."""
        self._was_settled = False

    def _finish(self, operation: str, call: int, run: int, ids: tuple[str, ...]) -> bool:
        """Is the call over, one way or the other?"""
        node = self.node
        if node.runs != run or node.state is State.DEAD:
            return True  # the connection ended without an answer
        ended = next(
            (e for e in node.outcomes if isinstance(e, CallEnded) and e.call == call), None
        )
        if ended is None:
            return False
        now = self._world.net.clock.now
        if ended.status != "ok":
            self.refused.append((operation, ended.status))
            if operation == "heartbeat" and ended.status == "unknown":
                self._beat_at = -1.0
                self.refused[-1] = ("heartbeat", "forgotten")
        elif operation == "read":
            self._listed([each.message_id for each in ended.messages], now)
        elif operation == "ack":
            for each in ids:
                self.acked.setdefault(each, (now, node))
            if self._was_settled and self._world.is_settled(self):
                self.firm.update(ids)
        return True

    def _listed(self, ids: list[str], now: float) -> None:
        for each in ids:
            self.read.setdefault(each, now)
            if each in self.acked:
                acked_at, through = self.acked[each]
                again = Again(
                    self.instance_id, each, acked_at, now, through, self.node,
                    each in self.firm, self.settled_for,
                )  # fmt: skip
                self.again.append(again)
        self._held = ids

    def _begin(self) -> None:
        world, rng = self._world, self._world.rng
        now = world.net.clock.now
        self._due = now + rng.uniform(0.0, world.pause)
        reachable = [node for node in world.doors if node.is_running]
        if not self.node.is_running or rng.random() < world.roams:
            self.node = rng.choice(reachable)
        if now - self._beat_at >= world.beat:
            self._beat_at = now
            self._ask("heartbeat", status="healthy", metrics=None)
        elif self._held and rng.random() < 0.7:
            some = tuple(each for each in self._held if rng.random() < 0.7)
            self._held = [each for each in self._held if each not in some]
            self._ask("ack", message_ids=some)
        else:
            self._ask("read", limit=None)

    def _ask(self, operation: str, **arguments: Any) -> None:
        method = "acknowledge" if operation == "ack" else operation
        self._was_settled = self._world.is_settled(self)
        call = self._world.net.command(self.node, method, instance_id=self.instance_id, **arguments)
        ids: tuple[str, ...] = arguments.get("message_ids", ())
        if call is not None:
            self._call = (operation, call, self.node.runs, ids)


class Roaming:
    """Guests and senders at work on a network, until told otherwise."""

    def __init__(
        self,
        net: SimNetwork,
        guests: int = 2,
        *,
        seed: int = 0,
        roams: float = 0.3,
        pause: float = 0.03,
        beat: float = 0.2,
    ) -> None:
        """``roams``: how likely a guest changes its node before a call."""
        self.net = net
        self.rng = random.Random(f"roaming {seed}")
        self.roams, self.pause, self.beat = roams, pause, beat
        self.doors = list(net.nodes)  # those that guests and senders may ask
        self.sent: dict[tuple[str, str], Sent] = {}  # by message and guest
        self.guests = [Guest(self, f"g{number}") for number in range(guests)]
        for guest in self.guests:
            net.command(
                guest.node, "register", instance_id=guest.instance_id, hostname="h", port=1,
                capabilities=(), profiles=(),
            )  # fmt: skip
        net.run(0.5)
        self.healed_at: float | None = None  # when a cut was over, if there was one
        self._moves_seen: dict[tuple[int, int], int] = {}

    def run(self, seconds: float, *, sends: int = 0, works: bool = True) -> None:
        """Let them work for so long, and send so many messages meanwhile."""
        steps = max(1, round(seconds / STEP))
        when = sorted(self.rng.randrange(steps) for _ in range(sends))
        for step in range(steps):
            while when and when[0] <= step:
                when.pop(0)
                self.send()
            if works:
                for guest in self.guests:
                    guest.step()
            self.net.run(STEP)
            self._note_moves()

    def send(self) -> None:
        """To a guest, or to everyone."""
        via = self.rng.choice([node for node in self.doors if node.is_running])
        message = {
            "source": "s", "type": "Notification", "payload": b"x", "ttl": 3600.0,
            "correlation_id": None,
        }  # fmt: skip
        is_cast = self.rng.random() < 0.2
        if is_cast:
            message_id, delivered_to = self.net.command(via, "broadcast", **message)
        else:
            target = self.rng.choice(self.guests).instance_id
            delivered_to = (target,)
            message_id = self.net.command(via, "send", target=target, named=False, **message)
        for guest in self.guests:
            if guest.instance_id in delivered_to:
                home = via.mesh.instance(guest.instance_id)
                is_own = is_cast and home is not None and home.home == via.mesh.node_id
                self.sent[message_id, guest.instance_id] = Sent(
                    message_id, guest.instance_id, via, via.runs, self.net.clock.now, is_own
                )

    def _note_moves(self) -> None:
        for node in self.net.nodes:
            key = (node.number, node.runs)
            seen = self._moves_seen.get(key, 0)
            for outcome in node.outcomes[seen:]:
                if isinstance(outcome, MessageMoved):
                    sent = self.sent.get((outcome.message_id, outcome.recipient))
                    if sent is not None:
                        sent.states.setdefault(outcome.state, self.net.clock.now)
            self._moves_seen[key] = len(node.outcomes)

    def is_settled(self, guest: Guest) -> bool:
        """Do all nodes that run agree where this guest lives, and does that one run?"""
        seen = set()
        for node in self.net.nodes:
            if node.state is State.STOPPED:
                return False
            if node.is_running:
                instance = node.mesh.instance(guest.instance_id)
                if instance is None or instance.state != "alive":
                    return False
                seen.add((instance.home, instance.home_life))
        return len(seen) == 1

    def end(self, node: SimNode, how: str = "kill") -> None:
        """kill -9, or ``leave``; what it may not have told to the senders any more (a
        reset overtakes it) is not firm."""
        self._note_moves()
        getattr(self.net, how)(node)
        for guest in self.guests:
            guest.forget_call()
            guest.firm -= {
                each for each in guest.firm if not self._is_told(self.sent[each, guest.instance_id])
            }

    def _is_told(self, sent: Sent) -> bool:
        """Does its sender know of its end, or is there no sender any more?"""
        return sent.is_over or not sent.via.is_running

    def home(self, instance_id: str, seen_by: SimNode | None = None) -> SimNode | None:
        """Where a guest lives, as this node (any living one) sees it."""
        viewer = seen_by or next(node for node in self.net.nodes if node.is_running)
        instance = viewer.mesh.instance(instance_id)
        if instance is None:
            return None
        return next((n for n in self.net.nodes if n.mesh.node_id == instance.home), None)

    def finish(self, within: float = 60.0) -> None:
        """Until every living sender knows of the end of each of its messages."""
        deadline = self.net.clock.now + within
        while self.unfinished() and self.net.clock.now < deadline:
            self.run(0.1)
        assert not self.unfinished(), [
            (sent, sent.via.mesh.commands.message_state(sent.message_id))
            for sent in self.unfinished()
        ]

    def unfinished(self) -> list[Sent]:
        """What its living sender does not know to be over, or (its own broadcast to its
        own guest) that guest has not read."""
        read = {(each, guest.instance_id) for guest in self.guests for each in guest.read}
        return [
            sent
            for key, sent in self.sent.items()
            if sent.via.runs == sent.run and sent.via.is_running
            if not (key in read if sent.is_own else sent.is_over)
        ]


def counted(net: SimNetwork, name: str) -> int:
    return sum(node.mesh.counters().get(name, 0) for node in net.nodes if node.is_running)
