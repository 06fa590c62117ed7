"""Plain SWIM, to compare with: what a detector makes of silence that asks no kernel.

Das, Gupta and Motivala (2002), with the periods of memberlist's ``DefaultLANConfig`` and
none of Lifeguard: a member is pinged every second; no answer in half a second and three
others are asked to ping it; no answer by the end of the second is a verdict, which is
gossiped and believed.  With ``suspects`` it is a suspicion first, which whoever heard it
lets stand for ``4 · log10(n)`` seconds, and which the subject may refute.  Who hears that
it is dead says that it lives, and is taken back.

What is the kinder choice for it: probes go round in a shuffled order, a woken process
reads its socket before it looks at its timers (Go does the reverse), the buried are
gossiped to like all others, a packet that is not lost is never late.  What is not here:
memberlist's ping over TCP and its exchange of whole states, both younger than plain SWIM.

Packets cross ``p2pmesh.testing``'s clock as objects; each is lost by chance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from p2pmesh.testing.clock import Clock

PROBE_INTERVAL: Final = 1.0
PROBE_TIMEOUT: Final = 0.5
INDIRECT_CHECKS: Final = 3
SUSPICION_MULT: Final = 4
GOSSIP_INTERVAL: Final = 0.2
GOSSIP_NODES: Final = 3
RETRANSMIT_MULT: Final = 4
IN_A_PACKET: Final = 30  # updates of some 45 bytes in 1,400


class Status(IntEnum):
    """In the order of precedence within one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


class Update(NamedTuple):
    subject: int
    incarnation: int
    status: Status


class Packet(NamedTuple):
    kind: str  # "ping", "ask" (to ping ``about``), "ack", "gossip"
    source: int
    number: int
    about: int
    updates: tuple[Update, ...]


class SwimNode:
    """One process: whom it believes alive, whom it asks, and what it passes on."""

    def __init__(self, swim: Swim, number: int) -> None:
        self.number = number
        self.is_running = True
        self.held = [Update(other, 0, Status.ALIVE) for other in range(swim.size)]
        self._swim = swim
        self._waiting: list[Packet] = []  # in its socket while it does not run
        self._late: list[tuple[Callable[..., None], tuple[Any, ...]]] = []  # its timers
        self._round: list[int] = []
        self._probe = 0  # the number of the last
        self._is_answered = True
        self._relayed: dict[int, tuple[int, int]] = {}  # my ping: who asked, its number
        self._gossip: dict[int, tuple[Update, int]] = {}  # and how often it was sent

    # --- its process -----------------------------------------------------------------

    def stop(self) -> None:
        self.is_running = False

    def resume(self) -> None:
        """The socket first, then what is overdue."""
        self.is_running = True
        packets, self._waiting = self._waiting, []
        for packet in packets:
            self.received(packet)
        late, self._late = self._late, []
        for call, arguments in late:
            call(*arguments)

    def _after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        self._swim.clock.after(delay, self._due, call, arguments)

    def _due(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.is_running:
            call(*arguments)
        else:
            self._late.append((call, arguments))

    # --- probing -----------------------------------------------------------------------

    def start(self) -> None:
        self._after(PROBE_INTERVAL * self._swim.chance.random(), self._next_probe)
        self._after(GOSSIP_INTERVAL * self._swim.chance.random(), self._tell)

    def _next_probe(self) -> None:
        self._after(PROBE_INTERVAL, self._next_probe)
        while True:
            if not self._round:
                self._round = self._others()
                if not self._round:
                    return
            target = self._round.pop()
            if self.held[target].status is not Status.DEAD:
                break
        self._probe = self._swim.next_number()
        self._is_answered = False
        self._send(target, "ping", self._probe)
        self._after(PROBE_TIMEOUT, self._ask_others, target, self._probe)
        self._after(PROBE_INTERVAL * 0.999, self._ends, target, self._probe)

    def _ask_others(self, target: int, probe: int) -> None:
        if probe != self._probe or self._is_answered:
            return
        others = [other for other in self._others() if other != target]
        for helper in others[:INDIRECT_CHECKS]:
            self._send(helper, "ask", probe, about=target)

    def _ends(self, target: int, probe: int) -> None:
        """No answer in its second."""
        if probe != self._probe or self._is_answered:
            return
        held = self.held[target]
        status = Status.SUSPECT if self._swim.suspects else Status.DEAD
        self._learn(held._replace(status=max(held.status, status)))

    def _others(self) -> list[int]:
        """Those not dead, shuffled."""
        others = [
            update.subject
            for update in self.held
            if update.status is not Status.DEAD and update.subject != self.number
        ]
        self._swim.chance.shuffle(others)
        return others

    # --- packets -----------------------------------------------------------------------

    def received(self, packet: Packet) -> None:
        if not self.is_running:
            self._waiting.append(packet)
            return
        for update in packet.updates:
            self._learn(update)
        match packet.kind:
            case "ping":
                self._send(packet.source, "ack", packet.number)
            case "ask":
                mine = self._swim.next_number()
                self._relayed[mine] = packet.source, packet.number
                self._send(packet.about, "ping", mine)
            case "ack" if packet.number in self._relayed:
                asker, number = self._relayed.pop(packet.number)
                self._send(asker, "ack", number)
            case "ack" if packet.number == self._probe:
                self._is_answered = True

    def _send(self, target: int, kind: str, number: int = 0, about: int = 0) -> None:
        """With the updates that were passed on least, each so often in all."""
        often = RETRANSMIT_MULT * math.ceil(math.log10(self._swim.size + 1))
        updates = []
        for update, sent in sorted(self._gossip.values(), key=lambda pair: pair[1])[:IN_A_PACKET]:
            updates.append(update)
            if sent + 1 < often:
                self._gossip[update.subject] = update, sent + 1
            else:
                del self._gossip[update.subject]
        if updates or kind != "gossip":
            self._swim.carry(target, Packet(kind, self.number, number, about, tuple(updates)))

    def _tell(self) -> None:
        self._after(GOSSIP_INTERVAL, self._tell)
        if self._gossip:
            others = [other for other in range(self._swim.size) if other != self.number]
            for target in self._swim.chance.sample(others, min(GOSSIP_NODES, len(others))):
                self._send(target, "gossip")

    # --- what it holds -----------------------------------------------------------------

    def _learn(self, update: Update) -> None:
        """What is newer than what it holds, it holds and passes on."""
        held = self.held[update.subject]
        if update[1:] <= held[1:]:
            return
        if update.subject == self.number:  # I am not
            update = Update(self.number, update.incarnation + 1, Status.ALIVE)
        self.held[update.subject] = update
        self._gossip[update.subject] = update, 0
        if update.status is Status.SUSPECT:
            stands = SUSPICION_MULT * max(1.0, math.log10(self._swim.size)) * PROBE_INTERVAL
            self._after(stands, self._unrefuted, update)
        elif update.status is Status.DEAD:
            self._swim.observe(update.subject)

    def _unrefuted(self, suspicion: Update) -> None:
        if self.held[suspicion.subject] == suspicion:
            self._learn(suspicion._replace(status=Status.DEAD))


class Swim:
    """A mesh of them that all know each other."""

    def __init__(
        self, size: int, seed: int, *, loss: float, suspects: bool, observe: Callable[[int], None]
    ) -> None:
        """``observe``: called with the number of each of whom some node learns that it is
        dead, once for every node that does."""
        self.size, self.suspects, self.observe = size, suspects, observe
        self.clock = Clock()
        self.chance = random.Random(seed)
        self.nodes = [SwimNode(self, number) for number in range(size)]
        self._loss = loss
        self._number = 0
        for node in self.nodes:
            node.start()

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def carry(self, target: int, packet: Packet) -> None:
        if self.chance.random() >= self._loss:
            delay = 0.001 + 0.001 * self.chance.random()
            self.clock.after(delay, self.nodes[target].received, packet)

    def starve(self, nodes: Iterable[int], *, runs: float, stops: float, seconds: float) -> None:
        """As ``SimNetwork.starve``."""
        for number in nodes:
            self._starve(self.nodes[number], runs, stops, self.clock.now + seconds)

    def _starve(self, node: SwimNode, runs: float, stops: float, until: float) -> None:
        if self.clock.now < until:
            node.stop()
            self.clock.after(stops, node.resume)
            self.clock.after(stops + runs, self._starve, node, runs, stops, until)
