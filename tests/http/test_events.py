"""Server-sent events: what happens, numbered, and what was missed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest

from p2pmesh.http import events, server
from p2pmesh.protocol.types import Lost, MessageEvent
from tests.http.contract import eventually
from tests.http.memory import EVENTS_KEPT, joined, lost
from tests.http.serving import Served
from tests.http.wire import Connection, get


class Stream:
    """An open event stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._text = b""
        self.comments = 0

    def next(self) -> dict[str, Any]:
        """The data of the next event; its frame is checked."""
        while True:
            while b"\n\n" not in self._text:
                chunk = self._connection.read_chunk()
                assert chunk, "the stream ended"
                self._text += chunk
            frame, _, self._text = self._text.partition(b"\n\n")
            if frame.startswith(b":"):
                self.comments += 1
                return {"event": "comment"}
            if frame.startswith(b"retry:"):
                continue
            match = re.fullmatch(rb"id: (\d+)\nevent: (\w+)\ndata: (.*)", frame)
            assert match, frame
            data: dict[str, Any] = json.loads(match[3])
            assert data["seq"] == int(match[1])
            assert data["event"] == match[2].decode()
            assert data["t"] > 0
            return data


@contextmanager
def stream(served: Served, *headers: str) -> Iterator[Stream]:
    node = served.mesh.nodes[0]
    before = served.run(lambda: node.readers)
    with Connection(served.addresses[0]) as connection:
        connection.send(get("/v1/events", *headers))
        status, fields = connection.read_head()
        assert status == 200
        assert fields["content-type"] == "text/event-stream"
        assert fields["cache-control"] == "no-store"
        assert fields["transfer-encoding"] == "chunked"
        eventually(lambda: served.run(lambda: node.readers) > before, "nobody reads")
        yield Stream(connection)


def emit(served: Served, *names: str) -> None:
    for name in names:
        served.run(partial(served.mesh.emit, joined(name)))


def test_events_come_as_they_happen_and_their_numbers_rise_by_one(served: Served) -> None:
    emit(served, "before")
    with stream(served) as reader:
        emit(served, "a", "b")
        first, second = reader.next(), reader.next()
        assert first["event"] == "member_joined"
        assert (first["instance_id"], second["instance_id"]) == ("a", "b")
        assert set(first) == {"event", "t", "seq", "instance_id", "node_id", "name", "kind"}
        assert (first["seq"], second["seq"]) == (2, 3)


def test_a_reader_resumes_after_the_last_event_it_had(served: Served) -> None:
    emit(served, *"abcde")
    with stream(served, "last-event-id: 2") as reader:
        emit(served, "f")
        assert [reader.next()["name"] for _ in range(4)] == list("cdef")


def test_what_is_kept_no_more_is_a_lost_event(served: Served) -> None:
    emit(served, *map(str, range(EVENTS_KEPT + 10)))
    with stream(served, "last-event-id: 3") as reader:
        gap = reader.next()
        assert (gap["event"], gap["n"], gap["seq"]) == ("lost", 7, 10)
        seqs = [reader.next()["seq"] for _ in range(EVENTS_KEPT)]
        assert seqs == list(range(11, EVENTS_KEPT + 11))


def test_what_the_node_says_was_lost_is_said_once(served: Served) -> None:
    with stream(served, "last-event-id: 0") as reader:
        emit(served, "a")
        # A reader's buffer overflowed: 4 events, of which the last had number 5.
        node = served.mesh.nodes[0]
        served.run(lambda: setattr(node, "_seq", 4))
        served.run(lambda: served.mesh.emit(lost(4)))
        emit(served, "b")
        found = [reader.next() for _ in range(3)]
        assert [each["event"] for each in found] == ["member_joined", "lost", "member_joined"]
        assert [each["seq"] for each in found] == [1, 5, 6]
        assert found[1]["n"] == 4


def test_a_reader_of_an_earlier_run_gets_what_is_kept(served: Served) -> None:
    emit(served, "a", "b")
    with stream(served, "last-event-id: 5000") as reader:
        assert [reader.next()["name"] for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "", "9" * 20, "１"])
def test_a_last_event_id_that_was_never_sent_is_400(served: Served, last: str) -> None:
    with Connection(served.addresses[0]) as connection:
        reply = connection.ask(get("/v1/events", f"last-event-id: {last}"))
        assert reply.status == 400
        assert reply.headers["content-type"] == "application/problem+json"


def test_silence_is_filled_with_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert events.COMMENT_INTERVAL == 15.0
    monkeypatch.setattr(server, "COMMENT_INTERVAL", 0.01)
    with stream(served) as reader:
        while reader.comments < 3:
            assert reader.next() == {"event": "comment"}
        emit(served, "a")
        while (found := reader.next()) == {"event": "comment"}:
            pass
        assert found["name"] == "a"


def test_head_of_the_stream_ends_at_once(served: Served) -> None:
    with Connection(served.addresses[0]) as connection:
        reply = connection.ask(get("/v1/events", method="HEAD"))
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/event-stream"
        assert connection.ask(get("/health")).status == 200


def test_a_reader_that_goes_away_is_forgotten_at_once(served: Served) -> None:
    node = served.mesh.nodes[0]
    with stream(served):
        assert served.run(lambda: node.readers) == 1
    eventually(lambda: served.run(lambda: node.readers) == 0, "still read")


def test_stopping_ends_an_open_stream_as_a_whole_answer(served: Served) -> None:
    with stream(served) as reader:
        emit(served, "a")
        reader.next()
        served.wait(served.servers[0].stop())
        assert reader._connection.read_chunk() == b""
        assert reader._connection.rest() == b""


def test_a_payload_that_json_cannot_carry_is_told_as_null() -> None:
    event = MessageEvent(
        seq=1, t=1.0, message_id="m", source="a", type="Query", payload={(1, 2): "\ud800"}
    )
    data = json.loads(events.frame(event).split(b"data: ")[1])
    assert (data["payload"], data["message_id"]) == (None, "m")
    plain = msgspec.structs.replace(event, payload={"n": [1, None]})
    assert json.loads(events.frame(plain).split(b"data: ")[1])["payload"] == {"n": [1, None]}


def test_a_line_break_in_an_event_does_not_break_its_frame() -> None:
    event = MessageEvent(
        seq=1, t=1.0, message_id="m", source="a", type="x\n\ndata: y", payload="1\r\n2\u2028"
    )
    assert events.frame(event).count(b"\n") == 4
    assert b"\r" not in events.frame(event)


def test_every_event_has_a_frame() -> None:
    assert events.frame(Lost(n=2, seq=5, t=1.5)) == (
        b'id: 5\nevent: lost\ndata: {"event":"lost","t":1.5,"seq":5,"n":2}\n\n'
    )
