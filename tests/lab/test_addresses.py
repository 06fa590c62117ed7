"""Hosts whose addresses change, or which have interfaces that nobody can reach."""

from __future__ import annotations

from tests.lab.network import Lab
from tests.lab.test_meeting import Agent, meet, run
from tests.processes import eventually


def told_of(agent: Agent, by: Agent) -> list[str]:
    """The addresses of ``agent`` as ``by`` lists them."""
    (member,) = [m for m in by.get("/v1/members")["members"] if m["instance_id"] == agent.id]
    return [address.rpartition(":")[0] for address in member["addresses"]]


def leader_of(agent: Agent) -> str | None:
    leader: str | None = agent.get("/v1/leader")["leader_id"]
    return leader


def test_a_host_that_gets_another_address_is_known_and_found_under_it(lab: Lab, mesh: str) -> None:
    a, b, c = lab.hosts(3)
    moving, other = agents = [run(a, mesh), run(b, mesh)]
    meet(agents)
    new = f"{a.address.rpartition('.')[0]}.250"
    a.readdress(new)
    eventually(lambda: told_of(moving, other) == [new], f"{new} is told")
    assert other.process.leave() == 0
    newcomer = run(c, mesh)  # only the moved host can tell it of the mesh
    eventually(lambda: newcomer.states().get(moving.id) == "alive", "the newcomer meets it")
    assert told_of(moving, newcomer) == [new]
    eventually(lambda: leader_of(newcomer) == moving.id, "the one that was there before leads")


def test_a_bridge_of_containers_is_neither_told_nor_in_the_way(lab: Lab, mesh: str) -> None:
    hosts = lab.hosts(2)
    for host in hosts:
        host.add_container_bridge()
    agents = [run(host, mesh) for host in hosts]
    meet(agents)
    for agent in agents:
        assert told_of(agent, agents[0]) == [agent.host.address]
