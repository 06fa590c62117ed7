"""News and repair: how a change gets everywhere, and how a gap is found.

*News* floods: whoever learns something passes it on once over its ring links.
A link's queue keeps one item a subject, the newest.  Questions and endings leave at
once; plain changes leave at once when it is quiet, and together, every 100 ms, when
many come (a hundred nodes that start)::

    A --- News[Verdict X] ---> B --- News[Verdict X] ---> C ...

*Repair* finds what a flood missed.  Heartbeats carry a hash of the whole view;
two ends that differ compare 32 buckets, then versions, then send what lacks::

    A --- Buckets(32 hashes) ---> B
    A <-- Digest(what I hold in the buckets that differ) --- B
    A --- Offer(what you lack) + Want(what I lack) ---> B
    A <-- Offer(what you wanted) --- B

Everything here is a pure function of a view, or the queue of one link.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.members import BUCKETS, View, bucket_of

_HASH: Final = 8
#: Room for a message's own header beside its items.
_ITEMS_BYTES: Final = limits.CHUNK_MAX - 64


class Urgency(IntEnum):
    """Which news a link says first."""

    QUESTION = 0  # questions, vouches, refutes: a clock is running
    ENDING = 1  # left, failed, leadership claims
    CHANGE = 2


class NewsQueue:
    """What one link has yet to be told."""

    __slots__ = ("_items", "is_urgent")

    def __init__(self) -> None:
        self.is_urgent = False  # something in it does not wait
        self._items: dict[object, tuple[Urgency, bytes]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def put(self, subject: object, item: bytes, urgency: Urgency) -> bool:
        """Queue an item; a newer one replaces the older about the same subject.

        False: the queue is full and the item was not taken (repair will find it).
        """
        if len(self._items) >= limits.NEWS_QUEUE_MAX and subject not in self._items:
            return False
        self._items[subject] = (urgency, item)
        if urgency is not Urgency.CHANGE:
            self.is_urgent = True
        return True

    def take(self) -> Iterator[wire.News]:
        """Empty the queue into messages of bounded size, most urgent first."""
        self.is_urgent = False
        if not self._items:
            return
        if len(self._items) == 1:
            ((_, item),) = self._items.values()
            self._items.clear()
            yield wire.News((item,))
            return
        ordered = sorted(self._items.values(), key=lambda queued: queued[0])
        self._items.clear()
        for items in pack(item for _, item in ordered):
            yield wire.News(items)


def pack(items: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Group items so that each group fits one message."""
    group: list[bytes] = []
    size = 0
    for item in items:
        if group and (size + len(item) > _ITEMS_BYTES or len(group) == limits.NEWS_ITEMS_MAX):
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += len(item) + 5
    if group:
        yield tuple(group)


# --- repair ------------------------------------------------------------------


def buckets(view: View) -> wire.Buckets:
    """Opens a repair."""
    return wire.Buckets(b"".join(bucket.to_bytes(_HASH) for bucket in view.buckets))


def digest(view: View, theirs: wire.Buckets) -> wire.Digest | None:
    """What I hold in the buckets that differ; None when none does."""
    if len(theirs.hashes) != BUCKETS * _HASH:
        return None
    mask = 0
    for index, mine in enumerate(view.buckets):
        if mine != int.from_bytes(theirs.hashes[index * _HASH : (index + 1) * _HASH]):
            mask |= 1 << index
    if not mask:
        return None
    held = bytearray()
    for _, claim in view.claims():
        if mask >> bucket_of(claim.subject) & 1:
            held += claim.subject.to_bytes(_HASH) + claim.version_hash.to_bytes(_HASH)
    return wire.Digest(mask, bytes(held))


def compare(view: View, theirs: wire.Digest, now: float) -> tuple[list[bytes], wire.Want | None]:
    """What they lack (as items), and what I want of theirs.

    Hashes do not say which version is newer: where they differ both ends send.
    """
    if len(theirs.held) % (2 * _HASH):
        return [], None
    held: dict[int, int] = {}
    for at in range(0, len(theirs.held), 2 * _HASH):
        pair = theirs.held[at : at + 2 * _HASH]
        held[int.from_bytes(pair[:_HASH])] = int.from_bytes(pair[_HASH:])
    items: list[bytes] = []
    for key, claim in view.claims():
        if not theirs.mask >> bucket_of(claim.subject) & 1:
            continue
        version = held.get(claim.subject)
        if version == claim.version_hash:
            del held[claim.subject]
        else:
            items.append(view.item(key, claim, now))
    wanted = b"".join(subject.to_bytes(_HASH) for subject in held)
    return items, wire.Want(wanted) if wanted else None


def offers(view: View, want: wire.Want, now: float) -> Iterator[wire.Offer]:
    """The answer to a Want; everything, as a snapshot, when it names nothing."""
    snapshot = not want.subjects
    subjects = {
        int.from_bytes(want.subjects[at : at + _HASH]) for at in range(0, len(want.subjects), _HASH)
    }
    groups = list(
        pack(
            view.item(key, claim, now)
            for key, claim in view.claims()
            if snapshot or claim.subject in subjects
        )
    )
    for number, items in enumerate(groups, 1):
        yield wire.Offer(items, snapshot, number == len(groups))


Item: TypeAlias = (
    wire.RecordItem | wire.EntryItem | wire.Verdict | wire.Question | wire.Vouch | wire.Stall
)
_ITEMS: Final[msgspec.msgpack.Decoder[Item]] = msgspec.msgpack.Decoder(
    wire.RecordItem | wire.EntryItem | wire.Verdict | wire.Question | wire.Vouch | wire.Stall
)


def decode_item(item: bytes) -> Item | None:
    """None: of a kind this version does not know, or malformed."""
    try:
        return _ITEMS.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None
