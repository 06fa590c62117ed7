"""Simulated meshes for the protocol's tests; a failing one prints how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from p2pmesh.testing import SimNetwork
from tests.protocol.offices import World

Simulate = Callable[..., SimNetwork]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What holds of offices with a memory holds of those with a disk."""
    if "World" in vars(metafunc.module) and metafunc.module.__name__ != DURABLE_ONLY:
        metafunc.parametrize("keeps", ["memory", "disk"], indirect=True)


DURABLE_ONLY = "tests.protocol.test_durability"


@pytest.fixture(autouse=True)
def keeps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the offices of this test keep their messages in."""
    is_disk = getattr(request, "param", "memory") == "disk"
    monkeypatch.setattr(World, "default_is_durable", is_disk)


@pytest.fixture
def simulate() -> Simulate:
    """Makes networks: ``simulate(5, seed=3)`` is one of five nodes that agree, added one
    by one, the first of them the oldest."""
    made: list[SimNetwork] = []

    def make(count: int = 0, *, seed: int = 1, **options: Any) -> SimNetwork:
        has_multicast = options.get("multicast", True)
        names = ("delay", "jitter", "loss", "multicast", "expected")
        net = SimNetwork(seed, **{name: options.pop(name) for name in names if name in options})
        made.append(net)
        for _ in range(count):
            # Without multicast each is told of the first.
            net.add(peers=() if has_multicast else net.nodes[:1], **options)
            net.run(0.15)
        if count:
            net.run_until(net.agrees, within=20)
            net.run(3.0)  # every ring neighbour has been dialled once
        return net

    make.made = made  # type: ignore[attr-defined]  # for the report of a failure
    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    simulate = getattr(item, "funcargs", {}).get("simulate")
    if report.failed and simulate is not None:
        for net in simulate.made:
            report.sections.append(("To repeat this run", str(net.scenario)))
    return report
