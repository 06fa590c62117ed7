"""Member events, and what later versions may put into them."""

from __future__ import annotations

import msgspec
import pytest

from p2pmesh.protocol import wire
from p2pmesh.protocol.reporting import evidence_of
from p2pmesh.protocol.types import Evidence
from p2pmesh.testing import SimNetwork


@pytest.mark.parametrize("known", list(Evidence))
def test_known_evidence_is_itself(known: Evidence) -> None:
    assert evidence_of(known.value) is known


def test_evidence_of_a_later_version_counts_as_the_weak_kind() -> None:
    assert evidence_of("arp") is Evidence.UNREACHABLE


def test_a_question_with_evidence_of_a_later_version_is_heard_and_answered() -> None:
    network = SimNetwork(seed=3)
    nodes = [network.add(f"n{number}") for number in range(3)]
    network.run_until(network.agrees, within=10)
    asker, hearer, subject = (node.mesh._core for node in nodes)
    held = asker.view.alive(subject.me)
    assert held is not None
    question = wire.Question(
        subject.me, held.version.life, held.version.incarnation, "arp", asker.me, 1, 1000
    )
    asker.tell(asker.links_up[hearer.me], wire.News((msgspec.msgpack.encode(question),)))
    nodes[0].input("loop_lagged", 0.0)
    network.run(0.5)
    assert nodes[1].seen("member_suspected")
    assert nodes[1].state_of(nodes[2]) == "alive"
