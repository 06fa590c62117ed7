"""Links that lead to nobody, or to somebody else: what was begun goes on."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.detector import Stage
from p2pmesh.protocol.links import Phase
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.types import Candidate, FoundBy, Life, PeerRejected
from tests.protocol.strangers import BORN, Stranger
from tests.protocol.test_door import Door

ME = int.from_bytes(b"\x07" * 32)  # a stranger of this number has the door's identity


def dialled(door: Door) -> list[str]:
    return list(door.dials.values())


def dial_to(door: Door, address: str) -> int:
    (number,) = [number for number, at in door.dials.items() if at == address]
    return number


def found(door: Door, *addresses: str) -> None:
    door.do("candidate_found", Candidate("offer", addresses, FoundBy.MDNS))
    door.pass_time(0.0)


def lost(door: Door, number: int) -> bytes:
    """A ring neighbour whose link ended without a goodbye; its node id."""
    link = door.introduced(number)
    door.pass_time(0.5)
    stranger = door.links.pop(link)
    door._closed.add(link)
    door.do("link_ended", link)
    return stranger.signer.node_id


def member(door: Door, number: int, *addresses: str) -> None:
    """A member that somebody else told of; it is dialled, being a ring neighbour."""
    teller = door.introduced(2)
    told = Stranger(number, initiator=True).record(Life(BORN, 0, number), addresses=addresses)
    door.say(teller, door.links[teller].say(wire.News((told.item,))))
    door.pass_time(0.4)
    door.dials = {n: at for n, at in door.dials.items() if at in addresses}


def test_a_candidate_that_is_refused_is_tried_at_its_next_address_and_again_later() -> None:
    door = Door()
    found(door, "10.9.0.1:1", "10.9.0.2:1")
    link = door.open(1, dial_to(door, "10.9.0.1:1"))
    door.greet(link, Life(BORN, 0, 1), versions=(7, 8))
    assert dialled(door) == ["10.9.0.2:1"]
    link = door.open(1, dial_to(door, "10.9.0.2:1"))
    door.greet(link, Life(BORN, 0, 1), versions=(7, 8))
    assert dialled(door) == []
    door.pass_time(timing.CANDIDATE_RETRY + 0.1)
    assert dialled(door) == ["10.9.0.1:1"]


@pytest.mark.parametrize("other", [1, 2], ids=["a newcomer", "a member"])
def test_a_member_is_looked_for_again_where_somebody_else_answered(other: int) -> None:
    door = Door()
    member(door, 3, "10.9.0.3:1")
    link = door.open(other, dial_to(door, "10.9.0.3:1"))
    door.greet(link, Life(BORN, 0, other))
    # A link all the same, to who answered; that of a member is one too many.
    assert (link in door.links) is (other == 1)
    door.pass_time(1.5)
    assert "10.9.0.3:1" in dialled(door)


def test_a_member_at_an_address_that_is_mine_here_is_not_looked_for_once_only() -> None:
    """172.17.0.1 exists on every docker host."""
    door = Door()
    member(door, 3, "172.17.0.1:8078")
    link = door.open(ME, dial_to(door, "172.17.0.1:8078"))
    door.greet(link, Life(BORN, 0, 3), process=b"process1")
    assert link not in door.links
    door.pass_time(1.5)
    assert "172.17.0.1:8078" in dialled(door)


def test_who_only_checks_and_does_not_hang_up_loses_the_link() -> None:
    door = Door()
    link = door.open(1, None)
    door.greet(link, Life(BORN, 0, 1), check=True)
    door.pass_time(timing.HANDSHAKE_TIMEOUT - 0.1)
    assert link in door.links
    assert door.mesh._core.connections.links[link].phase is Phase.RETIRING
    door.pass_time(0.2)
    assert link not in door.links


def test_a_check_from_who_is_in_question_is_a_sign_of_life() -> None:
    door = Door()
    node = lost(door, 1)
    assert node in door.mesh._monitoring.detector.cases
    link = door.open(1, None)
    door.greet(link, Life(BORN, 0, 1), check=True)
    assert node not in door.mesh._monitoring.detector.cases


@pytest.mark.parametrize("who", ["another program", "another node", "myself"])
def test_who_else_answers_at_a_members_address_is_as_good_as_a_refusal(who: str) -> None:
    door = Door()
    node = lost(door, 1)
    stages = []
    for _ in range(2):
        door.pass_time(timing.REDIAL_GAP + 0.01)
        probe = max(n for n, address in door.dials.items() if address == "10.1.1.1:8078")
        if who == "another program":
            link = 100 + probe
            door._opened.add(link)
            door.do("link_opened", link, door.dials.pop(probe), probe)
            door.do("bytes_received", link, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        else:
            number = ME if who == "myself" else 2
            link = door.open(number, probe)
            door.greet(link, Life(BORN, 0, 2), process=b"process1")
        stages.append(door.mesh._monitoring.detector.cases[node].stage)
    assert stages == [Stage.WAITING, Stage.ACCUSED]


def test_what_does_not_wait_takes_the_news_that_wait_along() -> None:
    """Plain changes are held back for 100 ms, questions are said at once."""
    door = Door()
    link = door.introduced(1)
    door.pass_time(0.5)
    core = door.mesh._core
    stranger = door.links[link]
    for number, urgency in enumerate((Urgency.CHANGE, Urgency.CHANGE, Urgency.QUESTION)):
        core.flood(number, bytes([number]), urgency)
        door.perform()
    said = [message.items for message in stranger.heard if isinstance(message, wire.News)]
    assert said[-2:] == [(b"\x00",), (b"\x02", b"\x01")]


def test_a_reason_is_told_once_an_attempt() -> None:
    door = Door()
    events: list[PeerRejected] = []
    perform = door._perform

    def note(action: object) -> None:
        if isinstance(action, PeerRejected):
            events.append(action)
        perform(action)

    door._perform = note
    found(door, "10.9.0.1:1")
    for _ in range(3):
        link = door.open(1, dial_to(door, "10.9.0.1:1"))
        door.greet(link, Life(BORN, 0, 1), versions=(7, 8))
        door.pass_time(5.0)
    assert [event.reason for event in events] == ["speaks versions 7..8, we 1..1"]


def test_a_node_leaves_once_its_handlers_have_ended_or_its_time_is_over() -> None:
    for ends in (True, False):
        door = Door()
        door.do("leave", is_working=True)
        door.pass_time(1.0)
        assert not door.is_stopped
        if ends:
            door.do("handlers_ended")
        else:
            door.pass_time(timing.LEAVE_TIMEOUT)
        assert door.is_stopped
