"""News of a later version goes through this one unchanged."""

from __future__ import annotations

import msgspec
import pytest

from p2pmesh.protocol import wire
from p2pmesh.protocol.types import Life
from tests.protocol.strangers import BORN, Stranger
from tests.protocol.test_door import Door


def node(number: int) -> bytes:
    return Stranger(number, initiator=True).signer.node_id


def later(item: wire.Message | bytes) -> bytes:
    """As a later version writes it: with a field that nobody here knows."""
    encoded = item if isinstance(item, bytes) else wire.encode(item)
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(encoded), {"appended": "later"}])


def record() -> bytes:
    """A record to which a later version appended a field, signed with it."""
    stranger = Stranger(4, initiator=True)
    fields = msgspec.msgpack.decode(stranger.record(Life(BORN, 0, 4)).signed[64:])
    body = msgspec.msgpack.encode([*fields, "appended"])
    return wire.encode(wire.RecordItem(stranger.signer._sign(body)))


LIFE = Life(BORN, 0, 3)


@pytest.mark.parametrize(
    "item",
    [
        later(wire.Question(node(3), LIFE, 0, "a later kind", node(1), 1, 5_000)),
        later(wire.Vouch(node(3), LIFE, 0, node(1), 1, ())),
        later(wire.Stall(node(3), LIFE, node(1), 1, True)),
        record(),
    ],
    ids=["question", "vouch", "stall", "record"],
)
def test_what_a_later_version_appends_is_passed_on(item: bytes) -> None:
    door = Door()
    links = [door.introduced(number) for number in (1, 2, 3)]
    door.pass_time(0.5)
    one, other = (door.links[link] for link in links[:2])
    other.heard.clear()
    door.say(links[0], one.say(wire.News((item,))))
    door.pass_time(0.2)
    assert item in [each for m in other.heard if isinstance(m, wire.News) for each in m.items]


def test_kinds_of_items_and_messages_of_a_later_version_are_counted_and_skipped() -> None:
    door = Door()
    link = door.introduced(1)
    stranger = door.links[link]
    unknown = msgspec.msgpack.encode([99, "later"])
    door.say(link, stranger.say(wire.News((unknown,)), unknown, wire.Ping(5)))
    assert stranger.heard[-1] == wire.Pong(5)
    counters = door.mesh.counters()
    assert (counters["item_unknown"], counters["message_unknown"]) == (1, 1)
