"""What the own agent says of itself: its status and its metrics.

    say ─► told at once ─► a later change when SELF_STATUS_INTERVAL is over

It travels in this node's record, which is small: what does not fit is not told, and
shown by this node alone.  Not here: what guests say (``guests``).
"""

from __future__ import annotations

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.records import Record, fits


class SelfWord:
    """Keeps the word in ``core.said``, and sees to it that the mesh hears of it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._may_tell_at = 0.0

    def say(self, status: str | None, metrics: bytes | None) -> None:
        core = self._core
        core.said = (status, metrics)
        if core.at.now >= self._may_tell_at:
            self.tell()
        else:
            core.timers.set("word", None, self._may_tell_at)

    def tell(self) -> None:
        """What was said last, unless that is known."""
        core = self._core
        record = core.record.record
        told = _with_word(record, *core.said)
        if told.agent == record.agent or core.has_left:
            return
        self._may_tell_at = core.at.now + timing.SELF_STATUS_INTERVAL
        core.publish(msgspec.structs.replace(told, revision=record.revision + 1))


def _with_word(record: Record, status: str | None, metrics: bytes | None) -> Record:
    """The record with as much of the word as it can carry; a status goes first."""
    if status is not None and len(status.encode("utf-8", "replace")) > limits.STATUS_MAX:
        status = None
    assert record.agent is not None
    for said in ((status, metrics), (status, None), (None, metrics)):
        agent = msgspec.structs.replace(record.agent, status=said[0], metrics=said[1])
        told = msgspec.structs.replace(record, agent=agent)
        if fits(told):
            return told
    agent = msgspec.structs.replace(record.agent, status=None, metrics=None)
    return msgspec.structs.replace(record, agent=agent)
