"""An attempt: one target being dialled, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from p2pmesh.protocol.types import DialOutcome, FoundBy, NodeId

#: From the least to the most telling: an attempt over several addresses is as
#: good as its most telling dial.
_TELLING: Final = (
    DialOutcome.LOCAL_ERROR,
    DialOutcome.UNREACHABLE,
    DialOutcome.TIMEOUT,
    DialOutcome.REFUSED,
)


class Purpose(Enum):
    """Why an address is dialled."""

    CANDIDATE = "candidate"  # discovery offered it
    CONNECT = "connect"  # a ring position, or a message needs a link
    PROBE = "probe"  # the detector asks the peer's kernel
    CHECK = "check"  # does the peer's address work for me at all?
    REPLACE = "replace"  # a link off the rings hangs
    HEAL = "heal"  # a failed member may be back


@dataclass(slots=True, eq=False)
class Attempt:
    """Addresses of one target, dialled one after the other until one completes."""

    purpose: Purpose
    target: NodeId | str  # who is expected there, or the candidate's key
    waiting: list[str]  # addresses not dialled yet
    found_by: FoundBy
    replaces: bytes | None = None  # handshake hash of a link that this one replaces
    dials: dict[int, str] = field(default_factory=dict)
    links: set[int] = field(default_factory=set)
    outcome: DialOutcome = DialOutcome.LOCAL_ERROR
    accepted: bool = False  # some dial was
    is_over: bool = False

    @property
    def expects(self) -> NodeId | None:
        return self.target if isinstance(self.target, bytes) else None

    def failed(self, dial: int, outcome: DialOutcome) -> None:
        self.dials.pop(dial, None)
        self.outcome = max(self.outcome, outcome, key=_TELLING.index)
