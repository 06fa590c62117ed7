"""Payloads: what goes in comes out, and what cannot be carried is named."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict, namedtuple
from enum import IntEnum, StrEnum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import MessageTooLarge
from p2pmesh.messages import (
    _JSON_GROWTH,
    AgentMessage,
    UnreadablePayload,
    decode,
    encode,
    is_json,
    message_of,
    refuse_unless_json,
)
from p2pmesh.protocol.limits import PAYLOAD_MAX
from p2pmesh.protocol.types import Envelope

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
JSON = st.recursive(
    SCALARS.filter(lambda v: v not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)
CARRIED = st.recursive(
    SCALARS | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(SCALARS | st.binary(), inner),
)


@given(CARRIED)
def test_a_payload_comes_out_as_it_went_in(payload: Any) -> None:
    assert decode(encode(payload)) == payload


def test_a_large_value_of_bytes_is_copied_neither_on_its_way_in_nor_out() -> None:
    value = bytes(range(256)) * 4096
    encoded = encode(value)
    assert decode(encoded) is value
    assert bytes(encoded) == msgpack.packb(value)
    assert len(encoded) == len(bytes(encoded))
    with pytest.raises(MessageTooLarge):
        encode(bytes(PAYLOAD_MAX - 4))


@given(JSON)
def test_what_json_has_is_accepted_for_json(payload: Any) -> None:
    refuse_unless_json(payload, len(encode(payload)), "a guest")
    assert is_json(payload)


@given(st.binary())
def test_no_bytes_raise_anything_but_unreadable(data: bytes) -> None:
    with contextlib.suppress(UnreadablePayload):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x91" * 5000, b"\x81\x90\x01", b"\xdd\xff\xff\xff\xff", b"\xa1\xff", b"\1\1"],
)
def test_hostile_bytes_are_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadablePayload):
        decode(data)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("payload", "carried"),
    [
        ((1, (2, "x")), [1, [2, "x"]]),
        (Point(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        ({Colour.RED: Level.HIGH}, {"red": 3}),
        (bytearray(b"x"), b"x"),
    ],
)
def test_subclasses_are_carried_as_what_they_are_at_bottom(payload: Any, carried: Any) -> None:
    assert decode(encode(payload)) == carried


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        ({"a": [1, {2, 3}]}, TypeError, r"payload\['a'\]\[1\] is of type set"),
        (object(), TypeError, "payload is of type object"),
        ({"n": 2**64}, ValueError, r"payload\['n'\] holds an integer beyond 64 bits"),
        (["\ud800"], ValueError, r"payload\[0\] holds a lone surrogate"),
        ({(1, 2): 3}, TypeError, r"payload key \(1, 2\) is of type tuple"),
        (nested(2000), ValueError, "nested too deeply"),
    ],
)
def test_what_cannot_be_carried_is_named(
    payload: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(payload)


def test_a_payload_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested too deeply"):
        encode(loop)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"image": b"\0"}, r"payload\['image'\] is of type bytes, which JSON does not have"),
        ([float("nan")], r"payload\[0\] holds nan"),
        (float("inf"), "payload holds inf"),
        ({1: "x"}, "payload key 1 is of type int, and JSON has only strings as keys"),
        (nested(125), "nested too deeply"),
    ],
)
def test_what_a_guest_could_not_read_is_named(payload: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        refuse_unless_json(payload, 1, "a guest")
    assert not is_json(payload)


def test_both_size_limits_are_said() -> None:
    with pytest.raises(MessageTooLarge, match="16,777,216"):
        encode(b"x" * (16 * 1024 * 1024))
    with pytest.raises(MessageTooLarge, match=r"2,097,152 reach a guest"):
        refuse_unless_json("x" * 2_097_152, 2_097_157, "a guest")


@given(JSON)
def test_json_grows_no_more_than_is_reckoned_with(payload: Any) -> None:
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) <= _JSON_GROWTH * len(encode(payload))


async def test_a_message_shows_what_its_envelope_says_and_acknowledges_once_asked() -> None:
    acknowledged: list[str] = []

    async def acknowledge() -> None:
        acknowledged.append("yes")

    envelope = Envelope("m-1", "a", "b", "Query", encode({"n": 1}), "c-1", 1_700_000_000_000_000)
    message = message_of(envelope, b"\xab" * 32, 2, acknowledge)
    assert message == AgentMessage(
        "m-1", "a", "b", "Query", {"n": 1}, "c-1", 1_700_000_000_000_000, "ab" * 32, 2
    )
    await message.ack()
    assert acknowledged == ["yes"]
