"""Broadcasts of this node: to whom they are owed, and the direct repair.

    accept ──► tree ──► receipts ──► nothing owed: over
                 │ a home without a receipt after CAST_REPAIR_AFTER
                 └──► Cast(direct) to that home, until it has one

The tree is speed, receipts are the guarantee.  A broadcast is owed to every
instance alive when it was sent, the sender aside, through its home then.  A home
that failed and comes back in the same life gets it directly; one that comes back
in another lost what it had, and the instances that lived in it with it.

A guest of another node gets a message of its own instead, by the outbox: it may outlive
its home, and the home's receipt would be all that is left of its copy.

All broadcasts of a node are one stream.  ``floor`` is the lowest number owed to
anybody, in a repair the lowest owed to that home; see ``window``.

Not here: the tree and its sums (``casttree``), and taking a broadcast
(``postoffice``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

import msgspec

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.envelopes import OVERHEAD, Account, milliseconds
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.streams import Item
from p2pmesh.protocol.types import (
    Envelope,
    Instance,
    Instant,
    Life,
    MessageMoved,
    MessageState,
    NodeId,
    Recipient,
    SendRefused,
    Table,
)
from p2pmesh.protocol.ways import NEVER, Ways

_BATCH_GAP: Final = 0.05
_REPAIR_GAP_MAX: Final = 30.0


class _StreamRow(msgspec.Struct, frozen=True, array_like=True):
    """The one stream on disk."""

    stream: bytes
    highest: int


class _CastRow(msgspec.Struct, frozen=True, array_like=True):
    """A broadcast on disk, under its number.  Who had it by the end of the process is
    asked again: whoever took it says so."""

    envelope: Envelope
    expires_at: float  # store time
    born_below: Life
    homes: dict[NodeId, tuple[Life, tuple[str, ...]]]


class _Owed:
    """One home that owes a receipt."""

    __slots__ = ("due_at", "gap", "ids", "life")

    def __init__(self, life: Life, due_at: float) -> None:
        self.life = life
        self.ids: list[str] = []
        self.due_at = due_at
        self.gap = timing.CAST_REPAIR_AFTER


class Held:
    """One broadcast of this node, until nobody is owed it."""

    __slots__ = (
        "born_below", "deadline", "due_at", "envelope", "has_died", "homes", "is_kept",
        "is_owed_less", "is_refused", "message_id", "posts",
        "reasons", "sent_at", "seq", "size", "states", "strays",
    )  # fmt: skip

    def __init__(
        self, seq: int, envelope: Envelope, deadline: float, born_below: Life, now: float
    ) -> None:
        self.seq = seq
        self.message_id = envelope.message_id
        self.envelope = envelope
        self.deadline = deadline
        self.born_below = born_below
        self.sent_at = now
        self.due_at = now + timing.CAST_REPAIR_AFTER
        self.size = OVERHEAD + len(envelope.payload)
        self.is_kept = True  # False: the store has not got it
        self.is_refused = False  # and had no room for it
        self.has_died = False  # for some: a dead letter has the content
        self.is_owed_less = False  # than its row says
        self.homes: dict[NodeId, _Owed] = {}
        self.states: dict[str, MessageState] = {}  # by instance
        self.reasons: dict[str, str] = {}
        self.strays: dict[str, None] = {}  # their home took it, and did not have them
        self.posts: dict[str, Item] = {}  # what became a message of its own

    def recipients(self) -> tuple[Recipient, ...]:
        return tuple(
            self.posts[instance_id].recipients()[0]
            if instance_id in self.posts
            else Recipient(instance_id, state, reason=self.reasons.get(instance_id, ""))
            for instance_id, state in self.states.items()
        )

    @property
    def is_over(self) -> bool:
        return not self.homes and not self.strays


class Stray(NamedTuple):
    """One who is still owed a broadcast, but not where it lived."""

    held: Held
    instance_id: str
    envelope: Envelope


class Broadcasts:
    """The broadcasts that this node sent."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        account: Account,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
        ledger: Ledger,
        dead: DeadLetters,
    ) -> None:
        self.next_at = NEVER
        self._dead = dead
        self.stream = entropy(8)
        self._ledger = ledger
        self._directory = directory
        self._ways = ways
        self._account = account
        self._counters = counters
        self._highest = 0
        self._held: dict[int, Held] = {}  # ascending
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    # --- sending ------------------------------------------------------------------

    def accept(
        self,
        at: Instant,
        envelope: Envelope,
        deadline: float,
        instances: Iterable[Instance],
        by_post: Collection[str] = (),
    ) -> Held:
        """Number it and note to whom it is owed; ``by_post``: those who get a message of
        their own.  Raises QueueFull."""
        size = OVERHEAD + len(envelope.payload)
        self._make_room(size)
        self._highest += 1
        held = Held(self._highest, envelope, deadline, self._directory.highest(), at.now)
        for instance in instances:
            held.states[instance.instance_id] = "queued"
            if instance.instance_id in by_post:
                continue
            owed = held.homes.get(instance.home)
            if owed is None:
                owed = held.homes[instance.home] = _Owed(instance.home_life, held.due_at)
            owed.ids.append(instance.instance_id)
        self._held[held.seq] = held
        self._bytes += size
        self._account.used += size
        self.next_at = min(self.next_at, held.due_at, held.deadline)
        if self._ledger.is_durable:
            held.is_kept = False
            self._keep(held)
        return held

    # --- the store ------------------------------------------------------------------

    def _keep(self, held: Held) -> None:
        ledger = self._ledger
        homes = {
            home: (owed.life, tuple(each for each in owed.ids if held.states[each] != "dead"))
            for home, owed in held.homes.items()
        }
        expires_at = ledger.store_time(held.deadline)
        row = _CastRow(held.envelope, expires_at, held.born_below, homes)
        ledger.put(Table.CASTS, held.seq.to_bytes(8), row)
        ledger.put(Table.CAST_STREAM, b"", _StreamRow(self.stream, self._highest))

    def restore(self, at: Instant) -> list[Held]:
        """Take up the broadcasts of an earlier process: all of their homes owe."""
        for _, stream in self._ledger.restored(Table.CAST_STREAM, _StreamRow):
            self.stream, self._highest = stream.stream, stream.highest
        for key, kept in self._ledger.restored(Table.CASTS, _CastRow):
            self._owe_again(at, int.from_bytes(key), kept)
        return list(self._held.values())

    def _owe_again(self, at: Instant, seq: int, kept: _CastRow) -> None:
        deadline = self._ledger.own_time(kept.expires_at)
        held = Held(seq, kept.envelope, deadline, kept.born_below, at.now)
        for home, (life, ids) in kept.homes.items():
            owed = held.homes[home] = _Owed(life, held.due_at)
            owed.ids += ids
            held.states.update(dict.fromkeys(ids, "queued"))
        self._held[seq] = held
        self._bytes += held.size
        self._account.used += held.size
        self.next_at = min(self.next_at, held.due_at, held.deadline)

    def refuse_unkept(self, detail: str) -> None:
        """The store is full: what it has not got was not accepted after all."""
        for held in [held for held in self._held.values() if not held.is_kept]:
            held.is_refused = True
            held.homes.clear()
            held.strays.clear()
            self._tidy(held)
            self._ways.effects.append(SendRefused(held.message_id, "store_full", detail))

    # --- room -----------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        """Those owed only to homes that are gone make room for new ones."""
        while not self._has_room(size):
            for held in self._held.values():
                if not any(self._is_here(home, owed) for home, owed in held.homes.items()):
                    self._counters["broadcast_given_up"] += 1
                    self._end_all(held, "dead", "unreachable, and others needed the room")
                    break
            else:
                self._counters["broadcast_full"] += 1
                raise QueueFull(f"{len(self._held)} broadcasts wait for receipts")

    def _has_room(self, size: int) -> bool:
        return (
            len(self._held) < limits.MAILBOX_MESSAGES_MAX
            and self._bytes + size <= limits.MAILBOX_BYTES_MAX
            and self._account.has_room(size)
        )

    def _is_here(self, home: NodeId, owed: _Owed) -> bool:
        return self._directory.node_life(home) == owed.life

    def cast(self, at: Instant, held: Held, home: NodeId | None = None) -> wire.Cast:
        """As it goes down the tree, or (``home``) directly to one."""
        floor = next(iter(self._held), held.seq)
        if home is not None:
            floor = next((seq for seq, one in self._held.items() if home in one.homes), held.seq)
        return wire.Cast(
            self._ways.me,
            self.stream,
            held.seq,
            min(floor, held.seq),
            home is not None,
            milliseconds(held.deadline - at.now),
            held.born_below,
            held.envelope,
        )

    # --- receipts -------------------------------------------------------------------

    def receipt(self, message: wire.CastReceipt) -> None:
        """Homes took a broadcast of mine."""
        held = self._held.get(message.seq)
        if held is None or message.stream != self.stream:
            self._counters["cast_receipt_unexpected"] += 1
            return
        for instance_id in message.delivered:
            if held.states.get(instance_id) == "queued":
                held.strays.pop(instance_id, None)
                self._move(held, instance_id, "stored")
        for instance_id, reason in message.refused:
            if held.states.get(instance_id) == "queued":
                held.strays.pop(instance_id, None)
                self._counters["broadcast_refused"] += 1
                self._move(held, instance_id, "dead", reason[: limits.REASON_MAX])
        for home in message.homes:
            owed = held.homes.pop(home, None)
            for instance_id in owed.ids if owed is not None else ():
                if held.states[instance_id] == "queued":
                    held.strays[instance_id] = None
        if held.strays:
            held.due_at = min(held.due_at, held.sent_at + timing.CAST_REPAIR_AFTER)
            self.next_at = min(self.next_at, held.due_at)
        self._tidy(held)

    def _move(self, held: Held, instance_id: str, state: MessageState, reason: str = "") -> None:
        held.states[instance_id] = state
        if reason:
            held.reasons[instance_id] = reason
        if state == "dead":
            held.has_died = held.is_owed_less = True
            self._dead.add(held.envelope, instance_id, reason)
        self._ways.effects.append(MessageMoved(held.message_id, instance_id, state, reason))

    def _tidy(self, held: Held) -> None:
        if held.is_over and held.seq in self._held:
            del self._held[held.seq]
            self._ledger.gone(Table.CASTS, held.seq.to_bytes(8), moved=held.has_died)
            held.envelope = msgspec.structs.replace(held.envelope, payload=b"")
            self._bytes -= held.size
            self._account.used -= held.size
        elif held.is_owed_less and held.seq in self._held:
            held.is_owed_less = False
            self._keep(held)  # who is asked again after a crash may not die twice

    def _end_all(self, held: Held, state: MessageState, reason: str) -> None:
        for instance_id, known in held.states.items():
            if known == "queued" and instance_id not in held.posts:
                self._move(held, instance_id, state, reason)
        held.homes.clear()
        held.strays.clear()
        self._tidy(held)

    # --- repair ---------------------------------------------------------------------

    def changed(self, at: Instant, nodes: Collection[NodeId]) -> None:
        """These nodes failed, came back, or live anew: look at what is owed there."""
        for held in self._held.values():
            for node in nodes:
                owed = held.homes.get(node)
                if owed is not None:
                    owed.gap = timing.CAST_REPAIR_AFTER
                    owed.due_at = max(at.now, held.sent_at + timing.CAST_REPAIR_AFTER)
                    held.due_at = min(held.due_at, owed.due_at)
                    self.next_at = min(self.next_at, held.due_at)

    def opened(self, at: Instant, peer: NodeId) -> None:
        """There is a new way to this peer: what was under way may be lost."""
        self.changed(at, (peer,))

    def tick(self, at: Instant) -> list[Stray]:
        """Repair what is due.  Returns what is to be posted to an instance that
        does not live any more where it did; ``posted`` or ``refused`` each."""
        if at.now < self.next_at:
            return []
        self.next_at = NEVER
        sent: Counter[NodeId] = Counter()  # bytes, by home
        to_post: list[Stray] = []
        for held in list(self._held.values()):
            if held.deadline <= at.now:
                self._end_all(held, "expired", "its time to live is over")
                continue
            if held.due_at <= at.now:
                to_post += [Stray(held, each, held.envelope) for each in held.strays]
                held.is_owed_less |= bool(held.strays)
                held.strays.clear()
                to_post += self._repair(at, held, sent)
            self._tidy(held)
            self.next_at = min(self.next_at, held.due_at, held.deadline)
        return to_post

    def _repair(self, at: Instant, held: Held, sent: Counter[NodeId]) -> list[Stray]:
        moved: list[Stray] = []
        held.due_at = NEVER
        for home, owed in list(held.homes.items()):
            if owed.due_at <= at.now:
                if not self._is_here(home, owed):
                    moved += [
                        Stray(held, each, held.envelope)
                        for each in self._settle_gone(held, home, owed)
                    ]
                    owed.due_at = at.now + _REPAIR_GAP_MAX
                else:
                    self._send_directly(at, held, home, owed, sent)
            if home in held.homes:
                held.due_at = min(held.due_at, owed.due_at)
        return moved

    def _send_directly(
        self, at: Instant, held: Held, home: NodeId, owed: _Owed, sent: Counter[NodeId]
    ) -> None:
        if not self._ways.is_clear(home):
            self._ways.want(at, home)
            owed.due_at = at.now + timing.CAST_REPAIR_AFTER
        elif sent[home] >= limits.FLIGHT_MAX:
            owed.due_at = at.now + _BATCH_GAP
        else:
            self._counters["broadcast_repaired"] += 1
            self._ways.send(home, self.cast(at, held, home))
            sent[home] += held.size
            owed.due_at = at.now + owed.gap
            owed.gap = min(2 * owed.gap, _REPAIR_GAP_MAX)

    def _settle_gone(self, held: Held, home: NodeId, owed: _Owed) -> list[str]:
        """The home is gone, or lives anew: who of its instances can still be owed?

        Returns those that live elsewhere (or again) as guests.
        """
        moved: list[str] = []
        for instance_id in list(owed.ids):
            instance = self._directory.instance(instance_id)
            was_there = instance is None or (instance.home, instance.home_life) == (home, owed.life)
            if was_there and (instance is None or instance.state != "left"):
                continue  # failed: the same life may come back
            owed.ids.remove(instance_id)
            held.is_owed_less = True
            if held.states[instance_id] != "queued":
                continue
            if is_live(instance) and instance.kind == "guest":
                moved.append(instance_id)
            else:
                is_left = instance is not None and instance.state == "left"
                self._move(held, instance_id, "dead", "left" if is_left else "restarted")
        if not owed.ids:
            del held.homes[home]
        return moved

    def posted(self, held: Held, instance_id: str, item: Item) -> None:
        held.posts[instance_id] = item

    def refused(self, held: Held, instance_id: str, reason: str) -> None:
        self._move(held, instance_id, "dead", reason)
        self._tidy(held)

    def waits_for_receipts(self) -> bool:
        return any(
            self._is_here(home, owed)
            for held in self._held.values()
            for home, owed in held.homes.items()
        )
