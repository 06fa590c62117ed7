"""Messages one after the other: each once, acknowledged when the next is asked for."""

from __future__ import annotations

import logging

import pytest

from p2pmesh.client import reading as reading_module
from p2pmesh.client.answers import Message
from p2pmesh.client.nodes import Nodes
from p2pmesh.client.reading import POLL_INTERVAL, Reading
from p2pmesh.errors import PeerUnreachable
from tests.client.driving import REFUSED, Paused, World, said

A = "http://127.0.0.1:8001"
DONE = said(b"", 204)
POLL, ACK = "GET /messages/g?wait=30", "POST /messages/ack/g"


def listed(*ids: str, took: float = 0.0):  # type: ignore[no-untyped-def]
    fields = {
        "source_instance": "s", "target_instance": "g", "message_type": "Notification",
        "payload": 1, "correlation_id": None, "created_at": "2026-11-22T07:39:35.388278Z",
    }  # fmt: skip
    return said({"messages": [{"message_id": each, **fields} for each in ids]}, took=took)


def reader(*, acknowledges: bool = True) -> Reading:
    return Reading(Nodes((A,), None, None), "g", wait=30.0, acknowledges=acknowledges)


def read(world: World, reading: Reading, count: int) -> list[str]:
    messages: list[Message] = [world.run(reading.next()) for _ in range(count)]
    return [message.message_id for message in messages]


def test_each_is_acknowledged_when_the_next_is_asked_for() -> None:
    world = World({A: [listed("1", "2"), DONE, DONE, listed("3")]})
    reading = reader()
    assert read(world, reading, 1) == ["1"]
    assert world.calls == [POLL], "what is being worked on is not done"
    assert read(world, reading, 2) == ["2", "3"]
    assert world.calls == [POLL, ACK, ACK, POLL]
    assert world.bodies[1:3] == [{"message_ids": ["1"]}, {"message_ids": ["2"]}]
    assert world.paused == []


def test_who_acknowledges_by_itself_gets_each_once_and_the_node_is_not_asked_all_the_time() -> None:
    world = World({A: [listed("1"), listed("1"), listed("1"), listed("1", "2")]})
    assert read(world, reader(acknowledges=False), 2) == ["1", "2"]
    assert world.calls == [POLL] * 4
    assert world.paused == [POLL_INTERVAL] * 2


@pytest.mark.parametrize("empty", [listed(), listed("1")], ids=["nothing", "nothing new"])
def test_a_node_that_does_not_hold_its_answer_is_asked_again_after_a_pause(empty: object) -> None:
    world = World({A: {POLL: [listed("1"), empty], ACK: DONE}})
    reading = reader()
    read(world, reading, 1)
    with pytest.raises(Paused):
        world.run(reading.next(), pauses_max=3)
    assert world.calls.count(POLL) == 4
    assert world.paused == [POLL_INTERVAL] * 3


def test_a_long_poll_that_was_held_is_repeated_at_once() -> None:
    world = World({A: [listed(took=30.0), listed(took=30.0), listed("1", took=9.0)]})
    assert read(world, reader(), 1) == ["1"]
    assert world.paused == []


def test_what_was_acknowledged_and_is_listed_again_is_acknowledged_again_and_not_given() -> None:
    world = World({A: [listed("1"), DONE, listed("1", "2"), DONE]})
    assert read(world, reader(), 2) == ["1", "2"]
    assert world.calls == [POLL, ACK, POLL, ACK]
    assert world.bodies[-1] == {"message_ids": ["1"]}


def test_while_no_node_answers_it_waits_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World({A: [listed("1"), REFUSED, REFUSED, DONE, REFUSED, listed("2")]})
    reading = reader()
    with caplog.at_level(logging.WARNING, "p2pmesh.client"):
        assert read(world, reading, 2) == ["1", "2"]
    assert world.calls == [POLL, ACK, ACK, ACK, POLL, POLL]
    assert len(caplog.records) == 2, "once for each thing that waited"


def test_a_node_that_never_answered_is_an_error_at_once() -> None:
    with pytest.raises(PeerUnreachable, match="Connection refused"):
        read(World(), reader(), 1)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "SEEN_MAX", 3)
    ids = [str(number) for number in range(50)]
    world = World({A: listed(*ids)})
    reading = reader(acknowledges=False)
    assert read(world, reading, 50) == ids
    assert len(reading._seen) == 3
