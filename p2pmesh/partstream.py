"""A streamed answer as its reader has it: an async iterator over the parts.

The core hands over parts as they come and is told of each that was read; that is what
lets the far handler go on.  Closing it before its end cancels that handler.

Invariants: parts come in order, then the end, which is told once; at most the window
of the core (``limits.PARTS_AHEAD_MAX``) waits here; whoever lets go of it has closed it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from p2pmesh.delivery import error_of
from p2pmesh.errors import MeshError
from p2pmesh.messages import UnreadablePayload, decode
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.types import PartArrived, RequestEnded


class PartStream:
    """The parts of an answer, in order: ``async for part in stream``.

    It was asked for when this was made.  Breaking off cancels the far handler: at the
    end of ``async with``, by ``aclose()``, when a task that waits for a part is
    cancelled, or when nothing refers to this any more.
    """

    def __init__(
        self,
        target: str,
        timeout: float,
        *,
        taken: Callable[[], None],
        gave_up: Callable[[], None],
    ) -> None:
        """``taken``: a part was read; ``gave_up``: nobody reads on."""
        self._target = target
        self._timeout = timeout
        self._taken = taken
        self._gave_up = gave_up
        self._loop = asyncio.get_running_loop()
        self._parts: deque[Payload] = deque()
        self._error: MeshError | None = None
        self._has_ended = False  # nothing comes any more
        self._is_closed = False  # ... and all was read, or is not wanted
        self._waiting: asyncio.Future[None] | None = None

    # --- what the core says -------------------------------------------------------------

    def arrived(self, action: PartArrived) -> None:
        self._parts.append(action.payload)
        self._wake()

    def ended(self, action: RequestEnded) -> None:
        if action.answer is not None:  # whole: the only part
            self._parts.append(action.answer.payload)
        elif action.error:
            self._error = error_of(action.error, action.detail, self._target, self._timeout)
        self._has_ended = True
        self._wake()

    def node_ended(self, error: MeshError) -> None:
        if not self._has_ended:
            self._error, self._has_ended = error, True
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # --- reading ------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next part.  Raises what the request ended with, after the parts before."""
        if self._waiting is not None:
            raise RuntimeError("another task waits for the next part: one reads at a time")
        while not (self._parts or self._has_ended or self._is_closed):
            await self._wait()
        if self._is_closed:
            raise StopAsyncIteration
        if not self._parts:
            self._is_closed = True
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        part = self._parts.popleft()
        if not self._has_ended:
            self._taken()
        try:
            return decode(part)
        except UnreadablePayload as error:
            self.close()
            raise error_of("failed", str(error), self._target) from None

    async def _wait(self) -> None:
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiting = None

    # --- its end ------------------------------------------------------------------------

    def close(self) -> None:
        """Nobody reads on; what was not read is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        self._parts.clear()
        if not self._has_ended:
            self._has_ended = True
            self._gave_up()
        self._wake()

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Collected perhaps in another thread, and perhaps in the middle of anything.
        if not getattr(self, "_has_ended", True):
            with suppress(RuntimeError):  # the loop has ended, and the node with it
                self._loop.call_soon_threadsafe(self._gave_up)
