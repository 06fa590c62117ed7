"""The one-shot commands against a fake node: what they ask, print and refuse."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.cli.views import event_line
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.transport.discovery import Offer
from p2pmesh.transport.runtime import RuntimeEntry, RuntimeFile
from tests.cli.fake import MEMBER, FakeNode, Run


@pytest.fixture(autouse=True)
def _at_the_fake(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PMESH_URL", node.url)


# --- views ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["members", "leader"])
def test_json_is_what_the_node_answers(command: str, p2pmesh: Run, node: FakeNode) -> None:
    status, out, err = p2pmesh(command, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == node.answers[f"GET /v1/{command}"][1]
    assert out.count("\n") == 1


def test_members_are_a_table_for_people(p2pmesh: Run) -> None:
    status, out, _ = p2pmesh("members")
    assert status == 0
    head, row = out.splitlines()
    assert head.split() == ["NAME", "INSTANCE", "STATE", "SEEN", "KIND", "ADDRESS"]
    assert row.split() == ["ada", "ada-1", "alive", "0.2", "s", "node", "127.0.0.1:8078", "leader"]


def test_a_leader_says_what_it_lacks_for_authority(p2pmesh: Run, node: FakeNode) -> None:
    node.answers["GET /v1/leader"][1]["lacks"] = "1 of quorum 2"
    assert p2pmesh("leader")[1].endswith("policy available, without authority: 1 of quorum 2)\n")
    assert "without" not in p2pmesh("members")[1], "another node leads, as far as is known"
    node.answers["GET /v1/members"][1]["node_id"] = "aa" * 32
    assert p2pmesh("members")[1].endswith("leader, without authority: 1 of quorum 2\n")


def test_a_stalled_member_says_so(p2pmesh: Run, node: FakeNode) -> None:
    node.answers["GET /v1/members"][1]["members"] = [MEMBER | {"stalled": True}]
    assert "alive, stalled" in p2pmesh("members")[1]


def test_the_leader_is_told_with_its_epoch_and_age(p2pmesh: Run, node: FakeNode) -> None:
    assert p2pmesh("leader")[1] == "ada-1  (epoch 7, for 3 s, policy available)\n"
    node.answers["GET /v1/leader"][1].update(epoch=None, since=None)
    assert p2pmesh("leader")[1] == "ada-1  (no claim yet, policy available)\n"
    node.answers["GET /v1/leader"][1]["leader_id"] = None
    assert p2pmesh("leader") == (0, "nobody leads: no live member is a candidate\n", "")
    node.answers["GET /v1/self"][1]["life"] = ""
    assert p2pmesh("leader")[1] == "nobody leads: this node has not joined yet\n"


def test_a_follower_says_of_its_leader_what_it_can_know(p2pmesh: Run, node: FakeNode) -> None:
    leader = MEMBER | {"instance_id": "bob-1"}
    node.answers["GET /v1/leader"][1].update(leader_id="bob-1")
    node.answers["GET /v1/members/bob-1"] = (200, leader)
    known = "epoch 7, for 3 s, its policy and authority are known to it alone"
    assert p2pmesh("leader")[1] == f"bob-1  ({known})\n"
    leader["stalled"] = True
    assert p2pmesh("leader")[1] == f"bob-1  (stalled, {known})\n"
    del node.answers["GET /v1/members/bob-1"]
    assert p2pmesh("leader")[1] == f"bob-1  ({known})\n", "it went just now"


def test_what_a_peer_wrote_never_reaches_the_terminal_as_a_control_sequence(
    p2pmesh: Run, node: FakeNode
) -> None:
    node.answers["GET /v1/members"][1]["members"] = [MEMBER | {"name": "\x1b[2J\x9b\ud800\n"}]
    out = p2pmesh("members")[1]
    assert "\\x1b[2J\\x9b\\ud800\\n" in out
    assert "\x1b" not in out
    assert "\\ud800" in p2pmesh("members", "--json")[1]


def test_watch_prints_each_event_and_ends_when_the_node_does(p2pmesh: Run, node: FakeNode) -> None:
    events = [
        {"event": "leader_changed", "t": 0.5, "seq": 1, "leader_id": "ada-1", "epoch": 7,
         "reason": "first"},
        {"event": "member_joined", "t": 1.0, "seq": 2, "instance_id": "bob-1", "node_id": "bb",
         "name": "bob", "kind": "node"},
        {"event": "member_failed", "t": 2.0, "seq": 3, "instance_id": "eve-1", "node_id": "ee",
         "name": "eve", "kind": "node", "evidence": "refused", "accusers": ["aa" * 32, "bb"]},
    ]  # fmt: skip
    stream = ": hello\n\n" + "".join(
        f"id: {event['seq']}\nevent: {event['event']}\ndata: {json.dumps(event)}\n\n"
        for event in events
    )
    node.answers["GET /v1/events"] = (200, stream.encode())
    status, out, err = p2pmesh("watch", "--json")
    assert [json.loads(line) for line in out.splitlines()] == events
    assert status == 1
    assert err == f"p2pmesh: the node at {node.url} ended\n"
    lines = p2pmesh("watch")[1].splitlines()
    assert lines[0] == f"{node.url} sees 1 alive: ada (leader)"
    assert lines[1].endswith("leader_changed    ada-1  epoch 7, first")
    assert lines[2].endswith("member_joined     bob  instance_id bob-1")
    assert lines[3].endswith("eve  instance_id eve-1, evidence refused, accusers ada bob")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            {"event": "message", "message_id": "m", "source": "s", "type": "T",
             "payload": {"a": 1}},
            'message           m  T from s: {"a":1}',
        ),
        (
            {"event": "member_failed", "name": "bob", "node_id": "b", "kind": "node",
             "instance_id": "b", "evidence": "refused", "accusers": ["a", "c" * 64]},
            "member_failed     bob  instance_id b, evidence refused, accusers ada cccccccccccccccc",
        ),
        ({"event": "lost", "n": 3}, "lost              n 3"),
        ({"event": "alone", "tried": []}, "alone             tried -"),
        (
            {"event": "message_dead", "message_id": "m", "recipient": "r", "reason": "full"},
            "message_dead      m  recipient r, reason full",
        ),
        ({"event": "of a later version", "what": [1]}, "of a later version what [1]"),
    ],
)  # fmt: skip
def test_an_event_is_one_line(event: dict[str, Any], said: str) -> None:
    assert event_line({"t": 1.25, "seq": 1} | event, {"a": "ada"})[8:] == f".250  {said}"


# --- messages -------------------------------------------------------------------


def stored(node: FakeNode, *states: str, to: tuple[str, ...] = ("ada-1",)) -> None:
    """Whatever is sent gets the id m1 and then goes through these states."""
    for source in ("ada-1", "me"):
        node.answers[f"POST /messages/send/{source}"] = (
            200, {"message_id": "m1", "status": "queued", "delivered_to": list(to)},
        )  # fmt: skip
    node.answers["GET /v1/messages/m1"] = [
        (200, {"recipients": [{"instance_id": i, "state": state} for i in to]}) for state in states
    ]


def test_send_looks_the_name_up_and_waits_until_the_message_is_safe(
    p2pmesh: Run, node: FakeNode
) -> None:
    stored(node, "queued", "queued", "stored")
    status, out, _ = p2pmesh("send", "ada", '{"n": 1}', "--json")
    assert status == 0
    assert json.loads(out) == {"message_id": "m1", "delivered_to": ["ada-1"], "state": "stored"}
    assert node.body_of("POST /messages/send/ada-1") == {
        "target_instance": "ada-1", "message_type": "Notification", "payload": {"n": 1},
        "correlation_id": None,
    }  # fmt: skip
    assert p2pmesh("send", "ada", "x")[1] == "m1  stored  to ada-1\n"


def test_a_message_that_stays_queued_is_reported_as_queued(
    p2pmesh: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pmesh.cli.post.SAFE_WITHIN", 0.0)
    stored(node, "queued")
    assert p2pmesh("send", "ada")[1] == "m1  queued  to ada-1\n"


def test_nobody_waits_for_a_second_copy_that_is_not_made(p2pmesh: Run, node: FakeNode) -> None:
    stored(node, "done")
    recipient = {"instance_id": "ada-1", "state": "queued", "reason": "only here: it is away"}
    node.answers["GET /v1/messages/m1"] = (200, {"recipients": [recipient]})
    assert p2pmesh("send", "ada")[1] == "m1  queued  to ada-1 (only here: it is away)\n"
    assert [call for call, _ in node.seen].count("GET /v1/messages/m1") == 1


def test_a_broadcast_is_as_far_as_its_last_recipient(p2pmesh: Run, node: FakeNode) -> None:
    stored(node, "done", to=("a", "b"))
    recipients = [{"instance_id": "a", "state": "done"}, {"instance_id": "b", "state": "stored"}]
    node.answers["GET /v1/messages/m1"] = (200, {"recipients": recipients})
    assert json.loads(p2pmesh("broadcast", "hi", "--json")[1])["state"] == "stored"
    assert node.body_of("POST /messages/send/ada-1")["target_instance"] is None
    assert p2pmesh("broadcast")[1] == "m1  stored  to a, b\n"
    stored(node, to=())
    out = p2pmesh("broadcast")[1]
    assert out == "m1  done  to nobody: no other instance is alive\n"


def test_the_sender_is_the_node_spoken_to_unless_one_is_named(p2pmesh: Run, node: FakeNode) -> None:
    stored(node, "done")
    assert p2pmesh("broadcast", "x", "--from", "me")[0] == 0
    assert "GET /v1/self" not in [call for call, _ in node.seen]


@pytest.mark.parametrize(
    ("flags", "on_the_wire"),
    [
        ((), "Notification"),
        (("--type", "TaskResult"), "TaskResult"),
        (("--type", "greeting"), {"Custom": "greeting"}),
    ],
)
def test_a_type_is_known_or_custom(
    flags: tuple[str, ...], on_the_wire: object, p2pmesh: Run, node: FakeNode
) -> None:
    stored(node, "done")
    assert p2pmesh("broadcast", "x", *flags)[0] == 0
    assert node.body_of("POST /messages/send/ada-1")["message_type"] == on_the_wire


def frames(*parts: Any, end: str = "end", data: Any = None) -> bytes:
    events = [("part", part) for part in parts] + [(end, data)]
    return b":\n\n" + b"".join(
        f"event: {event}\ndata: {json.dumps(data)}\n\n".encode() for event, data in events
    )


@pytest.mark.parametrize(
    ("parts", "text", "lines"),
    [
        (["Once", " upon", " a"], "Once upon a\n", '"Once"\n" upon"\n" a"\n'),
        (["one\n", "two\n"], "one\ntwo\n", '"one\\n"\n"two\\n"\n'),
        ([{"n": 1}, "text", [2], "", None], '{"n":1}\ntext\n[2]\nnull\n',
         '{"n":1}\n"text"\n[2]\n""\nnull\n'),
        ([], "", ""),
    ],
)  # fmt: skip
def test_a_streamed_request_prints_texts_behind_each_other_and_json_by_lines(
    p2pmesh: Run, node: FakeNode, parts: list[Any], text: str, lines: str
) -> None:
    node.answers["POST /v1/request/ada-1?stream=1"] = (200, frames(*parts))
    assert p2pmesh("request", "--stream", "ada", "?") == (0, text, "")
    assert p2pmesh("request", "--stream", "ada", "?", "--json") == (0, lines, "")


@pytest.mark.parametrize(
    ("answer", "out", "words"),
    [
        ((200, frames("one", end="error", data={"detail": "no more"})), "one\n", "no more"),
        ((200, frames("one").partition(b"event: end")[0]), "one\n", "in the middle of the answer"),
        ((200, b"event: part\ndata: {\n\n"), "", "not JSON"),
        ((404, {"detail": "nobody here"}), "", "nobody here"),
    ],
)
def test_what_ends_a_streamed_request_early_follows_what_was_printed(
    p2pmesh: Run, node: FakeNode, answer: Any, out: str, words: str
) -> None:
    node.answers["POST /v1/request/ada-1?stream=1"] = answer
    status, printed, errors = p2pmesh("request", "--stream", "ada")
    assert (status, printed) == (1, out)
    assert words in errors


def test_request_prints_the_payload_of_the_answer_alone(p2pmesh: Run, node: FakeNode) -> None:
    node.answers["POST /v1/request/ada-1"] = (200, {"payload": {"sum": 3}})
    assert p2pmesh("request", "ada", "[1, 2]", "--timeout", "2.5") == (0, '{"sum":3}\n', "")
    assert node.body_of("POST /v1/request/ada-1") == {
        "target_instance": "ada", "message_type": "Query", "payload": [1, 2], "timeout": 2.5,
    }  # fmt: skip
    node.answers["POST /v1/request/ada-1"] = (200, {"payload": "one\ntwo"})
    assert p2pmesh("request", "ada")[1] == "one\ntwo\n"
    assert p2pmesh("request", "ada", "--json")[1] == '"one\\ntwo"\n'


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("[1, null]", [1, None]),
        ('"quoted"', "quoted"),
        ("-5", -5),
        ("plain text", "plain text"),
        ("", ""),
        ("{broken", "{broken"),
        ("NaN", "NaN"),
        ("18446744073709551615", 2**64 - 1),
        ("-9223372036854775808", -(2**63)),
        ("99999999999999999999 bottles", "99999999999999999999 bottles"),
        ('{"a":1,"a":', '{"a":1,"a":'),
        ("[Infinity]", "[Infinity]"),
    ],
)
def test_a_payload_is_json_or_else_the_string_itself(
    text: str, payload: object, p2pmesh: Run, node: FakeNode
) -> None:
    stored(node, "done")
    assert p2pmesh("broadcast", "--", text)[0] == 0
    assert node.body_of("POST /messages/send/ada-1")["payload"] == payload


def test_a_payload_is_read_from_stdin_and_missing_is_null(
    p2pmesh: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(node, "done")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße\n".encode())))
    p2pmesh("broadcast", "-")
    assert node.body_of("POST /messages/send/ada-1")["payload"] == "grüße"
    node.seen.clear()
    p2pmesh("broadcast")
    assert node.body_of("POST /messages/send/ada-1")["payload"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\udcff", "not UTF-8"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('[{"a":{},"b":1,"a":2}]', "the key 'a' is repeated in one object"),
        ("18446744073709551616", "the integer 18446744073709551616 exceeds 64 bits"),
        ("-9223372036854775809", "the integer -9223372036854775809 exceeds 64 bits"),
        ("[" + "7" * 5000 + "]", f"the integer {'7' * 40}… exceeds 64 bits; send it as a string"),
        ('{"x":-1e400}', "the number -1e400 exceeds a float; send it as a string"),
    ],
)
def test_a_payload_that_no_message_carries_is_a_usage_error(
    text: str, said: str, p2pmesh: Run, node: FakeNode
) -> None:
    status, _, err = p2pmesh("send", "ada", text)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert not node.seen


def test_a_type_that_is_empty_is_a_usage_error(p2pmesh: Run, node: FakeNode) -> None:
    status, _, err = p2pmesh("send", "ada", "1", "--type", "")
    assert status == 2
    assert "--type" in err
    assert "a message type is not empty" in err
    assert not node.seen


# --- dead letters ---------------------------------------------------------------

LETTER = {
    "message_id": "m-1", "source_instance": "ada-1", "recipient": "bob-1", "name": None,
    "message_type": {"Custom": "Greeting"}, "payload": 7, "payload_bytes": 1,
    "correlation_id": None, "created_at": "2025-10-09T08:53:20.000000Z",
    "died_at": "2025-10-09T08:53:21.000000Z", "reason": "broken\x1b[2J", "attempts": 1,
}  # fmt: skip
LISTED = "GET /v1/dead-letters?limit=1000"


def dead(node: FakeNode, *message_ids: str) -> None:
    letters = [LETTER | {"message_id": each} for each in message_ids]
    node.answers[LISTED] = (200, {"node_id": "aa", "total": 2, "dead_letters": letters})


def test_dead_letters_are_a_table_for_people(
    p2pmesh: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    dead(node)
    asked = f"{node.url} (each node has those that it accepted: --url asks another)"
    assert p2pmesh("dead-letters") == (0, f"no dead letters at {asked}\n", "")
    for option in ("--retry", "--drop"):
        said = f"nothing to do: no dead letters at {asked}\n"
        assert p2pmesh("dead-letters", option, "all") == (0, said, "")
        assert p2pmesh("dead-letters", option, "all", "--json") == (0, "", "")
    dead(node, "m-1")
    status, out, _ = p2pmesh("dead-letters")
    assert status == 0
    head, row = out.splitlines()
    assert head.split() == ["ID", "DIED", "FROM", "RECIPIENT", "TYPE", "REASON"]
    assert row.split() == [
        "m-1", "2025-10-09", "08:53:21", "ada-1", "bob-1", "Greeting", "broken\\x1b[2J"
    ]  # fmt: skip
    assert json.loads(p2pmesh("dead-letters", "--json")[1]) == node.answers[LISTED][1]


def test_one_dead_letter_or_all_are_sent_again(p2pmesh: Run, node: FakeNode) -> None:
    dead(node, "m-1", "m-1", "m-2")
    again = {"recipients": [{"instance_id": "bob-1", "state": "queued"}]}
    for message_id in ("m-1", "m-2"):
        node.answers[f"POST /v1/dead-letters/{message_id}/retry"] = (200, again)
    assert p2pmesh("dead-letters", "--retry", "m-1") == (
        0, "m-1  sent again to bob-1 (queued)\n", ""
    )  # fmt: skip
    status, out, _ = p2pmesh("dead-letters", "--retry", "all", "--json")
    assert status == 0
    lines = list(map(json.loads, out.splitlines()))
    assert lines == [{"message_id": each} | again for each in ("m-1", "m-2")]


def test_what_of_all_cannot_be_sent_again_is_told_at_the_end(p2pmesh: Run, node: FakeNode) -> None:
    dead(node, "m-1", "m-2")
    node.answers["POST /v1/dead-letters/m-1/retry"] = (404, {"detail": "'bob-1' has left"})
    node.answers["POST /v1/dead-letters/m-2/retry"] = (200, {"recipients": []})
    status, out, err = p2pmesh("dead-letters", "--retry", "all")
    assert (status, out.split()[0]) == (1, "m-2")
    assert err == "p2pmesh: 1 of 2 stay: 'bob-1' has left\n"


def test_one_dead_letter_or_all_are_dropped(p2pmesh: Run, node: FakeNode) -> None:
    dead(node, "m-1", "m-2")
    for message_id in ("m-1", "m-2"):
        node.answers[f"DELETE /v1/dead-letters/{message_id}"] = (204, b"")
    assert p2pmesh("dead-letters", "--drop", "m-1") == (0, "m-1  dropped\n", "")
    assert p2pmesh("dead-letters", "--drop", "all")[1].count("dropped") == 2
    assert p2pmesh("dead-letters", "--drop", "m-3")[0] == 1
    status, _, err = p2pmesh("dead-letters", "--drop", "all", "--retry", "all")
    assert (status, "give one of them" in err) == (2, True)


# --- the node's refusals ------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {"title": "Not Found", "detail": "no 'ada' is known"}), "no 'ada' is known"),
        ((409, {"title": "Conflict"}), "Conflict"),
        ((400, {"error": "Target instance 'zz' not found"}), "Target instance 'zz' not found"),
        ((503, b"try again\n"), "try again"),
        ((500, b""), "answers 500"),
        ((200, b"<html>"), "does not answer as a p2pmesh node does"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_the_nodes_own_words(
    answer: object, said: str, p2pmesh: Run, node: FakeNode
) -> None:
    node.answers["GET /v1/members/ada"] = answer
    status, out, err = p2pmesh("send", "ada")
    assert (status, out) == (1, "")
    assert said in err
    assert err.startswith("p2pmesh: ")
    assert err.count("\n") == 1


def test_no_node_at_the_url_says_how_to_start_one(p2pmesh: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    status, _, err = p2pmesh("leader", "--url", f"http://127.0.0.1:{port}")
    assert status == 1
    assert err == (
        f"p2pmesh: no node answers at http://127.0.0.1:{port} (Connection refused): "
        "start one with 'p2pmesh run' or give another --url\n"
    )


def test_a_node_that_does_not_answer_is_given_up(
    p2pmesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pmesh.cli.local.ANSWER_TIMEOUT", 0.05)
    monkeypatch.setattr("p2pmesh.cli.local.ANSWER_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        status, _, err = p2pmesh("leader", "--url", url)
    assert (status, err) == (1, f"p2pmesh: the node at {url} did not answer in 0.05 s\n")


# --- which node ---------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("P2PMESH_URL")
    return Path(os.environ["P2PMESH_RUNTIME_DIR"])


def runs(runtime: Path, mesh: str, http: str | None, started: float = 1.0) -> None:
    RuntimeFile(str(runtime)).write(
        RuntimeEntry(os.getpid(), mesh, "aa" * 32, "ada-1", (), http, None, started)
    )


def test_without_a_node_the_way_to_start_one_is_told(p2pmesh: Run, runtime: Path) -> None:
    expected = "start one with 'p2pmesh run' or give --url\n"
    assert p2pmesh("leader") == (1, "", f"p2pmesh: no p2pmesh node runs here: {expected}")
    runs(runtime, "lab", "http://127.0.0.1:1")
    err = p2pmesh("leader", "--mesh", "other")[2]
    assert "no p2pmesh node of mesh 'other' runs here: " in err
    assert "'p2pmesh run --mesh other'" in err


def test_the_oldest_process_of_the_mesh_is_asked(
    p2pmesh: Run, runtime: Path, node: FakeNode
) -> None:
    runs(runtime, "lab", "http://127.0.0.1:1", started=3.0)
    runs(runtime, "lab", node.url, started=2.0)
    assert p2pmesh("leader")[0] == 0


def test_a_process_that_is_gone_or_silent_is_passed_over_before_anything_is_sent(
    p2pmesh: Run, runtime: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pmesh.cli.local.PROBE_TIMEOUT", 0.05)
    node.answers["POST /v1/request/ada-1"] = (200, {"payload": "here"})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        runs(runtime, "lab", "http://127.0.0.1:1", started=1.0)
        runs(runtime, "lab", url, started=2.0)
        runs(runtime, "lab", node.url, started=3.0)
        status, out, err = p2pmesh("request", "bob", "hello")
    assert (status, out) == (0, "here\n")
    refused, silence = err.splitlines()
    ada = f"which is ada-1 (process {os.getpid()}): asking another"
    assert refused == (
        f"p2pmesh: no node answers at http://127.0.0.1:1 (Connection refused), {ada}"
    )
    assert silence == f"p2pmesh: the node at {url} did not answer in 0.05 s, {ada}"
    assert sum(seen.startswith("POST") for seen, _ in node.seen) == 1


def test_watch_ends_when_none_of_the_nodes_here_answers(
    p2pmesh: Run, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        assert len(told) < 3, "it goes round and round"

    monkeypatch.setattr("p2pmesh.cli.views.warn", tell)
    runs(runtime, "lab", "http://127.0.0.1:1", started=1.0)
    runs(runtime, "lab", "http://127.0.0.1:2", started=2.0)
    status, out, err = p2pmesh("watch")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("p2pmesh: no node answers at http://127.0.0.1:2 ")
    assert len(told) == 1


def test_who_asks_a_silent_url_alone_hears_that_others_run_here(
    p2pmesh: Run, runtime: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pmesh.cli.local.ANSWER_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        runs(runtime, "lab", url)
        said = f"p2pmesh: the node at {url} did not answer in 0.05 s"
        assert p2pmesh("leader", "--url", url) == (1, "", f"{said}\n")
        runs(runtime, "lab", node.url)
        assert p2pmesh("leader", "--url", url)[2] == (
            f"{said}; without --url and P2PMESH_URL one of the nodes here (1) is asked\n"
        )
    refused = p2pmesh("leader", "--url", "http://127.0.0.1:1")[2]
    assert refused.endswith("one of the nodes here (2) is asked\n")
    assert not node.seen


def test_of_several_meshes_one_must_be_named(p2pmesh: Run, runtime: Path, node: FakeNode) -> None:
    runs(runtime, "lab", "http://127.0.0.1:1")
    runs(runtime, "shop", node.url)
    assert p2pmesh("leader") == (
        2, "", "p2pmesh: nodes of 2 meshes run here: give --mesh, one of 'lab', 'shop'\n",
    )  # fmt: skip
    assert p2pmesh("leader", "--mesh", "shop")[0] == 0


def test_a_node_without_http_is_passed_over(p2pmesh: Run, runtime: Path, node: FakeNode) -> None:
    runs(runtime, "lab", None, started=1.0)
    assert "runs with --http off" in p2pmesh("leader")[2]
    runs(runtime, "lab", node.url, started=2.0)
    assert p2pmesh("leader")[0] == 0


def test_the_flag_beats_the_variable_beats_the_runtime_directory(
    p2pmesh: Run, runtime: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(runtime, "lab", "http://127.0.0.1:1")
    monkeypatch.setenv("P2PMESH_URL", "http://127.0.0.1:2")
    assert "127.0.0.1:2" in p2pmesh("leader")[2]
    assert p2pmesh("leader", "--url", node.url)[0] == 0


# --- members --discover ---------------------------------------------------------------


def test_what_mdns_offers_is_listed_and_marked_unverified(
    p2pmesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake: tests/lab has the real multicast."""

    def offer(mesh: str, address: str, node_id: bytes | None = None) -> Offer:
        mesh_id = KeyRing(mesh).mesh_id.hex()
        return Offer("x._p2pmesh._tcp.local.", (address,), node_id, mesh_id, "00" * 6, "keyed")

    async def browse(seconds: float, hosts: Sequence[str]) -> tuple[Offer, ...]:
        assert seconds == 2.0
        assert hosts
        return (offer("default", "192.0.2.7:8078", b"\xab" * 32), offer("lab", "192.0.2.8:1"))

    monkeypatch.setattr("p2pmesh.cli.discover.browse_for", browse)
    monkeypatch.delenv("P2PMESH_URL")
    head, first, second = p2pmesh("members", "--discover")[1].splitlines()
    assert head.split() == ["NODE", "MESH", "MODE", "ADDRESSES"]
    assert first.split() == ["abababababab", "default", "keyed", "192.0.2.7:8078", "unverified"]
    assert second.split()[0] == "?"
    assert second.split()[1] == f"#{KeyRing('lab').mesh_id.hex()}"  # its name is not told
    status, out, _ = p2pmesh("members", "--discover", "--mesh", "lab", "--json")
    assert status == 0
    assert json.loads(out) == {
        "verified": False,
        "offers": [
            {"node_id": None, "mesh": "lab", "mesh_id": KeyRing("lab").mesh_id.hex(),
             "mode": "keyed", "addresses": ["192.0.2.8:1"]},
        ],
    }  # fmt: skip
    out = p2pmesh("members", "--discover", "--mesh", "other")[1]
    assert out == "mDNS offers no node of mesh 'other' here\n"
