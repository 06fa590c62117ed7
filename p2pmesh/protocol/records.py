"""Signed records: what a node says of itself, and of its guests.

A node owns one record; it is the only writer.  The home of a guest owns that
guest's entry.  The signed bytes (64 bytes Ed25519 signature, then the
MessagePack body) are stored and forwarded verbatim, so fields that a later
version appends survive the journey through older nodes.

``RecordBook`` is where bytes become records: decoded, range-checked, verified,
and kept in a bounded memo so that the same bytes cost once.  A simulator gives
one book to all its nodes, which also makes them share the decoded objects.

Invariant: a ``SignedRecord`` or ``SignedEntry`` that exists has been verified.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple, TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.timing import PRESETS
from p2pmesh.protocol.types import Agent, GuestEntry, Life, NodeId, State

SIGNATURE_BYTES: Final = 64
_MEMO_MAX: Final = 16_384
_INT64: Final = 2**63


class RecordError(Exception):
    """The bytes are not a usable record; the argument is the reason (a counter)."""


class Version(NamedTuple):
    """What decides between two claims about one node; compared in this order.

    ``alive < failed < left`` within one incarnation: a verdict beats every
    revision, and only a higher incarnation or life beats a verdict.
    """

    life: Life
    incarnation: int
    state: State
    revision: int


class EntryVersion(NamedTuple):
    """What decides between two claims about one guest."""

    term: int
    home: NodeId
    home_life: Life
    revision: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself."""

    id: NodeId
    noise_key: bytes
    life: Life | None  # None: not stamped yet; never merged into a view
    incarnation: int
    revision: int
    state: State  # ALIVE or LEFT; FAILED is others' word
    addresses: tuple[str, ...]
    name: str
    preset: str
    versions: tuple[int, int]
    agent: Agent | None
    candidate: bool
    epoch: int | None = None  # this node's leadership claim


class SignedRecord:
    """A verified record with the bytes that carry it.  Shared, never changed."""

    __slots__ = ("item", "record", "signed", "subject", "version", "version_hash")

    def __init__(self, record: Record, signed: bytes) -> None:
        life = record.life or Life(0, 0, 0)
        revision = 0 if record.state is State.LEFT else record.revision
        self.record = record
        self.signed = signed
        self.version = Version(life, record.incarnation, record.state, revision)
        self.subject = subject_hash(record.id)
        self.version_hash = version_hash(record.id, self.version)
        self.item = _ENCODER.encode(wire.RecordItem(signed))

    @property
    def id(self) -> NodeId:
        return self.record.id

    @property
    def seniority(self) -> tuple[Life, NodeId]:
        """Total order of ages: the least is the oldest."""
        return self.version.life, self.record.id


class SignedEntry:
    """A verified guest entry with the bytes that carry it."""

    __slots__ = ("entry", "item", "signed", "subject", "version", "version_hash")

    def __init__(self, entry: GuestEntry, signed: bytes) -> None:
        self.entry = entry
        self.signed = signed
        self.version = EntryVersion(entry.term, entry.home, entry.home_life, entry.revision)
        self.subject = subject_hash(entry.instance_id.encode())
        self.version_hash = version_hash(entry.instance_id.encode(), self.version)
        self.item = _ENCODER.encode(wire.EntryItem(signed))


def subject_hash(subject: bytes) -> int:
    """64 bits that stand for a node id or (as UTF-8) a guest's instance id."""
    return int.from_bytes(blake2b(subject, digest_size=8, person=b"p2pmesh-subject").digest())


def version_hash(subject: bytes, version: Version | EntryVersion) -> int:
    """64 bits that stand for one version of one subject."""
    body = _ENCODER.encode((subject, *version))
    return int.from_bytes(blake2b(body, digest_size=8, person=b"p2pmesh-version").digest())


class Signer:
    """Signs with the Ed25519 key of an identity seed (32 bytes)."""

    def __init__(self, seed: bytes) -> None:
        self.node_id, self._secret = bindings.crypto_sign_seed_keypair(seed)

    def record(self, record: Record) -> SignedRecord:
        return SignedRecord(record, self._sign(_ENCODER.encode(record)))

    def entry(self, entry: GuestEntry) -> SignedEntry:
        return SignedEntry(entry, self._sign(_ENCODER.encode(entry)))

    def _sign(self, body: bytes) -> bytes:
        return bindings.crypto_sign(body, self._secret)[:SIGNATURE_BYTES] + body


class RecordBook:
    """Bytes to verified records; the only way from one to the other."""

    def __init__(self) -> None:
        self._records: dict[bytes, SignedRecord] = {}
        self._by_item: dict[bytes, SignedRecord] = {}
        self._entries: dict[bytes, SignedEntry] = {}

    def record(self, signed: bytes) -> SignedRecord:
        """The record in these bytes.  Raises RecordError."""
        known = self._records.get(signed)
        if known is not None:
            return known
        record = _decode(_RECORDS, signed, limits.RECORD_MAX)
        _check_record(record)
        _verify(signed, record.id)
        return self.remember(SignedRecord(record, signed))

    def by_item(self, item: bytes) -> SignedRecord | None:
        """A record that is known already, by the news item that carries it: most of
        what a flood brings is known."""
        return self._by_item.get(item)

    def entry(self, signed: bytes) -> SignedEntry:
        """The guest entry in these bytes.  Raises RecordError."""
        known = self._entries.get(signed)
        if known is not None:
            return known
        entry = _decode(_ENTRIES, signed, limits.ENTRY_MAX)
        _check_entry(entry)
        _verify(signed, entry.home)
        if len(self._entries) >= _MEMO_MAX:
            self._entries.clear()
        made = self._entries[signed] = SignedEntry(entry, signed)
        return made

    def remember(self, record: SignedRecord) -> SignedRecord:
        """Keep a record that was just signed here, so that it is one object."""
        if len(self._records) >= _MEMO_MAX:
            self._records.clear()
            self._by_item.clear()
        self._by_item[record.item] = record
        return self._records.setdefault(record.signed, record)


_ENCODER: Final = msgspec.msgpack.Encoder()
_RECORDS: Final = msgspec.msgpack.Decoder(Record)
_ENTRIES: Final = msgspec.msgpack.Decoder(GuestEntry)
_T = TypeVar("_T")


def _decode(decoder: msgspec.msgpack.Decoder[_T], signed: bytes, most: int) -> _T:
    if not SIGNATURE_BYTES < len(signed) <= most + SIGNATURE_BYTES:
        raise RecordError("record_size")
    try:
        return decoder.decode(memoryview(signed)[SIGNATURE_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        raise RecordError("record_malformed") from None


def _verify(signed: bytes, key: NodeId) -> None:
    try:
        bindings.crypto_sign_open(signed, key)
    except (CryptoError, ValueError, TypeError):
        raise RecordError("record_signature") from None


def _check_record(record: Record) -> None:
    ok = (
        len(record.id) == 32
        and len(record.noise_key) == 32
        and (record.life is None or is_plausible(record.life))
        and 0 <= record.incarnation <= limits.INCARNATION_MAX
        and 0 <= record.revision < _INT64
        and record.state is not State.FAILED
        and len(record.addresses) <= limits.ADDRESSES_MAX
        and all(0 < len(address) <= 64 for address in record.addresses)
        and 0 < len(record.name) <= limits.NAME_MAX
        and record.preset in PRESETS
        and 0 < record.versions[0] <= record.versions[1] < 2**16
        and (record.epoch is None or 0 < record.epoch < _INT64)
        and (record.agent is None or _is_agent(record.agent))
    )
    if not ok:
        raise RecordError("record_values")


def _is_agent(agent: Agent) -> bool:
    return (
        is_instance_id(agent.instance_id)
        and _are_labels(agent.capabilities)
        and _are_labels(agent.profiles)
        and len(agent.hostname) <= 255
        and 0 <= agent.http_port <= 65_535
        and 0 <= agent.created_at < _INT64
    )


def _check_entry(entry: GuestEntry) -> None:
    ok = (
        is_instance_id(entry.instance_id)
        and len(entry.home) == 32
        and is_plausible(entry.life)
        and is_plausible(entry.home_life)
        and 0 <= entry.term < _INT64
        and 0 <= entry.revision < _INT64
        and len(entry.hostname) <= 255
        and 0 <= entry.port <= 65_535
        and _are_labels(entry.capabilities)
        and _are_labels(entry.profiles)
        and 0 <= entry.created_at < _INT64
    )
    if not ok:
        raise RecordError("entry_values")


def _are_labels(labels: tuple[str, ...]) -> bool:
    return len(labels) <= limits.LABELS_MAX and all(
        0 < len(label.encode("utf-8", "replace")) <= limits.LABEL_MAX for label in labels
    )


def is_instance_id(text: str) -> bool:
    """1 to 128 bytes of UTF-8 without control characters."""
    return 0 < len(text.encode("utf-8", "replace")) <= limits.INSTANCE_ID_MAX and not any(
        ord(char) < 32 or 127 <= ord(char) < 160 for char in text
    )


def is_plausible(life: Life) -> bool:
    """A life whose numbers are in range (ms up to the year 9999)."""
    return 0 <= life.ms < 2**48 and 0 <= life.logical < 2**48 and 0 <= life.random < 2**32
