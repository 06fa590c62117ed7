"""Every interval of the protocol, in seconds, and the presets that scale them.

A preset scales how often things are said and how long silence may last.  It
never scales what a *kernel* needs to answer (the re-dial gap), the stall
grace, the guest timeout or a message's TTL: those belong to machines and
people, not to the network.  A monitor uses the slower of its own preset and
the peer's, so a mixed mesh does not bury its slow members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Timing:
    """The scaled intervals of one preset (float seconds)."""

    heartbeat_interval: float
    silence_after: float


#: By the name that a record carries.
PRESETS: Final[Mapping[str, Timing]] = MappingProxyType(
    {
        "lan": Timing(heartbeat_interval=1.0, silence_after=1.5),
        "local": Timing(heartbeat_interval=0.2, silence_after=0.3),
        "wifi": Timing(heartbeat_interval=2.0, silence_after=3.0),
    }
)


def slower(first: str, second: str) -> Timing:
    """The intervals of whichever of two presets is slower."""
    a, b = PRESETS[first], PRESETS[second]
    return a if a.silence_after >= b.silence_after else b


# --- links -------------------------------------------------------------------
HANDSHAKE_TIMEOUT: Final = 5.0
HANDSHAKE_LATEST: Final = 20.0  # of a process that is late itself
REKEY_INTERVAL: Final = 3600.0
CHECK_DIAL_MIN: Final = 0.01  # after a ring link forms: does its peer's address work?
CHECK_DIAL_EACH: Final = 0.02  # later by this for each member, since all may join at once,
CHECK_DIAL_MAX: Final = 0.5  # up to this
LINK_IDLE_TIMEOUT: Final = 30.0  # an on-demand link nobody uses
SIDE_PING_AFTER: Final = 1.0  # an on-demand link that does not answer is asked,
SIDE_HUNG_AFTER: Final = 2.0  # and dialled afresh
DIAL_TIMEOUT: Final = 1.5  # no answer from the peer's kernel
DIAL_STAGGER: Final = 0.25  # between the addresses of one candidate

# --- rings -------------------------------------------------------------------
RING_SETTLE: Final = 0.25  # rings follow the view at most this often
RING_FILL_AFTER: Final = 3.0  # then the next member of that ring fills in

# --- evidence ----------------------------------------------------------------
REDIAL_GAP: Final = 0.03  # half of immediate re-dials still succeed
REFUSED_SUSPICION: Final = 0.25
SILENT_SUSPICION: Final = 1.0  # unreachable, stalled, and every tombstone asked
UNMET_SUSPICION: Final = 3.0  # unreachable at an address only others have met
STALL_GRACE: Final = 15.0
STALL_RENEWAL: Final = 2.0
STALL_MEMORY: Final = 5.0  # a flag nobody renewed
STALL_NUMBERS_KEPT: Final = 60.0
REACCUSE_AFTER: Final = 3.0  # after a refutation or vouch; doubles
REACCUSE_MAX: Final = 60.0
VERDICT_FRESH: Final = 2.0  # older verdicts are asked, not applied
LAG_MEMORY: Final = 3.0
LAG_TOLERANCE: Final = 0.25
LATE_PACE: Final = 4.0  # who is late again and again: dials so many times that apart,
LATE_PACE_MAX: Final = 5.0  # but no further
LEADER_STALLED_AFTER: Final = 3.0

# --- gossip ------------------------------------------------------------------
NEWS_INTERVAL: Final = 0.1  # between plain changes; questions and endings go at once,
HURRY_INTERVAL: Final = 0.05  # or so often once HURRIES_MAX have gone
SNAPSHOT_PATIENCE: Final = 1.5  # of a newcomer, for what its contact knows
NEWCOMER_FED: Final = 1.5  # by its contact, from the snapshot on
REPAIR_AFTER_BEATS: Final = 10  # in a row, each with another difference
REPAIR_INTERVAL: Final = 5.0  # from one peer
HEAL_INTERVAL: Final = 2.0  # at least, between dials to failed members
TOMBSTONE_TTL: Final = 24 * 3600.0

# --- joining and leading ----------------------------------------------------
ALONE_AFTER: Final = 1.0  # no candidate pending: found a mesh
LOOK_GRACE: Final = 0.5  # for answers, once discovery is under way
STAMP_LATEST: Final = 5.0
CANDIDATE_RETRY: Final = 1.0
CANDIDATE_RETRY_MAX: Final = 30.0
NEWCOMER_DIAL_MIN: Final = 0.2
NEWCOMER_DIAL_MAX: Final = 2.0
RIVAL_LATEST: Final = 5.0  # an older live agent has my instance id
ALONE_WARNING_AFTER: Final = 10.0
CLAIM_SETTLE: Final = 0.2
QUORUM_SETTLE: Final = 0.5  # a quorum that was missing: back, and nothing new of other claims
QUORUM_SETTLE_MAX: Final = 2.0  # however many members come
REACH_INTERVAL: Final = 0.25  # between the PINGs of a leader with a quorum
REACH_GRACE: Final = 1.6  # beyond silence: who stalls is flagged by then, and nobody given up
REACH_DIAL_INTERVAL: Final = 2.0  # to one of them that has no link
HEARSAY_LATEST: Final = 5.0
STORE_RETRY: Final = 5.0  # a candidate whose store failed tries it again

# --- guests and messages ----------------------------------------------------
GUEST_TIMEOUT: Final = 15.0
GUEST_SWEEP: Final = 1.0
GUEST_STATUS_INTERVAL: Final = 10.0  # between two tellings of one guest's status
SELF_STATUS_INTERVAL: Final = 10.0  # and of an own agent's
GUEST_REVIVAL: Final = 3600.0
RESTORED_TOLD_AFTER: Final = 0.25  # for a snapshot to say who lives elsewhere by now
FORWARD_TIMEOUT: Final = 1.0
CREDIT_AFTER: Final = 0.2  # between credits of a reader that keeps up
CREDIT_AGAIN: Final = 5.0  # said again while a streamed answer goes on
CREDIT_GRACE: Final = 15.0  # beyond its timeout: an asker that says nothing gave up
READ_WAIT_MAX: Final = 60.0  # for mail
UNKNOWN_TARGET_WAIT: Final = 1.0
RELAY_AFTER: Final = 3.0
MESSAGE_TTL: Final = 24 * 3600.0
DEAD_LETTER_TTL: Final = 30 * 24 * 3600.0
SENT_KEY_TTL: Final = 24 * 3600.0  # a send that is repeated is the same one
CAST_REPAIR_AFTER: Final = 0.7  # later than a segment that is lost twice, 0.6 s
LEAVE_TIMEOUT: Final = 4.0  # and up to a second until the goodbye is sent
WATERMARK_TTL: Final = 30 * 24 * 3600.0
STREAM_RETRY: Final = 1.0  # a full or missing recipient, asked again; doubles
STREAM_RETRY_MAX: Final = 30.0
STREAM_PROBE_AFTER: Final = 10.0  # no receipt for what was sent; doubles
STREAM_UNSURE_AFTER: Final = 30.0  # stored, and no word of its end: ask; doubles
STREAM_UNSURE_MAX: Final = 3600.0
PROGRESS_INTERVAL: Final = 0.1  # between two words on how far one message is
LINK_ASKED_AGAIN: Final = DIAL_TIMEOUT + 0.1  # a link that messages wait for; doubles
LINK_ASKED_AGAIN_MAX: Final = 30.0
LINK_WANTED_FOR: Final = 30.0  # after it was last said to be wanted
LINK_WANTED_AGAIN: Final = 10.0  # said again, while messages wait
HANDLER_RETRY: Final = 0.1  # after a handler failed; times HANDLER_RETRY_GROWTH
HANDLER_RETRY_GROWTH: Final = 4.0
HANDLER_RETRIES: Final = 5
CAST_SUM_WITHIN: Final = 0.3  # then the receipts so far go up the tree
CAST_PASSING_FOR: Final = 10.0  # late receipts are still passed up
GUEST_FORGOTTEN_AFTER: Final = 24 * 3600.0  # a failed guest counts as left


def handler_retry(attempt: int) -> float | None:
    """After how long a handler is tried again whose attempt of this number failed; None: never."""
    if attempt > HANDLER_RETRIES:
        return None
    return HANDLER_RETRY * HANDLER_RETRY_GROWTH ** (attempt - 1)
