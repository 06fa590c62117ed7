"""The HTTP server: aiohttp around the doors and the handlers.

One request: the doors (``guard``) -> its body -> the handler that its route names
-> an answer, written with the headers that every answer carries.  Whatever
goes wrong on the way is an answer too: a refusal says what is wrong, and an
error of ours says nothing but 500 and is logged.

Does not: know what calls exist beyond the three lists of routes, nor how to open
a socket or say who holds a port: ``start`` is given how to listen.

Invariants: no bytes that a client sends raise past ``_serve`` or
``_Connection``; nothing of this process (paths, traces, versions of libraries)
is in any answer; ``stop`` takes ``STOP_TIMEOUT`` twice at most, whatever is open.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from p2pmesh import __version__
from p2pmesh.errors import ConfigError, MeshError
from p2pmesh.forked import let_go
from p2pmesh.http import bind, guard
from p2pmesh.http.backend import Backend, Conflict, Forbidden, Unavailable
from p2pmesh.http.calls import TEXT, Answer, Refusal, Route, Stream, refusal_of
from p2pmesh.http.codec import BODY_MAX
from p2pmesh.http.events import COMMENT, COMMENT_INTERVAL, Events
from p2pmesh.http.metrics import Metrics, Traffic
from p2pmesh.http.openapi import Description
from p2pmesh.http.registry import Registry
from p2pmesh.http.tokens import Tokens
from p2pmesh.http.v1 import V1
from p2pmesh.values import DEFAULT_HTTP_PORT

IDLE_TIMEOUT: Final = 75.0  # clients reuse a connection after seconds of silence
STOP_TIMEOUT: Final = 0.5
BACKLOG: Final = 128
#: A body above this is read by a thread, so that the event loop breathes.
READ_INLINE_MAX: Final = 65_536

#: On every answer.  An empty Server keeps aiohttp from naming itself and Python.
_COMMON_HEADERS: Final = {
    "Server": "",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

#: As ``transport.ports.listen``: hosts, port (None: the preferred one or any), preferred port.
Listen: TypeAlias = Callable[[Sequence[str], int | None, int], Sequence[socket.socket]]

#: What a request asks for, once that is known.
_ROUTE: Final = web.RequestKey("route", Route)

_log = logging.getLogger(__name__)


class RegistryServer:
    """Serves one node.  Made by :meth:`start`."""

    def __init__(
        self,
        backend: Backend,
        listener: socket.socket,
        names: Iterable[str],
        tokens: Tokens | None,
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
        self._stopping = asyncio.get_running_loop().create_future()
        self._runner = web.ServerRunner(_Server(self._serve), shutdown_timeout=STOP_TIMEOUT)

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
    ) -> RegistryServer:
        """Listens and serves.

        ``http`` is ``auto`` or ``HOST:PORT``; ``names`` are further host names by
        which clients may call this server; ``tokens`` are asked for, if there are
        any; ``is_open``: it is meant that nobody is asked, wherever it listens.
        Raises ConfigError: the address cannot be bound, or must not be.
        """
        host, port = bind.address(http, may_be_wide=is_open or bool(tokens))
        try:
            # In a thread: to name who has a taken port is to read many small files.
            (listener,) = await asyncio.to_thread(listen, (host,), port, DEFAULT_HTTP_PORT)
        except ConfigError as error:
            raise ConfigError(f"--http {http}: {error}") from None
        self = cls(backend, listener, names, tokens)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()
        return self

    @property
    def is_wide(self) -> bool:
        """Whether others than this machine can reach it."""
        return bind.is_wide(self.host)

    @property
    def url(self) -> str:
        """As this machine reaches it."""
        host = bind.reachable(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def stop(self) -> None:
        """Ends streams, lets running calls end, and closes everything."""
        if not self._stopping.done():
            self._stopping.set_result(None)
            await self._runner.cleanup()

    def drop_in_child(self) -> None:
        """In a forked child: let go of every socket."""
        server = self._runner.server
        transports = [c.transport for c in server.connections] if server is not None else []
        sockets = [t.get_extra_info("socket") for t in transports if t is not None]
        let_go(each.fileno() for each in (self._listener, *sockets))

    # --- one request -----------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = guard.split_target(request.raw_path)[1]
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            if refusal.route is not None:
                request[_ROUTE] = refusal.route
            answer = refusal.answer(path)
        except ConnectionError:  # the client went away, nobody waits for an answer
            raise
        except Exception:
            _log.exception("a request to %r failed", path)
            answer = Refusal(500, "an error in this node; its log says more").answer(path)
        route = request.get(_ROUTE)
        self._traffic.add(route, 200 if isinstance(answer, Stream) else answer.status)
        if isinstance(answer, Stream):
            return await self._stream(answer.chunks, request)
        response = _response(answer)
        if _connection(request).is_broken:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> Answer | Stream:
        local = _connection(request).local
        call = guard.admit(request.method, request.raw_path, request.headers, self._house, local)
        route = call.route
        assert route is not None
        request[_ROUTE] = route
        if route.body is not None:
            call.raw_body = await _read_body(request)
            call.body = guard.read_shape(await _read_value(call.raw_body), route.body)
        if route.is_abandonable:
            _connection(request).abandonable = asyncio.current_task()
        try:
            return await route.handler(call)
        except (MeshError, Conflict, Forbidden, Unavailable) as error:
            raise refusal_of(error) from None

    async def _stream(
        self, chunks: AsyncGenerator[bytes, None], request: web.BaseRequest
    ) -> web.StreamResponse:
        """Writes chunks until they, the client or this server end."""
        response = web.StreamResponse(
            headers=_COMMON_HEADERS | {"Content-Type": "text/event-stream"}
        )
        await response.prepare(request)
        upcoming: asyncio.Future[bytes | None] | None = None
        try:
            while request.method != "HEAD" and not self._stopping.done():
                upcoming = upcoming or asyncio.ensure_future(anext(chunks, None))
                await asyncio.wait(
                    (upcoming, self._stopping),
                    timeout=COMMENT_INTERVAL,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not upcoming.done():
                    if not self._stopping.done():
                        await response.write(COMMENT)
                    continue
                chunk, upcoming = upcoming.result(), None
                if chunk is None:
                    break
                await response.write(chunk)
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait((upcoming,))
            await chunks.aclose()
        await response.write_eof()
        return response


def _response(answer: Answer) -> web.Response:
    headers = _COMMON_HEADERS | dict(answer.headers)
    if answer.content_type is not None:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=answer.body, headers=headers)


# --- bodies --------------------------------------------------------------------


async def _read_body(request: web.BaseRequest) -> bytes:
    """The whole body.  Raises Refusal: it is too large, or its framing is broken."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, which has not begun
    connection = _connection(request)
    connection.reads(request.content)
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > BODY_MAX:
                raise guard.too_large()
    except RequestPayloadError:
        connection.is_broken = True
    finally:
        connection.reads(None)
    if connection.is_broken:
        raise Refusal(400, "the body is not framed as HTTP asks")
    return bytes(body)


async def _read_value(body: bytes) -> Any:
    if len(body) > READ_INLINE_MAX:
        return await asyncio.to_thread(guard.read_value, body)
    return guard.read_value(body)


def _own_addresses(backend: Backend) -> Iterable[str]:
    """The IP addresses by which the node is known."""
    for address in backend.self_member().addresses:
        yield address.rpartition(":")[0].strip("[]")


# --- aiohttp's own edges ----------------------------------------------------------


_CONNECTION: Final[dict[str, Any]] = {
    "keepalive_timeout": IDLE_TIMEOUT,
    "access_log": None,
    "auto_decompress": False,  # compressed bodies are refused, not unpacked
}


class _Connection(RequestHandler):
    """A client's connection: says what is no HTTP in our words, and cancels a
    handler that is only worth its answer when the client goes away."""

    __slots__ = ("abandonable", "body", "is_broken", "local")

    def __init__(self, server: web.Server) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **_CONNECTION)
        self.abandonable: asyncio.Task[Any] | None = None
        self.body: StreamReader | None = None  # that a handler is reading
        self.is_broken = False
        self.local = ""  # the address of ours that the client came to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.local = transport.get_extra_info("sockname", ("",))[0]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._notice_broken_body()

    def reads(self, body: StreamReader | None) -> None:
        """A handler waits for the end of ``body``; None: no longer."""
        self.body = body
        self._notice_broken_body()

    def _notice_broken_body(self) -> None:
        # aiohttp never ends a body whose framing breaks off, and its reader would
        # wait for ever.  What tells is a next message before the body's end.
        if self.body is not None and self._messages and not self.body.is_eof():
            self.is_broken = True
            self.body.feed_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        abandoned = self.abandonable
        super().connection_lost(exc)
        if abandoned is not None:
            abandoned.cancel()

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
        response = _response(Answer(400, b"not an HTTP request\n", TEXT))
        response.force_close()
        return response


def _connection(request: web.BaseRequest) -> _Connection:
    connection = request.protocol
    assert isinstance(connection, _Connection)
    return connection


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self)
