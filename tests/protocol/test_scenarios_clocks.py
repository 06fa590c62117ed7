"""Wall clocks: wrong, far off, jumping.  Age is who came first, whatever they say."""

from __future__ import annotations

import pytest

from p2pmesh.protocol.stamps import CLOCKS_SET_AFTER
from p2pmesh.protocol.types import LeaderChanged, MessageArrived, MessageMoved
from p2pmesh.testing import SimNode
from p2pmesh.testing.node import BEGINNING
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

DAY = 86_400_000
YEAR = 365 * DAY
CLOCKS = {
    "ten years ahead": 10 * YEAR,
    "ten years behind": -10 * YEAR,
    "at 1970": -BEGINNING,
    "a day ahead": DAY,
    "a day behind": -DAY,
    "in 2038": 2_147_483_648_000 - BEGINNING,
    "before 1970": -BEGINNING - YEAR,
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_newcomer_with_a_wrong_clock_joins_and_does_not_lead(
    simulate: Simulate, clock: str
) -> None:
    net = simulate(3)
    watch = Watch(net)
    odd = net.add("odd", wall_offset=CLOCKS[clock])
    watch.assert_settles()
    assert odd.life == max(node.life for node in net.nodes)
    after = net.add("after")
    watch.assert_settles()
    assert after.life > odd.life
    assert net.nodes[0].leads()
    watch.assert_nobody_failed()
    watch.assert_no_joiner_is_older()


@pytest.mark.parametrize("clock", CLOCKS)
def test_who_came_first_leads_with_whatever_clock(simulate: Simulate, clock: str) -> None:
    net = simulate()
    first = net.add("first", wall_offset=CLOCKS[clock])
    net.run(3.0)
    for _ in range(3):
        net.add("later")
        net.run(0.5)
    watch = Watch(net)
    watch.assert_settles()
    assert first.leads()
    ages = [node.life for node in net.nodes]
    assert ages == sorted(ages)


def test_a_clock_that_is_ahead_drags_the_stamps_of_the_next_by_a_minute_at_most(
    simulate: Simulate,
) -> None:
    net = simulate(2)
    before = net.nodes[1].life.ms
    odd = net.add("odd", wall_offset=10 * YEAR)
    net.run(2.0)
    assert odd.life.ms - before < 120_000


def test_nodes_of_a_mesh_before_2024_agree_with_each_other(simulate: Simulate) -> None:
    """A network of machines that have no clock, and nobody to ask."""
    net = simulate()
    watch = Watch(net)
    for number in range(5):
        net.add(wall_offset=-BEGINNING + number * 1000)
        net.run(0.3)
    watch.assert_settles()
    ages = [node.life for node in net.nodes]
    assert ages == sorted(ages)
    assert all(life.ms < CLOCKS_SET_AFTER for life in ages)


@pytest.mark.parametrize("seed", range(4))
def test_a_mesh_before_2024_that_meets_one_after_it_stamps_itself_anew(
    simulate: Simulate, seed: int
) -> None:
    """Whose clock knows the date takes no stamp from before it: the others join anew."""
    net = simulate(seed=seed)
    old = [net.add("old", start=False, wall_offset=-BEGINNING) for _ in range(3)]
    new = [net.add("new", start=False) for _ in range(3)]
    net.partition(old, new)
    for node in old + new:
        net.start(node)
        net.run(0.3)
    watch = Watch(net)
    watch.assert_settles(old, new)
    leader = net.oldest(new)
    healing = Watch(net)
    net.heal()
    net.discover()
    healing.assert_settles()
    assert leader.leads()
    assert all(node.life.ms >= CLOCKS_SET_AFTER for node in net.nodes)
    assert max(node.life for node in new) < min(node.life for node in old)
    healing.assert_nobody_failed()
    told = healing.events(LeaderChanged, nodes=new)
    assert {t.event.leader_id for t in told} <= {leader.instance_id}


def test_what_ended_before_2024_is_forgotten_with_the_stamps_of_then(simulate: Simulate) -> None:
    """Whose clock knows the date does not take it, so nobody may keep it: the views
    would differ for a day."""
    net = simulate()
    old = [net.add("old", start=False, wall_offset=-BEGINNING) for _ in range(5)]
    new = [net.add("new", start=False) for _ in range(2)]
    net.partition(old, new)
    for node in old + new:
        net.start(node)
        net.run(0.2)
    Watch(net).assert_settles(old, new)
    net.kill(old[3])
    net.leave(old[4])
    net.run(3.0)
    net.heal()
    net.discover()
    watch = Watch(net)
    watch.assert_settles()
    assert {node.state_of(old[3]) for node in net.running()} == {None}


def test_one_old_mesh_of_many_that_meets_a_single_newer_node(simulate: Simulate) -> None:
    net = simulate()
    old = [net.add("old", start=False, wall_offset=-BEGINNING) for _ in range(8)]
    new = net.add("new", start=False)
    net.partition(old, [new])
    for node in [*old, new]:
        net.start(node)
        net.run(0.2)
    watch = Watch(net)
    watch.assert_settles(old, [new])
    net.heal()
    net.discover()
    watch.assert_settles()
    assert new.leads()


def test_all_clocks_wrong_in_another_way(simulate: Simulate) -> None:
    net = simulate()
    watch = Watch(net)
    for offset in CLOCKS.values():
        net.add(wall_offset=offset)
        net.run(0.5)
    watch.assert_settles()
    watch.assert_no_joiner_is_older()


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_of_a_day_expires_no_message_before_its_time_nor_keeps_one_beyond_it(
    simulate: Simulate, jump: int
) -> None:
    """Neither where it waits for its recipient, nor in a mailbox, nor on a disk between two
    processes under different clocks."""
    net = simulate(3, persistent=True)
    sender, receiver, _ = net.nodes

    def send(payload: bytes, ttl: float) -> str:
        return net.command(
            sender, "send", source=sender.instance_id, target=receiver.instance_id, named=False,
            type="Notification", payload=payload, ttl=ttl, correlation_id=None,
        )  # fmt: skip

    in_mailbox = send(b"in its mailbox", 600.0)
    net.run_until(lambda: moves(sender, in_mailbox) == ["stored"], within=5)
    net.kill(receiver)
    net.run_until(lambda: sender.state_of(receiver) == "failed", within=5)
    queued, short = send(b"queued", 600.0), send(b"in vain", 100.0)
    began = net.clock.now
    net.set_wall(sender, jump)
    net.run(50.0)
    assert moves(sender, queued) == moves(sender, short) == []
    net.kill(sender)
    net.set_wall(sender, -jump)
    net.start(sender)
    net.run_until(lambda: moves(sender, short) == ["expired"], within=51)
    assert net.clock.now - began >= 99.0
    net.set_wall(receiver, jump)
    net.start(receiver)
    net.run_until(lambda: moves(sender, queued) == ["stored"], within=20)
    net.set_wall(receiver, -jump)
    net.run(400.0)
    arrived = [each for each in receiver.outcomes if isinstance(each, MessageArrived)]
    assert [each.envelope.payload for each in arrived] == [b"in its mailbox", b"queued"]
    for each in arrived:
        receiver.command("message_completed", each.envelope.message_id, True)
    net.run(5.0)
    assert moves(sender, in_mailbox)[-1] == moves(sender, queued)[-1] == "done"


def moves(node: SimNode, message_id: str) -> list[str]:
    """The states that a message was told to have, in this run of its sender."""
    moved = [each for each in node.outcomes if isinstance(each, MessageMoved)]
    return [each.state for each in moved if each.message_id == message_id]
