"""Handlers that answer in parts: what a generator yields, whatever kind it is.

An async generator runs on the loop, a plain one in threads of the pool, one step after
the other.  Either is closed when nobody wants more: ``finally`` blocks run, a plain
one's as soon as the step that it is in has ended.

Does not: know who asked, or when the next part may come (``handlers``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from types import GeneratorType
from typing import Any, Final

_END: Final = object()


def parts_of(
    answer: Any, executor: Callable[[], Executor], context: Context
) -> AsyncGenerator[Any, None] | None:
    """The parts, if a handler's answer is a generator of them; None: it is whole.
    A plain one runs in ``executor``, in ``context``."""
    if isinstance(answer, AsyncGenerator):
        return answer
    if isinstance(answer, GeneratorType):
        return _in_threads(answer, executor(), context)
    return None


async def _in_threads(
    generator: GeneratorType[Any, Any, Any], executor: Executor, context: Context
) -> AsyncGenerator[Any, None]:
    def step() -> Any:
        return next(generator, _END)

    def close() -> None:
        if generator.gi_frame is not None:  # it has not ended by itself
            with suppress(RuntimeError):  # the pool has, with its node: it is collected
                executor.submit(context.run, generator.close)

    stepping = executor.submit(context.run, step)
    try:
        while (part := await asyncio.wrap_future(stepping)) is not _END:
            yield part
            stepping = executor.submit(context.run, step)
    finally:
        # The step may run still: it cannot be interrupted, and the generator not closed
        # in the middle of it.
        stepping.add_done_callback(lambda _: close())
