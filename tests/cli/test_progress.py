"""The progress of a large message on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from p2pmesh.cli import progress
from tests.cli.fake import FakeNode, Run

LARGE = '"' + "x" * 1_100_000 + '"'
MIB = 1024 * 1024


class Tells:
    """A node that says what it is given."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = events

    def events(self) -> Iterator[dict[str, Any]]:
        yield from self._events


def event(sent: int, message_id: str = "m1") -> dict[str, Any]:
    return {
        "event": "message_progress", "message_id": message_id, "recipient": "ada-1",
        "sent": sent, "total": 2 * MIB,
    }  # fmt: skip


def test_the_line_grows_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    others = event(MIB, "another"), {"event": "message_done", "message_id": "m1", "recipient": "a"}
    bar = progress._Bar(Tells(*others, event(MIB // 2), event(2 * MIB)), "m1")  # type: ignore[arg-type]
    bar.watch()
    bar.end()
    bar._draw("too late")
    first, second = progress.line(MIB // 2, 2 * MIB), progress.line(2 * MIB, 2 * MIB)
    assert first == "[######..................]  25%  0.5 of 2.0 MiB"
    assert second == "[########################] 100%  2.0 of 2.0 MiB"
    assert capsys.readouterr().err == f"\r{first}\r{second}\r{' ' * len(second)}\r"


def test_a_message_that_nobody_tells_of_leaves_no_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.shown(Tells(), "m1"):  # type: ignore[arg-type]
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("payload", "flags", "is_terminal", "is_shown"),
    [
        (LARGE, (), True, True),
        (LARGE, (), False, False),
        (LARGE, ("--json",), True, False),
        (LARGE, ("-q",), True, False),
        ('"small"', (), True, False),
    ],
    ids=["large", "no terminal", "json", "quiet", "small"],
)
def test_progress_is_for_large_messages_and_people(
    payload: str,
    flags: tuple[str, ...],
    is_terminal: bool,
    is_shown: bool,
    p2pmesh: Run,
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = []

    class Bar(progress._Bar):
        def __init__(self, node: Any, message_id: str) -> None:
            super().__init__(Tells(), message_id)  # type: ignore[arg-type]
            watched.append(message_id)

    monkeypatch.setattr("p2pmesh.cli.progress._Bar", Bar)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: is_terminal)
    monkeypatch.setenv("P2PMESH_URL", node.url)
    sent = {"message_id": "m1", "status": "queued", "delivered_to": ["ada-1"]}
    node.answers["POST /messages/send/ada-1"] = (200, sent)
    done = {"recipients": [{"instance_id": "ada-1", "state": "done"}]}
    node.answers["GET /v1/messages/m1"] = (200, done)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(payload.encode())))
    assert p2pmesh("send", "ada", "-", *flags)[0] == 0
    assert bool(watched) is is_shown
