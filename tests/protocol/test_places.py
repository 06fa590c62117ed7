"""Who may answer for an instance, to a registry call."""

from __future__ import annotations

from p2pmesh.protocol.places import Place, Places, Where
from tests.protocol.offices import Office, World


def places(office: Office) -> Places:
    return office.post._desk._places


def place(office: Office, instance_id: str) -> Place:
    return places(office).find(instance_id).place


def two() -> tuple[World, Office, Office]:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    return world, a, b


def test_a_guest_is_mine_at_its_home_and_remote_elsewhere() -> None:
    _, a, b = two()
    a.call("register", "g")
    assert place(a, "g") is Place.MINE
    assert places(b).find("g") == Where(Place.REMOTE, a.id, b.view.entries["g"])


def test_an_agent_is_its_nodes_while_that_lives() -> None:
    world, a, b = two()
    assert places(a).find("a-1") == places(b).find("a-1") == Where(Place.AGENT, a.id)
    world.kill(a)
    assert place(b, "a-1") is Place.NOWHERE


def test_a_guest_whose_home_is_gone_or_restarted_is_an_orphan() -> None:
    world, a, b = two()
    a.call("register", "g")
    world.restart(a, wiped=True)
    assert (place(a, "g"), place(b, "g")) == (Place.ORPHAN, Place.ORPHAN)
    b.call("heartbeat", "g")
    assert (place(a, "g"), place(b, "g")) == (Place.REMOTE, Place.MINE)
    world.kill(b)
    assert place(a, "g") is Place.ORPHAN


def test_who_left_is_nowhere_at_once_at_its_home_too() -> None:
    _, a, b = two()
    assert place(a, "g") is Place.NOWHERE
    a.call("register", "g")
    a.call("deregister", "g")
    assert (place(a, "g"), place(b, "g")) == (Place.NOWHERE, Place.NOWHERE)
