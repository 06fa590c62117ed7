"""Every message that travels on a link, as typed MessagePack.

A message is a msgspec struct in array form whose first element is its tag.
**Only append**: tags are never reused, fields are added at the end with a
default.  A decoder ignores trailing fields it does not know; a message whose
tag it does not know is counted and skipped (`decode` returns None).

Records, entries and news items are carried as bytes inside their messages so
that they are forwarded as they were signed, whatever version wrote them.
"""

from __future__ import annotations

import msgspec

from p2pmesh.protocol.types import Envelope, Life, NodeId


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


# --- session -----------------------------------------------------------------


class Hello(Message, frozen=True, array_like=True, tag=1):
    """The first message of both ends after the handshake."""

    record: bytes  # signed; its life is null before the node is stamped
    versions: tuple[int, int]  # protocol versions spoken, lowest and highest
    process: bytes  # nonce of the sender's process
    wall: int  # sender's unix ms
    uptime: int  # ms since the sender started
    highest: Life | None = None  # the highest stamp the sender knows
    check: bool = False  # only asks whether I live; replaces no link
    replaces: bytes | None = None  # handshake hash of a link that is dead to the sender


class CloseReason(Message, frozen=True, array_like=True, tag=2):
    """Said before every orderly end of a link."""

    reason: str


class Heartbeat(Message, frozen=True, array_like=True, tag=3):
    view: bytes  # 8 bytes: XOR of the hashes of all held versions
    epoch: int  # highest seen, 0: none
    flags: int  # HEARTBEAT_* below


HEARTBEAT_RING = 1  # the sender's rings say this is a ring link
HEARTBEAT_LEADS = 2  # the sender holds an authoritative claim


class Ping(Message, frozen=True, array_like=True, tag=4):
    n: int


class Pong(Message, frozen=True, array_like=True, tag=5):
    n: int


class Restamp(Message, frozen=True, array_like=True, tag=6):
    """Your life was stamped by a clock before 2024, mine was not: join anew."""

    highest: Life
    wall: int


# --- gossip ------------------------------------------------------------------


class News(Message, frozen=True, array_like=True, tag=7):
    """Changes, flooded: each item is passed on once by whoever it is new to."""

    items: tuple[bytes, ...]


class Buckets(Message, frozen=True, array_like=True, tag=8):
    """Opens a repair: 32 hashes (8 bytes each) of what the sender holds."""

    hashes: bytes


class Digest(Message, frozen=True, array_like=True, tag=9):
    """What the sender holds in buckets that differ."""

    mask: int  # bit i: bucket i is listed
    held: bytes  # (8 bytes subject hash, 8 bytes version hash)*


class Want(Message, frozen=True, array_like=True, tag=10):
    subjects: bytes  # (8 bytes subject hash)*; empty: everything (a joiner's snapshot)


class Offer(Message, frozen=True, array_like=True, tag=11):
    """Items that the receiver lacks; ``last`` ends a snapshot."""

    items: tuple[bytes, ...]
    snapshot: bool = False
    last: bool = True


class Chunk(Message, frozen=True, array_like=True, tag=12):
    """A piece of one encoded message larger than ``CHUNK_MAX``, in order."""

    transfer: int
    last: bool
    data: bytes


# --- news items (inside News and Offer, each encoded on its own) --------------


class RecordItem(Message, frozen=True, array_like=True, tag=40):
    """A node's signed record, verbatim; alive or left."""

    signed: bytes


class EntryItem(Message, frozen=True, array_like=True, tag=41):
    """A guest's entry, signed by its home, verbatim."""

    signed: bytes


class Verdict(Message, frozen=True, array_like=True, tag=42):
    """A life was detected as failed.  Also its tombstone in repairs."""

    subject: NodeId
    life: Life
    incarnation: int
    age: int  # ms since it was passed
    evidence: str
    accusers: tuple[NodeId, ...] = ()


class Question(Message, frozen=True, array_like=True, tag=43):
    """Is the subject gone?  It answers with a higher incarnation."""

    subject: NodeId
    life: Life
    incarnation: int
    evidence: str
    accuser: NodeId
    number: int  # the accuser's count of questions
    runs: int  # ms until it stands unanswered
    tombstone: bool = False  # asks about a verdict that was not applied


class Vouch(Message, frozen=True, array_like=True, tag=44):
    """The voucher hears the subject."""

    subject: NodeId
    life: Life
    incarnation: int
    voucher: NodeId
    number: int  # the voucher's count of vouches
    answers: tuple[tuple[NodeId, int], ...]  # questions: accuser, number


class Stall(Message, frozen=True, array_like=True, tag=45):
    """A monitor's flag: the subject's kernel answers, its process does not."""

    subject: NodeId
    life: Life
    monitor: NodeId
    number: int  # the monitor's count; a higher one replaces
    stalled: bool


# --- messages between instances ------------------------------------------------


class Post(Message, frozen=True, array_like=True, tag=60):
    """One numbered message of a stream, to the recipient's home."""

    stream: bytes  # 8 bytes, random, kept with the outbox
    seq: int
    prev: int  # next lower number that the sender still holds, 0: none
    ttl: int  # ms that remain
    recipient: str  # instance id
    envelope: Envelope


class Receipt(Message, frozen=True, array_like=True, tag=61):
    """All numbers of the stream up to the watermark are stored (or refused)."""

    stream: bytes
    watermark: int


class Done(Message, frozen=True, array_like=True, tag=62):
    """Messages of a stream that ended at the recipient."""

    stream: bytes
    ended: tuple[tuple[int, str, str], ...]  # seq, "done" | "dead" | "expired", reason


class DoneReceipt(Message, frozen=True, array_like=True, tag=63):
    """The sender has recorded these ends; the home may forget them."""

    stream: bytes
    seqs: tuple[int, ...]


class Ask(Message, frozen=True, array_like=True, tag=64):
    """A request: not stored, its Answer is its receipt."""

    request: int
    recipient: str
    timeout: int  # ms that remain
    envelope: Envelope


class Answer(Message, frozen=True, array_like=True, tag=65):
    request: int
    envelope: Envelope | None
    error: str = ""
    detail: str = ""


class Cancel(Message, frozen=True, array_like=True, tag=66):
    request: int


class Cast(Message, frozen=True, array_like=True, tag=67):
    """One broadcast of the root's stream of broadcasts."""

    root: NodeId
    stream: bytes
    seq: int
    direct: bool  # a repair: do not pass on, receipt straight to the root
    ttl: int
    born_below: Life  # only for instances with a life at or below this
    envelope: Envelope


class CastReceipt(Message, frozen=True, array_like=True, tag=68):
    """Homes below (and at) the sender that took a broadcast."""

    stream: bytes
    seq: int
    homes: tuple[NodeId, ...]
    delivered: tuple[str, ...]  # instance ids
    refused: tuple[tuple[str, str], ...] = ()  # instance id, reason


class Relay(Message, frozen=True, array_like=True, tag=69):
    """Pass ``message`` on to a node you have a link to; at most one hop.

    On the second hop ``to`` is the receiver and ``origin`` who sent it first.
    """

    to: NodeId
    origin: NodeId
    message: bytes


class Call(Message, frozen=True, array_like=True, tag=70):
    """A registry call about a guest, forwarded to its home."""

    call: int
    operation: str  # "register" | "heartbeat" | "deregister" | "read" | "ack"
    instance_id: str
    body: bytes  # MessagePack of the operation's arguments


class CallResult(Message, frozen=True, array_like=True, tag=71):
    call: int
    status: str  # as types.CallEnded
    body: bytes = b""
