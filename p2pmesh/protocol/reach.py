"""The reach desk: whether what a leader with a quorum says arrives.

All else is judged by what is heard.  Whose packets get to nobody hears everybody, and
learns late that the others gave it up and follow another.  So it asks:

    while I am the oldest, with quorum=n: a PING each REACH_INTERVAL to SAMPLE_MAX members
    no PONG for REACH_GRACE beyond silence: does not count for the quorum
    of more members some are not asked: they count where most of the asked answer

A process that is flagged as stalled answers nobody, and is no evidence.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import Final

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.types import NodeId

#: Of so many members and fewer all are asked; that takes a link to each.
SAMPLE_MAX: Final = 32


class Reach:
    """Who confirmed what I said, and when I said that."""

    def __init__(self, core: Core, neighbours: Neighbours, questions: Questions) -> None:
        self._core = core
        self._neighbours = neighbours
        self._questions = questions
        self._confirmed: dict[NodeId, float] = {}
        self._dialled: dict[NodeId, float] = {}
        self._asked_at: float | None = None  # None: I do not ask
        self._patience = timing.PRESETS[core.config.preset].silence_after + timing.REACH_GRACE

    @property
    def is_asking(self) -> bool:
        return self._asked_at is not None

    @property
    def is_complete(self) -> bool:
        """Is everybody asked, or as many as are?"""
        others = self._core.view.alive_count - 1
        return len(self._confirmed) >= min(others, SAMPLE_MAX)

    def seen(self) -> int:
        """How many members, myself among them, are alive, in nobody's question, and have
        answered; where only some are asked, as these do."""
        view, me = self._core.view, self._core.me
        suspects = self._questions.suspicions.open
        good = view.alive_count - sum(1 for n in suspects if n != me and view.is_alive(n))
        if self._asked_at is None:
            return good
        since, stalled = self._asked_at - self._patience, self._questions.stalled_since
        answers = [
            said_at >= since or peer in stalled
            for peer, said_at in self._confirmed.items()
            if view.is_alive(peer) and peer not in suspects
        ]
        silent = len(answers) - sum(answers)
        if view.alive_count > SAMPLE_MAX + 1 and 2 * silent < len(answers):
            return good - silent
        return 1 + sum(answers)

    def ask(self) -> None:
        """Another round.  Who ran late itself could not hear the answers."""
        core = self._core
        now = core.at.now
        late = 0.0 if self._asked_at is None else now - self._asked_at - timing.REACH_INTERVAL
        self._asked_at = now
        known = self._confirmed
        if late > timing.LAG_TOLERANCE:
            known = {peer: said_at + late for peer, said_at in known.items()}
        # One that is new is as good as the others, of whom most may be out of reach; at
        # first nobody has answered.
        usual = sorted(known.values())[(len(known) - 1) // 2] if known else -inf
        stalled = self._questions.stalled_since
        self._confirmed = {
            peer: now if peer in stalled else known.get(peer, usual) for peer in self._sample()
        }
        self._dialled = {peer: at for peer, at in self._dialled.items() if peer in self._confirmed}
        ping = wire.Ping(_number(now))
        for peer in self._confirmed:
            link = core.links_up.get(peer)
            if link is not None:
                core.tell(link, ping)
            elif self._dialled.get(peer, -inf) <= now - timing.REACH_DIAL_INTERVAL:
                self._dialled[peer] = now
                self._neighbours.connect_in_turn(peer)
        core.timers.set("reach", None, now + timing.REACH_INTERVAL)

    def stop(self) -> None:
        if self._asked_at is not None:
            self._asked_at = None
            self._confirmed.clear()
            self._dialled.clear()
            self._core.timers.cancel("reach", None)

    def answered(self, link: Link, pong: wire.Pong) -> None:
        """The PING that it answers says when it was sent."""
        peer = link.peer
        if pong.n and peer is not None and peer in self._confirmed:
            said_at = min((pong.n - 1) / 1000, self._core.at.now)
            self._confirmed[peer] = max(self._confirmed[peer], said_at)

    def _sample(self) -> list[NodeId]:
        """Who was asked before, and others up to the limit."""
        view, me = self._core.view, self._core.me
        kept = [peer for peer in self._confirmed if view.is_alive(peer)]
        others = (
            held.id for held in view.all_alive() if held.id != me and held.id not in self._confirmed
        )
        return kept + list(islice(others, SAMPLE_MAX - len(kept)))


def _number(now: float) -> int:
    """Of a PING: 1 and above, as 0 is everybody else's."""
    return int(now * 1000) + 1
