"""Each benchmark still runs and prints what it measured; no figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(("benchmark", "rows"), [("leadership.py", {"kill", "known", "term"})])
def test_a_quick_run_prints_one_json_line_a_row(benchmark: str, rows: set[str], home: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / benchmark), "--quick", "--agents", "3"]
    done = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {result["row"] for result in results} == rows
    assert all(result["samples"] == 2 and result["worst"] > 0 for result in results)
