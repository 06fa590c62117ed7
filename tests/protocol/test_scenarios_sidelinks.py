"""Idle links off the rings that become ring links: their silence was nobody's to explain."""

from __future__ import annotations

import pytest

from p2pmesh.testing import SimNetwork


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_one_that_stops_for_a_moment_is_not_failed_by_an_idle_link_that_is_watched_now(
    seed: int,
) -> None:
    with SimNetwork(seed=seed, expected=24, multicast=False) as net:
        net.add_converged(24)
        net.run(3.0)
        stopped = net.nodes[0]
        for node in net.nodes[1:]:
            net.command(
                node, "request", source=node.instance_id, target=stopped.instance_id,
                named=False, type="Query", payload=b"", timeout=5.0,
            )  # fmt: skip
        net.run(18.0)
        net.stop(stopped)
        for gone in net.nodes[1:10]:
            net.kill(gone)
        net.run(6.0)
        for node in net.running():
            failed = {event.instance_id for event in node.seen("member_failed")}
            assert stopped.instance_id not in failed
