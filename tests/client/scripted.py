"""A node that answers what the test says, byte by byte, and hangs up when it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple


class Asked(NamedTuple):
    connection: int
    line: str  # "GET /path"
    headers: dict[str, str]  # names in lower case


class Hang:
    """Nothing is answered, and the connection stays."""


class HangUp:
    """The connection ends without an answer."""


class Drip(NamedTuple):
    """One drop after the other, for ever."""

    head: bytes
    drop: bytes = b" "


HANG, HANG_UP = Hang(), HangUp()
LISTING: Final[dict[str, Any]] = {"instances": []}


def http(body: Any, status: int = 200, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers, "", "")
    return "\r\n".join(lines).encode() + content


@dataclass
class Scripted:
    """``answers`` are used up but for the last; after one with ``Connection: close`` the
    connection ends."""

    url: str
    answers: list[Any] = field(default_factory=lambda: [http(LISTING)])
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    open: int = 0  # of these
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # the last open one did

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._answer(self.connections, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            if not self.open:
                self.ended.set()
            writer.close()

    async def _answer(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *rest = request.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in rest)}
            await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append(Asked(number, first.removesuffix(" HTTP/1.1"), headers))
            self.was_asked.set()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            match answer:
                case Hang():
                    await reader.read()
                    return
                case HangUp():
                    return
                case Drip(head, drop):
                    writer.write(head)
                    while True:
                        writer.write(drop)
                        await writer.drain()
                        await asyncio.sleep(0.01)
                case bytes():
                    writer.write(answer)
                    await writer.drain()
                    if b"Connection: close" in answer:
                        return


@asynccontextmanager
async def scripted() -> AsyncIterator[Callable[..., Scripted]]:
    """Starts such nodes; none of them is there any more at the end."""
    servers: list[asyncio.Server] = []

    async def start(*answers: Any) -> Scripted:
        node = Scripted("")
        server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
        servers.append(server)
        node.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if answers:
            node.answers = list(answers)
        return node

    try:
        yield start
    finally:
        for server in servers:
            server.close()
