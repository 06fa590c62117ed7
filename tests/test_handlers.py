"""Handlers and readers, with what arrives made by hand and the outcomes recorded."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from p2pmesh import failures, reading
from p2pmesh.errors import ConfigError, QueueFull, RemoteError
from p2pmesh.handlers import THREADS_MAX, Handlers
from p2pmesh.messages import AgentMessage, decode, encode
from p2pmesh.protocol.types import Envelope, MessageArrived, RequestArrived

VIA = b"\xaa" * 32


class Outcomes:
    """What the runner reported, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.refuse_answers: Exception | None = None
        self.credit = 0  # parts that may follow another
        self._changed = asyncio.Event()

    async def starting(self, message_id: str) -> None:
        pass

    def completed(self, message_id: str, ok: bool, reason: str) -> None:
        self._say("completed", message_id, ok, reason)

    def responded(self, request: int, payload: bytes | None, error: str, detail: str) -> None:
        value = None if payload is None else decode(payload)
        self._say("responded", request, value, error, detail)

    def part(self, request: int, payload: bytes) -> bool:
        self.credit -= 1
        self._say("part", request, decode(payload))
        return self.credit >= 0

    def parts_ended(self, request: int) -> None:
        self._say("parts_ended", request)

    def answered(self, query: Envelope, payload: bytes) -> None:
        if self.refuse_answers is not None:
            raise self.refuse_answers
        self._say("answered", query.message_id, decode(payload))

    def _say(self, *what: Any) -> None:
        self.said.append(what)
        self._changed.set()

    async def until(self, number: int) -> list[tuple[Any, ...]]:
        """The first ``number`` reports."""
        async with asyncio.timeout(20):
            while len(self.said) < number:
                self._changed.clear()
                await self._changed.wait()
        assert len(self.said) == number
        return self.said


@pytest.fixture
async def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
async def handlers(outcomes: Outcomes) -> AsyncIterator[Handlers]:
    handlers = Handlers()
    handlers.outcomes = outcomes
    yield handlers
    handlers.stop()


def envelope(message_id: str, source: str, type: str, payload: Any) -> Envelope:
    data = payload if isinstance(payload, bytes) else encode(payload)
    return Envelope(message_id, source, "me", type, data, None, 1)


def message(
    message_id: str, payload: Any = None, *, source: str = "a", type: str = "Note", attempt: int = 1
) -> MessageArrived:
    return MessageArrived(envelope(message_id, source, type, payload), VIA, attempt)


def request(
    number: int,
    payload: Any = None,
    *,
    source: str = "a",
    type: str = "Query",
    streams: bool = False,
) -> RequestArrived:
    query = envelope(f"q{number}", source, type, payload)
    return RequestArrived(number, query, VIA, 30.0, streams)


@pytest.mark.parametrize("target", ["me", None])
async def test_a_handler_that_fails_in_the_same_way_is_traced_once(
    handlers: Handlers,
    outcomes: Outcomes,
    caplog: pytest.LogCaptureFixture,
    target: str | None,
) -> None:
    @functools.partial(handlers.register, "Note")
    async def fail(note: AgentMessage) -> None:
        if note.attempt == 4:
            raise KeyError("elsewhere")
        raise ValueError(f"no.\n{note.attempt}")

    note = msgspec.structs.replace(envelope("m1", "a", "Note", 1), target=target)
    for attempt in range(1, 7):
        handlers.message_arrived(MessageArrived(note, VIA, attempt))
        await outcomes.until(attempt)
    what = "the handler of 'Note' failed on message m1 from a"
    end = "" if target is None else ", a dead letter where it was sent ('p2pmesh dead-letters' "
    end += "" if target is None else "lists those)"
    assert caplog.messages == [
        f"{what} (attempt 1 of 6, again in 0.1 s)",
        f"{what} (attempt 2 of 6, again in 0.4 s): ValueError: no. 2",
        f"{what} (attempt 3 of 6, again in 1.6 s): ValueError: no. 3",
        f"{what} (attempt 4 of 6, again in 6.4 s)",
        f"{what} (attempt 5 of 6, again in 25.6 s)",
        f"{what} (attempt 6 of 6: it is given up{end}): ValueError: no. 6",
    ]
    traced = [bool(record.exc_info) for record in caplog.records]
    assert traced == [True, False, False, True, True, False]


async def test_failures_that_are_remembered_have_a_maximum(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.register("Note", lambda _: 1 / 0)
    for number in range(failures.REMEMBERED_MAX + 5):
        handlers.message_arrived(message(f"m{number}"))
    await outcomes.until(failures.REMEMBERED_MAX + 5)
    places = handlers._failures._places
    assert len(places) == failures.REMEMBERED_MAX
    assert "m4" not in places


class Gate:
    """A handler that stands still at each message until it is let through."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self._doors: dict[str, asyncio.Event] = {}

    async def __call__(self, message: AgentMessage) -> str:
        self.started.append(message.message_id)
        try:
            await self._door(message.message_id).wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.message_id)
            raise
        return f"did {message.message_id}"

    def let(self, message_id: str) -> None:
        self._door(message_id).set()

    def _door(self, message_id: str) -> asyncio.Event:
        return self._doors.setdefault(message_id, asyncio.Event())


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


# --- messages -------------------------------------------------------------------


async def test_a_message_is_completed_when_its_handler_returns(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    got: list[AgentMessage] = []

    async def handle(message: AgentMessage) -> None:
        got.append(message)

    handlers.register("Note", handle)
    handlers.message_arrived(message("m1", {"n": 1}, attempt=2))
    assert await outcomes.until(1) == [("completed", "m1", True, "")]
    assert (got[0].payload, got[0].attempt, got[0].via) == ({"n": 1}, 2, "aa" * 32)


async def test_messages_of_one_sender_run_in_order_and_one_at_a_time(handlers: Handlers) -> None:
    gate = Gate()
    handlers.register("Note", gate)
    for number in (1, 2, 3):
        handlers.message_arrived(message(f"m{number}"))
    await settle()
    assert gate.started == ["m1"]
    gate.let("m1")
    await settle()
    assert gate.started == ["m1", "m2"]


async def test_handlers_that_never_wait_leave_the_loop_its_turn(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    done_when_the_loop_had_a_turn: list[int] = []

    async def handle(message: AgentMessage) -> None:
        if message.message_id == "m0":
            asyncio.get_running_loop().call_soon(
                lambda: done_when_the_loop_had_a_turn.append(len(outcomes.said))
            )
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass

    handlers.register("Note", handle)
    for number in range(100):
        handlers.message_arrived(message(f"m{number}"))
    await outcomes.until(100)
    assert done_when_the_loop_had_a_turn[0] < 50


async def test_senders_do_not_wait_for_each_other(handlers: Handlers) -> None:
    gate = Gate()
    handlers.register("Note", gate)
    handlers.message_arrived(message("m1", source="a"))
    handlers.message_arrived(message("m2", source="b"))
    await settle()
    assert gate.started == ["m1", "m2"]


async def test_concurrency_lets_messages_of_one_sender_run_side_by_side(
    handlers: Handlers,
) -> None:
    gate = Gate()
    handlers.register("Note", gate, 2)
    for number in (1, 2, 3):
        handlers.message_arrived(message(f"m{number}"))
    await settle()
    assert gate.started == ["m1", "m2"]
    gate.let("m2")
    await settle()
    assert gate.started == ["m1", "m2", "m3"]


async def test_the_order_of_a_sender_holds_across_types(handlers: Handlers) -> None:
    wide, other = Gate(), Gate()
    handlers.register("Wide", wide, 9)
    handlers.register("Note", other)
    handlers.message_arrived(message("m1", type="Wide"))
    handlers.message_arrived(message("m2", type="Note"))
    handlers.message_arrived(message("m3", type="Wide"))
    await settle()
    assert (wide.started, other.started) == (["m1"], [])
    wide.let("m1")
    await settle()
    assert (wide.started, other.started) == (["m1"], ["m2"])


async def test_a_handler_that_raises_is_reported_and_the_next_message_runs(
    handlers: Handlers, outcomes: Outcomes, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(message: AgentMessage) -> None:
        if message.payload == "bad":
            raise KeyError("x")

    handlers.register("Note", handle)
    handlers.message_arrived(message("m1", "bad"))
    handlers.message_arrived(message("m2", "good"))
    with caplog.at_level(logging.WARNING, "p2pmesh"):
        assert await outcomes.until(2) == [
            ("completed", "m1", False, "KeyError: 'x'"),
            ("completed", "m2", True, ""),
        ]
    assert "m1" in caplog.text
    assert "KeyError" in caplog.text


async def test_what_a_query_by_message_returns_is_answered_before_it_is_completed(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def handle(message: AgentMessage) -> str:
        return message.payload.upper()

    handlers.register("Query", handle)
    handlers.message_arrived(message("m1", "hi", type="Query"))
    assert await outcomes.until(2) == [("answered", "m1", "HI"), ("completed", "m1", True, "")]


async def test_an_answer_without_room_is_tried_again_later(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    outcomes.refuse_answers = QueueFull("no room")

    async def handle(message: AgentMessage) -> int:
        return 1

    handlers.register("Query", handle)
    handlers.message_arrived(message("m1", type="Query"))
    assert await outcomes.until(1) == [("completed", "m1", False, "no room")]


async def test_a_payload_that_cannot_be_read_is_refused_and_runs_nothing(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.register("Note", Gate())
    handlers.register("Query", Gate())
    handlers.message_arrived(message("m1", b"\xc1"))
    handlers.request_arrived(request(7, b"\xc1"))
    first, second = await outcomes.until(2)
    assert first[:3] == ("completed", "m1", False)
    assert second[:4] == ("responded", 7, None, "refused")


async def test_a_handler_for_everything_takes_what_nobody_else_does(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    catch_all, own = Gate(), Gate()
    handlers.register(None, catch_all)
    handlers.register("Note", own)
    handlers.message_arrived(message("m1", type="Note"))
    handlers.message_arrived(message("m2", type="Other", source="b"))
    await settle()
    assert (own.started, catch_all.started) == (["m1"], ["m2"])


async def test_a_message_waits_for_its_handler(handlers: Handlers, outcomes: Outcomes) -> None:
    handlers.message_arrived(message("m1"))
    gate = Gate()
    gate.let("m1")
    handlers.register("Note", gate)
    assert await outcomes.until(1) == [("completed", "m1", True, "")]


async def test_a_type_that_nobody_takes_is_one_warning(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "UNCLAIMED_AFTER", 0)
    monkeypatch.setattr(reading, "NAMED_MAX", 2)
    for number, type in enumerate(["Note", "Note", "Other", "Third"]):
        handlers.message_arrived(message(f"m{number}", type=type))
    await settle()
    assert len(caplog.messages) == 2
    handlers.message_arrived(message("m5"))
    await settle()
    end = "waits: no handler or reader takes this type; on(None) takes all"
    assert caplog.messages == [f"a 'Note' from a {end}", f"a 'Other' from a {end}"]


async def test_a_handler_that_comes_soon_after_its_message_is_no_warning(
    handlers: Handlers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "UNCLAIMED_AFTER", 0)
    handlers.message_arrived(message("m1"))
    handlers.register("Note", lambda _: None)
    await settle()
    assert caplog.messages == []


async def test_what_is_over_before_it_started_does_not_start(handlers: Handlers) -> None:
    handlers.message_arrived(message("m0", type="Later"))
    gate = Gate()
    handlers.register("Note", gate)
    for number in (1, 2, 3):
        handlers.message_arrived(message(f"m{number}"))
    handlers.withdrawn(("m0", "m2"))
    gate.let("m1")
    handlers.register("Later", gate)
    await settle()
    assert gate.started == ["m1", "m3"]


# --- requests -------------------------------------------------------------------


async def test_a_request_is_answered_with_what_the_handler_returns(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def handle(message: AgentMessage) -> dict[str, Any]:
        return {"got": message.payload}

    handlers.register("Query", handle)
    handlers.request_arrived(request(1, [1, 2]))
    assert await outcomes.until(1) == [("responded", 1, {"got": [1, 2]}, "", "")]


async def test_a_request_that_nobody_handles_is_refused_at_once(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.request_arrived(request(1))
    assert outcomes.said == [("responded", 1, None, "no_handler", "nobody handles 'Query' there")]


async def test_a_request_does_not_wait_behind_messages(handlers: Handlers) -> None:
    slow, quick = Gate(), Gate()
    handlers.register("Note", slow)
    handlers.register("Query", quick)
    handlers.message_arrived(message("m1"))
    handlers.request_arrived(request(1))
    await settle()
    assert (slow.started, quick.started) == (["m1"], ["q1"])


def stops(_: AgentMessage) -> Any:
    return next(iter(()))  # raises what no future can have


async def closes(_: AgentMessage) -> AsyncIterator[int]:
    yield 1
    raise GeneratorExit


@pytest.mark.parametrize(
    ("handler", "named"), [(stops, "StopIteration"), (closes, "GeneratorExit")]
)
async def test_what_python_keeps_for_iterators_is_a_failure_like_any_other(
    handlers: Handlers, outcomes: Outcomes, handler: Any, named: str
) -> None:
    handlers.register("Query", handler)
    handlers.request_arrived(request(1))
    handlers.request_arrived(request(2))  # behind it in the same lane
    handlers.message_arrived(message("m1", type="Query"))
    said = await outcomes.until(3)
    answers = [each for each in said if each[0] == "responded"]
    assert [each[1:4] for each in answers] == [(1, None, "failed"), (2, None, "failed")]
    assert all(named in each[4] for each in answers)
    ((_, message_id, ok, reason),) = [each for each in said if each[0] == "completed"]
    assert (message_id, ok) == ("m1", False)
    assert named in reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), ("failed", "ValueError: no")),
        (RemoteError("4", "try again"), ("4", "try again")),
        (asyncio.CancelledError(), ("failed", "the handler was cancelled")),
        (OSError("no \udcff here"), ("failed", "OSError: no ? here")),
        (RemoteError("\ud800", "\ud800"), ("?", "?")),
        (ValueError("x" * 9999), ("failed", f"ValueError: {'x' * 488}")),
    ],
)
async def test_what_a_handler_raises_reaches_the_asker(
    handlers: Handlers,
    outcomes: Outcomes,
    error: BaseException,
    expected: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "p2pmesh")  # a tester's report carries no surrogates

    async def handle(message: AgentMessage) -> None:
        raise error

    handlers.register("Query", handle)
    handlers.request_arrived(request(1))
    assert await outcomes.until(1) == [("responded", 1, None, *expected)]


async def test_an_answer_that_cannot_be_carried_is_the_handlers_failure(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def handle(message: AgentMessage) -> object:
        return {1, 2}

    handlers.register("Query", handle)
    handlers.request_arrived(request(1))
    (said,) = await outcomes.until(1)
    assert said[3:] == ("failed", "TypeError: payload is of type set, which cannot be carried")


async def test_a_cancelled_request_leaves_the_next_one_unharmed(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    started = asyncio.Event()

    async def handle(message: AgentMessage) -> str:
        started.set()
        if message.message_id == "q1":
            await asyncio.sleep(3600)
        async with asyncio.timeout(20):
            await asyncio.sleep(0)
        return "unharmed"

    handlers.register("Query", handle)
    handlers.request_arrived(request(1))
    handlers.request_arrived(request(2))
    await started.wait()
    handlers.request_cancelled(1)
    assert await outcomes.until(1) == [("responded", 2, "unharmed", "", "")]


async def test_a_cancelled_request_is_dropped_unread_and_cancelled_while_it_runs(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    gate = Gate()
    handlers.register("Query", gate)
    for number in (1, 2, 3):
        handlers.request_arrived(request(number))
    await settle()
    handlers.request_cancelled(2)
    handlers.request_cancelled(1)
    handlers.request_cancelled(99)
    await settle()
    assert (gate.started, gate.cancelled) == (["q1", "q3"], ["q1"])
    gate.let("q3")
    assert await outcomes.until(1) == [("responded", 3, "did q3", "", "")]


# --- plain functions ---------------------------------------------------------------


async def test_a_plain_function_runs_beside_the_loop_with_the_callers_context(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    setting = contextvars.ContextVar("setting", default="none")
    setting.set("mine")
    threads: list[threading.Thread] = []

    def handle(message: AgentMessage) -> str:
        threads.append(threading.current_thread())
        return setting.get()

    handlers.register("Query", handle)
    handlers.request_arrived(request(1))
    assert await outcomes.until(1) == [("responded", 1, "mine", "", "")]
    assert threads[0] is not threading.main_thread()


async def test_plain_functions_run_in_a_bounded_number_of_threads(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    release = threading.Event()
    running = threading.Semaphore(0)

    def handle(message: AgentMessage) -> None:
        running.release()
        release.wait(20)

    handlers.register("Query", handle)
    for number in range(3 * THREADS_MAX):
        handlers.request_arrived(request(number, source=f"s{number}"))
    for _ in range(THREADS_MAX):
        assert await asyncio.to_thread(running.acquire, timeout=20)
    assert not running.acquire(blocking=False)
    release.set()
    await outcomes.until(3 * THREADS_MAX)


async def test_a_plain_function_may_hand_back_something_to_await(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def answer() -> str:
        return "awaited"

    handlers.register("Query", lambda message: answer())
    handlers.request_arrived(request(1))
    assert await outcomes.until(1) == [("responded", 1, "awaited", "", "")]


# --- what cannot be registered -------------------------------------------------------


async def test_a_generator_goes_on_when_there_is_credit(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def parts(message: AgentMessage) -> AsyncIterator[int]:
        for number in range(5):
            yield number

    handlers.register("Query", parts)
    outcomes.credit = 2
    handlers.request_arrived(request(1, streams=True))
    await outcomes.until(3)
    await settle()
    assert outcomes.said == [("part", 1, 0), ("part", 1, 1), ("part", 1, 2)]
    outcomes.credit = 9
    handlers.may_go_on(1)
    handlers.may_go_on(99)  # of nobody
    assert (await outcomes.until(6))[3:] == [("part", 1, 3), ("part", 1, 4), ("parts_ended", 1)]


async def test_a_generator_that_does_not_hear_its_cancellation_is_closed_at_its_next_part(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    running, closed = asyncio.Event(), asyncio.Event()

    async def deaf(message: AgentMessage) -> AsyncIterator[int]:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                running.set()
                await asyncio.Event().wait()
            yield 1
        finally:
            closed.set()

    handlers.register("Query", deaf)
    outcomes.credit = 9
    handlers.request_arrived(request(1, streams=True))
    await running.wait()
    handlers.request_cancelled(1)
    await closed.wait()
    handlers.request_arrived(request(2, streams=True))  # its lane is free again
    running.clear()
    await running.wait()
    assert outcomes.said == []


async def test_a_plain_generator_is_closed_behind_the_step_that_it_is_in(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    stepping, may_end = threading.Event(), threading.Event()
    story: list[str] = []
    closed = threading.Event()

    def parts(message: AgentMessage) -> Iterator[int]:
        try:
            stepping.set()
            may_end.wait(20)
            story.append("step ended")
            yield 1
            story.append("went on")
        finally:
            story.append("closed")
            closed.set()

    handlers.register("Query", parts)
    handlers.request_arrived(request(1, streams=True))
    await asyncio.to_thread(stepping.wait, 20)
    handlers.request_cancelled(1)
    await settle()
    may_end.set()
    await asyncio.to_thread(closed.wait, 20)
    assert story == ["step ended", "closed"]
    assert outcomes.said == []


async def test_a_type_has_one_handler_and_one_reader(handlers: Handlers) -> None:
    handlers.register("Query", Gate())
    with pytest.raises(ConfigError, match="already"):
        handlers.register("Query", Gate())
    reader = handlers.reader("Note")
    with pytest.raises(ConfigError, match="already"):
        handlers.reader("Note")
    await reader.aclose()


async def test_nonsense_is_no_handler(handlers: Handlers) -> None:
    with pytest.raises(ConfigError, match="no function"):
        handlers.register("Query", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        handlers.register("Query", Gate(), 0)


# --- readers --------------------------------------------------------------------------


async def test_a_message_that_was_read_is_completed_by_its_acknowledgement(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.message_arrived(message("m1", "x"))
    reader = handlers.reader("Note")
    got = await anext(reader)
    assert (got.payload, outcomes.said) == ("x", [])
    await got.ack()
    await got.ack()
    assert outcomes.said == [("completed", "m1", True, "")]


async def test_a_reader_waits_for_the_next_message_and_ends_when_closed(
    handlers: Handlers,
) -> None:
    reader = handlers.reader(None)
    first = asyncio.ensure_future(anext(reader))
    await settle()
    handlers.message_arrived(message("m1", type="Anything"))
    assert (await first).message_id == "m1"
    rest = asyncio.ensure_future(anext(reader, None))
    await settle()
    await reader.aclose()
    assert await rest is None


async def test_what_was_not_acknowledged_goes_to_the_next_reader(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    for number in (1, 2):
        handlers.message_arrived(message(f"m{number}"))
    reader = handlers.reader("Note")
    await anext(reader)
    await reader.aclose()
    again = handlers.reader("Note")
    assert [(await anext(again)).message_id for _ in range(2)] == ["m1", "m2"]


async def test_a_loop_left_with_break_gives_back_what_it_did_not_acknowledge(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    for number in (1, 2):
        handlers.message_arrived(message(f"m{number}"))
    async for got in handlers.reader("Note"):
        kept = got
        break
    gc.collect()
    await kept.ack()
    assert outcomes.said == [("completed", "m1", True, "")]
    assert (await anext(handlers.reader("Note"))).message_id == "m2"


async def test_a_reader_of_one_type_comes_before_handlers_for_everything(
    handlers: Handlers,
) -> None:
    gate = Gate()
    handlers.register(None, gate)
    reader = handlers.reader("Note")
    handlers.message_arrived(message("m1", type="Note"))
    handlers.message_arrived(message("m2", type="Other"))
    await settle()
    assert (await anext(reader)).message_id == "m1"
    assert gate.started == ["m2"]


async def test_a_reader_passes_over_what_cannot_be_read(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.message_arrived(message("m1", b"\xc1"))
    handlers.message_arrived(message("m2"))
    assert (await anext(handlers.reader("Note"))).message_id == "m2"
    assert outcomes.said[0][:3] == ("completed", "m1", False)


# --- the end ----------------------------------------------------------------------------


async def test_after_stop_nothing_runs_and_nothing_is_reported(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    gate = Gate()
    handlers.register("Note", gate)
    for number in (1, 2):
        handlers.message_arrived(message(f"m{number}"))
    handlers.message_arrived(message("m3", type="Other"))
    reader = handlers.reader("Other")
    await settle()
    handlers.stop()
    handlers.message_arrived(message("m4"))
    await settle()
    assert (gate.started, gate.cancelled, outcomes.said) == (["m1"], ["m1"], [])
    assert [got async for got in reader] == []


# --- leaving ---------------------------------------------------------------------------


async def test_what_runs_may_end_and_nothing_starts_once_it_is_to_finish(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()
    ran: list[Any] = []

    @functools.partial(handlers.register, "Note")
    async def slow(message: AgentMessage) -> None:
        ran.append(message.payload)
        started.set()
        await may_end.wait()

    handlers.message_arrived(message("1", "runs"))
    handlers.message_arrived(message("2", "waits"))
    await asyncio.wait_for(started.wait(), 20)
    handlers.finish()
    handlers.message_arrived(message("3", "comes later", source="b"))
    finished = asyncio.create_task(handlers.finished())
    await asyncio.sleep(0)
    assert not finished.done()
    may_end.set()
    await asyncio.wait_for(finished, 20)
    assert outcomes.said == [("completed", "1", True, "")]
    assert ran == ["runs"]


async def test_requests_are_answered_while_it_finishes(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    handlers.register("Query", lambda message: message.payload)
    handlers.finish()
    handlers.request_arrived(request(1, "hi"))
    assert await outcomes.until(1) == [("responded", 1, "hi", "", "")]
    await asyncio.wait_for(handlers.finished(), 20)


async def test_whoever_waits_in_a_handler_for_all_to_finish_does_not_wait_for_himself(
    handlers: Handlers, outcomes: Outcomes
) -> None:
    async def leave(_: AgentMessage) -> None:
        handlers.finish()
        await handlers.finished()
        await asyncio.create_task(handlers.finished())

    handlers.register("Note", leave)
    handlers.message_arrived(message("1"))
    assert await outcomes.until(1) == [("completed", "1", True, "")]


async def test_a_handler_that_does_not_end_is_cancelled_and_its_message_named(
    handlers: Handlers, outcomes: Outcomes, caplog: pytest.LogCaptureFixture
) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: AgentMessage) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    handlers.register("Note", endless)
    handlers.message_arrived(message("m-1", source="ada-1"))
    await asyncio.wait_for(started.wait(), 20)
    handlers.finish()
    handlers.stop()
    await asyncio.wait_for(cancelled.wait(), 20)
    (line,) = caplog.messages
    assert "message m-1 ('Note' from ada-1) is not finished" in line
    assert outcomes.said == []
