"""What the desks of the core share: the state, and the few verbs that speak.

The door (``mesh``) takes each input to one desk: ``membership`` (whose word is
held), ``neighbours`` (whom the rings link), ``monitoring`` (who falls silent),
``questions`` (who is suspected), ``joining`` (strangers, stamps, doubles),
``leading``, or the ``postoffice``.  A desk changes the state here and notes what
changed in ``changes``; when the input is dealt with, the door hands all changes to
every desk that has to follow (*settling*).  So desks need not know each other's order,
and no change is acted on half-way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.connections import Connections
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.lateness import Lateness
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.members import Change, Claim, View
from p2pmesh.protocol.news import Piece, Round, Urgency, pack
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.records import Record, RecordBook, SignedRecord, Signer, check_own
from p2pmesh.protocol.rings import Rings
from p2pmesh.protocol.timers import Timers
from p2pmesh.protocol.timing import Timing
from p2pmesh.protocol.types import (
    Action,
    Instant,
    Life,
    MeshConfig,
    NodeId,
    Restored,
    State,
)

VERSIONS = (1, 1)


class Changed(NamedTuple):
    """One change of the view; ``before`` is the claim that was replaced."""

    key: NodeId | str
    change: Change
    before: Claim | None


class Core:
    """The state of one node, and what it wants done."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        seed: bytes,
        at: Instant,
        rng: random.Random,
        entropy: Callable[[int], bytes],
        restored: Restored,
        book: RecordBook | None,
    ) -> None:
        self.config = config
        self.at = at
        self.started = at
        self.rng = rng
        self.entropy = entropy
        self.restored = restored
        self.signer = Signer(seed)
        self.me: NodeId = self.signer.node_id
        self.book = book if book is not None else RecordBook()
        self.timers = Timers()
        self.view = View()
        self.rings = Rings(self.me)
        self.keys = KeyRing(config.mesh, config.keys)
        static = StaticKey.from_seed(seed)
        self.connections = Connections(
            static=static, keys=self.keys, entropy=entropy, null_cipher=config.null_cipher
        )
        record = Record(
            id=self.me,
            noise_key=static.public,
            life=None,
            incarnation=0,
            revision=0,
            state=State.ALIVE,
            addresses=config.addresses,
            name=config.name,
            preset=config.preset,
            versions=VERSIONS,
            agent=config.agent,
            candidate=config.candidate and config.agent is not None,
        )
        check_own(record)
        self.record = self.signer.record(record)
        #: What my own agent says of itself: its status and its metrics.
        self.said: tuple[str | None, bytes | None] = (None, None)
        #: The link in use to each proven peer.
        self.links_up: dict[NodeId, Link] = {}
        self.changes: list[Changed] = []
        #: Links whose peers make this node speak and do not read; the door ends them.
        self.overfull: list[Link] = []
        #: What I have learnt and not passed on yet.
        self.news = Round()
        #: How late this process runs.
        self.lateness = Lateness()
        #: A newcomer waits for what its contact knows; 0.0: it has it, or waits no more.
        self.uninformed_until = 0.0
        self._dirty: dict[int, Link] = {}

    # --- reading --------------------------------------------------------------------

    @property
    def life(self) -> Life | None:
        """My life; None until I have joined."""
        return self.record.record.life

    @property
    def has_left(self) -> bool:
        return self.record.record.state is State.LEFT

    @property
    def is_late(self) -> bool:
        """Was this process late a moment ago?  Then what it misses may be its own doing."""
        return self.lateness.is_late(self.at.now)

    def timing_with(self, peer: NodeId) -> Timing:
        """The slower of my preset and the peer's."""
        held = self.view.alive(peer)
        if held is None or held.record.preset == self.config.preset:
            return timing.PRESETS[self.config.preset]
        return timing.slower(self.config.preset, held.record.preset)

    def hears(self, peer: NodeId) -> bool:
        """Do I have bytes of this peer that are younger than the silence limit?"""
        link = self.links_up.get(peer)
        return link is not None and self.at.now - link.heard_at < link.silence_after

    # --- speaking -------------------------------------------------------------------

    def act(self, action: Action) -> None:
        self.connections.actions.append(action)

    def tell(self, link: Link, message: wire.Message) -> None:
        link.say(message)
        self._dirty[link.id] = link

    def flood(
        self, subject: object, item: bytes, urgency: Urgency, *, source: Link | None = None
    ) -> None:
        """News for every ring link, and newcomer, but the one it came from; what I say
        myself goes to every peer."""
        if not self.news.put(subject, item, urgency, None if source is None else source.id):
            self.count("news_queue_full")

    def feeds(self, link: Link) -> bool:
        """Does its peer rely on this link for its news?"""
        return link.is_ring or self.at.now < link.fed_until

    def spread(self) -> None:
        """Tell the news: each peer what it may not know, in as few messages as it fits."""
        now = self.at.now
        pieces = self.news.take(now)
        encoded: dict[tuple[bytes, ...], list[bytes]] = {}  # many links lack the same
        for link in self.links_up.values():
            fed = pieces if self.feeds(link) else [piece for piece in pieces if piece.is_mine]
            if link.is_paused:
                self._keep(link, fed)
                continue
            number = link.id
            items = tuple([piece.item for piece in fed if number not in piece.knowing])
            if items:
                messages = encoded.get(items)
                if messages is None:
                    messages = [wire.encode(wire.News(group)) for group in pack(items)]
                    encoded[items] = messages
                for message in messages:
                    link.say_encoded(message)
                self._dirty[link.id] = link

    def _keep(self, link: Link, pieces: list[Piece]) -> None:
        """Its transport is backed up: what it is to be told waits, the newest of each."""
        for piece in pieces:
            if link.id not in piece.knowing and not link.backlog.put(
                piece.subject, piece.item, piece.urgency, None
            ):
                self.count("news_queue_full")

    def touch(self, link: Link) -> None:
        """The link has something to write (again)."""
        self._dirty[link.id] = link

    def drain(self) -> list[Action]:
        """Everything to do, writes coalesced to one a link."""
        if self.news.pieces:
            due_at = self.news.due_at()
            if self.at.now >= due_at:
                self.spread()
            else:
                self.timers.set_earlier("news", None, due_at)
        if self._dirty:
            self._write()
        connections = self.connections
        actions, connections.actions = connections.actions, []
        return actions

    def _write(self) -> None:
        now = self.at.now
        for link in self._dirty.values():
            if not link.is_open:
                continue
            data = link.flush(now)
            if data:
                self.connections.write(link, data)
            if link.has_waiting():
                if link.is_overfull():
                    self.overfull.append(link)
                if link.has_more():
                    self.timers.set("flush", link.id, now)
        self._dirty.clear()

    def count(self, reason: str) -> None:
        """Something was dropped, refused or odd."""
        self.connections.count(reason)

    # --- my record --------------------------------------------------------------------

    def life_number(self) -> int:
        """The random part of a life that I take."""
        return int.from_bytes(self.entropy(4))

    def publish(self, record: Record, urgency: Urgency = Urgency.CHANGE) -> SignedRecord:
        """Sign my new record, hold it, and tell everyone."""
        self.record = self.book.remember(self.signer.record(record))
        if record.life is not None:
            before = self.view.nodes.get(self.me)
            change = self.view.offer_record(self.record, self.at.now)
            if change is not Change.NONE:
                self.changes.append(Changed(self.me, change, before))
            self.flood(self.me, self.record.item, urgency)
        return self.record

    def number(self) -> int:
        """63 random bits from the entropy I was given."""
        return int.from_bytes(self.entropy(8)) >> 1
