"""The election rule in a hundred thousand random histories (tox environment ``model``)."""

from __future__ import annotations

from tests.model.election import Rule, check

SEEDS = 100_000


def test_age_and_tokens_hold_in_a_hundred_thousand_random_histories() -> None:
    assert check(range(SEEDS)) == 0
    broken = {rule.value: check(range(1000), rule) for rule in Rule if rule is not Rule.REAL}
    print(f"{SEEDS} histories held; of 1,000 each broken by a control arm: {broken}")
    assert all(broken.values())
