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
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from p2pmesh.errors import ConfigError
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.timing import PRESETS
from p2pmesh.protocol.types import Agent, GuestEntry, Life, NodeId, State

SIGNATURE_BYTES: Final = 64
#: Verified records and entries that are kept, by generation (two are).
_RECORDS_KEPT: Final = limits.MEMBERS_MAX
_ENTRIES_KEPT: Final = 1024
_SAID_KEPT: Final = 1024
_INT64: Final = 2**63
_LONGEST_ADDRESS: Final = "[2001:0db8:0000:0000:0000:0000:0000:0001]:65535"


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
    """A verified record with the bytes that carry it, and what is asked of it most.
    Shared, never changed."""

    __slots__ = (
        "id", "instance_id", "is_alive", "is_candidate", "item", "record", "seniority", "signed",
        "subject", "version", "version_hash",
    )  # fmt: skip

    def __init__(self, record: Record, signed: bytes) -> None:
        life = record.life or Life(0, 0, 0)
        revision = 0 if record.state is State.LEFT else record.revision
        self.record = record
        self.signed = signed
        self.id: NodeId = record.id
        #: Of its own agent; None: an observer.
        self.instance_id = record.agent.instance_id if record.agent is not None else None
        self.is_alive = record.state is State.ALIVE
        #: May it lead?  Candidates are nodes with an agent that did not opt out.
        self.is_candidate = self.is_alive and record.candidate and record.agent is not None
        #: Total order of ages: the least is the oldest.
        self.seniority: tuple[Life, NodeId] = (life, record.id)
        self.version = Version(life, record.incarnation, record.state, revision)
        self.subject = subject_hash(record.id)
        self.version_hash = version_hash(record.id, self.version)
        self.item = _ENCODER.encode(wire.RecordItem(signed))


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


def claim_mark(life: Life, node: NodeId) -> int:
    """32 bits that stand for who claimed leadership; never 0."""
    body = _ENCODER.encode((node, life))
    return int.from_bytes(blake2b(body, digest_size=4, person=b"p2pmesh-claim").digest()) or 1


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
        self._records: Memo[SignedRecord] = Memo(_RECORDS_KEPT)
        self._by_item: Memo[SignedRecord] = Memo(_RECORDS_KEPT)
        self._entries: Memo[SignedEntry] = Memo(_ENTRIES_KEPT)
        #: Questions, their answers and verdicts, by the news item that carries them: a
        #: flood brings each over every link.
        self.said: Memo[wire.Question | wire.Vouch | wire.Stall | wire.Verdict] = Memo(_SAID_KEPT)
        #: A record that is known already, by the news item that carries it: most of what
        #: a flood brings is known.
        self.by_item = self._by_item.get

    def record(self, signed: bytes) -> SignedRecord:
        """The record in these bytes.  Raises RecordError."""
        known = self._records.get(signed)
        if known is None:
            record = _decode(_RECORDS, signed, limits.RECORD_MAX)
            _check_record(record)
            _verify(signed, record.id)
            known = SignedRecord(record, signed)
        return self.remember(known)

    def entry(self, signed: bytes) -> SignedEntry:
        """The guest entry in these bytes.  Raises RecordError."""
        known = self._entries.get(signed)
        if known is not None:
            return known
        entry = _decode(_ENTRIES, signed, limits.ENTRY_MAX)
        _check_entry(entry)
        _verify(signed, entry.home)
        made = SignedEntry(entry, signed)
        self._entries.put(signed, made)
        return made

    def remember(self, record: SignedRecord) -> SignedRecord:
        """Keep a record that was just signed here, so that it is one object."""
        known = self._records.get(record.signed)
        if known is None:
            known = record
            self._records.put(record.signed, record)
        self._by_item.put(known.item, known)
        return known


_T = TypeVar("_T")


class Memo(Generic[_T]):
    """What was asked for lately: at least ``most`` of it, at most twice that."""

    __slots__ = ("_most", "_new", "_old")

    def __init__(self, most: int) -> None:
        self._most = most
        self._new: dict[bytes, _T] = {}
        self._old: dict[bytes, _T] = {}

    def get(self, key: bytes) -> _T | None:
        found = self._new.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: bytes, value: _T) -> None:
        if len(self._new) >= self._most:
            self._old, self._new = self._new, {}
        self._new[key] = value


_ENCODER: Final = msgspec.msgpack.Encoder()
_RECORDS: Final = msgspec.msgpack.Decoder(Record)
_ENTRIES: Final = msgspec.msgpack.Decoder(GuestEntry)


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


def check_own(record: Record) -> None:
    """Will every record of this node be taken by the others, whatever its numbers
    come to be?  Raises ConfigError: nobody would see a node whose records are not."""
    size = _grown_size(record)
    if size > limits.RECORD_MAX:
        raise ConfigError(
            f"what a node says of itself (name, instance id, hostname, capabilities, "
            f"profiles) may come to {size} bytes here, {limits.RECORD_MAX} are carried: "
            f"make it {size - limits.RECORD_MAX} bytes shorter"
        )
    try:
        _check_record(record)
    except RecordError:
        raise ConfigError(f"no other node would take this record: {record}") from None


def fits(record: Record) -> bool:
    """May this node say so much, whatever the numbers of its record come to be?"""
    return _grown_size(record) <= limits.RECORD_MAX


def _grown_size(record: Record) -> int:
    grown = msgspec.structs.replace(
        record,
        life=Life(2**48 - 1, 2**48 - 1, 2**32 - 1),
        incarnation=limits.INCARNATION_MAX,
        revision=_INT64 - 1,
        addresses=(_LONGEST_ADDRESS,) * limits.ADDRESSES_MAX,
        epoch=_INT64 - 1,
    )
    return len(_ENCODER.encode(grown))


def _check_record(record: Record) -> None:
    ok = (
        len(record.id) == 32
        and len(record.noise_key) == 32
        and (record.life is None or is_plausible(record.life))
        and 0 <= record.incarnation <= limits.INCARNATION_MAX
        and 0 <= record.revision < _INT64
        and record.state is not State.FAILED
        and len(record.addresses) <= limits.ADDRESSES_MAX
        and all(map(is_address, record.addresses))
        and _is_text(record.name, limits.NAME_MAX)
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
        and are_labels(agent.capabilities)
        and are_labels(agent.profiles)
        and is_hostname(agent.hostname)
        and 0 <= agent.http_port <= 65_535
        and 0 <= agent.created_at < _INT64
        and (agent.status is None or len(agent.status.encode()) <= limits.STATUS_MAX)
    )


def _check_entry(entry: GuestEntry) -> None:
    ok = (
        is_instance_id(entry.instance_id)
        and len(entry.home) == 32
        and is_plausible(entry.life)
        and is_plausible(entry.home_life)
        and 0 <= entry.term < _INT64
        and 0 <= entry.revision < _INT64
        and is_hostname(entry.hostname)
        and 0 <= entry.port <= 65_535
        and are_labels(entry.capabilities)
        and are_labels(entry.profiles)
        and 0 <= entry.created_at < _INT64
        and (entry.status is None or len(entry.status.encode()) <= limits.STATUS_MAX)
    )
    if not ok:
        raise RecordError("entry_values")


# --- what a field may hold ------------------------------------------------------


def is_instance_id(text: str) -> bool:
    return _is_text(text, limits.INSTANCE_ID_MAX)


def are_labels(labels: tuple[str, ...]) -> bool:
    """Capabilities, or profiles."""
    return len(labels) <= limits.LABELS_MAX and all(
        _is_text(label, limits.LABEL_MAX) for label in labels
    )


def is_hostname(text: str) -> bool:
    """For people: not resolved, and it may be empty."""
    return not text or _is_text(text, limits.HOSTNAME_MAX)


def _is_text(text: str, most: int) -> bool:
    """1 to ``most`` bytes of UTF-8 without control characters."""
    return 0 < len(text.encode("utf-8", "replace")) <= most and not any(
        ord(char) < 32 or 127 <= ord(char) < 160 for char in text
    )


def is_address(text: str) -> bool:
    """``ip:port`` or ``[v6]:port``, numbers only, without a scope."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 2**16):
        return False
    try:
        if host.startswith("[") and host.endswith("]"):
            return IPv6Address(host[1:-1]).scope_id is None
        IPv4Address(host)
    except AddressValueError:
        return False
    return True


def is_plausible(life: Life) -> bool:
    """A life whose numbers are in range (ms up to the year 10,889)."""
    return 0 <= life.ms < 2**48 and 0 <= life.logical < 2**48 and 0 <= life.random < 2**32
