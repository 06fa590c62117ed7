"""The values between the doors, the handlers and the server.

A :class:`Call` is one request that is being admitted; a :class:`Route` says who
answers it; an :class:`Answer` or a :class:`Stream` is what goes back, and a
:class:`Refusal` is raised instead.  ``refusal_of`` is the one table from errors
of the mesh to statuses.

Does not: touch a socket or import aiohttp, so that doors and handlers can be
read, and tried, without either.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

from p2pmesh.errors import (
    AmbiguousTarget,
    ConfigError,
    MeshError,
    MessageTooLarge,
    PeerUnreachable,
    QueueFull,
    RemoteError,
    RequestTimeout,
    StoreFull,
    UnknownTarget,
)
from p2pmesh.http import codec
from p2pmesh.http.backend import Conflict, Forbidden, Unavailable
from p2pmesh.http.shapes import Problem
from p2pmesh.http.tokens import Scope

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.  Without a content type it has no body."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is written as it comes: server-sent events."""

    chunks: AsyncGenerator[bytes, None]
    #: What it ends with where the node ends first.  None: it has no end of its own, and
    #: ends when the node begins to leave.
    cut: bytes | None = None


def json_answer(value: Any, status: int = 200) -> Answer:
    return Answer(status, codec.write(value), JSON)


class Refusal(Exception):
    """The request is not answered as asked: a status, and what is wrong where."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.route: Route | None = None  # that was asked for, as far as that is known
        self.extra = extra  # further members of the problem document

    def answer(self, path: str) -> Answer:
        """A problem document under ``/v1``, else one line of text."""
        # Header values and paths may hold bytes that were never UTF-8.
        detail = self.detail.encode("utf-8", "replace").decode()
        if path.startswith("/v1/"):
            problem = Problem(
                title=HTTPStatus(self.status).phrase,
                status=self.status,
                detail=detail,
                **self.extra,
            )
            return Answer(self.status, codec.write(problem), PROBLEM, self.headers)
        return Answer(self.status, f"{detail}\n".encode(), TEXT, self.headers)


class Headers(Protocol):
    """Header fields of a request; names in any case."""

    def get(self, name: str, /) -> str | None: ...
    def getall(self, name: str, default: list[str], /) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Media:
    """What an answer carries that is not JSON."""

    content_type: str
    what: str  # for people


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API, and what ``/openapi.json`` says of it."""

    method: str
    template: str  # "/messages/{id}": braces hold the name of a parameter
    handler: Handler
    body: type | None = None  # what the body must be; None: no body is read
    query: type | None = None  # what the query must be; None: it is not read
    headers: Mapping[str, Any] = field(default_factory=dict)  # that it reads: name -> type
    summary: str = ""
    #: Status -> the type of its JSON, other media, or None for no body.
    answers: Mapping[int, type | Media | None] = field(default_factory=dict)
    #: What a 200 has instead of that, where the query asks for it.
    streamed: Media | None = None
    #: The statuses of refusals by the handler; those of the doors go without saying.
    refusals: tuple[int, ...] = ()
    #: The handler is cancelled when the client goes away.  Only where nothing is
    #: half done then: a client that does not wait for the answer to a send
    #: still means it to be sent.
    is_abandonable: bool = False
    #: What a token must be good for; None: read for a GET, write for anything else.
    scope: Scope | None = None

    @property
    def needs(self) -> Scope:
        if self.scope is not None:
            return self.scope
        return Scope.READ if self.method == "GET" else Scope.WRITE


@dataclass(slots=True)
class Call:
    """A request on its way through the doors; each fills in what it found."""

    method: str
    path: str  # as sent, percent-encoded
    raw_query: str
    authority: str | None  # of an absolute-form target
    headers: Headers
    local: str = ""  # the address of ours that it came to
    scope: Scope = Scope.ADMIN  # of its token; where none is asked for, of everybody
    methods: Mapping[str, Route] = field(default_factory=dict)  # of the path
    route: Route | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    query: Any = None  # of the type that the route names; so is the body
    raw_body: bytes = b""
    body: Any = None


Handler: TypeAlias = Callable[[Call], Awaitable[Answer | Stream]]

# --- errors of the mesh -> refusals ------------------------------------------

_RETRY: Final = {"Retry-After": "1"}


def leaving() -> Refusal:
    """What is said to a call that a leaving node does not take, or does not end."""
    return Refusal(503, "this node leaves its mesh; ask another", headers=_RETRY, code="leaving")


def refusal_of(error: MeshError | Conflict | Forbidden | Unavailable) -> Refusal:
    """What a caller is told when the node could not do as asked."""
    detail = str(error)
    match error:
        case UnknownTarget():
            return Refusal(404, error.problem, nearest=error.nearest)
        case AmbiguousTarget():
            return Refusal(409, detail, candidates=error.candidates)
        case Conflict():
            return Refusal(409, detail)
        case Forbidden():
            return Refusal(403, detail)
        case ConfigError():
            return Refusal(422, detail)
        case MessageTooLarge():
            return Refusal(413, detail)
        case QueueFull():
            return Refusal(429, detail, headers=_RETRY)
        case RemoteError():
            return Refusal(502, detail, code=error.code)
        case PeerUnreachable():
            return Refusal(502, detail, code="unreachable")
        case RequestTimeout():
            return Refusal(504, detail, code="timeout")
        case StoreFull():
            return Refusal(507, detail)
        case _:  # Unavailable, NotStarted and whatever else passes
            return Refusal(503, detail, headers=_RETRY)
