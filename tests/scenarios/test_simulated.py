"""Every scenario of the catalogue in the simulator, over a few seeds."""

from __future__ import annotations

import pytest

from p2pmesh.testing import SimNetwork
from tests.scenarios.catalogue import CATALOGUE
from tests.scenarios.player import play
from tests.scenarios.simulated import SimStage, can_play
from tests.scenarios.steps import Scenario

SEEDS = range(3)
SIMULATED = [scenario for scenario in CATALOGUE if can_play(scenario)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", SIMULATED, ids=lambda scenario: scenario.name)
def test_the_invariants_hold_in(scenario: Scenario, seed: int) -> None:
    with SimNetwork(seed=seed, delay=scenario.delay, jitter=scenario.delay) as net:
        play(scenario, SimStage(net))
