"""A node belongs to one event loop: calls from threads and from other loops are refused.

They would seem to work, most of the time: the core would be changed by two threads at
once, and who waits would not be woken.
"""

from __future__ import annotations

import asyncio

from p2pmesh.errors import NotStarted


def refuse_outside(loop: asyncio.AbstractEventLoop) -> None:
    """Raise NotStarted unless the caller runs in ``loop``."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is not loop:
        raise NotStarted(
            "this node does not run in this thread or event loop: call it where it was entered; "
            "from a thread, asyncio.run_coroutine_threadsafe(node.send(…), loop)"
        )
