"""Authority: whether a claim counts, by the policy, and when that begins and ends.

Who holds a claim leads.  With ``quorum=n`` it has authority only while it sees n live
members, itself among them.  ``Elected`` and ``Demoted`` tell of authority, in turns:
never two of one kind.

The quorum has no part in the claim: who regains it goes on with the epoch it has.  Had
another led meanwhile, then with a higher epoch; who hears of that claims above it.
"""

from __future__ import annotations

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.types import Demoted, Elected, QuorumMissing, Token


class Authority:
    """What this node's claim, if it has one, is worth."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._quorum = core.config.quorum
        self._told: Token | None = None  # by Elected, and not yet ended
        self._is_missing_told = False

    @property
    def policy(self) -> str:
        return "available" if self._quorum is None else f"quorum={self._quorum}"

    @property
    def lacks(self) -> str | None:
        """What a claim would lack now; None: it counts."""
        if self._quorum is None or self._core.view.alive_count >= self._quorum:
            return None
        return f"{self._core.view.alive_count} of quorum {self._quorum}"

    def weigh(self, claim: Token | None, why_not: str = "") -> None:
        """This is what I claim now; ``why_not`` says why it is nothing any more."""
        lacks = self.lacks
        held = claim if lacks is None else None
        if held != self._told:
            if self._told is not None:
                self._core.act(Demoted(reason=why_not or f"it sees {lacks}"))
            self._told = held
            if held is not None:
                self._core.act(Elected(token=held))
        is_missing = claim is not None and lacks is not None
        if is_missing and not self._is_missing_told:
            assert self._quorum is not None
            self._core.act(QuorumMissing(seen=self._core.view.alive_count, quorum=self._quorum))
        self._is_missing_told = is_missing

    def refusal(self, claim: Token | None, leader_id: str | None) -> NotAuthoritative:
        if claim is None:
            return NotAuthoritative(
                f"this node does not lead with authority (the leader is {leader_id!r}): "
                "wait for on_elected"
            )
        return NotAuthoritative(
            f"this node leads, but sees {self.lacks}; "
            f"on_elected is called once {self._quorum} are seen"
        )
