"""Which node a client asks, and what it does when that one does not answer.

    call ─► the one that answered last ─► those that were given ─► those of this machine
            no connection, no answer, or 503: the next                (one mesh only)

A *flow* is a generator that yields steps (``Ask``, ``Look``, ``Pause``) and gets their
outcomes; it returns a value or raises.  Shells (``aio``, ``blocking``) take the steps,
each in its own way, so that everything that is decided is decided here, once.

Nodes of this machine are those of the runtime directory, of the mesh that was named, or
of which a given URL is; a client never goes over to another mesh.  Each is asked once a
call, but for the one that answered last, whose kept connection may have ended meanwhile:
that one is asked again at once.

Does not: know what is asked (``calls``), or open a connection.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from p2pmesh.arguments import read
from p2pmesh.client.calls import Answer, Request
from p2pmesh.errors import ConfigError, PeerUnreachable
from p2pmesh.transport.runtime import RuntimeEntry
from p2pmesh.values import read_url

T = TypeVar("T")

#: Asked in one call at most; each may take the client's whole timeout.
NODES_MAX: Final = 8


class Ask(NamedTuple):
    """Send this request to this node: an Answer, or a Failure."""

    url: str
    token: str | None
    request: Request[Any]


class Look(NamedTuple):
    """Read the runtime directory: its entries, or the ConfigError about it."""


class Pause(NamedTuple):
    seconds: float


class Failure(NamedTuple):
    """No answer came."""

    reason: str
    is_stale: bool = False  # a kept connection had ended: the node may well be there


Step: TypeAlias = Ask | Look | Pause
Flow: TypeAlias = Generator[Step, Any, T]
Looked: TypeAlias = Sequence[RuntimeEntry] | ConfigError


class _Node(NamedTuple):
    url: str
    token: str | None


class Nodes:
    """The nodes that one client knows."""

    def __init__(self, urls: Sequence[str], mesh: str | None, token: str | None) -> None:
        """Without ``urls``, P2PMESH_URL, if set; without ``token``, P2PMESH_HTTP_TOKEN.
        Raises ConfigError."""
        named = [("url", url) for url in urls]
        if not named and (url := os.environ.get("P2PMESH_URL")):
            named = [("P2PMESH_URL", url)]
        self._token = token or os.environ.get("P2PMESH_HTTP_TOKEN") or None
        self._given = [_Node(read(what, read_url, url), self._token) for what, url in named]
        self._mesh = mesh
        self._here: list[_Node] = []  # of this machine, oldest first
        self._last: _Node | None = None  # the one that answered last
        self._has_looked = False

    @property
    def url(self) -> str | None:
        """The node that answered last; None: none did yet."""
        return None if self._last is None else self._last.url

    def call(self, request: Request[T]) -> Flow[T]:
        """Ask until a node answers.  Raises PeerUnreachable, and what the answer means."""
        failed: dict[str, str] = {}
        is_fresh = False
        if not self._has_looked:  # which mesh it is, while a given node still runs
            yield from self._look()
        while True:
            node = self._next(failed)
            if node is None and not is_fresh:
                is_fresh = True
                yield from self._look()
                node = self._next(failed)
            if node is None:
                raise self._unreachable(failed)
            outcome = yield Ask(node.url, node.token, request)
            if isinstance(outcome, Failure) and outcome.is_stale and node == self._last:
                outcome = yield Ask(node.url, node.token, request)
            if isinstance(outcome, Failure):
                failed[node.url] = outcome.reason
            elif outcome.status == 503:
                failed[node.url] = outcome.words()
            else:
                self._last = node
                answer: Answer = outcome
                return request.decode(answer)

    def _next(self, failed: dict[str, str]) -> _Node | None:
        if len(failed) >= NODES_MAX:
            return None
        return next((node for node in self._known() if node.url not in failed), None)

    def _known(self) -> Iterator[_Node]:
        if self._last is not None:
            yield self._last
        yield from self._given
        yield from self._here

    def _look(self) -> Flow[None]:
        """Who runs on this machine now?"""
        found: Looked = yield Look()
        self._has_looked = True
        if isinstance(found, ConfigError):
            if not self._given:
                raise found
            return
        if self._mesh is None:
            urls = {node.url for node in self._given}
            meshes = sorted({e.mesh for e in found if not urls or e.http in urls})
            if len(meshes) > 1 and not urls:
                raise ConfigError(
                    f"nodes of {len(meshes)} meshes run here: give mesh=…, "
                    f"one of {', '.join(map(repr, meshes))}, or a URL"
                )
            self._mesh = meshes[0] if len(meshes) == 1 else None
        self._here = [
            _Node(entry.http, entry.token or self._token)
            for entry in found
            if entry.http is not None and entry.mesh == self._mesh
        ]

    def _unreachable(self, failed: dict[str, str]) -> PeerUnreachable:
        advice = "start one with 'p2pmesh run', or give the URL of one that runs"
        if failed:
            tried = ", ".join(f"{url} ({reason})" for url, reason in failed.items())
            return PeerUnreachable(f"no node answers: {tried}; {advice}")
        of_mesh = "" if self._mesh is None else f" of mesh {self._mesh!r}"
        return PeerUnreachable(f"no p2pmesh node{of_mesh} runs here: {advice}")
