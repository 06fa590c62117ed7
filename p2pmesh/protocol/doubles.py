"""The desk of one's own id: what others hold of it, and who else has it.

    a record of my id, its life ─┬─ mine, but newer: raise the incarnation above it
                                 └─ later: restamp above it once; the second time
                                    somebody else is alive with my identity ─► Stop
    a verdict or a question about me ─► refute, with the next incarnation
    an older agent with my instance id ─► it keeps it ─► Stop

Not here: my own id at the other end of a link, which is told by its HELLO (``joining``).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.members import Change
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.records import SignedRecord, is_plausible
from p2pmesh.protocol.types import DoubleIdentity, Joined, Life, NodeId, Stop


class Doubles:
    """Whether this node is the only one of its identity."""

    def __init__(self, core: Core, membership: Membership) -> None:
        self._core = core
        self._membership = membership
        self._restamped = False

    # --- my records, elsewhere --------------------------------------------------------

    def own_came_back(self) -> None:
        """Records of my id that others hold."""
        core = self._core
        for signed in self._membership.own_seen:
            theirs, mine = signed.record, core.record.record
            if mine.life is None or theirs.life is None or core.has_left:
                if theirs.life is not None and core.life is None:
                    core.view.highest = max(core.view.highest, theirs.life)
                continue
            if theirs.life > mine.life:
                self._outlived(theirs.life, theirs.addresses)
            elif theirs.life == mine.life and signed.version > core.record.version:
                self._membership.raise_incarnation(theirs.incarnation)
        self._membership.own_seen.clear()

    def _outlived(self, life: Life, addresses: tuple[str, ...]) -> None:
        """My id lives under a higher life: restamp above it once; the second time
        somebody else is alive with my identity."""
        core = self._core
        if self._restamped:
            self.tell((*addresses, *core.config.addresses))
            core.act(Stop("double"))
            return
        self._restamped = True
        self._rise_above(life)

    def _rise_above(self, life: Life) -> None:
        core = self._core
        above = Life(life.ms, life.logical + 1, core.life_number())
        core.publish(
            msgspec.structs.replace(
                core.record.record, life=above, incarnation=0, revision=0, epoch=None
            )
        )
        core.act(Joined(life=str(above), contact=None))

    def buried(self, verdict: wire.Verdict) -> None:
        """Somebody says that I failed: I refute.  A tombstone of a later life than
        mine is of one that I have forgotten: nobody would take me below it."""
        life = self._core.life
        if life is None or self._core.has_left:
            return
        if verdict.life == life:
            self._membership.raise_incarnation(verdict.incarnation)
        elif verdict.life > life and is_plausible(verdict.life):
            self._rise_above(verdict.life)

    def questioned(self, question: wire.Question) -> bool:
        """Somebody asks whether I am gone: I answer, if I did not already."""
        life = self._core.life
        if life is None or question.life != life:
            return False
        return self._membership.raise_incarnation(question.incarnation)

    def tell(self, addresses: tuple[str, ...]) -> None:
        """Another process has my identity: say so."""
        core = self._core
        agent = core.config.agent
        core.act(
            DoubleIdentity(
                node_id=core.me.hex(),
                instance_id=agent.instance_id if agent else "",
                addresses=addresses,
            )
        )

    # --- my instance id, elsewhere ----------------------------------------------------

    def settle(self, changes: Iterable[Changed]) -> None:
        """Somebody came: has it my instance id?"""
        mine = self._core.record.instance_id
        if mine is None:
            return
        for node, change, _ in changes:
            if (
                change is Change.JOINED
                and isinstance(node, bytes)
                and self._is_namesake(node, mine)
            ):
                timers = self._core.timers
                timers.set_earlier("rival", None, self._core.at.now + timing.RIVAL_LATEST)

    def rival_due(self) -> None:
        """An older agent has had my instance id for 5 s: it keeps it."""
        rival = self._rival()
        if rival is not None:
            self.tell(rival.record.addresses)
            self._core.act(Stop("an older agent has this instance id"))

    def _rival(self) -> SignedRecord | None:
        """An older live node whose agent has my instance id."""
        mine = self._core.record
        if mine.instance_id is None or self._core.life is None:
            return None
        for held in self._core.view.all_alive():
            if held.instance_id == mine.instance_id and held.seniority < mine.seniority:
                return held
        return None

    def _is_namesake(self, node: NodeId, mine: str) -> bool:
        """Has this node my instance id, and is there an older one that has?"""
        held = self._core.view.nodes.get(node)
        is_same = isinstance(held, SignedRecord) and held.instance_id == mine
        return is_same and self._rival() is not None
