"""Links off the rings: opened for messages, replaced when they hang, closed when idle."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import timing
from p2pmesh.protocol.types import MessageArrived, MessageMoved
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

#: Noticed, dialled in vain, and relayed.
AROUND = timing.SIDE_HUNG_AFTER + timing.DIAL_TIMEOUT + timing.RELAY_AFTER + 1.0


class Pair:
    """Two of twenty whom no ring links, and a message between them went well."""

    def __init__(self, net: SimNetwork) -> None:
        self.net = net
        self.one = net.nodes[0]
        linked = {link.node_id for link in self.one.mesh.links(self.one.now())}
        self.other = next(node for node in net.nodes[1:] if node.node_id not in linked)
        first = self.send()
        net.run_until(lambda: self.is_stored(first), within=5.0)
        net.command(self.other, "message_completed", message_id=first, ok=True)

    def send(self) -> str:
        message_id: str = self.net.command(
            self.one, "send", source=self.one.instance_id, target=self.other.instance_id,
            named=False, type="Notification", payload=b"x", ttl=3600.0, correlation_id=None,
        )  # fmt: skip
        return message_id

    def is_stored(self, message_id: str) -> bool:
        moved = [o for o in self.one.outcomes if isinstance(o, MessageMoved)]
        return any(o.message_id == message_id for o in moved)

    def links(self, node: SimNode, to: SimNode) -> int:
        return sum(link.node_id == to.node_id for link in node.mesh.links(node.now()))


@pytest.fixture
def pair(simulate: Simulate) -> Pair:
    return Pair(simulate(20))


def test_what_waits_on_a_link_that_hangs_goes_around_it_in_seconds(pair: Pair) -> None:
    """The packets between two vanish; the kernels would try for 15 s."""
    pair.net.cut(pair.one, pair.other)
    message_id = pair.send()
    pair.net.run_until(lambda: pair.is_stored(message_id), within=AROUND)
    assert pair.one.mesh.counters()["link_hung"] == 1
    got = [o for o in pair.other.outcomes if isinstance(o, MessageArrived)]
    assert [o.envelope.message_id for o in got].count(message_id) == 1


def test_a_link_that_lost_its_state_is_dialled_afresh(pair: Pair) -> None:
    """A firewall forgot the connection: what goes over it vanishes, a new one works."""
    pair.net.cut(pair.one, pair.other)
    message_id = pair.send()
    pair.net.run(timing.SIDE_HUNG_AFTER - 0.1)
    pair.net.heal()
    pair.net.run_until(lambda: pair.is_stored(message_id), within=1.0)


def test_a_hanging_link_is_no_evidence_against_its_peer(pair: Pair) -> None:
    watch = Watch(pair.net)
    pair.net.cut(pair.one, pair.other)
    pair.send()
    pair.net.run(30.0)
    watch.assert_nobody_failed()


def test_a_peer_that_is_stopped_keeps_its_link(pair: Pair) -> None:
    """Its kernel answers the dial: what waits is handled when it runs on."""
    pair.net.stop(pair.other)
    message_id = pair.send()
    pair.net.run(6.0)
    assert pair.links(pair.one, pair.other) == 1
    pair.net.resume(pair.other)
    pair.net.run_until(lambda: pair.is_stored(message_id), within=1.0)


def test_a_link_that_answers_is_never_dialled_again(pair: Pair) -> None:
    for _ in range(20):
        message_id = pair.send()
        pair.net.run(1.3)
        assert pair.is_stored(message_id)
    assert "link_hung" not in pair.one.mesh.counters()
    assert pair.links(pair.one, pair.other) == 1


def test_a_link_that_nobody_uses_is_closed(pair: Pair) -> None:
    assert pair.links(pair.one, pair.other) == 1
    pair.net.run(timing.LINK_IDLE_TIMEOUT + 10.0)
    assert pair.links(pair.one, pair.other) == 0
