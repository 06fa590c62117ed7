"""What a client may take: time and connections.  Deadlines are short here; the real ones
are held in ``test_connections_of_processes``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any, Final

import pytest

from p2pmesh.http import connections
from p2pmesh.http.connections import Connections, Limits, Phase
from tests.http.contract import assert_refused, chunked, eventually
from tests.http.memory import joined
from tests.http.serving import Served, serve
from tests.http.wire import Connection, get, post

#: Nothing is late that should not be.
NEVER: Final = {"head": 60.0, "body": 60.0, "linger": 60.0, "idle": 60.0, "write": 60.0}
SOON: Final = 0.3
#: For a deadline that a good client has to meet, on whatever machine.
AMPLE: Final = 2.0

HALF_HEAD: Final = b"GET /health HTTP/1.1\r\nhost: {host}"
HALF_BODY: Final = post("/messages/ack/x", b"{}").replace(b"length: 2", b"length: 3")
HALF_CHUNKS: Final = chunked("/messages/ack/x", b"2\r\n{}")


@contextlib.contextmanager
def serving(**limits: Any) -> Iterator[Served]:
    with serve(limits=Limits(**(NEVER | limits))) as served:
        yield served


def counted(served: Served) -> dict[str, int]:
    return served.run(lambda: dict(served.servers[0].counters()))


def stays_open(door: Connection) -> None:
    assert door.ask(get("/health")).status == 200


def is_closed(door: Connection) -> None:
    """It is, or will be soon, without a word."""
    with contextlib.suppress(ConnectionResetError):
        assert door.rest() == b""


# --- deadlines ---------------------------------------------------------------------


def test_a_client_that_says_nothing_is_closed_without_a_word() -> None:
    with serving(head=SOON) as served, Connection(served.addresses[0]) as door:
        started = time.monotonic()
        assert door.rest() == b""
        assert time.monotonic() - started > 0.9 * SOON
        assert counted(served) == {"http_head_timeouts": 1}


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_half_a_head_is_408_and_closed(is_first: bool) -> None:
    with serving(head=AMPLE) as served, Connection(served.addresses[0]) as door:
        if not is_first:
            stays_open(door)
        started = time.monotonic()
        door.send(HALF_HEAD)
        assert_refused(door.read(), 408)
        assert time.monotonic() - started > (0 if is_first else 0.9 * AMPLE)
        is_closed(door)
        assert counted(served) == {"http_head_timeouts": 1}


def test_the_first_byte_wins_no_time_for_the_first_head() -> None:
    with serving() as served, Connection(served.addresses[0]) as door:
        (connection,) = eventually(lambda: served.servers[0]._connections._open, "not there")
        due = connection._due
        door.send(HALF_HEAD)
        eventually(lambda: connection.phase is Phase.HEAD, "the head does not begin")
        assert connection._due == pytest.approx(due, abs=1e-3)


@pytest.mark.parametrize("half", [HALF_BODY, HALF_CHUNKS], ids=["length", "chunks"])
def test_half_a_body_is_408_and_closed(half: bytes) -> None:
    with serving(body=SOON) as served, Connection(served.addresses[0]) as door:
        started = time.monotonic()
        door.send(half)
        reply = door.read()
        assert_refused(reply, 408)
        assert reply.headers["connection"] == "close"
        assert time.monotonic() - started > 0.9 * SOON
        is_closed(door)
        assert counted(served) == {"http_body_timeouts": 1}


@pytest.mark.parametrize(
    ("limit", "beginning", "drop"),
    [("head", b"GET /", b"x"), ("body", HALF_BODY[:-2], b" "), ("body", HALF_CHUNKS, b"\r")],
    ids=["head", "body", "chunks"],
)
def test_a_drop_now_and_then_wins_no_time(limit: str, beginning: bytes, drop: bytes) -> None:
    beginning = beginning.replace(b"length: 3", b"length: 1000000")
    with serving(**{limit: AMPLE}) as served, Connection(served.addresses[0]) as door:
        door.send(beginning)
        while not door.is_readable(SOON / 10):
            door.send(drop)
        assert door.read().status in (400, 408)  # a carriage return alone breaks a chunk
        is_closed(door)


def test_the_rest_of_a_refused_body_is_not_waited_for_long() -> None:
    with serving(linger=SOON) as served, Connection(served.addresses[0]) as door:
        door.send(HALF_BODY.replace(b"/messages/ack/x", b"/nowhere"))
        assert_refused(door.read(), 404)
        started = time.monotonic()
        is_closed(door)
        assert time.monotonic() - started < 5.0  # and aiohttp would wait for 10


def test_the_rest_of_a_refused_body_is_no_head() -> None:
    with serving(head=AMPLE) as served, Connection(served.addresses[0]) as door:
        request = HALF_BODY.replace(b"/messages/ack/x", b"/nowhere").replace(b": 3", b": 5")
        door.send(request)
        assert_refused(door.read(), 404)
        door.send(b"xx")
        pass_time(served)
        door.send(b"x")
        stays_open(door)


def test_what_comes_after_a_body_that_broke_off_does_no_harm() -> None:
    with serving() as served, Connection(served.addresses[0]) as door:
        door.send(HALF_BODY)
        (connection,) = eventually(lambda: served.servers[0]._connections._open, "not there")
        eventually(lambda: connection.body, "its body is not read")

        def break_off() -> None:
            connection.break_body()
            connection.data_received(b"}")

        served.run(break_off)
        assert_refused(door.read(), 400)
        is_closed(door)


def pass_time(served: Served) -> None:
    """Longer than the head deadline."""
    with Connection(served.addresses[0]) as silent:
        is_closed(silent)


def test_an_idle_connection_is_closed_without_a_word() -> None:
    with serving(idle=SOON) as served, Connection(served.addresses[0]) as door:
        stays_open(door)
        door.send(b"\r\n")  # is no beginning of anything
        started = time.monotonic()
        is_closed(door)
        assert time.monotonic() - started > 0.5 * SOON
        assert counted(served) == {"http_idle_timeouts": 1}


def test_each_request_begins_the_idle_time_anew() -> None:
    with serving() as served, Connection(served.addresses[0]) as door:

        def idle_until() -> float:
            stays_open(door)
            (connection,) = served.servers[0]._connections._open
            eventually(lambda: connection.phase is Phase.IDLE, "it is not idle")
            return served.run(lambda: connection._due)

        first = idle_until()
        assert idle_until() > first


def test_what_is_served_has_no_deadline_but_its_own() -> None:
    with serving(**(dict.fromkeys(NEVER, SOON) | {"head": AMPLE})) as served:
        gate = served.run(asyncio.Event)

        async def slowly(*_: Any) -> bool:
            await gate.wait()
            return True

        served.run(lambda: setattr(served.mesh.nodes[0], "heartbeat", slowly))
        with contextlib.ExitStack() as stack:
            waiting, streaming = (
                stack.enter_context(Connection(served.addresses[0])) for _ in range(2)
            )
            waiting.send(get("/health"))
            waiting.send(post("/registry/heartbeat/x", {"status": "ok"}))
            assert waiting.read().status == 200
            streaming.send(get("/v1/events"))
            streaming.read_head()
            pass_time(served)  # longer than all others
            served.run(gate.set)
            assert waiting.read().status == 200
            served.run(lambda: served.mesh.emit(joined("later")))
            while b"later" not in streaming.read_chunk():
                pass


def test_a_reader_that_does_not_read_is_cut_off() -> None:
    with serving(write=SOON) as served, Connection(served.addresses[0]) as door:
        node, large = served.mesh.nodes[0], joined("x" * 1_000_000)
        door.send(get("/v1/events"))
        eventually(lambda: served.run(lambda: node.readers) == 1, "nobody reads")
        for _ in range(20):  # more than the sockets' buffers take
            served.run(lambda: served.mesh.emit(large))
        eventually(lambda: served.run(lambda: node.readers) == 0, "it is still served")
        assert counted(served) == {"http_write_timeouts": 1}


def test_an_answer_that_is_not_taken_ends_the_connection() -> None:
    with serving(write=SOON) as served, Connection(served.addresses[0]) as door:
        guest = {"instance_id": "me", "hostname": "h", "port": 1, "capabilities": [],
                 "agent_profiles": []}  # fmt: skip
        with Connection(served.addresses[0]) as other:
            assert other.ask(post("/registry/register", guest)).status == 200
            message = {"target_instance": "me", "message_type": "Query"}
            for _ in range(4):
                sent = post("/messages/send/x", message | {"payload": "x" * 2_000_000})
                assert other.ask(sent).status == 200
        for _ in range(4):
            door.send(get("/messages/me"))
        eventually(lambda: counted(served).get("http_write_timeouts"), "it waits for ever")


class SlowReader(asyncio.Transport):
    """A transport whose client takes what ``left`` says between two looks."""

    def __init__(self, left: list[int]) -> None:
        super().__init__()
        self.left = left
        self.high: int | None = None
        self.aborted = asyncio.get_running_loop().create_future()

    def get_write_buffer_size(self) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def abort(self) -> None:
        if not self.aborted.done():
            self.aborted.set_result(None)

    def close(self) -> None:
        pass


async def test_a_reader_that_takes_its_time_is_served_while_it_reads() -> None:
    table = Connections(Limits(**(NEVER | {"write": 0.01})))
    server: Any = type("Server", (), {"request_handler": None, "request_factory": None,
                                      "connection_made": lambda *_: None})()  # fmt: skip
    connection = connections.Connection(server, table)
    # Looked at when writing pauses, then each time before and after it is judged.
    transport = SlowReader([400_000, 300_000, 300_000, 234_464, 234_464, 168_929, 168_929])
    connection.connection_made(transport)
    assert transport.high == 0  # it is told of every byte that is not taken
    connection.pause_writing()
    async with asyncio.timeout(20):
        await transport.aborted
    assert transport.left == [168_929]  # 65,535 bytes were one too few
    assert table.counters == {"http_write_timeouts": 1}
    connection._task_handler.cancel()  # type: ignore[union-attr]


# --- how many ----------------------------------------------------------------------


@contextlib.contextmanager
def opened(served: Served, count: int) -> Iterator[list[Connection]]:
    """So many connections, each of which has asked once, in this order."""
    with contextlib.ExitStack() as stack:
        doors = []
        for _ in range(count):
            doors.append(stack.enter_context(Connection(served.addresses[0])))
            stays_open(doors[-1])
        yield doors


def test_at_the_cap_the_longest_idle_one_makes_room() -> None:
    with serving(connections=4) as served, opened(served, 4) as (first, second, third, fourth):
        stays_open(first)
        with Connection(served.addresses[0]) as new:
            stays_open(new)
            is_closed(second)
            for door in (first, third, fourth, new):
                stays_open(door)
        assert counted(served) == {"http_connections_evicted": 1}


@pytest.mark.parametrize("said", [b"", HALF_HEAD], ids=["silent", "half a head"])
def test_who_does_not_ask_makes_room_for_who_does(said: bytes) -> None:
    with serving(connections=4) as served, contextlib.ExitStack() as stack:
        for _ in range(10):
            slow = stack.enter_context(Connection(served.addresses[0]))
            slow.send(said)
        for _ in range(10):
            stays_open(stack.enter_context(Connection(served.addresses[0])))


def test_where_all_are_busy_the_new_one_is_turned_away() -> None:
    with serving(connections=3) as served, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Connection(served.addresses[0])) for _ in range(3)]
        for door in busy:
            door.send(get("/v1/events"))
            door.read_head()
        with Connection(served.addresses[0]) as new:
            reply = new.read()
            assert_refused(reply, 503)
            assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
            is_closed(new)
        assert counted(served) == {"http_connections_refused": 1}
        busy[0].close()
        eventually(partial(is_let_in, served), "no place is free again")


def is_let_in(served: Served) -> bool:
    with Connection(served.addresses[0]) as door:
        try:
            return door.ask(get("/health")).status == 200
        except OSError:
            return False


@pytest.fixture
def only_127_0_0_1_is_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """The rest of 127/8 is as remote as other machines; connects from there."""
    monkeypatch.setattr(connections, "_is_loopback", lambda address: address == "127.0.0.1")

    def connect(address: str, source: str) -> Any:
        door = Connection.__new__(Connection)
        host, _, port = address.rpartition(":")
        door.address, door._received = address, b""
        door._socket = socket.create_connection((host, int(port)), 20.0, (source, 0))
        return door

    return connect


def test_a_remote_address_has_a_cap_of_its_own(
    only_127_0_0_1_is_here: Callable[[str, str], Any],
) -> None:
    with serving(of_an_address=2) as served, contextlib.ExitStack() as stack:

        def connect(source: str) -> Connection:
            door = stack.enter_context(only_127_0_0_1_is_here(served.addresses[0], source))
            stays_open(door)
            return door

        here = [connect("127.0.0.1") for _ in range(5)]
        other = connect("127.0.0.3")
        first, second, third = (connect("127.0.0.2") for _ in range(3))
        is_closed(first)
        for door in (*here, other, second, third):
            stays_open(door)
        for door in (second, third):
            door.send(get("/v1/events"))
            door.read_head()
        refused = stack.enter_context(only_127_0_0_1_is_here(served.addresses[0], "127.0.0.2"))
        assert_refused(refused.read(), 503)
        assert counted(served) == {"http_connections_evicted": 1, "http_connections_refused": 1}


def test_nothing_is_kept_of_connections_that_are_gone() -> None:
    with serving(connections=3) as served:
        for _ in range(20):
            with Connection(served.addresses[0]) as door:
                stays_open(door)
            with Connection(served.addresses[0]) as door:
                door.send(HALF_HEAD)
        table = served.servers[0]._connections
        # One that is accepted late comes and goes once more: look at both together.
        is_empty = lambda: not table._open and not table._of_address  # noqa: E731
        eventually(lambda: served.run(is_empty), "some are kept")


def test_the_limits_are_those_that_are_documented() -> None:
    assert {each.name: getattr(connections.LIMITS, each.name) for each in fields(Limits)} == {
        "head": 10.0, "body": 30.0, "linger": 10.0, "idle": 75.0, "half_closed": 1.0, "write": 30.0,
        "connections": 256, "of_an_address": 32,
    }  # fmt: skip


# --- clients that say no more ------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/messages/x", "/v1/self"])
def test_a_client_that_closes_its_side_after_its_request_is_answered(
    served: Served, path: str
) -> None:
    with Connection(served.addresses[0]) as door:
        door.send(get(path))
        door.end_of_input()
        assert door.read().status == 200
        assert door.rest() == b""


def test_all_that_was_asked_before_is_answered(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        door.send(get("/health"))
        door.send(post("/messages/ack/x", {"message_ids": ["m"]}))
        door.end_of_input()
        assert [door.read().status, door.read().status] == [200, 204]
        assert door.rest() == b""


def test_who_closes_its_side_and_asked_to_wait_is_waited_for_but_a_moment(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        door.send(get("/messages/x?wait=60"))
        door.end_of_input()
        assert door.rest() == b""
    eventually(lambda: served.run(lambda: served.mesh.readers) == 0, "still waiting")
