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
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from p2pmesh.arguments import read
from p2pmesh.client.calls import Answer, Request
from p2pmesh.errors import ConfigError, PeerUnreachable
from p2pmesh.http.tokens import read_token
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


class Nodes:
    """The nodes that one client knows, by their URLs."""

    def __init__(self, urls: Sequence[str], mesh: str | None, token: str | None) -> None:
        """Without ``urls``, P2PMESH_URL, if set; without ``token``, P2PMESH_HTTP_TOKEN.
        Raises ConfigError."""
        named = [("url", url) for url in urls]
        if not named and (url := os.environ.get("P2PMESH_URL")):
            named = [("P2PMESH_URL", url)]
        self._given = [read(what, read_url, url) for what, url in named]
        self._token = _read_token(token)
        self._mesh = mesh
        self._here: list[str] = []  # of this machine, oldest first
        self._tokens: dict[str, str] = {}  # that these left for their user
        self._last: str | None = None
        self._has_looked = False

    @property
    def url(self) -> str | None:
        """The node that answered last; None: none did yet."""
        return self._last

    def call(self, request: Request[T]) -> Flow[T]:
        """Ask until a node answers.  Raises PeerUnreachable, and what the answer means."""
        failed: dict[str, str] = {}
        has_looked = False
        if not self._has_looked:  # which mesh it is, while a given node still runs
            yield from self._look()
        while True:
            url = self._next(failed)
            if url is None and not has_looked:
                has_looked = True
                yield from self._look()
                url = self._next(failed)
            if url is None:
                raise self._unreachable(failed)
            token = self._token_for(url)
            outcome = yield Ask(url, token, request)
            if isinstance(outcome, Failure) and outcome.is_stale and url == self._last:
                outcome = yield Ask(url, token, request)
            if isinstance(outcome, Failure):
                failed[url] = outcome.reason
                continue
            if outcome.status == 401 and not has_looked:  # perhaps it runs anew
                has_looked = True
                yield from self._look()
                if self._token_for(url) != token:
                    continue
            if outcome.status == 503:
                failed[url] = outcome.words()
            else:
                self._last = url
                answer: Answer = outcome
                return request.decode(answer)

    def _next(self, failed: dict[str, str]) -> str | None:
        if len(failed) >= NODES_MAX:
            return None
        last = [] if self._last is None else [self._last]
        return next((url for url in (*last, *self._given, *self._here) if url not in failed), None)

    def _token_for(self, url: str) -> str | None:
        """What the caller gave, for the nodes that it gave; else what the node left."""
        if url in self._given and self._token is not None:
            return self._token
        return self._tokens.get(url, self._token)

    def _look(self) -> Flow[None]:
        """Who runs on this machine now?"""
        found: Looked = yield Look()
        self._has_looked = True
        if isinstance(found, ConfigError):
            if not self._given:
                raise found
            return
        if self._mesh is None:
            meshes = sorted({e.mesh for e in found if not self._given or e.http in self._given})
            if len(meshes) > 1 and not self._given:
                raise ConfigError(
                    f"nodes of {len(meshes)} meshes run here: give mesh=…, "
                    f"one of {', '.join(map(repr, meshes))}, or a URL"
                )
            self._mesh = meshes[0] if len(meshes) == 1 else None
        self._tokens = {e.http: e.token for e in found if e.http is not None and e.token}
        self._here = [e.http for e in found if e.http is not None and e.mesh == self._mesh]

    def _unreachable(self, failed: dict[str, str]) -> PeerUnreachable:
        advice = "start one with 'p2pmesh run', or give the URL of one that runs"
        if failed:
            tried = ", ".join(f"{url} ({reason})" for url, reason in failed.items())
            return PeerUnreachable(f"no node answers: {tried}; {advice}")
        of_mesh = "" if self._mesh is None else f" of mesh {self._mesh!r}"
        return PeerUnreachable(f"no p2pmesh node{of_mesh} runs here: {advice}")


def _read_token(given: str | None) -> str | None:
    """An error never quotes it."""
    name = "token"
    if not given:
        name, given = "P2PMESH_HTTP_TOKEN", os.environ.get("P2PMESH_HTTP_TOKEN")
    if not given:
        return None
    if not isinstance(given, str):
        raise ConfigError(f"{name}: give text, not {type(given).__name__}")
    try:
        return read_token(given)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
