"""Lines to a reader that is slow, stopped or gone, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from p2pmesh.cli.lines import LineWriter

Factory = Callable[[], asyncio.AbstractEventLoop]
on_both_loops = pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):  # some tests close it themselves
            os.close(descriptor)


def on_loop(
    factory: Factory, descriptor: int, use: Callable[[LineWriter], Awaitable[None]]
) -> None:
    async def main() -> None:
        await use(LineWriter(descriptor))

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@on_both_loops
def test_lines_arrive_whole_and_in_order(factory: Factory, pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe

    async def use(writer: LineWriter) -> None:
        await asyncio.gather(*(writer.write(b"%d" % number) for number in range(100)))
        assert not writer.gone.is_set()

    on_loop(factory, descriptor, use)
    assert os.read(reader, 65536).split() == [b"%d" % number for number in range(100)]


@on_both_loops
def test_a_descriptor_that_does_not_block_is_waited_for(
    factory: Factory, pipe: tuple[int, int]
) -> None:
    reader, descriptor = pipe
    os.set_blocking(descriptor, False)
    line = b"x" * (2 * fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ))

    async def use(writer: LineWriter) -> None:
        writing = asyncio.create_task(writer.write(line))
        read = 0
        while read <= len(line):
            read += len(await asyncio.to_thread(os.read, reader, 65536))
        await writing

    on_loop(factory, descriptor, use)
    assert not os.get_blocking(descriptor)


@on_both_loops
def test_a_reader_that_stopped_holds_up_neither_the_loop_nor_our_end(
    factory: Factory, pipe: tuple[int, int]
) -> None:
    _, descriptor = pipe
    size = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)

    async def use(writer: LineWriter) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.write(b"x" * (2 * size)), 0.05)
        assert not writer.gone.is_set()

    on_loop(factory, descriptor, use)  # ends, though the line never did


@on_both_loops
def test_a_reader_that_goes_away_is_noticed_before_anything_is_written(
    factory: Factory, pipe: tuple[int, int]
) -> None:
    reader, descriptor = pipe

    async def use(writer: LineWriter) -> None:
        os.close(reader)
        await asyncio.wait_for(writer.gone.wait(), 10)
        with pytest.raises(BrokenPipeError):
            await writer.write(b"x")

    on_loop(factory, descriptor, use)


def test_a_full_disk_is_the_writers_to_know() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)

    async def use(writer: LineWriter) -> None:
        with pytest.raises(OSError, match="No space left"):
            await writer.write(b"x")

    on_loop(asyncio.new_event_loop, descriptor, use)
    os.close(descriptor)
