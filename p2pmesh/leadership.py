"""Leadership as the agent sees it: who leads, may I act on it, and when that changes.

``token()`` is what makes it safe: pass it with everything a leader does, and let
whoever receives it refuse a lower one than it has seen.  The callbacks are for
starting and stopping work; between two nodes they keep no order.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

from p2pmesh.arguments import refuse_unless_callable
from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol.types import Demoted, Elected, LeaderInfo, Token

log = logging.getLogger("p2pmesh.leadership")

F = TypeVar("F", bound=Callable[..., Any])
_Callback: TypeAlias = Callable[[Any], Any]
#: The task of the callback that runs here, and in what it starts.
_own: ContextVar[asyncio.Task[None] | None] = ContextVar("_own", default=None)


class Leadership:
    """One node's view of who leads; ``node.leadership``."""

    def __init__(self, info: Callable[[], LeaderInfo], token: Callable[[], Token]) -> None:
        self._info = info
        self._token = token
        self._on_elected: list[_Callback] = []
        self._on_demoted: list[_Callback] = []
        self._running: dict[asyncio.Task[None], _Callback] = {}
        self._one_over = asyncio.Event()
        self._held: Token | None = None  # what was told by on_elected, and not yet ended
        self._loop: asyncio.AbstractEventLoop | None = None  # in which that was

    @property
    def epoch(self) -> int | None:
        """The leader's epoch; None until there is a claim."""
        return self._info().epoch

    @property
    def authoritative(self) -> bool:
        """Whether this node leads and its policy accepts it."""
        try:
            self._token()
        except NotAuthoritative:
            return False
        return True

    def token(self) -> Token:
        """The fencing token of this node's leadership.  Raises NotAuthoritative."""
        return self._token()

    def on_elected(self, callback: F) -> F:
        """Call it (a function or a coroutine function) with the token when this node's
        authority begins: it leads and, with ``quorum=n``, sees n members alive and not suspect.
        Where it has begun already, soon.  A decorator.  Raises ConfigError."""
        refuse_unless_callable(callback, "token")
        self._on_elected.append(callback)
        if (token := self._held) is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._catch_up, callback, token)
        return callback

    def on_demoted(self, callback: F) -> F:
        """Call it with the reason when that ends: another leads, the quorum is lost, the
        process did not run for long, it leaves.  Never called twice without
        ``on_elected`` between.  A decorator.  Raises ConfigError."""
        refuse_unless_callable(callback, "reason")
        self._on_demoted.append(callback)
        return callback

    def changed(self, event: Elected | Demoted) -> None:
        match event:
            case Elected(token=token):
                self._held, self._loop = token, asyncio.get_running_loop()
                self._call(self._on_elected, token)
            case Demoted(reason=reason):
                self._held = None
                self._call(self._on_demoted, reason)

    def leaves(self) -> None:
        """The node is asked to leave.  If a callback does so it waits for that, so nobody
        may wait for it, nor cancel it."""
        if (task := _own.get()) is not None:
            self._over(task)

    async def finish(self, within: float) -> None:
        """Let callbacks that run end, so many seconds at most; then cancel them."""
        try:
            async with asyncio.timeout(within):
                while self._running:
                    self._one_over.clear()
                    await self._one_over.wait()
        except TimeoutError:
            pass
        for task, callback in self._running.items():
            log.warning(
                "the callback %r did not end in time for its node, and is cancelled", callback
            )
            task.cancel()

    def _catch_up(self, callback: _Callback, token: Token) -> None:
        if self._held is token:
            self._call([callback], token)

    def _call(self, callbacks: list[_Callback], value: object) -> None:
        for callback in tuple(callbacks):  # one that is registered by another catches up
            try:
                result = callback(value)
            except (Exception, asyncio.CancelledError):  # a result of what was cancelled, say
                log.exception("the callback %r failed", callback)
                continue
            if inspect.isawaitable(result):
                task = asyncio.get_running_loop().create_task(_run(callback, result))
                self._running[task] = callback
                task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for it any more."""
        self._running.pop(task, None)
        self._one_over.set()


async def _run(callback: _Callback, result: Any) -> None:
    _own.set(asyncio.current_task())
    try:
        await result
    except Exception:
        log.exception("the callback %r failed", callback)
