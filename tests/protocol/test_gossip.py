"""Repair: how two views become one; and items, however odd."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import gossip, limits, wire
from p2pmesh.protocol.gossip import decode_item
from p2pmesh.protocol.members import View
from p2pmesh.protocol.news import pack
from p2pmesh.protocol.records import RecordBook, SignedEntry, SignedRecord
from p2pmesh.protocol.types import Life, State
from tests.protocol.claims import (
    life,
    node_id,
    question,
    signed,
    signed_entry,
    verdict,
    vouch,
)

BOOK = RecordBook()


# --- repair ---------------------------------------------------------------------


def take(view: View, items: Iterable[bytes], now: float) -> None:
    """As the membership desk does with items, its special cases aside."""
    for item in items:
        match decode_item(item):
            case wire.RecordItem(signed=made, age=age):
                view.offer_record(BOOK.record(made), now, age / 1000)
            case wire.EntryItem(signed=made, age=age):
                view.offer_entry(BOOK.entry(made), now, age / 1000)
            case wire.Verdict() as passed:
                view.offer_verdict(passed, now)
            case other:
                raise AssertionError(other)


def carried(message: Any) -> Any:
    """Through real bytes."""
    return wire.decode(wire.encode(message))


def exchange(a: View, b: View, now: float = 0.0) -> int:
    """One repair, opened by A; how many items it took."""
    digest = gossip.digest(b, carried(gossip.buckets(a)))
    if digest is None:
        return 0
    items, want = gossip.compare(a, carried(digest), now)
    for group in pack(items):
        take(b, carried(wire.Offer(group)).items, now)
    taken = len(items)
    for offer in gossip.offers(b, carried(want), now) if want is not None else ():
        assert not offer.snapshot
        take(a, carried(offer).items, now)
        taken += len(offer.items)
    return taken


def view_of(*claims: SignedRecord | SignedEntry | wire.Verdict) -> View:
    view = View()
    for claim in claims:
        match claim:
            case SignedRecord():
                view.offer_record(claim, 0.0)
            case SignedEntry():
                view.offer_entry(claim, 0.0)
            case wire.Verdict():
                view.offer_verdict(claim, 0.0)
    return view


HOMES = [signed(number) for number in (1, 2)]
CLAIMS = [
    *(signed(n, b, incarnation=i) for n in (3, 4, 5, 6) for b in (1, 2) for i in (0, 1)),
    *(signed(n, b, state=State.LEFT) for n in (3, 4) for b in (1, 2)),
    *(verdict(n, b) for n in (3, 5, 6, 7) for b in (1, 2)),
    *(signed_entry(g, h, term=t) for g in "xyz" for h in (1, 2) for t in (1, 2)),
    *(signed_entry(g, 1, term=3, state=State.LEFT) for g in "xy"),
]
VIEWS = st.lists(st.sampled_from(CLAIMS), max_size=20)


@given(VIEWS, VIEWS)
def test_any_two_views_are_one_after_one_exchange(one: list[Any], other: list[Any]) -> None:
    a, b = view_of(*HOMES, *one), view_of(*HOMES, *other)
    all_of_it = view_of(*HOMES, *one, *other, *one, *other)
    taken = exchange(a, b)
    assert a.hash() == b.hash() == all_of_it.hash()
    assert a.buckets == b.buckets
    assert (taken == 0) is (view_of(*HOMES, *one).hash() == view_of(*HOMES, *other).hash())
    assert exchange(a, b) == 0


def test_homes_come_before_their_guests_in_one_exchange() -> None:
    full = view_of(*HOMES, signed_entry("x", 1), signed_entry("y", 2))
    for a, b in ((full, View()), (View(), full)):
        exchange(a, b)
        assert a.hash() == b.hash() == full.hash()


def test_an_exchange_carries_only_what_differs() -> None:
    claims = [signed(number) for number in range(1, 120)]
    a = view_of(*claims, signed(200))
    b = view_of(*claims, signed(201), signed(202))
    assert exchange(a, b) == 3


def test_a_changed_claim_is_sent_by_both_ends_as_hashes_say_no_order() -> None:
    a, b = view_of(signed(1)), view_of(signed(1, revision=1))
    assert exchange(a, b) == 2
    assert a.nodes[node_id(1)].version == b.nodes[node_id(1)].version


def test_ends_keep_their_age_in_an_exchange() -> None:
    a, b, c = View(), View(), View()
    a.offer_verdict(verdict(1), 10.0)
    a.offer_record(signed(2, state=State.LEFT), 20.0)
    exchange(a, b, now=50.0)
    exchange(c, a, now=60.0)
    for view in (b, c):
        assert (view.ended_at(node_id(1)), view.ended_at(node_id(2))) == (10.0, 20.0)


def test_a_snapshot_is_everything_and_its_last_part_says_so() -> None:
    view = view_of(*(signed(number, name="n" * 64) for number in range(1, 150)))
    offers = list(gossip.offers(view, wire.Want(b""), 0.0))
    assert len(offers) > 1
    assert all(offer.snapshot for offer in offers)
    assert [offer.last for offer in offers] == [False] * (len(offers) - 1) + [True]
    joiner = View()
    for offer in offers:
        take(joiner, carried(offer).items, 0.0)
    assert joiner.hash() == view.hash()


def test_what_is_wanted_and_not_held_any_more_is_left_out() -> None:
    assert list(gossip.offers(View(), wire.Want(bytes(8)), 0.0)) == []


def test_equal_views_have_nothing_to_compare() -> None:
    a, b = view_of(*HOMES), view_of(*HOMES)
    assert gossip.digest(a, gossip.buckets(b)) is None


@pytest.mark.parametrize("size", [0, 1, 255, 257, 512])
def test_buckets_of_another_size_are_not_answered(size: int) -> None:
    assert gossip.digest(view_of(signed(1)), wire.Buckets(b"\x01" * size)) is None


@pytest.mark.parametrize("size", [1, 8, 15, 17])
def test_a_digest_of_half_a_pair_is_not_answered(size: int) -> None:
    assert gossip.compare(view_of(signed(1)), wire.Digest(2**32 - 1, bytes(size)), 0.0) == (
        [],
        None,
    )


@given(st.integers(-(2**63), 2**64 - 1), st.binary(max_size=64), st.binary(max_size=64))
def test_no_digest_and_no_want_of_the_wire_raises(mask: int, held: bytes, wanted: bytes) -> None:
    view = view_of(*HOMES)
    gossip.compare(view, wire.Digest(mask, held), 0.0)
    list(gossip.offers(view, wire.Want(wanted), 0.0))


# --- items of the wire ----------------------------------------------------------

GOOD: list[wire.Message] = [
    wire.RecordItem(signed(1).signed),
    wire.EntryItem(signed_entry("g", 1).signed, 5),
    verdict(1, accusers=(node_id(2),) * limits.ACCUSERS_MAX, evidence="e" * limits.EVIDENCE_MAX),
    question(1, incarnation=limits.INCARNATION_MAX - 1, number=2**63 - 1, runs=0),
    vouch(1, *((number, number) for number in range(limits.QUESTIONS_MAX))),
    wire.Stall(node_id(1), life(1), node_id(2), 0, True),
]


@pytest.mark.parametrize("item", GOOD, ids=lambda item: type(item).__name__)
def test_each_kind_of_item_is_read(item: wire.Message) -> None:
    assert decode_item(wire.encode(item)) == item
    later = [*msgspec.msgpack.decode(wire.encode(item)), "of a later version"]
    assert decode_item(msgspec.msgpack.encode(later)) == item


FAR = Life(2**48, 0, 0)


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {"age": -1}),
        (1, {"age": -1}),
        *((place, {"subject": b"\x01" * 31}) for place in (2, 3, 4, 5)),
        *((place, {"subject": bytes(4000)}) for place in (2, 3, 4, 5)),
        *((place, {"life": FAR}) for place in (2, 3, 4, 5)),
        *((place, {"life": Life(1, -1, 0)}) for place in (2, 3, 4, 5)),
        *((place, {"incarnation": -1}) for place in (2, 3, 4)),
        *((place, {"incarnation": limits.INCARNATION_MAX}) for place in (2, 3, 4)),
        *((place, {"number": -1}) for place in (3, 4, 5)),
        *((place, {"number": 2**63}) for place in (3, 4, 5)),
        (2, {"age": -1}),
        (2, {"evidence": "e" * 33}),
        (2, {"accusers": (node_id(2),) * 9}),
        (2, {"accusers": (b"",)}),
        (3, {"evidence": "e" * 33}),
        (3, {"accuser": bytes(33)}),
        (3, {"runs": -1}),
        (3, {"runs": 2**63}),
        (4, {"voucher": b""}),
        (4, {"answers": ((node_id(1), 1),) * 65}),
        (4, {"answers": ((b"", 1),)}),
        (4, {"answers": ((node_id(1), -1),)}),
        (4, {"answers": ((node_id(1), 2**63),)}),
        (5, {"monitor": bytes(31)}),
    ],
)
def test_an_item_out_of_range_is_not_read(number: int, changed: dict[str, Any]) -> None:
    item = msgspec.structs.replace(GOOD[number], **changed)
    assert decode_item(wire.encode(item)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x63\x00",  # a kind of a later version
        b"\x92\x04\x07",  # a message, and no item
        b"\x92\x28\xa1x",
        b"\x92\x28\xc4\x01x\x00",
        wire.encode(wire.RecordItem(bytes(limits.NEWS_ITEM_MAX))),
        b"\x97\x2a" + b"\x91" * 4000,
    ],
    ids=lambda data: data[:6].hex(),
)
def test_what_is_no_item_is_not_read(data: bytes) -> None:
    assert decode_item(data) is None


@given(st.binary(max_size=90))
def test_no_bytes_raise(data: bytes) -> None:
    decode_item(data)
    for tag in (40, 41, 42, 43, 44, 45):
        decode_item(b"\x97" + bytes([tag]) + data)


def test_the_largest_entry_fits_an_item() -> None:
    labels = tuple(f"{number:064}" for number in range(limits.LABELS_MAX))
    metrics = bytes(230)
    made = signed_entry("g" * 128, 1, capabilities=labels, profiles=labels[:23], metrics=metrics)
    assert len(made.signed) > limits.ENTRY_MAX - 100
    assert BOOK.entry(made.signed)
    item = wire.encode(wire.EntryItem(made.signed, 2**40))
    assert decode_item(item) is not None
