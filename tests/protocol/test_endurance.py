"""Many messages, while links are reset and the receiver dies again and again.

``tox -e endurance`` asks for a million and prints what it took; here it is ten
thousand.  What was completed is written down outside of the processes that die.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections import deque
from typing import Final

from p2pmesh.protocol.types import MessageArrived, MessageMayStart, MessageMoved
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate

MESSAGES: Final = int(os.environ.get("ENDURANCE_MESSAGES", "10000"))
RESETS: Final = 100
DEATHS: Final = 100
SENDERS: Final = ("durable", "memory")
WINDOW: Final = 500  # sent and not done, a sender
TURN: Final = 0.001


class Journal:
    """What the handlers completed, as a file beside them would tell."""

    def __init__(self) -> None:
        self.next: dict[bytes, int] = dict.fromkeys((s.encode() for s in SENDERS), 0)
        self.again = 0  # completed before, which the attempt said

    def completed(self, payload: bytes, attempt: int) -> None:
        sender, _, text = payload.partition(b" ")
        number, expected = int(text), self.next[sender]
        if number == expected:
            self.next[sender] += 1
        else:
            # Only the last one may have died between its completion and the record of it.
            assert (number, attempt > 1) == (expected - 1, True), f"{payload!r}, not {expected}"
            self.again += 1


class Agent:
    """The handlers of one process: for each sender one message at a time, in order."""

    def __init__(self, node: SimNode, journal: Journal) -> None:
        self._node = node
        self._journal = journal
        self._waiting: dict[bytes, deque[MessageArrived]] = {}
        self._running: dict[str, MessageArrived] = {}

    def work(self) -> None:
        node = self._node
        outcomes, node.outcomes = node.outcomes, []
        for outcome in outcomes:
            match outcome:
                case MessageArrived(via=via):
                    waiting = self._waiting.setdefault(via, deque())
                    waiting.append(outcome)
                    if len(waiting) == 1:
                        self._begin(outcome)
                case MessageMayStart(message_id):
                    self._complete(self._running.pop(message_id))

    def _begin(self, arrived: MessageArrived) -> None:
        self._running[arrived.envelope.message_id] = arrived
        self._node.command("message_started", arrived.envelope.message_id)

    def _complete(self, arrived: MessageArrived) -> None:
        self._journal.completed(arrived.envelope.payload, arrived.attempt)
        self._node.command("message_completed", arrived.envelope.message_id, True)
        waiting = self._waiting[arrived.via]
        waiting.popleft()
        if waiting:
            self._begin(waiting[0])


class Sender:
    """Keeps a window of messages on their way."""

    def __init__(self, node: SimNode, target: SimNode) -> None:
        self._node = node
        self._target = target
        self.sent = 0
        self.done = 0

    def work(self, total: int) -> None:
        node = self._node
        outcomes, node.outcomes = node.outcomes, []
        for outcome in outcomes:
            if isinstance(outcome, MessageMoved) and outcome.state != "stored":
                assert outcome.state == "done", outcome
                self.done += 1
        while self.sent < total and self.sent - self.done < WINDOW:
            node.command(
                "send", source=node.instance_id, target=self._target.instance_id, named=False,
                type="Notification", payload=b"%s %d" % (node.name.encode(), self.sent),
                ttl=86_400.0, correlation_id=None,
            )  # fmt: skip
            self.sent += 1


class Endurance:
    """Two senders, one with a store and one without, and a receiver with a store."""

    def __init__(self, net: SimNetwork, each: int) -> None:
        self.net = net
        self.each = each
        self.journal = Journal()
        self.receiver = net.add("receiver", persistent=True)
        nodes = [net.add(name, persistent=name == "durable") for name in SENDERS]
        net.run_until(net.agrees, within=20)
        self.senders = [Sender(node, self.receiver) for node in nodes]
        self.agent = Agent(self.receiver, self.journal)
        self._nodes = nodes

    @property
    def done(self) -> int:
        return sum(sender.done for sender in self.senders)

    def turn(self) -> None:
        self.net.run(TURN)
        if self.receiver.is_running:
            self.agent.work()
        for sender in self.senders:
            sender.work(self.each)

    def reset(self, rng: random.Random) -> None:
        self.net.reset(self.receiver, rng.choice(self._nodes))

    def die(self, rng: random.Random) -> None:
        """The receiver is gone for a while, and its disk is all that it keeps."""
        self.net.kill(self.receiver)
        for _ in range(rng.randrange(1, 600)):
            self.turn()
        self.net.start(self.receiver)
        self.agent = Agent(self.receiver, self.journal)


def test_none_of_many_messages_is_lost_completed_unseen_twice_or_out_of_order(
    simulate: Simulate,
) -> None:
    began = time.process_time()
    rng = random.Random("endurance")
    endurance = Endurance(simulate(), MESSAGES // len(SENDERS))
    faults = [endurance.reset] * RESETS + [endurance.die] * DEATHS
    rng.shuffle(faults)
    for number, fault in enumerate(faults):
        while endurance.done * (len(faults) + 1) < number * MESSAGES:
            endurance.turn()
        fault(rng)
        if number % 20 == 0:
            sys.stdout.write(
                f"{endurance.done:,} of {MESSAGES:,} done, {number} faults, "
                f"{endurance.net.clock.now:.0f} virtual s, {time.process_time() - began:.0f} s\n"
            )
    while endurance.done < MESSAGES:
        endurance.turn()
    assert set(endurance.journal.next.values()) == {MESSAGES // len(SENDERS)}
    assert endurance.journal.again <= DEATHS * len(SENDERS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        f"{MESSAGES:,} messages over {RESETS} resets and {DEATHS} deaths of the receiver: 0 lost, "
        f"0 out of order, {endurance.journal.again} again after a death and told so; "
        f"{endurance.net.clock.now:.0f} virtual s, {time.process_time() - began:.0f} s of CPU, "
        f"{memory} MB\n"
    )
