"""The pages of guarantees and of scenarios cite tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
PROMISES = [line for line in TEXT.splitlines() if line.startswith("| ")]
SCENARIOS = (ROOT / "docs" / "scenarios.md").read_text()
CITED = sorted(set(re.findall(r"`(tests/[^`]*::[^`]*)`", TEXT + SCENARIOS)))


@pytest.mark.parametrize("cited", CITED)
def test_every_test_that_is_cited_exists(cited: str) -> None:
    path, _, name = cited.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_promise_cites_a_test() -> None:
    rows = [line for line in PROMISES if not line.startswith("| promise")]
    assert len(rows) > 30
    assert not [row for row in rows if "::" not in row]
