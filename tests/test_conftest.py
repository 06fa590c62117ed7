"""The guards that `conftest` puts around every test do strike."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockbuster import BlockingError

import p2pmesh


def as_the_package(program: str) -> None:
    """Runs a program as if it stood in the package."""
    exec(compile(program, str(Path(p2pmesh.__file__).with_name("planted.py")), "exec"))


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(0)",
        "import pathlib; pathlib.Path('/').stat()",
    ],
)
async def test_the_package_cannot_block_a_loop_unnoticed(program: str) -> None:
    with pytest.raises(BlockingError):
        as_the_package(program)


def test_the_package_may_block_where_no_loop_runs() -> None:
    as_the_package("import time; time.sleep(0)")
