"""Where messages leave: the ways to each peer, and one hop of relay.

    sender ── SendTo(peer) ──► peer                 a link is up
    sender ── Relay ─► relay ── Relay ──► peer      no link for RELAY_AFTER
    sender ──────────────────► itself               its own queue, no bytes

A *way* is a link, or a route over a relay; a peer is *open* with one and *clear*
when the transport under it is not backed up.  ``linked`` means that whatever was
given to an earlier link may be lost: who has a copy sends it again.  A peer with
no way can be *wanted*: a link is asked for, again and again for a while, and
after RELAY_AFTER a partner is asked to pass on: ring neighbours of the peer
first.  The answer comes back the same way.

Nothing is kept here: a message for a peer with no way is dropped and counted.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, NamedTuple, TypeAlias

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.types import Action, GuestEntry, Instant, NodeId

NEVER: Final = float("inf")


class SendTo(msgspec.Struct, frozen=True):
    """Queue a message on the link to this peer; drop it if there is none."""

    peer: NodeId
    message: wire.Message


class NeedLink(msgspec.Struct, frozen=True):
    """Messages wait for this peer: dial it, if there is no link yet."""

    peer: NodeId


class Announce(msgspec.Struct, frozen=True):
    """Sign this entry of a guest and tell the mesh."""

    entry: GuestEntry


Effect: TypeAlias = Action | SendTo | NeedLink | Announce


class WayChanges(NamedTuple):
    """Peers to whom there is a way by now, and those to whom none is left."""

    opened: list[NodeId]
    closed: list[NodeId]


class Relayed(NamedTuple):
    """What a relay brought: a message as if from ``origin``."""

    origin: NodeId
    message: wire.Message
    is_new_way: bool


class _Want:
    """A peer that messages wait for, or that only a relay reaches."""

    __slots__ = ("ask_at", "gap", "relay_at", "tried", "until")

    def __init__(self, now: float) -> None:
        self.ask_at = now
        self.gap = timing.LINK_ASKED_AGAIN
        self.relay_at = now + timing.RELAY_AFTER
        self.until = now + timing.LINK_WANTED_FOR
        self.tried: set[NodeId] = set()


class Ways:
    """The ways to all peers, and the effects that wait to be drained."""

    def __init__(self, directory: Directory, counters: Counter[str]) -> None:
        self.me = directory.me
        self.effects: list[Effect] = []
        self.own: deque[wire.Message] = deque()  # from this node to itself
        self.next_at = NEVER
        self._directory = directory
        self._counters = counters
        self._linked: set[NodeId] = set()
        self._paused: set[NodeId] = set()
        self._routes: dict[NodeId, NodeId] = {}  # peer -> the relay that reaches it
        self._used: set[NodeId] = set()  # routes that carried something lately
        self._wants: dict[NodeId, _Want] = {}

    # --- sending ------------------------------------------------------------------

    def is_open(self, peer: NodeId) -> bool:
        """Is there a way to this peer?"""
        return peer in self._linked or peer in self._routes or peer == self.me

    def is_clear(self, peer: NodeId) -> bool:
        """Is there a way that is not backed up?"""
        return self.is_open(peer) and self._routes.get(peer, peer) not in self._paused

    def send(self, peer: NodeId, message: wire.Message) -> None:
        if peer in self._linked:
            self.effects.append(SendTo(peer, message))
        elif peer == self.me:
            self.own.append(message)
        elif (relay := self._routes.get(peer)) is not None:
            passed = wire.Relay(peer, self.me, wire.encode(message))
            self._used.add(peer)
            self.effects.append(SendTo(relay, passed))
        else:
            self._counters["message_without_way"] += 1

    def want(self, at: Instant, peer: NodeId) -> None:
        """Something waits for this peer: have a way made, unless there is one."""
        if self.is_open(peer) or self._directory.node_life(peer) is None:
            return
        want = self._wants.get(peer)
        if want is None:
            if len(self._wants) >= limits.LINKS_MAX:
                self._counters["links_wanted_full"] += 1
                return
            want = self._wants[peer] = _Want(at.now)
            self._ask(at, peer, want)
        want.until = at.now + timing.LINK_WANTED_FOR

    def _ask(self, at: Instant, peer: NodeId, want: _Want) -> None:
        self.effects.append(NeedLink(peer))
        want.ask_at = at.now + want.gap
        want.gap = min(2 * want.gap, timing.LINK_ASKED_AGAIN_MAX)
        self.next_at = min(self.next_at, want.ask_at)
        if peer not in self._routes:
            self.next_at = min(self.next_at, want.relay_at)

    # --- ways come and go ---------------------------------------------------------

    def linked(self, peer: NodeId) -> None:
        self._linked.add(peer)
        self._paused.discard(peer)
        self._routes.pop(peer, None)
        self._used.discard(peer)
        self._wants.pop(peer, None)

    def unlinked(self, peer: NodeId) -> list[NodeId]:
        """Peers to whom no way is left by this."""
        self._linked.discard(peer)
        self._paused.discard(peer)
        closed = [far for far, relay in self._routes.items() if relay == peer]
        for far in closed:
            self._try_another(far, peer)
        return [peer, *closed]

    def paused(self, peer: NodeId) -> None:
        if peer in self._linked:
            self._paused.add(peer)

    def resumed(self, peer: NodeId) -> list[NodeId]:
        """Peers whose way is clear again by this."""
        self._paused.discard(peer)
        return [peer, *(far for far, relay in self._routes.items() if relay == peer)]

    def tick(self, at: Instant) -> WayChanges:
        """Ask again, find relays, and give up routes that nothing uses."""
        opened: list[NodeId] = []
        closed: list[NodeId] = []
        if at.now < self.next_at:
            return WayChanges(opened, closed)
        self.next_at = NEVER
        for peer, want in list(self._wants.items()):
            is_routed = peer in self._routes
            if is_routed and peer in self._used:
                want.until = at.now + timing.LINK_WANTED_FOR
                self._used.discard(peer)
            if at.now >= want.until or self._directory.node_life(peer) is None:
                del self._wants[peer]
                if is_routed:
                    del self._routes[peer]
                    closed.append(peer)
                continue
            if not is_routed and at.now >= want.relay_at:
                if self._find_relay(peer, want):
                    opened.append(peer)
                else:
                    want.tried.clear()
                    want.relay_at = at.now + timing.RELAY_AFTER
            if at.now >= want.ask_at:
                self._ask(at, peer, want)
            self.next_at = min(self.next_at, want.ask_at, want.until)
            if peer not in self._routes:
                self.next_at = min(self.next_at, want.relay_at)
        return WayChanges(opened, closed)

    # --- relays ---------------------------------------------------------------------

    def _find_relay(self, peer: NodeId, want: _Want) -> bool:
        near = self._directory.ring_neighbours(peer)
        for relay in (*near, *self._directory.partners()):
            if relay in self._linked and relay not in want.tried:
                self._routes[peer] = relay
                return True
        return False

    def relay_received(self, at: Instant, peer: NodeId, message: wire.Relay) -> Relayed | None:
        """A relayed message for me; or pass it on, one hop and no further."""
        if message.to != self.me:
            self._pass_on(peer, message)
            return None
        origin = message.origin
        if peer not in self._linked or origin in (self.me, peer):
            self._counters["relay_malformed"] += 1
            return None
        if self._directory.node_life(origin) is None:
            self._counters["relay_from_stranger"] += 1
            return None
        try:
            inner = wire.decode(message.message)
        except wire.Malformed:
            inner = None
        if not isinstance(inner, wire.MESSAGE_PLANE) or isinstance(inner, wire.Relay):
            self._counters["relay_malformed"] += 1
            return None
        is_new_way = not self.is_open(origin)
        if is_new_way:
            if len(self._routes) >= limits.RELAYS_MAX:
                self._counters["relays_full"] += 1
                return None
            self._routes[origin] = peer
            want = self._wants.setdefault(origin, _Want(at.now))
            self._ask(at, origin, want)  # perhaps a dial from here succeeds
        self._used.add(origin)
        return Relayed(origin, inner, is_new_way)

    def _pass_on(self, peer: NodeId, message: wire.Relay) -> None:
        if message.to not in self._linked:
            self._counters["relay_refused"] += 1
            self.send(peer, wire.RelayRefused(message.to))
        elif message.to in self._paused:
            self._counters["relay_backed_up"] += 1  # the sender repeats what has no receipt
        else:
            self._counters["relayed"] += 1
            self.send(message.to, wire.Relay(message.to, peer, message.message))

    def relay_refused(self, peer: NodeId, message: wire.RelayRefused) -> list[NodeId]:
        """Peers to whom no way is left by this."""
        if self._routes.get(message.to) != peer:
            return []
        self._try_another(message.to, peer)
        return [message.to]

    def _try_another(self, far: NodeId, relay: NodeId) -> None:
        del self._routes[far]
        want = self._wants.get(far)
        if want is not None:
            want.tried.add(relay)
            self.next_at = min(self.next_at, want.relay_at)
