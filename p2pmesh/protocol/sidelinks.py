"""The desk of side links: those off the rings, which carry messages.

They are opened when messages need them (``ways``), and nobody watches them: that one
hangs is no evidence against its peer.  But what waits on it should not wait until the
kernel gives up, 15 s::

    said, and nothing heard ── 1 s ──► PING ── 1 s ──► dial afresh ──► takes its place
                                                          └─ fails ──► closed: a relay may help

One that nobody uses is closed.

Not here: ring links (``neighbours``, ``monitoring``).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.types import FoundBy, NodeId


class SideLinks:
    """Links off the rings: kept while they are of use."""

    def __init__(self, core: Core, neighbours: Neighbours) -> None:
        self._core = core
        self._neighbours = neighbours
        self._unanswered: dict[NodeId, float] = {}  # since when something is said to it

    def used(self, link: Link) -> None:
        """A message for its peer was put on this link."""
        now = self._core.at.now
        if link.is_ring or link.peer is None:
            return
        since = self._unanswered.get(link.peer)
        if since is None or link.heard_at > since:
            self._unanswered[link.peer] = now
            self._core.timers.set_earlier("side", None, now + timing.SIDE_PING_AFTER)

    def due(self) -> None:
        """Look at those that were given something: were they heard since?"""
        core = self._core
        now = core.at.now
        next_at = inf
        for peer, since in tuple(self._unanswered.items()):
            link = core.links_up.get(peer)
            if link is None or link.is_ring or link.heard_at > since:
                del self._unanswered[peer]
            elif now < since + timing.SIDE_PING_AFTER - 0.001:
                next_at = min(next_at, since + timing.SIDE_PING_AFTER)
            elif now < since + timing.SIDE_HUNG_AFTER - 0.001:
                core.tell(link, wire.Ping(0))
                next_at = min(next_at, since + timing.SIDE_HUNG_AFTER)
            else:
                del self._unanswered[peer]
                self._replace(peer, link)
        if next_at != inf:
            core.timers.set("side", None, next_at)

    def _replace(self, peer: NodeId, link: Link) -> None:
        core = self._core
        core.count("link_hung")
        core.connections.attempt(
            Purpose.REPLACE,
            peer,
            self._neighbours.addresses(peer),
            FoundBy.GOSSIP,
            replaces=link.session.handshake_hash,
        )

    def replace_failed(self, attempt: Attempt) -> bool:
        """No new link in place of the one that hangs.  True: that is closed.  One whose
        peer's kernel answered waits for its process."""
        core, peer = self._core, attempt.target
        assert isinstance(peer, bytes)
        link = core.links_up.get(peer)
        if link is None or link.is_ring or link.session.handshake_hash != attempt.replaces:
            return False
        if attempt.accepted or core.hears(peer):
            return False
        core.connections.close(link, "hung")
        del core.links_up[peer]
        return True

    def close_idle(self) -> Iterator[NodeId]:
        """Close those that nobody used for a while; the peers."""
        core = self._core
        for peer, link in tuple(core.links_up.items()):
            used_at = max(link.said_at, link.heard_at)
            if not link.is_ring and core.at.now - used_at > timing.LINK_IDLE_TIMEOUT:
                core.connections.close(link, "idle")
                del core.links_up[peer]
                yield peer
