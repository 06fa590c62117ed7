"""One link: its session, what it has to say, and which of two links stays.

A link begins as a TCP connection; it is *up* when the handshake is done and both
HELLOs have been read.  Until then nothing on it is believed.  Messages wait in
four queues: urgent ones, a backlog of news (one item a subject), bulk, which yields
to both, and large payloads, which yield to all three (``transfers``).  While the
transport is backed up all wait here, bounded: whoever asks and does not read loses
the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from math import inf

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.dials import Attempt
from p2pmesh.protocol.news import Round, pack
from p2pmesh.protocol.session import Session
from p2pmesh.protocol.transfers import Incoming, Outgoing
from p2pmesh.protocol.types import FoundBy, NodeId

#: Bulk bytes in one flush: small messages that arrive meanwhile go before the rest.
_BULK_A_FLUSH = 256 * 1024
_BULK_KINDS = (wire.Post, wire.Cast, wire.Offer, wire.Digest, wire.Handed, wire.Relay)


class Phase(Enum):
    HANDSHAKE = "handshake"
    HELLO = "hello"  # established; the peer's HELLO is still to come
    UP = "up"
    RETIRING = "retiring"  # another link to the same life replaced it: only read
    ENDED = "ended"


class Link:
    """One connection, from its opening to its end."""

    __slots__ = (
        "_bulk", "_bulk_bytes", "_urgent", "_urgent_bytes", "address", "attempt", "backlog",
        "dial", "difference", "differing_beats", "fed_until", "found_by", "heard_at", "hello",
        "id", "incoming", "is_check", "is_open", "is_outbound", "is_paused", "is_ring",
        "is_strangers", "opened_at", "outgoing", "peer", "phase", "pinged_at", "rekeyed_at",
        "repaired_at", "ring_mine", "ring_theirs", "rtt", "said_at", "served", "served_since",
        "session", "silence_after", "up_at", "was_closed",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        address: str,
        session: Session,
        now: float,
        *,
        attempt: Attempt | None,
        found_by: FoundBy,
        dial: int = 0,
    ) -> None:
        self.id = number
        self.dial = dial  # this node's count of dials, if it dialled
        self.address = address
        self.session = session
        self.attempt = attempt
        self.is_outbound = attempt is not None
        self.found_by = found_by
        self.phase = Phase.HANDSHAKE
        self.is_check = False
        self.is_open = False  # from the handshake to the end: something can be said
        self.was_closed = False  # its peer said CLOSE: the end is no evidence
        self.is_paused = False
        self.is_strangers = False  # its peer came from another mesh
        self.peer: NodeId | None = None
        self.hello: wire.Hello | None = None
        self.opened_at = self.heard_at = self.said_at = self.up_at = self.rekeyed_at = now
        self.pinged_at: float | None = None
        self.rtt: float | None = None
        self.ring_mine = self.ring_theirs = self.is_ring = False
        self.silence_after = inf  # by the slower preset of both ends, once it is up
        self.fed_until = now  # its peer is told what rings tell, though it is not on them
        self.differing_beats = 0
        self.difference = 0  # between the two views, at the last of them
        self.repaired_at = -1e9
        self.served = 0  # repair questions answered since
        self.served_since = now
        self.backlog = Round()  # news that wait while the transport is backed up
        self._urgent: list[bytes] = []
        self._urgent_bytes = 0
        self._bulk: deque[bytes] = deque()
        self._bulk_bytes = 0
        self.outgoing = Outgoing()
        self.incoming = Incoming()

    @property
    def is_up(self) -> bool:
        return self.phase is Phase.UP

    def claim(self, *, mine: bool | None = None, theirs: bool | None = None) -> None:
        """A link is a ring link while either end's rings say so; None: as before."""
        if mine is not None:
            self.ring_mine = mine
        if theirs is not None:
            self.ring_theirs = theirs
        self.is_ring = self.ring_mine or self.ring_theirs

    # --- saying -------------------------------------------------------------------

    def say(self, message: wire.Message) -> None:
        """Queue one message."""
        if len(wire.payload_of(message)) > limits.LARGE_MIN:
            self.outgoing.put(message)
        else:
            self.say_encoded(wire.encode(message), bulk=isinstance(message, _BULK_KINDS))

    def say_encoded(self, encoded: bytes, *, bulk: bool = False) -> None:
        if len(encoded) > limits.CHUNK_MAX:
            self._bulk.extend(self.outgoing.pieces(encoded))
            self._bulk_bytes += len(encoded)
        elif bulk:
            self._bulk.append(encoded)
            self._bulk_bytes += len(encoded)
        else:
            self._urgent.append(encoded)
            self._urgent_bytes += len(encoded)

    def has_more(self) -> bool:
        """Is bulk left that the next ``flush`` would write?"""
        return (bool(self._bulk) or self.outgoing.may_go()) and not self.is_paused

    def is_overfull(self) -> bool:
        """Does the peer make this node speak and not read what it says?"""
        return self._urgent_bytes > limits.LINK_QUEUE_MAX

    def has_waiting(self) -> bool:
        """Is anything left of what was said, behind the last ``flush``?"""
        return self._urgent_bytes > 0 or bool(self._bulk) or bool(self.outgoing)

    def flush(self, now: float) -> bytes:
        """What to write now: urgent messages, news, then a bounded piece of bulk and of
        what is large."""
        if self.is_paused:
            return b""
        messages, self._urgent, self._urgent_bytes = self._urgent, [], 0
        if self.backlog.pieces:
            items = [piece.item for piece in self.backlog.take(now)]
            messages.extend(wire.encode(wire.News(group)) for group in pack(items))
        room = _BULK_A_FLUSH
        while self._bulk and room > 0:
            room -= len(self._bulk[0])
            messages.append(self._bulk.popleft())
        if not self._bulk:
            self._bulk_bytes = 0
        room = max(room, 1)  # bulk that never ends may not stop what is large
        while room > 0 and self.outgoing.may_go():
            messages.append(self.outgoing.next())
            room -= len(messages[-1])
        if not messages:
            return b""
        self.said_at = now
        if now - self.rekeyed_at < timing.REKEY_INTERVAL:
            return self.session.seal(messages)
        self.rekeyed_at = now
        return self.session.rekey() + self.session.seal(messages)

    def last_words(self, close: wire.CloseReason) -> Iterator[bytes]:
        """What is still to be said, news and replies included, then CLOSE."""
        self.is_paused = False
        while data := self.flush(self.said_at):
            yield data
        while self.outgoing:
            yield self.session.seal([self.outgoing.next()])
        yield self.session.seal([wire.encode(close)])

    def may_ask_repair(self, now: float) -> bool:
        """Bounds how often this peer's repair questions are answered, and how much is
        kept for one that does not read the answers."""
        if self._bulk_bytes > limits.LINK_QUEUE_MAX:
            return False
        if now - self.served_since >= timing.REPAIR_INTERVAL:
            self.served, self.served_since = 0, now
        self.served += 1
        return self.served <= limits.REPAIRS_SERVED_MAX


def stays(me: NodeId, new: Link, old: Link) -> Link:
    """Of two links between the same two lives, the one both ends keep.

    The one dialled by the lower id; of two dialled by one side, the one it dialled
    later.  A HELLO may name the old link as dead to its sender: then the new one
    stays.  Both ends apply this to the same facts (which link came first is none:
    it may differ), so they agree without a word.
    """
    assert new.peer is not None
    for link, other in ((new, old), (old, new)):
        if _replaces(link) == other.session.handshake_hash:
            return link
    if new.is_outbound == old.is_outbound:
        return new if _dialled(new) >= _dialled(old) else old
    lower_dialled = me < new.peer
    return new if new.is_outbound == lower_dialled else old


def _replaces(link: Link) -> bytes | None:
    """The link that this one's dialler took for dead."""
    if link.attempt is not None:
        return link.attempt.replaces
    return link.hello.replaces if link.hello is not None else None


def _dialled(link: Link) -> int:
    """The dialler's count."""
    if link.is_outbound:
        return link.dial
    return link.hello.dial if link.hello is not None else 0
