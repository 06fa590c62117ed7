"""The desk of orphans: guests whose home is gone, and the event when they fail for it.

A guest's state is its home's word.  When the home fails, leaves, or lives anew and
does not announce the guest again, its entry is void, and it is failed GUEST_TIMEOUT
later unless somebody adopts it.  Nobody sends a word then, so each node tells its user
of it by its own clock; and of its return, when a home announces it again.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pmesh.protocol import timing
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.reporting import guest_who
from p2pmesh.protocol.types import Evidence, MemberFailed, MemberJoined, NodeId, State


class Orphans:
    """Guests that may fail because their home is gone."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._failed: set[str] = set()  # told so

    def settle(self, changes: Iterable[Changed]) -> None:
        """The view changed."""
        view = self._core.view
        if not view.guests:
            return
        ended: set[NodeId] = set()
        for changed in changes:
            if isinstance(changed.key, str):
                self._changed(changed.key)
            elif view.alive(changed.key) is None or changed.before is not None:
                ended.add(changed.key)
        if ended:
            for guest, claim in view.guests.items():
                if claim.entry.home in ended:
                    self._changed(guest)

    def _changed(self, guest: str) -> None:
        core = self._core
        claim = core.view.guests.get(guest)
        if claim is None or claim.entry.state is not State.ALIVE:
            self._failed.discard(guest)
            return
        void_since = core.view.ended_at(guest)
        if void_since is not None:
            core.timers.set_earlier("orphan", guest, void_since + timing.GUEST_TIMEOUT)
        elif guest in self._failed:
            self._failed.discard(guest)
            core.act(MemberJoined(**guest_who(claim.entry)))

    def due(self, guest: str) -> None:
        """The time of a guest may be over."""
        core = self._core
        claim = core.view.guests.get(guest)
        void_since = core.view.ended_at(guest)
        if claim is None or void_since is None or claim.entry.state is not State.ALIVE:
            return
        due_at = void_since + timing.GUEST_TIMEOUT
        if core.at.now < due_at - 0.001:
            core.timers.set("orphan", guest, due_at)
        elif guest not in self._failed and core.life is not None:
            self._failed.add(guest)
            core.act(
                MemberFailed(**guest_who(claim.entry), evidence=Evidence.UNREACHABLE, accusers=())
            )
