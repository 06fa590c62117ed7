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
from typing import Any, TypeAlias, TypeVar

from p2pmesh.arguments import refuse_unless_callable
from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol.types import Demoted, Elected, LeaderInfo, Token

log = logging.getLogger("p2pmesh.leadership")

F = TypeVar("F", bound=Callable[..., Any])
_Callback: TypeAlias = Callable[[Any], Any]


class Leadership:
    """One node's view of who leads; ``node.leadership``."""

    def __init__(self, info: Callable[[], LeaderInfo], token: Callable[[], Token]) -> None:
        self._info = info
        self._token = token
        self._on_elected: list[_Callback] = []
        self._on_demoted: list[_Callback] = []
        self._tasks: set[asyncio.Task[Any]] = set()

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
        authority begins: it leads and, with ``quorum=n``, sees n live members.
        A decorator.  Raises ConfigError."""
        refuse_unless_callable(callback, "token")
        self._on_elected.append(callback)
        return callback

    def on_demoted(self, callback: F) -> F:
        """Call it with the reason when that ends: another leads, the quorum is lost, the
        machine slept, it leaves.  Never called twice without ``on_elected`` between.  A decorator.
        Raises ConfigError."""
        refuse_unless_callable(callback, "reason")
        self._on_demoted.append(callback)
        return callback

    def changed(self, event: Elected | Demoted) -> None:
        match event:
            case Elected(token=token):
                self._call(self._on_elected, token)
            case Demoted(reason=reason):
                self._call(self._on_demoted, reason)

    def stop(self) -> None:
        """Cancel callbacks that still run."""
        for task in self._tasks:
            task.cancel()

    def _call(self, callbacks: list[_Callback], value: object) -> None:
        for callback in callbacks:
            try:
                result = callback(value)
            except Exception:
                log.exception("the callback %r failed", callback)
                continue
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(_run(callback, result))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


async def _run(callback: _Callback, result: Any) -> None:
    try:
        await result
    except Exception:
        log.exception("the callback %r failed", callback)
