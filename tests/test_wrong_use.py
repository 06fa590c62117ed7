"""Wrong use is an error that names the thing and the fix, and costs no message.

Each row is a sentence and an attempt; whatever it is, a message that was accepted
before it is delivered after it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import pytest

from p2pmesh import AgentMessage, Delivery, Node, NotStarted

HANG = 20.0


class World(NamedTuple):
    """Two nodes that met; b begins to handle a Job when it may."""

    a: Node
    b: Node
    may: asyncio.Event
    got: list[Any]


class Row(NamedTuple):
    attempt: Callable[[World], Any]
    error: type[Exception]
    says: str  # a pattern


@pytest.fixture
async def world(mesh: str) -> AsyncIterator[World]:
    a, b = (
        Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http="127.0.0.1:0")
        for name in ("a", "b")
    )
    may, got = asyncio.Event(), list[Any]()

    @b.on("Job")
    async def work(message: AgentMessage) -> None:
        await may.wait()
        got.append(message.payload)

    async with a, b:
        await a.wait_for(name="b", timeout=HANG)
        yield World(a, b, may, got)


async def each_is_refused(world: World, rows: Mapping[str, Row]) -> None:
    """At once or when it is awaited; and what was accepted before is delivered."""
    for sentence, row in rows.items():
        before = await world.a.send("b", sentence, type="Job")
        error = await raised_by(row.attempt, world)
        assert isinstance(error, row.error), f"{sentence}: {error!r}"
        assert re.search(row.says, str(error)), f"{sentence}: {error}"
        world.may.set()
        await before.done(HANG)
        world.may.clear()
    assert world.got == list(rows)


async def raised_by(attempt: Callable[[World], Any], world: World) -> Exception | None:
    try:
        async with asyncio.timeout(HANG):
            outcome = attempt(world)
            if isinstance(outcome, Awaitable):
                await outcome
    except Exception as error:
        return error
    return None


# --- threads and loops --------------------------------------------------------------------

IN_A_THREAD: Mapping[str, Callable[[World], Any]] = {
    "a thread sends without waiting": lambda w: w.a.send_nowait("b", 1),
    "a thread lists members": lambda w: w.a.members(),
    "a thread asks who leads": lambda w: w.a.leader,
    "a thread asks for the token": lambda w: w.a.leadership.token(),
    "a thread reads events": lambda w: w.a.events(),
    "a thread reads messages": lambda w: w.a.messages(),
    "another loop sends": lambda w: asyncio.run(w.a.send("b", 1)),
    "another loop asks": lambda w: asyncio.run(w.a.request("b", 1)),
    "another loop broadcasts": lambda w: asyncio.run(w.a.broadcast(1)),
    "another loop waits for somebody": lambda w: asyncio.run(w.a.wait_for(name="b")),
    "another loop waits for the start": lambda w: asyncio.run(w.a.joined()),
    "another loop serves": lambda w: asyncio.run(w.a.serve_forever()),
    "another loop makes it leave": lambda w: asyncio.run(w.a.leave()),
}


async def test_threads_and_other_loops_are_sent_to_the_loop_of_the_node(world: World) -> None:
    says = "this thread or event loop: .*run_coroutine_threadsafe"

    def row(attempt: Callable[[World], Any]) -> Row:
        return Row(lambda w: asyncio.to_thread(attempt, w), NotStarted, says)

    await each_is_refused(world, {name: row(attempt) for name, attempt in IN_A_THREAD.items()})


async def test_a_delivery_is_awaited_in_the_loop_of_its_node(world: World) -> None:
    delivery = await world.a.send("b", 1, type="Job")
    with pytest.raises(NotStarted, match="call it where it was entered"):
        await asyncio.to_thread(lambda: asyncio.run(delivery.done(HANG)))
    world.may.set()
    await delivery.done(HANG)


async def test_a_thread_may_have_the_loop_send_and_look_at_what_is_fixed(world: World) -> None:
    loop = asyncio.get_running_loop()

    def work() -> str:
        sending = asyncio.run_coroutine_threadsafe(world.a.send("b", "threaded", type="Job"), loop)
        assert isinstance(sending.result(HANG), Delivery)
        return world.a.instance_id

    assert (await asyncio.to_thread(work)).startswith("a-")
    world.may.set()
    await (await world.a.send("b", "after", type="Job")).done(HANG)
    assert world.got == ["threaded", "after"]


async def test_what_has_left_may_leave_again_in_another_loop(world: World) -> None:
    await world.a.leave()
    assert await asyncio.to_thread(lambda: asyncio.run(world.a.leave())) == ()
