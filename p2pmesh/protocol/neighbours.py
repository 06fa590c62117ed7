"""The neighbours desk: whom my rings name, the links to them, and their heartbeats.

Rings follow the view; a link is wanted to each ring neighbour, filled by the next
member of that ring where none can be made, and claimed: either end's rings make it a
ring link, which carries heartbeats and news and is watched for silence.

Here too: where each member was *met*, because a dial is evidence only there.

Not here: what silence means (``monitoring``).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.dials import Purpose
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.rings import POSITIONS
from p2pmesh.protocol.types import FoundBy, Life, NodeId

#: The higher id of two ring neighbours waits this long for the other's dial.
_YIELD: Final = 0.3
_YIELD_LATE: Final = 1.5  # where this process is late, and the other may be
_UNLINKABLE_FOR: Final = 30.0
_OTHERS_TOLD: Final = 3


class Neighbours:
    """Whom this node has links to because the rings say so."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.targets: set[NodeId] = set()
        #: Where I completed a handshake with this life by dialling.
        self._met: dict[NodeId, tuple[Life, str]] = {}
        self._wanted_since: dict[NodeId, float] = {}
        self._unlinkable: dict[NodeId, float] = {}
        self._rings_at = -timing.RING_SETTLE

    # --- rings ----------------------------------------------------------------------

    def join_rings(self, node: NodeId) -> None:
        """It is alive, and nobody asks whether it is gone."""
        if self._core.rings.add(node) or self._unlinkable:
            self.rings_changed()

    def leave_rings(self, node: NodeId) -> None:
        if self._core.rings.remove(node) or self._unlinkable:
            self.rings_changed()

    def rings_changed(self) -> None:
        self._core.timers.set_earlier(
            "rings", None, max(self._core.at.now, self._rings_at + timing.RING_SETTLE)
        )

    def follow_rings(self, suspects: Container[NodeId]) -> None:
        """Link to whom my rings name now; tell the others that they are released."""
        core = self._core
        now = self._rings_at = core.at.now
        if core.life is None or core.has_left:
            return
        self._unlinkable = {n: until for n, until in self._unlinkable.items() if until > now}
        if self._unlinkable:  # then they are tried again
            core.timers.set_earlier("rings", None, min(self._unlinkable.values()))
        targets = {
            target
            for position in POSITIONS
            if (target := core.rings.at(core.me, position, self._unlinkable)) is not None
        }
        # A suspect is off the rings, but stays watched until the verdict.
        targets |= {node for node in self.targets if node in suspects}
        for node in targets - self.targets:
            self._wanted_since[node] = now
        for node in self.targets - targets:
            self._wanted_since.pop(node, None)
        self.targets = targets
        for link in tuple(core.links_up.values()):
            if link.peer is not None and link.ring_mine != (link.peer in targets):
                self.claim_link(link)
        for node in sorted(targets):
            self._want(node)

    def claim_link(self, link: Link) -> None:
        """Say whether my rings want this link, and watch it if either end's do."""
        assert link.peer is not None
        link.claim(mine=link.peer in self.targets)
        self._beat(link)
        self._watch(link)

    def beat_all(self) -> None:
        """The heartbeat round."""
        core = self._core
        interval = timing.PRESETS[core.config.preset].heartbeat_interval
        core.timers.set("beat", None, core.at.now + interval)
        if core.life is None:
            return
        beats: dict[bool, bytes] = {}
        for link in core.links_up.values():
            if link.is_ring:
                mine = link.ring_mine
                if mine not in beats:
                    beats[mine] = wire.encode(self._heartbeat(mine))
                link.say_encoded(beats[mine])
                core.touch(link)

    def heartbeat(self, link: Link, beat: wire.Heartbeat) -> None:
        theirs = bool(beat.flags & wire.HEARTBEAT_RING)
        if theirs != link.ring_theirs:
            link.claim(theirs=theirs)
            self._watch(link)

    def connect(self, peer: NodeId) -> None:
        """Have a link to this member now: somebody waits for it."""
        core = self._core
        if not self._lacks(peer):
            return
        attempt = core.connections.attempt(
            Purpose.CONNECT, peer, self.addresses(peer), FoundBy.GOSSIP
        )
        if attempt is not None and attempt.waiting:
            core.timers.set("stagger", (attempt.purpose, peer), core.at.now + timing.DIAL_STAGGER)

    def connect_in_turn(self, peer: NodeId) -> None:
        """Have a link to this member, for the rings."""
        core = self._core
        if not self._lacks(peer):
            return
        turn_at = core.lateness.turn(core.at.now)
        if turn_at > core.at.now:
            core.timers.set("connect", peer, turn_at)
        else:
            self.connect(peer)

    def _want(self, peer: NodeId) -> None:
        """Of two ring neighbours the lower id dials first, so that they do not dial each
        other."""
        core = self._core
        if core.me < peer:
            self.connect_in_turn(peer)
        elif self._lacks(peer):
            patience = _YIELD_LATE if core.is_late else _YIELD
            core.timers.set_earlier("connect", peer, core.at.now + patience)

    def _lacks(self, peer: NodeId) -> bool:
        """Is it alive, and neither linked nor dialled?"""
        core = self._core
        return (
            peer != core.me
            and peer not in core.links_up
            and core.view.alive(peer) is not None
            and (Purpose.CONNECT, peer) not in core.connections.attempts
        )

    def addresses(self, peer: NodeId) -> tuple[str, ...]:
        """Where to dial a member: where I met this life first, then its own word."""
        held = self._core.view.alive(peer)
        if held is None:
            return ()
        met = self.met_address(peer)
        own = held.record.addresses
        return own if met is None else (met, *(a for a in own if a != met))

    def met_address(self, peer: NodeId) -> str | None:
        life, address = self._met.get(peer, (None, None))
        held = self._core.view.alive(peer)
        return address if held is not None and held.version.life == life else None

    def connect_failed(self, peer: NodeId) -> bool:
        """No address of a member brought a link.  Where one is wanted (True) it is tried
        again, and after 3 s the next member of that ring fills in."""
        core = self._core
        now = core.at.now
        if core.view.alive(peer) is None or peer not in self.targets:
            return False
        core.timers.set("connect", peer, now + 1.0)
        if now - self._wanted_since.get(peer, now) >= timing.RING_FILL_AFTER:
            self._unlinkable[peer] = now + _UNLINKABLE_FOR
            self.rings_changed()
        return True

    def reach_out(self) -> None:
        """I am in question, so those who watch me may not hear my answer either.  A few others
        have it from me: it is in the HELLO of a new link."""
        core = self._core
        others = [held.id for held in core.view.all_alive() if held.id not in core.links_up]
        for peer in core.rng.sample(others, min(_OTHERS_TOLD, len(others))):
            self.connect(peer)

    # --- links come and go ------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A member completed a handshake and HELLO."""
        peer = link.peer
        assert peer is not None
        self._unlinkable.pop(peer, None)
        self._wanted_since.pop(peer, None)
        if link.is_outbound:
            self.note_met(peer, link.address)

    def note_met(self, peer: NodeId, address: str) -> None:
        held = self._core.view.alive(peer)
        if held is not None:
            self._met[peer] = held.version.life, address

    def check(self, peer: NodeId) -> None:
        """Dial an inbound ring neighbour once: does its address work for me?"""
        core = self._core
        link = core.links_up.get(peer)
        if link is None or not link.is_ring or self.met_address(peer) is not None:
            return
        turn_at = core.lateness.turn(core.at.now)
        if turn_at > core.at.now:
            core.timers.set("check", peer, turn_at)
        else:
            core.connections.attempt(Purpose.CHECK, peer, self.addresses(peer), FoundBy.GOSSIP)

    def link_ended(self, peer: NodeId) -> None:
        """The link in use is gone."""
        if peer in self.targets:
            self._wanted_since.setdefault(peer, self._core.at.now)
            self._want(peer)

    def slept(self) -> None:
        """This process did not run for long: whom it could not link it may link now."""
        self._unlinkable.clear()
        self.rings_changed()

    def gone(self, node: NodeId) -> None:
        """It failed or left."""
        self._met.pop(node, None)
        self._unlinkable.pop(node, None)
        self.leave_rings(node)

    # --- private ----------------------------------------------------------------------

    def _heartbeat(self, mine: bool) -> wire.Heartbeat:
        view = self._core.view
        flags = wire.HEARTBEAT_RING if mine else 0
        return wire.Heartbeat(view.hash(), view.highest_epoch, flags, view.claimant)

    def _beat(self, link: Link) -> None:
        if self._core.life is not None:
            self._core.tell(link, self._heartbeat(link.ring_mine))

    def _watch(self, link: Link) -> None:
        """Watch a ring link for silence; learn soon whether its peer can be dialled."""
        core, peer = self._core, link.peer
        if link.is_ring and peer is not None:
            core.timers.set_earlier("silence", None, link.heard_at + link.silence_after)
            if self.met_address(peer) is None:
                latest = min(timing.CHECK_DIAL_EACH * core.view.alive_count, timing.CHECK_DIAL_MAX)
                pause = core.rng.uniform(timing.CHECK_DIAL_MIN, max(latest, timing.CHECK_DIAL_MIN))
                core.timers.set_earlier("check", peer, core.at.now + pause)
