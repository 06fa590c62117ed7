"""The calls of a client: what is asked, and what its answer means.

    Request ── sent by a shell (``aio``, ``blocking``) ──► Answer ── decode ──► a value

Each function here builds the request of one operation, and checks what no node could
take.  ``Answer.error`` is the one table from statuses to errors.

Does not: open a connection, choose a node, or try again (``nodes``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from p2pmesh.arguments import read, read_labels, refuse_unless_number
from p2pmesh.client.answers import (
    Heartbeat,
    Instance,
    ListingBody,
    Message,
    MessagesBody,
    Registration,
    Sent,
)
from p2pmesh.errors import (
    AmbiguousTarget,
    ConfigError,
    IdentityConflict,
    MeshError,
    MessageTooLarge,
    PeerUnreachable,
    QueueFull,
    RemoteError,
    RequestTimeout,
    StoreFull,
    UnknownTarget,
)
from p2pmesh.http.codec import BODY_MAX, KEY_LENGTH_MAX, message_type_out
from p2pmesh.messages import refuse_unless_json
from p2pmesh.protocol.limits import MAILBOX_MESSAGES_MAX
from p2pmesh.values import REQUEST_TIMEOUT_MAX, read_hostname, read_instance_id, read_type

T = TypeVar("T")
V = TypeVar("V")

#: More than any answer of a node: a mailbox's 8 MiB, or the longest list of instances.
ANSWER_MAX: Final = 32 * 1024 * 1024
WAIT_MAX: Final = 60.0  # of one long poll
TIMEOUT_MAX: Final = 86_400.0

_WORDS_MAX: Final = 500  # of a node's refusal, as they are repeated


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node answered."""

    url: str  # the node's
    status: int
    content: bytes
    took: float  # seconds
    body: Any = None  # the shell's own, of an answer that is read as it comes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def read(self, shape: type[V]) -> V:
        """Its body as that type; raises what the status means, or RemoteError."""
        if not self.is_success:
            raise self.error()
        try:
            return msgspec.json.decode(self.content, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteError(
                "malformed", f"does not answer as a p2pmesh node does: {error}", self.url
            ) from None

    def words(self) -> str:
        """The node's own, from a problem document or plain text."""
        try:
            said = msgspec.json.decode(self.content)
            said = said.get("detail") or said.get("error") or ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
            said = self.content[:_WORDS_MAX].decode(errors="replace").strip()
        return str(said)[:_WORDS_MAX] or _phrase(self.status)

    def error(self) -> MeshError:
        """What a status that is no success means to whoever called."""
        what = f"{self.words()} (says {self.url})"
        match self.status:
            case 401:
                return ConfigError(f"{what}; give token=…, or P2PMESH_HTTP_TOKEN")
            case 400 | 403 | 415 | 421 | 422:
                return ConfigError(what)
            case 409:
                return IdentityConflict(f"{what}; register under another id")
            case 413:
                return MessageTooLarge(f"{what}; send it in parts, or a reference to it")
            case 429:
                return QueueFull(f"{what}; try again when the recipient has caught up")
            case 503:
                return PeerUnreachable(f"{what}; try again")
            case 504:
                return RequestTimeout(what)
            case 507:
                return StoreFull(what)
            case _:
                return RemoteError(str(self.status), self.words(), self.url)


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One call, for any node."""

    method: str
    path: str
    decode: Callable[[Answer], T]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0  # seconds that the node may take beyond the usual
    streams: bool = False  # a success is read as it comes


def timed(request: Request[T]) -> Request[tuple[T, float]]:
    """The same, and how many seconds the node took."""

    def decode(answer: Answer) -> tuple[T, float]:
        return request.decode(answer), answer.took

    return Request(
        request.method, request.path, decode, request.body, request.headers, request.wait
    )


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


# --- the registry ------------------------------------------------------------


def register(
    instance_id: str,
    hostname: str,
    port: int,
    capabilities: Iterable[str],
    agent_profiles: Iterable[str],
) -> Request[Registration]:
    """Raises ConfigError for what no instance can be called."""
    read("instance_id", _read_segment, instance_id)
    read("hostname", read_hostname, hostname)
    refuse_unless_number("port", port, whole=True)
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port {port}: give 0 (none) to 65535")
    body = {
        "instance_id": instance_id,
        "hostname": hostname,
        "port": port,
        "capabilities": read_labels("capabilities", capabilities),
        "agent_profiles": read_labels("agent_profiles", agent_profiles),
    }
    return _post("/registry/register", body, lambda answer: answer.read(Registration))


def heartbeat(
    instance_id: str, status: str, metrics: Mapping[str, Any] | None
) -> Request[Heartbeat]:
    """Raises TypeError or ValueError for metrics that JSON does not have."""
    refuse_unless_json(metrics, 0, "the mesh", what="metrics")
    body = {"status": status, "metrics": metrics}
    return _post(f"/registry/heartbeat/{_segment(instance_id)}", body, _heartbeat)


def _heartbeat(answer: Answer) -> Heartbeat:
    if answer.status == 404:  # with the same body: acknowledged is false
        answer = Answer(answer.url, 200, answer.content, answer.took)
    return answer.read(Heartbeat)


def list_instances() -> Request[tuple[Instance, ...]]:
    return Request("GET", "/registry/agents", lambda answer: answer.read(ListingBody).instances)


def deregister(instance_id: str) -> Request[bool]:
    """True: it was registered."""

    def decode(answer: Answer) -> bool:
        if not answer.is_success and answer.status != 404:
            raise answer.error()
        return answer.is_success

    return Request("DELETE", f"/registry/deregister/{_segment(instance_id)}", decode)


# --- messages ----------------------------------------------------------------


def send_message(
    source: str,
    target: str | None,
    payload: Any,
    *,
    type: str,
    correlation_id: str | None,
    idempotency_key: str,
) -> Request[Sent]:
    """Raises ConfigError, MessageTooLarge, and TypeError or ValueError for a payload
    that JSON does not have."""
    read("type", read_type, type)
    read("idempotency_key", _read_key, idempotency_key)
    reader = "everyone" if target is None else repr(target)
    refuse_unless_json(payload, 0, reader)
    body = {
        "target_instance": target,
        "message_type": message_type_out(type),
        "payload": payload,
        "correlation_id": correlation_id,
    }

    def decode(answer: Answer) -> Sent:
        if answer.status == 400 and target is not None:
            unknown = _read_unknown_target(answer)
            if unknown is not None:
                raise UnknownTarget(target, unknown.nearest, answer.url)
        return answer.read(Sent)

    path = f"/messages/send/{_segment(source)}"
    return _post(path, body, decode, {"Idempotency-Key": idempotency_key})


class _NoTarget(msgspec.Struct, frozen=True):
    error: str
    nearest: tuple[str, ...] = ()


def _read_unknown_target(answer: Answer) -> _NoTarget | None:
    try:
        return msgspec.json.decode(answer.content, type=_NoTarget)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # a refusal in plain text: the body is wrong


def get_messages(
    instance_id: str, *, wait: float = 0.0, limit: int | None = None
) -> Request[tuple[Message, ...]]:
    """``wait``: seconds that the node may hold the answer until there is a message."""
    refuse_unless_number("wait", wait)
    if not 0 <= wait <= WAIT_MAX:
        raise ConfigError(f"wait {wait}: give 0 to {WAIT_MAX:g} seconds")
    if limit is not None:
        refuse_unless_number("limit", limit, whole=True)
        if not 1 <= limit <= MAILBOX_MESSAGES_MAX:
            raise ConfigError(f"limit {limit}: give 1 to {MAILBOX_MESSAGES_MAX}")
    query = ({"wait": f"{wait:g}"} if wait else {}) | ({"limit": str(limit)} if limit else {})
    path = f"/messages/{_segment(instance_id)}" + (f"?{urlencode(query)}" if query else "")
    return Request("GET", path, _messages, wait=wait)


def _messages(answer: Answer) -> tuple[Message, ...]:
    return tuple(body.message() for body in answer.read(MessagesBody).messages)


def acknowledge_messages(instance_id: str, message_ids: Iterable[str]) -> Request[None]:
    if isinstance(message_ids, str):
        raise ConfigError("message_ids: give a list of ids, not one text")
    path = f"/messages/ack/{_segment(instance_id)}"
    return _post(path, {"message_ids": list(message_ids)}, _acknowledged)


def _acknowledged(answer: Answer) -> None:
    if not answer.is_success:
        raise answer.error()


# --- requests ----------------------------------------------------------------


def stream(source: str, target: str, payload: Any, *, type: str, timeout: float) -> Request[Answer]:
    """Its Answer's body holds the parts.  Raises ConfigError, MessageTooLarge, and TypeError
    or ValueError for a payload that JSON does not have."""
    read("type", read_type, type)
    refuse_unless_number("timeout", timeout)
    if not 0 < timeout <= REQUEST_TIMEOUT_MAX:
        raise ConfigError(f"timeout {timeout}: give seconds up to {REQUEST_TIMEOUT_MAX:g}")
    refuse_unless_json(payload, 0, repr(target))
    body = {
        "target_instance": target,
        "message_type": message_type_out(type),
        "payload": payload,
        "timeout": timeout,
    }

    def decode(answer: Answer) -> Answer:
        if not answer.is_success:
            raise request_error(answer, target)
        return answer

    asked = _post(f"/v1/request/{_segment(source)}?stream=1", body, decode)
    return replace(asked, wait=timeout, streams=True)


def refused(answer: Answer, problem: bytes, target: str) -> MeshError:
    """What a problem document in the middle of that answer means."""
    return request_error(replace(answer, status=0, content=problem, body=None), target)


def request_error(answer: Answer, target: str) -> MeshError:
    """What the problem document of a request means."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer.error()
    status = problem.status or answer.status
    match status:
        case 404:
            return UnknownTarget(target, problem.nearest, answer.url)
        case 409:
            return AmbiguousTarget(target, problem.candidates)
        case 502 if problem.code == "unreachable":
            return PeerUnreachable(problem.detail)
        case 502:
            return RemoteError(problem.code, problem.detail, target)
    return replace(answer, status=status).error()


class _Problem(msgspec.Struct, frozen=True):
    detail: str
    status: int = 0
    code: str = "failed"
    nearest: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


# --- parts -------------------------------------------------------------------


def _post(
    path: str,
    body: dict[str, Any],
    decode: Callable[[Answer], T],
    headers: Mapping[str, str] | None = None,
) -> Request[T]:
    content = msgspec.json.encode(body)
    if len(content) > BODY_MAX:
        raise MessageTooLarge(
            f"the call takes {len(content):,} bytes of JSON, a node takes {BODY_MAX:,}: "
            "send it in parts, or a reference to it"
        )
    return Request(
        "POST", path, decode, content, {"Content-Type": "application/json"} | dict(headers or {})
    )


def _segment(text: str) -> str:
    """An id as one segment of a path."""
    return quote(read("instance_id", _read_segment, text), safe="")


def _read_segment(text: str) -> str:
    if text in (".", ".."):  # every library takes them out of a path
        raise ValueError("cannot stand in a URL; give another")
    return read_instance_id(text)


def _read_key(text: str) -> str:
    if not (re.fullmatch(r"[!-~]([ -~]*[!-~])?", text) and len(text) <= KEY_LENGTH_MAX):
        raise ValueError(f"give 1 to {KEY_LENGTH_MAX} visible ASCII characters")
    return text


def check_timeout(seconds: float) -> None:
    refuse_unless_number("timeout", seconds)
    if not 0 < seconds <= TIMEOUT_MAX:
        raise ConfigError(f"timeout {seconds}: give seconds, above 0 and at most {TIMEOUT_MAX:g}")
