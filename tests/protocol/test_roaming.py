"""Guests that roam, on real cores: what they were told holds, whatever happens to their homes.

*Firm* is an acknowledgement that was answered while every node agreed where its guest
lives, and that its sender could be told of before its home ended.  Its message never
comes again.  (Of the others it may: their home died before it could tell the sender, or
nobody was home.)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import CallEnded
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.roaming import Again, Roaming, counted

REGISTRATION = {"hostname": "h", "port": 1, "capabilities": (), "profiles": ()}


class Guest:
    """One guest "g", whose calls the test makes one by one."""

    def __init__(self, net: SimNetwork, home: SimNode) -> None:
        self.net = net
        net.command(home, "register", instance_id="g", **REGISTRATION)
        net.run(0.5)

    def call(self, node: SimNode, method: str, **arguments: object) -> Callable[[], CallEnded]:
        """Ask; what is returned gives the end, running until there is one."""
        number = self.net.command(node, method, instance_id="g", **arguments)

        def end() -> CallEnded:
            self.net.run_until(lambda: find() is not None, within=3.0)
            found = find()
            assert found is not None
            return found

        def find() -> CallEnded | None:
            ends = (each for each in node.outcomes if isinstance(each, CallEnded))
            return next((each for each in ends if each.call == number), None)

        return end

    def beat(self, node: SimNode) -> str:
        return self.call(node, "heartbeat", status="healthy", metrics=None)().status

    def read(self, node: SimNode) -> list[str]:
        end = self.call(node, "read", limit=None)()
        assert end.status == "ok"
        return [message.message_id for message in end.messages]

    def acknowledge(self, node: SimNode, *message_ids: str) -> str:
        return self.call(node, "acknowledge", message_ids=message_ids)().status

    def send(self, node: SimNode) -> str:
        message_id: str = self.net.command(
            node, "send", source="s", target="g", named=False, type="Notification", payload=b"x",
            ttl=3600.0, correlation_id=None,
        )  # fmt: skip
        self.net.run(0.1)
        return message_id

    def homes(self) -> set[str]:
        """Where it lives, as each running node sees it."""
        seen = (node.mesh.instance("g") for node in self.net.running())
        return {instance.home.hex() for instance in seen if instance is not None}


def state(node: SimNode, message_id: str) -> str:
    (recipient,) = node.mesh.commands.message_state(message_id) or ()
    return str(recipient.state)


# --- one scenario after the other -----------------------------------------------------------


def test_of_two_that_adopt_at_once_one_keeps_it_and_the_other_hands_over(
    simulate: Simulate,
) -> None:
    net = simulate(4)
    a, b, c, d = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(d)
    net.kill(a)
    net.run_until(lambda: all(n.state_of(a) == "failed" for n in (b, c, d)), within=2.0)
    ends = [guest.call(node, "heartbeat", status="ok", metrics=None) for node in (b, c)]
    acknowledged = guest.call(min(b, c, key=lambda n: n.node_id), "acknowledge",
                              message_ids=(message_id,))  # fmt: skip
    assert [end().status for end in ends] == ["ok", "ok"]
    assert acknowledged().status == "ok"
    assert counted(net, "guest_adopted") == 2
    net.run(1.0)
    assert guest.homes() == {max(b.node_id, c.node_id)}
    assert counted(net, "guest_outbid") == 1
    for node in (b, c, d):
        assert guest.read(node) == []
    assert state(d, message_id) == "done", "the one that lost it knew, and said so"


def test_a_home_that_returns_from_a_cut_hands_over_what_its_senders_do_not_hold(
    simulate: Simulate,
) -> None:
    net = simulate(4)
    a, b, c, d = net.nodes
    guest = Guest(net, a)
    ours, orphaned = guest.send(c), guest.send(d)
    net.partition([b, c], [a, d])
    net.run_until(lambda: b.state_of(a) == "failed", within=6.0)
    assert guest.beat(b) == "ok"
    net.run(0.5)
    assert guest.read(b) == [ours], "the other's sender is on the other side"
    assert guest.acknowledge(b, ours) == "ok"
    net.kill(d)  # and never returns: a alone has its message
    net.heal()
    net.discover()
    net.run_until(lambda: guest.homes() == {b.node_id}, within=10.0)
    net.run(1.0)
    assert guest.read(c) == [orphaned]
    assert counted(net, "guest_outbid") == 1
    outbox = a.mesh._plane.office._outbox
    kept = [i.message_id for lane in outbox._by_id.values() for i in lane.stream.items.values()]
    assert orphaned in kept, "until its new home has said that it is done"
    assert guest.acknowledge(b, orphaned) == "ok"
    net.run(1.0)
    assert not outbox._by_id
    assert guest.read(a) == []
    assert state(c, ours) == "done"


def test_a_home_that_restarts_without_memory_takes_its_guest_in_again(simulate: Simulate) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(c)
    life = a.life
    net.kill(a)
    net.run(0.01)
    net.start(a)
    assert guest.beat(a) == "unavailable", "it does not know yet whom it will know"
    net.run_until(lambda: a.life not in (None, life), within=5.0)
    net.run_until(lambda: guest.beat(a) == "ok", within=2.0)
    net.run(0.5)
    assert guest.homes() == {a.node_id}
    assert guest.read(b) == [message_id]


def test_a_home_that_was_stopped_for_a_moment_stays_the_home(simulate: Simulate) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(c)
    net.stop(a)
    end = guest.call(b, "heartbeat", status="ok", metrics=None)
    net.run(timing.FORWARD_TIMEOUT - 0.2)
    net.resume(a)
    assert end().status == "ok"
    assert guest.homes() == {a.node_id}
    assert guest.read(b) == [message_id]


def test_a_home_that_sleeps_is_outbid_after_a_second_and_hears_of_it_when_it_wakes(
    simulate: Simulate,
) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(c)
    net.sleep(a)
    began = net.clock.now
    assert guest.beat(b) == "ok"
    assert net.clock.now - began == pytest.approx(timing.FORWARD_TIMEOUT, abs=0.05)
    net.run(0.5)
    assert guest.read(c) == [message_id]
    assert guest.acknowledge(c, message_id) == "ok"
    net.wake(a)
    net.run_until(lambda: a.mesh._plane.office.guest("g") is None, within=5.0)
    net.run_until(lambda: guest.homes() == {b.node_id}, within=5.0)
    net.run(3.0)  # it needs new links
    assert guest.read(a) == []


def test_what_a_former_home_still_answers_is_not_passed_on(simulate: Simulate) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(c)
    net.stop(a)
    beat = guest.call(b, "heartbeat", status="ok", metrics=None)
    net.run(timing.FORWARD_TIMEOUT - 0.1)
    read = guest.call(c, "read", limit=None)  # it waits for a
    assert beat().status == "ok"
    net.run(0.01)
    assert guest.acknowledge(b, message_id) == "ok"
    net.resume(a)
    assert message_id not in [each.message_id for each in read().messages]


def test_an_acknowledgement_of_a_stopped_home_is_kept_and_taken_when_it_runs_again(
    simulate: Simulate,
) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(c)
    net.stop(a)
    began = net.clock.now
    assert guest.acknowledge(b, message_id) == "ok"
    assert net.clock.now - began == pytest.approx(timing.FORWARD_TIMEOUT, abs=0.05)
    assert state(c, message_id) == "stored"
    net.resume(a)
    net.run_until(lambda: state(c, message_id) == "done", within=6.0)
    assert guest.homes() == {a.node_id}, "an acknowledgement adopts nobody"


def test_a_read_whose_home_does_not_answer_is_refused_and_not_answered_with_nothing(
    simulate: Simulate,
) -> None:
    net = simulate(3)
    a, b, c = net.nodes
    guest = Guest(net, a)
    guest.send(c)
    net.stop(a)
    assert guest.call(b, "read", limit=None)().status == "unavailable"
    assert guest.call(b, "deregister")().status == "unavailable"
    assert guest.homes() == {a.node_id}


def test_before_a_node_has_joined_it_refuses_and_keeps_but_denies_nobody(
    simulate: Simulate,
) -> None:
    net = simulate(2)
    a, b = net.nodes
    guest = Guest(net, a)
    message_id = guest.send(b)
    c = net.add(start=True)
    assert guest.call(c, "read", limit=None)().status == "unavailable"
    assert guest.call(c, "deregister")().status == "unavailable"
    assert guest.beat(c) == "unavailable"
    assert guest.acknowledge(c, message_id) == "ok"
    net.run_until(lambda: state(b, message_id) == "done", within=10.0)
    assert guest.beat(c) == "ok"


# --- many at random -----------------------------------------------------------------------


def calm(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(3.0, sends=120)
    return world


def a_home_is_killed(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(1.5, sends=60)
    world.end(net.nodes[0])
    world.run(1.5, sends=60)
    return world


def a_home_restarts(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(1.0, sends=40)
    world.end(net.nodes[0])
    world.run(world.rng.choice([0.01, 0.1, 0.5]), sends=10)
    net.start(net.nodes[0])
    world.run(2.0, sends=60)
    return world


def a_home_leaves(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(1.0, sends=40)
    world.end(net.nodes[0], "leave")
    world.run(1.5, sends=60)
    return world


def a_home_is_stopped(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(1.0, sends=40)
    net.stop(net.nodes[0])
    world.run(2.5, sends=40)
    net.resume(net.nodes[0])
    world.run(1.5, sends=40)
    return world


def packets_are_lost(net: SimNetwork, seed: int) -> Roaming:
    net.set_loss(0.03)
    world = a_home_is_killed(net, seed)
    net.set_loss(0.0)
    return world


def a_home_is_cut_off(net: SimNetwork, seed: int) -> Roaming:
    world = Roaming(net, seed=seed)
    world.run(1.0, sends=40)
    for node in net.nodes[1:]:
        net.cut(net.nodes[0], node)
    world.run(4.0, sends=40)
    net.heal()
    net.discover()
    world.healed_at = net.clock.now
    world.run(8.0, sends=40)
    return world


KINDS = [
    calm, a_home_is_killed, a_home_restarts, a_home_leaves, a_home_is_stopped, packets_are_lost,
    a_home_is_cut_off,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_roaming_guests_lose_nothing_that_was_stored_and_nothing_acknowledged_comes_again(
    simulate: Simulate, kind: Callable[[SimNetwork, int], Roaming], seed: int
) -> None:
    delay = 0.02 if seed % 2 else 0.0005
    net = simulate(3 + seed % 3, seed=seed, delay=delay, jitter=delay)
    world = kind(net, seed)
    world.finish()
    read = {(each, guest.instance_id) for guest in world.guests for each in guest.read}
    stored = {
        key
        for key, sent in world.sent.items()
        if "stored" in sent.states and not (sent.is_own and sent.via.runs > sent.run)
        if not (sent.is_own and not sent.via.is_running)
    }
    assert len(stored) > 20
    assert not stored - read
    assert not [again for again in _all_again(world) if _is_wrong(again, world)]


def _all_again(world: Roaming) -> list[Again]:
    return [again for guest in world.guests for again in guest.again]


def _is_wrong(again: Again, world: Roaming) -> bool:
    if world.healed_at is not None:  # each side went on by itself, then one handed over
        return again.listed_at > world.healed_at and again.settled_for > 1.0
    return again.was_firm


def test_the_proof_can_fail(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that forgets acknowledgements which are ahead of their messages is found out."""
    monkeypatch.setattr("p2pmesh.protocol.acks.KeptAcks.keep", lambda *_: None)
    for seed in range(100):
        world = packets_are_lost(simulate(3, seed=seed, delay=0.02, jitter=0.02), seed)
        world.run(2.0)
        if any(again.was_firm for again in _all_again(world)):
            return
    pytest.fail("100 runs without a home's memory, and nothing came again")


@pytest.mark.parametrize("seed", range(5))
def test_a_newcomer_denies_no_guest_before_it_was_told_who_is_here(
    simulate: Simulate, seed: int
) -> None:
    net = simulate(seed=seed, delay=0.02)  # its contact's answer is on its way for 40 ms
    home, _ = net.add(), net.add()
    net.run_until(net.agrees, within=10)
    guest = Guest(net, home)
    newcomer = net.add()
    net.run_until(lambda: newcomer.life is not None, within=10)
    answers = [guest.call(newcomer, "heartbeat", status="healthy", metrics=None)]
    for _ in range(50):
        net.run(0.005)
        answers.append(guest.call(newcomer, "heartbeat", status="healthy", metrics=None))
    said = [answer().status for answer in answers]
    assert said[0] == "unavailable"
    assert said[-1] == "ok"
    assert set(said) == {"unavailable", "ok"}
    other = net.command(newcomer, "heartbeat", instance_id="x", status="healthy", metrics=None)
    net.run(0.1)
    ended = [each for each in newcomer.outcomes if isinstance(each, CallEnded)]
    assert [each.status for each in ended if each.call == other] == ["unknown"]
