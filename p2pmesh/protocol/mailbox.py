"""Mailboxes: what the instances of this node have been given and not finished.

One mailbox for each local instance: the own agent, whose messages are handed to
the node in the order in which they came, and the guests, who read and
acknowledge.  A message ends when its agent finished it, when its time is over,
or *dead* when its handler failed HANDLER_RETRIES times more than once.

Bounds: MAILBOX_MESSAGES_MAX messages or MAILBOX_BYTES_MAX bytes an instance, and
the node's account of bytes.  What does not fit is refused, never dropped.

Not here: numbers and receipts (``intake``), who may be asked (``answering``).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.envelopes import OVERHEAD, Account
from p2pmesh.protocol.streams import NEVER, InStream
from p2pmesh.protocol.types import Envelope, Instant, NodeId

#: A full mailbox asks for more when this much of it is used at most.
_ROOM_AGAIN: Final = 0.75


class Letter:
    """One message in one mailbox."""

    __slots__ = (
        "attempt", "charge", "deadline", "envelope", "is_kept", "is_query", "is_shared",
        "is_started", "order", "places", "via",
    )  # fmt: skip

    def __init__(
        self,
        envelope: Envelope,
        via: NodeId,
        deadline: float,
        *,
        is_query: bool = False,
        is_shared: bool = False,
    ) -> None:
        self.envelope = envelope
        self.via = via  # the node that accepted it
        self.deadline = deadline
        self.is_query = is_query  # of a request: nobody stores it, it just lies here
        self.is_shared = is_shared  # this node's outbox holds the same bytes, and counts them
        self.attempt = 1
        self.is_kept = True  # False: the store has not got it, nobody may see it yet
        self.is_started = False  # its handler may have run, says the store
        self.order = 0  # of its row in the store
        self.charge = OVERHEAD + len(envelope.payload)
        self.places: tuple[tuple[InStream, int], ...] = ()  # empty: a broadcast or a query

    @property
    def message_id(self) -> str:
        return self.envelope.message_id


class Mailbox:
    """The unfinished messages of one instance, in the order in which they came."""

    __slots__ = ("_account", "bytes", "earliest", "instance_id", "is_agent", "letters")

    def __init__(self, instance_id: str, account: Account, *, is_agent: bool) -> None:
        self.instance_id = instance_id
        self.is_agent = is_agent
        self.letters: dict[str, Letter] = {}
        self.bytes = 0
        self.earliest = NEVER  # nothing expires before
        self._account = account

    def has_room(self, size: int, *, is_shared: bool = False) -> bool:
        return (
            len(self.letters) < limits.MAILBOX_MESSAGES_MAX
            and self.bytes + size <= limits.MAILBOX_BYTES_MAX
            and (is_shared or self._account.has_room(size))
        )

    def has_room_again(self) -> bool:
        """Enough that it is worth asking for more."""
        return (
            len(self.letters) <= _ROOM_AGAIN * limits.MAILBOX_MESSAGES_MAX
            and self.bytes <= _ROOM_AGAIN * limits.MAILBOX_BYTES_MAX
            and self._account.used <= _ROOM_AGAIN * self._account.most
        )

    def put(self, letter: Letter) -> bool:
        """False: no room."""
        if not self.has_room(letter.charge, is_shared=letter.is_shared):
            return False
        self.letters[letter.envelope.message_id] = letter
        self.bytes += letter.charge
        if not letter.is_shared:
            self._account.used += letter.charge
        if letter.deadline < self.earliest:
            self.earliest = letter.deadline
        return True

    def take(self, message_id: str) -> Letter | None:
        """Out of the mailbox: it is over.  None: it is not there."""
        letter = self.letters.pop(message_id, None)
        if letter is not None:
            self.bytes -= letter.charge
            if not letter.is_shared:
                self._account.used -= letter.charge
        return letter

    def read(self, limit: int) -> list[Letter]:
        """The oldest, at most ``limit`` (0: any number) and READ_BYTES_MAX bytes,
        but at least one if there is one."""
        found: list[Letter] = []
        size = 0
        for letter in self.letters.values():
            if not letter.is_kept:
                continue
            size += letter.charge
            if found and (size > limits.READ_BYTES_MAX or len(found) == limit):
                break
            found.append(letter)
        return found

    def expired(self, now: float) -> list[Letter]:
        """Those whose time is over; ``take`` each."""
        if now < self.earliest:
            return []
        over = [letter for letter in self.letters.values() if letter.deadline <= now]
        self.earliest = min(
            (letter.deadline for letter in self.letters.values() if letter.deadline > now),
            default=NEVER,
        )
        return over


class Mailboxes:
    """The mailboxes of this node, and the handlers that are tried again."""

    def __init__(self, account: Account) -> None:
        self.next_at = NEVER
        self.agent: Mailbox | None = None
        self._account = account
        self._boxes: dict[str, Mailbox] = {}
        self._retries: list[tuple[float, int, str]] = []  # a heap: when, order, message
        self._order = 0

    def open(self, instance_id: str, *, is_agent: bool = False) -> Mailbox:
        """The mailbox of a local instance; there is one from now on."""
        box = self._boxes.get(instance_id)
        if box is None:
            box = self._boxes[instance_id] = Mailbox(instance_id, self._account, is_agent=is_agent)
            if is_agent:
                self.agent = box
        return box

    def get(self, instance_id: str) -> Mailbox | None:
        return self._boxes.get(instance_id)

    def all(self) -> list[Mailbox]:
        return list(self._boxes.values())

    def depths(self) -> dict[str, int]:
        """Letters of the own agent, and of all guests."""
        own = len(self.agent.letters) if self.agent is not None else 0
        every = sum(len(box.letters) for box in self._boxes.values())
        return {"mailbox_agent": own, "mailbox_guests": every - own}

    def close(self, instance_id: str) -> list[Letter]:
        """The instance lives here no more: what it had not finished."""
        box = self._boxes.pop(instance_id, None)
        if box is None:
            return []
        return [letter for key in list(box.letters) if (letter := box.take(key)) is not None]

    def put(self, box: Mailbox, letter: Letter) -> bool:
        """False: no room."""
        self.next_at = min(self.next_at, letter.deadline)
        return box.put(letter)

    def failed(self, at: Instant, letter: Letter) -> bool:
        """A handler of the own agent failed.  False: that was the last time."""
        after = timing.handler_retry(letter.attempt)
        if after is None:
            return False
        due = at.now + after
        letter.attempt += 1
        self._order += 1
        heappush(self._retries, (due, self._order, letter.envelope.message_id))
        self.next_at = min(self.next_at, due)
        return True

    def tick(self, at: Instant) -> tuple[list[Letter], list[tuple[Mailbox, Letter]]]:
        """Messages whose handler is tried again now, and those that expired (taken)."""
        if at.now < self.next_at:
            return [], []
        expired = [(box, letter) for box in self._boxes.values() for letter in box.expired(at.now)]
        for box, letter in expired:
            box.take(letter.envelope.message_id)
        again: list[Letter] = []
        while self._retries and self._retries[0][0] <= at.now:
            _, _, message_id = heappop(self._retries)
            waiting = self.agent.letters.get(message_id) if self.agent is not None else None
            if waiting is not None:
                again.append(waiting)
        self.next_at = min((box.earliest for box in self._boxes.values()), default=NEVER)
        if self._retries:
            self.next_at = min(self.next_at, self._retries[0][0])
        return again, expired
