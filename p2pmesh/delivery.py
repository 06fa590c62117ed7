"""What became of a message: the sender's handle on it.

The core reports where each copy is (``MessageMoved``) and what it could not accept
after all (``SendRefused``); this file turns that into something to await.

    queued ──► stored ──► done
       └──────────┴─────► expired · refused · dead ──► queued, when it is sent again

Handles are kept weakly: who drops one asks no more, and pays no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias
from weakref import WeakValueDictionary

from p2pmesh.arguments import refuse_unless_wait
from p2pmesh.errors import (
    AmbiguousTarget,
    MeshError,
    PeerUnreachable,
    QueueFull,
    RemoteError,
    RequestTimeout,
    StoreFull,
    UnknownTarget,
)
from p2pmesh.loops import refuse_outside
from p2pmesh.protocol.types import MessageMoved, MessageProgress, MessageState, SendRefused

State: TypeAlias = MessageState | Literal["refused"]

_OVER: Final = frozenset({"done", "expired", "dead", "refused"})


class Watched:
    """Something that changes, and whose changes can be awaited."""

    __slots__ = ("__weakref__", "_loop", "_waiters")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until ``is_so``, which is looked at now and at every change.  Raises
        NotStarted in another loop than it was made in: nobody would be woken there."""
        while not is_so():
            refuse_outside(self._loop)
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Delivery(Watched):
    """One message to one recipient.

    ``state`` is where it is now, ``reason`` why it ended as it did, or why it is still
    ``queued``; ``progress``: how many
    bytes of its payload the recipient's home has, and of how many, where that is a large
    one and moves; ``is_kept``: it is on this node's disk.  Where the recipient is on
    this very node, or away, a memory node has the only copy: it stays ``queued`` until
    it is done.
    """

    __slots__ = (
        "_error", "_reason", "_recipient", "_why_queued",
        "is_kept", "message_id", "progress", "state", "target",
    )  # fmt: skip

    def __init__(
        self,
        message_id: str,
        target: str,
        size: int = 0,
        *,
        why_queued: Callable[[str], str] = lambda target: "",
    ) -> None:
        """``why_queued``: says of a target why what is for it stays where it is."""
        super().__init__()
        self.message_id = message_id
        self.target = target
        self.progress = (0, size)
        self.state: State = "queued"
        self.is_kept = False
        self._reason = ""
        self._recipient = target  # an instance, once one is found
        self._why_queued = why_queued
        self._error: MeshError | None = None

    @property
    def reason(self) -> str:
        return self._why_queued(self.target) if self.state == "queued" else self._reason

    def __repr__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"<Delivery {self.message_id} to {self.target!r}: {self.state}{why}>"

    async def kept(self) -> None:
        """Until it is on this node's disk, or has gone further."""
        await self.until(lambda: self.is_kept or self.state != "queued")

    async def stored(self) -> None:
        """Until a second node has it, or it is done.

        Raises PeerUnreachable (dead-lettered), UnknownTarget, AmbiguousTarget,
        RequestTimeout (expired), QueueFull.
        """
        await self.until(lambda: self.state != "queued")
        self._raise_unless("stored", "done")

    async def done(self, timeout: float | None = None) -> None:
        """Until the recipient finished it.  Raises as :meth:`stored`, RemoteError
        where the recipient's handler gave up, RequestTimeout after ``timeout``."""
        if timeout is not None:
            refuse_unless_wait("timeout", timeout)
        try:
            async with asyncio.timeout(timeout):
                await self.until(lambda: self.is_over)
        except TimeoutError:
            raise RequestTimeout(
                f"{self.target!r} did not finish message {self.message_id} within {timeout} s; "
                f"it is {self.state}{self._why_open()}"
            ) from None
        self._raise_unless("done")

    @property
    def is_over(self) -> bool:
        return self.state in _OVER

    def _why_open(self) -> str:
        if self.reason:
            return f" ({self.reason})"
        if self.state == "stored":
            return " there: its handler runs, or waits, or there is none; the log there says which"
        return ""

    def _raise_unless(self, *wanted: State) -> None:
        if self.state not in wanted:
            raise self._error or self._error_of_end()

    def _error_of_end(self) -> MeshError:
        target, reason = self.target, self._reason
        if self.state == "expired":
            return RequestTimeout(f"the message to {target!r} expired before it was finished")
        if reason not in ("left", "failed", ""):
            return RemoteError("dead", reason, target)
        how = f"has {reason}" if reason else "is gone"
        again = (
            "send it to another, or by name"
            if target == self._recipient
            else "to give it to who has that name now, or next: await node.retry_dead_letter("
            f"{self.message_id!r}), or 'p2pmesh dead-letters --retry {self.message_id}'"
        )
        return PeerUnreachable(f"{target!r} {how}: the message is dead-lettered; {again}")

    def _progressed(self, event: MessageProgress) -> None:
        self.progress = (event.sent, event.total)
        self.changed()

    def _moved(self, action: MessageMoved) -> None:
        self.state = action.state
        self._reason = action.reason
        self._recipient = action.recipient
        if self.state in ("stored", "done"):
            self.progress = (self.progress[1], self.progress[1])
        self.changed()

    def _goes_again(self) -> None:
        """It was dead, and is sent again."""
        self.state = "queued"
        self.is_kept = False
        self._reason = ""
        self.changed()

    def _reject(self, error: MeshError) -> None:
        self.state = "refused"
        self._reason = str(error)
        self._error = error
        self.changed()


class Broadcast(Watched):
    """One message to everyone: a copy and a state for each recipient."""

    __slots__ = ("_error", "delivered_to", "is_kept", "message_id", "states")

    def __init__(self, message_id: str, delivered_to: tuple[str, ...]) -> None:
        super().__init__()
        self.message_id = message_id
        self.is_kept = False  # on this node's disk
        self._error: MeshError | None = None
        #: The instances it goes to: all that were alive when it was sent.
        self.delivered_to = delivered_to
        #: Recipient -> (state, reason).
        self.states: dict[str, tuple[State, str]] = dict.fromkeys(delivered_to, ("queued", ""))

    def __repr__(self) -> str:
        counted = Counter(state for state, _ in self.states.values())
        how = ", ".join(f"{number} {state}" for state, number in sorted(counted.items()))
        return f"<Broadcast {self.message_id} to {len(self.states)}: {how or 'nobody'}>"

    @property
    def refused(self) -> dict[str, str]:
        """Recipients that lost their copy, and why."""
        lost = ("dead", "expired", "refused")
        return {who: reason for who, (state, reason) in self.states.items() if state in lost}

    async def kept(self) -> None:
        """Until it is on this node's disk.  Raises StoreFull."""
        await self.until(lambda: self.is_kept or self._error is not None)
        if self._error is not None:
            raise self._error

    async def stored(self, timeout: float | None = None) -> None:
        """Until every recipient's home has its copy, or has refused it.  What the
        recipients do with it stays at their homes.  Raises RequestTimeout."""
        if timeout is not None:
            refuse_unless_wait("timeout", timeout)
        try:
            async with asyncio.timeout(timeout):
                await self.until(lambda: not self._waiting_for())
        except TimeoutError:
            left = self._waiting_for()
            raise RequestTimeout(
                f"{len(left)} of {len(self.states)} recipients have no copy of broadcast "
                f"{self.message_id} after {timeout} s: {', '.join(left[:5])}"
            ) from None

    def _waiting_for(self) -> list[str]:
        return [who for who, (state, _) in self.states.items() if state == "queued"]

    def _reject(self, error: MeshError) -> None:
        """It was not accepted after all."""
        self._error = error
        self.states = {who: ("refused", str(error)) for who in self.states}
        self.changed()

    def _moved(self, action: MessageMoved) -> None:
        self.states[action.recipient] = (action.state, action.reason)
        self.changed()


class Deliveries:
    """The handles that somebody still holds, by message."""

    def __init__(self, why_queued: Callable[[str], str]) -> None:
        """``why_queued``: as of a :class:`Delivery`."""
        self._why_queued = why_queued
        self._handles: WeakValueDictionary[str, Delivery | Broadcast] = WeakValueDictionary()
        #: Single copies of broadcasts that go again, by message and recipient.
        self._copies: WeakValueDictionary[tuple[str, str], Delivery] = WeakValueDictionary()

    def add(self, broadcast: Broadcast) -> None:
        self._handles[broadcast.message_id] = broadcast

    def open(self, message_id: str, target: str, size: int = 0) -> Delivery:
        """The handle on a message that was just accepted."""
        delivery = Delivery(message_id, target, size, why_queued=self._why_queued)
        self._handles[message_id] = delivery
        return delivery

    def again(self, message_id: str, target: str, *, is_copy: bool) -> Delivery:
        """The handle on a dead letter that is sent again: its sender's, if that is still
        held.  ``is_copy``: of a broadcast, for this recipient."""
        known = self._handles.get(message_id)
        if is_copy:
            delivery = self._copies.get((message_id, target)) or Delivery(
                message_id, target, why_queued=self._why_queued
            )
            self._copies[message_id, target] = delivery
        elif isinstance(known, Delivery):
            delivery = known
        else:
            delivery = self.open(message_id, target)
        delivery._goes_again()
        return delivery

    def _of(self, message_id: str) -> Iterator[Delivery | Broadcast]:
        """All handles on one message."""
        if (handle := self._handles.get(message_id)) is not None:
            yield handle
        if self._copies:
            copies = list(self._copies.values())
            yield from (copy for copy in copies if copy.message_id == message_id)

    def moved(self, action: MessageMoved) -> None:
        if (handle := self._handles.get(action.message_id)) is not None:
            handle._moved(action)
        if (copy := self._copies.get((action.message_id, action.recipient))) is not None:
            copy._moved(action)

    def progressed(self, event: MessageProgress) -> None:
        if isinstance(handle := self._handles.get(event.message_id), Delivery):
            handle._progressed(event)

    def kept(self, message_id: str) -> None:
        for handle in self._of(message_id):
            handle.is_kept = True
            handle.changed()

    def refused(self, action: SendRefused) -> None:
        match self._handles.get(action.message_id):
            case Delivery() as delivery:
                delivery._reject(error_of(action.error, action.detail, delivery.target))
            case Broadcast() as broadcast:
                broadcast._reject(error_of(action.error, action.detail, "everyone"))

    def membership_changed(self) -> None:
        """Somebody may be away now: whoever waits looks again."""
        if self._handles or self._copies:  # nearly never while a thousand join
            for handle in self._all():
                handle.changed()

    def node_ended(self, error: MeshError) -> tuple[Delivery, ...]:
        """The node is gone: what is not over here is nobody's to follow any more.
        Returns those deliveries of which there is no copy; who waits on one gets
        ``error``."""
        open_ones = [h for h in self._all() if isinstance(h, Delivery)]
        unfinished = tuple(h for h in open_ones if h.state == "queued" and not h.is_kept)
        for handle in open_ones:
            if not handle.is_over:
                handle._reject(error)
        return unfinished

    def _all(self) -> tuple[Delivery | Broadcast, ...]:
        return (*self._handles.values(), *self._copies.values())


def error_of(code: str, detail: str, target: str, timeout: float | None = None) -> MeshError:
    """The error that the core's words for one (``RequestEnded``) mean."""
    match code:
        case "unreachable":
            why = detail or "no way to its node is left; ask again, or another"
            return PeerUnreachable(f"{target!r} cannot be reached: {why}")
        case "timeout":
            return RequestTimeout(f"{target!r} did not answer within {timeout} s")
        case "unknown":
            near = (name for name in detail.split("\n") if name not in ("", target))
            return UnknownTarget(target, tuple(near))
        case "gone":
            near = (name for name in detail.split("\n") if name not in ("", target))
            return UnknownTarget(target, tuple(near), has_left=True, was_name=True)
        case "left":
            return UnknownTarget(target, has_left=True)
        case "ambiguous":
            return AmbiguousTarget(target, tuple(filter(None, detail.split("\n"))))
        case "store_full":
            return StoreFull(f"the message to {target!r} was not accepted: {detail}; make room")
        case "queue_full":
            return QueueFull(detail or f"the queue to {target!r} is full; wait for receipts")
    return RemoteError(code, detail, target)
