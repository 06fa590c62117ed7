"""What happens on links, handed to the desk whose matter it is.

    occurrence ─┬─ received ─► one desk        before HELLO, after it, items of news
                ├─ opened, established ─► handshake
                └─ broken, attempt failed ─► whoever dialled, and why

- A link's end matters to the desks only if it was the one in use with its peer.
- What a message makes of the link it came over (closed, broken) is followed at once.
- A message that has no place here is counted, or ends its link, and nothing else.

Not here: bytes (``connections``), and any rule: each desk's module says its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.connections import (
    AttemptFailed,
    Broken,
    Established,
    Occurrence,
    Opened,
    Received,
)
from p2pmesh.protocol.core import Core
from p2pmesh.protocol.dials import Purpose
from p2pmesh.protocol.doubles import Doubles
from p2pmesh.protocol.gossip import read_item
from p2pmesh.protocol.joining import Joining
from p2pmesh.protocol.leading import Leading
from p2pmesh.protocol.links import Link, Phase
from p2pmesh.protocol.lookup import Lookup
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.plane import MessagePlane
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.seeking import Seeking
from p2pmesh.protocol.session import NO_HANDSHAKE
from p2pmesh.protocol.sidelinks import SideLinks
from p2pmesh.protocol.sleeping import Sleeping
from p2pmesh.protocol.transfers import TransferError
from p2pmesh.protocol.types import MessageProgress


class Dispatch:
    """From the links to the desks."""

    def __init__(
        self,
        core: Core,
        *,
        membership: Membership,
        neighbours: Neighbours,
        questions: Questions,
        monitoring: Monitoring,
        side: SideLinks,
        seeking: Seeking,
        doubles: Doubles,
        joining: Joining,
        leading: Leading,
        sleeping: Sleeping,
        lookup: Lookup,
        plane: MessagePlane,
    ) -> None:
        self._core = core
        self._membership = membership
        self._neighbours = neighbours
        self._questions = questions
        self._monitoring = monitoring
        self._side = side
        self._seeking = seeking
        self._doubles = doubles
        self._joining = joining
        self._leading = leading
        self._sleeping = sleeping
        self._lookup = lookup
        self._plane = plane

    def occurred(self, occurrence: Occurrence) -> None:
        match occurrence:
            case Received(link, message):
                self.received(link, message)
            case Opened(link):
                until = link.opened_at + timing.HANDSHAKE_TIMEOUT
                self._core.timers.set("handshake", link.id, until)
            case Established(link):
                self._joining.say_hello(link)
            case Broken(link, reason):
                self._broke(link, reason)
            case AttemptFailed(attempt):
                match attempt.purpose:
                    case Purpose.CANDIDATE:
                        self._seeking.candidate_tried(attempt, None)
                    case Purpose.CONNECT:
                        assert isinstance(attempt.target, bytes)
                        self._monitoring.connect_failed(attempt.target, attempt.outcome)
                    case Purpose.PROBE:
                        self._monitoring.probe_failed(attempt)
                    case Purpose.REPLACE:
                        assert isinstance(attempt.target, bytes)
                        if self._side.replace_failed(attempt):
                            self._plane.reach().unlinked(self._core.at, attempt.target)
                    case Purpose.CHECK | Purpose.HEAL:
                        self._core.count(f"dial {attempt.purpose.value} failed")

    # --- messages ---------------------------------------------------------------------

    def received(self, link: Link, message: wire.Message) -> None:
        """One message, to its desk."""
        if link.phase is Phase.UP or link.phase is Phase.RETIRING:
            self._received_up(link, message)
        elif isinstance(message, wire.Hello) and link.phase is Phase.HELLO:
            self._joining.hello(link, message)
            peer = link.peer
            if peer is not None and self._core.links_up.get(peer) is link:
                self._plane.reach().linked(self._core.at, peer)
            for occurrence in self._core.connections.after_end(link):
                self.occurred(occurrence)
        elif isinstance(message, wire.CloseReason):
            self._closed(link, message)
        else:
            for occurrence in self._core.connections.broken(link, "message before hello"):
                self.occurred(occurrence)

    def _received_up(self, link: Link, message: wire.Message) -> None:
        match message:
            case wire.Heartbeat(view=view):
                self._neighbours.heartbeat(link, message)
                self._membership.beat(link, view)
                if self._leading.is_suspended:
                    self._sleeping.wake()  # a live peer was heard after a sleep
                self._leading.heard(message.epoch, message.claimant)
            case wire.News(items):
                self.items(link, items, flood=True)
            case wire.Ping(n):
                self._core.tell(link, wire.Pong(n))
            case wire.Pong() as pong:
                self._monitoring.pong(link)
                self._leading.answered(link, pong)
            case wire.Offer(items, snapshot, last):
                self.items(link, items, flood=not snapshot)
                self._membership.offered(link, ends_snapshot=snapshot and last)
            case wire.Buckets():
                self._membership.buckets(link, message)
            case wire.Digest():
                self._membership.digest(link, message)
            case wire.Want():
                self._membership.want(link, message)
            case wire.CloseReason():
                self._closed(link, message)
            case wire.Taken(size):
                self._taken(link, size)
            case wire.Restamp():
                self._joining.restamp(link, message)
            case wire.Hello() | wire.Chunk():
                self._core.count("message_out_of_place")
            case _:
                assert link.peer is not None
                self._plane.reach().received(self._core.at, link.peer, message)

    def _taken(self, link: Link, size: int) -> None:
        """Some of what is large has arrived: go on, and say how far it is."""
        core = self._core
        try:
            reached = link.outgoing.taken(size, core.at.now)
        except TransferError as error:
            for occurrence in core.connections.broken(link, str(error)):
                self.occurred(occurrence)
            return
        core.touch(link)
        assert link.peer is not None
        self._plane.reach().progressed(core.at, link.peer)
        for message, sent, total in reached:
            if isinstance(message, wire.Post | wire.Ask):
                envelope = message.envelope
                core.act(
                    MessageProgress(
                        message_id=envelope.message_id,
                        recipient=message.recipient or envelope.target or "",
                        sent=sent,
                        total=total,
                    )
                )

    def items(self, link: Link, items: Iterable[bytes], *, flood: bool) -> None:
        """News and offers: claims, questions and their answers."""
        core = self._core
        waiting = core.news.pieces
        for encoded in items:
            known = core.book.by_item(encoded)
            if known is not None:
                if core.view.nodes.get(known.id) is not known:
                    self._membership.record(known, link, flood=flood)
                elif waiting:
                    core.news.known(known.id, link.id, encoded)
                continue
            match read_item(encoded, core.book):
                case wire.RecordItem() as item:
                    self._membership.record_item(item, link, flood=flood)
                case wire.EntryItem() as item:
                    self._membership.entry_item(item, link, flood=flood)
                case wire.Question(subject=self._core.me) as question:
                    if self._doubles.questioned(question) and not question.tombstone:
                        self._neighbours.reach_out()
                case wire.Verdict(subject=self._core.me) as verdict:
                    self._doubles.buried(verdict)
                case wire.Question() as question:
                    self._questions.question(question, link, encoded)
                case wire.Vouch() as vouch:
                    self._questions.vouch(vouch, link, encoded)
                case wire.Stall() as stall:
                    self._questions.stall(stall, link, encoded)
                case wire.Verdict() as verdict:
                    self._questions.verdict(verdict, link, flood=flood)
                case None:
                    core.count("item_unknown")
        self._lookup.changed()
        self._joining.consider(link)

    # --- ends -------------------------------------------------------------------------

    def _closed(self, link: Link, message: wire.CloseReason) -> None:
        """The peer ends this link in order."""
        core = self._core
        link.was_closed = True
        core.connections.close(link)
        self.lost(link, orderly=True)
        if link.peer is None and link.attempt is not None:
            self._joining.rejected(link, message.reason[:64])
        for occurrence in core.connections.after_end(link):
            self.occurred(occurrence)

    def _broke(self, link: Link, reason: str) -> None:
        attempt = link.attempt
        if link.peer is None:
            self._joining.rejected(link, reason)
            if attempt is not None and attempt.purpose is Purpose.PROBE:
                assert isinstance(attempt.target, bytes)
                self._monitoring.probe_broken(attempt.target, reason)
        self.lost(link, orderly=False)

    def lost(self, link: Link, *, orderly: bool) -> None:
        """A link is gone; act only if it was the one in use."""
        core = self._core
        peer = link.peer
        core.timers.cancel("handshake", link.id)
        if peer is None or core.links_up.get(peer) is not link:
            return
        del core.links_up[peer]
        if orderly and self._joining.take_back(peer):
            self._plane.reach().linked(core.at, peer)
            return
        self._plane.reach().unlinked(core.at, peer)
        self._monitoring.link_ended(link, orderly=orderly)

    def handshake_due(self, link: int) -> None:
        """A handshake that takes too long, or a replaced link its dialler left open."""
        connections = self._core.connections
        found = connections.links.get(link)
        if found is None or found.phase is Phase.UP:
            return
        if found.phase is Phase.RETIRING:
            connections.close(found, "duplicate")
            return
        core = self._core
        latest = found.opened_at + timing.HANDSHAKE_LATEST
        if core.is_late and core.at.now < latest:  # perhaps it is there, and not read yet
            core.timers.set("handshake", link, min(core.at.now + timing.LAG_MEMORY, latest))
            return
        for occurrence in connections.broken(found, NO_HANDSHAKE, is_said=True):
            self.occurred(occurrence)
