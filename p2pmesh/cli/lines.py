"""Lines to a stdout that may be slow, stopped or gone, from a loop that must not wait.

One thread writes while the loop awaits, another waits for the reader to go away.
Both use the descriptor alone and leave its flags as they are: other processes may
share it.  Neither can hold up the end of this process.

Invariant: ``write`` returns once the operating system has the whole line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import stat
import threading
from collections.abc import Callable
from typing import Any, Final


class LineWriter:
    """Writes lines to a descriptor; ``gone`` is set when nobody reads there any more."""

    def __init__(self, descriptor: int = 1) -> None:
        self.gone: Final = asyncio.Event()
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._write_all, name="stdout", daemon=True).start()
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            threading.Thread(target=self._await_end, name="stdout's reader", daemon=True).start()

    async def write(self, line: bytes) -> None:
        """Raises OSError when it cannot be written, BrokenPipeError when nobody reads."""
        written: asyncio.Future[None] = self._loop.create_future()
        self._lines.put((line + b"\n", written))
        await written

    def _write_all(self) -> None:
        while True:
            line, written = self._lines.get()
            error: OSError | None = None
            try:
                self._write_one(line)
            except OSError as failure:
                error = failure
            self._on_loop(_settle, written, error)

    def _write_one(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # whoever started us made it so
                self._poll(select.POLLOUT)

    def _await_end(self) -> None:
        self._poll(0)  # nothing but the error that the end of the last reader is
        self._on_loop(self.gone.set)

    def _poll(self, events: int) -> None:
        waiting = select.poll()
        waiting.register(self._descriptor, events)
        waiting.poll()

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(written: asyncio.Future[None], error: OSError | None) -> None:
    if written.cancelled():
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
