"""Stamps: when a life begins, whatever the clocks say.

Wall clocks are wrong, and elapsed times differ per observer.  So a newcomer is
stamped *under* its contact: the contact names the highest stamp M it knows, and
the newcomer takes one above it.  Then everybody whom the contact knows is older,
on any clock.  A clock that is ahead is held back to a minute above what the mesh
has seen, so that one bad clock cannot push every later life into the future.
"""

from __future__ import annotations

from typing import Final

from p2pmesh.protocol.types import Life

#: 2024-01-01T00:00:00Z in ms.  A clock before it was never set.
CLOCKS_SET_AFTER: Final = 1_704_067_200_000
_AHEAD_MAX: Final = 60_000


def founding_stamp(wall: int, last: Life | None, random: int) -> Life:
    """The stamp of one who met nobody; above its own earlier lives."""
    return _above_last(Life(max(wall, 0), 0, random), last)


def joining_stamp(
    wall: int, highest: Life, contact_wall: int, last: Life | None, random: int
) -> Life:
    """The stamp of a newcomer under a contact.

    ``highest`` is the highest stamp the contact knows, ``contact_wall`` its
    clock (unix ms); ``last`` the highest earlier life of this identity.
    """
    above = (highest.ms, highest.logical + 1)
    if highest.ms >= CLOCKS_SET_AFTER:
        mine = max(min(wall, max(highest.ms, contact_wall) + _AHEAD_MAX), 0)
        above = max((mine, 0), above)
    return _above_last(Life(*above, random), last)


def is_clock_set(life: Life) -> bool:
    """Was this life stamped by (or under) a clock that knew the date?"""
    return life.ms >= CLOCKS_SET_AFTER


def founds_first(uptime: int, node: bytes, other_uptime: int, other: bytes) -> bool:
    """Of two unstamped nodes the one up longer founds; ties: the lower id."""
    return (-uptime, node) < (-other_uptime, other)


def _above_last(life: Life, last: Life | None) -> Life:
    if last is not None and life <= last:
        return Life(last.ms, last.logical + 1, life.random)
    return life
