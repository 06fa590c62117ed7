"""Three salted rings: everyone with the same view computes the same links."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol.rings import POSITIONS, RINGS, Position, Rings
from p2pmesh.protocol.types import NodeId


def node(number: int) -> NodeId:
    return blake2b(number.to_bytes(4), digest_size=32).digest()


def rings_of(numbers: Iterable[int]) -> Rings:
    rings = Rings(ME)
    for number in numbers:
        rings.add(node(number))
    return rings


ME = node(7)


def opposite(position: Position) -> Position:
    return Position(position.ring, -position.step)


SETS = st.sets(st.integers(0, 60), max_size=25)


def test_there_are_six_positions() -> None:
    assert len(POSITIONS) == len(set(POSITIONS)) == 2 * RINGS == 6


@given(SETS, st.randoms(use_true_random=False))
def test_rings_do_not_depend_on_the_order_of_arrival(numbers: set[int], rng: random.Random) -> None:
    order = sorted(numbers)
    rng.shuffle(order)
    one, other = rings_of(sorted(numbers)), rings_of(order)
    for number in range(61):
        assert one.neighbours(node(number)) == other.neighbours(node(number))


@given(SETS, SETS)
def test_who_came_and_went_leaves_no_trace(stay: set[int], go: set[int]) -> None:
    rings, clean = rings_of(stay | go), rings_of(stay)
    for number in go - stay:
        rings.remove(node(number))
    assert len(rings) == len(clean)
    for number in stay | go:
        assert (node(number) in rings) is (number in stay)
        assert rings.neighbours(node(number)) == clean.neighbours(node(number))


@given(SETS)
def test_my_successors_predecessor_is_me(numbers: set[int]) -> None:
    rings = rings_of(numbers)
    for number in numbers:
        for position in POSITIONS:
            other = rings.at(node(number), position)
            if other is None:
                assert len(numbers) == 1
            else:
                assert rings.at(other, opposite(position)) == node(number)


@given(SETS)
def test_links_are_symmetric_and_at_most_six_each(numbers: set[int]) -> None:
    rings = rings_of(numbers)
    links = {number: rings.neighbours(node(number)) for number in numbers}
    for number, others in links.items():
        assert len(others) == len(set(others)) == min(len(others), 6, len(numbers) - 1)
        assert node(number) not in others
        for other in others:
            assert node(number) in rings.neighbours(other)


@given(SETS, st.integers(0, 60))
def test_a_position_is_the_next_on_the_circle(numbers: set[int], of: int) -> None:
    """Against the definition: who is on the ring is sorted, and the circle closes."""
    rings = rings_of(numbers)
    for ring in range(RINGS):

        def place(number: int, ring: int = ring) -> int:
            salt = bytes([ring])
            digest = blake2b(node(number), digest_size=16, salt=salt, person=b"p2pmesh-ring")
            return int.from_bytes(digest.digest())

        circle = sorted(numbers - {of}, key=place)
        above = [number for number in circle if place(number) > place(of)]
        below = [number for number in circle if place(number) < place(of)]
        clockwise = [node(number) for number in above + below]
        for step, walk in ((1, clockwise), (-1, clockwise[::-1])):
            position = Position(ring, step)
            assert rings.at(node(of), position) == (walk[0] if walk else None)
            for skipped in range(len(walk) + 1):
                found = rings.at(node(of), position, set(walk[:skipped]))
                assert found == (walk[skipped] if skipped < len(walk) else None)


@given(st.sets(st.integers(0, 60), min_size=3, max_size=12), st.data())
def test_who_fills_in_is_the_same_seen_from_its_own_end(
    numbers: set[int], data: st.DataObject
) -> None:
    """Both ends of a link that fills a gap find it by the same walk."""
    rings = rings_of(numbers)
    me, gone = data.draw(st.permutations(sorted(numbers)))[:2]
    for position in POSITIONS:
        filler = rings.at(node(me), position, {node(gone)})
        if filler is not None:
            assert rings.at(filler, opposite(position), {node(gone)}) == node(me)


def test_a_suspect_keeps_its_monitors() -> None:
    """Off the rings, its neighbours are those who were next to it."""
    rings = rings_of(range(40))
    monitors = rings.neighbours(node(7))
    rings.remove(node(7))
    assert rings.neighbours(node(7)) == monitors


CHANGES = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=90)


@given(SETS, CHANGES)
def test_however_many_come_and_go_between_two_questions(
    numbers: set[int], changes: list[tuple[int, bool]]
) -> None:
    rings, there = rings_of(numbers), set(numbers)
    assert len(rings) == len(there)
    for number, is_here in changes:
        (rings.add if is_here else rings.remove)(node(number))
        (there.add if is_here else there.discard)(number)
    assert {number for number in range(61) if node(number) in rings} == there
    assert len(rings) == len(there)
    clean = rings_of(sorted(there))
    for number in range(61):
        assert rings.neighbours(node(number)) == clean.neighbours(node(number))


@given(SETS, CHANGES)
def test_who_is_next_to_me_is_known_at_every_moment(
    numbers: set[int], changes: list[tuple[int, bool]]
) -> None:
    """And nobody but whom it concerns is said to concern me."""
    rings, there = rings_of(numbers), set(numbers)
    for number, is_here in changes:
        before = rings.neighbours(ME)
        is_changed = (rings.add if is_here else rings.remove)(node(number))
        (there.add if is_here else there.discard)(number)
        after = rings.neighbours(ME)
        assert after == rings_of(sorted(there)).neighbours(ME)
        assert is_changed or after == before


def test_most_of_a_large_mesh_does_not_concern_me() -> None:
    rings = rings_of(range(1000))
    concerned = sum(rings.add(node(number)) for number in range(1000, 2000))
    assert 0 < concerned < 15
    rings.neighbours(ME)
    assert sum(rings.remove(node(number)) for number in range(1000, 2000, 20)) < 15


def test_nearly_all_of_a_hundred_nodes_have_six_links() -> None:
    rings = rings_of(range(100))
    degrees = [len(rings.neighbours(node(number))) for number in range(100)]
    assert sum(degrees) > 570


def test_a_thousand_nodes_are_seven_links_wide() -> None:
    rings = rings_of(range(1000))
    for root in range(5):
        hops = {node(root): 0}
        queue = deque(hops)
        while queue:
            at = queue.popleft()
            for other in rings.neighbours(at):
                if other not in hops:
                    hops[other] = hops[at] + 1
                    queue.append(other)
        assert len(hops) == 1000
        assert max(hops.values()) <= 7
