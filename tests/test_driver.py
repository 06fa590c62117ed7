"""The driver: every input followed by all actions and one timer, with a core made of
paper and real sockets under it."""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from p2pmesh.driver import Driver
from p2pmesh.errors import NotStarted, StoreFull
from p2pmesh.lag import BOUNDS
from p2pmesh.protocol.types import (
    AskUnacked,
    Close,
    Dial,
    DialOutcome,
    Instant,
    Life,
    Persist,
    Stop,
    Write,
)
from p2pmesh.transport.clock import instant

HANG = 20.0


class PaperCore:
    """Records its inputs, and wants done what the test wants."""

    def __init__(self) -> None:
        self.inputs: list[tuple[str, Any]] = []
        self.drains = 0
        self.todo: list[Any] = []
        self.due: float | None = None
        self._changed = asyncio.Event()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def take(at: Instant, *arguments: Any) -> None:
            assert abs(at.now - instant().now) < 5
            self.inputs.append((name, arguments))
            self._changed.set()

        return take

    def handle_timer(self, at: Instant) -> None:
        assert self.due is not None
        assert at.now >= self.due - 0.01
        self.due = None
        self.inputs.append(("handle_timer", ()))
        self._changed.set()

    def next_timer(self) -> float | None:
        return self.due

    def actions(self) -> list[Any]:
        self.drains += 1
        todo, self.todo = self.todo, []
        return todo

    def names(self) -> list[str]:
        return [name for name, _ in self.inputs]

    async def until(self, name: str) -> Any:
        """The arguments of the first input of this name, which is forgotten."""
        async with asyncio.timeout(HANG):
            while name not in self.names():
                self._changed.clear()
                await self._changed.wait()
        return self.inputs.pop(self.names().index(name))[1]


class Rig:
    def __init__(self, **options: Any) -> None:
        self.core = PaperCore()
        self.outcomes: list[Any] = []
        settings = {"admits": lambda address: True, "persist": None, "store": None} | options
        self.driver = Driver(outcome=self.outcomes.append, **settings)

    def want(self, *actions: Any) -> None:
        """Have the core want this done, and let it say so."""
        self.core.todo += actions
        self.driver.command(self.core.poked)


@pytest.fixture
async def rig() -> AsyncIterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(**options))
        made[-1].driver.start(made[-1].core)  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        await each.driver.aclose()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def connected(one: Rig, other: Rig) -> tuple[int, int]:
    """A link from ``one`` to ``other``: its number at each."""
    (address,) = await other.driver.transport.listen(["127.0.0.1"], 0)
    one.want(Dial(7, address, 5.0))
    ours, _, dial = await one.core.until("link_opened")
    theirs, _, inbound = await other.core.until("link_opened")
    assert (dial, inbound) == (7, None)
    return ours, theirs


async def test_bytes_go_from_core_to_core_and_an_end_is_told(rig: Callable[..., Rig]) -> None:
    one, other = rig(), rig()
    ours, theirs = await connected(one, other)
    one.want(Write(ours, b"hello"))
    assert await other.core.until("bytes_received") == (theirs, b"hello")
    other.want(Close(theirs))
    assert await one.core.until("link_ended") == (ours,)


async def test_a_dial_that_fails_says_how(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.want(Dial(3, "127.0.0.1:1", 5.0))
    assert await one.core.until("dial_failed") == (3, DialOutcome.REFUSED)


async def test_many_commands_of_one_turn_are_drained_once(rig: Callable[..., Rig]) -> None:
    one = rig()
    await settle()
    before = one.core.drains
    for number in range(100):
        one.driver.command(one.core.send, number)
    assert one.core.drains == before
    await settle()
    assert one.core.drains == before + 1
    assert one.core.names().count("send") == 100


async def test_what_is_not_about_links_is_handed_on_in_order(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.want("first", "second")
    await settle()
    assert one.outcomes == ["first", "second"]


async def test_the_timer_fires_when_it_is_due_and_earlier_when_it_is_moved_forward(
    rig: Callable[..., Rig],
) -> None:
    one = rig()
    one.core.due = instant().now + 3600
    one.want()
    await settle()
    one.core.due = instant().now + 0.01
    one.want()
    await one.core.until("handle_timer")
    assert "loop_lagged" not in one.core.names()


async def test_how_late_timers_run_is_counted(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.core.due = instant().now + 0.01
    one.want()
    await settle()
    time.sleep(0.2)  # noqa: ASYNC251 - the loop is held up
    await one.core.until("handle_timer")
    lag = one.driver.lag
    assert lag.total > 0.15
    assert sum(lag.counts) == sum(lag.counts[bisect_left(BOUNDS, 0.15) :]) == 1


async def test_a_timer_asked_for_too_late_is_no_lag_of_the_loop(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.core.due = instant().now - 1.0
    one.want()
    await one.core.until("handle_timer")
    assert "loop_lagged" not in one.core.names()


async def test_a_loop_that_stood_still_is_told_before_anything_else(
    rig: Callable[..., Rig],
) -> None:
    one, other = rig(), rig()
    ours, _ = await connected(one, other)
    other.core.due = instant().now + 0.01
    other.want()
    await settle()
    other.core.inputs.clear()
    one.driver.transport.write(ours, b"read after the loop stood still")
    _stand_still(0.4)
    await other.core.until("handle_timer")
    assert other.core.names() == ["loop_lagged", "bytes_received"]
    (late,) = other.core.inputs[0][1]
    assert 0.3 < late < 5


def _stand_still(seconds: float) -> None:
    time.sleep(seconds)


async def test_who_is_not_admitted_never_reaches_the_core(rig: Callable[..., Rig]) -> None:
    one, other = rig(), rig(admits=lambda address: not address.startswith("127."))
    (address,) = await other.driver.transport.listen(["127.0.0.1"], 0)
    one.want(Dial(7, address, 5.0))
    await one.core.until("link_opened")
    await one.core.until("link_ended")
    assert other.core.names() == ["start"]
    assert other.driver.refused_off_link == 1


async def test_what_the_peers_kernel_has_not_is_told_at_once(rig: Callable[..., Rig]) -> None:
    one, other = rig(), rig()
    ours, _ = await connected(one, other)
    one.want(AskUnacked(ours), AskUnacked(9999))
    link, unacked = await one.core.until("kernel_unacked")
    assert (link, unacked) == (ours, 0)
    assert "kernel_unacked" not in one.core.names()


async def test_what_is_to_be_kept_is_written_in_order_in_threads(
    rig: Callable[..., Rig],
) -> None:
    written: list[int | None] = []
    release = threading.Event()

    def persist(life: Life, epoch: int | None) -> None:
        assert threading.current_thread() is not threading.main_thread()
        release.wait(HANG)
        written.append(epoch)
        if epoch == 2:
            raise StoreFull("no room")

    one = rig(persist=persist)
    life = Life(1, 2, 3)
    one.want(Persist(11, life, 1), Persist(12, life, 2), Persist(13, life, 3))
    await settle()
    assert "stored" not in one.core.names()
    release.set()
    assert [await one.core.until("stored") for _ in range(3)] == [
        (11, True),
        (12, False),
        (13, True),
    ]
    assert written == [1, 2, 3]


async def test_without_a_store_everything_is_kept(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.want(Persist(11, Life(1, 2, 3), 1))
    assert await one.core.until("stored") == (11, True)


async def test_after_stop_nothing_reaches_the_core(rig: Callable[..., Rig]) -> None:
    one, other = rig(), rig()
    ours, _ = await connected(one, other)
    other.want(Stop("left"))
    await settle()
    assert other.outcomes == [Stop("left")]
    before = list(other.core.inputs)
    one.want(Write(ours, b"too late"), Close(ours))
    await settle()
    with pytest.raises(NotStarted):
        other.driver.command(other.core.send)
    await other.driver.aclose()
    assert other.core.inputs == before
