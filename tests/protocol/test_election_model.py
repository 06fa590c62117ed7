"""The election rule, model-checked (``tests/model/election.py``): the rule holds in
random histories, and the same check fails when the rule is broken on purpose."""

from __future__ import annotations

import pytest

from tests.model.election import Rule, check


def test_age_and_tokens_hold_in_a_thousand_random_histories() -> None:
    assert check(range(1000)) == 0


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.REAL])
def test_the_check_fails_when_the_rule_is_broken(rule: Rule) -> None:
    assert check(range(200), rule) > 0
