"""Random lives of small worlds: what was accepted arrives, once and in order.

A failing seed is in the test's id; it replays.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.types import MessageArrived
from tests.protocol.offices import Office, World, audit


class Scenario:
    """A few nodes, and chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.offices = [self.world.add(f"n{n}", persistent=True) for n in range(4)]
        self.sent: list[tuple[Office, str, str, bytes]] = []
        for office in self.offices:
            office.auto_completes = self.rng.random() < 0.5

    def send(self, targets: list[str]) -> None:
        office = self.rng.choice(self.world.living())
        target = self.rng.choice(targets)
        payload = b"%d" % len(self.sent)
        self.sent.append((office, office.send(target, payload, ttl=1e6), target, payload))

    def pair(self) -> tuple[Office, Office]:
        one, other = self.rng.sample(self.offices, 2)
        return one, other

    def cut(self) -> None:
        """A link ends, and what was on it with it; perhaps it cannot come back yet."""
        one, other = self.pair()
        self.world.lost = {
            kind
            for kind in (wire.Post, wire.Receipt, wire.Done, wire.Handed, wire.CastReceipt)
            if self.rng.random() < 0.3
        }
        self.send([str(one.agent), str(other.agent)])
        self.world.lost.clear()
        if self.rng.random() < 0.3:
            self.world.block(one, other)
        else:
            self.world.unlink(one, other)

    def complete(self) -> None:
        for office in self.world.living():
            for arrived in office.of(MessageArrived):
                if self.rng.random() < 0.5:
                    office.commands.message_completed(
                        self.world.at, arrived.envelope.message_id, self.rng.random() < 0.9
                    )
        self.world.run()

    def pass_time(self) -> None:
        self.world.pass_time(self.rng.choice([0.01, 0.5, 2.0, 7.0]))

    def heal(self) -> None:
        world = self.world
        world.blocked.clear()
        for index, one in enumerate(self.offices):
            for other in self.offices[index + 1 :]:
                world.heal(one, other)

    def finish(self) -> None:
        """Everything works again, and all handlers end well."""
        self.heal()
        for _ in range(6):
            for office in self.world.living():
                for arrived in office.of(MessageArrived):
                    office.commands.message_completed(
                        self.world.at, arrived.envelope.message_id, True
                    )
            self.world.pass_time(40.0)
        self.world.pass_time(2 * timing.STREAM_UNSURE_MAX)


@pytest.mark.parametrize("seed", range(25))
def test_over_any_cuts_each_message_arrives_once_and_in_order(seed: int) -> None:
    scenario = Scenario(seed)
    agents = [str(office.agent) for office in scenario.offices]
    for _ in range(80):
        match scenario.rng.randrange(6):
            case 0 | 1:
                scenario.send(agents)
            case 2:
                scenario.cut()
            case 3:
                scenario.pass_time()
            case 4:
                scenario.complete()
            case 5:
                scenario.world.blocked.clear()
        for office in scenario.offices:
            audit(office)
    scenario.finish()
    for office in scenario.offices:
        first = [each for each in office.of(MessageArrived) if each.attempt == 1]
        assert max(Counter(each.envelope.message_id for each in first).values(), default=1) == 1
        for sender in scenario.offices:
            mine = [each.envelope.payload for each in first if each.via == sender.id]
            sent = [
                p for s, _, target, p in scenario.sent if s is sender and target == office.agent
            ]
            assert mine == sent
    for sender, message_id, _, _ in scenario.sent:
        assert sender.commands.message_state(message_id)[0].state == "done"
    for office in scenario.offices:
        audit(office)
        assert office.post._outbox._account.used == 0


@pytest.mark.parametrize("seed", range(25))
def test_over_splits_and_restarts_what_was_accepted_arrives_where_its_sender_lives(
    seed: int,
) -> None:
    scenario = Scenario(seed)
    world, rng = scenario.world, scenario.rng
    agents = [str(office.agent) for office in scenario.offices]
    arrived: Counter[str] = Counter()
    died_with: set[str] = set()
    for _ in range(60):
        match rng.randrange(9):
            case 0 | 1 | 2:
                scenario.send(agents)
            case 3:
                scenario.cut()
            case 4:
                scenario.pass_time()
            case 5:
                scenario.complete()
            case 6:
                world.split(*scenario.pair())
            case 7:
                scenario.heal()
            case 8:
                office = rng.choice(scenario.offices)
                died_with |= {each for sender, each, _, _ in scenario.sent if sender is office}
                arrived.update(e.envelope.message_id for e in office.of(MessageArrived))
                world.restart(office)
        for office in scenario.offices:
            audit(office)
    scenario.finish()
    for office in scenario.offices:
        arrived.update(each.envelope.message_id for each in office.of(MessageArrived))
        lives = [
            [p for p in office.arrived() if p in of_sender]
            for of_sender in (
                {p for s, _, _, p in scenario.sent if s is sender} for sender in scenario.offices
            )
        ]
        for payloads in lives:
            firsts = list(dict.fromkeys(payloads))
            assert firsts == sorted(firsts, key=int), "in order within one life"
    for sender, message_id, _, _ in scenario.sent:
        if message_id not in died_with:
            assert arrived[message_id] >= 1
            assert sender.commands.message_state(message_id)[0].state == "done"


@pytest.mark.parametrize("seed", range(25))
def test_a_roaming_guest_gets_what_was_sent_to_it_and_nothing_its_senders_know_as_done(
    seed: int,
) -> None:
    scenario = Scenario(seed)
    world, rng = scenario.world, scenario.rng
    scenario.offices[0].call("register", "g")
    acknowledged: set[str] = set()
    seen: list[str] = []

    def visit(office: Office) -> None:
        """The guest beats, reads and acknowledges through this node."""
        if office.call("heartbeat", "g") is None or office.status() != "ok":
            world.pass_time(1.1)
        end = office.call("read", "g", None)
        if end is None or end.status != "ok":
            return
        read = [envelope.message_id for envelope in end.messages]
        if not any(each.view.buried for each in scenario.offices):
            assert not acknowledged & set(read), "what was done reappeared"
        seen.extend(read)
        some = tuple(each for each in read if rng.random() < 0.5)
        office.call("acknowledge", "g", some)
        acknowledged.update(  # as far as its senders could be told
            message_id
            for sender, message_id, _, _ in scenario.sent
            if message_id in some and sender.commands.message_state(message_id)[0].state == "done"
        )

    for _ in range(60):
        match rng.randrange(7):
            case 0 | 1 | 2:
                scenario.send(["g"])
            case 3:
                scenario.pass_time()
            case 4:
                visit(rng.choice(scenario.offices))
            case 5:
                world.split(*scenario.pair())
            case 6:
                scenario.heal()
        for office in scenario.offices:
            audit(office)
    for _ in range(30):
        scenario.heal()
        visit(scenario.offices[0])
        world.pass_time(2.0)
    assert set(seen) == {message_id for _, message_id, _, _ in scenario.sent}
    for sender, message_id, _, _ in scenario.sent:
        assert sender.commands.message_state(message_id)[0].state == "done"
    for office in scenario.offices:
        audit(office)
        assert office.post._outbox._account.used == 0
