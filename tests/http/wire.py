"""HTTP over a bare socket: the bytes that go out are the bytes that are written here.

Requests look as the registry's clients (hyper, reqwest) write them: lower-case
names, ``accept: */*``, the host last but one, a length.  Answers are read with
no mercy: what is not exactly framed is an error of the server.
"""

from __future__ import annotations

import json
import re
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tests.http import strict

HANG_GUARD: Final = 20.0


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request without a body."""
    lines = [f"{method} {path} HTTP/1.1", *headers, "accept: */*", "host: {host}", "", ""]
    return "\r\n".join(lines).encode()


def post(
    path: str, body: Any, *headers: str, content_type: str | None = "application/json"
) -> bytes:
    """A request with a body: bytes as they stand, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    typed = [f"content-type: {content_type}"] if content_type is not None else []
    lines = [
        f"POST {path} HTTP/1.1",
        *typed,
        *headers,
        "accept: */*",
        "host: {host}",
        f"content-length: {len(content)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] in ("application/json", "application/problem+json")
        return strict.loads(self.body)


class Connection:
    """One kept connection to ``host:port``."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), HANG_GUARD)
        self._received = b""

    def ask(self, request: bytes) -> Reply:
        """Sends literal bytes, ``{host}`` in the head replaced, and reads one answer."""
        self.send(request)
        return self.read(is_head=request.startswith(b"HEAD "))

    def send(self, request: bytes) -> None:
        head, separator, body = request.partition(b"\r\n\r\n")
        head = head.replace(b"{host}", self.address.encode())
        self._socket.sendall(head + separator + body)

    def end_of_input(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def read(self, *, is_head: bool = False) -> Reply:
        status, headers = self.read_head()
        if status == 100:
            return self.read(is_head=is_head)
        if is_head or status in (204, 304):
            assert "transfer-encoding" not in headers
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.read_chunk, b""))
        else:
            body = self._take(int(headers["content-length"]))
        return Reply(status, headers, body)

    def read_head(self) -> tuple[int, dict[str, str]]:
        first, *lines = self._take_until(b"\r\n\r\n").decode("ascii").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3}) [A-Za-z' -]+", first)
        assert match, f"status line {first!r}"
        headers: dict[str, str] = {}
        for line in lines:
            name, separator, value = line.partition(": ")
            assert separator, f"header line {line!r}"
            assert name.lower() not in headers, f"{name} is repeated"
            headers[name.lower()] = value
        return int(match[1]), headers

    def read_chunk(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        chunk = self._take(int(self._take_until(b"\r\n"), 16))
        assert self._take(2) == b"\r\n"
        return chunk

    def rest(self) -> bytes:
        """Whatever else comes until the server closes."""
        while more := self._receive():
            self._received += more
        return self._received

    def is_readable(self, within: float) -> bool:
        """Whether there is something, or the end, within so many seconds."""
        return bool(select.select([self._socket], [], [], within)[0])

    def is_silent(self) -> bool:
        """Whether nothing that was not asked for has come."""
        return not self._received

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._more()
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _take_until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._more()
        taken, _, self._received = self._received.partition(end)
        return taken

    def _more(self) -> None:
        more = self._receive()
        assert more, f"the server closed after {self._received[:200]!r}"
        self._received += more

    def _receive(self) -> bytes:
        return self._socket.recv(1 << 16)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
