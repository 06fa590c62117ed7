"""The view: one claim a subject, chosen by version alone, and remembered for a day."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.members import (
    Change,
    Claim,
    Tombstone,
    View,
    bucket_of,
    verdict_version,
)
from p2pmesh.protocol.records import SignedEntry, SignedRecord, Version
from p2pmesh.protocol.timing import TOMBSTONE_TTL
from p2pmesh.protocol.types import Life, NodeId, State
from tests.protocol.claims import life, node_id, signed, signed_entry, verdict

Offer = SignedRecord | SignedEntry | wire.Verdict
DAY = TOMBSTONE_TTL


def offer(view: View, offered: Offer, now: float = 0.0) -> Change:
    match offered:
        case SignedRecord():
            return view.offer_record(offered, now)
        case SignedEntry():
            return view.offer_entry(offered, now)
        case _:
            return view.offer_verdict(offered, now)


def view_of(*offers: Offer, now: float = 0.0) -> View:
    view = View()
    for offered in offers:
        offer(view, offered, now)
    return view


def told(view: View, key: NodeId | str, now: float) -> Any:
    """The item that this view tells about a subject."""
    claim = view.nodes[key] if isinstance(key, bytes) else view.guests[key]
    item = view.item(key, claim, now)
    return msgspec.msgpack.decode(item, type=wire.RecordItem | wire.EntryItem | wire.Verdict)


# --- precedence -----------------------------------------------------------------

#: All that may be claimed of node 1, from the weakest claim to the strongest.
LADDER: list[Offer] = [
    signed(1, 1),
    signed(1, 1, revision=1),
    verdict(1, 1),
    signed(1, 1, state=State.LEFT),
    signed(1, 1, incarnation=1),
    verdict(1, 1, 1),
    signed(1, 1, incarnation=1, state=State.LEFT),
    signed(1, 2),
    verdict(1, 2),
    signed(1, 3, incarnation=0, revision=9),
]


def version_of(offered: Offer) -> Version:
    return verdict_version(offered) if isinstance(offered, wire.Verdict) else offered.version


def test_the_ladder_is_in_order() -> None:
    versions = [version_of(offered) for offered in LADDER]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("weaker", range(len(LADDER)))
@pytest.mark.parametrize("stronger", range(len(LADDER)))
def test_of_two_claims_the_stronger_stays(weaker: int, stronger: int) -> None:
    if weaker >= stronger:
        return
    for first, second in ((weaker, stronger), (stronger, weaker)):
        view = view_of(LADDER[first], LADDER[second])
        assert view.nodes[node_id(1)].version == version_of(LADDER[stronger])


A, L, F = signed(1, 1), signed(1, 1, state=State.LEFT), verdict(1, 1)
BACK, ANEW = signed(1, 1, incarnation=1), signed(1, 2)


@pytest.mark.parametrize(
    ("held", "offered", "change"),
    [
        (None, A, Change.JOINED),
        (None, L, Change.LEFT),
        (None, F, Change.UPDATED),
        (A, A, Change.NONE),
        (A, signed(1, 1, revision=1), Change.UPDATED),
        (A, BACK, Change.UPDATED),
        (A, ANEW, Change.JOINED),
        (A, L, Change.LEFT),
        (A, F, Change.FAILED),
        (A, verdict(1, 2), Change.FAILED),
        (ANEW, A, Change.NONE),
        (ANEW, L, Change.NONE),
        (ANEW, F, Change.NONE),
        (F, A, Change.BURIED),
        (F, signed(1, 1, revision=9), Change.BURIED),
        (F, BACK, Change.JOINED),
        (F, ANEW, Change.JOINED),
        (F, L, Change.LEFT),
        (F, F, Change.NONE),
        (F, verdict(1, 1, 1), Change.UPDATED),
        (L, A, Change.BURIED),
        (L, L, Change.NONE),
        (L, SignedRecord(L.record, L.signed), Change.NONE),
        (L, F, Change.NONE),
        (L, BACK, Change.JOINED),
        (L, ANEW, Change.JOINED),
    ],
)
def test_what_an_offer_does(held: Offer | None, offered: Offer, change: Change) -> None:
    view = View() if held is None else view_of(held)
    before = view.hash()
    assert offer(view, offered) is change
    assert (view.hash() == before) is (change in (Change.NONE, Change.BURIED))


def test_the_same_claim_in_another_object_changes_nothing() -> None:
    view = view_of(A, signed_entry("guest", 1))
    copy = SignedRecord(A.record, A.signed)
    assert view.offer_record(copy, 0.0) is Change.NONE
    assert view.nodes[node_id(1)] is A
    assert view.offer_entry(signed_entry("guest", 1), 0.0) is Change.NONE


# --- any order ------------------------------------------------------------------

CLAIMS: list[Offer] = [
    *(signed(n, b, incarnation=i) for n in (1, 2, 3) for b in (1, 2) for i in (0, 1)),
    *(signed(n, 2, incarnation=1, epoch=n, revision=1) for n in (1, 2)),
    *(signed(n, b, state=State.LEFT) for n in (1, 2, 3) for b in (1, 2)),
    *(verdict(n, b, i) for n in (1, 2, 3, 4) for b in (1, 2) for i in (0, 1)),
    *(signed_entry(g, h, b, term=t) for g in "xy" for h in (1, 2) for b in (1, 2) for t in (1, 2)),
    *(signed_entry("x", 1, 2, revision=1, state=state) for state in (State.FAILED, State.LEFT)),
]


def settled(offers: list[Offer]) -> View:
    """Offered again while it changes anything, as repair does."""
    view = View()
    while any(offer(view, each) not in (Change.NONE, Change.BURIED) for each in offers):
        pass
    return view


@given(st.lists(st.sampled_from(CLAIMS), max_size=12), st.randoms(use_true_random=False))
def test_claims_in_any_order_make_the_same_view(offers: list[Offer], rng: Any) -> None:
    first = settled(offers)
    rng.shuffle(offers)
    second = settled(offers)
    assert first.hash() == second.hash()
    assert first.buckets == second.buckets
    assert {k: c.version for k, c in first.claims()} == {k: c.version for k, c in second.claims()}
    assert (first.highest, first.alive_count) == (second.highest, second.alive_count)
    assert first.leader() is second.leader()


@given(st.lists(st.tuples(st.sampled_from(CLAIMS), st.integers(0, 3)), max_size=25))
def test_what_is_kept_beside_the_claims_follows_them(steps: list[tuple[Offer, int]]) -> None:
    """Hash, counts, leader and ends, against the same worked out from scratch."""
    view, highest, now = View(), Life(0, 0, 0), 0.0
    for offered, then in steps:
        now += 1.0
        if offer(view, offered, now) not in (Change.NONE, Change.BURIED):
            is_entry = isinstance(offered, SignedEntry)
            seen = offered.entry.life if is_entry else version_of(offered).life
            highest = max(highest, seen)
        if then == 3:
            view.forget(node_id(1))
        elif then == 2:
            view.leader()
        alive = [held for held in view.nodes.values() if held.version.state is State.ALIVE]
        candidates = [held for held in alive if held.is_candidate]
        assert view.alive_count == len(alive)
        assert list(view.all_alive()) == alive
        assert view.leader() is min(candidates, key=lambda held: held.seniority, default=None)
        assert view.highest == highest
        buckets = [0] * 32
        for _, claim in view.claims():
            buckets[bucket_of(claim.subject)] ^= claim.version_hash
        assert view.buckets == buckets
        ended = {n for n, held in view.nodes.items() if held not in alive}
        for guest, claim in view.guests.items():
            home = view.alive(claim.entry.home)
            assert claim.entry.home in view.nodes
            if (
                claim.entry.state is not State.ALIVE
                or home is None
                or home.version.life != claim.entry.home_life
            ):
                ended.add(guest)
        for key, _ in view.claims():
            assert (view.ended_at(key) is not None) is (key in ended)
            assert view.ended_at(key) is None or 0.0 < view.ended_at(key) <= now


def test_a_bucket_is_the_first_five_bits_of_a_subject() -> None:
    assert [bucket_of(0), bucket_of(2**59), bucket_of(2**64 - 1)] == [0, 1, 31]


# --- leading --------------------------------------------------------------------


def test_the_oldest_live_candidate_leads() -> None:
    view = view_of(
        signed(1, 1, agent=None),  # an observer
        signed(2, 2, candidate=False),
        signed(3, 3, state=State.LEFT),
        verdict(4, 1),
        signed(5, 7),
        signed(6, 6),
    )
    leader = view.leader()
    assert leader is not None
    assert leader.id == node_id(6)
    offer(view, verdict(6, 6))
    assert view.leader() is view.alive(node_id(5))
    offer(view, signed(7, 5))
    assert view.leader() is view.alive(node_id(7))
    offer(view, signed(7, 5, revision=1, candidate=False))
    assert view.leader() is view.alive(node_id(5))
    view.forget(node_id(5))
    assert view.leader() is None
    offer(view, signed(8, 9))
    assert view.leader() is view.alive(node_id(8))


def test_the_highest_epoch_is_of_records_and_stays() -> None:
    view = view_of(signed(1, 1, epoch=7), signed(1, 1, revision=1), signed(2, 1, epoch=5))
    assert view.highest_epoch == 7
    offer(view, verdict(1, 1))
    assert view.highest_epoch == 7


def test_of_two_claims_of_one_epoch_the_highest_is_the_next() -> None:
    view = view_of(signed(1, 1, epoch=7), signed(1, 1, epoch=7, revision=1))
    assert view.highest_epoch == 7
    offer(view, signed(2, 1, epoch=7))
    assert (view.highest_epoch, view.claimant) == (8, 0)
    offer(view, signed(3, 1, epoch=7))
    assert (view.highest_epoch, view.claimant) == (8, 0)
    offer(view, signed(3, 1, epoch=8, revision=1))
    assert view.highest_epoch == 8
    assert view.claimant


# --- tombstones -----------------------------------------------------------------


def test_a_tombstone_keeps_the_last_record() -> None:
    view = view_of(A, F)
    buried = view.nodes[node_id(1)]
    assert isinstance(buried, Tombstone)
    assert buried.last is A
    offer(view, verdict(1, 1, 1))
    again = view.nodes[node_id(1)]
    assert isinstance(again, Tombstone)
    assert (again.version.incarnation, again.last) == (1, A)
    unknown = view_of(F).nodes[node_id(1)]
    assert isinstance(unknown, Tombstone)
    assert unknown.last is None


def test_a_verdict_is_told_with_its_age() -> None:
    view = View()
    view.offer_verdict(verdict(1, 1, age=3_000), now=100.0)
    assert view.ended_at(node_id(1)) == 97.0
    item = told(view, node_id(1), 107.5)
    assert item == verdict(1, 1, age=10_500)


def test_a_goodbye_is_told_with_its_age() -> None:
    view = View()
    view.offer_record(L, 100.0, age=3.0)
    assert told(view, node_id(1), 107.5) == wire.RecordItem(L.signed, 10_500)
    assert told(view_of(A), node_id(1), 107.5) == wire.RecordItem(A.signed)


@pytest.mark.parametrize("ending", [L, F])
def test_what_ended_is_forgotten_after_a_day(ending: Offer) -> None:
    view = view_of(ending, signed(2))
    view.expire(DAY - 1)
    assert node_id(1) in view.nodes
    view.expire(DAY + 1)
    assert set(view.nodes) == {node_id(2)}
    assert view.hash() == view_of(signed(2)).hash()


@pytest.mark.parametrize("ending", [L, F])
def test_what_one_forgot_another_does_not_bring_back(ending: Offer) -> None:
    """Nobody forgets at the same instant: told a second before its day is over, it
    is forgotten a second later, and told after it, not taken at all."""
    early, late = view_of(ending), view_of(ending, now=5.0)
    early.expire(DAY)
    assert not early.nodes
    for now in (DAY + 1, DAY + 4):
        late.expire(now)
        item = told(late, node_id(1), now)
        if isinstance(item, wire.Verdict):
            early.offer_verdict(item, now)
        else:
            early.offer_record(L, now, item.age / 1000)
        early.expire(now + 5.1 - (now - DAY))
        assert not early.nodes
    late.expire(DAY + 5)
    assert not late.nodes


@pytest.mark.parametrize(("age", "change"), [(DAY - 1, Change.LEFT), (DAY, Change.NONE)])
def test_an_end_of_more_than_a_day_ago_is_not_taken(age: float, change: Change) -> None:
    assert View().offer_record(L, 0.0, age) is change
    told = View().offer_verdict(verdict(1, 1, age=int(age * 1000)), 0.0)
    assert (told is Change.NONE) is (change is Change.NONE)
    view = view_of(signed(2))
    gone = signed_entry("guest", 2, state=State.LEFT)
    assert (view.offer_entry(gone, 0.0, age) is Change.NONE) is (change is Change.NONE)


def test_a_member_that_failed_after_it_left_is_remembered_from_its_failure() -> None:
    """The goodbye of an earlier life does not make the tombstone old."""
    view = view_of(L)
    view.offer_verdict(verdict(1, 2), now=DAY - 10)
    view.expire(DAY + 10)
    assert isinstance(view.nodes[node_id(1)], Tombstone)


# --- guests ---------------------------------------------------------------------


def test_the_highest_term_then_home_holds_a_guest() -> None:
    low, high = sorted((1, 2), key=node_id)
    offers = [
        signed_entry("g", low, revision=5),
        signed_entry("g", high),
        signed_entry("g", low, term=2),
        signed_entry("g", low, term=2, revision=1),
    ]
    for order in itertools.permutations(offers):
        view = view_of(signed(1), signed(2), *order)
        assert view.guests["g"].version == offers[-1].version
    assert view_of(signed(1), signed(2), *offers[:2]).guests["g"] is offers[1]


def test_an_entry_is_taken_by_who_holds_its_home() -> None:
    view = View()
    guest = signed_entry("g", 1)
    assert view.offer_entry(guest, 0.0) is Change.NONE
    offer(view, A)
    assert view.offer_entry(guest, 0.0) is Change.JOINED
    assert view.offer_entry(signed_entry("g", 1, revision=1), 0.0) is Change.UPDATED
    keys = [key for key, _ in view.claims()]
    assert keys == [node_id(1), "g"]  # ... and told in that order
    view.forget(node_id(1))
    assert not view.guests
    assert view.hash() == View().hash()


@pytest.mark.parametrize(
    ("home", "ended_at"),
    [(A, None), (signed(1, 1, revision=1), None), (BACK, None), (L, 9.0), (F, 9.0), (ANEW, 9.0)],
)
def test_a_guest_is_void_from_when_its_home_ended_or_lives_anew(
    home: Offer, ended_at: float | None
) -> None:
    view = view_of(A, signed_entry("g", 1))
    offer(view, home, 9.0)
    assert view.ended_at("g") == ended_at


def test_a_guest_is_void_from_when_its_home_really_failed() -> None:
    view = view_of(A, signed_entry("g", 1))
    view.offer_verdict(verdict(1, 1, age=4_000), now=9.0)
    assert view.ended_at("g") == 5.0


@pytest.mark.parametrize("state", [State.FAILED, State.LEFT])
def test_a_guest_ended_when_its_home_says_so(state: State) -> None:
    view = view_of(A, signed_entry("g", 1))
    view.offer_entry(signed_entry("g", 1, revision=1, state=state), 7.0)
    assert view.ended_at("g") == 7.0
    assert told(view, "g", 9.0).age == 2_000
    view.offer_entry(signed_entry("g", 1, revision=2, state=State.LEFT), 8.0)
    assert view.ended_at("g") == 8.0
    view.offer_entry(signed_entry("g", 1, revision=3), 8.0)
    assert view.ended_at("g") is None
    assert told(view, "g", 9.0) == wire.EntryItem(view.guests["g"].signed)


def test_a_guest_lives_again_with_its_home_or_at_another() -> None:
    for back in (BACK, signed_entry("g", 2, term=2)):
        view = view_of(A, signed(2), signed_entry("g", 1))
        offer(view, F, 9.0)
        assert view.ended_at("g") == 9.0
        offer(view, back, 11.0)
        assert view.ended_at("g") is None


def test_a_void_guest_is_taken_with_its_age_and_forgotten_after_a_day() -> None:
    view = view_of(ANEW)
    view.offer_entry(signed_entry("g", 1, 1), 10.0, age=4.0)
    assert view.ended_at("g") == 6.0
    assert told(view, "g", 16.0).age == 10_000
    view.expire(DAY + 5)
    assert "g" in view.guests
    view.expire(DAY + 6)
    assert not view.guests
    assert view.hash() == view_of(ANEW).hash()


def test_guests_of_a_forgotten_home_are_forgotten() -> None:
    view = view_of(A, signed_entry("g", 1), signed(2), signed_entry("h", 2))
    offer(view, F, 1.0)
    view.expire(DAY + 1)
    assert set(view.nodes) == {node_id(2)}
    assert set(view.guests) == {"h"}


# --- bounds ---------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three members, three that ended, three guests."""
    monkeypatch.setattr(limits, "MEMBERS_MAX", 3)
    monkeypatch.setattr(limits, "TOMBSTONES_MAX", 3)
    monkeypatch.setattr(limits, "GUESTS_MAX", 3)


@pytest.mark.usefixtures("small")
def test_a_full_view_takes_no_further_member_until_one_ends() -> None:
    view = view_of(signed(1), signed(2), signed(3))
    assert view.offer_record(signed(4), 0.0) is Change.FULL
    assert view.offer_record(signed(3, revision=1), 0.0) is Change.UPDATED
    assert view.offer_verdict(verdict(3), 0.0) is Change.FAILED
    assert view.offer_record(signed(4), 0.0) is Change.JOINED
    assert view.offer_record(signed(3, incarnation=1), 0.0) is Change.FULL  # back, and no room
    assert view.alive_count == 3


@pytest.mark.usefixtures("small")
def test_members_come_and_go_for_ever_and_the_longest_gone_is_forgotten() -> None:
    view = View()
    for number in range(1, 40):
        assert view.offer_record(signed(number), float(number)) is Change.JOINED
        if number % 2:
            assert view.offer_verdict(verdict(number), float(number)) is Change.FAILED
        else:
            goodbye = signed(number, state=State.LEFT)
            assert view.offer_record(goodbye, float(number)) is Change.LEFT
        assert len(view.nodes) <= 6
    assert set(view.nodes) == {node_id(number) for number in (37, 38, 39)}


@pytest.mark.usefixtures("small")
def test_of_unknown_ends_a_full_view_takes_only_later_ones() -> None:
    view = View()
    for number in (1, 2, 3):
        view.offer_verdict(verdict(number), float(number))
    assert view.offer_verdict(verdict(4, age=9_500), 10.0) is Change.FULL
    assert view.offer_record(signed(4, state=State.LEFT), 10.0, age=9.5) is Change.FULL
    assert view.offer_verdict(verdict(4), 10.0) is Change.UPDATED
    assert view.offer_record(signed(5, state=State.LEFT), 10.0) is Change.LEFT
    assert set(view.nodes) == {node_id(number) for number in (3, 4, 5)}
    assert view.offer_verdict(verdict(4, 1, 1, age=9_900), 10.0) is Change.UPDATED  # held already
    assert set(view.nodes) == {node_id(number) for number in (3, 4, 5)}


@pytest.mark.usefixtures("small")
def test_a_full_view_believes_every_end_of_a_member() -> None:
    view = view_of(signed(9))
    for number in (1, 2, 3):
        view.offer_verdict(verdict(number), float(number))
    assert view.offer_verdict(verdict(9, age=9_900), 10.0) is Change.FAILED
    assert set(view.nodes) == {node_id(number) for number in (2, 3, 9)}


@pytest.mark.usefixtures("small")
def test_a_full_view_forgets_ended_guests_for_living_ones() -> None:
    view = view_of(A, *(signed_entry(guest, 1) for guest in "abc"))
    assert view.offer_entry(signed_entry("d", 1), 0.0) is Change.FULL
    for at, guest in ((2.0, "b"), (3.0, "a")):
        view.offer_entry(signed_entry(guest, 1, revision=1, state=State.LEFT), at)
    gone = signed_entry("d", 1, state=State.LEFT)
    assert view.offer_entry(gone, 4.0, age=2.5) is Change.FULL  # gone longer than any
    assert view.offer_entry(signed_entry("e", 1), 4.0) is Change.JOINED
    assert set(view.guests) == {"a", "c", "e"}
    assert view.offer_entry(gone, 4.0) is Change.JOINED
    assert set(view.guests) == {"c", "d", "e"}
    assert view.ended_at("a") is None


def test_forgetting_who_is_not_held_does_nothing() -> None:
    view = view_of(A)
    view.forget(node_id(2))
    assert view.alive_count == 1
    claims: list[Claim] = [claim for _, claim in view.claims()]
    assert claims == [A]
    assert view.highest == life(1)
