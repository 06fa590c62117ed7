"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.serving import Served, serve

pytest.register_assert_rewrite(
    "tests.http.contract", "tests.http.hostile", "tests.http.strict", "tests.http.wire"
)


@pytest.fixture
def served() -> Iterator[Served]:
    """One node in memory behind a server of its own."""
    with serve() as one:
        yield one
