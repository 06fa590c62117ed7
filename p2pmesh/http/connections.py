"""Connections: how long a client may take, and how many there may be.

aiohttp parses and answers, and waits for ever.  So each connection knows what it
waits for, and a timer ends it when that does not come:

    accepted ──► SILENT ──► HEAD ──► BUSY ──► IDLE ──► HEAD …
                 └── head deadline ┘   │       └ idle deadline
                                       └ the server's own: the body deadline

Beside that, what was written has to be taken: a client that reads too slowly is
cut off.  When there are too many, of one address or in all, the one that has been
waiting longest for its client makes room; where all are busy the new one is turned away.

Does not: know what is asked or answered (the server does).

Relies on the inside of aiohttp's ``RequestHandler``: ``_messages`` are requests that
were parsed and not handled yet, ``_waiter`` is set while it waits for one; it reads
on by ``_resume_transport_reading``, unless ``_reading_paused`` or ``_buffer_paused``.

Invariants: a connection is in the table until it is closed or told to make room, and
has a timer until it is closed; no bytes that a client sends raise past ``Connection``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMethod, InvalidURLError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from p2pmesh.http.calls import TEXT, Answer
from p2pmesh.http.faults import Faults
from p2pmesh.http.responses import last_words, response

#: So much is parsed at a time, and then others have their turn: a chunk of a body may
#: be six bytes, each of which costs as much as a large one.
PIECE: Final = 16_384
#: A slow reader is one that takes less than this in a write deadline.
_TAKEN_MIN: Final = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and connections."""

    head: float = 10.0  # from being accepted, or from its first byte
    body: float = 30.0  # from its head
    linger: float = 10.0  # for the rest of a body that was refused
    idle: float = 75.0  # between two requests; clients keep connections for seconds
    half_closed: float = 1.0  # for an answer that is waited for, by who may have hung up
    write: float = 30.0  # until what was written is taken, or a good part of it
    connections: int = 256
    of_an_address: int = 32  # loopback has no limit of its own


LIMITS: Final = Limits()


class Connections:
    """The open connections of one server."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: What was ended, refused or not understood, by its reason.
        self.counters: Counter[str] = Counter()
        self.faults = Faults(self.counters)
        #: Numbers for the order in which connections began to wait: clocks have ties.
        self.turns = itertools.count()
        self._open: set[Connection] = set()
        self._of_address: defaultdict[str, set[Connection]] = defaultdict(set)

    def admit(self, new: Connection) -> bool:
        """Take it in, with room made for it if need be; False: there is none."""
        neighbours = self._of_address.get(new.remote, set())
        if len(neighbours) >= self.limits.of_an_address and not _is_loopback(new.remote):
            if not self._make_room(neighbours):
                return False
        elif len(self._open) >= self.limits.connections and not self._make_room(self._open):
            return False
        self._open.add(new)
        self._of_address[new.remote].add(new)
        return True

    def _make_room(self, among: Iterable[Connection]) -> bool:
        waiting = (each for each in among if each.phase is not Phase.BUSY)
        longest = min(waiting, key=lambda each: each.since, default=None)
        if longest is None:
            self.counters["http_connections_refused"] += 1
            return False
        self.counters["http_connections_evicted"] += 1
        self.forget(longest)
        longest.end()
        return True

    def forget(self, gone: Connection) -> None:
        self._open.discard(gone)
        neighbours = self._of_address.get(gone.remote, set())
        neighbours.discard(gone)
        if not neighbours:
            self._of_address.pop(gone.remote, None)

    def end_all(self) -> None:
        for each in tuple(self._open):
            each.end()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # it has gone already, and left no address
        return False


_WHAT_IS_WRONG: Final[dict[type | None, str]] = {
    LineTooLong: "a line of its head is over 8190 bytes",
    BadHttpMethod: "it begins with no method that is known",
    InvalidURLError: "its target is no URL",
}


class Phase(Enum):
    """What a connection waits for."""

    SILENT = "its first byte"
    HEAD = "the rest of a head"
    BUSY = "nothing: a request is served"
    IDLE = "another request"


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_armed_for", "_asked", "_due", "_full", "_says_no_more", "_socket", "_table",
        "_taken_by", "_timer", "_untaken",
        "abandonable", "body", "is_broken", "local", "phase", "remote", "since",
    )  # fmt: skip

    def __init__(self, server: web.Server, table: Connections) -> None:
        settings: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,  # compressed bodies are refused, not unpacked
            "keepalive_timeout": 2 * table.limits.idle,  # the own timer comes first
            "lingering_time": table.limits.linger,
        }
        super().__init__(server, loop=asyncio.get_running_loop(), **settings)
        self.local = ""  # the address of ours that the client came to
        self.remote = ""
        self.phase = Phase.SILENT
        self.since = 0  # its turn, when it began to wait
        #: A handler that is only worth its answer, and ends with the connection.
        self.abandonable: asyncio.Task[Any] | None = None
        self.body: StreamReader | None = None  # that a handler is reading
        self.is_broken = False  # its framing: what follows cannot be understood
        self._table = table
        self._socket: asyncio.Transport | None = None  # until it is closed
        self._asked: StreamReader | None = None  # the body of the last request
        self._says_no_more = False  # it closed its side, and waits for its answers
        self._untaken = b""  # what came and is not parsed; nothing is read meanwhile
        self._due = inf  # when what it waits for has to be there
        self._taken_by = inf  # when what was written has to be taken ...
        self._full = 0  # ... of which there were so many bytes
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = inf

    # --- from beginning to end -----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        self.local = (transport.get_extra_info("sockname") or ("",))[0]
        self.remote = (transport.get_extra_info("peername") or ("",))[0]
        if not self._table.admit(self):
            transport.write(last_words(503, "too many connections", Retry_After="1"))
            transport.close()
            return
        self._socket = transport
        # So that "paused" is exactly "something is not taken yet".
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._wait(Phase.SILENT, self._table.limits.head)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._socket is None:
            return
        self._socket = None
        self._table.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        abandoned = self.abandonable
        super().connection_lost(exc)
        if abandoned is not None:
            abandoned.cancel()

    def end(self) -> None:
        """Close it, whatever it does and whether its client reads or not."""
        if self._socket is not None and self._socket.get_write_buffer_size():
            self._socket.abort()
        self.force_close()

    # --- what comes ------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """aiohttp calls it with nothing to go on with what it has."""
        if self._socket is None:
            return
        if len(data) <= PIECE and not (data and self._untaken):
            self._take(data)
            return
        if not self._untaken:
            self._socket.pause_reading()
            self._loop.call_soon(self._take_a_piece)
        self._untaken += data

    def _take_a_piece(self) -> None:
        if self._socket is None:
            return
        piece, self._untaken = self._untaken[:PIECE], self._untaken[PIECE:]
        self._take(piece)
        if self._untaken:
            self._loop.call_soon(self._take_a_piece)
        elif not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        if not self._untaken:
            super()._resume_transport_reading()

    def _take(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception:  # no bytes are known that do it
            self._table.faults.add("what came on a connection")
            self.end()
            return
        if self._messages:
            self._asked = self._messages[-1][1]
            self._wait(Phase.BUSY, inf)
        elif self._begins_a_head(data):
            # Since it was accepted the first head has its deadline.
            left = self._due - self._loop.time() if self.phase is Phase.SILENT else inf
            self._wait(Phase.HEAD, min(left, self._table.limits.head))
        self._notice_broken_body()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """It says no more.  Whether it still reads, as ``nc -N`` does, or has hung up
        cannot be told: what it asked is answered, and waited for but a moment."""
        is_whole = self._asked is not None and self._asked.is_eof() and not self._untaken
        if self._socket is None or self.phase is not Phase.BUSY or not is_whole:
            return False
        self._says_no_more = True
        self._due = self._loop.time() + self._table.limits.half_closed
        self._arm()
        return True

    # --- phases ----------------------------------------------------------------------

    def _begins_a_head(self, data: bytes) -> bool:
        if self.phase is Phase.IDLE and self._waiter is None:
            return False  # the rest of a body that nobody reads
        return self.phase in (Phase.SILENT, Phase.IDLE) and bool(data.strip(b"\r\n"))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        answered = await super().finish_response(request, resp, start_time)
        if self._says_no_more and not self._messages:
            self.close()
        elif not self._messages:
            self._wait(Phase.IDLE, self._table.limits.idle)
        return answered

    def _wait(self, phase: Phase, within: float) -> None:
        self.phase = phase
        self.since = next(self._table.turns)
        self._due = self._loop.time() + within
        self._arm()

    # --- bodies ------------------------------------------------------------------------

    def reads(self, body: StreamReader | None) -> None:
        """A handler waits for the end of ``body``; None: no longer."""
        self.body = body
        self._notice_broken_body()

    def _notice_broken_body(self) -> None:
        # aiohttp never ends a body whose framing breaks off, and its reader would
        # wait for ever.  What tells is a next message before the body's end.
        if self._messages:
            self.break_body()

    def break_body(self) -> None:
        """What a handler reads will not come to its end: it gets what there is."""
        if self.body is not None and not self.body.is_eof():
            self.is_broken = True
            self.body.feed_eof()

    # --- deadlines ---------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_what_is_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken_by = inf

    def _watch_what_is_taken(self) -> None:
        assert self._socket is not None
        self._full = self._socket.get_write_buffer_size()
        self._taken_by = self._loop.time() + self._table.limits.write
        self._arm()

    def _arm(self) -> None:
        """Only a timer that would be late is set anew: most requests set none."""
        due = min(self._due, self._taken_by)
        if due < self._armed_for:
            if self._timer is not None:
                self._timer.cancel()
            self._armed_for = due
            self._timer = self._loop.call_at(due, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer, self._armed_for = None, inf
        now = self._loop.time()
        if now >= self._taken_by:
            self._reader_is_late()
        if now >= self._due:
            self._due = inf
            self._client_is_late()
        if self._socket is not None:
            self._arm()

    def _reader_is_late(self) -> None:
        assert self._socket is not None
        if self._full - self._socket.get_write_buffer_size() >= _TAKEN_MIN:
            self._watch_what_is_taken()  # it does read
        else:
            self._taken_by = inf
            self._table.counters["http_write_timeouts"] += 1
            self.end()

    def _client_is_late(self) -> None:
        counters = self._table.counters
        if self.phase is Phase.BUSY:  # and half-closed
            if self.abandonable is None:
                return
        elif self.phase is Phase.IDLE:
            counters["http_idle_timeouts"] += 1
        else:
            counters["http_head_timeouts"] += 1
            if self.phase is Phase.HEAD and self.transport is not None:
                self.transport.write(last_words(408, "the request did not come to its end"))
        self.force_close()

    # --- what is no HTTP ---------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 400,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no HTTP request; the connection ends."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        if status == 400:
            self._table.counters["http_not_understood"] += 1
        what = _WHAT_IS_WRONG.get(type(exc), "its head or its framing cannot be read")
        answer = response(Answer(400, f"not an HTTP request: {what}\n".encode(), TEXT))
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **settings: Any) -> None:
        """Where aiohttp has an error that nothing of ours has caught."""
        self._table.faults.add("what aiohttp did")


def connection_of(request: web.BaseRequest) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection
