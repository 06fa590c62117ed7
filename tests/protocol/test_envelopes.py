from __future__ import annotations

import random
import uuid

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import envelopes, limits
from p2pmesh.protocol.types import Envelope

NUMBERS = st.sets(st.integers(1, 60)).map(sorted)


def spread(ranges: envelopes.Ranges) -> list[int]:
    return [number for first, last in ranges for number in range(first, last + 1)]


def test_a_message_id_is_a_uuid_of_version_7_that_sorts_by_time() -> None:
    entropy = random.Random(1).randbytes
    made = [envelopes.uuid7(1_760_000_000_000 + ms, entropy) for ms in range(50)]
    assert made == sorted(made)
    for ms, text in enumerate(made):
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert parsed.int >> 80 == 1_760_000_000_000 + ms
        assert str(parsed) == text


@given(NUMBERS)
def test_ranges_hold_exactly_their_numbers(numbers: list[int]) -> None:
    ranges = envelopes.ranges_of(numbers)
    assert spread(ranges) == numbers
    assert envelopes.are_sound(ranges)


@given(NUMBERS, NUMBERS)
def test_what_is_held_in_ranges_is_their_intersection(asked: list[int], held: list[int]) -> None:
    found = list(envelopes.held_in(envelopes.ranges_of(asked), held))
    assert found == sorted(set(asked) & set(held))


@given(NUMBERS, NUMBERS, st.integers(0, 70))
def test_ranges_without_what_is_held_are_their_difference(
    asked: list[int], held: list[int], most: int
) -> None:
    left = envelopes.without(envelopes.ranges_of(asked), held, most)
    assert spread(left) == sorted(n for n in set(asked) - set(held) if n <= most)


def test_ranges_that_overlap_descend_or_are_too_many_are_not_sound() -> None:
    assert not envelopes.are_sound(((1, 3), (3, 4)))
    assert not envelopes.are_sound(((5, 6), (1, 2)))
    assert not envelopes.are_sound(((2, 1),))
    assert not envelopes.are_sound(((0, 1),))
    assert not envelopes.are_sound(((1, 2**63),))
    assert not envelopes.are_sound(
        tuple((3 * n, 3 * n + 1) for n in range(1, limits.RANGES_MAX + 2))
    )


def test_an_envelope_is_sound_within_its_limits_only() -> None:
    good = Envelope("id", "a", "b", "Query", b"", None, 0)
    assert envelopes.is_sound(good)
    for change in (
        {"message_id": ""},
        {"message_id": "x" * 65},
        {"source": "x" * 129},
        {"target": ""},
        {"target": "x" * 129},
        {"type": "x" * 129},
        {"correlation_id": "x" * 257},
        {"created_at": -1},
        {"payload": bytes(limits.PAYLOAD_MAX + 1)},
    ):
        fields = {name: getattr(good, name) for name in good.__struct_fields__}
        assert not envelopes.is_sound(Envelope(**{**fields, **change})), change


def test_a_ttl_off_the_wire_is_held_to_what_a_ttl_may_be() -> None:
    assert envelopes.seconds_left(-(2**63)) == 0
    assert envelopes.seconds_left(1500) == 1.5
    assert envelopes.seconds_left(2**63) == 30 * 24 * 3600
