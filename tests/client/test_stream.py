"""Answers in parts, by both clients: from nodes in memory, and byte by byte."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from p2pmesh import errors
from p2pmesh.client import parts as client_parts
from p2pmesh.client.parts import Parts
from tests.client.conftest import Connect
from tests.client.scripted import HANG_UP, Scripted, http, scripted
from tests.http.serving import Served, serve

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Served]:
    with serve(2) as served:
        yield served


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with scripted() as start:
        yield start


def stream(*frames: bytes, is_whole: bool = True) -> bytes:
    """An answer in chunks; not whole: it ends in the middle, with its connection."""
    head = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames)
    return head + chunks + (b"0\r\n\r\n" if is_whole else b"")


def part(value: Any) -> bytes:
    return b"event: part\ndata: %b\n\n" % json.dumps(value).encode()


END = b'event: end\ndata: {"parts": 0}\n\n'


async def read(client: Any, target: str = "agent-1", **options: Any) -> list[Any]:
    async with aclosing(client.stream("me", target, 3, **options)) as parts:
        return [each async for each in parts]


async def test_parts_come_in_order_and_then_the_end(mesh: Served, connect: Connect) -> None:
    async def count(payload: Any) -> AsyncGenerator[Any, None]:
        for number in range(payload):
            yield {"n": number}

    mesh.mesh.generators["agent-1"] = count
    client = connect(mesh.servers[0].url)
    assert await read(client) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert await read(client) == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_leaving_off_closes_the_far_generator(mesh: Served, connect: Connect) -> None:
    closed = threading.Event()

    async def endless(payload: Any) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield payload
                await asyncio.sleep(0)
        finally:
            closed.set()

    mesh.mesh.generators["agent-2"] = endless
    async with aclosing(connect(mesh.servers[0].url).stream("me", "agent-2", 7)) as parts:
        assert await anext(parts) == 7
        assert await anext(parts) == 7
    assert await asyncio.to_thread(closed.wait, 20)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (errors.RemoteError("failed", "no more", "x"), errors.RemoteError),
        (errors.PeerUnreachable("agent-1 failed"), errors.PeerUnreachable),
        (errors.RequestTimeout("agent-1 did not answer"), errors.RequestTimeout),
        (errors.AmbiguousTarget("agent-1", ("a", "b")), errors.AmbiguousTarget),
        (errors.QueueFull("too many requests"), errors.QueueFull),
    ],
)
@pytest.mark.parametrize("count", [0, 2])
async def test_what_it_ends_with_is_raised_behind_the_parts(
    mesh: Served, connect: Connect, error: errors.MeshError, raised: type[Exception], count: int
) -> None:
    async def fail(payload: Any) -> AsyncGenerator[Any, None]:
        for number in range(count):
            yield number
        raise error

    mesh.mesh.generators["agent-1"] = fail
    parts = connect(mesh.servers[0].url).stream("me", "agent-1", None)
    assert [await anext(parts) for _ in range(count)] == list(range(count))
    with pytest.raises(raised) as caught:
        await anext(parts)
    if isinstance(error, errors.RemoteError):
        assert caught.value.code == "failed"  # type: ignore[attr-defined]


async def test_who_is_unknown_is_said_with_names_like_it(mesh: Served, connect: Connect) -> None:
    with pytest.raises(errors.UnknownTarget) as caught:
        await read(connect(mesh.servers[0].url), "nobody")
    assert caught.value.nearest == ("agent-1",)


async def test_what_no_node_could_take_is_refused_here(connect: Connect) -> None:
    client = connect("http://127.0.0.1:9")
    for timeout in (0, 301, "30"):
        with pytest.raises(errors.ConfigError, match="timeout"):
            await read(client, timeout=timeout)
    with pytest.raises(TypeError):
        async for _ in client.stream("me", "agent-1", {1, 2}):
            pass


async def test_a_node_that_is_gone_before_its_answer_is_replaced_and_not_behind(
    start: Start, connect: Connect
) -> None:
    gone: Scripted = await start(HANG_UP)
    full: Scripted = await start(http({"detail": "starting"}, 503))
    there: Scripted = await start(stream(part(1), END))
    assert await read(connect(gone.url, full.url, there.url)) == [1]
    dies: Scripted = await start(stream(part(1), b"event: pa", is_whole=False))
    parts = connect(dies.url, there.url).stream("me", "agent-1", None)
    assert await anext(parts) == 1
    with pytest.raises(errors.PeerUnreachable, match="broke off"):
        await anext(parts)


async def test_a_node_that_falls_silent_is_given_up(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shell in ("aio", "blocking"):
        monkeypatch.setattr(f"p2pmesh.client.{shell}.SILENCE_MAX", 0.2)
    node: Scripted = await start(
        stream(part(1), is_whole=False).replace(b"Connection: close\r\n", b"")
    )
    parts = connect(node.url).stream("me", "agent-1", None)
    assert await anext(parts) == 1
    with pytest.raises(errors.PeerUnreachable, match="says nothing"):
        await anext(parts)


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_frames_are_read_out_of_pieces_of_any_size(size: int) -> None:
    said = b":\n\n" + part("a\n\nb") + b":\n\n" + part(None) + END + part("behind the end")
    parts = Parts("u", lambda problem: AssertionError())  # type: ignore[arg-type, return-value]
    read = [
        each
        for at in range(0, len(said), size)
        if not parts.is_over
        for each in parts.feed(said[at : at + size])
    ]
    assert (read, parts.is_over) == (["a\n\nb", None], True)


def test_what_is_no_part_is_an_error_and_what_never_ends_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_parts, "ANSWER_MAX", 1000)
    for said in (b"event: part\ndata: {\n\n", b"event: part\ndata: " + bytes(2000)):
        parts = Parts("u", lambda problem: AssertionError())  # type: ignore[arg-type, return-value]
        with pytest.raises(errors.RemoteError, match="does not answer as"):
            list(parts.feed(said))
