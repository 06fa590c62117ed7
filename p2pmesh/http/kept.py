"""One answer that is asked for over and over, kept for a moment.

It is made anew when what it is made of has another version, and after ``KEPT_FOR``
seconds all the same: what time alone changes in it is at most so old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

from p2pmesh.http.calls import Answer

KEPT_FOR: Final = 0.1


class KeptAnswer:
    """``make`` yields the answer; ``now`` monotonic seconds."""

    def __init__(
        self, make: Callable[[], Answer], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._now = now
        self._kept: tuple[float, Hashable, Answer] | None = None  # made at, of version

    def answer(self, version: Hashable) -> Answer:
        now = self._now()
        if self._kept is not None:
            made_at, of, answer = self._kept
            if of == version and now - made_at < KEPT_FOR:
                return answer
        answer = self._make()
        self._kept = (now, version, answer)
        return answer
