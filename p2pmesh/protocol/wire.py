"""Every message that travels on a link, as typed MessagePack.

A message is a msgspec struct in array form whose first element is its tag.
**Only append**: tags are never reused, fields are added at the end with a
default.  A decoder ignores trailing fields it does not know; a message whose
tag it does not know is counted and skipped (`decode` returns None).

Records, entries and news items are carried as bytes inside their messages so
that they are forwarded as they were signed, whatever version wrote them.
"""

from __future__ import annotations

from typing import Final, TypeAlias, get_args

import msgspec

from p2pmesh.protocol import limits
from p2pmesh.protocol.payloads import Payload, as_bytes
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
    dial: int = 0  # the sender's count of its dials, this one included; 0: it was dialled


class CloseReason(Message, frozen=True, array_like=True, tag=2):
    """Said before every orderly end of a link."""

    reason: str


class Heartbeat(Message, frozen=True, array_like=True, tag=3):
    view: bytes  # 8 bytes: XOR of the hashes of all held versions
    epoch: int  # highest seen, 0: none
    flags: int  # HEARTBEAT_RING
    claimant: int = 0  # 32 bits that stand for who claimed it, 0: not known


HEARTBEAT_RING = 1  # the sender's rings say this is a ring link


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
    """A piece of one message larger than ``CHUNK_MAX``, in order: of its encoding, or
    of its payload, where the first piece has the rest of it."""

    transfer: int
    last: bool
    data: bytes
    around: bytes = b""  # the message, encoded with an empty payload


class Taken(Message, frozen=True, array_like=True, tag=13):
    """The sender has taken so many bytes of chunks off this link since it is up."""

    size: int


# --- news items (inside News and Offer, each encoded on its own) --------------


class RecordItem(Message, frozen=True, array_like=True, tag=40):
    """A node's signed record, verbatim; alive or left."""

    signed: bytes
    age: int = 0  # ms since it left


class EntryItem(Message, frozen=True, array_like=True, tag=41):
    """A guest's entry, signed by its home, verbatim."""

    signed: bytes
    age: int = 0  # ms since the guest left or failed, or its home was gone


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
    ended: bool = False  # its link to the monitor ended without a goodbye


# --- messages between instances ------------------------------------------------

#: Sequence numbers as inclusive (first, last) pairs, ascending and disjoint.
Ranges: TypeAlias = tuple[tuple[int, int], ...]


class Post(Message, frozen=True, array_like=True, tag=60):
    """One numbered message of a stream, to the recipient's home."""

    stream: bytes  # 8 bytes, random, kept with the outbox
    seq: int
    prev: int  # the next lower number that the sender still holds, 0: none
    ttl: int  # ms that remain
    envelope: Envelope
    recipient: str = ""  # instance id; empty: the envelope's target


RECEIPT_STORED = 0
RECEIPT_AGAIN = 1  # what came does not follow: send again from the watermark on
RECEIPT_FULL = 2  # the mailbox is full: hold the rest until a receipt without this
RECEIPT_NOT_HERE = 3  # the recipient does not live here (any more, or yet)


class Receipt(Message, frozen=True, array_like=True, tag=61):
    """All numbers of the stream up to the watermark are stored, or were."""

    stream: bytes
    watermark: int
    standing: int = RECEIPT_STORED


class Done(Message, frozen=True, array_like=True, tag=62):
    """Numbers of a stream that ended at the recipient."""

    stream: bytes
    done: Ranges
    failed: tuple[tuple[int, str, str], ...] = ()  # seq, "dead" | "expired", reason


class Unsure(Message, frozen=True, array_like=True, tag=63):
    """Which of these, stored with you, have ended?  Answered with Done (and with
    a Receipt, if they are not stored).  The first thing said on a new link."""

    origin: NodeId  # whose stream it is: the sender's, unless it hands over
    stream: bytes
    recipient: str
    stored: Ranges


class Ask(Message, frozen=True, array_like=True, tag=64):
    """A request: not stored, its Answer is its receipt.  Sent again on a new link."""

    request: int
    recipient: str
    timeout: int  # ms that remain; of a streamed answer, for each part
    envelope: Envelope
    window: int = 0  # parts ahead of their reader; 0: the answer is wanted whole
    received: int = 0  # all parts up to this one
    taken: int = 0  # all up to this one, by their reader


class Answer(Message, frozen=True, array_like=True, tag=65):
    request: int
    envelope: Envelope | None  # None without an error: the end of a streamed answer
    error: str = ""  # as types.RequestEnded
    detail: str = ""
    parts: int = 0  # before this end


class Cancel(Message, frozen=True, array_like=True, tag=66):
    """Nobody waits for the answer any more."""

    request: int


class Cast(Message, frozen=True, array_like=True, tag=67):
    """One broadcast of the root's stream of broadcasts."""

    root: NodeId
    stream: bytes
    seq: int
    floor: int  # the root holds no lower number for you: what is below is settled
    direct: bool  # a repair: do not pass on, receipt straight to the root
    ttl: int
    born_below: Life  # only for instances with a life at or below this
    envelope: Envelope


class CastReceipt(Message, frozen=True, array_like=True, tag=68):
    """Homes below (and at) the sender that took a broadcast."""

    root: NodeId
    stream: bytes
    seq: int
    homes: tuple[NodeId, ...]
    delivered: tuple[str, ...]  # instance ids
    refused: tuple[tuple[str, str], ...] = ()  # instance id, reason
    last: bool = True  # False: the sender still waits for homes below it


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
    operation: str  # with its body: see the structs below
    instance_id: str
    body: bytes = b""


class CallResult(Message, frozen=True, array_like=True, tag=71):
    """Answers a call; a read that waits is answered twice."""

    call: int
    status: str  # as types.CallEnded, "elsewhere": not at this node, or "waiting": nothing yet
    body: bytes = b""  # of "read": Letters


class Handed(Message, frozen=True, array_like=True, tag=72):
    """A Post that the recipient's former home hands over, for its origin's stream.

    Without an envelope it ends the hand-over: everything of the stream up to
    ``seq`` was stored at the former home, and ended there unless ``held`` names it.
    """

    origin: NodeId
    stream: bytes
    seq: int
    prev: int
    ttl: int
    recipient: str
    envelope: Envelope | None
    held: Ranges = ()


class RelayRefused(Message, frozen=True, array_like=True, tag=73):
    """No link to that node here: try another way."""

    to: NodeId


class CallCancel(Message, frozen=True, array_like=True, tag=74):
    """Nobody waits for the result of this call any more."""

    call: int


class Part(Message, frozen=True, array_like=True, tag=75):
    """One part of a streamed answer."""

    request: int
    number: int  # from 1
    payload: Payload


class Credit(Message, frozen=True, array_like=True, tag=76):
    """How far the asker of a streamed answer is, as in Ask."""

    request: int
    received: int
    taken: int
    again: bool = False  # what was said behind ``received`` may be lost


# Bodies of Call, by operation ("deregister" has none, "respond" an Envelope: a
# guest's Response, which its home passes on to who asked).


class RegisterBody(msgspec.Struct, frozen=True, array_like=True):
    hostname: str
    port: int
    capabilities: tuple[str, ...]
    profiles: tuple[str, ...]


class HeartbeatBody(msgspec.Struct, frozen=True, array_like=True):
    status: str
    metrics: bytes | None


class ReadBody(msgspec.Struct, frozen=True, array_like=True):
    limit: int  # 0: no limit but the answer's size
    wait: int = 0  # ms, for mail to come if there is none


class AckBody(msgspec.Struct, frozen=True, array_like=True):
    message_ids: tuple[str, ...]


class Letters(msgspec.Struct, frozen=True, array_like=True):
    """Messages as they lie in a mailbox, each with the node that accepted it."""

    messages: tuple[Envelope, ...]
    vias: tuple[NodeId, ...]


MessagePlane: TypeAlias = (
    Post | Receipt | Done | Unsure | Ask | Answer | Cancel | Cast | CastReceipt | Relay
    | Call | CallResult | Handed | RelayRefused | CallCancel | Part | Credit
)  # fmt: skip
#: What the core's door passes to the post office.
MESSAGE_PLANE: Final = get_args(MessagePlane)


# --- bytes to messages and back -------------------------------------------------

AnyMessage: TypeAlias = (
    Hello | CloseReason | Heartbeat | Ping | Pong | Restamp | News | Buckets | Digest | Want
    | Offer | Chunk | Taken | MessagePlane
)  # fmt: skip

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=as_bytes)
_DECODER: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)
_TAG: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_KNOWN_TAGS: Final = frozenset(kind.__struct_config__.tag for kind in get_args(AnyMessage))

encode = _ENCODER.encode


def payload_of(message: Message) -> Payload:
    """What a message carries for others, as it lies in memory; empty: nothing."""
    envelope = getattr(message, "envelope", None)
    if envelope is not None:
        payload: Payload = envelope.payload
        return payload
    match message:
        case Relay():
            return message.message
        case Call() | CallResult():
            return message.body
        case Part():
            return message.payload
    return b""


def carrying(message: Message, payload: Payload) -> Message:
    """The message with another payload.  Raises Malformed for one that carries none."""
    replace = msgspec.structs.replace
    match message:
        case Relay():
            return replace(message, message=bytes(payload))
        case Call() | CallResult():
            return replace(message, body=bytes(payload))
        case Part():
            return replace(message, payload=payload)
        case Post() | Ask() | Answer() | Cast() | Handed() if message.envelope is not None:
            return replace(message, envelope=replace(message.envelope, payload=payload))
    raise Malformed


class Malformed(Exception):
    """Not a message of this protocol: its sender is broken or hostile."""


def decode(data: bytes) -> AnyMessage | None:
    """One message; None when its tag is not known here.  Raises Malformed."""
    if len(data) > limits.FRAME_MAX:  # before anything is made of it
        tag = _tag(data)
        if tag not in _KNOWN_TAGS:
            return None
        if len(data) > _LARGEST.get(tag, 0):
            raise Malformed
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        if _is_unknown(data):
            return None
        raise Malformed from None


#: The kinds that may be larger than a frame, and the most that each may be: a
#: message of many small parts takes many times its size when it is decoded.
_LARGEST: Final = {
    **dict.fromkeys(
        (
            kind.__struct_config__.tag
            for kind in (Post, Ask, Answer, Cast, Relay, Call, CallResult, Handed, Part)
        ),
        limits.LARGE_MESSAGE_MAX,
    ),
    Done.__struct_config__.tag: limits.RECEIPT_BYTES_MAX,
    CastReceipt.__struct_config__.tag: limits.RECEIPT_BYTES_MAX,
    Digest.__struct_config__.tag: 16 * limits.CLAIMS_MAX + 64,
    Want.__struct_config__.tag: 8 * limits.CLAIMS_MAX + 64,
}


def _tag(data: bytes) -> int | None:
    """The tag of a message, without decoding it."""
    match data[0]:
        case head if 0x90 < head <= 0x9F:
            tag = data[1]
        case 0xDC:
            tag = data[3]
        case _:
            return None
    return tag if tag < 0x80 else None


def _is_unknown(data: bytes) -> bool:
    """Is this a well-formed array whose first element is a tag not known here?"""
    try:
        fields = _TAG.decode(data)
        tag = msgspec.msgpack.decode(fields[0]) if fields else None
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return False
    return type(tag) is int and tag not in _KNOWN_TAGS
