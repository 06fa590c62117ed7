"""The reach desk: whether what a leader with a quorum says arrives.

All else is judged by what is heard.  Whose packets get to nobody hears everybody, and
learns late that the others gave it up and follow another.  So it asks:

    while I lead with quorum=n: a PING each REACH_INTERVAL to all ring neighbours
    no PONG to any PING of the last REACH_PATIENCE: that neighbour does not hear me
    half of them or more do not: only those that do count for the quorum

A process that is flagged as stalled answers nobody, and is no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.types import NodeId


class Reach:
    """Who confirmed what I said, and when I said that."""

    def __init__(self, core: Core, neighbours: Neighbours, questions: Questions) -> None:
        self._core = core
        self._neighbours = neighbours
        self._questions = questions
        self._confirmed: dict[NodeId, float] = {}
        self._asked_at: float | None = None  # None: I do not ask

    @property
    def is_asking(self) -> bool:
        return self._asked_at is not None

    def count(self) -> int | None:
        """Whom I reached when I asked last, myself among them, if that was no more than
        half of my neighbours."""
        if self._asked_at is None:
            return None
        since = self._asked_at - timing.REACH_PATIENCE
        asked = [
            said_at >= since
            for peer, said_at in self._confirmed.items()
            if peer not in self._questions.stalled_since
        ]
        return 1 + sum(asked) if asked and 2 * sum(asked) <= len(asked) else None

    def ask(self) -> None:
        """Another round.  Who ran late itself could not hear the answers."""
        core = self._core
        now = core.at.now
        late = 0.0
        if self._asked_at is not None:
            late = max(0.0, now - self._asked_at - timing.REACH_INTERVAL)
        self._asked_at = now
        stalled = self._questions.stalled_since
        known = {peer: said_at + late for peer, said_at in self._confirmed.items()}
        # One that is new is as good as the others, of whom most may be out of reach.
        usual = sorted(known.values())[(len(known) - 1) // 2] if known else now
        self._confirmed = {
            peer: now if peer in stalled else known.get(peer, usual)
            for peer in self._neighbours_of_now()
        }
        ping = wire.Ping(_number(now))
        for peer in self._confirmed:
            link = core.links_up.get(peer)
            if link is not None:
                core.tell(link, ping)
        core.timers.set("reach", None, now + timing.REACH_INTERVAL)

    def stop(self) -> None:
        if self._asked_at is not None:
            self._asked_at = None
            self._confirmed.clear()
            self._core.timers.cancel("reach", None)

    def answered(self, link: Link, pong: wire.Pong) -> None:
        """The PING that it answers says when it was sent."""
        peer = link.peer
        if pong.n and peer is not None and peer in self._confirmed:
            said_at = min((pong.n - 1) / 1000, self._core.at.now)
            self._confirmed[peer] = max(self._confirmed[peer], said_at)

    def _neighbours_of_now(self) -> Iterator[NodeId]:
        """Those with a link, and those to whom one is missing."""
        core, mine = self._core, self._neighbours
        linked = {peer for peer, link in core.links_up.items() if link.is_ring}
        for peer in linked | mine.targets | mine.unlinkable.keys():
            if core.view.is_alive(peer):
                yield peer


def _number(now: float) -> int:
    """Of a PING: 1 and above, as 0 is everybody else's."""
    return int(now * 1000) + 1
