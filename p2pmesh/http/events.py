"""``/v1/events``: what happens, as server-sent events.

One frame an event: ``id`` is its number in this run of the node, ``event`` its
name, ``data`` its JSON.  Numbers rise by one.  ``Last-Event-ID`` resumes after
that number from the events that the node still keeps; what it keeps no more, or
what a slow reader missed, is one ``lost`` event that says how many.  A comment
every ``COMMENT_INTERVAL`` tells both sides that the other is still there.

Does not: keep events (the node does), or write to a socket (the server does).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from p2pmesh.http.backend import Backend
from p2pmesh.http.calls import Call, Media, Refusal, Route, Stream
from p2pmesh.http.codec import write
from p2pmesh.protocol.types import Event, Lost, MessageEvent

COMMENT_INTERVAL: Final = 15.0
COMMENT: Final = b":\n\n"

_GREETING: Final = b"retry: 1000\n\n"  # how soon a browser comes back, in ms

LastEventId: TypeAlias = Annotated[
    str,
    Meta(pattern="^[0-9]{1,19}$", description="the last event that the reader had: go on after it"),
]


class Events:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET", "/v1/events", self.stream,
                headers={"Last-Event-ID": LastEventId},
                summary="What happens, as it happens.",
                answers={200: Media("text/event-stream", "Events, each a frame with its JSON.")},
                refusals=(400,),
                is_abandonable=True,
            ),
        )  # fmt: skip

    async def stream(self, call: Call) -> Stream:
        after = call.headers.get("Last-Event-ID")
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 20):
            raise Refusal(400, "Last-Event-ID is a number that this stream sent")
        return Stream(frames(self._backend, None if after is None else int(after)))


async def frames(backend: Backend, last: int | None) -> AsyncGenerator[bytes, None]:
    """The frames of the node's events, with a ``lost`` one wherever numbers are missing.

    ``last`` is the number that the reader had last, None at its first visit.
    """
    async with aclosing(backend.subscribe(last)) as events:
        yield _GREETING
        async for event in events:
            missing = 0 if last is None else event.seq - last - 1
            if missing > 0 and not isinstance(event, Lost):
                yield frame(Lost(n=missing, seq=event.seq - 1, t=event.t))
            yield frame(event)
            last = event.seq


def frame(event: Event) -> bytes:
    name = event.__struct_config__.tag
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, str(name).encode(), _data(event))


def _data(event: Event) -> bytes:
    try:
        return write(event)
    except (ValueError, TypeError, RecursionError):
        # Between embedded agents a payload may be more than JSON can carry.
        assert isinstance(event, MessageEvent)
        return write(msgspec.structs.replace(event, payload=None))
