"""Drives one core: brings it what happens, and does what it wants done.

After every input the core's actions are drained and performed, and one timer is
armed; that is the whole contract (``docs/protocol-core.md``).

    socket ─► link_opened · bytes_received · link_ended ─┐
    timer  ─► handle_timer                               ├─► core ─► actions ─► socket,
    user   ─► command(core.commands.send, …)             ┘            store, outcome()

Bytes are drained at once.  Commands are drained at the end of the loop's turn, so
that a hundred sends in a row travel in one frame.

Invariants: every input carries the time it happened; a late timer is reported as
loop lag before anything else is; after ``Stop`` nothing reaches the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from p2pmesh.errors import MeshError, NotStarted
from p2pmesh.lag import Lag
from p2pmesh.loops import refuse_outside
from p2pmesh.protocol.mesh import Mesh
from p2pmesh.protocol.timing import LAG_TOLERANCE
from p2pmesh.protocol.types import (
    AskUnacked,
    Close,
    Dial,
    DialOutcome,
    Instant,
    Life,
    Persist,
    Save,
    Stop,
    Write,
)
from p2pmesh.store import Store
from p2pmesh.transport.clock import instant
from p2pmesh.transport.tcp import TcpTransport

log = logging.getLogger("p2pmesh.driver")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: A timer that is due this much earlier than the armed one is worth arming anew.
_REARM_GAIN: Final = 0.0005


class Saved(NamedTuple):
    """All saves up to this one are on disk."""

    number: int


class Driver:
    """One core with its sockets, its timer and its store."""

    core: Mesh
    #: For tests that kill a process at a point of its work: is told of every action
    #: before it is carried out, and of ``Saved`` before the core is.
    witness: Callable[[object], None] | None = None

    def __init__(
        self,
        *,
        outcome: Callable[[Any], None],
        admits: Callable[[str], bool],
        persist: Callable[[Life, int | None], None] | None,
        store: Store | None,
    ) -> None:
        """``outcome`` gets every action that is not about links or the store.
        ``admits`` judges the address of whoever dials us.  ``persist`` blocks until
        what it is given is on disk, or raises a MeshError; None: nothing is kept.
        ``store``: started here; None: no message is kept."""
        self._outcome = outcome
        self._admits = admits
        self._persist = persist
        self._rows = store
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._lag_told = False
        self._is_draining = False
        self._drain_is_due = False
        self._cannot_save = False  # and that was said
        self._persists: set[asyncio.Task[object]] = set()
        self._persist_order = asyncio.Lock()
        self._performers: dict[type, Callable[[Any], None]] = {
            Write: self._write,
            Dial: self._dial,
            Close: self._close,
            AskUnacked: self._ask_unacked,
            Persist: self._spawn_persist,
            Save: self._save,
            Stop: self._stop,
        }
        self.refused_off_link = 0
        self.lag = Lag()
        self.is_stopped = True
        self.transport = TcpTransport(
            opened=self._opened,
            received=self._received,
            ended=self._ended,
            dial_failed=self._dial_failed,
            paused=self._paused,
            resumed=self._resumed,
        )

    def start(self, core: Mesh) -> None:
        """Begin to drive ``core``; listen before."""
        self.core = core
        self.is_stopped = False
        if self._rows is not None:
            self._rows.start(
                lambda number: self._from_worker(self._saved, number),
                lambda why: self._from_worker(self._save_failed, why),
            )
        core.start(self._now())
        self._drain()

    def command(
        self, call: Callable[Concatenate[Instant, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a command of the core with the time and these arguments.  Raises
        NotStarted after the end or outside of the loop, and what the method raises."""
        if self.is_stopped:
            raise NotStarted("this node has ended: make a new one")
        refuse_outside(self._loop)
        try:
            return call(self._now(), *args, **kwargs)
        finally:
            if not self._drain_is_due:
                self._drain_is_due = True
                self._loop.call_soon(self._drain_now)

    def persist(self, life: Life) -> None:
        """Keep this life, whatever the core wants kept beside it."""
        self._spawn(self._keep(life, None))

    def drop_in_child(self) -> None:
        """In a forked child: touch nothing of the parent's any more."""
        self.is_stopped = True
        self.transport.drop_in_child()

    async def aclose(self) -> None:
        """Close all sockets; let what is being stored be stored."""
        self.is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        await self.transport.aclose()
        await asyncio.gather(*self._persists, return_exceptions=True)

    # --- inputs ---------------------------------------------------------------------

    def _now(self) -> Instant:
        """The time of an input.  If the timer should have run long ago, the loop did
        not, and silence in that while says nothing about others."""
        at = instant()
        if self._timer is not None and not self._lag_told:
            late = at.now - self._timer_due
            if late > LAG_TOLERANCE:
                self._lag_told = True
                log.debug("the event loop was blocked for about %.2f s", late)
                self.core.loop_lagged(at, late)
        return at

    def _opened(self, link: int, address: str, dial: int | None) -> None:
        if self.is_stopped or (dial is None and not self._admits(address)):
            self.refused_off_link += 1
            self.transport.abort(link)
            return
        self.core.link_opened(self._now(), link, address, dial)
        self._drain()

    def _received(self, link: int, data: bytes) -> None:
        if not self.is_stopped:
            self.core.bytes_received(self._now(), link, data)
            self._drain()

    def _ended(self, link: int) -> None:
        if not self.is_stopped:
            self.core.link_ended(self._now(), link)
            self._drain()

    def _dial_failed(self, dial: int, outcome: DialOutcome) -> None:
        if not self.is_stopped:
            self.core.dial_failed(self._now(), dial, outcome)
            self._drain()

    def _paused(self, link: int) -> None:
        if not self.is_stopped:
            self.core.link_paused(self._now(), link)
            self._drain()

    def _resumed(self, link: int) -> None:
        if not self.is_stopped:
            self.core.link_resumed(self._now(), link)
            self._drain()

    def _fire(self) -> None:
        if not self.is_stopped:
            at = self._now()
            self.lag.add(at.now - self._timer_due)
            self._timer = None
            self._lag_told = False
            self.core.handle_timer(at)
            self._drain()

    # --- actions ----------------------------------------------------------------------

    def _drain_now(self) -> None:
        self._drain_is_due = False
        self._drain()

    def _drain(self) -> None:
        """Perform everything; an action whose outcome is an input makes more."""
        if self._is_draining or self.is_stopped:
            return
        self._is_draining = True
        try:
            while actions := self.core.actions():
                for action in actions:
                    if self.witness is not None:
                        self.witness(action)
                    self._performers.get(type(action), self._outcome)(action)
        finally:
            self._is_draining = False
        self._arm()

    def _arm(self) -> None:
        due = None if self.is_stopped else self.core.next_timer()
        if self._timer is not None:
            if due is not None and due > self._timer_due - _REARM_GAIN:
                return  # it fires early, finds nothing due and is armed again
            self._timer.cancel()
            self._timer = None
        if due is not None:
            now = instant().now
            self._timer_due = max(due, now)  # one asked for too late is no lag of the loop
            self._lag_told = False
            self._timer = self._loop.call_later(self._timer_due - now, self._fire)

    def _write(self, action: Write) -> None:
        self.transport.write(action.link, action.data)

    def _dial(self, action: Dial) -> None:
        self.transport.dial(action.id, action.address, action.timeout)

    def _close(self, action: Close) -> None:
        self.transport.close(action.link)

    def _ask_unacked(self, action: AskUnacked) -> None:
        unacked = self.transport.unacked(action.link)
        if unacked is not None:
            self.core.kernel_unacked(self._now(), action.link, unacked)

    def _stop(self, action: Stop) -> None:
        self.is_stopped = True
        self._outcome(action)

    # --- the store ----------------------------------------------------------------------

    def _spawn_persist(self, action: Persist) -> None:
        self._spawn(self._store(action))

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(work)
        self._persists.add(task)
        task.add_done_callback(self._persists.discard)

    def _save(self, action: Save) -> None:
        assert self._rows is not None
        self._rows.save(action.number, action.changes)

    def _from_worker(self, tell: Callable[[T], None], what: T) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever would listen
            self._loop.call_soon_threadsafe(tell, what)

    def _saved(self, number: int) -> None:
        if self.witness is not None:
            self.witness(Saved(number))
        if self._cannot_save:
            self._cannot_save = False
            log.warning("messages are stored again, and accepted")
        if not self.is_stopped:
            self.core.saved(self._now(), number)
            self._drain()

    def _save_failed(self, why: str) -> None:
        if not self.is_stopped:
            self._cannot_save = True
            log.error("messages cannot be stored, so none is accepted until they can: %s", why)
            self.core.save_failed(self._now(), why)
            self._drain()

    async def _store(self, action: Persist) -> None:
        ok = await self._keep(action.life, action.epoch)
        if not self.is_stopped:
            self.core.stored(self._now(), action.id, ok)
            self._drain()

    async def _keep(self, life: Life, epoch: int | None) -> bool:
        """Write in a thread, one after the other; False when it cannot be written."""
        if self._persist is None:
            return True
        async with self._persist_order:
            try:
                await asyncio.to_thread(self._persist, life, epoch)
            except MeshError as error:
                log.error("what has to outlive this node is not kept: %s", error)
                return False
        return True
