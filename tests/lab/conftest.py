"""The ``lab`` fixture.  Where the system lacks something, its tests skip and say what;
with LAB_REQUIRED=1, as in CI, they fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.namespaces import missing, sweep
from tests.lab.network import Lab


@pytest.fixture(scope="session")
def system() -> None:
    """A system that labs can be made on, without what earlier ones left."""
    if lack := missing():
        if os.environ.get("LAB_REQUIRED") == "1":
            pytest.fail(f"the lab is required, but {lack}")
        pytest.skip(lack)
    sweep()


@pytest.fixture
def lab(system: None, tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path / "hosts") as network:
        yield network
