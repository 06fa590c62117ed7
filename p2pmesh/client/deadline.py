"""Connections of http.client whose every wait ends by one deadline.

A timeout of http.client bounds each wait by itself: a server that sends one byte now and
then, or ``100 Continue`` for ever, would keep its caller for as long as it likes.  Here
each wait gets only what is left until the deadline, which is set anew for each exchange.

Does not: bound how long the system looks up a name.

Invariant: behind the deadline, nothing waits; TimeoutError.
"""

from __future__ import annotations

import http.client
import socket
import time
from typing import Any


class Connection(http.client.HTTPConnection):
    """An HTTPConnection; ``ends_at`` is in monotonic seconds."""

    def __init__(self, host: str, port: int, ends_at: float) -> None:
        super().__init__(host, port)
        self._ends_at = ends_at
        self._socket: _Socket | None = None  # also once an answer has taken it over

    def set_deadline(self, ends_at: float) -> None:
        """For the next exchange."""
        self._ends_at = ends_at
        if self._socket is not None:
            self._socket.ends_at = ends_at

    def connect(self) -> None:
        """To the first of the host's addresses that can be connected to."""
        refusal = OSError("has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            sock = _Socket(family, kind, protocol)
            sock.ends_at = self._ends_at
            try:
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                refusal = error
            else:
                self.sock = self._socket = sock
                return
        raise refusal


class _Socket(socket.socket):
    """What http.client uses of a socket, bounded."""

    ends_at: float

    def connect(self, address: Any, /) -> None:
        self._bound()
        super().connect(address)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        self._bound()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        self._bound()
        return super().recv_into(buffer, nbytes, flags)

    def _bound(self) -> None:
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
