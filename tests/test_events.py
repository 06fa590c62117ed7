"""The event hub: numbers, what is kept, and readers that do not keep up."""

from __future__ import annotations

import asyncio
import gc
from itertools import count

from p2pmesh.events import BUFFER_MAX, KEPT_MAX, EventHub, EventReader
from p2pmesh.protocol.types import Event, LeaderStalled, Lost


def hub() -> EventHub:
    ticks = count(100)
    return EventHub(lambda: float(next(ticks)))


def stalled(name: str = "x") -> Event:
    return LeaderStalled(leader_id=name)


async def read(reader: EventReader, number: int) -> list[Event]:
    return [await anext(reader) for _ in range(number)]


async def test_events_are_numbered_from_one_and_timed() -> None:
    events = hub()
    reader = events.subscribe()
    events.publish(stalled("a"))
    events.publish(stalled("b"))
    first, second = await read(reader, 2)
    assert first == LeaderStalled(leader_id="a", seq=1, t=100.0)
    assert second == LeaderStalled(leader_id="b", seq=2, t=101.0)


async def test_a_reader_waits_for_what_comes_next() -> None:
    events = hub()
    waiting = asyncio.ensure_future(anext(events.subscribe()))
    await asyncio.sleep(0)
    assert not waiting.done()
    events.publish(stalled())
    assert (await waiting).seq == 1


async def test_a_reader_sees_nothing_older_than_itself_unless_it_asks() -> None:
    events = hub()
    for _ in range(5):
        events.publish(stalled())
    fresh, resumed = events.subscribe(), events.subscribe(after=3)
    events.publish(stalled())
    assert [e.seq for e in await read(fresh, 1)] == [6]
    assert [e.seq for e in await read(resumed, 3)] == [4, 5, 6]


async def test_a_number_of_an_earlier_run_resumes_from_all_that_is_kept() -> None:
    events = hub()
    events.publish(stalled())
    assert [e.seq for e in await read(events.subscribe(after=900), 1)] == [1]


async def test_only_the_latest_are_kept() -> None:
    events = hub()
    for _ in range(KEPT_MAX + 7):
        events.publish(stalled())
    assert (await anext(events.subscribe(after=0))).seq == 8


async def test_a_reader_that_does_not_keep_up_is_told_how_many_it_lost() -> None:
    events = hub()
    slow, quick = events.subscribe(), events.subscribe()
    for number in range(BUFFER_MAX + 3):
        events.publish(stalled())
        assert (await anext(quick)).seq == number + 1
    lost, first = await read(slow, 2)
    assert lost == Lost(n=3, seq=3, t=first.t)
    assert first.seq == 4
    assert len(await read(slow, BUFFER_MAX - 1)) == BUFFER_MAX - 1


async def test_readers_end_after_the_last_event() -> None:
    events = hub()
    reader = events.subscribe()
    events.publish(stalled())
    events.close()
    assert [e.seq async for e in reader] == [1]
    assert [e async for e in events.subscribe()] == []


async def test_closing_a_reader_ends_who_waits_on_it() -> None:
    reader = hub().subscribe()

    async def collect() -> list[Event]:
        return [e async for e in reader]

    collecting = asyncio.ensure_future(collect())
    await asyncio.sleep(0)
    await reader.aclose()
    assert await collecting == []


async def test_a_forgotten_reader_costs_nothing() -> None:
    events = hub()
    events.subscribe()
    gc.collect()
    assert len(events._readers) == 0


async def test_a_cancelled_wait_loses_no_event() -> None:
    events = hub()
    reader = events.subscribe()
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    events.publish(stalled())
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await anext(reader)).seq == 1
