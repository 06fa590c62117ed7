"""The HTTP server: aiohttp around the doors and the handlers.

A client's connection is in ``connections``, which bounds what it may take; here is
one request: the doors (``guard``) -> its body -> the handler that its route names
-> an answer, written with the headers that every answer carries.  Whatever
goes wrong on the way is an answer too: a refusal says what is wrong, and an
error of ours says nothing but 500 and is logged.

Does not: know what calls exist beyond the three lists of routes, nor how to open
a socket or say who holds a port: ``start`` is given how to listen.

Invariants: no bytes that a client sends raise past ``_serve``; nothing of this
process (paths, traces, versions of libraries) is in any answer; ``stop`` takes
``STOP_TIMEOUT`` twice at most, whatever is open; a call that its client waits for
is answered, if only by the word that this node leaves.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from p2pmesh import __version__
from p2pmesh.errors import ConfigError, MeshError
from p2pmesh.forked import let_go
from p2pmesh.http import bind, guard
from p2pmesh.http.backend import Backend, Conflict, Forbidden, Unavailable
from p2pmesh.http.calls import Answer, Refusal, Route, Stream, leaving, refusal_of
from p2pmesh.http.codec import BODY_MAX
from p2pmesh.http.connections import LIMITS, Connection, Connections, Limits, connection_of
from p2pmesh.http.events import COMMENT, COMMENT_INTERVAL, Events
from p2pmesh.http.metrics import Metrics, Traffic
from p2pmesh.http.openapi import Description
from p2pmesh.http.registry import Registry
from p2pmesh.http.responses import COMMON_HEADERS, response
from p2pmesh.http.tokens import Tokens
from p2pmesh.http.underway import UnderWay
from p2pmesh.http.v1 import V1
from p2pmesh.values import DEFAULT_HTTP_PORT

STOP_TIMEOUT: Final = 0.5
BACKLOG: Final = 128
#: A body above this is read by a thread, so that the event loop breathes.
READ_INLINE_MAX: Final = 65_536

#: As ``transport.ports.listen``: hosts, port (None: the preferred one or any), preferred port.
Listen: TypeAlias = Callable[[Sequence[str], int | None, int], Sequence[socket.socket]]
_Serve: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

#: What a request asks for, once that is known.
_ROUTE: Final = web.RequestKey("route", Route)


class RegistryServer:
    """Serves one node.  Made by :meth:`start`."""

    def __init__(
        self,
        backend: Backend,
        listener: socket.socket,
        names: Iterable[str],
        tokens: Tokens | None,
        limits: Limits,
    ) -> None:
        self._listener = listener
        self.host, self.port = listener.getsockname()[:2]
        self._traffic = Traffic()
        routes: tuple[Route, ...] = (
            *Registry(backend, __version__).routes(),
            *V1(backend, __version__).routes(),
            *Events(backend).routes(),
            *Metrics(backend, __version__, self._traffic).routes(),
        )
        routes += Description(routes, __version__).routes()
        self._house = guard.House(routes, self.port, lambda: _own_addresses(backend), names, tokens)
        self._calls = UnderWay()
        self._has_stopped = False
        self._connections = Connections(limits)
        self._runner = web.ServerRunner(
            _Server(self._serve, self._connections), shutdown_timeout=STOP_TIMEOUT
        )

    @classmethod
    async def start(
        cls,
        backend: Backend,
        http: str,
        *,
        listen: Listen,
        names: Iterable[str] = (),
        tokens: Tokens | None = None,
        is_open: bool = False,
        limits: Limits = LIMITS,
    ) -> RegistryServer:
        """Listens and serves.

        ``http`` is ``auto`` or ``HOST:PORT``; ``names`` are further host names by
        which clients may call this server; ``tokens`` are asked for, if there are
        any; ``is_open``: it is meant that nobody is asked, wherever it listens;
        ``limits`` are for tests.  Raises ConfigError: the address cannot be bound, or must not be.
        """
        host, port = bind.address(http, may_be_wide=is_open or bool(tokens))
        try:
            # In a thread: to name who has a taken port is to read many small files.
            (listener,) = await asyncio.to_thread(listen, (host,), port, DEFAULT_HTTP_PORT)
        except ConfigError as error:
            raise ConfigError(f"http {http}: {error}") from None
        self = cls(backend, listener, names, tokens, limits)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        return self

    @property
    def is_wide(self) -> bool:
        """Whether others than this machine can reach it."""
        return bind.is_wide(self.host)

    @property
    def address(self) -> str:
        """As it is bound: "0.0.0.0:8077" is reached at every address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As this machine reaches it."""
        host = bind.reachable(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def counters(self) -> Mapping[str, int]:
        """What was refused, and which connections were ended, by reason."""
        return self._connections.counters

    def leave(self) -> None:
        """From now on new calls are refused, and streams of events end; the calls under
        way go on."""
        self._calls.leave()

    async def drained(self) -> None:
        """Until no call is under way."""
        await self._calls.ended()

    def interrupt(self) -> None:
        """What is still under way answers that this node leaves."""
        self._calls.interrupt()

    async def stop(self) -> None:
        """Interrupts what is under way, and closes everything."""
        if not self._has_stopped:
            self._has_stopped = True
            self.interrupt()
            await self._runner.cleanup()
            self._connections.end_all()  # whose clients do not read what was written

    def drop_in_child(self) -> None:
        """In a forked child: let go of every socket."""
        server = self._runner.server
        transports = [c.transport for c in server.connections] if server is not None else []
        sockets = [t.get_extra_info("socket") for t in transports if t is not None]
        let_go(each.fileno() for each in (self._listener, *sockets))

    # --- one request -----------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._calls.begin()
        try:
            return await self._serve_call(request)
        finally:
            self._calls.end()

    async def _serve_call(self, request: web.BaseRequest) -> web.StreamResponse:
        path = guard.split_target(request.raw_path)[1]
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            if refusal.route is not None:
                request[_ROUTE] = refusal.route
            answer = refusal.answer(path)
        except ConnectionError:  # the client went away, nobody waits for an answer
            raise
        except asyncio.CancelledError:
            if not self._calls.is_interrupted():
                raise
            answer = leaving().answer(path)
        except Exception:
            self._connections.faults.add(f"{request.method} {path}")
            answer = Refusal(500, "an error in this node; its log says more").answer(path)
        route = request.get(_ROUTE)
        self._traffic.add(route, 200 if isinstance(answer, Stream) else answer.status)
        if isinstance(answer, Stream):
            return await self._stream(answer, request)
        whole = response(answer)
        if connection_of(request).is_broken or self._calls.is_leaving:
            whole.force_close()
        return whole

    async def _answer(self, request: web.BaseRequest) -> Answer | Stream:
        connection = connection_of(request)
        if request._version not in (HttpVersion10, HttpVersion11):
            connection.is_broken = True  # who knows what else it takes for HTTP
            request._version = HttpVersion11  # or the answer would claim the other one
            raise Refusal(505, "HTTP/1.1 is spoken here")
        if self._calls.is_leaving:
            raise leaving()
        call = guard.admit(
            request.method, request.raw_path, request.headers, self._house, connection.local
        )
        route = call.route
        assert route is not None
        request[_ROUTE] = route
        if route.body is not None:
            call.raw_body = await self._read_body(request, connection)
            call.body = guard.read_shape(await _read_value(call.raw_body), route.body)
        if route.is_abandonable:
            connection.abandonable = asyncio.current_task()
        try:
            return await route.handler(call)
        except (MeshError, Conflict, Forbidden, Unavailable) as error:
            raise refusal_of(error) from None

    async def _read_body(self, request: web.BaseRequest, connection: Connection) -> bytes:
        """The whole body.  Raises Refusal: it is too large, too slow, or badly framed."""
        within = self._connections.limits.body
        expects = request.headers.get("Expect", "").lower()
        if expects == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer, which has not begun
        connection.reads(request.content)
        body = bytearray()
        try:
            async with asyncio.timeout(within):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > BODY_MAX:
                        raise guard.too_large()
        except TimeoutError:
            self._connections.counters["http_body_timeouts"] += 1
            connection.break_body()
            raise Refusal(408, f"the body was not there within {within:g} s") from None
        except RequestPayloadError:
            connection.is_broken = True
        finally:
            connection.reads(None)
        if connection.is_broken:
            raise Refusal(400, "the body is not framed as HTTP asks")
        return bytes(body)

    async def _stream(self, stream: Stream, request: web.BaseRequest) -> web.StreamResponse:
        """Writes chunks until they, the client or this node end."""
        if stream.cut is None:
            self._calls.end()
        response = web.StreamResponse(
            headers=COMMON_HEADERS | {"Content-Type": "text/event-stream"}
        )
        if self._calls.is_leaving:
            response.force_close()
        await response.prepare(request)
        last = b""
        try:
            if request.method != "HEAD":
                await self._write_chunks(stream, response)
        except asyncio.CancelledError:
            if stream.cut is None or not self._calls.is_interrupted():
                raise
            last = stream.cut
        finally:
            await stream.chunks.aclose()
        await response.write(last)
        await response.write_eof()
        return response

    async def _write_chunks(self, stream: Stream, response: web.StreamResponse) -> None:
        leaving = (self._calls.leaving,) if stream.cut is None else ()
        upcoming: asyncio.Future[bytes | None] | None = None
        try:
            while not any(each.done() for each in leaving):
                upcoming = upcoming or asyncio.ensure_future(anext(stream.chunks, None))
                done, _ = await asyncio.wait(
                    (upcoming, *leaving),
                    timeout=COMMENT_INTERVAL,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if upcoming.done():
                    chunk, upcoming = upcoming.result(), None
                    if chunk is None:
                        break
                    await response.write(chunk)
                elif not done:
                    await response.write(COMMENT)
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait((upcoming,))


# --- bodies --------------------------------------------------------------------


async def _read_value(body: bytes) -> Any:
    if len(body) > READ_INLINE_MAX:
        return await asyncio.to_thread(guard.read_value, body)
    return guard.read_value(body)


def _own_addresses(backend: Backend) -> Iterable[str]:
    """The IP addresses by which the node is known."""
    for address in backend.self_member().addresses:
        yield address.rpartition(":")[0].strip("[]")


class _Server(web.Server):
    """Makes connections of our kind."""

    def __init__(self, serve: _Serve, table: Connections) -> None:
        super().__init__(serve)
        self._table = table

    def __call__(self) -> RequestHandler:
        return Connection(self, self._table)
