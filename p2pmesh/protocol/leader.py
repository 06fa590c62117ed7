"""Leadership: a pure function of the view, and the claim that makes it fencible.

``View.leader()`` names the oldest live candidate; nobody campaigns or votes.  The
oldest *claims*: it raises the epoch above every epoch seen and says so in its
record.  (epoch, life, id) is the fencing token; a resource that remembers the
greatest token it has seen refuses every earlier leader.

    not leader ──becomes oldest──► settling ──200 ms──► claiming ──persisted──► leading
        ▲                             │                     │                       │
        └─────────────── an older candidate appears ────────┴───────────────────────┘

This is not consensus: two sides of a split each have a leader until they meet.
With ``quorum=n`` a side smaller than n has a leader without authority.
"""

from __future__ import annotations

from enum import Enum

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import NodeId


class Phase(Enum):
    FOLLOWING = "following"
    SETTLING = "settling"
    CLAIMING = "claiming"  # waiting for the store
    LEADING = "leading"


class Leadership:
    """What this node does about being, or not being, the oldest."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self.phase = Phase.FOLLOWING
        self.epoch: int | None = None  # my claim, while claiming or leading
        self.settled_at = 0.0

    def observe(self, leader: NodeId | None, now: float, *, previous_left: bool) -> bool:
        """The view's leader may have changed.  True: I stepped down just now."""
        if leader != self._me:
            was_leading = self.phase is Phase.LEADING
            self.phase, self.epoch = Phase.FOLLOWING, None
            return was_leading
        if self.phase is Phase.FOLLOWING:
            self.phase = Phase.SETTLING
            self.settled_at = now if previous_left else now + timing.CLAIM_SETTLE
        return False

    def outbid(self, highest_other: int) -> bool:
        """Another's epoch reached mine: claim anew.  True: I stepped down."""
        if self.epoch is None or highest_other < self.epoch:
            return False
        was_leading = self.phase is Phase.LEADING
        self.phase, self.epoch = Phase.FOLLOWING, None
        return was_leading

    def claim(self, highest: int, wall: int, now: float) -> int | None:
        """The epoch to claim, once settled; then persist it and call ``hold``.

        Where none is known it is the clock's second, and one that is centuries ahead
        does not count: a first epoch is credible to everyone.
        """
        if self.phase is not Phase.SETTLING or now < self.settled_at:
            return None
        self.phase = Phase.CLAIMING
        self.epoch = highest + 1 if highest else min(max(wall // 1000, 1), limits.EPOCH_JUMP_MAX)
        return self.epoch

    def hold(self) -> bool:
        """The claim is safe.  False: it was given up meanwhile."""
        if self.phase is not Phase.CLAIMING:
            return False
        self.phase = Phase.LEADING
        return True

    def give_up(self) -> bool:
        """Leave leadership (sleep, store failure).  True: I was leading."""
        was_leading = self.phase is Phase.LEADING
        self.phase, self.epoch = Phase.FOLLOWING, None
        return was_leading


def is_epoch_credible(epoch: int, highest: int) -> bool:
    """A claim far above everything seen is a fault, not a leader.  Who has seen none
    believes what a mesh may have come to since its first."""
    return epoch <= max(highest, limits.EPOCH_JUMP_MAX) + limits.EPOCH_JUMP_MAX
