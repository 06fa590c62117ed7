"""Authority: whether a claim counts, by the policy, and when that begins and ends.

Who holds a claim leads.  With ``quorum=n`` it has authority only while it sees n live
members, itself among them, whom nobody has in question: where a network falls apart all
of the other side are, for a second or more before they are given up.  Nor do those
count whom this node does not reach (``reach``).  ``Elected`` and ``Demoted`` tell of
authority, in turns: never two of one kind.

A quorum that was missing may be back because a split heals, and another leader of the
other side sees it come back, too.  So it counts once what is known of members and other
claims has not changed for QUORUM_SETTLE: by then one of the two knows of the other.  No
such time can be proof; tokens decide.

The quorum has no part in the claim: who regains it goes on with the epoch it has.  Had
another led meanwhile, then with a higher epoch; who hears of that claims above it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol import timing
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.types import Demoted, Elected, QuorumMissing, Token


class Authority:
    """What this node's claim, if it has one, is worth."""

    def __init__(self, core: Core, seen: Callable[[], int]) -> None:
        self._core = core
        self._seen = seen  # how many count for a quorum
        self._quorum = core.config.quorum
        self._told: Token | None = None  # by Elected, and not yet ended
        self._is_missing_told = False
        self._was_missing = False  # while I had a claim, and is not back for long enough
        self._back_at: float | None = None
        self._settled_at = 0.0
        self._known: tuple[object, ...] = ()  # of members and claims, when it began to settle

    @property
    def policy(self) -> str:
        return "available" if self._quorum is None else f"quorum={self._quorum}"

    @property
    def lacks(self) -> str | None:
        """What a claim would lack now; None: it counts."""
        if not self._is_short and not self._was_missing:
            return None
        seen = f"{self._seen()} of quorum {self._quorum}"
        return seen if self._is_short else f"{seen}, back for less than {timing.QUORUM_SETTLE} s"

    @property
    def _is_short(self) -> bool:
        return self._quorum is not None and self._seen() < self._quorum

    def basis(self) -> tuple[object, ...]:
        """All of the view, but for claims, that decides what a claim is worth."""
        return self._is_short, self._was_missing and self._seen()

    def weigh(self, claim: Token | None, why_not: str = "") -> None:
        """This is what I claim now; ``why_not`` says why it is nothing any more."""
        self._settle(claim)
        lacks = self.lacks
        held = claim if lacks is None else None
        if held != self._told:
            if self._told is not None:
                self._core.act(Demoted(reason=why_not or f"it sees {lacks}"))
            self._told = held
            if held is not None:
                self._core.act(Elected(token=held))
        is_missing = claim is not None and self._is_short
        if is_missing and not self._is_missing_told:
            assert self._quorum is not None
            self._core.act(QuorumMissing(seen=self._seen(), quorum=self._quorum))
        self._is_missing_told = is_missing

    def _settle(self, claim: Token | None) -> None:
        """Was the quorum missing while I had a claim, and is it back, and since when?"""
        core = self._core
        if self._is_short:
            self._was_missing |= claim is not None
            self._back_at = None
        if not self._was_missing or self._is_short:
            return
        now, view = core.at.now, core.view
        leader = view.leader()
        claims = leader.id if leader else None, view.highest_epoch, view.claimant
        known = (*claims, self._seen())
        if self._back_at is None:
            self._back_at, self._known = now, ()
        if known != self._known:
            is_rival = claims != self._known[:-1]
            # Members that go on coming do not put it off for ever.
            latest = inf if is_rival else self._back_at + timing.QUORUM_SETTLE_MAX
            self._known = known
            self._settled_at = max(min(now + timing.QUORUM_SETTLE, latest), self._settled_at)
        if now >= self._settled_at:
            self._was_missing = False
        else:
            core.timers.set("authority", None, self._settled_at)

    def refusal(self, claim: Token | None, leader_id: str | None) -> NotAuthoritative:
        if claim is None:
            return NotAuthoritative(
                f"this node does not lead with authority (the leader is {leader_id!r}): "
                "wait for on_elected"
            )
        if not self._is_short:
            return NotAuthoritative(
                f"this node leads, but sees {self.lacks}: another may have led meanwhile; "
                "on_elected is called once that is known"
            )
        return NotAuthoritative(
            f"this node leads, but sees {self.lacks}; "
            f"on_elected is called once {self._quorum} are seen"
        )
