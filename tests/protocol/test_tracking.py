from __future__ import annotations

from p2pmesh.protocol import limits
from p2pmesh.protocol.tracking import Ended, Tracking
from p2pmesh.protocol.types import Recipient
from tests.protocol.offices import World


def test_what_is_over_is_forgotten_before_what_still_waits() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.kill(b)
    waiting = a.send("b-1")
    for _ in range(limits.MESSAGE_STATES_MAX + 100):
        a.commands.send(
            world.at, source="x", target="a-1", named=False, type="T", payload=b"", ttl=9.0,
            correlation_id=None,
        )  # fmt: skip
        world.run()
    assert a.commands.message_state(waiting) is not None
    assert len(a.post._tracking) == limits.MESSAGE_STATES_MAX


class Waiting:
    is_over = False

    def recipients(self) -> tuple[Recipient, ...]:
        return ()


def test_the_table_is_bounded_even_if_everything_waits() -> None:
    tracking = Tracking()
    for number in range(limits.MESSAGE_STATES_MAX + 50):
        tracking.put(str(number), Waiting())
    assert len(tracking) == limits.MESSAGE_STATES_MAX


def test_a_state_is_known_unknown_or_not_yet_anybodys() -> None:
    tracking = Tracking()
    tracking.put("ended", Ended(Recipient("r", "done")))
    tracking.put("waiting", Waiting())
    assert tracking.state("ended") == (Recipient("r", "done"),)
    assert tracking.state("waiting") == ()
    assert tracking.state("never") is None
    tracking.drop("ended")
    assert tracking.state("ended") is None
