"""Fixtures of the HTTP tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.serving import Served, serve


@pytest.fixture
def served() -> Iterator[Served]:
    """One node in memory behind a server of its own."""
    with serve() as one:
        yield one
