"""A node belongs to one event loop: what threads do to it is refused, and what they ask
is answered there.

Calls from elsewhere would seem to work, most of the time: the core would be changed by
two threads at once, and who waits would not be woken.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Final, TypeVar

from p2pmesh.errors import NotStarted

#: How often a thread that waits for an answer looks whether the loop still runs.
_LOOK_INTERVAL: Final = 1.0

T = TypeVar("T")


def refuse_outside(loop: asyncio.AbstractEventLoop) -> None:
    """Raise NotStarted unless the caller runs in ``loop``."""
    if _here() is not loop:
        raise _elsewhere()


def ask(loop: asyncio.AbstractEventLoop, question: Callable[[], T]) -> T:
    """What the question answers in ``loop``; a thread waits for it.  Raises NotStarted in
    another loop, which the waiting would hold up, and where ``loop`` does not run."""
    here = _here()
    if here is loop:
        return question()
    if here is not None or not loop.is_running():
        raise _elsewhere()
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def find() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    try:
        loop.call_soon_threadsafe(find)
    except RuntimeError:  # closed meanwhile
        raise _elsewhere() from None
    while not concurrent.futures.wait((answer,), _LOOK_INTERVAL).done:
        if not loop.is_running():
            raise _elsewhere()
    return answer.result()


def _here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _elsewhere() -> NotStarted:
    return NotStarted(
        "this node does not run in this thread or event loop: call it where it was entered; "
        "from a thread, asyncio.run_coroutine_threadsafe(node.send(…), loop)"
    )
