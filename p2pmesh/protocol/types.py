"""The values that cross the core's door, and those its parts share.

Everything here is immutable.  Inputs and results of the door are described at
:class:`p2pmesh.protocol.mesh.Mesh`; the structs below are what goes in
(``Candidate``, ``DialOutcome``, ``Restored``), what comes out as an *action*
(something the node must do) and what comes out as an *event* (something the
user may want to know).  Members, events and messages encode to the JSON shapes
of ``docs/interfaces.md`` by msgspec as they stand.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from p2pmesh.protocol.payloads import Payload

NodeId: TypeAlias = bytes  # 32 bytes: an Ed25519 public key; hex where people see it


class Instant(NamedTuple):
    """One moment, as the caller's clocks show it."""

    now: float  # seconds, monotonic, counting sleep
    wall: int  # unix milliseconds


class Life(NamedTuple):
    """The stamp of one run of a node.  Order of lives is seniority."""

    ms: int
    logical: int
    random: int

    def __str__(self) -> str:
        return f"{self.ms}.{self.logical}.{self.random}"


class State(IntEnum):
    """What is agreed about a life.  The order is the precedence within one
    incarnation: a verdict beats every revision."""

    ALIVE = 0
    FAILED = 1
    LEFT = 2


class Evidence(StrEnum):
    """What a monitor's dial said about a silent peer."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    STALLED = "stalled"


class DialOutcome(StrEnum):
    """Why a dial brought no link.  An opened connection is ``link_opened``."""

    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # ENETUNREACH, EHOSTUNREACH
    LOCAL_ERROR = "local_error"  # EMFILE, ENOBUFS, EADDRNOTAVAIL, EPERM: says nothing


class FoundBy(StrEnum):
    """Where an address was learned."""

    MDNS = "mdns"
    PEER = "peer"
    RUNTIME = "runtime"
    GOSSIP = "gossip"
    INBOUND = "inbound"


class Candidate(NamedTuple):
    """Addresses that discovery offers; not a member until it proved itself."""

    key: str  # names this offer in candidate_lost(): "mdns:<service>", "peer:<host:port>"
    addresses: tuple[str, ...]  # "ip:port" or "[v6]:port"
    found_by: FoundBy
    node_id: NodeId | None = None  # what the offer claims; never trusted


class Agent(msgspec.Struct, frozen=True, array_like=True):
    """What a node's record says of the agent that embeds it."""

    instance_id: str
    capabilities: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    hostname: str = ""
    http_port: int = 0  # 0: HTTP off
    created_at: int = 0  # unix microseconds, for display
    persistent: bool = False  # a data dir: the identity comes back after `left`
    status: str | None = None  # its own word
    metrics: bytes | None = None  # MessagePack


class Table(StrEnum):
    """What a row of the store is about.  Only append to this list: the names are on disk."""

    CLOCK = "clock"  # one row: store time
    OUT_STREAMS = "out_streams"  # stream -> recipient and highest number
    OUTBOX = "outbox"  # stream, number -> copy of an accepted message
    WAITING = "waiting"  # message -> accepted, and its name has no holder
    CAST_STREAM = "cast_stream"  # one row: the stream of this node's broadcasts
    CASTS = "casts"  # number -> broadcast of this node
    IN_STREAMS = "in_streams"  # origin, stream -> recipient and watermark
    ENDS = "ends"  # origin, stream, number -> how it ended, if it was not done
    MAILBOX = "mailbox"  # recipient, order -> message not finished
    WINDOWS = "windows"  # root, stream -> which broadcasts were taken
    TAKEN = "taken"  # root, stream, number -> by whom
    GUESTS = "guests"  # instance -> its entry
    ACKS = "acks"  # instance, message -> acknowledged, and its home does not know
    DEAD_LETTERS = "dead_letters"  # message, recipient -> accepted here, and ended dead
    SENT_KEYS = "sent_keys"  # key of a send -> the message that it was accepted as


class SendKey(NamedTuple):
    """What a send is to be known by if it is repeated."""

    key: bytes
    content: bytes  # a digest of all that was asked
    is_broadcast: bool = False


class SentBefore(msgspec.Struct, frozen=True, array_like=True):
    """The message that a send with a key was accepted as."""

    content: bytes
    message_id: str
    recipients: tuple[str, ...]
    is_broadcast: bool


class Row(NamedTuple):
    """What a store kept under a key of a table (a ``Table``)."""

    table: str
    key: bytes
    value: bytes


class Change(NamedTuple):
    """A row to keep, or (``value`` None) to delete."""

    table: str
    key: bytes
    value: bytes | None
    is_moved: bool = False  # deleted because another row of the same save replaces it


class Restored(msgspec.Struct, frozen=True):
    """What a data dir kept of earlier lives of this identity."""

    life: Life | None = None
    epoch: int | None = None
    rows: tuple[Row, ...] = ()
    boot: str = ""  # of which run of the machine Instant.now counts; "": unknown


class MeshConfig(msgspec.Struct, frozen=True):
    """What the core is told once."""

    mesh: str = "default"
    keys: tuple[bytes, ...] = ()  # 32-byte keys, first is offered; empty: open mode
    name: str = "node"
    agent: Agent | None = None  # None: an observer
    candidate: bool = True
    quorum: int | None = None
    preset: str = "lan"
    addresses: tuple[str, ...] = ()  # own link addresses, best first, at most 4
    persistent: bool = False  # claims are persisted before they are told
    null_cipher: bool = False  # simulator above 200 nodes only
    process: bytes = b"\0" * 8  # nonce of this process


class GuestEntry(msgspec.Struct, frozen=True, array_like=True):
    """What the home of a guest says of it, signed by the home.

    Its version is (term, home, home_life, revision): an instance id has one
    home, the highest.
    """

    instance_id: str
    life: Life  # stamped at the first registration, kept by adoption
    home: NodeId
    home_life: Life
    term: int
    revision: int
    state: State
    hostname: str
    port: int
    capabilities: tuple[str, ...]
    profiles: tuple[str, ...]
    created_at: int  # unix microseconds, for display
    status: str | None = None  # its own word, with a heartbeat
    metrics: bytes | None = None  # MessagePack


class Instance(NamedTuple):
    """Where an instance lives, as this node's view has it now."""

    instance_id: str
    name: str
    home: NodeId
    home_life: Life
    life: Life  # its own: seniority
    kind: Literal["node", "guest"]
    state: Literal["alive", "suspect", "failed", "left"]
    persistent: bool  # its identity comes back after `left`


# --- actions: what the node must do ------------------------------------------


class Dial(msgspec.Struct, frozen=True):
    """Open a TCP connection.  Answer with link_opened(…, dial=id) or dial_failed(id)."""

    id: int
    address: str
    timeout: float


class Write(msgspec.Struct, frozen=True):
    link: int
    data: bytes


class Close(msgspec.Struct, frozen=True):
    """Close after what was written is flushed; no link_ended follows."""

    link: int


class AskUnacked(msgspec.Struct, frozen=True):
    """Tell the core, now, how many written bytes the peer's kernel has not
    acknowledged (``kernel_unacked``); nothing where the OS cannot tell."""

    link: int


class Persist(msgspec.Struct, frozen=True):
    """Write durably, then call ``stored(id, ok)``."""

    id: int
    life: Life
    epoch: int | None


class Save(msgspec.Struct, frozen=True):
    """Make these changes durable, all or none, after those of lower numbers; then call
    ``saved(number)``.  ``saved`` of a higher number speaks for this one too."""

    number: int
    changes: tuple[Change, ...]


class Stop(msgspec.Struct, frozen=True):
    """This node must end: a double of its identity is live, or it left."""

    reason: str


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A message as the mesh carries it; the payload is opaque MessagePack."""

    message_id: str  # uuid7 text
    source: str  # instance id; over HTTP the sender's own word
    target: str | None  # instance id; None: a broadcast
    type: str  # a known name, or any other string: a custom type
    payload: Payload
    correlation_id: str | None
    created_at: int  # unix microseconds


class MessageArrived(msgspec.Struct, frozen=True):
    """A message for this node's own agent: start its handler, then call
    ``message_completed``.  Comes again with a higher attempt when that failed."""

    envelope: Envelope
    via: NodeId
    attempt: int


class MessageKept(msgspec.Struct, frozen=True):
    """A message accepted here is on disk: it survives this process."""

    message_id: str


class MessageMayStart(msgspec.Struct, frozen=True):
    """The answer to ``message_started``: it is on record, the handler may run."""

    message_id: str


class MessageWithdrawn(msgspec.Struct, frozen=True):
    """A message that arrived is over (it expired, or was acknowledged through the
    registry): skip it unless its handler runs already."""

    message_id: str


class RequestArrived(msgspec.Struct, frozen=True):
    """A request for this node's own agent: run its handler, then ``respond``."""

    request: int
    envelope: Envelope
    via: NodeId
    timeout: float  # of a streamed answer, for each part
    streams: bool = False  # its answer may come in parts: ``respond_part``


class PartWanted(msgspec.Struct, frozen=True):
    """There is credit again for a streamed answer whose ``respond_part`` said False."""

    request: int


class RequestCancelled(msgspec.Struct, frozen=True):
    """The asker gave up: cancel the handler of this request."""

    request: int


class PartArrived(msgspec.Struct, frozen=True):
    """The next part of a streamed answer: call ``part_taken`` when its reader has it."""

    call: int
    payload: Payload
    via: NodeId


class RequestEnded(msgspec.Struct, frozen=True):
    """The end of a request that this node's caller made.

    ``answer`` is the Response (a streamed answer that came whole), or None: without
    ``error`` a streamed answer is complete; else ``error`` one of ``unreachable``,
    ``timeout``, ``unknown``, ``gone`` (a name: all who had it left for good),
    ``ambiguous``, ``no_handler``, ``failed``, ``refused`` and ``detail`` (for ambiguous:
    ids, for unknown and gone: nearest names, each joined by newlines).
    """

    call: int
    answer: Envelope | None
    via: NodeId | None = None
    error: str = ""
    detail: str = ""


class SendRefused(msgspec.Struct, frozen=True):
    """A send that cannot be accepted after all.  ``error`` and ``detail`` as in
    :class:`RequestEnded`, or ``error`` = ``queue_full``, ``store_full``, or ``left``: its
    target left for good."""

    message_id: str
    error: str
    detail: str = ""


#: Of a message at one recipient, in the order that it takes them: the last three end it.
MessageState: TypeAlias = Literal["queued", "stored", "done", "expired", "dead"]


class MessageMoved(msgspec.Struct, frozen=True):
    """A message that this node accepted changed its state for one recipient."""

    message_id: str
    recipient: str
    state: MessageState
    reason: str = ""


class DeadCopy(msgspec.Struct, frozen=True):
    """A dead letter: a message that this node accepted, for one recipient."""

    envelope: Envelope
    recipient: str  # its instance id; of what never had one, the name it was sent to
    name: str | None  # it was sent to this name
    reason: str
    attempts: int  # times it was put on the wire
    died_at: int  # unix microseconds, for display


class CallEnded(msgspec.Struct, frozen=True):
    """The answer to a registry call that had to ask another node.

    ``status``: ``ok``, ``unknown``, ``conflict``, ``forbidden``, ``too_large`` (what a guest
    says of itself), ``full``, ``busy`` (too many wait for this instance's mail),
    ``unavailable`` (the home did not answer in time, or this node has not joined yet).
    """

    call: int
    status: str
    messages: tuple[Envelope, ...] = ()
    vias: tuple[NodeId, ...] = ()
    rtt: float | None = None  # seconds from the call to its answer, where another node gave it


# --- views ------------------------------------------------------------------


class Member(msgspec.Struct, frozen=True):
    """One instance (or agentless node) as this node sees it."""

    instance_id: str  # of an observer: its node id
    node_id: str
    name: str
    kind: Literal["node", "guest"]
    home: str
    state: Literal["alive", "suspect", "failed", "left"]
    stalled: bool
    life: str
    incarnation: int
    capabilities: tuple[str, ...]
    agent_profiles: tuple[str, ...]
    status: str | None
    metrics: Any
    addresses: tuple[str, ...]
    last_heartbeat_age: float
    is_leader: bool
    candidate: bool
    # for the compatible registry shape, beyond the documented fields
    hostname: str = ""
    port: int = 0
    created_at: int = 0  # unix microseconds


class LinkInfo(msgspec.Struct, frozen=True):
    node_id: str
    address: str
    direction: Literal["in", "out"]
    ring: bool
    found_by: FoundBy
    rtt: float | None
    since: float  # seconds ago


class Load(msgspec.Struct, frozen=True):
    """What the message plane of a node holds now, and what it did since it started."""

    depths: dict[str, int]  # by queue: how many are in it
    bytes: int  # of all messages that are held
    moved: dict[str, int]  # by state: copies accepted here that reached it


class Token(msgspec.Struct, frozen=True, order=True):
    """A fencing token.  A later leader's compares greater than an earlier one's
    where both claims happened in one component."""

    epoch: int
    life: Life
    node_id: str


class LeaderInfo(msgspec.Struct, frozen=True):
    leader_id: str | None  # an instance id
    epoch: int | None
    token: Token | None  # when this node leads with authority
    authoritative: bool
    lacks: str | None  # for authority, where this node leads: "1 of quorum 2"
    policy: str  # "available" or "quorum=n"
    since: float | None  # seconds ago


class Recipient(msgspec.Struct, frozen=True):
    instance_id: str
    state: MessageState
    attempts: int = 0
    reason: str = ""


# --- events: what the user may want to know ----------------------------------


class Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True, omit_defaults=False):
    """Base of all events.  The node sets ``t`` (unix seconds) and ``seq``."""

    t: float = 0.0
    seq: int = 0


class MemberEvent(Event, frozen=True, kw_only=True):
    instance_id: str
    node_id: str
    name: str
    kind: Literal["node", "guest"]


class MemberJoined(MemberEvent, frozen=True, kw_only=True, tag="member_joined"):
    pass


class MemberUpdated(MemberEvent, frozen=True, kw_only=True, tag="member_updated"):
    pass


class MemberSuspected(MemberEvent, frozen=True, kw_only=True, tag="member_suspected"):
    evidence: Evidence
    accusers: tuple[str, ...]


class MemberStalled(MemberEvent, frozen=True, kw_only=True, tag="member_stalled"):
    pass


class MemberRecovered(MemberEvent, frozen=True, kw_only=True, tag="member_recovered"):
    """No longer suspect or stalled."""


class MemberFailed(MemberEvent, frozen=True, kw_only=True, tag="member_failed"):
    evidence: Evidence
    accusers: tuple[str, ...]


class MemberLeft(MemberEvent, frozen=True, kw_only=True, tag="member_left"):
    pass


LeaderReason: TypeAlias = Literal[
    "first", "leader_failed", "leader_left", "merge", "withdrawn", "reclaimed"
]


class LeaderChanged(Event, frozen=True, kw_only=True, tag="leader_changed"):
    leader_id: str | None
    epoch: int | None
    reason: LeaderReason


class LeaderStalled(Event, frozen=True, kw_only=True, tag="leader_stalled"):
    leader_id: str


class Elected(Event, frozen=True, kw_only=True, tag="elected"):
    """This node leads with authority from now on; carries its token."""

    token: Token


class Demoted(Event, frozen=True, kw_only=True, tag="demoted"):
    """This node no longer leads, or no longer with authority."""

    reason: str


class QuorumMissing(Event, frozen=True, kw_only=True, tag="quorum_missing"):
    """This node leads, and sees too few for authority."""

    seen: int
    quorum: int


class Joined(Event, frozen=True, kw_only=True, tag="joined"):
    """This node has taken its life."""

    life: str
    contact: str | None  # node id of who it joined under; None: it founded the mesh


class MessageEvent(Event, frozen=True, kw_only=True, tag="message"):
    """A message came for this node's own agent."""

    message_id: str
    source: str
    type: str
    payload: Any


class MessageDone(Event, frozen=True, kw_only=True, tag="message_done"):
    message_id: str
    recipient: str


class MessageProgress(Event, frozen=True, kw_only=True, tag="message_progress"):
    """How much of a large message the recipient's home has, now and then: bytes of
    its payload as it is carried.  Sent again after a broken link, it begins anew."""

    message_id: str
    recipient: str
    sent: int
    total: int


class MessageExpired(Event, frozen=True, kw_only=True, tag="message_expired"):
    message_id: str
    recipient: str


class MessageDead(Event, frozen=True, kw_only=True, tag="message_dead"):
    message_id: str
    recipient: str
    reason: str


class PeerRejected(Event, frozen=True, kw_only=True, tag="peer_rejected"):
    """A candidate is not of this mesh, or spoke nonsense.  Once per address and reason."""

    reason: str
    address: str


class DoubleIdentity(Event, frozen=True, kw_only=True, tag="identity_conflict"):
    node_id: str
    instance_id: str
    addresses: tuple[str, ...]


class Alone(Event, frozen=True, kw_only=True, tag="alone"):
    """Nobody met for 10 s: what was tried."""

    tried: tuple[str, ...]


class Lost(Event, frozen=True, kw_only=True, tag="lost"):
    """``n`` events were not kept for this reader."""

    n: int


# What Mesh.actions() yields, in order.
Action: TypeAlias = (
    Dial | Write | Close | AskUnacked | Persist | Save | Stop | MessageArrived | MessageKept
    | MessageMayStart | MessageWithdrawn
    | RequestArrived | RequestCancelled | RequestEnded | PartArrived | PartWanted
    | SendRefused | MessageMoved | CallEnded
    | Event
)  # fmt: skip

KNOWN_TYPES: Final = frozenset(
    {
        "Query", "Response", "Notification", "TaskDelegation", "TaskResult", "GraphSync",
        "CapabilityUpdate", "CapabilityQuery", "LearningShare", "ProposalSubmit",
        "ProposalVote", "WorkflowAssignment", "WorkflowStageResult",
    }
)  # fmt: skip
