"""JSON in and out, as strict as the strictest client.

In: :func:`read` turns a body into a value or raises ``NotJson`` (400) with what
is wrong and where; :func:`shape` turns that value into a typed body or raises
``WrongShape`` (422).  Out: :func:`write`, and the encodings that the registry's
clients expect: times, message types, instances and messages.

Clients of the registry give up on a *whole* list when one message in it does
not decode.  So whatever a strict reader could stumble over later is refused
here, before it is stored: numbers that are no numbers or exceed 64 bits,
repeated keys, lone surrogates, nesting beyond ``NESTING_MAX``.

Does not: know HTTP, requests or routes; import aiohttp.

Invariants: ``write`` yields what ``read`` accepts, for every value that came
through ``read``; what a hostile body costs is bounded by ``BODY_MAX`` and
``CONTAINERS_MAX``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, count
from operator import sub
from typing import Any, Final, TypeVar, get_args, get_origin
from urllib.parse import parse_qs

import msgspec

from p2pmesh.http.backend import RegistryMessage
from p2pmesh.protocol.limits import TYPE_MAX
from p2pmesh.protocol.types import KNOWN_TYPES, Member
from p2pmesh.values import known_type_like

BODY_MAX: Final = 2_097_152
KEY_LENGTH_MAX: Final = 256  # of an Idempotency-Key
#: Arrays and objects in one body.  Decoding a million empty ones would hold the
#: event loop for a third of a second; a hundred thousand do not.
CONTAINERS_MAX: Final = 100_000
#: Levels of one value.  A message list wraps it in three more, and strict readers
#: (serde_json) stop at 128.
NESTING_MAX: Final = 124

_BODY_NESTING_MAX: Final = NESTING_MAX + 1  # the body itself is the outermost object

T = TypeVar("T")


class NotJson(ValueError):
    """The body is not JSON that every client could read back (400)."""


class WrongShape(ValueError):
    """The body is JSON, but not of the shape that this call takes (422); or the query
    is not (400)."""


class TooManyValues(ValueError):
    """The body is small enough in bytes, but not in arrays and objects (413)."""


# --- in: bytes -> value ------------------------------------------------------


def read(body: bytes) -> Any:
    """The value of a JSON text.  Raises NotJson, TooManyValues."""
    if not body:
        raise NotJson("the body is empty; it must be JSON")
    if body.startswith(b"\xef\xbb\xbf"):
        raise NotJson("the body starts with a byte order mark; send plain UTF-8")
    if _nesting(body) > _BODY_NESTING_MAX:
        raise NotJson(f"a value is nested more than {NESTING_MAX} levels deep")
    try:
        value = _decode(body)
    except UnicodeDecodeError as error:
        raise NotJson(f"the body is not UTF-8: {error.reason}") from None
    except RecursionError:  # the caller's own stack was nearly full
        raise NotJson("nested too deep") from None
    except msgspec.MsgspecError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        for said, instead in _OUT_OF_RANGE.items():
            if what.startswith(said):
                raise NotJson(what.replace(said, instead)) from None
        raise NotJson(f"the body is not JSON: {what}") from None
    if (key := _repeated_key(body, value)) is not None:
        raise NotJson(f"the key {_clip(key)!r} is repeated in one object")
    if _LONG_NUMBER.search(body) and not _fits_64_bits(value):
        raise NotJson("an integer exceeds 64 bits; send it as a string")
    return value


#: For what the decoder says no more of: it is JSON, and not to be carried.
_OUT_OF_RANGE: Final = {
    "Integer value out of range": "an integer exceeds 64 bits; send it as a string",
    "Number out of range": "a number exceeds a float; send it as a string",
}
_decode: Final = msgspec.json.Decoder().decode
_LONG_NUMBER: Final = re.compile(rb"\d{19}")
# JSON text without brackets outside strings.  Possessive: no text makes it backtrack.
_NOT_BRACKETS: Final = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")++', re.DOTALL)
# So much text that no string is cut, and that it is read in a few milliseconds.
_BLOCK: Final = re.compile(
    rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]{1,8}+){1,5000}+', re.DOTALL
)
# Opening brackets become 2, closing ones 0: a running sum less its index is a depth.
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x02\x02\x00\x00")


def _nesting(body: bytes) -> int:
    """How deep the text nests; exact where it is JSON, and never too low for the
    part that a decoder reads before it finds that it is not."""
    most = body.count(b"[") + body.count(b"{")
    if most <= _BODY_NESTING_MAX:
        return 0  # deep enough only if every bracket opened inside the one before
    depth = deepest = containers = 0
    for brackets in _brackets(body):
        steps = accumulate(brackets.translate(_STEPS))
        deepest = max(deepest, depth + max(map(sub, steps, count(1)), default=0))
        if deepest > _BODY_NESTING_MAX:
            break
        opened = brackets.count(b"[") + brackets.count(b"{")
        depth += 2 * opened - len(brackets)
        containers += opened
        if containers > CONTAINERS_MAX:
            raise TooManyValues(f"more than {CONTAINERS_MAX} arrays and objects in one body")
    return deepest


def _brackets(body: bytes) -> Iterator[bytes]:
    """Those outside strings, in parts: between two of them other threads may run."""
    position = 0
    while block := _BLOCK.match(body, position):
        position = block.end()
        yield _NOT_BRACKETS.sub(b"", block[0])
    # What is left, if anything, is a string without an end.


def _repeated_key(body: bytes, value: Any) -> str | None:
    """A key that stands twice in one object of ``body``, whose decoded value is ``value``.

    A decoder keeps one of two equal keys, so the text written again has fewer
    colons.  Only when the colons do not add up (a repeated key, or one written
    as an escape) is the body read a second time, slowly, to find it.
    """
    if b":" not in body:
        return None
    colons = body.count(b":")
    if b"\\" in body:
        colons += len(_ESCAPED_COLON.findall(body))
    if colons == write(value).count(b":"):
        return None
    try:
        json.loads(body, object_pairs_hook=_unique)
    except _Repeated as repeated:
        return repeated.key
    return None


_ESCAPED_COLON: Final = re.compile(rb"\\u003[aA]")


class _Repeated(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _Repeated(key)
        seen.add(key)


def _fits_64_bits(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        return False
    return True


# --- in: value -> typed body -------------------------------------------------


class MessageType(str):
    """In a body's type: a message type in any of its JSON forms."""


def shape(value: Any, type: type[T]) -> T:
    """``value`` as a ``type``.  Unknown fields are ignored.

    Raises WrongShape, and NotJson for a message type that is no such thing.
    """
    try:
        return msgspec.convert(value, type, dec_hook=_decode_custom)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, NotJson):
            raise error.__cause__ from None
        raise WrongShape(str(error)) from None


def shape_query(text: str, type: Any) -> Any:
    """A query string as a ``type``, a struct whose fields describe themselves.

    A parameter may be repeated where its field is a tuple, and empty ones say nothing
    there.  Unknown ones are ignored.  Raises WrongShape.
    """
    given = parse_qs(text, keep_blank_values=True, errors="replace")
    found: dict[str, Any] = {}
    for name, (wanted, is_many, meaning) in _query_fields(type).items():
        if name not in given:
            continue
        values = list(filter(None, given[name])) if is_many else given[name]
        if len(values) > 1 and not is_many:
            raise WrongShape(f"{name} is given {len(values)} times: give it once")
        said = ", ".join(values)
        try:
            if get_args(wanted)[0] is int and not _INTEGER.fullmatch(said):
                raise msgspec.ValidationError  # "1e3" would pass
            found[name] = msgspec.convert(values if is_many else said, wanted, strict=False)
        except msgspec.ValidationError:
            raise WrongShape(f"{name} is {meaning}, not {_clip(said)!r}") from None
    return type(**found)


_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")


@lru_cache
def _query_fields(type: Any) -> dict[str, tuple[Any, bool, str]]:
    """Name -> the field's type, whether it takes several values, what it means."""
    described = {}
    for each in msgspec.structs.fields(type):
        bare, meta = get_args(each.type)
        described[each.name] = (each.type, get_origin(bare) is tuple, meta.description)
    return described


def _decode_custom(type: type, value: Any) -> MessageType:
    assert type is MessageType
    return MessageType(message_type_in(value))


def message_type_in(value: Any) -> str:
    """The one string that means a message type, from any of its JSON forms.

    A known name stands for itself, and so does the text of a custom type; only
    a custom type that *is* a known name gets the prefix ``Custom:``, and what
    already looks like one gets another, so that each form is read back as it
    was written.  Raises NotJson (as the original does for what is neither a
    string nor an object) and WrongShape.
    """
    match value:
        case str():
            if value in KNOWN_TYPES:
                return value
            known = known_type_like(value)
            hint = f"; did you mean {known!r}?" if known is not None else ""
            raise WrongShape(f'{_clip(value)!r} is not a known type; say {{"Custom": …}}{hint}')
        case {"Custom": str(custom)} if len(value) == 1:
            name = f"Custom:{custom}" if _is_escaped(custom) else custom
            if len(name.encode()) > TYPE_MAX:
                raise WrongShape(f"a message type is at most {TYPE_MAX} bytes")
            return name
        case dict():
            for name, content in value.items():
                if name in KNOWN_TYPES and content is None and len(value) == 1:
                    return str(name)
            raise WrongShape('a message type is a known name or {"Custom": "text"}')
        case _:
            raise NotJson("a message type is a string or an object")


def message_type_out(name: str) -> str | dict[str, str]:
    """The JSON form of a message type."""
    if name in KNOWN_TYPES:
        return name
    return {"Custom": name.removeprefix("Custom:") if _is_escaped(name) else name}


def _is_escaped(name: str) -> bool:
    while name.startswith("Custom:"):
        name = name.removeprefix("Custom:")
    return name in KNOWN_TYPES


# --- out ---------------------------------------------------------------------

_encoder: Final = msgspec.json.Encoder(enc_hook=str)  # a MessagePack extension type, say


def write(value: Any) -> bytes:
    """The JSON text of a value; what JSON has no word for is written as its text."""
    return _encoder.encode(value)


_TIME_MAX: Final = 253_402_300_799_999_999  # the last microsecond of the year 9999


@lru_cache(maxsize=8192)  # a list is asked for often, and most of its times stay
def timestamp(microseconds: int) -> str:
    """Unix microseconds as RFC 3339 UTC with ``Z`` and microseconds."""
    seconds, fraction = divmod(min(max(microseconds, 0), _TIME_MAX), 1_000_000)
    return f"{_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Instance(msgspec.Struct, frozen=True):
    """An instance as the registry's clients know it, and four fields of ours."""

    instance_id: str
    hostname: str
    port: int
    capabilities: tuple[str, ...]
    is_leader: bool
    last_heartbeat: str
    created_at: str
    agent_profiles: tuple[str, ...]
    status: str | None
    metrics: Any
    state: str
    node_id: str


def instances_out(members: tuple[Member, ...], leader_id: str | None) -> tuple[Instance, ...]:
    """The live instances among ``members``, in their order.

    ``is_leader`` follows ``leader_id``, so that one answer never holds two
    opinions.  The time of the last heartbeat is told by this node's wall clock.
    """
    now = time.time()
    return tuple(
        Instance(
            member.instance_id,
            member.hostname,
            member.port,
            member.capabilities,
            member.instance_id == leader_id,
            timestamp(round((now - member.last_heartbeat_age) * 1e6)),
            timestamp(member.created_at),
            member.agent_profiles,
            member.status,
            member.metrics,
            member.state,
            member.node_id,
        )
        for member in members
        if member.state in ("alive", "suspect") and not is_observer(member)
    )


def is_observer(member: Member) -> bool:
    """A node without an agent: it is no instance."""
    return member.kind == "node" and member.instance_id == member.node_id


class Message(msgspec.Struct, frozen=True):
    message_id: str
    source_instance: str
    target_instance: str | None
    message_type: str | dict[str, str]
    payload: Any
    correlation_id: str | None
    created_at: str


def message_out(message: RegistryMessage) -> bytes:
    """One message as JSON.

    A payload that came from a node which does not check what it sends, and that
    a strict reader would stumble over, is replaced by null: losing it is better
    than losing the list it stands in.
    """
    shaped = Message(
        message.message_id,
        message.source_instance,
        message.target_instance,
        message_type_out(message.message_type),
        message.payload,
        message.correlation_id,
        timestamp(message.created_at),
    )
    try:
        text = write(shaped)
        if _nesting(text) <= _BODY_NESTING_MAX:
            return text
    except (ValueError, TypeError, RecursionError):
        pass  # too many containers, lone surrogates, a key that is no string
    return write(msgspec.structs.replace(shaped, payload=None))


def payload_out(payload: Any) -> bytes:
    """One payload as JSON; null for what :func:`message_out` would not write either."""
    try:
        text = write(payload)
        if _nesting(text) <= _BODY_NESTING_MAX:
            return text
    except (ValueError, TypeError, RecursionError):
        pass
    return b"null"


def _clip(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
