"""Messages to bytes and back: every kind, and whatever else may come."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.gossip import Item, decode_item
from p2pmesh.protocol.types import Life
from p2pmesh.protocol.wire import AnyMessage, Malformed, decode, encode
from tests.protocol.claims import life, node_id

KINDS = get_args(AnyMessage)
ITEMS = get_args(Item)

#: Each membership message as the bytes that travel, written out.
LITERALS = [
    (
        wire.Hello(b"r", (1, 1), b"p", 5, 6),
        b"\x9a\x01\xc4\x01r\x92\x01\x01\xc4\x01p\x05\x06\xc0\xc2\xc0\x00",
    ),
    (wire.CloseReason("idle"), b"\x92\x02\xa4idle"),
    (wire.Heartbeat(b"12345678", 3, 1, 9), b"\x95\x03\xc4\x0812345678\x03\x01\x09"),
    (wire.Ping(7), b"\x92\x04\x07"),
    (wire.Pong(7), b"\x92\x05\x07"),
    (wire.Restamp(Life(1, 2, 3), 4), b"\x93\x06\x93\x01\x02\x03\x04"),
    (wire.News((b"a", b"b")), b"\x92\x07\x92\xc4\x01a\xc4\x01b"),
    (wire.Buckets(b"h"), b"\x92\x08\xc4\x01h"),
    (wire.Digest(5, b"d"), b"\x93\x09\x05\xc4\x01d"),
    (wire.Want(b""), b"\x92\x0a\xc4\x00"),
    (wire.Offer((b"a",), True, False), b"\x94\x0b\x91\xc4\x01a\xc3\xc2"),
    (wire.Chunk(9, True, b"d", b"a"), b"\x95\x0c\x09\xc3\xc4\x01d\xc4\x01a"),
    (wire.Taken(70_000), b"\x92\x0d\xce\x00\x01\x11\x70"),
    (wire.RecordItem(b"s"), b"\x93\x28\xc4\x01s\x00"),
    (wire.EntryItem(b"s", 2), b"\x93\x29\xc4\x01s\x02"),
    (
        wire.Verdict(b"i", Life(1, 2, 3), 4, 5, "refused", (b"a",)),
        b"\x97\x2a\xc4\x01i\x93\x01\x02\x03\x04\x05\xa7refused\x91\xc4\x01a",
    ),
    (
        wire.Question(b"i", Life(1, 2, 3), 4, "stalled", b"a", 5, 6),
        b"\x99\x2b\xc4\x01i\x93\x01\x02\x03\x04\xa7stalled\xc4\x01a\x05\x06\xc2",
    ),
    (
        wire.Vouch(b"i", Life(1, 2, 3), 4, b"v", 5, ((b"a", 6),)),
        b"\x97\x2c\xc4\x01i\x93\x01\x02\x03\x04\xc4\x01v\x05\x91\x92\xc4\x01a\x06",
    ),
    (
        wire.Stall(b"i", Life(1, 2, 3), b"m", 4, True, False),
        b"\x97\x2d\xc4\x01i\x93\x01\x02\x03\xc4\x01m\x04\xc3\xc2",
    ),
]


PLAIN = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    type(None): st.none(),
}


def any_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any message of a kind: its fields of their types, whatever their values."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: value_of(hints[name]) for name in hints})


def value_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint in PLAIN:
        return PLAIN[hint]
    match get_origin(hint), get_args(hint):
        case None, ():  # a struct, or a Life
            return any_of(hint)
        case origin, (each, more) if origin is tuple and more is Ellipsis:
            return st.lists(value_of(each), max_size=3).map(tuple)
        case origin, parts if origin is tuple:
            return st.tuples(*map(value_of, parts))
        case _, parts:
            return st.one_of(*map(value_of, parts))


@pytest.mark.parametrize(("message", "data"), LITERALS, ids=lambda v: type(v).__name__)
def test_each_membership_message_is_these_bytes(message: wire.Message, data: bytes) -> None:
    assert encode(message) == data
    read = msgspec.msgpack.decode(data, type=type(message))
    assert read == message


def test_every_kind_is_in_the_table_above_or_of_the_message_plane() -> None:
    listed = {type(message) for message, _ in LITERALS}
    assert listed == set(KINDS) - set(wire.MESSAGE_PLANE) | set(ITEMS)


@given(st.one_of([any_of(kind) for kind in KINDS]))
def test_every_message_comes_back_as_it_was(message: wire.Message) -> None:
    assert decode(encode(message)) == message


@given(st.sampled_from(KINDS).flatmap(any_of), st.lists(st.none() | st.integers(0, 9), max_size=3))
def test_fields_of_a_later_version_are_passed_over(message: wire.Message, later: list[Any]) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    assert decode(msgspec.msgpack.encode([*fields, *later])) == message


def test_tags_are_used_once() -> None:
    tags = [kind.__struct_config__.tag for kind in (*KINDS, *ITEMS)]
    assert len(set(tags)) == len(tags)
    assert all(0 < tag < 0x80 for tag in tags)  # one byte, as _tag reads it


@pytest.mark.parametrize(
    "data",
    [b"\x91\x0e", b"\x92\x7f\xc4\x01x", b"\x91\xcd\x01\x00", b"\x91\xff", b"\xdc\x00\x01\x63"],
)
def test_a_tag_of_a_later_version_is_skipped(data: bytes) -> None:
    assert decode(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x00",
        b"\x90",
        b"\x80",
        b"\xa5hello",
        b"\x91\xc0",
        b"\x91\xc2",  # false is no tag, though Python's is a number
        b"\x91\xc3",
        b"\x91\xa14",
        b"\x91\x04",  # a field is missing
        b"\x92\x04\xa17",  # of another type
        b"\x92\x04\x07\x07",  # something follows
        b"\x92\x63\x07\x07",  # ... behind a tag that is not known
        b"\x92\x63",
        b"\x92\x02\xa2\xff\xff",  # not UTF-8
        b"\x92\x06\x92\x01\x02\x03",  # a life of two numbers
        b"\x92\x04" + b"\x91" * 2000,
        b"\x92\x63" + b"\x91" * 60_000,
        b"\x92\x07\xdd\xff\xff\xff\xff",  # lengths that nothing follows
        b"\x92\x08\xc6\xff\xff\xff\xff",
        b"\x92\x02\xdb\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\x04",
        b"\x93\x04\x07\xdf\xff\xff\xff\xff",
    ],
    ids=lambda data: data[:8].hex(),
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_malformed(data: bytes) -> None:
    for candidate in (data, *(b"\x98" + bytes([tag]) + data for tag in (1, 9, 67, 99))):
        try:
            decode(candidate)
        except Malformed:
            continue


@given(st.sampled_from(LITERALS), st.data())
def test_a_message_with_a_byte_changed_is_read_or_refused(
    literal: tuple[wire.Message, bytes], draw: st.DataObject
) -> None:
    changed = bytearray(literal[1])
    changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(Malformed):
        decode(bytes(changed))
    decode_item(bytes(changed))


def test_the_protocol_page_lists_every_kind_under_its_tag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    listed = {
        int(tag): name.lower() for tag, name in re.findall(r"^\| (\d+) \| (\w+) \|", page, re.M)
    }
    short = {"closereason": "close", "recorditem": "record", "entryitem": "entry"}
    names = {kind.__struct_config__.tag: kind.__name__.lower() for kind in (*KINDS, *ITEMS)}
    assert listed == {tag: short.get(name, name) for tag, name in names.items()}


# --- sizes ----------------------------------------------------------------------


def padded(tag: int, size: int) -> bytes:
    """An array of ``size`` bytes that begins with this tag, and is else nonsense."""
    return b"\x92" + bytes([tag, 0xC6]) + struct.pack(">I", size - 7) + bytes(size - 7)


MOST = {
    wire.Post: limits.PAYLOAD_MAX,
    wire.Ask: limits.PAYLOAD_MAX,
    wire.Answer: limits.PAYLOAD_MAX,
    wire.Part: limits.PAYLOAD_MAX,
    wire.Cast: limits.PAYLOAD_MAX,
    wire.Relay: limits.PAYLOAD_MAX,
    wire.Call: limits.PAYLOAD_MAX,
    wire.CallResult: limits.PAYLOAD_MAX,
    wire.Handed: limits.PAYLOAD_MAX,
    wire.Done: limits.RECEIPT_BYTES_MAX,
    wire.CastReceipt: limits.RECEIPT_BYTES_MAX,
    wire.Digest: 16 * limits.CLAIMS_MAX,
    wire.Want: 8 * limits.CLAIMS_MAX,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_largest_size(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what can be large may be: many small parts in a large message take many
    times its size once it is decoded, so nothing is decoded of what is too large."""
    decoded: list[bytes] = []

    class Decoder:
        def decode(self, data: bytes) -> None:
            decoded.append(data)

    monkeypatch.setattr(wire, "_DECODER", Decoder())
    most = MOST.get(kind, limits.FRAME_MAX)
    tag = kind.__struct_config__.tag
    decode(padded(tag, most))
    assert len(decoded) == 1
    for head in (b"\x92", b"\xdc\x00\x02"):
        with pytest.raises(Malformed):
            decode(head + padded(tag, most + 40_000)[1:])
    assert len(decoded) == 1


def test_a_large_message_of_a_later_version_is_skipped_unread() -> None:
    assert decode(padded(0x63, limits.FRAME_MAX + 1)) is None
    assert decode(b"\xdd" + bytes(limits.FRAME_MAX)) is None


def test_the_largest_digest_want_and_receipt_fit() -> None:
    digest = wire.Digest(2**32 - 1, bytes(16 * limits.CLAIMS_MAX))
    want = wire.Want(bytes(8 * limits.CLAIMS_MAX))
    ids = tuple(f"{number:0{limits.INSTANCE_ID_MAX}}" for number in range(limits.MEMBERS_MAX))
    homes = tuple(number.to_bytes(32) for number in range(limits.MEMBERS_MAX))
    receipt = wire.CastReceipt(
        node_id(1), bytes(8), 1, homes, ids, tuple((each, "mailbox full") for each in ids)
    )
    for message in (digest, want, receipt):
        assert decode(encode(message)) == message


def test_a_payload_of_the_largest_size_fits_with_its_envelope() -> None:
    envelope = wire.Envelope(
        "m" * 36, "s" * 128, "t" * 128, "y" * 128, bytes(limits.PAYLOAD_MAX), "c" * 256, 2**62
    )
    post = wire.Post(bytes(8), 2**62, 2**62, 2**62, envelope, "r" * 128)
    relay = wire.Relay(node_id(1), node_id(2), encode(post))
    handed = wire.Handed(node_id(1), bytes(8), 1, 1, 1, "r", envelope, ((1, 2),) * 1024)
    for message in (post, relay, handed, wire.Cast(
        node_id(1), bytes(8), 1, 1, True, 1, life(1), envelope
    )):  # fmt: skip
        assert len(encode(message)) <= limits.LARGE_MESSAGE_MAX
        assert decode(encode(message)) == message
