"""The page of scenarios lists the catalogue as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import stage as lab
from tests.scenarios import simulated
from tests.scenarios.catalogue import CATALOGUE
from tests.scenarios.steps import Scenario

HERE = Path(__file__).parents[1]
PAGE = (HERE / "docs" / "scenarios.md").read_text()
LISTED = [line for line in PAGE.splitlines() if re.match(r"\| `[^`]*` \| (yes|no) \|", line)]


def row(scenario: Scenario) -> str:
    expected = scenario.expected
    everybody = frozenset(range(scenario.agents))
    dead = agents(expected.fails, everybody)
    if expected.may_fail:
        dead = f"at most {agents(expected.may_fail, everybody)}, until heard again"
    cells = [
        f"`{scenario.name}`",
        "yes" if simulated.can_play(scenario) else "no",
        "yes" if scenario.is_real else "at length" if lab.can_play(scenario) else "no",
        dead,
        str(expected.leader_changes),
    ]
    return f"| {' | '.join(cells)} |"


def agents(numbers: frozenset[int], everybody: frozenset[int]) -> str:
    if numbers == everybody:
        return "all"
    return ", ".join(map(str, sorted(numbers))) or "nobody"


def test_each_scenario_is_listed_once_with_where_it_is_played_and_what_may_come_of_it() -> None:
    assert sorted(LISTED) == sorted(map(row, CATALOGUE))


def test_how_many_there_are_is_true() -> None:
    virtual = sum(map(simulated.can_play, CATALOGUE))
    real = sum(map(lab.can_play, CATALOGUE))
    each_time = sum(scenario.is_real for scenario in CATALOGUE)
    counted = (
        f"{len(CATALOGUE)} scenarios, {virtual} in the simulator and {real} in the lab, "
        f"{each_time} of them each time"
    )
    assert counted in PAGE.replace("\n", " ")


RUN_ONE = dict(re.findall(r'^tox -e (\w+) -- "([^"]*)"$', PAGE, re.MULTILINE))
#: What their environments of tox set.
SETS = {"tests": {}, "lab": {}, "scenarios": {"LAB_SCENARIOS": "all"}}


def test_one_scenario_can_be_run_in_each_place() -> None:
    assert set(RUN_ONE) == set(SETS)


@pytest.mark.parametrize("place", SETS)
def test_the_command_for_one_scenario_finds_its_test(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SETS[place].items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", RUN_ONE[place]]
    done = subprocess.run(
        command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[0] == RUN_ONE[place], done.stdout + done.stderr
