"""The calls that are under way, and how they end when the node does.

    serving ──leave──► leaving ──interrupt──► over
    all calls          those under way go on;     each of these is interrupted,
                       a new one is refused       and answers that the node leaves

What has no end of its own (a stream of events) is no call under way: it ends at ``leaving``.

Does not: answer anybody, or bound how long the node leaves (the node does).
"""

from __future__ import annotations

import asyncio
from typing import Any


class UnderWay:
    def __init__(self) -> None:
        #: No call begins any more.
        self.leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_over = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._one_ended = asyncio.Event()

    @property
    def is_leaving(self) -> bool:
        return self.leaving.done()

    def begin(self) -> None:
        """This task serves a call from now on."""
        if (task := asyncio.current_task()) is not None:
            self._calls.add(task)

    def end(self) -> None:
        """It does so no longer; again is no error."""
        if (task := asyncio.current_task()) is not None:
            self._calls.discard(task)
            self._one_ended.set()

    def leave(self) -> None:
        if not self.leaving.done():
            self.leaving.set_result(None)

    async def ended(self) -> None:
        """Until nothing is under way."""
        while self._calls:
            self._one_ended.clear()
            await self._one_ended.wait()

    def interrupt(self) -> None:
        """Cancel what is still under way; see :meth:`is_interrupted`."""
        self.leave()
        self.is_over = True
        for task in self._calls:
            task.cancel()

    def is_interrupted(self) -> bool:
        """For who was cancelled: was it by :meth:`interrupt`?  Then this task may go on,
        to say so."""
        task = asyncio.current_task()
        if not self.is_over or task not in self._calls:
            return False
        self.end()
        task.uncancel()
        return True
