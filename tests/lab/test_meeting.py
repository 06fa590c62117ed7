"""Nodes on hosts of their own find each other, by each way there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.lab.network import Host, Lab
from tests.processes import P2PMESH, Process, eventually

GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())"


class Agent(NamedTuple):
    """``p2pmesh run`` on a host."""

    host: Host
    process: Process

    @property
    def id(self) -> str:
        return str(self.process.event("ready")["instance_id"])

    def get(self, path: str) -> Any:
        """What its HTTP API answers, asked on its own host."""
        url = self.process.event("ready")["http"]
        done = self.host.run(sys.executable, "-c", GET, f"{url}{path}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def states(self) -> dict[str, str]:
        """Instance id -> state, oldest first."""
        members = self.get("/v1/members")["members"]
        return {member["instance_id"]: member["state"] for member in members}

    def found_by(self) -> set[str]:
        """How it learned of the addresses that it dialled."""
        links = self.get("/v1/links")["links"]
        return {link["found_by"] for link in links if link["direction"] == "out"}


def run(host: Host, mesh: str, *flags: str) -> Agent:
    """An agent, once it has joined."""
    process = host.start(*P2PMESH, "run", "--json", "--mesh", mesh, *flags)
    process.event("joined")
    return Agent(host, process)


def meet(agents: Sequence[Agent]) -> None:
    """Waits until each lists all, alive and in the order in which they joined."""
    everyone = [(agent.id, "alive") for agent in agents]
    for agent in agents:
        eventually(
            lambda agent=agent: list(agent.states().items()) == everyone,  # type: ignore[misc]
            f"{agent.id} lists all",
        )


def test_hosts_meet_by_multicast_alone(lab: Lab, mesh: str) -> None:
    agents = [run(host, mesh) for host in lab.hosts(3)]
    meet(agents)
    addresses = [agent.process.event("ready")["address"].partition(":")[0] for agent in agents]
    assert addresses == [agent.host.address for agent in agents]
    assert "mdns" in agents[1].found_by()
    assert set.union(*(agent.found_by() for agent in agents)) <= {"mdns", "gossip"}


def test_hosts_meet_through_one_address_that_is_given_with_multicast_off(
    lab: Lab, mesh: str
) -> None:
    a, *others = lab.hosts(3)
    agents = [run(a, mesh, "--no-mdns")]
    agents += [run(host, mesh, "--no-mdns", "--peer", a.address) for host in others]
    meet(agents)
    assert "peer" in agents[1].found_by()
    assert set.union(*(agent.found_by() for agent in agents)) <= {"peer", "gossip"}


def test_processes_of_one_host_meet_by_its_runtime_directory_where_multicast_is_blocked(
    lab: Lab, mesh: str
) -> None:
    (host,) = lab.hosts(1)
    host.block_multicast()
    agents = [run(host, mesh) for _ in range(3)]
    meet(agents)
    assert "runtime" in agents[1].found_by()
    assert set.union(*(agent.found_by() for agent in agents)) <= {"runtime", "gossip"}


def test_a_host_without_multicast_is_alone_until_it_is_given_an_address(
    lab: Lab, mesh: str
) -> None:
    """The arm that must fail: without one of the three ways nobody is found."""
    a, b = lab.hosts(2)
    b.block_multicast()
    first = run(a, mesh)
    alone = run(b, mesh)
    assert alone.process.event("joined")["contact"] is None
    assert alone.states() == {alone.id: "alive"}
    assert alone.process.leave() == 0
    meet([first, run(b, mesh, "--peer", a.address)])
