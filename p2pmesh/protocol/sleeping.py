"""The sleeping desk: what follows when this process did not run for a while.

Timers run every heartbeat, so a larger gap between two of them is a sleep.  After a
short one nobody is accused for a while.  After one in which others may have buried me,
leadership is dropped until a peer is heard, and nothing of the view is told until
others confirm it.

Not here: how late the caller's loop runs while it does (``Mesh.loop_lagged``).
"""

from __future__ import annotations

from typing import Final

from p2pmesh.protocol import timing
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.leading import Leading
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.types import Instant

#: A timer this much later than asked for means that others may have buried me.
_SLEEP_AFTER: Final = timing.STALL_GRACE - 2.0


class Sleeping:
    """When this process ran last, and what it may not believe since."""

    def __init__(
        self, core: Core, membership: Membership, monitoring: Monitoring, leading: Leading
    ) -> None:
        self._core = core
        self._membership = membership
        self._monitoring = monitoring
        self._leading = leading
        self._ran_at = core.at.now

    def start(self, at: Instant) -> None:
        self._ran_at = at.now

    def ran(self, at: Instant) -> None:
        """This process runs: did it all the time?"""
        gap = at.now - self._ran_at
        self._ran_at = at.now
        interval = timing.PRESETS[self._core.config.preset].heartbeat_interval
        if gap > interval + timing.LAG_TOLERANCE:
            self._core.lateness.note(at.now)
        if gap > _SLEEP_AFTER and self._core.life is not None:
            self._leading.suspend(gap)
            self._core.view.doubt(self._core.me)
            self._core.timers.set("hearsay", None, at.now + timing.HEARSAY_LATEST)
            self._core.timers.set("doubt", None, at.now + timing.HEARSAY_LATEST)
            self._monitoring.slept()

    def wake(self) -> None:
        """A live peer was heard, or none for long enough: back to leading, if it is so."""
        core = self._core
        if self._leading.is_suspended:
            core.timers.cancel("hearsay", None)
            self._leading.is_suspended = False
            self._membership.raise_incarnation(core.record.record.incarnation)
            self._leading.settle()

    def doubt_due(self) -> None:
        """Guests that nobody confirmed go; the kernels of such nodes are asked."""
        self._membership.drop_doubtful_guests()
        self._monitoring.doubt()
