"""The leading desk: follows the view's oldest candidate, and claims when it is me."""

from __future__ import annotations

import msgspec

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.authority import Authority
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.leader import Leadership, Phase, is_epoch_credible
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.members import Tombstone
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.reach import Reach
from p2pmesh.protocol.records import SignedRecord
from p2pmesh.protocol.types import (
    LeaderChanged,
    LeaderInfo,
    LeaderReason,
    LeaderStalled,
    Life,
    NodeId,
    Persist,
    State,
    Token,
)


class Leading:
    """Leadership as this node sees and, when it is the oldest, holds it."""

    def __init__(self, core: Core, questions: Questions, reach: Reach) -> None:
        self._core = core
        self._questions = questions
        self._leadership = Leadership(core.me)
        self._reach = reach
        self._authority = Authority(core, reach.seen)
        self._leader: NodeId | None = None
        self._life: Life | None = None
        self._since: float | None = None
        self._reason: LeaderReason = "first"
        self._told: tuple[str | None, int | None] = (None, None)
        self._decided: tuple[object, ...] = ()
        self._persisting: dict[int, int | None] = {}
        self._persists = 0
        self._stall_told: NodeId | None = None
        self._store_again_at: float | None = None  # set while it cannot persist
        #: After a sleep the view is hearsay: no claim, no token, until it is confirmed.
        self.is_suspended = False
        if core.restored.epoch is not None:
            core.view.note_claim(core.restored.epoch, 0)

    # --- following the view -----------------------------------------------------------

    def follow(self) -> None:
        """The view changed.  Most changes have no part in who leads."""
        if self._deciding() != self._decided:
            self.settle()
        if self._reach.is_asking and not self._reach.is_complete:
            self._reach.ask()

    def follow_questions(self) -> None:
        """Who is in question counts for no quorum."""
        if self._core.config.quorum is not None:
            self.follow()

    def settle(self) -> None:
        """Who leads now, and is there something to say?"""
        core = self._core
        self._decided = self._deciding()
        if core.life != self._life:
            self._life = core.life
            if self._leadership.give_up():
                self._authority.weigh(None, "a new life")
        leader = core.view.leader()
        if (leader.id if leader else None) != self._leader:
            self._reason = self._why(leader)
            self._leader = leader.id if leader else None
            self._since = core.at.now
            self._stall_told = None
        self._step_down_for_higher()
        if self._leadership.observe(
            self._leader, core.at.now, previous_left=self._reason == "leader_left"
        ):
            reason = "this node leaves" if core.has_left else "an older candidate is here"
            self._authority.weigh(None, reason)
        self._authority.weigh(self._token())
        self._claim()
        self._tell()
        self._follow_reach()

    def _follow_reach(self) -> None:
        """Who leads with a quorum asks whether it is heard; also between two claims."""
        if self._core.config.quorum is None or self._leader != self._core.me:
            self._reach.stop()
        elif not self._reach.is_asking:
            self._reach.ask()

    def reach_due(self) -> None:
        self._reach.ask()
        self.follow()

    def answered(self, link: Link, pong: wire.Pong) -> None:
        if self._reach.is_asking:
            self._reach.answered(link, pong)
            self.follow()

    def _deciding(self) -> tuple[object, ...]:
        """All of the view that decides who leads, and with which claim."""
        view = self._core.view
        claims = view.highest_epoch, view.claimant
        return self._core.record, view.leader(), claims, self._authority.basis()

    def _why(self, leader: SignedRecord | None) -> LeaderReason:
        """What happened to the leader before this one."""
        if self._leader is None:
            return "first"
        held = self._core.view.nodes.get(self._leader)
        if isinstance(held, Tombstone):
            return "leader_failed"
        if held is None or held.record.state is State.LEFT:
            return "leader_left"
        if leader is not None and leader.seniority < held.seniority:
            return "merge" if held.record.candidate else "withdrawn"
        return "withdrawn" if not held.record.candidate else "leader_failed"

    def _step_down_for_higher(self) -> None:
        """Another's claim reached mine (two sides of a split met): claim above it.
        A claim stays in its maker's record, also when that leads no more, and who
        claimed may be gone; heartbeats tell of the highest."""
        mine = self._leadership.epoch
        highest = self._core.view.highest_epoch
        if mine is not None and highest > mine and self._leadership.outbid(highest):
            self._authority.weigh(None, "a higher epoch is here")

    def heard(self, epoch: int, claimant: int) -> None:
        """A peer told of the highest claim that it knows."""
        core, view = self._core, self._core.view
        known = view.highest_epoch
        if epoch < known or (epoch == known and claimant in (0, view.claimant)):
            return
        if is_epoch_credible(epoch, known):
            view.note_claim(epoch, claimant)
            self.settle()
        else:
            core.count("epoch_jump")

    # --- claiming -----------------------------------------------------------------------

    def _claim(self) -> None:
        core = self._core
        if core.life is None or core.has_left or self.is_suspended:
            return
        known = core.view.highest_epoch
        if self._store_again_at is not None:
            if core.at.now >= self._store_again_at and not self._persisting:
                self._persist(core.life, known or None)
            return
        epoch = self._leadership.claim(known, core.at.wall, core.at.now)
        if epoch is None:
            if self._leadership.phase is Phase.SETTLING:
                core.timers.set("claim", None, self._leadership.settled_at)
        elif core.config.persistent:
            self._persist(core.life, epoch)
        else:
            self._hold(epoch)

    def _persist(self, life: Life, epoch: int | None) -> None:
        self._persists += 1
        self._persisting[self._persists] = epoch
        self._core.act(Persist(self._persists, life, epoch))

    def stored(self, action: int, ok: bool) -> None:
        """The store's word about a claim: told only when it is safe.  Who cannot
        persist is no candidate until it can, so that the next oldest may lead."""
        core = self._core
        if action not in self._persisting:
            return
        epoch = self._persisting.pop(action)
        if not ok:
            self._leadership.give_up()
            self._store_again_at = core.at.now + timing.STORE_RETRY
            core.timers.set("claim", None, self._store_again_at)
            self._be_candidate(False)
        elif self._store_again_at is not None:
            self._store_again_at = None
            self._be_candidate(True)
        elif epoch is not None and epoch == self._leadership.epoch:
            self._hold(epoch)

    def _be_candidate(self, is_candidate: bool) -> None:
        core = self._core
        record = core.record.record
        if record.candidate is not is_candidate and not core.has_left:
            core.publish(
                msgspec.structs.replace(
                    record, candidate=is_candidate, revision=record.revision + 1
                )
            )

    def _hold(self, epoch: int) -> None:
        core = self._core
        if not self._leadership.hold():
            return
        record = core.record.record
        core.publish(
            msgspec.structs.replace(record, epoch=epoch, revision=record.revision + 1),
            Urgency.ENDING,
        )
        self._authority.weigh(self._token())
        self._tell()

    def suspend(self, seconds: float) -> None:
        """This process did not run for so long (stopped, starved, or its machine slept,
        which look the same from here): whatever I held may be another's by now."""
        self.is_suspended = True
        if self._leadership.give_up():
            self._authority.weigh(None, f"this process did not run for {seconds:.0f} s")

    # --- telling ------------------------------------------------------------------------

    def _tell(self) -> None:
        """The event comes with the claim: one for each leader and epoch.  Who has left
        does not say who leads without it."""
        core = self._core
        if core.has_left or core.life is None:
            return
        leader = core.view.leader()
        epoch = self._epoch_of(leader)
        now = (self.leader_id(), epoch)
        if now == self._told or (leader is not None and epoch is None):
            return
        reason: LeaderReason = "first" if self._told[0] is None else self._reason
        if leader is not None and now[0] == self._told[0]:
            reason, self._since = "reclaimed", core.at.now
        self._told = now
        core.act(LeaderChanged(leader_id=now[0], epoch=epoch, reason=reason))

    def stall_due(self) -> None:
        """Called each heartbeat: a leader stalled for 3 s is worth an event."""
        leader = self._leader
        since = self._questions.stalled_since.get(leader) if leader else None
        if since is None or leader is None:
            self._stall_told = None
        elif (
            leader != self._stall_told and self._core.at.now - since >= timing.LEADER_STALLED_AFTER
        ):
            self._stall_told = leader
            self._core.act(LeaderStalled(leader_id=self.leader_id() or ""))

    def _epoch_of(self, leader: SignedRecord | None) -> int | None:
        """Of its claim; None while a higher one is known, which it has to outbid."""
        epoch = leader.record.epoch if leader is not None else None
        return epoch if epoch is not None and epoch >= self._core.view.highest_epoch else None

    def leader_id(self) -> str | None:
        leader = self._core.view.leader()
        return leader.record.agent.instance_id if leader and leader.record.agent else None

    def info(self) -> LeaderInfo:
        core = self._core
        claim, lacks = self._token(), self._authority.lacks
        return LeaderInfo(
            leader_id=self.leader_id(),
            epoch=self._epoch_of(core.view.leader()),
            token=claim if lacks is None else None,
            authoritative=claim is not None and lacks is None,
            lacks=lacks if claim is not None else None,
            policy=self._authority.policy,
            since=None if self._since is None else core.at.now - self._since,
        )

    def token(self) -> Token:
        """Raises NotAuthoritative."""
        claim = self._token()
        if claim is None or self._authority.lacks is not None:
            raise self._authority.refusal(claim, self.leader_id())
        return claim

    def _token(self) -> Token | None:
        """Of the claim that I hold, whatever the policy makes of it."""
        life, epoch = self._core.life, self._leadership.epoch
        if life is None or epoch is None or self._leadership.phase is not Phase.LEADING:
            return None
        return Token(epoch, life, self._core.me.hex())
