"""The scenarios of the catalogue between real processes on hosts of their own, judged as the
simulated ones are: those that are worth real time each time, all with ``LAB_SCENARIOS=all``.
``pytest -s`` prints the times that were measured."""

from __future__ import annotations

import os
import time

import pytest

from tests.lab.network import Lab
from tests.lab.stage import LabStage, can_play
from tests.scenarios.catalogue import CATALOGUE
from tests.scenarios.player import play
from tests.scenarios.steps import Scenario

ALL = os.environ.get("LAB_SCENARIOS") == "all"
PLAYED = [each for each in CATALOGUE if each.is_real or (ALL and can_play(each))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", PLAYED, ids=lambda scenario: scenario.name)
def test_the_invariants_hold_in(scenario: Scenario, lab: Lab, mesh: str) -> None:
    began = time.monotonic()
    with LabStage(lab, mesh) as stage:
        play(scenario, stage)
    print(f"{scenario.name}: {time.monotonic() - began:.1f} s")
