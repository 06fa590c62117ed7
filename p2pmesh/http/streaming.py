"""An answer in parts as server-sent events, for who asked with ``?stream=1``.

    event: part     data: the part's payload, as JSON      one for each
    event: end      data: {"parts": n}                     or
    event: error    data: a problem document               what a status would have said

What goes wrong before the first part is a status, as of any request; so the first
part is waited for before anything is answered.

Does not: ask (the backend does), or write to a socket (the server does).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from p2pmesh.errors import MeshError
from p2pmesh.http.backend import Conflict, Forbidden, Unavailable
from p2pmesh.http.calls import Stream, leaving, refusal_of
from p2pmesh.http.codec import payload_out, write

_END: Final = object()


async def streamed(parts: AsyncGenerator[Any, None]) -> Stream:
    """Raises what the request ended with, if that was before the first part."""
    cut = _frame("error", leaving().answer("/v1/").body)
    return Stream(frames(await anext(parts, _END), parts), cut)


async def frames(first: Any, parts: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    count = 0
    part = first
    async with aclosing(parts):
        try:
            while part is not _END:
                yield _frame("part", payload_out(part))
                count += 1
                part = await anext(parts, _END)
        except (MeshError, Conflict, Forbidden, Unavailable) as error:
            yield _frame("error", refusal_of(error).answer("/v1/").body)
        else:
            yield _frame("end", write({"parts": count}))


def _frame(event: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
