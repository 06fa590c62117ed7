"""Repair, and what news and repairs carry: items.

News flood (``news``): whoever learns something passes it on once over its ring
links.  *Repair* finds what a flood missed.  Heartbeats carry a hash of the whole view;
two ends that differ compare 32 buckets, then versions, then send what lacks::

    A --- Buckets(32 hashes) ---> B
    A <-- Digest(what I hold in the buckets that differ) --- B
    A --- Offer(what you lack) + Want(what I lack) ---> B
    A <-- Offer(what you wanted) --- B

Everything here is a pure function of a view or of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.members import BUCKETS, View, bucket_of
from p2pmesh.protocol.news import pack
from p2pmesh.protocol.records import RecordBook, is_plausible
from p2pmesh.protocol.types import Life, NodeId

_HASH: Final = 8
_ID: Final = 32
_INT64: Final = 2**63

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
    for _, claim in view.told():
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
    for key, claim in view.told():
        if not theirs.mask >> bucket_of(claim.subject) & 1:
            continue
        version = held.get(claim.subject)
        if version == claim.version_hash:
            del held[claim.subject]
        else:
            items.append(view.item(key, claim, now))
    wanted = b"".join(subject.to_bytes(_HASH) for subject in held)
    return items, wire.Want(wanted) if wanted else None


def confirm(view: View, theirs: wire.Digest) -> None:
    """What a peer holds as I do is hearsay no more; neither is what lies in buckets that
    do not differ."""
    held = {
        (theirs.held[at : at + _HASH], theirs.held[at + _HASH : at + 2 * _HASH])
        for at in range(0, len(theirs.held) - 2 * _HASH + 1, 2 * _HASH)
    }
    for key in tuple(view.hearsay):
        claim = view.nodes[key] if isinstance(key, bytes) else view.guests[key]
        version = claim.subject.to_bytes(_HASH), claim.version_hash.to_bytes(_HASH)
        if version in held or not theirs.mask >> bucket_of(claim.subject) & 1:
            view.hearsay.discard(key)


def offers(view: View, want: wire.Want, now: float) -> Iterator[wire.Offer]:
    """The answer to a Want; everything, as a snapshot, when it names nothing."""
    snapshot = not want.subjects
    subjects = {
        int.from_bytes(want.subjects[at : at + _HASH]) for at in range(0, len(want.subjects), _HASH)
    }
    items = [
        view.item(key, claim, now)
        for key, claim in view.told()
        if snapshot or claim.subject in subjects
    ]
    groups = list(pack(items))
    for number, group in enumerate(groups, 1):
        yield wire.Offer(group, snapshot, number == len(groups))


Item: TypeAlias = (
    wire.RecordItem | wire.EntryItem | wire.Verdict | wire.Question | wire.Vouch | wire.Stall
)
_ITEMS: Final[msgspec.msgpack.Decoder[Item]] = msgspec.msgpack.Decoder(
    wire.RecordItem | wire.EntryItem | wire.Verdict | wire.Question | wire.Vouch | wire.Stall
)


def read_item(item: bytes, book: RecordBook) -> Item | None:
    """As ``decode_item``; what a flood brings again and again is decoded once."""
    known = book.said.get(item)
    if known is not None:
        return known
    decoded = decode_item(item)
    if isinstance(decoded, wire.Question | wire.Vouch | wire.Stall | wire.Verdict):
        book.said.put(item, decoded)
    return decoded


def decode_item(item: bytes) -> Item | None:
    """None: of a kind this version does not know, malformed, or out of range."""
    if len(item) > limits.NEWS_ITEM_MAX:
        return None
    try:
        decoded = _ITEMS.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None
    return decoded if _is_in_range(decoded) else None


def _is_in_range(item: Item) -> bool:
    """Are the numbers and lengths of this item fit to be reckoned with and kept?
    What is signed inside is checked by the book."""
    match item:
        case wire.RecordItem(age=age) | wire.EntryItem(age=age):
            return age >= 0
        case wire.Verdict():
            return (
                _is_about_a_life(item.subject, item.life, item.incarnation)
                and item.age >= 0
                and len(item.evidence) <= limits.EVIDENCE_MAX
                and len(item.accusers) <= limits.ACCUSERS_MAX
                and all(len(accuser) == _ID for accuser in item.accusers)
            )
        case wire.Question():
            return (
                _is_about_a_life(item.subject, item.life, item.incarnation)
                and len(item.evidence) <= limits.EVIDENCE_MAX
                and len(item.accuser) == _ID
                and 0 <= item.number < _INT64
                and 0 <= item.runs < _INT64
            )
        case wire.Vouch():
            return (
                _is_about_a_life(item.subject, item.life, item.incarnation)
                and len(item.voucher) == _ID
                and 0 <= item.number < _INT64
                and len(item.answers) <= limits.QUESTIONS_MAX
                and all(len(who) == _ID and 0 <= n < _INT64 for who, n in item.answers)
            )
        case wire.Stall():
            return (
                _is_about_a_life(item.subject, item.life, 0)
                and len(item.monitor) == _ID
                and 0 <= item.number < _INT64
            )


def _is_about_a_life(subject: NodeId, life: Life, incarnation: int) -> bool:
    """The last incarnation is left to its owner, to answer what is said of it."""
    return len(subject) == _ID and is_plausible(life) and 0 <= incarnation < limits.INCARNATION_MAX
