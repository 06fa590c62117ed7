"""Streamed answers as applications use them: real nodes in one process, over loopback."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from p2pmesh import (
    AgentMessage,
    ConfigError,
    Node,
    NotStarted,
    PeerUnreachable,
    RemoteError,
    RequestTimeout,
    UnknownTarget,
)
from p2pmesh.protocol import limits

HANG = 20.0


class Worker:
    """An agent that streams, and what became of its generators."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.made = 0
        self.closed = asyncio.Event()
        self.may_go_on = asyncio.Event()
        node.on("Query")(self.answer)

    async def answer(self, message: AgentMessage) -> AsyncIterator[Any]:
        """Payload: how many, or None for ever."""
        try:
            while message.payload is None or self.made < message.payload:
                self.made += 1
                yield self.made
        finally:
            self.closed.set()


@pytest.fixture
async def nodes(mesh: str) -> AsyncIterator[tuple[Node, Node]]:
    options: dict[str, Any] = {"mdns": False, "bind": ["127.0.0.1"], "port": 0, "http": None}
    async with AsyncExitStack() as stack, asyncio.timeout(2 * HANG):
        asker, worker = (Node(name, mesh=mesh, **options) for name in ("asker", "worker"))
        for node in (asker, worker):
            await stack.enter_async_context(node)
        await asker.wait_for(name="worker", timeout=HANG)
        yield asker, worker


@pytest.fixture
def asker(nodes: tuple[Node, Node]) -> Node:
    return nodes[0]


@pytest.fixture
def worker(nodes: tuple[Node, Node]) -> Worker:
    return Worker(nodes[1])


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(HANG):
        await event.wait()


async def test_what_a_generator_yields_comes_in_order_and_then_the_end(
    asker: Node, worker: Worker
) -> None:
    parts = [part async for part in asker.stream("worker", 1000)]
    assert parts == list(range(1, 1001))
    assert worker.closed.is_set()


async def test_parts_come_as_they_are_made(asker: Node, nodes: tuple[Node, Node]) -> None:
    go_on = asyncio.Event()

    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[str]:
        yield "first"
        await go_on.wait()
        yield "second"

    async with asker.stream("worker", None) as parts:
        assert await anext(parts) == "first"
        go_on.set()
        assert [part async for part in parts] == ["second"]
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_a_node_streams_to_itself(asker: Node) -> None:
    Worker(asker)
    assert [part async for part in asker.stream("asker", 200)] == list(range(1, 201))


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_an_answer_that_comes_whole_is_the_only_part(
    asker: Node, nodes: tuple[Node, Node], kind: str
) -> None:
    def whole(message: AgentMessage) -> str:
        return message.payload.upper()

    async def as_coroutine(message: AgentMessage) -> str:
        return whole(message)

    nodes[1].on("Query")(whole if kind == "def" else as_coroutine)
    assert [part async for part in asker.stream("worker", "hello")] == ["HELLO"]


async def test_who_asks_for_a_whole_answer_gets_the_list_of_its_parts(
    asker: Node, worker: Worker
) -> None:
    assert (await asker.request("worker", 3)).payload == [1, 2, 3]


async def test_a_list_of_parts_over_the_limit_is_refused_and_its_generator_closed(
    asker: Node, nodes: tuple[Node, Node]
) -> None:
    made: list[int] = []
    closed = asyncio.Event()

    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[bytes]:
        try:
            while True:
                made.append(1)
                yield bytes(limits.PAYLOAD_MAX // 4)
        finally:
            closed.set()

    with pytest.raises(RemoteError, match="stream") as caught:
        await asker.request("worker", None)
    assert caught.value.code == "too_large"
    assert closed.is_set()
    assert len(made) == 4


async def test_a_plain_generator_streams_from_a_thread(
    asker: Node, nodes: tuple[Node, Node]
) -> None:
    loop = threading.get_ident()
    closed = asyncio.Event()
    main = asyncio.get_running_loop()

    @nodes[1].on("Query")
    def answer(message: AgentMessage) -> Iterator[bool]:
        try:
            while True:
                yield threading.get_ident() != loop
        finally:
            main.call_soon_threadsafe(closed.set)

    read = 0
    async with asker.stream("worker", None) as parts:
        async for is_in_a_thread in parts:
            assert is_in_a_thread
            read += 1
            if read == 100:
                break
    await soon(closed)


@pytest.mark.parametrize("how", ["break", "aclose", "with", "cancel", "forget"])
async def test_breaking_off_cancels_the_far_handler(asker: Node, worker: Worker, how: str) -> None:
    match how:
        case "break":
            async for part in asker.stream("worker", None):
                if part == 5:
                    break
        case "aclose":
            async with aclosing(asker.stream("worker", None)) as parts:
                assert await anext(parts) == 1
        case "with":
            async with asker.stream("worker", None) as kept:
                assert await anext(kept) == 1
        case "cancel":
            reading = asyncio.Event()

            async def read() -> None:
                async for _ in asker.stream("worker", None):
                    reading.set()

            task = asyncio.create_task(read())
            await soon(reading)
            task.cancel()
            await asyncio.wait([task])
        case "forget":
            forgotten = asker.stream("worker", None)
            assert await anext(forgotten) == 1
            del forgotten
            gc.collect()
    await soon(worker.closed)
    assert worker.made < 5000


async def test_a_generator_is_not_run_ahead_of_its_reader(asker: Node, worker: Worker) -> None:
    async with asker.stream("worker", None) as parts:
        for wanted in range(1, 301):
            assert await anext(parts) == wanted
            assert worker.made <= wanted + limits.PARTS_AHEAD_MAX
    await soon(worker.closed)


async def test_what_a_generator_raises_comes_after_its_parts(
    asker: Node, nodes: tuple[Node, Node]
) -> None:
    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[Any]:
        yield 1
        yield 2
        if message.payload == "unreadable":
            yield {1, 2}
        raise ValueError("no more")

    for payload, words in (("raise", "ValueError: no more"), ("unreadable", "is of type set")):
        parts = asker.stream("worker", payload)
        assert [await anext(parts), await anext(parts)] == [1, 2]
        with pytest.raises(RemoteError, match=words):
            await anext(parts)


async def test_the_timeout_is_for_the_next_part(asker: Node, nodes: tuple[Node, Node]) -> None:
    closed = asyncio.Event()

    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    parts = asker.stream("worker", None, timeout=0.2)
    assert await anext(parts) == 1
    with pytest.raises(RequestTimeout, match=r"0\.2 s"):
        await anext(parts)
    await soon(closed)


async def test_a_target_that_leaves_ends_it_after_the_parts_that_came(
    asker: Node, nodes: tuple[Node, Node]
) -> None:
    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    parts = asker.stream("worker", None)
    got = [await anext(parts), await anext(parts)]
    leaving = asyncio.create_task(nodes[1].leave())
    with pytest.raises(PeerUnreachable):
        await anext(parts)
    assert got == [1, 2]
    await leaving


async def test_an_asker_that_ends_tells_its_readers(mesh: str) -> None:
    async with Node("one", mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None) as node:
        worker = Worker(node)
        parts = node.stream("one", None)
        assert await anext(parts) == 1
    with pytest.raises((NotStarted, PeerUnreachable)):
        async for _ in parts:
            pass
    await soon(worker.closed)


async def test_what_cannot_be_asked_is_refused_before_or_while_it_is_read(asker: Node) -> None:
    with pytest.raises(ConfigError):
        asker.stream("worker", None, timeout=0)
    with pytest.raises(TypeError):
        asker.stream("worker", object())
    with pytest.raises(UnknownTarget):
        await anext(asker.stream("nobody", None, timeout=0.1))


async def test_one_task_reads_at_a_time(asker: Node, nodes: tuple[Node, Node]) -> None:
    @nodes[1].on("Query")
    async def answer(message: AgentMessage) -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    async with asker.stream("worker", None) as parts:
        first = asyncio.create_task(anext(parts))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reads at a time"):
            await anext(parts)
        first.cancel()
        await asyncio.wait([first])


async def test_a_generator_that_handles_a_message_runs_to_its_end(
    asker: Node, nodes: tuple[Node, Node]
) -> None:
    got: list[Any] = []

    @nodes[1].on("Notification")
    async def take(message: AgentMessage) -> AsyncIterator[int]:
        got.append(message.payload)
        yield 1
        got.append("end")

    delivery = await asker.send("worker", "told")
    await delivery.done(timeout=HANG)
    assert got == ["told", "end"]
