"""Our own errors in serving HTTP: each is counted, and the first few a minute are logged
with their traces, so that who finds one cannot fill a disk with it.

Does not: answer anybody.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final

LOGGED_MAX: Final = 5  # in each ...
INTERVAL: Final = 60.0  # ... of these
#: Of what a client said, in a line of the log.
QUOTED_MAX: Final = 200

_log = logging.getLogger(__name__)


class Faults:
    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._until = 0.0
        self._logged = self._passed_over = 0

    def add(self, where: str) -> None:
        """To be called where the error is handled; ``where`` may hold a client's words."""
        self._counters["http_errors"] += 1
        now = time.monotonic()
        if now >= self._until:
            self._until, self._logged = now + INTERVAL, 0
        if self._logged == LOGGED_MAX:
            self._passed_over += 1
            return
        self._logged += 1
        missing = f" ({self._passed_over} before it were not logged)" if self._passed_over else ""
        self._passed_over = 0
        _log.exception("HTTP: an error in %r%s", where[:QUOTED_MAX], missing)
