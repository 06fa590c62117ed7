"""Signed records and entries: what is taken, what is refused, and what is kept."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from p2pmesh.errors import ConfigError
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.records import (
    SIGNATURE_BYTES,
    EntryVersion,
    Record,
    RecordBook,
    RecordError,
    SignedRecord,
    Signer,
    Version,
    check_own,
    is_address,
    is_instance_id,
    is_plausible,
    version_hash,
)
from p2pmesh.protocol.types import GuestEntry, Life, State
from tests.protocol.claims import agent, entry, life, node_id, record, signed, signed_entry

_, SECRET = bindings.crypto_sign_seed_keypair((1).to_bytes(32))


def sign(body: bytes) -> bytes:
    """As node 1 signs, whatever the bytes are."""
    return bindings.crypto_sign(body, SECRET)[:SIGNATURE_BYTES] + body


def sign_fields(fields: list[Any]) -> bytes:
    return sign(msgspec.msgpack.encode(fields))


def fields_of(value: Record | GuestEntry) -> list[Any]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def refusal(signed: bytes, *, of_entry: bool = False) -> str:
    book = RecordBook()
    with pytest.raises(RecordError) as error:
        _ = book.entry(signed) if of_entry else book.record(signed)
    return str(error.value)


# --- the way through ------------------------------------------------------------


def test_what_a_node_signs_another_reads() -> None:
    sent = signed(1, 5, epoch=9, agent=agent(1, capabilities=("a", "b"), http_port=8077))
    read = RecordBook().record(sent.signed)
    assert read.record == sent.record
    assert (read.signed, read.item) == (sent.signed, sent.item)
    assert (read.version, read.subject, read.version_hash) == (
        sent.version,
        sent.subject,
        sent.version_hash,
    )
    assert msgspec.msgpack.decode(read.item, type=wire.RecordItem).signed == sent.signed


def test_what_a_home_signs_another_reads() -> None:
    sent = signed_entry("guest", 1)
    read = RecordBook().entry(sent.signed)
    assert read.entry == sent.entry
    assert (read.item, read.version_hash) == (sent.item, sent.version_hash)


def test_fields_of_a_later_version_stay_in_what_is_passed_on() -> None:
    later = sign_fields([*fields_of(record(1)), "a later field", {"nested": [1]}])
    read = RecordBook().record(later)
    assert read.record == record(1)
    assert read.signed == later
    assert msgspec.msgpack.decode(read.item, type=wire.RecordItem).signed == later
    own = fields_of(record(1))
    own[10] = [*own[10], "a later field of the agent"]
    assert RecordBook().record(sign_fields(own)).record == record(1)
    guest = sign_fields([*fields_of(entry("guest", 1)), None])
    assert RecordBook().entry(guest).signed == guest


def test_a_record_may_leave_out_what_has_a_default() -> None:
    assert RecordBook().record(sign_fields(fields_of(record(1))[:12])).record == record(1)


@pytest.mark.parametrize("place", [0, 1, SIGNATURE_BYTES - 1, SIGNATURE_BYTES, -1])
def test_a_flipped_bit_anywhere_is_refused(place: int) -> None:
    flipped = bytearray(signed(1).signed)
    flipped[place] ^= 1
    assert refusal(bytes(flipped)).startswith("record_")


def test_what_another_signed_in_my_name_is_refused() -> None:
    body = msgspec.msgpack.encode(record(2))
    assert refusal(sign(body)) == "record_signature"
    assert refusal(sign_fields(fields_of(entry("guest", 2))), of_entry=True) == "record_signature"


def test_a_record_is_no_entry_and_an_entry_no_record() -> None:
    assert refusal(signed(1).signed, of_entry=True) == "record_malformed"
    assert refusal(signed_entry("guest", 1).signed) == "record_malformed"


@pytest.mark.parametrize(
    ("signed_bytes", "why"),
    [
        (b"", "record_size"),
        (bytes(SIGNATURE_BYTES), "record_size"),
        (sign(bytes(limits.RECORD_MAX + 1)), "record_size"),
        (sign(bytes(limits.RECORD_MAX)), "record_malformed"),
        (sign(b"\xc1"), "record_malformed"),
        (sign_fields(fields_of(record(1))[:11]), "record_malformed"),
        (sign(msgspec.msgpack.encode(record(1)) + b"\x00"), "record_malformed"),
        (sign(b"\x91" * 1000), "record_malformed"),
        (sign(b"\xdd\xff\xff\xff\xff"), "record_malformed"),
        (sign(b"\x9c\xc4\x01\xff" + b"\xd9\x01\xff" * 11), "record_malformed"),
    ],
)
def test_bytes_that_are_no_record_are_refused(signed_bytes: bytes, why: str) -> None:
    assert refusal(signed_bytes) == why


def test_an_oversized_entry_is_refused() -> None:
    body = msgspec.msgpack.encode([*fields_of(entry("guest", 1)), bytes(limits.ENTRY_MAX)])
    assert refusal(sign(body), of_entry=True) == "record_size"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_record_error(data: bytes) -> None:
    for body in (data, sign(data)):
        refusal(body)
        refusal(body, of_entry=True)


# --- fields out of range --------------------------------------------------------

CONTROL = "bell\a"
OUT_OF_RANGE = itertools.count(1)


def first_key(changed: dict[str, Any]) -> str:
    """A name for one row of a table, different for each."""
    return f"{next(iter(changed))}-{next(OUT_OF_RANGE)}"


@pytest.mark.parametrize(
    "changed",
    [
        {"id": b"\x01" * 31},
        {"noise_key": b""},
        {"noise_key": b"\x01" * 33},
        {"life": Life(-1, 0, 0)},
        {"life": Life(2**48, 0, 0)},
        {"life": Life(0, 2**48, 0)},
        {"life": Life(0, -1, 0)},
        {"life": Life(0, 0, 2**32)},
        {"life": Life(0, 0, -1)},
        {"incarnation": -1},
        {"incarnation": limits.INCARNATION_MAX + 1},
        {"revision": -1},
        {"revision": 2**63},
        {"state": State.FAILED},
        {"addresses": tuple(f"10.0.0.{n}:1" for n in range(limits.ADDRESSES_MAX + 1))},
        {"addresses": ("",)},
        {"addresses": ("host:8078",)},
        {"addresses": ("10.0.0.1:0",)},
        {"name": ""},
        {"name": "n" * (limits.NAME_MAX + 1)},
        {"name": "é" * 33},
        {"name": CONTROL},
        {"preset": "wan"},
        {"versions": (0, 1)},
        {"versions": (2, 1)},
        {"versions": (1, 2**16)},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 2**63},
        {"agent": agent(1, instance_id="")},
        {"agent": agent(1, instance_id="i" * (limits.INSTANCE_ID_MAX + 1))},
        {"agent": agent(1, instance_id=CONTROL)},
        {"agent": agent(1, capabilities=("",))},
        {"agent": agent(1, capabilities=("c" * (limits.LABEL_MAX + 1),))},
        {"agent": agent(1, capabilities=(CONTROL,))},
        {"agent": agent(1, capabilities=("c",) * (limits.LABELS_MAX + 1))},
        {"agent": agent(1, profiles=("",))},
        {"agent": agent(1, profiles=("p",) * (limits.LABELS_MAX + 1))},
        {"agent": agent(1, hostname="h" * 256)},
        {"agent": agent(1, hostname=CONTROL)},
        {"agent": agent(1, http_port=-1)},
        {"agent": agent(1, http_port=65_536)},
        {"agent": agent(1, created_at=-1)},
        {"agent": agent(1, created_at=2**63)},
    ],
    ids=first_key,
)
def test_a_record_with_a_field_out_of_range_is_refused(changed: dict[str, Any]) -> None:
    assert refusal(sign_fields(fields_of(record(1, **changed)))) == "record_values"


@pytest.mark.parametrize(
    "changed",
    [
        {"instance_id": ""},
        {"instance_id": CONTROL},
        {"instance_id": "i" * (limits.INSTANCE_ID_MAX + 1)},
        {"life": Life(2**48, 0, 0)},
        {"home": b"\x01" * 31},
        {"home_life": Life(-1, 0, 0)},
        {"term": -1},
        {"term": 2**63},
        {"revision": -1},
        {"revision": 2**63},
        {"hostname": "h" * 256},
        {"hostname": CONTROL},
        {"port": -1},
        {"port": 65_536},
        {"capabilities": ("",)},
        {"capabilities": ("c",) * (limits.LABELS_MAX + 1)},
        {"profiles": (CONTROL,)},
        {"profiles": ("p" * (limits.LABEL_MAX + 1),)},
        {"created_at": -1},
        {"created_at": 2**63},
    ],
    ids=first_key,
)
def test_an_entry_with_a_field_out_of_range_is_refused(changed: dict[str, Any]) -> None:
    made = sign_fields(fields_of(entry("guest", 1, **changed)))
    assert refusal(made, of_entry=True) == "entry_values"


@pytest.mark.parametrize("value", [1.5, "1", None, True, [1], 2**64 - 1])
def test_a_number_of_another_type_or_size_is_refused(value: object) -> None:
    for place in (3, 4, 5):  # incarnation, revision, state
        fields = fields_of(record(1))
        fields[place] = value
        assert refusal(sign_fields(fields)) in ("record_malformed", "record_values")


def test_the_ends_of_every_range_are_taken() -> None:
    most = record(
        1,
        Life(2**48 - 1, 2**48 - 1, 2**32 - 1),
        incarnation=limits.INCARNATION_MAX,
        revision=2**63 - 1,
        addresses=tuple(f"10.0.0.{n}:65535" for n in range(limits.ADDRESSES_MAX)),
        name="é" * 32,
        versions=(1, 2**16 - 1),
        epoch=2**63 - 1,
        agent=agent(
            1,
            instance_id="i" * limits.INSTANCE_ID_MAX,
            capabilities=("c",) * limits.LABELS_MAX,
            profiles=("p" * limits.LABEL_MAX,),
            http_port=65_535,
            created_at=2**63 - 1,
        ),
    )
    least = record(1, Life(0, 0, 0), state=State.LEFT, addresses=(), name="n", epoch=1, agent=None)
    for made in (most, least, record(1, None)):
        assert RecordBook().record(Signer((1).to_bytes(32)).record(made).signed).record == made


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("10.0.0.1:8078", True),
        ("10.0.0.1:65535", True),
        ("[2001:db8::1]:8078", True),
        ("[::1]:1", True),
        ("10.0.0.1", False),
        ("10.0.0.1:", False),
        ("10.0.0.1:0", False),
        ("10.0.0.1:65536", False),
        ("10.0.0.1:000001", False),
        ("10.0.0.1:+1", False),
        ("10.0.0.1:１", False),
        ("10.0.0:1", False),
        ("10.0.0.01:1", False),
        ("2001:db8::1:8078", False),
        ("[fe80::1%eth0]:8078", False),
        ("[10.0.0.1]:8078", False),
        ("[]:1", False),
        ("localhost:8078", False),
        (" 10.0.0.1:1", False),
        ("", False),
        (":", False),
    ],
)
def test_an_address_is_numbers_and_a_port(address: str, is_one: bool) -> None:
    assert is_address(address) is is_one


@pytest.mark.parametrize("text", ["\x00", "a\nb", "\x7f", "\x85", "", "x" * 129, "é" * 65])
def test_an_instance_id_is_short_text_without_control_characters(text: str) -> None:
    assert not is_instance_id(text)
    assert is_instance_id("é" * 64)


def test_a_life_in_the_far_future_is_not_plausible() -> None:
    assert is_plausible(Life(2**48 - 1, 0, 0))
    assert not is_plausible(Life(2**48, 0, 0))


# --- one's own ------------------------------------------------------------------


def test_a_record_that_would_outgrow_its_bound_is_a_mistake_in_the_configuration() -> None:
    check_own(record(1))
    labels = tuple(f"{number:02}" + "c" * 22 for number in range(limits.LABELS_MAX))
    with pytest.raises(ConfigError, match="bytes shorter"):
        check_own(record(1, None, agent=agent(1, capabilities=labels)))
    with pytest.raises(ConfigError, match="no other node"):
        check_own(record(1, None, name=CONTROL))


def test_what_passes_at_the_start_fits_for_ever() -> None:
    passed = 0
    for length in range(500, 800):
        labels = tuple("c" * min(60, length - at) for at in range(0, length, 60))
        own = record(1, None, agent=agent(1, capabilities=labels), addresses=())
        try:
            check_own(own)
        except ConfigError:
            continue
        passed += 1
        grown = msgspec.structs.replace(
            own,
            life=Life(2**48 - 1, 2**48 - 1, 2**32 - 1),
            incarnation=limits.INCARNATION_MAX,
            revision=2**63 - 1,
            epoch=2**63 - 1,
            addresses=("[2001:0db8:0000:0000:0000:0000:0000:0001]:65535",) * limits.ADDRESSES_MAX,
        )
        RecordBook().record(Signer((1).to_bytes(32)).record(grown).signed)
    assert 0 < passed < 300


# --- versions -------------------------------------------------------------------

VERSIONS = [
    signed(1, 1),
    signed(1, 1, revision=1),
    signed(1, 1, state=State.LEFT),
    signed(1, 1, incarnation=1),
    signed(1, 1, incarnation=1, revision=3),
    signed(1, 1, incarnation=1, state=State.LEFT),
    signed(1, 2),
]


def test_life_beats_incarnation_beats_state_beats_revision() -> None:
    versions = [made.version for made in VERSIONS]
    assert versions == sorted(versions)
    assert len(set(versions)) == len(versions)
    failed = [Version(v.life, v.incarnation, State.FAILED, 0) for v in versions]
    assert versions[1] < failed[1] < versions[2]  # alive < failed < left


def test_a_goodbye_is_one_version_whatever_its_revision() -> None:
    one, other = (signed(1, state=State.LEFT, revision=revision) for revision in (3, 4))
    assert one.version == other.version
    assert one.version_hash == other.version_hash


def test_a_guests_home_is_the_highest_term_then_id() -> None:
    def of(term: int, home: int, born: int, revision: int) -> EntryVersion:
        return signed_entry("guest", home, born, term=term, revision=revision).version

    assert of(2, 1, 1, 0) > of(1, 2, 9, 9)
    assert (of(1, 1, 1, 0) < of(1, 2, 1, 0)) is (node_id(1) < node_id(2))
    assert of(1, 1, 2, 0) > of(1, 1, 1, 9)
    assert of(1, 1, 1, 1) > of(1, 1, 1, 0)


def test_equal_claims_have_equal_hashes_and_no_others() -> None:
    hashes = {made.version_hash for made in VERSIONS} | {signed(2, 1).version_hash}
    assert len(hashes) == len(VERSIONS) + 1
    assert version_hash(node_id(1), VERSIONS[0].version) == VERSIONS[0].version_hash


def test_the_least_seniority_is_the_oldest() -> None:
    first, second = sorted((signed(1, 4), signed(2, 4)), key=lambda made: made.id)
    older = signed(3, 3)
    assert older.seniority < first.seniority < second.seniority
    assert older.seniority == (life(3), node_id(3))


# --- the book -------------------------------------------------------------------


def test_the_same_bytes_are_one_object() -> None:
    book = RecordBook()
    mine = signed(1)
    assert book.remember(mine) is mine
    assert book.record(mine.signed) is mine
    copy = SignedRecord(mine.record, mine.signed)
    assert book.remember(copy) is mine
    assert book.by_item(mine.item) is mine
    assert book.by_item(signed(2).item) is None
    assert book.entry(signed_entry("g", 1).signed) is book.entry(signed_entry("g", 1).signed)


def test_the_book_keeps_what_is_asked_for_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pmesh.protocol.records._RECORDS_KEPT", 4)
    book = RecordBook()
    kept = book.record(signed(1).signed)
    for revision in range(1, 40):
        book.record(signed(1, revision=revision).signed)
        assert book.record(kept.signed) is kept
        assert book.by_item(kept.item) is kept
        for memo in (book._records, book._by_item):
            assert len(memo._new) + len(memo._old) <= 8
    assert book.by_item(signed(1, revision=2).item) is None


def test_what_was_refused_is_not_remembered() -> None:
    book = RecordBook()
    forged = sign_fields(fields_of(record(2)))
    for _ in range(2):
        with pytest.raises(RecordError):
            book.record(forged)
