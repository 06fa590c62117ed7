"""Stamps: seniority is the order of joining, whatever the clocks say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol.records import is_plausible
from p2pmesh.protocol.stamps import (
    CLOCKS_SET_AFTER,
    founding_stamp,
    founds_first,
    is_clock_set,
    joining_stamp,
)
from p2pmesh.protocol.types import Life

NOW = 1_790_000_000_000
MINUTE = 60_000
#: Wall clocks as they come: unset, before 1970, right, years off either way.
WALLS = st.integers(-(10**13), 10**14) | st.sampled_from(
    [0, 1, CLOCKS_SET_AFTER - 1, CLOCKS_SET_AFTER, NOW]
)
RANDOMS = st.integers(0, 2**32 - 1)
LIVES = st.builds(
    Life, st.sampled_from([0, 5, CLOCKS_SET_AFTER - 1, CLOCKS_SET_AFTER, NOW, 2**47]),
    st.integers(0, 2**40), RANDOMS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("why", "wall", "highest", "contact_wall", "stamp"),
    [
        ("my clock, after everyone", NOW, (NOW - 5, 0), NOW, (NOW, 0)),
        ("my clock is behind", NOW - 9, (NOW, 3), NOW, (NOW, 4)),
        ("my clock is at 1970", 0, (NOW, 3), NOW, (NOW, 4)),
        ("my clock is before 1970", -99, (NOW, 3), NOW, (NOW, 4)),
        ("the same millisecond", NOW, (NOW, 0), NOW, (NOW, 1)),
        ("a minute ahead", NOW + MINUTE, (NOW, 0), NOW, (NOW + MINUTE, 0)),
        ("years ahead: held back", NOW * 2, (NOW, 0), NOW, (NOW + MINUTE, 0)),
        ("... by the contact's clock", NOW * 2, (NOW - 9, 0), NOW, (NOW + MINUTE, 0)),
        ("the contact's clock is behind M", NOW * 2, (NOW, 0), 0, (NOW + MINUTE, 0)),
        ("a mesh that never knew the date", NOW, (5, 2), 5, (5, 3)),
        ("... and neither do I", 7, (5, 2), 5, (5, 3)),
        ("the last ms before 2024", NOW, (CLOCKS_SET_AFTER - 1, 0), NOW, (CLOCKS_SET_AFTER - 1, 1)),
        ("the first of 2024", NOW, (CLOCKS_SET_AFTER, 0), NOW, (NOW, 0)),
    ],
)
def test_the_table(
    why: str, wall: int, highest: tuple[int, int], contact_wall: int, stamp: tuple[int, int]
) -> None:
    made = joining_stamp(wall, Life(*highest, 9), contact_wall, None, 42)
    assert made == Life(*stamp, 42), why


@given(WALLS, LIVES, WALLS, st.none() | LIVES, RANDOMS)
def test_no_joiner_is_older_than_what_its_contact_knows_on_any_clock(
    wall: int, highest: Life, contact_wall: int, last: Life | None, random: int
) -> None:
    stamp = joining_stamp(wall, highest, contact_wall, last, random)
    assert stamp > highest
    assert stamp[:2] > highest[:2]  # the random part decides between newcomers only
    if last is not None:
        assert stamp > last
    if is_plausible(highest) and (last is None or is_plausible(last)) and contact_wall < 2**47:
        assert is_plausible(stamp)


@given(st.lists(st.tuples(WALLS, st.integers(0, 5), RANDOMS), min_size=2, max_size=12))
def test_any_chain_of_contacts_orders_lives_by_joining(
    nodes: list[tuple[int, int, int]],
) -> None:
    """Each joins under one of those before it, who knows all of them."""
    wall, _, random = nodes[0]
    lives, walls = [founding_stamp(wall, None, random)], [wall]
    for wall, contact, random in nodes[1:]:
        contact_wall = walls[contact % len(walls)]
        lives.append(joining_stamp(wall, max(lives), contact_wall, None, random))
        walls.append(wall)
    assert lives == sorted(lives)
    assert len({life[:2] for life in lives}) == len(lives)


def test_a_clock_that_is_ahead_takes_nobody_further_than_a_minute() -> None:
    highest = Life(NOW, 0, 0)
    for _ in range(10):
        highest = joining_stamp(2**47, highest, NOW, None, 0)
    assert highest.ms <= NOW + 10 * MINUTE


@given(WALLS, st.none() | LIVES, RANDOMS)
def test_a_founder_is_above_its_earlier_lives(wall: int, last: Life | None, random: int) -> None:
    stamp = founding_stamp(wall, last, random)
    if last is None:
        assert stamp == Life(max(wall, 0), 0, random)
    else:
        assert stamp > last
        assert stamp in (Life(max(wall, 0), 0, random), Life(last.ms, last.logical + 1, random))


def test_a_clock_is_set_from_2024_on() -> None:
    assert CLOCKS_SET_AFTER == 1704067200000
    assert not is_clock_set(Life(CLOCKS_SET_AFTER - 1, 9, 9))
    assert is_clock_set(Life(CLOCKS_SET_AFTER, 0, 0))


IDS = st.sampled_from([b"\x00" * 32, b"\x00" * 31 + b"\x01", b"\xff" * 32])


@given(st.integers(0, 3), IDS, st.integers(0, 3), IDS)
def test_of_two_unstamped_nodes_exactly_one_founds(
    uptime: int, node: bytes, other_uptime: int, other: bytes
) -> None:
    if node == other:
        return
    mine = founds_first(uptime, node, other_uptime, other)
    assert mine is not founds_first(other_uptime, other, uptime, node)
    if uptime != other_uptime:
        assert mine is (uptime > other_uptime)
    else:
        assert mine is (node < other)
