"""The scenarios of the catalogue that are worth real time: real processes on hosts of their own,
judged as the simulated ones are.  ``pytest -s`` prints the times that were measured."""

from __future__ import annotations

import time

import pytest

from tests.lab.network import Lab
from tests.lab.stage import LabStage
from tests.scenarios.catalogue import CATALOGUE
from tests.scenarios.player import play
from tests.scenarios.steps import Scenario

REAL = [scenario for scenario in CATALOGUE if scenario.is_real]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", REAL, ids=lambda scenario: scenario.name)
def test_the_invariants_hold_in(scenario: Scenario, lab: Lab, mesh: str) -> None:
    began = time.monotonic()
    with LabStage(lab, mesh) as stage:
        play(scenario, stage)
    print(f"{scenario.name}: {time.monotonic() - began:.1f} s")
