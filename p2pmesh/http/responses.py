"""Answers as they go out: aiohttp's responses, or bytes where no request was understood.

Does not: write to a socket.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from p2pmesh.http.calls import TEXT, Answer

#: On every answer.  An empty Server keeps aiohttp from naming itself and Python.
COMMON_HEADERS: Final = {
    "Server": "",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    # Nothing that is answered is a page, or part of somebody's.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def response(answer: Answer) -> web.Response:
    headers = COMMON_HEADERS | dict(answer.headers)
    if answer.content_type is not None:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def last_words(status: int, text: str, **headers: str) -> bytes:
    """A whole answer to nothing in particular; the connection ends with it."""
    body = f"{text}\n".encode()
    fields = COMMON_HEADERS | {
        "Content-Type": TEXT,
        "Content-Length": f"{len(body)}",
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = (f"{name}: {value}" for name, value in fields.items())
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n" + "\r\n".join(lines)
    return head.encode() + b"\r\n\r\n" + body
