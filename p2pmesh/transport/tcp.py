"""TCP links of one node, on asyncio (or uvloop, which behaves the same here).

Listens, dials, moves bytes, and says what the kernel said; what that means for a
peer is the protocol's to judge.

* Link ids are this transport's, unique over its life.  A link begins with
  ``opened`` and ends with ``ended``, or without it after ``close`` or ``abort``.
* Every dial has one outcome: ``opened`` with its number, or ``dial_failed``.
* ``close`` delivers: it flushes, says EOF, and reads on until the peer's EOF, since
  a socket closed with unread bytes resets, which may cost the peer our last
  words.  All of that takes at most ``LINGER``.
* Callbacks are called from the event loop, ``paused`` also from within ``write``.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import socket
import sys
import termios
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias, cast

from p2pmesh.forked import let_go
from p2pmesh.protocol.limits import LINKS_MAX
from p2pmesh.protocol.timing import STALL_GRACE
from p2pmesh.protocol.types import DialOutcome
from p2pmesh.transport import ports

DEFAULT_PORT: Final = 8078
LINGER: Final = 1.0  # after close: for the flush and the peer's EOF
ACCEPT_RETRY: Final = 0.5  # after accept failed for want of descriptors
_ACCEPTS_AT_ONCE: Final = 64

# Bytes queued in this process before `paused`, and at which `resumed`; and bytes
# that the kernel takes beyond what is on its way.  Together they are how long a
# heartbeat may wait behind a large message: 3 ms at 1 Gbit/s.
_QUEUE_HIGH: Final = 256 * 1024
_QUEUE_LOW: Final = 64 * 1024
_KERNEL_QUEUE: Final = 128 * 1024

_OUTCOMES: Final = {
    errno.ECONNREFUSED: DialOutcome.REFUSED,
    errno.ETIMEDOUT: DialOutcome.TIMEOUT,
    errno.EHOSTUNREACH: DialOutcome.UNREACHABLE,
    errno.ENETUNREACH: DialOutcome.UNREACHABLE,
    errno.EHOSTDOWN: DialOutcome.UNREACHABLE,
    errno.ENETDOWN: DialOutcome.UNREACHABLE,
}
"""All others are this machine's own (EMFILE, ENOBUFS, EADDRNOTAVAIL, EPERM, EACCES,
EINVAL …) or, as ECONNRESET, no answer to the question."""


# Where a system has the option: the peer's kernel may be silent as long as a
# stalled process may; and the bound on the kernel's queue.
_OPTIONS: Final = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(STALL_GRACE * 1000)),
        (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", _KERNEL_QUEUE),
    )
    if hasattr(socket, name)
]

_SocketAddress: TypeAlias = tuple[Any, ...]  # of either family


class Opened(Protocol):
    def __call__(self, link: int, address: str, dial: int | None) -> None: ...


class TcpTransport:
    """The sockets of one node.  Construct it inside the running event loop.

    ``dropped`` counts, by reason, connections that were not taken.
    """

    def __init__(
        self,
        *,
        opened: Opened,
        received: Callable[[int, bytes], None],
        ended: Callable[[int], None],
        dial_failed: Callable[[int, DialOutcome], None],
        paused: Callable[[int], None],
        resumed: Callable[[int], None],
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._opened = opened
        self._received = received
        self._ended = ended
        self._dial_failed = dial_failed
        self._paused = paused
        self._resumed = resumed
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._listeners: list[socket.socket] = []
        self._links: dict[int, _Link] = {}  # until the socket is closed
        self._connecting: set[socket.socket] = set()  # not yet a link
        self._dials: set[asyncio.Task[None]] = set()
        self._adoptions: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()  # some link's socket was closed
        self._is_closed = False

    # --- listening ---------------------------------------------------------------

    async def listen(self, hosts: Sequence[str], port: int | None) -> tuple[str, ...]:
        """Listen at one port of all hosts (IP addresses); returns what was bound.

        ``port`` None: 8078 if it is free, else any; 0: any.  Raises
        :class:`ConfigError`, which names who holds an explicit port.
        """
        # In a thread: who holds a port that is taken is read from files.
        listeners = await asyncio.to_thread(ports.listen, hosts, port, DEFAULT_PORT)
        for listener in listeners:
            self._loop.add_reader(listener, self._accept, listener)
        self._listeners += listeners
        return tuple(_text(listener.getsockname()) for listener in listeners)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Descriptors or memory ran out.  The kernel keeps the connections
                # that wait, and would wake us for them at once, again and again.
                self.dropped[errno.errorcode.get(error.errno or 0, "accept")] += 1
                self._loop.remove_reader(listener)
                self._loop.call_later(ACCEPT_RETRY, self._accept_again, listener)
                return
            if len(self._links) + len(self._connecting) >= LINKS_MAX:
                self.dropped["links_max"] += 1
                sock.close()
                continue
            self._connecting.add(sock)
            self._adopt(sock, _text(address), None)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    # --- dialling ----------------------------------------------------------------

    def dial(self, dial: int, address: str, timeout: float) -> None:
        """Connect to ``ip:port`` or ``[v6]:port``; nothing is ever looked up."""
        task = self._loop.create_task(self._dial(dial, address, timeout))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, dial: int, address: str, patience: float) -> None:
        sock = None
        try:
            family, to = _parse(address)
            sock = socket.socket(family, socket.SOCK_STREAM)
            self._connecting.add(sock)
            await self._connect(sock, to, patience)
        except BaseException as error:
            self._release(sock)
            if not isinstance(error, OSError):
                raise
            self._dial_failed(dial, outcome_of(error))
        else:
            self._adopt(sock, address, dial)

    async def _connect(self, sock: socket.socket, to: _SocketAddress, patience: float) -> None:
        """Returns when connected; raises the OSError that says why not."""
        sock.setblocking(False)
        error = sock.connect_ex(to)
        if error == errno.EINPROGRESS:
            answered = self._loop.create_future()
            self._loop.add_writer(sock, _answer, answered)
            try:
                await asyncio.wait([answered], timeout=patience)
            finally:
                self._loop.remove_writer(sock)
            # The kernel is asked even when the time is over: where it was this
            # process that did not run, the peer's answer is there all the same.
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        try:
            peer = sock.getpeername()
        except OSError:
            raise TimeoutError from None
        if peer == sock.getsockname():
            # With nobody listening at a port of this machine, the kernel may pick
            # just that one for our end, and connect the socket with itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected with itself")

    # --- links -------------------------------------------------------------------

    def write(self, link: int, data: bytes) -> None:
        """Queue bytes; ignored on a link that ended or is being closed."""
        if (found := self._open_link(link)) is not None and not found.transport.is_closing():
            found.transport.write(data)

    def close(self, link: int) -> None:
        """Deliver what was written, then close; nothing more is said of the link."""
        if (found := self._open_link(link)) is not None:
            found.close()

    def abort(self, link: int) -> None:
        """Close now and drop what was not sent; nothing more is said of the link."""
        if (found := self._open_link(link)) is not None:
            found.is_open = False
            found.transport.abort()

    def unacked(self, link: int) -> int | None:
        """Bytes written that the peer's kernel has not acknowledged; None where the
        system does not tell."""
        if (found := self._open_link(link)) is None or sys.platform != "linux":
            return None
        queued = fcntl.ioctl(found.sock, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ
        return int.from_bytes(queued, sys.byteorder) + found.transport.get_write_buffer_size()

    def _open_link(self, link: int) -> _Link | None:
        found = self._links.get(link)
        return found if found is not None and found.is_open else None

    def _adopt(self, sock: socket.socket, address: str, dial: int | None) -> None:
        """Make a link of a connected socket.  No waiting for anybody is in this, so
        it runs to its end even while the transport is being closed."""
        for level, option, value in _OPTIONS:
            with suppress(OSError):  # reset meanwhile: its end will say so
                sock.setsockopt(level, option, value)
        task = self._loop.create_task(self._make_link(sock, address, dial))
        self._adoptions.add(task)
        task.add_done_callback(self._adoptions.discard)

    async def _make_link(self, sock: socket.socket, address: str, dial: int | None) -> None:
        try:
            # Also for what we dialled: uvloop's create_connection takes the socket over
            # late, and closes its number twice if `opened` aborts the link.
            await self._loop.connect_accepted_socket(lambda: _Link(self, sock, address, dial), sock)
        except OSError as error:
            self._release(sock)
            if dial is None:
                self.dropped["ended"] += 1
            elif not self._is_closed:
                self._dial_failed(dial, outcome_of(error))

    def _release(self, sock: socket.socket | None) -> None:
        """Close a socket that did not become a link."""
        if sock is not None:
            self._connecting.discard(sock)
            sock.close()

    # --- the end -----------------------------------------------------------------

    async def aclose(self) -> None:
        """Stop listening and dialling, close all links; at most ``LINGER`` and a bit.
        No callback follows."""
        self._is_closed = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for dial in tuple(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, *self._adoptions, return_exceptions=True)
        for link in tuple(self._links):
            self.close(link)
        while self._links:
            self._gone.clear()
            await self._gone.wait()

    def drop_in_child(self) -> None:
        """After a fork, in the child: give up every socket at once."""
        taken = [*self._listeners, *self._connecting]
        taken += [link.sock for link in self._links.values()]
        let_go(sock.fileno() for sock in taken)
        self._links.clear()


class _Link(asyncio.Protocol):
    """One socket, from its first moment to its last."""

    __slots__ = ("address", "dial", "id", "is_open", "linger", "owner", "sock", "transport")

    transport: asyncio.Transport

    def __init__(
        self, owner: TcpTransport, sock: socket.socket, address: str, dial: int | None
    ) -> None:
        self.owner = owner
        self.sock = sock
        self.address = address
        self.dial = dial
        self.id = next(owner._ids)
        self.is_open = False  # is spoken of to the owner of the transport
        self.linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        owner = self.owner
        self.transport = cast(asyncio.Transport, transport)
        owner._connecting.discard(self.sock)
        owner._links[self.id] = self
        if owner._is_closed:
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(_QUEUE_HIGH, _QUEUE_LOW)
        self.is_open = True
        owner._opened(self.id, self.address, self.dial)

    def data_received(self, data: bytes) -> None:
        if self.is_open:
            self.owner._received(self.id, data)

    def eof_received(self) -> None:
        # A peer that says EOF reads no more of what we could still write.
        self._end()
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self.linger is not None:
            self.linger.cancel()
        self.owner._links.pop(self.id, None)
        self.owner._gone.set()
        self._end()

    def pause_writing(self) -> None:
        if self.is_open:
            self.owner._paused(self.id)

    def resume_writing(self) -> None:
        if self.is_open:
            self.owner._resumed(self.id)

    def close(self) -> None:
        self.is_open = False
        if self.transport.is_closing():
            return
        self.linger = self.owner._loop.call_later(LINGER, self.transport.abort)
        try:
            self.transport.write_eof()
        except OSError:  # reset by the peer, and not yet read
            self.transport.abort()

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            self.owner._ended(self.id)


def outcome_of(error: OSError) -> DialOutcome:
    """What an error of a dial says about the peer."""
    if isinstance(error, TimeoutError):
        return DialOutcome.TIMEOUT
    return _OUTCOMES.get(error.errno or 0, DialOutcome.LOCAL_ERROR)


def _answer(answered: asyncio.Future[None]) -> None:
    if not answered.done():
        answered.set_result(None)


def _parse(address: str) -> tuple[socket.AddressFamily, _SocketAddress]:
    host, _, port = address.rpartition(":")
    try:
        number = int(port)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError
        if not (host and 1 <= number <= 65535):
            raise ValueError
        family, _, _, _, to = socket.getaddrinfo(
            host, number, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
    except ValueError:
        raise OSError(errno.EINVAL, f"{address!r} is no address") from None
    return family, to


def _text(address: _SocketAddress) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
