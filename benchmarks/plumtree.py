"""Plumtree, to compare with: the epidemic broadcast trees of Leitão, Pereira, Rodrigues (2007).

The paper's algorithms 1 to 3 over the simulator's kernels and wires: eager push along a
tree that PRUNE carves out of the overlay, IHAVE on all other links, and GRAFT when
something was announced and did not come.  Its overlay is our rings.  The membership
below it is given for nothing: a neighbour's end is its connection's, and all know the new
rings 0.25 s after a crash.  Timeouts are those of iroh-gossip: 80 ms from the first IHAVE
to a GRAFT, 40 ms to the next.  A tree is made better where an announcement came over
THRESHOLD hops less than the message did, as there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import msgspec

from p2pmesh.protocol.rings import Rings
from p2pmesh.protocol.types import DialOutcome, Envelope, NodeId
from p2pmesh.testing.clock import Clock
from p2pmesh.testing.kernel import Host, Kernel, Socket

GRAFT_AFTER: Final = 0.08
GRAFT_AGAIN: Final = 0.04
THRESHOLD: Final = 7
RINGS_FOLLOW: Final = 0.25
DIAL: Final = 3.0


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag=1):
    id: bytes
    round: int
    envelope: Envelope


class IHave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    id: bytes
    round: int


class Graft(msgspec.Struct, frozen=True, array_like=True, tag=3):
    id: bytes
    round: int


class Prune(msgspec.Struct, frozen=True, array_like=True, tag=4):
    pass


Message: TypeAlias = Gossip | IHave | Graft | Prune
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Message).decode


class PlumtreeNode:
    """One process: its links, and the paper's sets."""

    def __init__(self, overlay: Overlay, number: int, node_id: NodeId) -> None:
        self.id = node_id
        self.host = Host(number, self, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:1")
        self._overlay = overlay
        self._links: dict[str, Socket] = {}  # by the peer's address without its port
        self._eager: dict[str, None] = {}
        self._lazy: dict[str, None] = {}
        self._received: dict[bytes, Gossip] = {}
        self._missing: dict[bytes, list[tuple[str, int]]] = {}  # announcements, oldest first

    # --- broadcast -----------------------------------------------------------------

    def broadcast(self, message_id: bytes, envelope: Envelope) -> None:
        self._deliver(Gossip(message_id, 0, envelope), None)

    def _deliver(self, gossip: Gossip, source: str | None) -> None:
        self._received[gossip.id] = gossip
        self._overlay.delivered(self, gossip.id, gossip.round)
        onward = Gossip(gossip.id, gossip.round + 1, gossip.envelope)
        for peer in self._eager:
            if peer != source:
                self._send(peer, onward, gossip.id)
        for peer in self._lazy:
            if peer != source:
                self._send(peer, IHave(gossip.id, gossip.round + 1), gossip.id)

    def _gossip(self, peer: str, gossip: Gossip) -> None:
        if gossip.id in self._received:
            self._make_lazy(peer)
            self._send(peer, Prune(), gossip.id)
            return
        announced = self._missing.pop(gossip.id, [])
        self._make_eager(peer)
        self._deliver(gossip, peer)
        for other, hops in announced:  # the paper's Optimize
            if hops + THRESHOLD < gossip.round and other in self._links:
                self._make_eager(other)
                self._send(other, Graft(b"", hops), gossip.id)
                self._make_lazy(peer)
                self._send(peer, Prune(), gossip.id)
                break

    def _ihave(self, peer: str, message: IHave) -> None:
        if message.id in self._received:
            return
        announced = self._missing.get(message.id)
        if announced is None:
            announced = self._missing[message.id] = []
            self._overlay.clock.after(GRAFT_AFTER, self._graft_missing, message.id, self.host.boot)
        announced.append((peer, message.round))

    def _graft_missing(self, message_id: bytes, boot: int) -> None:
        announced = self._missing.get(message_id)
        if announced is None or self.host.boot != boot:
            return
        while announced and announced[0][0] not in self._links:
            announced.pop(0)
        if not announced:
            del self._missing[message_id]  # the next announcement sets a timer again
            return
        peer, hops = announced.pop(0)
        self._make_eager(peer)
        self._send(peer, Graft(message_id, hops), message_id)
        self._overlay.clock.after(GRAFT_AGAIN, self._graft_missing, message_id, boot)

    def _graft(self, peer: str, message: Graft) -> None:
        self._make_eager(peer)
        known = self._received.get(message.id)
        if known is not None:
            self._send(peer, Gossip(known.id, known.round + 1, known.envelope), known.id)

    def _make_eager(self, peer: str) -> None:
        self._lazy.pop(peer, None)
        self._eager[peer] = None

    def _make_lazy(self, peer: str) -> None:
        self._eager.pop(peer, None)
        self._lazy[peer] = None

    # --- links (kernel.Process) -----------------------------------------------------

    def link_to(self, other: PlumtreeNode) -> None:
        self._overlay.kernel.dial(self.host, 0, other.host.address, DIAL)

    def peers(self) -> set[str]:
        return set(self._links)

    def drop(self, peer: str) -> None:
        self._overlay.kernel.close(self.host, self._links[peer].link)
        self._down(peer)

    def _down(self, peer: str) -> None:
        self._links.pop(peer, None)
        self._eager.pop(peer, None)
        self._lazy.pop(peer, None)

    def opened(self, socket: Socket, dial: int | None) -> None:
        if dial is None:
            self.host.unaccepted -= 1
        peer = _host_of(socket.address)
        self._links[peer] = socket
        self._eager[peer] = None

    def received(self, socket: Socket, data: bytes) -> None:
        self._overlay.kernel.read(socket, data)
        peer = _host_of(socket.address)
        if self._links.get(peer) is not socket:
            return
        match _decode(data):
            case Gossip() as gossip:
                self._overlay.copies[gossip.id] += 1
                self._gossip(peer, gossip)
            case IHave() as announcement:
                self._ihave(peer, announcement)
            case Graft() as graft:
                self._graft(peer, graft)
            case Prune():
                self._make_lazy(peer)

    def ended(self, socket: Socket) -> None:
        peer = _host_of(socket.address)
        if self._links.get(peer) is socket:
            self._down(peer)

    def dial_failed(self, dial: int, outcome: DialOutcome) -> None:
        pass  # the peer died meanwhile

    def paused(self, socket: Socket, is_paused: bool) -> None:
        pass

    def _send(self, peer: str, message: Message, about: bytes) -> None:
        data = _encode(message)
        self._overlay.bytes[about] += len(data)
        self._overlay.kernel.write(self.host, self._links[peer].link, data)


class Overlay:
    """All nodes, on rings of each other.

    ``delivered`` is called with each node, message id and hop count; ``copies`` counts
    those of each message that arrived, ``bytes`` what was sent about it."""

    def __init__(
        self, count: int, seed: int, delivered: Callable[[PlumtreeNode, bytes, int], None]
    ) -> None:
        rng = random.Random(seed)
        self.clock = Clock()
        self.kernel = Kernel(self.clock, rng, delay=0.0005, jitter=0.0005, loss=0.0)
        self.delivered = delivered
        self.copies: Counter[bytes] = Counter()
        self.bytes: Counter[bytes] = Counter()
        self.nodes = [PlumtreeNode(self, number, rng.randbytes(32)) for number in range(count)]
        for node in self.nodes:
            self.kernel.bind(node.host, node.host.address)
            self.kernel.boot(node.host)
        self._follow(self.nodes)
        self.clock.run_to(5.0)

    def kill(self, victims: Iterable[PlumtreeNode]) -> None:
        for victim in victims:
            self.nodes.remove(victim)
            self.kernel.die(victim.host)
        self.clock.after(RINGS_FOLLOW, self._follow, self.nodes)

    def _follow(self, nodes: list[PlumtreeNode]) -> None:
        """Links are those that the rings of these nodes say."""
        rings = Rings(nodes[0].id)
        for node in nodes:
            rings.add(node.id)
        by_id = {node.id: node for node in nodes}
        for node in nodes:
            near = [by_id[each] for each in rings.neighbours(node.id)]
            wanted = {_host_of(each.host.address) for each in near}
            for peer in sorted(node.peers() - wanted):
                node.drop(peer)
            for other in near:
                if node.id < other.id and _host_of(other.host.address) not in node.peers():
                    node.link_to(other)


def _host_of(address: str) -> str:
    return address.rpartition(":")[0]
