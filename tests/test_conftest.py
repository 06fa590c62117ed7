"""The guards that `conftest` puts around every test do strike."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_a_run_that_prints_past_pytest_ends_without_a_crash() -> None:
    run = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-k", "may_block"]
    unbuffered = {"PYTHONUNBUFFERED"}  # the variable hides the crash
    variables = {name: value for name, value in os.environ.items() if name not in unbuffered}
    ended = subprocess.run([*run, __file__], env=variables, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended
