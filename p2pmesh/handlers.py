"""Running the agent's handlers: which message, when, where, and what becomes of it.

Two kinds of work come in.  A *message* is kept until it is completed: the messages
of one sender start in their order, one at a time unless its handler was
registered with ``concurrency``.  A *request* is not kept: it never waits behind
messages, only behind earlier requests of the same sender to the same handler.

    message ─► per sender, in order   ─► handler ─► completed(ok | reason)
    request ─► per sender and handler ─► handler ─► responded(payload | error)

``async def`` runs on the loop, ``def`` in a thread of a bounded pool.  A generator of
either kind answers in parts: one after the other where the asker takes them so, and
the next only when there is credit; else as one list.  A request
that nobody handles is refused; a message waits for its handler, or for a reader
(``reading``).  What a handler raises is logged (``failures``) and told to the other side;
retrying and giving up are the core's.

Invariants: at most one run of a message at a time; after ``stop`` nothing starts
and nothing is reported.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from p2pmesh.arguments import refuse_unless_callable, refuse_unless_count, refuse_unless_type
from p2pmesh.errors import ConfigError, MeshError, RemoteError
from p2pmesh.failures import Failures
from p2pmesh.generators import parts_of
from p2pmesh.messages import AgentMessage, UnreadablePayload, encode, message_of
from p2pmesh.protocol.limits import PAYLOAD_MAX
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.types import Envelope, MessageArrived, NodeId, RequestArrived
from p2pmesh.reading import MessageReader, Readers

log = logging.getLogger("p2pmesh.handlers")

Handler: TypeAlias = Callable[[AgentMessage], Any]
THREADS_MAX: Final = min(32, (os.cpu_count() or 1) + 4)
#: After this many seconds of handlers that did not wait for anything, the loop gets
#: its turn.
_TURN: Final = 0.002
DETAIL_MAX: Final = 500  # characters of an exception that the other side is told
#: Stands for an answer whose parts were passed on.
_STREAMED: Final = object()
_TOO_LARGE: Final = (
    f"the parts of the answer take more than {PAYLOAD_MAX:,} bytes together: take them one by "
    "one, with stream()"
)


class Outcomes(Protocol):
    """What is reported when something ended; the node tells the core."""

    async def starting(self, message_id: str) -> None:
        """Returns once it is on record that the message is about to be handled."""
        ...

    def completed(self, message_id: str, ok: bool, reason: str) -> None: ...
    def responded(self, request: int, payload: Payload | None, error: str, detail: str) -> None: ...
    def part(self, request: int, payload: Payload) -> bool:
        """The next part of a streamed answer; False: no more until ``may_go_on``."""
        ...

    def parts_ended(self, request: int) -> None: ...
    def answered(self, query: Envelope, payload: Payload) -> None:
        """The handler's answer to a Query that came as a message, not as a request."""
        ...


@dataclass(slots=True, eq=False)
class _Registration:
    handler: Handler
    is_async: bool  # called on the loop: a coroutine, or an async generator
    concurrency: int


@dataclass(slots=True, eq=False)
class _Work:
    """One message or request, from its arrival to its outcome."""

    envelope: Envelope
    via: NodeId
    registration: _Registration
    attempt: int = 1
    request: int | None = None  # None: a message
    streams: bool = False  # who asked takes an answer in parts
    has_credit: asyncio.Event = field(default_factory=asyncio.Event)  # for one more part
    is_cancelled: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_answered(self) -> bool:
        """Does anybody get what the handler returns?"""
        return self.request is not None or self.envelope.type == "Query"


#: The work around the running code, if any; also around the tasks that a handler makes.
_around: Final[contextvars.ContextVar[_Work | None]] = contextvars.ContextVar(
    "p2pmesh_work", default=None
)


@dataclass(slots=True, eq=False)
class _Lane:
    """Work that must start in its order, and the tasks that do it one after the
    other: what takes no time needs no task of its own."""

    waiting: deque[_Work] = field(default_factory=deque)
    attendants: int = 0
    running: int = 0
    runs: _Registration | None = None  # whose, while any runs

    @property
    def may_start_next(self) -> bool:
        if not self.waiting:
            return False
        registration = self.waiting[0].registration
        if self.running == 0:
            return True
        return self.runs is registration and self.running < registration.concurrency

    @property
    def needs_attendant(self) -> bool:
        return self.may_start_next and self.attendants < self.waiting[0].registration.concurrency


class Handlers:
    """The handlers and readers of one agent, and what they are doing."""

    #: Whom outcomes are reported to; set before anything arrives.
    outcomes: Outcomes

    def __init__(self) -> None:
        self._registered: dict[str | None, _Registration] = {}
        self._readers = Readers(self._completed, self.message_arrived, self._starting)
        self._lanes: dict[Hashable, _Lane] = {}
        self._requests: dict[int, _Work] = {}  # not yet answered
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._handled: dict[_Work, None] = {}  # messages whose handler runs
        self._one_ended = asyncio.Event()
        self._failures = Failures()
        self._is_finishing = False
        self._is_stopped = False

    # --- registering --------------------------------------------------------------

    def register(self, kind: str | None, handler: Handler, concurrency: int = 1) -> None:
        """``handler`` runs for every message of type ``kind``; None: for those that
        neither a handler nor a reader of their own type takes.  Raises ConfigError."""
        refuse_unless_type("type", kind)
        if kind in self._registered:
            raise ConfigError(f"there is a handler for {kind!r} already: one handles a type")
        if self._readers.reads(kind):
            raise ConfigError(f"messages of {kind!r} are being read: handle a type, or read it")
        refuse_unless_count("concurrency", concurrency)
        refuse_unless_callable(handler, "message")
        is_async = any(
            inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
            for function in (handler, type(handler).__call__)  # or an object that is called
        )
        self._registered[kind] = _Registration(handler, is_async, concurrency)
        self._readers.offer_unclaimed()

    def reader(self, type: str | None) -> MessageReader:
        """A reader of the messages of ``type`` that no handler takes; None: of all
        that nobody else takes.  Raises ConfigError where there is one already, or
        a handler of this type."""
        refuse_unless_type("type", type)
        if type in self._registered:
            raise ConfigError(f"messages of {type!r} have a handler: a reader would get none")
        return self._readers.open(type)

    # --- what arrives ---------------------------------------------------------------

    def message_arrived(self, arrived: MessageArrived) -> None:
        envelope = arrived.envelope
        registration = self._registered.get(envelope.type)
        if registration is None and not self._readers.reads(envelope.type):
            registration = self._registered.get(None)
        if registration is None:
            self._readers.put(arrived)
        else:
            work = _Work(envelope, arrived.via, registration, arrived.attempt)
            self._queue(envelope.source, work)

    def request_arrived(self, arrived: RequestArrived) -> None:
        envelope = arrived.envelope
        registration = self._registered.get(envelope.type) or self._registered.get(None)
        if registration is None:
            detail = f"nobody handles {envelope.type!r} there"
            self.outcomes.responded(arrived.request, None, "no_handler", detail)
            return
        work = _Work(
            envelope, arrived.via, registration, request=arrived.request, streams=arrived.streams
        )
        self._requests[arrived.request] = work
        self._queue((envelope.source, registration), work)

    def request_cancelled(self, request: int) -> None:
        """The asker gave up: unread it is dropped, running it is cancelled."""
        work = self._requests.pop(request, None)
        if work is not None:
            work.is_cancelled = True
            if work.task is not None:
                work.task.cancel()

    def may_go_on(self, request: int) -> None:
        """There is credit for the next part of this answer."""
        work = self._requests.get(request)
        if work is not None:
            work.has_credit.set()

    def withdrawn(self, message_ids: tuple[str, ...]) -> None:
        """Over before they started: expired, or acknowledged over HTTP."""
        gone = set(message_ids)
        self._readers.forget(gone)
        for lane in self._lanes.values():
            for work in lane.waiting:
                if work.request is None and work.envelope.message_id in gone:
                    work.is_cancelled = True

    # --- running --------------------------------------------------------------------

    def _queue(self, key: Hashable, work: _Work) -> None:
        if not self._is_stopped:
            lane = self._lanes.setdefault(key, _Lane())
            lane.waiting.append(work)
            self._staff(key, lane)

    def _staff(self, key: Hashable, lane: _Lane) -> None:
        if lane.needs_attendant:
            lane.attendants += 1
            task = asyncio.get_running_loop().create_task(self._attend(key, lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attend(self, key: Hashable, lane: _Lane) -> None:
        """Do what waits in a lane until there is nothing that may start."""
        loop = asyncio.get_running_loop()
        turn_began = loop.time()
        try:
            while lane.may_start_next and not self._is_stopped:
                work = lane.waiting.popleft()
                if work.is_cancelled or (self._is_finishing and work.request is None):
                    continue
                lane.running += 1
                lane.runs = work.registration
                self._staff(key, lane)
                try:
                    await self._run(work)
                finally:
                    lane.running -= 1
                if loop.time() - turn_began > _TURN:
                    await asyncio.sleep(0)
                    turn_began = loop.time()
        finally:
            lane.attendants -= 1
            if not lane.waiting and not lane.attendants and self._lanes.get(key) is lane:
                del self._lanes[key]

    async def _run(self, work: _Work) -> None:
        """Run one handler and report what became of it; nothing is raised."""
        envelope = work.envelope
        work.task = asyncio.current_task()
        _around.set(work)
        if work.request is None:
            self._handled[work] = None
        try:
            message = message_of(envelope, work.via, work.attempt)
            if work.request is None:
                await self.outcomes.starting(envelope.message_id)
            context = contextvars.copy_context()
            answer = await self._call(work.registration, message, context)
            parts = parts_of(answer, self._pool, context)
            if parts is not None:
                answer = await self._take(work, parts)
            self._succeeded(work, answer)
        except asyncio.CancelledError:
            if work.is_cancelled and work.task is not None:
                work.task.uncancel()  # it was this work that was cancelled, not the task
            elif not self._is_stopped:
                self._failed(work, "failed", "the handler was cancelled")
        except UnreadablePayload as error:
            self._failed(work, "refused", str(error))
        except RemoteError as error:  # the handler's own choice of words
            self._failed(work, error.code, error.detail)
        except (Exception, GeneratorExit) as error:
            if _is_closed(error):
                raise
            if work.request is not None:
                self._failures.of_request(envelope)
            else:
                self._failures.of_message(envelope, work.attempt, error)
            self._failed(work, "failed", f"{type(error).__name__}: {error}")
        finally:
            work.task = None
            if work.request is None:
                del self._handled[work]
                self._one_ended.set()

    async def _call(
        self, registration: _Registration, message: AgentMessage, context: contextvars.Context
    ) -> Any:
        if registration.is_async:
            answer = registration.handler(message)
            return await answer if isinstance(answer, Awaitable) else answer
        result = await asyncio.get_running_loop().run_in_executor(
            self._pool(), context.run, _in_thread, registration.handler, message
        )
        # A `def` may hand back something to await, as a lambda around an async def does.
        return await result if isinstance(result, Awaitable) else result

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS_MAX, "p2pmesh-handler")
        return self._threads

    async def _take(self, work: _Work, parts: AsyncGenerator[Any, None]) -> Any:
        """Pass on the parts of an answer as they come; or, where it is wanted whole, the
        list of them."""
        whole: list[Any] = []
        size = 0
        async with aclosing(parts):
            async for part in parts:
                data = encode(part)
                if work.streams:
                    await self._pass_on(work, data)
                elif work.is_answered:
                    whole.append(part)
                    size += len(data)
                    if size > PAYLOAD_MAX:
                        raise RemoteError("too_large", _TOO_LARGE)
        return _STREAMED if work.streams else whole

    async def _pass_on(self, work: _Work, part: Payload) -> None:
        """One part; returns when there is credit for another."""
        assert work.request is not None
        if work.is_cancelled:  # and its generator would not hear of it
            raise asyncio.CancelledError
        work.has_credit.clear()
        if not self.outcomes.part(work.request, part):
            await work.has_credit.wait()

    def _succeeded(self, work: _Work, answer: Any) -> None:
        if self._is_stopped:
            return
        if work.request is None:
            if work.is_answered:
                payload = encode(answer)
                try:
                    self.outcomes.answered(work.envelope, payload)
                except MeshError as error:  # no room for the answer: try again later
                    self._failed(work, "failed", str(error))
                    return
            self._failures.forget(work.envelope.message_id)
            self._completed(work.envelope.message_id, True, "")
        elif work.request in self._requests:
            if answer is _STREAMED:
                del self._requests[work.request]
                self.outcomes.parts_ended(work.request)
                return
            payload = encode(answer)
            del self._requests[work.request]
            self.outcomes.responded(work.request, payload, "", "")

    def _failed(self, work: _Work, code: str, detail: str) -> None:
        if self._is_stopped:
            return
        code, detail = (_as_text(part)[:DETAIL_MAX] for part in (code, detail))
        if work.request is None:
            self._completed(work.envelope.message_id, False, detail or code)
        elif self._requests.pop(work.request, None) is not None:
            self.outcomes.responded(work.request, None, code, detail)

    async def _starting(self, message_id: str) -> None:
        await self.outcomes.starting(message_id)

    def _completed(self, message_id: str, ok: bool, reason: str) -> None:
        if not self._is_stopped:
            self.outcomes.completed(message_id, ok, reason)

    # --- the end ----------------------------------------------------------------------

    def finish(self) -> None:
        """Start no message any more.  What runs may end; requests go on."""
        self._is_finishing = True

    async def finished(self) -> None:
        """Until no message is being handled, but for the one whose handler calls this:
        a handler may make its node leave."""
        own = _around.get()
        while any(work is not own for work in self._handled):
            self._one_ended.clear()
            await self._one_ended.wait()

    def stop(self) -> None:
        """Start nothing more and cancel what runs; readers end."""
        self._is_stopped = True
        own = _around.get()
        for work in self._handled:
            if work is not own:
                log.warning(
                    "message %s (%r from %s) is not finished: its handler did not end before "
                    "this node did, and is cancelled",
                    work.envelope.message_id, work.envelope.type, work.envelope.source,
                )  # fmt: skip
        self._lanes.clear()
        for task in self._tasks:
            task.cancel()
        self._readers.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _in_thread(handler: Handler, message: AgentMessage) -> Any:
    try:
        return handler(message)
    except StopIteration as error:  # no future can have it
        raise RuntimeError("the handler raised StopIteration") from error


def _is_closed(error: BaseException) -> bool:
    """Is this no handler's own doing, but the end of an unfinished coroutine whose loop
    has ended?"""
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is None
    except RuntimeError:
        return True


def _as_text(text: str) -> str:
    """What an exception says may hold half a character, as file names do."""
    return text.encode(errors="replace").decode()
