"""The server itself: where it listens, how it ends, and what it never says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.web_protocol import RequestHandler

from p2pmesh.errors import ConfigError
from p2pmesh.http import bind, faults, server
from p2pmesh.http.server import RegistryServer
from p2pmesh.transport.ports import listen
from tests.http.contract import chunked, eventually, fresh, register
from tests.http.memory import MemoryMesh, joined
from tests.http.serving import Served, serve
from tests.http.wire import Connection, get, post


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens at."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


# --- where it listens --------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("auto", ("127.0.0.1", None)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.0.0.1:8077", ("127.0.0.1", 8077)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
        ("localhost:80", ("127.0.0.1", 80)),
        ("[::1]:8077", ("::1", 8077)),
    ],
)
def test_a_loopback_address_can_be_bound(setting: str, address: tuple[str, int | None]) -> None:
    for may_be_wide in (False, True):
        assert bind.address(setting, may_be_wide=may_be_wide) == address


@pytest.mark.parametrize(
    "setting",
    ["0.0.0.0:8077", "[::]:8077", "192.0.2.1:80", "10.0.0.1:0", "[2001:db8::1]:1",
     "[::ffff:192.0.2.1]:80"],
)  # fmt: skip
def test_a_wider_bind_needs_a_token_or_the_word_that_it_is_open(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        bind.address(setting, may_be_wide=False)
    assert str(error.value).startswith(f"http {setting}: whoever reaches that address")
    for fix in ("P2PMESH_HTTP_TOKEN", "--http-token-file", "--http-open", "127.0.0.1:"):
        assert fix in str(error.value)
    host, port = bind.address(setting, may_be_wide=True)
    assert f"{host}:{port}" == setting.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    "setting",
    ["", "8077", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "::1", "example.net:80"],
)
def test_an_address_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        bind.address(setting, may_be_wide=True)


def test_auto_takes_the_default_port_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setattr(server, "DEFAULT_HTTP_PORT", free)
    with serve(http="auto") as served:
        assert served.servers[0].url == f"http://127.0.0.1:{free}"


def test_auto_takes_another_port_when_the_default_one_is_taken(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DEFAULT_HTTP_PORT", taken)
    with serve(nodes=2, http="auto") as served:
        ports = {each.port for each in served.servers}
        assert len(ports) == 2
        assert taken not in ports


def test_an_explicit_port_that_is_taken_names_who_has_it(taken: int) -> None:
    with pytest.raises(ConfigError) as error, serve(http=f"127.0.0.1:{taken}"):
        pass
    assert str(error.value).startswith(f"http 127.0.0.1:{taken}: ")
    assert "taken by this process" in str(error.value)


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp6"), reason="no IPv6 here")
def test_it_serves_ipv6_loopback_too() -> None:
    with serve(http="[::1]:0") as served:
        address = served.addresses[0]
        assert address.startswith("[::1]:")
        with Connection(address) as door:
            assert door.ask(get("/health")).status == 200


def test_names_that_the_user_gave_are_answered(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        for name in (b"my.mesh", b"192.0.2.1", b"[2001:db8::1]"):  # the node's own addresses
            assert door.ask(get("/health").replace(b"{host}", name)).status == 200


# --- how it ends -------------------------------------------------------------------


def test_it_stops_quickly_whatever_is_open(served: Served) -> None:
    address = served.addresses[0]
    with contextlib.ExitStack() as stack:
        idle, streaming, slow, asking, half = (
            stack.enter_context(Connection(address)) for _ in range(5)
        )
        guest = register(idle)
        for reader in (streaming, slow):
            reader.send(get("/v1/events"))
        node = served.mesh.nodes[0]
        eventually(lambda: served.run(lambda: node.readers) == 2, "nobody reads")
        # More than the socket's buffers take, to a reader that does not read.
        large = joined("x" * 1_000_000)
        for _ in range(20):
            served.run(lambda: served.mesh.emit(large))
        asking.send(
            post("/v1/request/me", {"target_instance": guest, "payload": 1, "timeout": 300})
        )
        eventually(lambda: served.run(lambda: len(served.mesh.waiting)) == 1, "nobody asks")
        half.send(post("/messages/ack/x", b"").replace(b"length: 0", b"length: 10") + b"{")

        started = time.monotonic()
        served.wait(served.servers[0].stop())
        assert time.monotonic() - started < 5 * server.STOP_TIMEOUT
        served.wait(served.servers[0].stop())  # again is no error
        with pytest.raises(ConnectionRefusedError):
            Connection(address)
        assert idle.rest() == b""
        for connection in (asking, half):
            assert connection.read().status == 503
            assert connection.rest() == b""
        assert served.run(lambda: node.readers) == 0
        # Those who do not read what was written, too.
        eventually(lambda: not served.servers[0]._connections._open, "some are still open")


def test_a_call_that_is_under_way_is_answered_before_the_end() -> None:
    with serve() as served:
        mesh = served.mesh
        gate = served.run(asyncio.Event)
        heard = served.run(asyncio.Event)

        async def slowly(*_: Any) -> bool:
            heard.set()
            await gate.wait()
            return True

        served.run(lambda: setattr(mesh.nodes[0], "heartbeat", slowly))
        with Connection(served.addresses[0]) as door:
            door.send(post("/registry/heartbeat/x", {"status": "ok"}))
            served.wait(heard.wait())
            served.run(served.servers[0].leave)
            ended = served.start(served.servers[0].drained())
            assert not ended.done()
            served.run(gate.set)
            reply = door.read()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            ended.result(10)
            assert door.rest() == b""


# --- what goes wrong ---------------------------------------------------------------


@pytest.mark.parametrize("path", ["/registry/agents", "/v1/members"])
def test_an_error_of_ours_is_a_500_that_says_nothing(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise RuntimeError("secret detail in /home/me/key")

    served.run(lambda: setattr(served.mesh.nodes[0], "all_members", fail))
    with Connection(served.addresses[0]) as door:
        reply = door.ask(get(path))
        assert reply.status == 500
        assert b"secret" not in reply.body
        assert b"Runtime" not in reply.body
        assert b"its log says more" in reply.body
        assert door.ask(get("/messages/x")).status == 200
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "secret detail" in caplog.text


def test_an_error_that_is_met_again_and_again_does_not_fill_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise RuntimeError("again")

    served.run(lambda: setattr(served.mesh.nodes[0], "all_members", fail))
    with Connection(served.addresses[0]) as door:
        for number in range(20):
            assert door.ask(get(f"/v1/members/{number}-{'x' * 2000}")).status == 500
        assert len(caplog.records) == faults.LOGGED_MAX
        assert all(len(record.getMessage()) < 300 for record in caplog.records)
        caplog.clear()
        monkeypatch.setattr(faults, "INTERVAL", 0.0)
        served.run(lambda: setattr(served.servers[0]._connections.faults, "_until", 0.0))
        assert door.ask(get("/v1/members")).status == 500
        (record,) = caplog.records
        assert "'GET /v1/members' (15 before it were not logged)" in record.getMessage()
        assert served.run(served.servers[0].counters)["http_errors"] == 21


def test_a_parser_that_fails_costs_one_connection(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, data: bytes) -> None:
        raise RuntimeError("not foreseen")

    with Connection(served.addresses[0]) as door, Connection(served.addresses[0]) as other:
        assert other.ask(get("/health")).status == 200
        with monkeypatch.context() as patched:
            patched.setattr(RequestHandler, "data_received", fail)
            door.send(get("/health"))
            assert door.rest() == b""
        assert other.ask(get("/health")).status == 200
    assert len(caplog.records) == 1
    assert "not foreseen" in caplog.text


BROKEN = {
    "a chunk without a size": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": b"-5\r\n{}\r\n0\r\n\r\n",
    "a huge chunk": b"fffffffffffffffffffff\r\n{}",
    "a chunk without an end": b"2\r\n{}xx2\r\n",
    "a body after an upgrade": b"2\r\n{}\r\n\xff\xff",
}


@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "later"])
def test_a_body_whose_framing_is_broken_is_400_and_the_connection_ends(
    served: Served, rest: bytes, is_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Connection(served.addresses[0]) as door:
        request = chunked("/messages/ack/x", b"")
        if is_late:
            door.send(request + b"1\r\n{\r\n")
            # The handler waits for the body by now: another connection was served since.
            with Connection(served.addresses[0]) as other:
                assert other.ask(get("/health")).status == 200
            door._socket.sendall(rest)
        else:
            door.send(request + rest)
        assert door.read().status == 400
        assert door.rest() == b""
    assert not caplog.records


def test_a_client_that_goes_away_in_its_body_leaves_no_trace(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    request = post("/messages/ack/x", b"{").replace(b"length: 1", b"length: 100")
    for leave in (Connection.close, Connection.end_of_input):
        with Connection(served.addresses[0]) as door:
            door.send(request)
            leave(door)
    with Connection(served.addresses[0]) as door:
        assert door.ask(get("/health")).status == 200
    assert not caplog.records


def test_a_message_is_sent_though_its_sender_does_not_wait(served: Served) -> None:
    """A client that hangs up after a send still means it to be sent."""
    node, sent = served.mesh.nodes[0], []

    async def post_slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.05)
        sent.append(arguments)

    served.run(lambda: setattr(node, "acknowledge", post_slowly))
    with Connection(served.addresses[0]) as door:
        guest = fresh()
        door.send(post(f"/messages/ack/{guest}", {"message_ids": ["m"]}))
    eventually(lambda: sent, "the acknowledgement was dropped")
    assert sent == [(guest, ("m",))]


async def test_the_server_needs_nothing_but_a_loop_and_a_backend() -> None:
    (node,) = MemoryMesh().nodes
    serving = await RegistryServer.start(node, "127.0.0.1:0", listen=listen)
    reader, writer = await asyncio.open_connection(serving.host, serving.port)
    writer.write(get("/health").replace(b"{host}", f"localhost:{serving.port}".encode()))
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    await serving.stop()
