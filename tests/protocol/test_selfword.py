"""What an agent says of itself, as the others hear it."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import MemberUpdated
from p2pmesh.testing import SimNetwork, SimNode
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch


def say(net: SimNetwork, node: SimNode, status: str | None, metrics: Any = None) -> None:
    packed = None if metrics is None else msgspec.msgpack.encode(metrics)
    node.input("describe", status=status, metrics=packed)


def heard(node: SimNode, of: SimNode) -> tuple[str | None, Any]:
    member = node.lists(of)
    assert member is not None
    return member.status, member.metrics


def test_a_word_is_heard_by_all_at_once_and_by_who_joins_later(simulate: Simulate) -> None:
    net = simulate(4)
    speaker, *others = net.nodes
    watch = Watch(net)
    say(net, speaker, "busy", {"queue": 3})
    assert heard(speaker, speaker) == ("busy", {"queue": 3})
    net.run(0.5)
    assert {str(heard(node, speaker)) for node in others} == {"('busy', {'queue': 3})"}
    newcomer = net.add()
    net.run(2.0)
    assert heard(newcomer, speaker) == ("busy", {"queue": 3})
    assert net.agrees()
    assert watch.events(MemberUpdated)


def test_changes_are_told_every_ten_seconds_and_the_last_one_is_told(simulate: Simulate) -> None:
    net = simulate(3)
    speaker, listener, _ = net.nodes
    for n in range(20):
        say(net, speaker, f"step {n}")
        net.run(0.1)
    assert heard(speaker, speaker) == ("step 19", None)
    assert heard(listener, speaker) == ("step 0", None)
    net.run(timing.SELF_STATUS_INTERVAL)
    assert heard(listener, speaker) == ("step 19", None)
    revision = speaker.mesh._core.record.record.revision
    say(net, speaker, "step 19")
    net.run(2 * timing.SELF_STATUS_INTERVAL)
    assert speaker.mesh._core.record.record.revision == revision, "nothing new to tell"
    say(net, speaker, None)
    net.run(0.5)
    assert heard(listener, speaker) == (None, None)


def test_what_a_record_cannot_carry_is_shown_by_the_node_alone(simulate: Simulate) -> None:
    net = simulate(2)
    speaker, listener = net.nodes
    large = {"text": "x" * limits.RECORD_MAX}
    say(net, speaker, "fine", large)
    net.run(0.5)
    assert heard(speaker, speaker) == ("fine", large)
    assert heard(listener, speaker) == ("fine", None)
    say(net, speaker, "s" * (limits.STATUS_MAX + 1), {"n": 1})
    net.run(timing.SELF_STATUS_INTERVAL)
    assert heard(listener, speaker) == (None, {"n": 1})


def test_a_word_said_before_joining_is_joined_with(simulate: Simulate) -> None:
    net = simulate(2)
    early = net.add()
    say(net, early, "early")
    assert early.life is None
    net.run(2.0)
    assert heard(net.nodes[0], early) == ("early", None)
    net.leave(early)
    net.run(0.5)
    assert net.nodes[0].state_of(early) == "left"
