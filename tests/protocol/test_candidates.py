"""Candidate addresses: when each is dialled, and who gives way when they are many."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import candidates as candidates_module
from p2pmesh.protocol import limits
from p2pmesh.protocol.candidates import Candidates
from p2pmesh.protocol.types import Candidate, FoundBy

RNG = random.Random(1)


def candidate(key: str, *addresses: str, found_by: FoundBy = FoundBy.MDNS) -> Candidate:
    return Candidate(key, addresses or (f"{key}:1",), found_by)


def keys(candidates: Candidates, now: float) -> list[str]:
    return [offer.candidate.key for offer in candidates.due(now, RNG)]


def dialled(candidates: Candidates, now: float, *, node: bytes | None = None) -> list[str]:
    """Dial all that is due; each dial ends at once."""
    due = candidates.due(now, RNG)
    for offer in due:
        offer.is_dialling = True
    for offer in due:
        candidates.tried(offer.candidate.key, now, node=node)
    return [offer.candidate.key for offer in due]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CANDIDATES_MAX", 3)


def test_a_candidate_is_due_when_it_was_said_to_be() -> None:
    candidates = Candidates()
    assert candidates.next_due() is None
    assert candidates.add(candidate("a"), 3.0, 2.0)
    assert candidates.add(candidate("b"), 4.0)
    assert candidates.next_due() == 4.0
    assert keys(candidates, 3.9) == []
    assert keys(candidates, 4.5) == ["b"]
    assert sorted(keys(candidates, 5.0)) == ["a", "b"]


def test_many_candidates_are_due_a_few_times_a_second() -> None:
    candidates, rng = Candidates(), random.Random(1)
    delays = {f"k{number}": rng.uniform(0.2, 2.0) for number in range(200)}
    for key, delay in delays.items():
        candidates.add(candidate(key), 100.03, delay)
    looks, now = 0, 100.03
    first = dict[str, float]()
    while now < 140.0:
        due = candidates.next_due()
        assert due is not None
        assert due > now
        now, looks = due, looks + 1
        for key in dialled(candidates, now):
            first.setdefault(key, now)
        assert candidates.dialling() == []
    assert all(0 <= first[key] - (100.03 + delay) < 0.051 for key, delay in delays.items())
    assert looks < 120  # for six dials of each of two hundred


def test_what_somebody_insists_on_is_dialled_first() -> None:
    candidates = Candidates()
    candidates.add(candidate("a"), 0.0)
    candidates.add(candidate("b", found_by=FoundBy.RUNTIME), 0.0)
    candidates.add(candidate("p", found_by=FoundBy.PEER), 0.0)
    for _ in range(10):
        assert keys(candidates, 0.0)[0] == "p"


def test_those_never_dialled_go_first_and_in_any_order() -> None:
    """Hundreds that read one directory shall not all dial the same few."""
    candidates = Candidates()
    for key in "abcdef":
        candidates.add(candidate(key), 0.0)
    (offer, *_) = candidates.due(0.0, RNG)
    offer.is_dialling = True
    candidates.tried(offer.candidate.key, 0.0, node=None)
    orders = {tuple(keys(candidates, 9.0)) for _ in range(10)}
    assert {order[-1] for order in orders} == {offer.candidate.key}
    assert len({order[0] for order in orders}) > 1


def test_who_has_joined_lets_those_it_has_not_dialled_become_known_otherwise() -> None:
    candidates = Candidates()
    for key in "abc":
        candidates.add(candidate(key), 0.0)
    candidates.add(candidate("p", found_by=FoundBy.PEER), 0.0)
    candidates.offers["a"].is_dialling = True
    candidates.tried("b", 0.0, node=None)
    candidates.offers["a"].due_at = 0.5
    candidates.wait(1.0, lambda: 2.0)
    due = {key: offer.due_at for key, offer in candidates.offers.items()}
    assert due == {"a": 0.5, "b": 1.0, "c": 3.0, "p": 0.0}


def test_nothing_is_due_while_it_is_dialled() -> None:
    candidates = Candidates()
    candidates.add(candidate("a"), 0.0)
    (offer,) = candidates.due(0.0, RNG)
    offer.is_dialling = True
    assert candidates.due(0.0, RNG) == []
    assert candidates.next_due() is None
    candidates.tried("a", 2.0, node=b"who")
    assert candidates.next_due() == 3.0
    assert offer.node == b"who"
    candidates.tried("a", 3.0, node=None)
    assert offer.node == b"who"  # who answered last


def test_a_candidate_is_dialled_for_ever_and_ever_less_often() -> None:
    candidates = Candidates()
    candidates.add(candidate("p", found_by=FoundBy.PEER), 0.0)
    gaps, now = [], 0.0
    for _ in range(10):
        assert dialled(candidates, now) == ["p"]
        due = candidates.next_due()
        assert due is not None
        gaps.append(due - now)
        now = due
    assert gaps == [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


def test_where_a_live_member_is_nothing_is_dialled_until_it_is_gone() -> None:
    candidates = Candidates()
    candidates.add(candidate("a"), 0.0)
    for now in (0.0, 1.0, 3.0, 7.0):
        dialled(candidates, now)
    for now in (15.0, 45.0):
        assert keys(candidates, now) == ["a"]
        candidates.spare("a", now)
        assert not candidates.pending()
    assert candidates.next_due() == 75.0
    dialled(candidates, 75.0)
    assert candidates.next_due() == 77.0
    candidates.spare("nobody", 0.0)


@pytest.mark.usefixtures("few")
def test_the_place_of_a_live_member_is_free_for_who_waits() -> None:
    candidates = Candidates()
    for key in "abcd":
        candidates.add(candidate(key), 0.0)
    candidates.spare("a", 0.0)
    assert set(candidates.offers) == set("bcd")


def test_the_same_offer_again_changes_nothing_and_new_addresses_start_anew() -> None:
    candidates = Candidates()
    candidates.add(candidate("a", "x:1"), 0.0)
    dialled(candidates, 0.0)
    dialled(candidates, 1.0)
    assert not candidates.add(candidate("a", "x:1"), 1.5)
    assert candidates.next_due() == 3.0
    assert candidates.add(candidate("a", "x:1", "y:1"), 1.5)
    assert candidates.next_due() == 1.5
    assert candidates.offers["a"].candidate.addresses == ("x:1", "y:1")
    dialled(candidates, 1.5)
    assert candidates.next_due() == 2.5


def test_an_offer_without_an_address_is_none() -> None:
    candidates = Candidates()
    assert not candidates.add(Candidate("a", (), FoundBy.MDNS), 0.0)
    assert candidates.next_due() is None


def test_what_is_this_process_is_never_dialled_again_until_it_is_withdrawn() -> None:
    candidates = Candidates()
    candidates.add(candidate("me"), 0.0)
    candidates.is_myself("me", 0.0)
    assert candidates.next_due() is None
    assert not candidates.add(candidate("me", "z:1"), 0.0)
    candidates.remove("me", 0.0)
    assert candidates.add(candidate("me"), 0.0)


def test_a_withdrawn_offer_is_forgotten() -> None:
    candidates = Candidates()
    candidates.add(candidate("a"), 0.0)
    candidates.remove("a", 0.0)
    candidates.remove("b", 0.0)
    candidates.tried("a", 0.0, node=None)
    assert candidates.next_due() is None


def test_an_unstamped_node_waits_for_what_was_never_dialled() -> None:
    candidates = Candidates()
    assert not candidates.pending()
    candidates.add(candidate("a"), 0.0, 9.0)
    assert candidates.pending()
    (offer,) = candidates.due(9.0, RNG)
    offer.is_dialling = True
    assert candidates.pending()
    assert candidates.dialling() == [offer]
    candidates.tried("a", 9.0, node=None)
    assert not candidates.pending()
    offer.is_dialling = True  # again
    assert candidates.pending()


def test_people_are_told_what_was_tried_and_where_it_came_from() -> None:
    candidates = Candidates()
    candidates.add(candidate("a", "10.0.0.1:8078", "10.0.0.2:8078"), 0.0)
    assert candidates.tried_addresses() == ("10.0.0.1:8078 (mdns)", "10.0.0.2:8078 (mdns)")


# --- many -----------------------------------------------------------------------


def test_a_full_table_is_not_searched_for_each_of_a_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = 0
    tries = candidates_module._tries

    def counted(offer: candidates_module.Offer) -> int:
        nonlocal looked
        looked += 1
        return tries(offer)

    monkeypatch.setattr(candidates_module, "_tries", counted)
    candidates = Candidates()
    for number in range(4 * limits.CANDIDATES_MAX):
        candidates.add(candidate(f"k{number}"), 0.0)
    assert looked <= 2 * limits.CANDIDATES_MAX
    dialled(candidates, 0.0)  # now each of these gives way
    candidates.add(candidate("new"), 1.0)
    assert "new" in candidates.deferred


@pytest.mark.usefixtures("few")
def test_the_newest_wait_and_none_that_was_not_dialled_is_dropped() -> None:
    candidates = Candidates()
    for key in "abcdef":
        assert candidates.add(candidate(key), 0.0) is (key in "abc")
    assert set(candidates.offers) == set("abc")
    assert set(candidates.deferred) == set("def")
    assert not candidates.add(candidate("g"), 0.0)  # no room even to wait
    assert set(candidates.deferred) == set("def")
    candidates.remove("b", 7.0)
    assert set(candidates.offers) == set("acd")
    assert candidates.offers["d"].due_at == 7.0
    candidates.remove("f", 7.0)
    assert set(candidates.deferred) == {"e"}
    candidates.is_myself("a", 8.0)
    assert set(candidates.offers) == set("cde")


@pytest.mark.usefixtures("few")
def test_a_newcomer_takes_the_place_of_one_that_was_dialled() -> None:
    candidates = Candidates()
    for key in "abc":
        candidates.add(candidate(key), 0.0)
    dialled(candidates, 0.0)
    assert candidates.add(candidate("d"), 0.5)
    assert keys(candidates, 0.5) == ["d"]
    assert len(candidates.offers) == 3
    assert len(candidates.deferred) == 1


@pytest.mark.usefixtures("few")
def test_what_somebody_insists_on_keeps_its_place() -> None:
    candidates = Candidates()
    for key in "pqr":
        candidates.add(candidate(key, found_by=FoundBy.PEER), 0.0)
    dialled(candidates, 0.0)
    assert not candidates.add(candidate("d"), 0.5)
    dialled(candidates, 5.0)
    assert set(candidates.offers) == set("pqr")


@pytest.mark.usefixtures("few")
def test_one_that_is_dialled_just_now_keeps_its_place() -> None:
    candidates = Candidates()
    for key in "abc":
        candidates.add(candidate(key), 0.0)
    dialled(candidates, 0.0)
    for offer in candidates.due(1.0, RNG):
        offer.is_dialling = True
    assert not candidates.add(candidate("d"), 1.0)


@pytest.mark.usefixtures("few")
def test_all_are_dialled_in_turn_when_they_are_too_many() -> None:
    candidates = Candidates()
    for key in "abcdef":
        candidates.add(candidate(key), 0.0)
    counts = dict.fromkeys("abcdef", 0)
    for tenth in range(2000):
        for key in dialled(candidates, tenth / 10):
            counts[key] += 1
        assert len(candidates.offers) == len(candidates.deferred) == 3
    assert min(counts.values()) >= 8
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.usefixtures("few")
def test_at_the_very_end_the_most_dialled_is_dropped() -> None:
    candidates = Candidates()
    for key in "abc":
        candidates.add(candidate(key), 0.0)
    dialled(candidates, 0.0)
    for key in "defghi":
        candidates.add(candidate(key), 0.5)
    assert set(candidates.offers) | set(candidates.deferred) == set("defghi")


@pytest.mark.usefixtures("few")
def test_a_free_place_goes_to_the_least_dialled() -> None:
    candidates = Candidates()
    for key in "abc":
        candidates.add(candidate(key), 0.0)
    dialled(candidates, 0.0)
    candidates.add(candidate("d"), 5.0)
    (waits,) = candidates.deferred
    for offer in candidates.due(2.0, RNG):
        offer.is_dialling = True
    assert not candidates.add(candidate("e"), 5.0)
    candidates.remove("d", 2.0)
    assert set(candidates.deferred) == {waits}
    assert not candidates.add(candidate(waits), 2.0)  # known, and dialled once
    assert candidates.deferred[waits].tries == 1


@pytest.mark.usefixtures("few")
def test_new_addresses_of_one_that_waits_are_kept() -> None:
    candidates = Candidates()
    for key in "abcd":
        candidates.add(candidate(key), 0.0)
    assert not candidates.add(candidate("d", "new:1"), 0.0)
    candidates.remove("a", 0.0)
    assert candidates.offers["d"].candidate.addresses == ("new:1",)


KEYS = st.sampled_from([f"k{number}" for number in range(12)])


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "peer", "remove", "dial", "end", "me"]), KEYS),
        max_size=80,
    )
)
def test_places_are_bounded_and_no_key_has_two(steps: list[tuple[str, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CANDIDATES_MAX", 3)
        candidates = Candidates()
        for now, (step, key) in enumerate(steps):
            match step:
                case "add":
                    candidates.add(candidate(key), float(now))
                case "peer":
                    candidates.add(candidate(key, found_by=FoundBy.PEER), float(now))
                case "remove":
                    candidates.remove(key, float(now))
                case "dial":
                    for offer in candidates.due(float(now), RNG):
                        offer.is_dialling = True
                case "end":
                    candidates.tried(key, float(now), node=None)
                case "me":
                    candidates.is_myself(key, float(now))
            places = [*candidates.offers, *candidates.deferred]
            assert len(candidates.offers) <= 3
            assert len(candidates.deferred) <= 3
            assert len(set(places)) == len(places)
            assert all(key == offer.candidate.key for key, offer in candidates.offers.items())
            assert not any(offer.is_dialling for offer in candidates.deferred.values())
            assert not candidates.deferred or len(candidates.offers) == 3
