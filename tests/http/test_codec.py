"""JSON in and out, held against a strict reader that knows nothing of it."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from p2pmesh.http import codec
from p2pmesh.http.backend import RegistryMessage
from p2pmesh.protocol.types import KNOWN_TYPES
from tests.http import strict

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from([":", '"', "\\", "\\u003a", "{", "]", "\0", "😀"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


class Pairs(list[tuple[str, Any]]):
    """An object as it is written: keys may repeat."""


written = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(st.tuples(st.sampled_from(["a", "b", ":"]), inner), max_size=4).map(Pairs)
    ),
    max_leaves=20,
)


def text_of(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Pairs):
        pairs = (f"{text_of(k, ascii_only)}: {text_of(v, ascii_only)}" for k, v in value)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + " , ".join(text_of(each, ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def verdict(text: bytes) -> Any:
    """The value as the strict reader has it, or the word refused."""
    try:
        return strict.loads(text)
    except (AssertionError, ValueError, RecursionError):
        return "refused"


def reading(text: bytes) -> Any:
    try:
        return codec.read(text)
    except (codec.NotJson, codec.TooManyValues):
        return "refused"


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert codec.read(codec.write(value)) == value
    assert strict.loads(codec.write(value)) == value


@given(written, st.booleans())
@example(Pairs([("a", ":"), ("a", 1)]), True)
@example(Pairs([("a", "\\u003a"), ("b", "\\\\u003a")]), True)
def test_a_repeated_key_is_refused_wherever_it_stands(value: Any, ascii_only: bool) -> None:
    text = text_of(value, ascii_only).encode()
    assert reading(text) == verdict(text)


@given(st.binary() | st.text().map(str.encode))
def test_bytes_are_read_or_refused(given_bytes: bytes) -> None:
    for text in (given_bytes, b'{"a":%b}' % given_bytes, b'["%b"]' % given_bytes):
        assert reading(text) == verdict(text)


@given(written, st.data())
def test_a_damaged_text_is_read_as_the_strict_reader_reads_it(value: Any, data: Any) -> None:
    text = bytearray(text_of(value, True).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    match data.draw(st.sampled_from(["drop", "double", "replace", "cut"])):
        case "drop":
            del text[at]
        case "double":
            text.insert(at, text[at])
        case "replace":
            text[at] = data.draw(st.sampled_from(b'"\\{}[],:019.eE-+tfn u\x00\x80\xff'))
        case "cut":
            del text[at:]
    found = bytes(text)
    assert reading(found) == verdict(found)


def test_a_refusal_says_what_is_wrong_and_where() -> None:
    for text, words in [
        (b"", "empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"{} x", "is not JSON: trailing characters (byte 4)"),
        (b'{"a":1,}', "is not JSON: trailing comma in object (byte 7)"),
        (b'["\xff"]', "not UTF-8"),
        (b'{"b":{"a":1,"a":2}}', "'a' is repeated"),
        (b"[18446744073709551616]", "64 bits"),
        (b"7" * 5000, "64 bits"),
        (b"[-1e400]", "exceeds a float"),
        (b"[" * 126 + b"]" * 126, "more than 124 levels"),
    ]:
        with pytest.raises(codec.NotJson) as refused:
            codec.read(text)
        assert words in str(refused.value)


@pytest.mark.parametrize(
    "unit", [b"[]", b"{}", b'{"":0}', b"[[]]", b'{"a":{}}'], ids=lambda unit: unit.decode()
)
def test_a_body_of_countless_little_values_is_refused_before_it_is_decoded(unit: bytes) -> None:
    many = codec.BODY_MAX // (len(unit) + 1) - 2
    with pytest.raises(codec.TooManyValues):
        codec.read(b"[" + b",".join([unit] * many) + b"]")


def test_as_many_containers_as_are_allowed_are_read() -> None:
    text = b"[" + b",".join([b"[]"] * (codec.CONTAINERS_MAX - 1)) + b"]"
    assert len(codec.read(text)) == codec.CONTAINERS_MAX - 1
    with pytest.raises(codec.TooManyValues):
        codec.read(b"[" + text + b"]")


@given(st.text())
@example("Query")
@example("Custom:Query")
@example("Custom:Custom:Query")
@example("Custom:")
def test_every_type_name_has_one_json_form_and_back(name: str) -> None:
    form = codec.message_type_out(name)
    if len(name.encode()) <= 120:
        assert codec.message_type_in(form) == name


@given(st.text(max_size=30))
@example("Query")
@example("Custom:Query")
def test_every_custom_type_is_read_back_as_itself(custom: str) -> None:
    assert codec.message_type_out(codec.message_type_in({"Custom": custom})) == {"Custom": custom}


@given(st.sampled_from(sorted(KNOWN_TYPES)))
def test_a_known_type_in_other_letters_is_told_what_was_meant(name: str) -> None:
    with pytest.raises(codec.WrongShape, match=f"did you mean '{name}'"):
        codec.message_type_in(name.lower())


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (1_795_333_175_388_278, "2026-11-22T07:39:35.388278Z"),
        (1_795_333_175_000_000, "2026-11-22T07:39:35.000000Z"),
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1970-01-01T00:00:00.000000Z"),
        (10**30, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_utc_with_microseconds(microseconds: int, text: str) -> None:
    assert codec.timestamp(microseconds) == text


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


UNCARRIED: dict[str, Any] = {
    "bytes": b"\xff\xfe",
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a number as key": {1: "a"},
    "a tuple as key": {(1, 2): 3},
    "a lone surrogate": "\ud800",
    "a lone surrogate as key": {"\udc00": 1},
    "125 levels": deep(125),
    "5000 levels": deep(5000),
    "an extension": msgspec.msgpack.Ext(1, b"x"),
    "an object": [object()],
    "too many values": [[]] * 200_000,
}


@pytest.mark.parametrize("payload", UNCARRIED.values(), ids=UNCARRIED)
def test_a_payload_that_json_cannot_carry_costs_no_other_message(payload: Any) -> None:
    """Nodes refuse these where they are sent; one that does not must do no harm."""
    text = codec.message_out(RegistryMessage("m", "a", None, "Query", payload, None, 0))
    in_a_list = strict.loads(b'{"messages":[%b]}' % text)
    assert in_a_list["messages"][0]["message_id"] == "m"


def test_the_deepest_payload_that_is_taken_is_given_back() -> None:
    message = RegistryMessage("m", "a", None, "Query", deep(124), None, 0)
    in_a_list = strict.loads(b'{"messages":[%b]}' % codec.message_out(message))
    assert in_a_list["messages"][0]["payload"] == deep(124)


# --- queries ---------------------------------------------------------------------


class Query(msgspec.Struct, frozen=True):
    size: Annotated[int, Meta(ge=1, le=9, description="a size from 1 to 9")] = 3
    color: Annotated[
        tuple[Literal["red", "green"], ...], Meta(description="one of red, green")
    ] = ()


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("", Query()),
        ("size=7", Query(7)),
        ("color=red&size=1&color=green", Query(1, ("red", "green"))),
        ("color=%72ed", Query(color=("red",))),
        ("color=&shape=round&color=red", Query(color=("red",))),
    ],
)
def test_a_query_becomes_what_its_type_says(text: str, means: Query) -> None:
    assert codec.shape_query(text, Query) == means


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("size=0", "size is a size from 1 to 9, not '0'"),
        ("size=x", "size is a size from 1 to 9, not 'x'"),
        ("size=", "size is a size from 1 to 9, not ''"),
        ("size=1e0", "size is a size from 1 to 9, not '1e0'"),
        ("size=+7", "size is a size from 1 to 9, not ' 7'"),
        ("size=7.0", "size is a size from 1 to 9, not '7.0'"),
        ("size=7&size", "size is given 2 times: give it once"),
        ("size=7&color=red&size=7&size=1", "size is given 3 times: give it once"),
        ("color=red&color=blue", "color is one of red, green, not 'red, blue'"),
        ("color=%FF", "color is one of red, green, not '\ufffd'"),
    ],
)
def test_a_query_that_does_not_fit_says_what_would(text: str, detail: str) -> None:
    with pytest.raises(codec.WrongShape) as error:
        codec.shape_query(text, Query)
    assert str(error.value) == detail


@given(st.text())
def test_no_query_raises_anything_else(text: str) -> None:
    for each in (text, f"size={text}", f"color={text}"):
        with contextlib.suppress(codec.WrongShape):
            codec.shape_query(each, Query)
