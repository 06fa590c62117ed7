"""Messages as agents see them: values in, values out, and what cannot be carried.

A payload is a Python value of None, bool, int, float, str, bytes, list, tuple and
dict; it crosses the mesh as MessagePack and comes out as it went in, tuples as
lists.  What goes to a guest or to everyone is read as JSON by programs that give
up on a whole list when one message in it is not JSON, so there it must be a value
that JSON has too (:func:`refuse_unless_json`).

Invariant: what the other side sent never raises out of :func:`decode` as anything
but ``UnreadablePayload``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from p2pmesh.errors import MessageTooLarge
from p2pmesh.protocol.limits import GUEST_PAYLOAD_MAX, LARGE_MIN, PAYLOAD_MAX
from p2pmesh.protocol.payloads import Blob, Payload
from p2pmesh.protocol.types import DeadCopy, Envelope, NodeId

#: Encoded payloads up to this size are shown to those who look on.
SHOWN_MAX: Final = 4096
NESTING_MAX: Final = 124  # strict JSON readers stop at 128, and the list around it counts
#: JSON is at most so many times as long as MessagePack: a control character is one
#: byte here and ``\\u0000`` there, a string's quotes and comma add three to one.
_JSON_GROWTH: Final = 9
_INTEGERS: Final = range(-(2**63), 2**64)
_PLAIN: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (tuple, list),
    (dict, dict),
    (list, list),
    (str, str.__str__),
    (int, int),
    (float, float),
    (bytes, bytes),
)


class UnreadablePayload(ValueError):
    """Bytes of another node that are no payload."""


async def _nothing_to_acknowledge() -> None:
    """A message that a handler runs is acknowledged by the handler's return."""


@dataclass(frozen=True, slots=True)
class AgentMessage:
    """One message, as its recipient gets it."""

    message_id: str
    source_instance: str  # who sent it, by its own word
    target_instance: str | None  # None: a broadcast
    message_type: str
    payload: Any
    correlation_id: str | None
    created_at: int  # unix microseconds, by the sender's clock
    via: str  # node id of the authenticated node that accepted it
    attempt: int = 1  # above 1: an earlier run of the handler did not complete
    _acknowledge: Callable[[], Awaitable[None]] = field(
        default=_nothing_to_acknowledge, repr=False, compare=False
    )

    async def ack(self) -> None:
        """Say that a message out of ``node.messages()`` is dealt with."""
        await self._acknowledge()


def message_of(
    envelope: Envelope,
    via: NodeId | None,
    attempt: int = 1,
    acknowledge: Callable[[], Awaitable[None]] = _nothing_to_acknowledge,
) -> AgentMessage:
    """The message in an envelope; raises UnreadablePayload."""
    return AgentMessage(
        message_id=envelope.message_id,
        source_instance=envelope.source,
        target_instance=envelope.target,
        message_type=envelope.type,
        payload=decode(envelope.payload),
        correlation_id=envelope.correlation_id,
        created_at=envelope.created_at,
        via=via.hex() if via is not None else "",
        attempt=attempt,
        _acknowledge=acknowledge,
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that this node accepted and that ended dead at its recipient."""

    message_id: str
    source_instance: str
    recipient: str  # its instance id; of what never had one, the name it was sent to
    name: str | None  # it was sent to this name
    message_type: str
    correlation_id: str | None
    created_at: int  # unix microseconds
    died_at: int  # unix microseconds
    reason: str
    attempts: int  # how often it was put on the wire; not how often its handler ran
    _content: Payload = field(repr=False)

    @property
    def payload(self) -> Any:
        return decode(self._content)

    @property
    def payload_bytes(self) -> int:
        """How large the payload is, encoded."""
        return len(self._content)

    @property
    def small_payload(self) -> Any:
        """None where it is large, or none that JSON has."""
        return small_json(self._content)


def dead_letter_of(copy: DeadCopy) -> DeadLetter:
    envelope = copy.envelope
    return DeadLetter(
        message_id=envelope.message_id,
        source_instance=envelope.source,
        recipient=copy.recipient,
        name=copy.name,
        message_type=envelope.type,
        correlation_id=envelope.correlation_id,
        created_at=envelope.created_at,
        died_at=copy.died_at,
        reason=copy.reason,
        attempts=copy.attempts,
        _content=envelope.payload,
    )


def encode(payload: Any) -> Payload:
    """A payload as MessagePack; a large one of ``bytes`` is not copied.

    Raises TypeError or ValueError, which name the part of it that cannot be
    carried, and MessageTooLarge.
    """
    if type(payload) is bytes and len(payload) > LARGE_MIN:
        return _refuse_too_large(Blob(payload))
    has_tuples = False

    def plain(value: Any) -> Any:
        """Subclasses as what they are at bottom.  MessagePack has no tuples, and a
        list cannot be a key: whoever uses tuples gets every key looked at."""
        nonlocal has_tuples
        has_tuples = has_tuples or isinstance(value, tuple)
        for kind, convert in _PLAIN:
            if isinstance(value, kind):
                return convert(value)
        raise TypeError

    try:
        data: bytes = msgpack.packb(payload, default=plain, strict_types=True)
    except (TypeError, ValueError, OverflowError, RecursionError):
        _refuse(payload, _why_not_msgpack)
        raise
    if has_tuples:
        _refuse(payload, _why_not_msgpack)
    return _refuse_too_large(data)


def _refuse_too_large(data: Payload) -> Payload:
    if len(data) > PAYLOAD_MAX:
        raise MessageTooLarge(
            f"the payload is {len(data):,} bytes encoded, at most {PAYLOAD_MAX:,} are carried: "
            "send it in parts, or a reference to it"
        )
    return data


def decode(data: Payload) -> Any:
    """The payload in MessagePack bytes, whoever made them; raises UnreadablePayload."""
    if isinstance(data, Blob):
        return data.value
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except Exception as error:  # msgpack documents no complete list for hostile bytes
        raise UnreadablePayload(f"not a payload: {error or type(error).__name__}") from error


def refuse_unless_json(
    payload: Any, encoded_size: int, reader: str, *, what: str = "payload"
) -> None:
    """Raise what says why ``reader`` (a guest, everyone) could not read it as JSON:
    TypeError or ValueError naming the part, or MessageTooLarge."""
    _refuse(payload, _why_not_json, f", which {reader} reads as JSON", what)
    if encoded_size * _JSON_GROWTH <= GUEST_PAYLOAD_MAX:
        return
    size = len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    if size > GUEST_PAYLOAD_MAX:
        raise MessageTooLarge(
            f"the payload is {size:,} bytes of JSON, at most {GUEST_PAYLOAD_MAX:,} reach "
            f"{reader}: send it in parts"
        )


def is_json(payload: Any) -> bool:
    """Whether JSON has this value, without loss."""
    try:
        _refuse(payload, _why_not_json)
    except (TypeError, ValueError):
        return False
    return True


def small_json(data: Payload) -> Any:
    """An encoded payload for those who look on; None where it is large, or none that
    JSON has."""
    if len(data) > SHOWN_MAX:
        return None
    try:
        payload = decode(data)
    except UnreadablePayload:
        return None
    return payload if is_json(payload) else None


# --- naming the part that is wrong -------------------------------------------

_Judge = Callable[[Any, bool], str]  # a scalar, and whether it is a key -> what is wrong


def _refuse(payload: Any, judge: _Judge, why: str = "", name: str = "payload") -> None:
    """Raise for the first part of ``payload`` that ``judge`` objects to."""
    path: list[str] = []

    def visit(value: Any) -> None:
        if len(path) > NESTING_MAX:
            raise ValueError(
                f"the {name} is nested too deeply: {NESTING_MAX} levels are carried everywhere"
            )
        if isinstance(value, dict):
            for key, item in value.items():
                report(judge(key, True), path, f"key {key!r:.40}")
                path.append(f"[{key!r:.40}]")
                visit(item)
                path.pop()
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                path.append(f"[{number}]")
                visit(item)
                path.pop()
        else:
            report(judge(value, False), path, "")

    def report(problem: str, where: list[str], what: str) -> None:
        if problem:
            place = f"{name}{''.join(where)}{f' {what}' if what else ''}"
            kind = ValueError if problem.startswith("holds") else TypeError
            raise kind(f"{place} {problem}{why}")

    visit(payload)


def _why_not_msgpack(value: Any, is_key: bool) -> str:
    match value:
        case None | bool() | float() | bytes() | bytearray() | memoryview():
            return ""
        case int():
            return "" if value in _INTEGERS else "holds an integer beyond 64 bits"
        case str():
            return _why_not_text(value)
    return f"is of type {type(value).__name__}, which cannot be carried"


def _why_not_json(value: Any, is_key: bool) -> str:
    match value:
        case str():
            return _why_not_text(value)
        case _ if is_key:
            return f"is of type {type(value).__name__}, and JSON has only strings as keys"
        case None | bool():
            return ""
        case int():
            return "" if value in _INTEGERS else "holds an integer beyond 64 bits"
        case float():
            return "" if math.isfinite(value) else f"holds {value}, which JSON does not have"
    return f"is of type {type(value).__name__}, which JSON does not have"


def _why_not_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is no text"
    return ""
