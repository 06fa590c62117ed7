"""Bytes that no client of ours sends, at the same doors as the contract.

``Hostile`` is subclassed beside ``Contract``: what is not HTTP, or HTTP at its edges,
is answered in our words or taken as it was meant, and the node goes on.
"""

from __future__ import annotations

import contextlib
from typing import Final

import pytest

from tests.http.contract import Doors, assert_refused, chunked, nested, with_payload
from tests.http.wire import Connection, get, post

ACK: Final = "/messages/ack/x"
IDS: Final = b'{"message_ids":[]}'
HOST: Final = b"host: {host}\r\n"


def request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """A head as it stands, our host in it."""
    return line + b"\r\n" + HOST + b"".join(each + b"\r\n" for each in headers) + b"\r\n" + body


def health(*headers: bytes, line: bytes = b"GET /health HTTP/1.1") -> bytes:
    return request(line, *headers)


def ack(*headers: bytes, body: bytes = IDS) -> bytes:
    line = b"POST /messages/ack/x HTTP/1.1"
    return request(line, b"content-type: application/json", *headers, body=body)


CHUNKED: Final = b"transfer-encoding: chunked"
CHUNKS: Final = b"12\r\n" + IDS + b"\r\n0\r\n\r\n"

#: 400, and the connection ends.
NOT_HTTP: Final = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "mail": b"EHLO example.net\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "every byte": bytes(range(256)) + b"\r\n\r\n",
    "a line of text": b"hello there\r\n\r\n",
    "a method alone": b"GET\r\n\r\n",
    "an unknown method": health(line=b"BREW /health HTTP/1.1"),
    "a method in lower case": health(line=b"get /health HTTP/1.1"),
    "an endless method": health(line=b"A" * 9000 + b" /health HTTP/1.1"),
    "no target": health(line=b"GET  HTTP/1.1"),
    "a target without a slash": health(line=b"GET health HTTP/1.1"),
    "a backslash": health(line=b"GET \\health HTTP/1.1"),
    "tabs in the request line": health(line=b"GET\t/health\tHTTP/1.1"),
    "a NUL in the target": health(line=b"GET /hea\0lth HTTP/1.1"),
    "a DEL in the target": health(line=b"GET /health\x7f HTTP/1.1"),
    "bytes in the target": health(line=b"GET /\xff\xfe HTTP/1.1"),
    "half an IPv6 address": health(line=b"GET http://[::1/health HTTP/1.1"),
    "a port of five nines": health(line=b"GET http://localhost:99999/health HTTP/1.1"),
    "no version": health(line=b"GET /health "),
    "another protocol": health(line=b"GET /health ICY/1.0"),
    "lines without carriage returns": b"GET /health HTTP/1.1\nhost: {host}\n\n",
    "an endless line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n",
    "an endless query": health(line=b"GET /health?" + b"a" * 9000 + b" HTTP/1.1"),
    "an endless header": health(b"x: " + b"a" * 20_000),
    "an endless name": health(b"x" * 9000 + b": a"),
    "a thousand headers": health(*[b"a: b"] * 1000),
    "headers without end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
    "a folded header": health(b" x: y"),
    "a name with a space": b"GET /health HTTP/1.1\r\nhost : {host}\r\n\r\n",
    "a header without a name": health(b": x"),
    "a header without a colon": health(b"nonsense"),
    "a NUL in a name": health(b"a\0b: c"),
    "a NUL in a value": health(b"x: \0"),
    "a carriage return in a value": health(b"a: b\rc: d"),
    "two hosts": health(HOST.strip()),
    "two lengths": ack(b"content-length: 18", b"content-length: 19"),
    "a length twice": ack(b"content-length: 18", b"content-length: 18"),
    "a list of lengths": ack(b"content-length: 18, 18"),
    "a negative length": ack(b"content-length: -18"),
    "a length with a sign": ack(b"content-length: +18"),
    "a hexadecimal length": ack(b"content-length: 0x12"),
    "a length with an exponent": ack(b"content-length: 1e1"),
    "an empty length": ack(b"content-length:"),
    "a length beyond 64 bits": ack(b"content-length: 99999999999999999999999"),
    "a length of 6,000 digits": ack(b"content-length: " + b"9" * 6000),
    "a length and chunks": ack(b"content-length: 4", CHUNKED, body=CHUNKS),
    "chunks and a length": ack(CHUNKED, b"content-length: 4", body=CHUNKS),
    "chunks twice": ack(CHUNKED, CHUNKED, body=CHUNKS),
    "a coding that is not chunked": ack(b"transfer-encoding: gzip"),
    "a coding after chunked": ack(b"transfer-encoding: chunked, gzip", body=CHUNKS),
    "an unknown coding": ack(b"transfer-encoding: xchunked", body=CHUNKS),
    "chunks without carriage returns": ack(CHUNKED, body=CHUNKS.replace(b"\r", b"")),
    "trailers without end": ack(CHUNKED, body=CHUNKS[:-2] + b"x: y\r\n" * 100_000),
    "an endless trailer": ack(CHUNKED, body=CHUNKS[:-2] + b"x:" + b"y" * 1_000_000),
}
#: 505, and the connection ends.
OTHER_VERSIONS: Final = {
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/0.9, said": health(line=b"GET /health HTTP/0.9"),
    "HTTP/2.0": health(line=b"GET /health HTTP/2.0"),
    "HTTP/2.0 with a body": ack(b"content-length: 18").replace(b"HTTP/1.1", b"HTTP/2.0"),
}
#: The status, and the connection goes on.
AT_THE_EDGE: Final = {
    "empty lines before": (200, b"\r\n\r\n" + get("/health")),
    "two spaces": (200, health(line=b"GET  /health HTTP/1.1")),
    "bytes in a value": (200, health(b"x: \xff\xfe")),
    "as many headers as there may be": (200, health(*[b"a: b"] * 126)),
    "a long header": (200, health(b"x: " + b"a" * 8000)),
    "a body that nobody reads": (200, health(b"content-length: 5") + b"hello"),
    "an upgrade to a socket": (200, health(b"connection: upgrade", b"upgrade: websocket")),
    "an upgrade to HTTP/2": (200, health(b"connection: upgrade", b"upgrade: h2c")),
    "an expectation without a body": (200, health(b"expect: 100-continue")),
    "a long path": (404, health(line=b"GET /" + b"a" * 8000 + b" HTTP/1.1")),
    "dots in the path": (404, health(line=b"GET /registry/../health HTTP/1.1")),
    "two slashes": (404, health(line=b"GET //evil.example/health HTTP/1.1")),
    "a fragment": (404, health(line=b"GET /health#x HTTP/1.1")),
    "an absolute target without a path": (404, health(line=b"GET http://{host} HTTP/1.1")),
    "a target of HTTPS": (404, health(line=b"GET https://{host}/health HTTP/1.1")),
    "a target of FTP": (404, health(line=b"GET ftp://{host}/health HTTP/1.1")),
    "a target with a user": (421, health(line=b"GET http://me@{host}/health HTTP/1.1")),
    "a tunnel": (404, health(line=b"CONNECT evil.example:443 HTTP/1.1")),
    "a question to the server": (404, health(line=b"OPTIONS * HTTP/1.1")),
    "a trace": (405, health(line=b"TRACE /health HTTP/1.1")),
    "a method of others": (405, health(line=b"PROPFIND /health HTTP/1.1")),
    "percent and no digits": (200, get("/messages/%zz")),
    "percent at the end": (200, get("/messages/%")),
    "percent and a code point": (200, get("/messages/%u0041")),
    "a NUL, encoded": (200, get("/messages/%00")),
    "a header, encoded": (200, get("/messages/%0d%0aset-cookie:%20a=b")),
    "an unknown expectation": (204, post(ACK, IDS, "expect: a-miracle")),
    "an extension of a megabyte": (
        204, ack(CHUNKED, body=CHUNKS.replace(b"12", b"12;" + b"x" * 1_000_000)),
    ),
    "a size of many zeros": (204, ack(CHUNKED, body=b"0" * 100_000 + CHUNKS)),
    "a hundred thousand chunks": (
        204, chunked(ACK, b"1;a=b\r\n \r\n" * 100_000 + CHUNKS),
    ),
    "trailers": (204, ack(CHUNKED, body=CHUNKS[:-2] + b"x: y\r\n" * 10 + b"\r\n")),
    "no length and no body": (400, ack(body=b"")),
    "a coding before chunked": (415, ack(b"transfer-encoding: gzip, chunked", body=CHUNKS)),
    "900,000 arrays": (400, post(ACK, b"[" * 900_000)),
    "a payload of 900,000 arrays": (400, post("/messages/send/x", with_payload(b"[" * 900_000))),
    "700,000 arrays side by side": (413, post(ACK, b"[" + b"[]," * 690_000 + b"1]")),
    "an integer of 6,000 digits": (400, post("/messages/send/x", with_payload(b"1" * 6000))),
    "an id of 6,000 digits": (422, post(ACK, b'{"message_ids":[1]}')),
    "two million quotes": (400, post(ACK, b'"' * 2_000_000)),
    "two million backslashes": (400, post(ACK, b'"' + b"\\" * 2_000_000)),
    "a deep object of quotes": (400, post(ACK, b'{"":' * 500_000)),
    "two mebibytes and a byte": (413, post(ACK, IDS + b" " * (2_097_153 - len(IDS)))),
    "levels around text": (204, post(ACK, IDS[:-1] + b',"x":' + nested(100) + b"}")),
}  # fmt: skip


def say(door: Connection, junk: bytes) -> None:
    """Whether or not it is heard to its end."""
    with contextlib.suppress(ConnectionError):
        door.send(junk)


def is_ended(door: Connection) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return door.rest() == b""
    return True


def assert_goes_on(doors: Doors, door: Connection | None = None) -> None:
    for each in (doors.open(), contextlib.nullcontext(door)):
        with each as asked:
            assert asked is None or asked.ask(get("/health")).status == 200


class Hostile:
    """Subclassed where ``doors`` is defined."""

    @pytest.mark.parametrize("junk", NOT_HTTP.values(), ids=NOT_HTTP)
    def test_what_is_not_http_is_400_in_our_words_and_the_connection_ends(
        self, doors: Doors, junk: bytes
    ) -> None:
        with doors.open() as door:
            say(door, junk.replace(b"{host}", door.address.encode()))
            reply = door.read()
            assert_refused(reply, 400)
            assert reply.body.startswith(b"not an HTTP request: ") or b"framed" in reply.body
            assert is_ended(door)
        assert_goes_on(doors)

    @pytest.mark.parametrize("junk", OTHER_VERSIONS.values(), ids=OTHER_VERSIONS)
    def test_another_version_is_505_and_the_connection_ends(
        self, doors: Doors, junk: bytes
    ) -> None:
        with doors.open() as door:
            door.send(junk)
            assert_refused(door.read(), 505)
            assert is_ended(door)
        assert_goes_on(doors)

    @pytest.mark.parametrize(("status", "odd"), AT_THE_EDGE.values(), ids=AT_THE_EDGE)
    def test_what_is_odd_has_its_answer_and_the_connection_goes_on(
        self, doors: Doors, status: int, odd: bytes
    ) -> None:
        with doors.open() as door:
            door._socket.sendall(odd.replace(b"{host}", door.address.encode()))
            reply = door.read(is_head=False)
            if status >= 400:
                assert_refused(reply, status)
            assert reply.status == status
            assert "set-cookie" not in reply.headers
            assert_goes_on(doors, door)

    def test_http_1_0_is_answered_and_keeps_the_connection_only_when_asked(
        self, doors: Doors
    ) -> None:
        line = b"GET /health HTTP/1.0"
        with doors.open() as door:
            assert door.ask(health(line=line)).status == 200
            assert is_ended(door)
        with doors.open() as door:
            reply = door.ask(health(b"connection: keep-alive", line=line))
            assert (reply.status, reply.headers["connection"]) == (200, "keep-alive")
            assert_goes_on(doors, door)

    def test_http_1_0_knows_of_no_100_continue(self, doors: Doors) -> None:
        with doors.open() as door:
            door.send(post(ACK, IDS, "expect: 100-continue").replace(b"/1.1", b"/1.0"))
            assert door.read_head()[0] == 204

    def test_a_thousand_requests_written_at_once_are_answered_in_order(self, doors: Doors) -> None:
        with doors.open() as door:
            pair = get("/health") + get("/nowhere")
            door._socket.sendall(pair.replace(b"{host}", door.address.encode()) * 500)
            assert [door.read().status for _ in range(1000)] == [200, 404] * 500
            assert door.is_silent()
