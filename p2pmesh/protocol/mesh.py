"""The one door of the core: inputs in, actions out, and the time of the next timer.

How to drive it (``docs/protocol-core.md`` has the contract in numbered steps)::

    mesh.bytes_received(at, link, data)      # any input, with the time it happened
    for action in mesh.actions():            # then everything it wants done
        perform(action)
    arm_timer(mesh.next_timer())             # then one timer: mesh.handle_timer(at)

What happens inside: an input goes to one desk (see ``core``); the desks note what
changed; ``_settle`` hands the changes to all desks that follow, turns them into
events, and lets the message plane look again.  No input raises for what came from
the network; only commands raise, for the caller's own mistakes.

What users ask of the message plane is in ``Mesh.commands`` (``commands``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from p2pmesh.protocol import directory, timing, wire
from p2pmesh.protocol.commands import Commands
from p2pmesh.protocol.connections import Received
from p2pmesh.protocol.converged import converge
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.dispatch import Dispatch
from p2pmesh.protocol.doubles import Doubles
from p2pmesh.protocol.joining import Joining
from p2pmesh.protocol.leading import Leading
from p2pmesh.protocol.links import Phase
from p2pmesh.protocol.lookup import Lookup
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.orphans import Orphans
from p2pmesh.protocol.plane import MessagePlane
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.reach import Reach
from p2pmesh.protocol.records import RecordBook
from p2pmesh.protocol.reporting import event_of, who
from p2pmesh.protocol.seeking import Seeking
from p2pmesh.protocol.selfword import SelfWord
from p2pmesh.protocol.sidelinks import SideLinks
from p2pmesh.protocol.sleeping import Sleeping
from p2pmesh.protocol.types import (
    Action,
    Candidate,
    DialOutcome,
    Instance,
    Instant,
    LeaderInfo,
    LinkInfo,
    Load,
    Member,
    MemberJoined,
    MeshConfig,
    NodeId,
    Restored,
    Stop,
    Token,
)

_HOUSEKEEPING: Final = 5.0


def new_book() -> RecordBook:
    """What many nodes of one process verify together."""
    return RecordBook()


class Mesh:
    """One node's core."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        seed: bytes,
        at: Instant,
        rng: random.Random,
        entropy: Callable[[int], bytes],
        restored: Restored | None = None,
        book: RecordBook | None = None,
    ) -> None:
        """``seed``: 32 bytes of identity.  ``rng`` serves jitter and peer choice
        only, ``entropy(n)`` keys, nonces, ids and lives.  ``book``: one
        (``new_book``) for many nodes, so that they verify and keep each record once."""
        core = self._core = Core(
            config,
            seed=seed,
            at=at,
            rng=rng,
            entropy=entropy,
            restored=restored or Restored(),
            book=book,
        )
        self.node_id: NodeId = core.me
        self._membership = Membership(core)
        self._word = SelfWord(core)
        neighbours = self._neighbours = Neighbours(core)
        questions = self._questions = Questions(core, neighbours)
        monitoring = self._monitoring = Monitoring(core, neighbours, questions)
        self._side = SideLinks(core, neighbours)
        self._orphans = Orphans(core)
        self._seeking = Seeking(core)
        self._doubles = Doubles(core, self._membership)
        self._joining = Joining(
            core, self._membership, neighbours, monitoring, self._seeking, self._doubles
        )
        self._leading = Leading(core, questions, Reach(core, neighbours, questions))
        self._sleeping = Sleeping(core, self._membership, monitoring, self._leading)
        self._lookup = Lookup(core, questions)
        self._plane = MessagePlane(
            core, self._lookup, self._membership, neighbours, self._side, settle=self._settle
        )
        self._dispatch = Dispatch(
            core,
            membership=self._membership,
            neighbours=neighbours,
            questions=questions,
            monitoring=monitoring,
            side=self._side,
            seeking=self._seeking,
            doubles=self._doubles,
            joining=self._joining,
            leading=self._leading,
            sleeping=self._sleeping,
            lookup=self._lookup,
            plane=self._plane,
        )
        self._leaving_until: float | None = None
        self._is_working = False  # while it leaves: handlers of messages run
        self._is_stopped = False
        self._is_introduced = False

    @staticmethod
    def converge(meshes: Sequence[Mesh]) -> None:
        """For simulators: cores that were just started are members of one mesh, as if they
        had joined in this order.  Drain each."""
        converge([mesh._core for mesh in meshes])
        for mesh in meshes:
            mesh._is_introduced = True
            mesh._neighbours.rings_changed()
            mesh._settle()

    # --- inputs: links ----------------------------------------------------------------

    def start(self, at: Instant) -> None:
        """The transport is ready: begin to look for others."""
        core = self._core
        core.at = at
        self._sleeping.start(at)
        interval = timing.PRESETS[core.config.preset].heartbeat_interval
        core.timers.set("beat", None, at.now + core.rng.uniform(0, interval))
        core.timers.set("housekeeping", None, at.now + _HOUSEKEEPING)
        if self._plane.ledger.is_durable:
            self._plane.reach().restore(at)
        self._joining.start()
        self._seeking.start()
        self._settle()

    def link_opened(self, at: Instant, link: int, address: str, dial: int | None) -> None:
        """A connection opened: ours (``dial``) or an inbound one (None).  ``link`` is
        the caller's number for it, never used before."""
        core = self._core
        core.at = at
        if self._is_stopped:
            core.connections.refuse(link)
            return
        for occurrence in core.connections.opened(link, address, dial, at.now):
            self._dispatch.occurred(occurrence)
        self._settle()

    def bytes_received(self, at: Instant, link: int, data: bytes) -> None:
        """Bytes of an open link, in order, however they were cut."""
        core = self._core
        core.at = at
        found = core.connections.links.get(link)
        if found is None:
            return
        for occurrence in core.connections.receive(found, data, at.now):
            if isinstance(occurrence, Received):  # nearly all of them
                self._dispatch.received(found, occurrence.message)
            else:
                self._dispatch.occurred(occurrence)
        if found.is_open and (taken := found.incoming.word()) is not None:
            core.tell(found, taken)
        if self._monitoring.is_asking and found.phase is Phase.UP:
            self._monitoring.heard(found)
        self._settle()

    def link_ended(self, at: Instant, link: int) -> None:
        """EOF, reset or error of a link that the core did not close itself."""
        core = self._core
        core.at = at
        found = core.connections.ended(link)
        if found is None:
            return
        self._dispatch.lost(found, orderly=found.was_closed)
        for occurrence in core.connections.after_end(found):
            self._dispatch.occurred(occurrence)
        self._settle()

    def link_paused(self, at: Instant, link: int) -> None:
        """The transport's write buffer is full: bulk waits here from now."""
        self._pause(at, link, is_paused=True)

    def link_resumed(self, at: Instant, link: int) -> None:
        self._pause(at, link, is_paused=False)

    def _pause(self, at: Instant, link: int, *, is_paused: bool) -> None:
        core = self._core
        core.at = at
        found = core.connections.links.get(link)
        if found is None or found.is_paused == is_paused:
            return
        found.is_paused = is_paused
        if found.peer is not None and core.links_up.get(found.peer) is found:
            if is_paused:
                self._plane.reach().paused(at, found.peer)
            else:
                self._plane.reach().resumed(at, found.peer)
        core.touch(found)
        self._settle()

    def dial_failed(self, at: Instant, dial: int, outcome: DialOutcome) -> None:
        """A ``Dial`` brought no connection."""
        self._core.at = at
        for occurrence in self._core.connections.dial_failed(dial, outcome):
            self._dispatch.occurred(occurrence)
        self._settle()

    def kernel_unacked(self, at: Instant, link: int, unacked: int) -> None:
        """The answer to ``AskUnacked``, at once: bytes the peer's kernel has not
        acknowledged."""
        core = self._core
        core.at = at
        found = core.connections.links.get(link)
        if found is not None:
            self._monitoring.kernel_unacked(found, unacked)
        self._settle()

    # --- inputs: the world ------------------------------------------------------------

    def candidate_found(self, at: Instant, candidate: Candidate) -> None:
        self._core.at = at
        self._seeking.candidate_found(candidate)

    def candidate_lost(self, at: Instant, key: str) -> None:
        self._core.at = at
        self._seeking.candidate_lost(key)

    def addresses_changed(self, at: Instant, addresses: tuple[str, ...]) -> None:
        """My own link addresses, best first."""
        self._core.at = at
        self._membership.readdress(addresses)
        self._settle()

    def loop_lagged(self, at: Instant, seconds: float) -> None:
        """The caller's loop ran this much late: silence before now proves nothing."""
        self._core.at = at
        if seconds > timing.LAG_TOLERANCE:
            self._core.lateness.note(at.now, seconds)

    def stored(self, at: Instant, action: int, ok: bool) -> None:
        """The outcome of a ``Persist``."""
        self._core.at = at
        self._leading.stored(action, ok)
        self._settle()

    def saved(self, at: Instant, number: int) -> None:
        """All ``Save``s up to this number are on disk."""
        self._core.at = at
        self._plane.reach().saved(at, number)
        self._settle()

    def save_failed(self, at: Instant, detail: str) -> None:
        """A ``Save`` cannot be made now.  The caller keeps it, in its order, and tries
        again; ``saved`` ends this."""
        self._core.at = at
        self._plane.reach().save_failed(at, detail)
        self._settle()

    # --- commands -----------------------------------------------------------------------

    @property
    def commands(self) -> Commands:
        """What the message plane does for users."""
        return self._plane.commands

    def instance(self, instance_id: str) -> Instance | None:
        """Where this instance lives, failed and left ones included."""
        return self._lookup.instance(instance_id)

    def named(self, name: str) -> tuple[Instance, ...]:
        """Live instances of this name, oldest first."""
        return self._lookup.named(name)

    def away(self, name: str) -> tuple[Instance, ...]:
        """Instances of this name that failed, or left and come back."""
        return directory.away(self._lookup, name)

    def describe(self, at: Instant, status: str | None, metrics: bytes | None) -> None:
        """What the own agent says of itself from now on; metrics in MessagePack."""
        self._core.at = at
        self._word.say(status, metrics)
        self._settle()

    # --- commands: looking for others -----------------------------------------------------

    def look(self, at: Instant, *, is_begun: bool) -> None:
        """Discovery is about to begin, or has begun: in between nobody founds a mesh
        because nobody was found, unless it takes too long."""
        self._core.at = at
        self._joining.look(is_begun=is_begun)

    # --- commands: leaving ----------------------------------------------------------------

    def leave(self, at: Instant, *, is_working: bool = False) -> None:
        """Say goodbye once receipts are in, 5 s at most; ``Stop("left")`` follows.
        ``is_working``: not before ``handlers_ended``, too."""
        self._core.at = at
        if self._leaving_until is None:
            self._is_working = is_working
            self._leaving_until = at.now + timing.LEAVE_TIMEOUT
            self._plane.reach().begin_leave(at)
            self._settle()
            self._leave_when_drained()

    def handlers_ended(self, at: Instant) -> None:
        """No message is being handled any more: all their outcomes were told."""
        self._core.at = at
        self._is_working = False
        if self._leaving_until is not None and not self._is_stopped:
            self._settle()
            self._leave_when_drained()

    # --- time -------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When to call ``handle_timer``, in Instant.now seconds."""
        if self._is_stopped:
            return None
        mine, posts = self._core.timers.next(), self._plane.due_at
        if mine is None or posts is None:
            return mine if posts is None else posts
        return min(mine, posts)

    def handle_timer(self, at: Instant) -> None:
        core = self._core
        core.at = at
        self._sleeping.ran(at)
        for kind, key in list(core.timers.due(at.now)):
            self._timer(kind, key)
        self._plane.handle_timer(at)
        self._settle()

    # --- results ------------------------------------------------------------------------------

    def actions(self) -> list[Action]:
        """Everything to do since the last call, in order."""
        if self._plane.is_used:  # commands that many come of settle here, together
            self._settle()
        actions = self._core.drain()
        while self._core.overfull:
            for occurrence in self._core.connections.broken(
                self._core.overfull.pop(), "peer does not read"
            ):
                self._dispatch.occurred(occurrence)
            self._settle()
            actions += self._core.drain()
        return actions

    def members(self, at: Instant) -> tuple[Member, ...]:
        """Oldest first, failed and left ones included."""
        self._core.at = at
        return self._lookup.members(self._plane.office.guest)

    def live_at_most(self) -> int:
        """No more of those are live; it costs nothing."""
        return self._lookup.live_at_most()

    def me(self, at: Instant) -> Member:
        """This node as it lists itself; its life is "" until it has joined."""
        self._core.at = at
        return self._lookup.myself()

    def leader(self, at: Instant) -> LeaderInfo:
        self._core.at = at
        return self._leading.info()

    def token(self, at: Instant) -> Token:
        """Raises NotAuthoritative, also when this process did not run for long."""
        self._core.at = at
        self._sleeping.ran(at)
        return self._leading.token()

    def links(self, at: Instant) -> tuple[LinkInfo, ...]:
        return tuple(
            LinkInfo(
                node_id=peer.hex(),
                address=link.address,
                direction="out" if link.is_outbound else "in",
                ring=link.is_ring,
                found_by=link.found_by,
                rtt=link.rtt,
                since=max(0.0, at.now - link.up_at),
            )
            for peer, link in self._core.links_up.items()
        )

    def counters(self) -> dict[str, int]:
        """How often something was dropped, refused or odd, by reason."""
        counters = self._core.connections.counters
        return {**counters, **self._plane.office.counters, **self._plane.ledger.counters}

    def load(self) -> Load:
        """What the message plane holds now, and what it did."""
        return self._plane.office.load()

    @property
    def is_joined(self) -> bool:
        """Has this node taken its life?"""
        return self._core.life is not None

    def version(self) -> Hashable:
        """Differs when what ``members`` shows does, but for what time alone changes:
        ages, and who is suspect or stalled."""
        return self._core.view.hash(), self._plane.office.words, self._core.said

    def view_hash(self) -> bytes:
        """8 bytes, equal on nodes that hold the same claims."""
        return self._core.view.hash()

    # --- timers -------------------------------------------------------------------------------

    def _timer(self, kind: str, key: Hashable) -> None:
        """One timer that is due; what it believed is checked by its desk."""
        neighbours, monitoring = self._neighbours, self._monitoring
        questions, seeking = self._questions, self._seeking
        match kind, key:
            case "beat", _:
                neighbours.beat_all()
                self._leading.stall_due()
            case "silence", _:
                monitoring.silence_due()
            case "rings", _:
                neighbours.follow_rings(questions.suspicions.open)
            case "connect", bytes(peer):
                neighbours.connect_in_turn(peer)
            case "check", bytes(peer):
                neighbours.check(peer)
            case "case", bytes(peer):
                monitoring.case_due(peer)
            case "probe", bytes(peer):
                monitoring.probe_due(peer)
            case "accuse", bytes(peer):
                monitoring.accuse_due(peer)
            case "suspicions", _:
                questions.due()
            case "stalls", _:
                questions.stalls_due()
            case "sweep", _:
                monitoring.sweep()
            case "side", _:
                self._side.due()
            case "orphan", str(guest):
                self._orphans.due(guest)
            case "alone", _:
                self._joining.alone_due()
            case "rival", _:
                self._doubles.rival_due()
            case "lonely", _:
                seeking.lonely_due()
            case "candidates", _:
                seeking.dial_candidates()
            case "stagger", tuple(attempt):
                seeking.stagger_due(attempt)
            case "heal", _:
                seeking.heal()
            case (("claim" | "authority"), _):
                self._leading.settle()
            case "reach", _:
                self._leading.reach_due()
            case "handshake", int(link):
                self._dispatch.handshake_due(link)
            case "flush", int(link):
                found = self._core.connections.links.get(link)
                if found is not None:
                    self._core.touch(found)
            case "news", _:
                pass  # what is due is told with every input
            case "look", _:
                self._plane.look()
            case "hearsay", _:
                self._sleeping.wake()
            case "doubt", _:
                self._sleeping.doubt_due()
            case "word", _:
                self._word.tell()
            case "leave", _:
                self._leave_when_drained()
            case "housekeeping", _:
                self._keep_house()
            case _:
                raise AssertionError(f"nobody handles the timer {kind!r}")

    def _keep_house(self) -> None:
        core = self._core
        core.timers.set("housekeeping", None, core.at.now + _HOUSEKEEPING)
        core.view.expire(core.at.now)
        self._lookup.changed()
        for peer in self._side.close_idle():
            self._plane.reach().unlinked(core.at, peer)

    # --- leaving --------------------------------------------------------------------------------

    def _leave_when_drained(self) -> None:
        core = self._core
        assert self._leaving_until is not None
        is_over = self._plane.office.is_drained and not self._is_working
        if not is_over and core.at.now < self._leaving_until:
            core.timers.set("leave", None, core.at.now + 0.02)
            return
        self._joining.leave()
        self._settle()
        core.spread()
        goodbye = wire.News((core.record.item,))
        for link in tuple(core.connections.links.values()):
            # Of two links to one peer it may have closed the one that I speak on.
            if link.is_open and (link.peer is None or core.links_up.get(link.peer) is not link):
                link.say(goodbye)
            core.connections.close(link, "leaving")
        core.links_up.clear()
        core.act(Stop("left"))
        self._is_stopped = True

    # --- settling -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Hand what changed to all who follow, until nothing changes any more."""
        core = self._core
        self._monitoring.follow_questions()
        self._leading.follow_questions()
        if self._membership.own_seen:
            self._doubles.own_came_back()
        while core.changes:
            changes, core.changes = core.changes, []
            self._lookup.changed(changes)
            self._monitoring.settle(changes)
            self._seeking.settle(changes)
            self._doubles.settle(changes)
            self._report(changes)
            self._orphans.settle(changes)
            self._leading.follow()
            self._plane.follow(changes)
        self._plane.settle()
        if core.changes:
            self._settle()

    def _report(self, changes: list[Changed]) -> None:
        """Events begin with ``joined``; then come all whom it joined, then what changes."""
        core = self._core
        if core.life is None:
            return
        if self._is_introduced:
            for change in changes:
                event = event_of(change, core.view, core.me)
                if event is not None:
                    core.act(event)
            return
        self._is_introduced = True
        for held in core.view.all_alive():
            if held.id != core.me:
                core.act(MemberJoined(**who(held.record)))
