"""What is told next: once for all links, the urgent first, and together in a storm."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.news import Round, Urgency, pack

CHANGE, ENDING, QUESTION = Urgency.CHANGE, Urgency.ENDING, Urgency.QUESTION
RING, OTHER = 1, 2  # links


def said(news: Round, now: float = 0.0) -> list[bytes]:
    return [piece.item for piece in news.take(now)]


def told(news: Round, link: int, *, is_ring: bool) -> list[bytes]:
    return [
        piece.item
        for piece in news.pieces.values()
        if (is_ring or piece.is_mine) and link not in piece.knowing
    ]


def test_a_newer_item_replaces_the_older_about_the_same_subject() -> None:
    news = Round()
    for item in (b"old", b"new"):
        assert news.put("x", item, CHANGE, None)
    news.put("y", b"other", CHANGE, None)
    assert said(news) == [b"new", b"other"]
    assert said(news) == []


def test_questions_go_before_endings_and_those_before_changes() -> None:
    news = Round()
    for number, urgency in enumerate((CHANGE, ENDING, QUESTION, CHANGE, ENDING, QUESTION)):
        news.put(number, bytes([number]), urgency, None)
    assert said(news) == [bytes([n]) for n in (2, 5, 1, 4, 0, 3)]


def test_an_item_that_replaces_an_urgent_one_is_as_urgent() -> None:
    """A refutation, and then a change of the same record, which refutes as well."""
    news = Round()
    news.put("x", b"x", CHANGE, None)
    news.put("me", b"refuted", QUESTION, None)
    news.put("me", b"refuted and changed", CHANGE, None)
    assert said(news) == [b"refuted and changed", b"x"]


# --- to whom ------------------------------------------------------------------------


def test_what_i_learn_goes_to_ring_links_and_not_back() -> None:
    news = Round()
    news.put("x", b"x", CHANGE, RING)
    assert told(news, RING, is_ring=True) == []
    assert told(news, OTHER, is_ring=True) == [b"x"]
    assert told(news, OTHER, is_ring=False) == []


def test_what_i_say_myself_goes_to_every_peer() -> None:
    news = Round()
    news.put("me", b"mine", CHANGE, None)
    assert told(news, RING, is_ring=True) == told(news, OTHER, is_ring=False) == [b"mine"]


def test_who_says_the_same_meanwhile_is_not_told() -> None:
    news = Round()
    news.put("x", b"x", CHANGE, RING)
    news.known("x", OTHER, b"older")
    news.known("y", OTHER)
    assert told(news, OTHER, is_ring=True) == [b"x"]
    news.known("x", OTHER, b"x")
    assert told(news, OTHER, is_ring=True) == []
    news.put("x", b"newer", CHANGE, RING)
    assert told(news, OTHER, is_ring=True) == [b"newer"]
    news.known("x", OTHER)
    assert told(news, OTHER, is_ring=True) == []


# --- when ----------------------------------------------------------------------------


def test_plain_changes_leave_at_once_when_it_is_quiet_and_together_when_not() -> None:
    news = Round()
    news.put("x", b"x", CHANGE, None)
    assert news.due_at() <= 0.0
    said(news, now=7.0)
    news.put("y", b"y", CHANGE, None)
    assert news.due_at() == 7.0 + timing.NEWS_INTERVAL


@pytest.mark.parametrize("urgency", [ENDING, QUESTION])
def test_what_is_urgent_leaves_at_once_and_takes_the_rest_along(urgency: Urgency) -> None:
    news = Round()
    news.put("x", b"x", CHANGE, None)
    said(news, now=7.0)
    news.put("y", b"y", CHANGE, None)
    news.put("z", b"z", urgency, None)
    news.put("z", b"newer", CHANGE, None)
    assert news.due_at() <= 7.0
    assert said(news, now=7.0) == [b"newer", b"y"]
    news.put("y", b"y", CHANGE, None)
    assert news.due_at() > 7.0


def test_in_a_storm_the_urgent_leave_together() -> None:
    """So many rounds at once, then one every interval; a pause earns them anew."""
    news = Round()
    for pause in (0.0, 10.0):
        now = 100.0 + pause
        for _ in range(limits.HURRIES_MAX):
            news.put("x", b"x", QUESTION, None)
            assert news.due_at() <= now
            said(news, now)
        for _ in range(5):
            news.put("x", b"x", QUESTION, None)
            assert now < news.due_at() <= now + timing.HURRY_INTERVAL + 1e-9
            now = news.due_at()
            said(news, now)


# --- how much --------------------------------------------------------------------------


def test_there_is_room_for_newer_items_of_subjects_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "NEWS_QUEUE_MAX", 2)
    news = Round()
    assert news.put(1, b"1", CHANGE, None)
    assert news.put(2, b"2", CHANGE, None)
    assert not news.put(3, b"3", QUESTION, None)
    assert news.put(2, b"newer", CHANGE, None)
    assert said(news) == [b"1", b"newer"]


@given(st.lists(st.integers(0, limits.NEWS_ITEM_MAX), max_size=60))
@example([150] * 400)
@example([300] * 200)
def test_groups_hold_all_items_in_order_and_fit_one_message(sizes: list[int]) -> None:
    items = [bytes(size) for size in sizes]
    groups = list(pack(items))
    assert [item for group in groups for item in group] == items
    for group in groups:
        assert 0 < len(group) <= limits.NEWS_ITEMS_MAX
        assert len(wire.encode(wire.News(group))) <= limits.CHUNK_MAX
        assert len(wire.encode(wire.Offer(group))) <= limits.CHUNK_MAX


def test_a_group_is_no_smaller_than_it_must_be() -> None:
    assert [len(group) for group in pack([b"x"] * 600)] == [256, 256, 88]
    assert [len(group) for group in pack([bytes(1000)] * 64)] == [32, 32]
    assert list(pack([])) == []
