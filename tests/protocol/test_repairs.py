"""When a repair is opened, and what keeps most from being needed."""

from __future__ import annotations

from collections.abc import Iterable

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.types import Life
from tests.protocol.strangers import BORN, Stranger
from tests.protocol.test_door import Door


def beats(door: Door, link: int, differences: Iterable[int]) -> list[int]:
    """Heartbeats of a view that differs so from the core's; at which of them a repair
    was opened."""
    stranger = door.links[link]
    opened = []
    for number, difference in enumerate(differences):
        view = int.from_bytes(door.mesh.view_hash()) ^ difference
        before = asked(stranger)
        door.say(link, stranger.say(wire.Heartbeat(view.to_bytes(8), 0, wire.HEARTBEAT_RING)))
        if asked(stranger) > before:
            opened.append(number)
        door.pass_time(1.0)
    return opened


def asked(stranger: Stranger) -> int:
    return sum(isinstance(message, wire.Buckets) for message in stranger.heard)


def a_member() -> tuple[Door, int]:
    door = Door()
    door.pass_time(2.0)  # it founds a mesh: who comes later is no stranger
    link = door.open(1, None)
    door.greet(link, None, highest=None)
    newcomer = door.links[link]
    newcomer_record = newcomer.record(Life(BORN + 5000, 0, 1))
    door.say(link, newcomer.say(wire.News((newcomer_record.item,))))
    door.pass_time(timing.REPAIR_INTERVAL)
    return door, link


def test_the_same_difference_on_two_beats_in_a_row_is_a_gap() -> None:
    assert beats(*a_member(), (7, 7)) == [1]
    assert beats(*a_member(), (7, 0, 7, 0, 7)) == []


def test_a_difference_that_changes_is_a_flood_on_its_way() -> None:
    many = timing.REPAIR_AFTER_BEATS
    assert beats(*a_member(), range(1, many)) == []


def test_views_that_never_stand_still_are_compared_all_the_same() -> None:
    many = timing.REPAIR_AFTER_BEATS
    assert beats(*a_member(), range(1, many + 2)) == [many - 1]


def test_a_gap_is_seen_though_both_views_go_on_changing() -> None:
    """What both learn leaves the XOR of their hashes as it is."""
    door, link = a_member()
    assert beats(door, link, (7,)) == []
    stranger = door.links[link]
    record = Stranger(2, initiator=True).record(Life(BORN + 6000, 0, 2))
    door.say(link, stranger.say(wire.News((record.item,))))
    assert beats(door, link, (7,)) == [0]


def test_a_newcomer_is_told_what_its_contact_learns_until_its_ring_links_are_up() -> None:
    door, link = a_member()
    teller = door.links[link]

    def learn(number: int) -> bytes:
        item = Stranger(number, initiator=True).record(Life(BORN + 9000, number, number)).item
        door.say(link, teller.say(wire.News((item,))))
        door.pass_time(0.2)
        return item

    for number in range(10, 60):
        learn(number)
    number = next(  # one whom the core's rings do not name
        number
        for number in range(100, 200)
        if Stranger(number, initiator=True).signer.node_id
        not in door.mesh._core.rings.neighbours(door.mesh.node_id)
    )
    contact = door.open(number, None)
    door.greet(contact, None, highest=None)
    newcomer = door.links[contact]
    born = Life(BORN + 20_000, 0, 3)
    door.say(contact, newcomer.say(wire.News((newcomer.record(born).item,)), wire.Want(b"")))
    door.pass_time(0.3)
    assert newcomer.signer.node_id not in door.mesh._neighbours.targets

    def told() -> set[bytes]:
        return {i for m in newcomer.heard if isinstance(m, wire.News) for i in m.items}

    assert learn(70) in told()
    door.pass_time(timing.NEWCOMER_FED)
    assert learn(71) not in told()
