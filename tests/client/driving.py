"""Flows of the client without a socket: the test is the shell, and says what happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from p2pmesh.client.calls import Answer
from p2pmesh.client.nodes import Ask, Failure, Flow, Look, Looked, Pause
from p2pmesh.transport.runtime import RuntimeEntry

T = TypeVar("T")

REFUSED = Failure("Connection refused")
STALE = Failure("the connection ended before an answer", is_stale=True)


def entry(url: str | None, mesh: str = "lab", token: str | None = None) -> RuntimeEntry:
    """A node of this machine, as the runtime directory tells it."""
    return RuntimeEntry(1, mesh, "ab" * 32, "a-1", (), url, token, 0.0)


def said(body: Any, status: int = 200, *, took: float = 0.0) -> Callable[[str], Answer]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda url: Answer(url, status, content, took)


class World:
    """What each node answers, and what runs on this machine.

    ``nodes`` maps a URL to what it does: a Failure, what ``said`` makes, a list of
    these, used up but for the last, or a dict of such for each call.  A URL that is not
    there refuses.
    """

    def __init__(self, nodes: Mapping[str, Any] | None = None, here: Looked = ()) -> None:
        self.nodes = dict(nodes or {})
        self.here: Looked = here
        self.asked: list[tuple[str, str]] = []  # url, "METHOD path"
        self.bodies: list[Any] = []
        self.tokens: list[str | None] = []
        self.paused: list[float] = []

    def run(self, flow: Flow[T], *, pauses_max: int = 1000) -> T:
        """Until it returns; or until it has paused so often, which raises Paused."""
        outcome: Any = None
        try:
            while True:
                match flow.send(outcome):
                    case Ask() as ask:
                        outcome = self._answer(ask)
                    case Look():
                        outcome = self.here
                    case Pause(seconds):
                        self.paused.append(seconds)
                        if len(self.paused) >= pauses_max:
                            raise Paused
                        outcome = None
        except StopIteration as end:
            value: T = end.value
            return value

    def _answer(self, ask: Ask) -> Answer | Failure:
        self.asked.append((ask.url, f"{ask.request.method} {ask.request.path}"))
        self.bodies.append(json.loads(ask.request.body) if ask.request.body else None)
        self.tokens.append(ask.token)
        does = self.nodes.get(ask.url, REFUSED)
        if isinstance(does, dict):
            does = does[self.calls[-1]]
        if isinstance(does, list):
            does = does.pop(0) if len(does) > 1 else does[0]
        answer: Answer | Failure = does if isinstance(does, Failure) else does(ask.url)
        return answer

    @property
    def urls(self) -> list[str]:
        return [url for url, _ in self.asked]

    @property
    def calls(self) -> list[str]:
        return [call for _, call in self.asked]


class Paused(Exception):
    """The flow pauses, and would go on for ever."""
