"""A histogram of lateness."""

from __future__ import annotations

import pytest

from p2pmesh.lag import BOUNDS, Lag


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-1.0, 0), (0.0, 0), (0.001, 0), (0.0011, 1), (0.1, 5), (5.0, 8), (5.1, 9), (1e9, 9)],
)
def test_each_lateness_is_counted_at_the_least_bound_that_holds_it(
    seconds: float, bucket: int
) -> None:
    lag = Lag()
    lag.add(seconds)
    assert [number for number, count in enumerate(lag.counts) if count] == [bucket]
    assert len(lag.counts) == len(BOUNDS) + 1
    assert lag.total == max(0.0, seconds)
