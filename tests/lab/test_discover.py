"""``members --discover`` on a host without a node: what real multicast offers."""

from __future__ import annotations

import json

from tests.lab.network import Lab
from tests.processes import P2PMESH


def test_a_node_elsewhere_is_offered_to_a_host_that_has_none(lab: Lab, mesh: str) -> None:
    a, b = lab.hosts(2)
    node = a.start(*P2PMESH, "run", "--json", "--mesh", mesh)
    ready = node.event("ready")
    found = b.run(*P2PMESH, "members", "--discover", "--json", "--mesh", mesh)
    assert (found.returncode, found.stderr) == (0, "")
    (offer,) = json.loads(found.stdout)["offers"]
    assert offer["node_id"] == ready["node_id"]
    assert ready["address"] in offer["addresses"]
    shown = b.run(*P2PMESH, "members", "--discover")
    assert shown.stdout.rstrip().endswith("unverified")
    assert b.run(*P2PMESH, "members").returncode == 1  # there is no node to ask
