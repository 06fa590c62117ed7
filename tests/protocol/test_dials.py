"""An attempt is as telling as its most telling dial."""

from __future__ import annotations

import itertools

import pytest

from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.types import DialOutcome, FoundBy

LOCAL, UNREACHABLE, TIMEOUT, REFUSED = (
    DialOutcome.LOCAL_ERROR,
    DialOutcome.UNREACHABLE,
    DialOutcome.TIMEOUT,
    DialOutcome.REFUSED,
)


def attempt(target: bytes | str = b"\x01" * 32) -> Attempt:
    return Attempt(Purpose.PROBE, target, ["10.0.0.1:1"], FoundBy.GOSSIP)


@pytest.mark.parametrize(
    ("outcomes", "most_telling"),
    [
        ([LOCAL], LOCAL),
        ([LOCAL, UNREACHABLE], UNREACHABLE),
        ([UNREACHABLE, TIMEOUT], TIMEOUT),
        ([TIMEOUT, REFUSED], REFUSED),
        ([LOCAL, UNREACHABLE, TIMEOUT, REFUSED], REFUSED),
    ],
)
def test_a_refusal_tells_most_and_an_error_of_our_own_nothing(
    outcomes: list[DialOutcome], most_telling: DialOutcome
) -> None:
    for order in itertools.permutations(outcomes):
        made = attempt()
        for dial, outcome in enumerate(order):
            made.dials[dial] = "10.0.0.1:1"
            made.failed(dial, outcome)
        assert made.outcome is most_telling
        assert not made.dials


def test_a_node_is_expected_where_one_was_dialled_and_nobody_at_an_offer() -> None:
    assert attempt(b"\x02" * 32).expects == b"\x02" * 32
    assert attempt("mdns:somebody").expects is None
