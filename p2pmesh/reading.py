"""Messages to pull: ``async for message in node.messages(type)``.

For those who prefer pulling over handlers.  A message that was handed out stays
the agent's until ``await message.ack()``; what a reader had and did not
acknowledge waits for the next one when the reader is closed or dropped.

A message that has neither handler nor reader waits here, *unclaimed*; a warning says so
once for each type, ``NAMED_MAX`` types at most.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from p2pmesh.errors import ConfigError
from p2pmesh.messages import AgentMessage, UnreadablePayload, message_of
from p2pmesh.protocol.types import MessageArrived

log = logging.getLogger("p2pmesh.handlers")

Completed: TypeAlias = Callable[[str, bool, str], None]
#: Seconds that a type may wait for its handler or reader before that is worth a line.
UNCLAIMED_AFTER: Final = 2.0
NAMED_MAX: Final = 64  # types whose warning is remembered; there is none for others


@dataclass(slots=True, eq=False)
class _Inbox:
    """What one reader was given; outlives it until all of it is given back."""

    waiting: deque[MessageArrived] = field(default_factory=deque)
    taken: dict[str, MessageArrived] = field(default_factory=dict)
    wake: asyncio.Future[None] | None = None
    is_closed: bool = False

    def notify(self) -> None:
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)


class MessageReader:
    """An async iterator of messages; each must be acknowledged."""

    def __init__(
        self,
        inbox: _Inbox,
        opened: Callable[[MessageArrived], AgentMessage | None],
        starting: Callable[[str], Awaitable[None]],
    ) -> None:
        self._inbox = inbox
        self._starting = starting
        self._opened = opened
        self._give_back: Callable[[], object] = lambda: None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentMessage:
        inbox = self._inbox
        while True:
            while inbox.waiting and not inbox.is_closed:
                message = self._opened(inbox.waiting.popleft())
                if message is not None:
                    await self._starting(message.message_id)
                    return message
            if inbox.is_closed:
                raise StopAsyncIteration
            inbox.wake = asyncio.get_running_loop().create_future()
            try:
                await inbox.wake
            finally:
                inbox.wake = None

    async def aclose(self) -> None:
        """Give back what was not acknowledged, for the next reader or handler."""
        self._give_back()


class Readers:
    """The readers of one agent, and the messages that nobody claimed."""

    def __init__(
        self,
        completed: Completed,
        arrived: Callable[[MessageArrived], None],
        starting: Callable[[str], Awaitable[None]],
    ) -> None:
        """``arrived`` gets a message anew when who had it gave it back; ``starting`` puts
        on record that one is handed out."""
        self._completed = completed
        self._starting = starting
        self._arrived = arrived
        self._inboxes: dict[str | None, _Inbox] = {}
        self._unclaimed: dict[str, MessageArrived] = {}
        self._named: set[str] = set()  # types that a warning named
        self._naming: asyncio.TimerHandle | None = None
        self._is_closed = False

    def open(self, type: str | None) -> MessageReader:
        if type in self._inboxes:
            raise ConfigError(f"messages of {type!r} are being read already: one reads a type")
        inbox = _Inbox(is_closed=self._is_closed)
        if not self._is_closed:
            self._inboxes[type] = inbox
        reader = MessageReader(
            inbox, lambda arrived: self._hand_out(inbox, arrived), self._starting
        )
        # A loop that is left with `break` drops its reader without closing it.
        finalizer = weakref.finalize(reader, self._release, type, inbox)
        finalizer.atexit = False
        reader._give_back = finalizer
        self.offer_unclaimed()
        return reader

    def reads(self, type: str | None) -> bool:
        return type in self._inboxes

    def put(self, arrived: MessageArrived) -> None:
        inbox = self._inboxes.get(arrived.envelope.type) or self._inboxes.get(None)
        if inbox is None:
            self._unclaimed[arrived.envelope.message_id] = arrived
            self._name_later(arrived.envelope.type)
        else:
            inbox.waiting.append(arrived)
            inbox.notify()

    def _name_later(self, type: str) -> None:
        is_quiet = self._naming is not None or type in self._named or self._is_closed
        if not is_quiet and len(self._named) < NAMED_MAX:
            loop = asyncio.get_running_loop()
            self._naming = loop.call_later(UNCLAIMED_AFTER, self._name_unclaimed)

    def _name_unclaimed(self) -> None:
        """Say of each type that still waits that nobody takes it."""
        self._naming = None
        for arrived in self._unclaimed.values():
            envelope = arrived.envelope
            if envelope.type not in self._named and len(self._named) < NAMED_MAX:
                self._named.add(envelope.type)
                log.warning(
                    "a %r from %s waits: no handler or reader takes this type; on(None) takes all",
                    envelope.type, envelope.source,
                )  # fmt: skip

    def offer_unclaimed(self) -> None:
        """There is a new reader or handler."""
        unclaimed, self._unclaimed = self._unclaimed, {}
        for arrived in unclaimed.values():
            self._arrived(arrived)

    def forget(self, message_ids: set[str]) -> None:
        for message_id in message_ids:
            self._unclaimed.pop(message_id, None)
        for inbox in self._inboxes.values():
            left = [a for a in inbox.waiting if a.envelope.message_id not in message_ids]
            inbox.waiting = deque(left)

    def close(self) -> None:
        """All readers end, later ones at once; what they had is given back to nobody."""
        self._is_closed = True
        if self._naming is not None:
            self._naming.cancel()
        self._unclaimed.clear()
        for inbox in self._inboxes.values():
            inbox.is_closed = True
            inbox.notify()
        self._inboxes.clear()

    def _release(self, type: str | None, inbox: _Inbox) -> None:
        inbox.is_closed = True
        inbox.notify()
        if self._inboxes.get(type) is inbox:
            del self._inboxes[type]
            for arrived in (*inbox.taken.values(), *inbox.waiting):
                self._arrived(arrived)
        inbox.taken.clear()
        inbox.waiting.clear()

    def _hand_out(self, inbox: _Inbox, arrived: MessageArrived) -> AgentMessage | None:
        """The message, or None where its payload cannot be read: it is refused."""
        message_id = arrived.envelope.message_id

        async def acknowledge() -> None:
            # Also where the reader was dropped meanwhile and gave the message back.
            if inbox.taken.pop(message_id, None) or self._unclaimed.pop(message_id, None):
                self._completed(message_id, True, "")

        try:
            message = message_of(arrived.envelope, arrived.via, arrived.attempt, acknowledge)
        except UnreadablePayload as error:
            self._completed(message_id, False, str(error))
            return None
        inbox.taken[message_id] = arrived
        return message
