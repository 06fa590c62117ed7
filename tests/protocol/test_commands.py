"""What comes before and after a command: it sees the mesh as it is, and is settled."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from p2pmesh.protocol.commands import Commands
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.postoffice import PostOffice
from p2pmesh.protocol.types import Instant, Restored
from tests.protocol.offices import BORN, View, World

AT = Instant(5.0, BORN)
MESSAGE = {"source": "a-1", "type": "Notification", "payload": b"\xc0", "correlation_id": None}
TO_B = {**MESSAGE, "target": "b-1", "named": False}

#: Whoever looks at once has to find what these made.
SETTLED: dict[str, Callable[[Commands], object]] = {
    "send to an own instance": lambda c: c.send(AT, **{**TO_B, "target": "a-1"}, ttl=9.0),  # type: ignore[arg-type]
    "broadcast": lambda c: c.broadcast(AT, **MESSAGE, ttl=9.0),  # type: ignore[arg-type]
    "cancel": lambda c: c.cancel(AT, 1),
    "part_taken": lambda c: c.part_taken(AT, 1),
    "respond_part": lambda c: c.respond_part(AT, 1, b"\xc0"),
    "respond_end": lambda c: c.respond_end(AT, 1),
    "retry": lambda c: c.retry(AT, "none", ttl=9.0),
    "drop_dead_letters": lambda c: c.drop_dead_letters(AT, "none"),
    "register": lambda c: c.register(AT, "g", "h", 1, (), ()),
    "heartbeat": lambda c: c.heartbeat(AT, "g", "ok", None),
    "deregister": lambda c: c.deregister(AT, "g"),
    "read": lambda c: c.read(AT, "g"),
    "acknowledge": lambda c: c.acknowledge(AT, "g", ("none",)),
    "give_up": lambda c: c.give_up(AT, 1),
    "ping": lambda c: c.ping(AT, b"n" * 32),
}
#: These come in great numbers.
SETTLED_TOGETHER: dict[str, Callable[[Commands], object]] = {
    "send": lambda c: c.send(AT, **TO_B, ttl=9.0),  # type: ignore[arg-type]
    "request": lambda c: c.request(AT, **TO_B, timeout=9.0),  # type: ignore[arg-type]
    "respond": lambda c: c.respond(AT, 1, b"\xc0"),
    "message_started": lambda c: c.message_started(AT, "none"),
    "message_completed": lambda c: c.message_completed(AT, "none", True),
}


def carried_out(command: Callable[[Commands], object]) -> list[object]:
    """What the door is told while this command is carried out."""
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    told: list[object] = []
    office = PostOffice(
        View(world, a),
        Ledger(Restored(), 0.0, is_durable=False),
        entropy=random.Random(1).randbytes,
        agent=a.agent,
        begin=told.append,
        settle=lambda: told.append("settled"),
    )
    command(office.commands)
    return told


@pytest.mark.parametrize("name", SETTLED)
def test_a_command_is_begun_at_its_time_and_settled(name: str) -> None:
    assert carried_out(SETTLED[name]) == [AT, "settled"]


@pytest.mark.parametrize("name", SETTLED_TOGETHER)
def test_what_comes_in_great_numbers_is_begun_and_settles_with_others(name: str) -> None:
    assert carried_out(SETTLED_TOGETHER[name]) == [AT]


def test_every_command_is_one_or_the_other() -> None:
    views = {"message_state", "sent_before", "dead_letters"}
    commands = {name for name in vars(Commands) if not name.startswith("_")} - views
    assert commands == {*SETTLED, *SETTLED_TOGETHER} - {"send to an own instance"}
