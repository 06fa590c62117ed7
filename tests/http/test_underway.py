"""A node that leaves gives every call over HTTP a proper end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.running import HTTP_DRAIN
from tests.http import strict
from tests.http.contract import eventually, register
from tests.http.serving import Served
from tests.http.test_contract_of_processes import address, running
from tests.http.wire import Connection, Reply, get, post

LATE = 10.0  # a guard: several times what a loaded machine needs


def question(target: str, query: str = "") -> bytes:
    body = {"target_instance": target, "payload": 1, "timeout": 300}
    return post(f"/v1/request/me{query}", body)


def assert_says_that_it_leaves(reply: Reply) -> None:
    assert reply.status == 503, reply.body
    assert reply.headers["connection"] == "close"
    assert "retry-after" in reply.headers
    if reply.headers["content-type"] == "application/problem+json":
        assert reply.json["code"] == "leaving"
    else:
        assert reply.body == b"this node leaves its mesh; ask another\n"


@pytest.mark.parametrize("path", ["/health", "/registry/agents", "/v1/self", "/v1/events"])
def test_a_new_call_to_a_leaving_node_is_503_and_the_connection_ends(
    served: Served, path: str
) -> None:
    with Connection(served.addresses[0]) as kept:
        assert kept.ask(get("/health")).status == 200
        served.run(served.servers[0].leave)
        with Connection(served.addresses[0]) as new:
            for door in (kept, new):
                assert_says_that_it_leaves(door.ask(get(path)))
                assert door.rest() == b""


def test_a_stream_of_events_ends_in_order_when_the_leaving_begins(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        door.send(get("/v1/events"))
        assert door.read_head()[0] == 200
        served.run(served.servers[0].leave)
        assert door.read_chunk() == b"retry: 1000\n\n"
        assert door.read_chunk() == b""
        served.wait(served.servers[0].drained())  # it is no call that anything waits for


def test_a_stream_of_parts_goes_on_while_the_node_leaves(served: Served) -> None:
    gate = served.run(asyncio.Event)

    async def parts(_: Any) -> AsyncGenerator[Any, None]:
        yield 1
        await gate.wait()
        yield 2

    with Connection(served.addresses[0]) as door:
        guest = register(door)
        served.mesh.generators[guest] = parts
        door.send(question(guest, "?stream=1"))
        assert door.read_head()[0] == 200
        assert door.read_chunk() == b"event: part\ndata: 1\n\n"
        served.run(served.servers[0].leave)
        ended = served.start(served.servers[0].drained())
        assert not ended.done()
        served.run(gate.set)
        assert door.read_chunk() == b"event: part\ndata: 2\n\n"
        assert door.read_chunk().startswith(b"event: end\n")
        assert door.read_chunk() == b""
        ended.result(LATE)


def test_calls_that_do_not_end_are_told_that_the_node_leaves(home: Path) -> None:
    """A real process that gets SIGTERM while four clients wait for it."""
    with (
        running(home, 1) as (process,),
        Connection(address(process)) as asking,
        Connection(address(process)) as streaming,
        Connection(address(process)) as polling,
        Connection(address(process)) as watching,
        Connection(address(process)) as half,
    ):
        mute = register(asking)
        asking.send(question(mute))
        streaming.send(question(mute, "?stream=1"))
        watching.send(get("/v1/events"))
        half.send(post("/messages/ack/x", b"").replace(b"length: 0", b"length: 10") + b"{")
        with Connection(address(process)) as reader:
            eventually(
                lambda: len(reader.ask(get(f"/messages/{mute}")).json["messages"]) == 2,
                "they do not ask",
            )
            other = register(reader)
        polling.send(get(f"/messages/{other}?wait=30"))
        with Connection(address(process)) as counting:
            eventually(
                lambda: b'queue="reads_waiting"} 1' in counting.ask(get("/metrics")).body,
                "nobody waits",
            )
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert polling.read().json["messages"] == []
        assert watching.read().status == 200
        with Connection(address(process)) as late:
            assert_says_that_it_leaves(late.ask(get("/health")))
        assert_says_that_it_leaves(asking.read())
        assert_says_that_it_leaves(streaming.read())  # no part had come, so it is a status
        assert_says_that_it_leaves(half.read())
        assert HTTP_DRAIN < time.monotonic() - began < HTTP_DRAIN + LATE
        for door in (asking, streaming, polling, watching, half):
            assert door.rest() == b""
        assert process.wait() == 0


def test_a_stream_of_parts_that_does_not_end_ends_with_an_error(served: Served) -> None:
    async def parts(_: Any) -> AsyncGenerator[Any, None]:
        yield 1
        await asyncio.Event().wait()

    with Connection(served.addresses[0]) as door:
        guest = register(door)
        served.mesh.generators[guest] = parts
        door.send(question(guest, "?stream=1"))
        assert door.read_head()[0] == 200
        assert door.read_chunk() == b"event: part\ndata: 1\n\n"
        served.wait(served.servers[0].stop())
        event, _, data = door.read_chunk().partition(b"\ndata: ")
        assert event == b"event: error"
        problem = strict.loads(data)
        assert (problem["status"], problem["code"]) == (503, "leaving")
        assert door.read_chunk() == b""
        assert door.rest() == b""
