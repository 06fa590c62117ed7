"""How nodes meet: one by one, all at once, late, apart, and through lies."""

from __future__ import annotations

import random

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import (
    Alone,
    Candidate,
    FoundBy,
    LeaderChanged,
    MemberFailed,
    MemberJoined,
    MemberSuspected,
    PeerRejected,
)
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch


def link_counts(net: SimNetwork) -> list[list[str]]:
    return [[link.node_id for link in node.mesh.links(node.now())] for node in net.running()]


# --- meeting --------------------------------------------------------------------------


def test_a_node_that_meets_nobody_founds_a_mesh_after_a_second(simulate: Simulate) -> None:
    net = simulate()
    node = net.add()
    net.run(timing.ALONE_AFTER + 0.1)
    (joined,) = node.seen("joined")
    assert joined.contact is None
    assert timing.ALONE_AFTER - 0.01 <= joined.t <= timing.ALONE_AFTER + 0.01


def test_a_node_alone_says_once_what_it_tried(simulate: Simulate) -> None:
    """And what it met there."""
    net = simulate(multicast=False)
    gone, off, other = (net.add(start=False) for _ in range(3))
    net.power_off(off)
    net.start(other, keys=(b"k" * 32,))
    node = net.add(peers=[gone, off, other])
    net.run(60.0)
    (alone,) = node.seen("alone")
    assert isinstance(alone, Alone)
    assert sorted(alone.tried) == sorted(
        (
            f"{gone.address} (peer, refused)",
            f"{off.address} (peer, no answer)",
            f"{other.address} (peer, something answers, but not as this mesh does)",
        )
    )


def test_a_dial_that_hangs_holds_up_the_founding_for_5_s_at_most(simulate: Simulate) -> None:
    net = simulate(multicast=False)
    off = net.add(start=False)
    net.power_off(off)
    node = net.add(peers=[off])
    net.run(timing.STAMP_LATEST + 0.1)
    (joined,) = node.seen("joined")
    assert joined.contact is None
    assert joined.t > timing.ALONE_AFTER + 0.1


@pytest.mark.parametrize("seed", range(6))
def test_twenty_that_start_at_a_barrier_agree_on_the_least_life(
    simulate: Simulate, seed: int
) -> None:
    net = simulate(seed=seed)
    watch = Watch(net)
    for _ in range(20):
        net.add()
    took = watch.assert_settles()
    assert took < 2.0
    net.run(10.0)
    watch.assert_nobody_failed()
    watch.assert_settles()


@pytest.mark.parametrize("seed", range(2))
def test_many_that_start_together_dial_few_of_each_other(simulate: Simulate, seed: int) -> None:
    """Each is told of all; a handshake with everyone would cost them the time to meet."""
    count = 40
    net = simulate(seed=seed, delay=0.02, jitter=0.01)
    for _ in range(count):
        net.add()
        net.run(0.5 / count)
    net.run_until(net.agrees, within=5.0)
    net.run(5.0)
    dials = [node.mesh._core.connections._dials for node in net.nodes]
    assert sum(dials) / count < 16, "three at first, ring neighbours, their addresses, a few more"


def test_a_member_finds_a_newcomer_behind_many_addresses_where_nobody_answers(
    simulate: Simulate,
) -> None:
    """Who waits for an answer of nobody's kernel keeps no other dial waiting."""
    net = simulate(2, multicast=False)
    node = net.nodes[0]
    for number in range(60):
        offered(net, node, f"mdns:{number}", f"10.200.0.{number}:1", claims=None)
    newcomer = net.add()
    net.run(1.5)
    offered(net, node, "mdns:true", newcomer.address, claims=newcomer)
    net.run_until(net.agrees, within=10.0)


@pytest.mark.parametrize("seed", range(4))
def test_staggered_starts_keep_the_order_of_arrival(simulate: Simulate, seed: int) -> None:
    net = simulate(seed=seed)
    watch = Watch(net)
    for _ in range(12):
        net.add(wall_offset=random.Random(seed).randint(-(10**10), 10**10))
        net.run(0.3)
    watch.assert_settles()
    ages = [node.life for node in net.nodes]
    assert ages == sorted(ages)
    watch.assert_no_joiner_is_older()
    assert watch.leader_changes() == 1


def test_a_late_joiner_is_the_youngest_and_knows_all_at_once(simulate: Simulate) -> None:
    net = simulate(20)
    net.run(60.0)
    watch = Watch(net)
    late = net.add()
    took = net.run_until(net.agrees, within=5)
    assert took < 1.0
    assert late.life == max(node.life for node in net.nodes)
    (changed,) = watch.events(LeaderChanged)
    assert changed.node is late
    assert len(watch.events(MemberJoined, nodes=net.nodes[:20])) == 20


def test_a_joiner_learns_of_the_dead_but_is_not_told_of_their_deaths(simulate: Simulate) -> None:
    net = simulate(5)
    net.kill(net.nodes[4])
    net.run(5.0)
    late = net.add()
    net.run_until(net.agrees, within=5)
    net.run(1.0)
    assert not late.seen("member_failed")


def test_one_peer_is_enough_to_know_them_all(simulate: Simulate) -> None:
    net = simulate(6, multicast=False)
    late = net.add(peers=[net.nodes[3]])
    net.run_until(net.agrees, within=3)
    assert len(late.members("alive")) == 7


def test_a_peer_that_comes_later_is_dialled_until_it_is_there(simulate: Simulate) -> None:
    net = simulate(multicast=False)
    later = net.add(start=False)
    waiting = net.add(peers=[later])
    net.run(90.0)
    assert waiting.leads()
    net.start(later)
    net.run_until(net.agrees, within=35)


# --- two meshes -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_two_meshes_founded_apart_become_one_under_the_oldest(
    simulate: Simulate, seed: int
) -> None:
    net = simulate(seed=seed)
    here = [net.add(start=False) for _ in range(5)]
    there = [net.add(start=False) for _ in range(4)]
    net.partition(here, there)
    for node in here + there:
        net.start(node)
        net.run(0.4)
    watch = Watch(net)
    watch.assert_settles(here, there)
    net.heal()
    net.discover()
    watch.assert_settles()
    watch.assert_nobody_resurrected()
    net.run(1.0)
    tokens = watch.tokens()
    assert net.oldest().token() == max(tokens)
    watch.assert_nobody_failed()


def test_one_dial_between_two_meshes_is_enough(simulate: Simulate) -> None:
    net = simulate(multicast=False)
    here = [net.add() for _ in range(1)]
    here += [net.add(peers=[here[0]]) for _ in range(3)]
    there = [net.add() for _ in range(1)]
    there += [net.add(peers=[there[0]]) for _ in range(3)]
    watch = Watch(net)
    watch.assert_settles(here, there)
    net.offer(here[2], Candidate("peer:x", (there[3].address,), FoundBy.PEER))
    watch.assert_settles()


def test_meshes_of_other_names_or_keys_never_mix_and_say_so_once(simulate: Simulate) -> None:
    net = simulate()
    ours = [net.add(mesh="ours") for _ in range(2)]
    theirs = [net.add(mesh="theirs") for _ in range(2)]
    keyed = [net.add(mesh="ours", keys=(b"k" * 32,)) for _ in range(2)]
    net.run(60.0)
    for group in (ours, theirs, keyed):
        assert net.agrees(group)
        for node in group:
            rejected = [event.address for event in node.seen("peer_rejected")]
            assert all(rejected.count(address) == 1 for address in rejected)
    assert any(node.seen("peer_rejected") for node in ours)


# --- links ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_two_who_dial_each_other_at_once_keep_the_same_one_link(
    simulate: Simulate, seed: int
) -> None:
    net = simulate(seed=seed, multicast=False)
    one, other = net.add(), net.add()
    for node, peer in ((one, other), (other, one)):
        net.offer(node, Candidate("peer:x", (peer.address,), FoundBy.PEER))
    watch = Watch(net)
    net.run_until(net.agrees, within=5)
    net.run(10.0)
    assert link_counts(net) == [[other.node_id], [one.node_id]]
    (mine,), (theirs,) = one.host.sockets.values(), other.host.sockets.values()
    assert mine.peer is theirs
    assert not watch.events(MemberFailed)


def test_a_full_mesh_of_double_dials_settles_without_evidence(simulate: Simulate) -> None:
    """Twenty nodes that all find each other: no end of a duplicate accuses anybody."""
    net = simulate(seed=3)
    watch = Watch(net)
    for _ in range(20):
        net.add()
    net.run(40.0)
    watch.assert_nobody_failed()
    assert not watch.events(MemberSuspected)
    for links in link_counts(net):
        assert len(links) == len(set(links)) <= 19


def test_links_off_the_rings_close_when_nobody_uses_them(simulate: Simulate) -> None:
    net = simulate(30)
    net.run(90.0)
    for node in net.nodes:
        links = node.mesh.links(node.now())
        assert all(link.ring for link in links)
        assert len(links) <= 12


# --- offers that lie ------------------------------------------------------------------


def offered(
    net: SimNetwork, to: SimNode, key: str, *addresses: str, claims: SimNode | None
) -> None:
    node_id = bytes.fromhex(claims.node_id) if claims is not None else None
    net.offer(to, Candidate(key, addresses, FoundBy.MDNS, node_id))


def test_a_lying_advertisement_keeps_nobody_from_being_dialled(simulate: Simulate) -> None:
    """An offer that claims to be a live member, at an address where a newcomer waits."""
    net = simulate(3, multicast=False)
    newcomer = net.add()
    offered(net, net.nodes[0], "mdns:liar", newcomer.address, claims=net.nodes[1])
    net.run_until(net.agrees, within=10)


def test_an_offer_that_claims_to_be_me_makes_nobody_a_double(simulate: Simulate) -> None:
    net = simulate(2, multicast=False)
    one, other = net.nodes
    offered(net, one, "mdns:liar", other.address, claims=one)
    offered(net, one, "mdns:mirror", one.address, claims=other)
    net.run(10.0)
    assert net.agrees()
    assert not one.seen("identity_conflict")


def test_an_offer_of_a_members_address_under_another_id_harms_nobody(simulate: Simulate) -> None:
    net = simulate(3, multicast=False)
    watch = Watch(net)
    stranger = net.add(mesh="other")
    for number, node in enumerate(net.nodes[:3]):
        offered(net, node, f"mdns:{number}", net.nodes[1].address, claims=stranger)
        offered(net, node, f"mdns:x{number}", stranger.address, claims=net.nodes[1])
    net.run(60.0)
    assert net.agrees(net.nodes[:3])
    watch.assert_nobody_failed()
    assert watch.events(PeerRejected)


def test_a_flood_of_offers_delays_a_true_one_and_never_drops_it(simulate: Simulate) -> None:
    net = simulate(2, multicast=False)
    node = net.nodes[0]
    for number in range(300):
        junk = f"10.200.{number // 250}.{number % 250}:1"
        offered(net, node, f"mdns:junk{number}", junk, claims=None)
    newcomer = net.add()
    offered(net, node, "mdns:true", newcomer.address, claims=newcomer)
    for number in range(300):
        net.withdraw(node, f"mdns:junk{number}")
        net.run(0.1)
    net.run_until(net.agrees, within=40)


# --- addresses ------------------------------------------------------------------------


def test_a_node_that_can_only_dial_out_is_a_member_like_any_other(simulate: Simulate) -> None:
    """Behind a firewall, or announcing an address that nobody reaches."""
    net = simulate(5, multicast=False)
    hidden = net.add("hidden", peers=[net.nodes[2]], addresses=("192.0.2.1:8078",))
    watch = Watch(net)
    net.run_until(net.agrees, within=10)
    net.run(60.0)
    watch.assert_nobody_failed()
    assert net.agrees()
    assert len(hidden.members("alive")) == 6


def test_all_addresses_of_a_node_are_tried(simulate: Simulate) -> None:
    net = simulate(multicast=False)
    one = net.add()
    two = net.add(start=False)
    net.start(two, addresses=("192.0.2.1:8078", "192.0.2.2:8078", two.address))
    addresses = tuple(two.settings["addresses"])
    net.offer(one, Candidate("mdns:two", addresses, FoundBy.MDNS))
    net.run_until(net.agrees, within=5)


@pytest.mark.parametrize("seed", range(5))
def test_who_is_back_just_after_it_failed_is_dialled_soon(simulate: Simulate, seed: int) -> None:
    """It knows nobody; of those who remember it one begins at once, whatever their number."""
    net = simulate(8, seed=seed, multicast=False)
    back = net.nodes[5]
    net.kill(back)
    net.run_until(net.agrees, within=5.0)
    net.start(back)
    net.run_until(net.agrees, within=timing.HEAL_INTERVAL / 2)
