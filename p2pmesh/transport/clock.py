"""The two clocks that the protocol is told.

``now`` must go on while the machine sleeps, so that a node which wakes up sees
the gap; Python's own ``time.monotonic`` and the event loop's clock stand still.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pmesh.protocol.types import Instant

# macOS counts sleep in CLOCK_MONOTONIC, and has no CLOCK_BOOTTIME.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def instant() -> Instant:
    """This moment: seconds since some fixed point, sleep counted, and unix ms."""
    return Instant(time.clock_gettime(_CLOCK), time.time_ns() // 1_000_000)


def boot_id() -> str:
    """Of which run of the machine ``Instant.now`` counts; "" where nothing says so."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
