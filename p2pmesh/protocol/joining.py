"""The joining desk: strangers, HELLOs, stamps, doubles, and healing.

A node begins unstamped.  It takes its life under the first stamped node it meets,
or founds a mesh when it meets nobody::

    newcomer ── HELLO(life: null, uptime) ──► contact
    newcomer ◄── HELLO(highest stamp M) ───── contact
      stamps itself above M
    newcomer ── News(record) ──► contact ──► everyone
    newcomer ── Want(everything) ──► contact ── Offer(snapshot) ──► newcomer

Two unstamped nodes: the one up longer founds, the other joins under it.  A dial
teaches both sides, so whoever discovers somebody dials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.candidates import Candidates
from p2pmesh.protocol.core import VERSIONS, Changed, Core
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.links import Link, Phase, stays
from p2pmesh.protocol.members import Change, Tombstone
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.records import RecordError, SignedRecord, is_plausible
from p2pmesh.protocol.stamps import (
    founding_stamp,
    founds_first,
    is_clock_set,
    joining_stamp,
)
from p2pmesh.protocol.types import (
    Alone,
    Candidate,
    DoubleIdentity,
    FoundBy,
    Joined,
    Life,
    NodeId,
    PeerRejected,
    State,
    Stop,
)

_AT_ONCE: Final = 3  # candidates an unstamped node dials together
_REJECTIONS_MAX: Final = 256


class Joining:
    """How this node meets others and takes its life."""

    def __init__(
        self, core: Core, membership: Membership, neighbours: Neighbours, monitoring: Monitoring
    ) -> None:
        self._core = core
        self._membership = membership
        self._neighbours = neighbours
        self._monitoring = monitoring
        self.candidates = Candidates()
        self._restamped = False
        self._rejected: set[tuple[str, str]] = set()
        self._failed_addresses: dict[NodeId, tuple[str, ...]] = {}

    # --- starting ---------------------------------------------------------------------

    def start(self) -> None:
        now = self._core.at.now
        timers = self._core.timers
        timers.set("alone", None, now + timing.ALONE_AFTER)
        timers.set("lonely", None, now + timing.ALONE_WARNING_AFTER)
        self._arm_candidates()

    def alone_due(self) -> None:
        """Nobody met: found a mesh, unless somebody is being dialled (5 s at most)."""
        core = self._core
        if core.life is not None:
            return
        shaking = any(not link.is_up for link in core.connections.links.values())
        pending = self.candidates.pending() or shaking or bool(core.links_up)
        latest = core.started.now + timing.STAMP_LATEST
        if pending and core.at.now < latest - 0.001:
            core.timers.set("alone", None, min(core.at.now + 0.1, latest))
        else:
            self.found()

    def lonely_due(self) -> None:
        """Alone for 10 s: say what was tried."""
        if not self._core.links_up and self._core.view.alive_count <= 1:
            self._core.act(Alone(tried=self.candidates.tried_addresses()))

    # --- candidates -------------------------------------------------------------------

    def candidate_found(self, candidate: Candidate) -> None:
        """An unstamped node dials at once; a member lets a newcomer come first."""
        core = self._core
        delay = 0.0
        if core.life is not None and candidate.found_by is not FoundBy.PEER:
            delay = core.rng.uniform(timing.NEWCOMER_DIAL_MIN, timing.NEWCOMER_DIAL_MAX)
        if not self.candidates.add(candidate, core.at.now, delay):
            core.count("candidate_known_or_deferred")
        offer = self.candidates.offers.get(candidate.key)
        if offer is not None and not offer.is_dialling:
            core.timers.set_earlier("candidates", None, max(offer.due_at, core.at.now))

    def candidate_lost(self, key: str) -> None:
        self.candidates.remove(key, self._core.at.now)
        self._arm_candidates()

    def dial_candidates(self) -> None:
        core = self._core
        now = core.at.now
        under_way = self.candidates.dialling() if core.life is None else 0
        for offer in self.candidates.due(now):
            candidate = offer.candidate
            if self._is_member(candidate, offer.node):
                self.candidates.spare(candidate.key, now)
            elif core.life is None and under_way >= _AT_ONCE:
                offer.due_at = now + 0.1
            else:
                attempt = core.connections.attempt(
                    Purpose.CANDIDATE,
                    candidate.key,
                    candidate.addresses,
                    candidate.found_by,
                )
                if attempt is None:  # offered, withdrawn and offered again: the first dial lasts
                    offer.due_at = now + timing.CANDIDATE_RETRY
                else:
                    offer.is_dialling = True
                    under_way += 1
                    self._stagger(attempt)
        self._arm_candidates()

    def _is_member(self, candidate: Candidate, answered: NodeId | None) -> bool:
        """Is who is offered a live member already?  Its addresses decide, so that a
        lying advertisement keeps nobody from being dialled."""
        core = self._core
        if core.life is None:
            return False
        for node in (answered, candidate.node_id):
            held = core.view.alive(node) if node is not None else None
            if held is not None and (
                node == answered or set(candidate.addresses) & set(held.record.addresses)
            ):
                return True
        return any(
            address in held.record.addresses
            for held in core.view.all_alive()
            if held.id != core.me
            for address in candidate.addresses
        )

    def _stagger(self, attempt: Attempt) -> None:
        if attempt.waiting:
            self._core.timers.set(
                "stagger",
                (attempt.purpose, attempt.target),
                self._core.at.now + timing.DIAL_STAGGER,
            )

    def stagger_due(self, key: tuple[Purpose, NodeId | str]) -> None:
        """Dial the attempt's next address beside the first."""
        attempt = self._core.connections.attempts.get(key)
        if attempt is not None:
            self._core.connections.dial_next(attempt)
            self._stagger(attempt)

    def _arm_candidates(self) -> None:
        due = self.candidates.next_due()
        if due is not None:
            self._core.timers.set("candidates", None, max(due, self._core.at.now))

    def candidate_tried(self, attempt: Attempt, node: NodeId | None) -> None:
        assert isinstance(attempt.target, str)
        self.candidates.tried(attempt.target, self._core.at.now, node=node)
        self._arm_candidates()

    # --- HELLO ------------------------------------------------------------------------

    def say_hello(self, link: Link) -> None:
        """The first message on an established link."""
        core = self._core
        attempt = link.attempt
        link.is_check = attempt is not None and self._only_checks(attempt)
        core.tell(
            link,
            wire.Hello(
                record=core.record.signed,
                versions=VERSIONS,
                process=core.config.process,
                wall=core.at.wall,
                uptime=self._uptime(),
                highest=core.view.highest if core.life is not None else None,
                check=link.is_check,
                replaces=attempt.replaces if attempt is not None else None,
                dial=link.dial,
            ),
        )
        core.timers.set("handshake", link.id, link.opened_at + timing.HANDSHAKE_TIMEOUT)

    def _only_checks(self, attempt: Attempt) -> bool:
        """A check asks whether the peer lives.  So does a probe of a member that I
        neither watch nor have a link to."""
        if attempt.purpose is Purpose.CHECK:
            return True
        return (
            attempt.purpose is Purpose.PROBE
            and attempt.replaces is None
            and attempt.target not in self._neighbours.targets
        )

    def hello(self, link: Link, hello: wire.Hello) -> None:
        """The peer's first message: prove who it is, learn of each other, join."""
        core = self._core
        try:
            signed = core.book.record(hello.record)
        except RecordError as error:
            self._reject(link, str(error))
            return
        record = signed.record
        if record.noise_key != link.session.remote_key:
            self._reject(link, "record of another")
        elif max(hello.versions[0], VERSIONS[0]) > min(hello.versions[1], VERSIONS[1]):
            low, high = hello.versions
            self._reject(link, f"speaks versions {low}..{high}, we {VERSIONS[0]}..{VERSIONS[1]}")
        elif hello.highest is not None and not is_plausible(hello.highest):
            self._reject(link, "implausible stamp")
        elif record.id == core.me:
            self._met_myself(link, hello, signed)
        else:
            link.hello = hello
            self._met(link, hello, signed)

    def _met(self, link: Link, hello: wire.Hello, signed: SignedRecord) -> None:
        core = self._core
        peer = signed.record.id
        attempt = link.attempt
        link.peer = peer
        core.connections.finish_handshake(link)
        link.phase = Phase.UP
        link.up_at = core.at.now
        core.timers.cancel("handshake", link.id)
        link.is_strangers = self._is_of_another_mesh(signed)
        self._membership.record(signed, link, flood=True)
        if attempt is not None:
            if attempt.expects in (None, peer):
                self._reached(attempt, link, peer)
            else:
                self._answered_by_another(attempt, link)
        if link.is_check:
            self._neighbours.note_met(peer, link.address)
            self._monitoring.heard(link)
            core.connections.close(link, "checked")
        elif hello.check:
            self._monitoring.heard(link)
            self._retire(link)  # its dialler ends it
        elif self._keep(link):
            self._linked(link, hello, signed)

    def _is_of_another_mesh(self, signed: SignedRecord) -> bool:
        """No member of mine, and no newcomer either, who would be younger than all I
        know: where two meshes meet, at least one end sees the other so."""
        core = self._core
        life = signed.record.life
        return life is not None and life < core.view.highest and not core.view.is_alive(signed.id)

    def _answered_by_another(self, attempt: Attempt, link: Link) -> None:
        """At the peer's address somebody else lives now: the peer's process is gone, or
        lives at its next address."""
        attempt.links.discard(link.id)
        if attempt.purpose is Purpose.PROBE and attempt.expects is not None:
            self._monitoring.another_answered(attempt.expects)

    def _reached(self, attempt: Attempt, link: Link, peer: NodeId) -> None:
        core = self._core
        core.connections.finish(attempt)
        if attempt.purpose is Purpose.CANDIDATE:
            self.candidate_tried(attempt, peer)

    def _keep(self, link: Link) -> bool:
        """Of two links to one life, keep the one both ends keep."""
        core = self._core
        assert link.peer is not None
        old = core.links_up.get(link.peer)
        if old is None or old is link:
            return True
        same_process = (
            old.hello is not None
            and link.hello is not None
            and old.hello.process == link.hello.process
        )
        kept = stays(core.me, link, old) if same_process else link
        lost = old if kept is link else link
        self._retire(lost)
        return kept is link

    def _retire(self, link: Link) -> None:
        """A link that lost: its dialler ends it, the other end reads on until then,
        so that nothing under way on it is lost."""
        if link.is_outbound:
            self._core.connections.close(link, "duplicate")
        else:
            link.phase = Phase.RETIRING
            self._core.timers.set("handshake", link.id, self._core.at.now + 5.0)

    def take_back(self, peer: NodeId) -> bool:
        """The dialler of the link in use gave it up.  Had it been in use there too, the one
        that it replaced would be closed: if that one is still open it is in use again."""
        core = self._core
        for link in core.connections.links.values():
            is_check = link.hello is not None and link.hello.check
            if link.peer == peer and link.phase is Phase.RETIRING and not is_check:
                core.timers.cancel("handshake", link.id)
                link.phase = Phase.UP
                core.links_up[peer] = link
                self._monitoring.link_up(link)
                return True
        return False

    def _linked(self, link: Link, hello: wire.Hello, signed: SignedRecord) -> None:
        core = self._core
        assert link.peer is not None
        core.links_up[link.peer] = link
        presets = core.config.preset, signed.record.preset
        link.silence_after = timing.slower(*presets).silence_after
        self._monitoring.link_up(link)
        if core.life is None:
            self._join_over(link, hello, signed)

    # --- stamps -----------------------------------------------------------------------

    def _join_over(self, link: Link, hello: wire.Hello, signed: SignedRecord) -> None:
        """I am unstamped: join under this peer, or found before it does."""
        core = self._core
        if signed.record.life is not None:
            self._join_under(link, hello.highest or signed.record.life, hello.wall)
        elif founds_first(self._uptime(), core.me, hello.uptime, signed.id):
            self.found()

    def consider(self, link: Link) -> None:
        """News came over a link: perhaps its peer stamped itself just now."""
        core = self._core
        if core.life is not None or link.peer is None or link.hello is None:
            return
        signed = core.view.alive(link.peer)
        if signed is not None:
            life = signed.version.life
            self._join_under(link, max(link.hello.highest or life, life), link.hello.wall)

    def _join_under(self, link: Link, highest: Life, contact_wall: int) -> None:
        core = self._core
        life = joining_stamp(
            core.at.wall,
            max(highest, core.view.highest),
            contact_wall,
            core.restored.life,
            self._random(),
        )
        self._take(life, link.peer)
        self._membership.ask_snapshot(link)

    def found(self) -> None:
        """Begin a mesh: the stamp is my own clock's."""
        core = self._core
        self._take(founding_stamp(core.at.wall, core.restored.life, self._random()), None)

    def _take(self, life: Life, contact: NodeId | None) -> None:
        core = self._core
        core.publish(msgspec.structs.replace(core.record.record, life=life, epoch=None))
        core.act(Joined(life=str(life), contact=contact.hex() if contact else None))

    def restamp(self, link: Link, message: wire.Restamp) -> None:
        """A node whose clock is set refuses my life, stamped before 2024."""
        core = self._core
        if core.life is None or is_clock_set(core.life) or not is_clock_set(message.highest):
            return
        if not is_plausible(message.highest):
            core.count("implausible_stamp")
            return
        life = joining_stamp(
            core.at.wall, message.highest, message.wall, core.restored.life, self._random()
        )
        for node, held in tuple(core.view.nodes.items()):
            if node != core.me and not is_clock_set(held.version.life):
                if core.view.is_alive(node):
                    core.changes.append(Changed(node, Change.LEFT, held))
                core.view.forget(node)
        record = core.record.record
        core.publish(
            msgspec.structs.replace(record, life=life, incarnation=0, revision=0, epoch=None)
        )
        core.act(Joined(life=str(life), contact=link.peer.hex() if link.peer else None))

    # --- myself, elsewhere ------------------------------------------------------------

    def _met_myself(self, link: Link, hello: wire.Hello, theirs: SignedRecord) -> None:
        """My own id answered: this process, or a copy of its identity."""
        core = self._core
        attempt = link.attempt
        if hello.process == core.config.process:
            if attempt is not None and isinstance(attempt.target, str):
                core.connections.finish(attempt)
                self.candidates.is_myself(attempt.target, core.at.now)
            elif attempt is not None:
                self._answered_by_another(attempt, link)
            core.connections.close(link, "myself")
            return
        mine = core.life or Life(0, 0, 0)
        core.connections.close(link, "double")
        self._double((link.address, *core.config.addresses))
        if (mine, core.config.process) < (theirs.record.life or Life(0, 0, 0), hello.process):
            core.act(Stop("double"))

    def own_came_back(self) -> None:
        """Records of my id that others hold."""
        core = self._core
        for signed in self._membership.own_seen:
            theirs, mine = signed.record, core.record.record
            if mine.life is None or theirs.life is None or core.has_left:
                if theirs.life is not None and core.life is None:
                    core.view.highest = max(core.view.highest, theirs.life)
                continue
            if theirs.life > mine.life:
                self._outlived(theirs.life, theirs.addresses)
            elif theirs.life == mine.life and signed.version > core.record.version:
                self._membership.raise_incarnation(theirs.incarnation)
        self._membership.own_seen.clear()

    def _outlived(self, life: Life, addresses: tuple[str, ...]) -> None:
        """My id lives under a higher life: restamp above it once; the second time
        somebody else is alive with my identity."""
        core = self._core
        if self._restamped:
            self._double((*addresses, *core.config.addresses))
            core.act(Stop("double"))
            return
        self._restamped = True
        self._rise_above(life)

    def _rise_above(self, life: Life) -> None:
        core = self._core
        above = Life(life.ms, life.logical + 1, self._random())
        core.publish(
            msgspec.structs.replace(
                core.record.record, life=above, incarnation=0, revision=0, epoch=None
            )
        )
        core.act(Joined(life=str(above), contact=None))

    def buried(self, verdict: wire.Verdict) -> None:
        """Somebody says that I failed: I refute.  A tombstone of a later life than
        mine is of one that I have forgotten: nobody would take me below it."""
        life = self._core.life
        if life is None or self._core.has_left:
            return
        if verdict.life == life:
            self._membership.raise_incarnation(verdict.incarnation)
        elif verdict.life > life and is_plausible(verdict.life):
            self._rise_above(verdict.life)

    def questioned(self, question: wire.Question) -> None:
        """Somebody asks whether I am gone: I answer."""
        life = self._core.life
        if life is not None and question.life == life:
            self._membership.raise_incarnation(question.incarnation)

    def _double(self, addresses: tuple[str, ...]) -> None:
        core = self._core
        agent = core.config.agent
        core.act(
            DoubleIdentity(
                node_id=core.me.hex(),
                instance_id=agent.instance_id if agent else "",
                addresses=addresses,
            )
        )

    def rival_due(self) -> None:
        """An older agent has had my instance id for 5 s: it keeps it."""
        rival = self._rival()
        if rival is not None:
            self._double(rival.record.addresses)
            self._core.act(Stop("an older agent has this instance id"))

    def _rival(self) -> SignedRecord | None:
        """An older live node whose agent has my instance id."""
        mine = self._core.record
        if mine.instance_id is None or self._core.life is None:
            return None
        for held in self._core.view.all_alive():
            if held.instance_id == mine.instance_id and held.seniority < mine.seniority:
                return held
        return None

    def _is_namesake(self, node: NodeId, mine: str) -> bool:
        """Has this node my instance id, and is there an older one that has?"""
        held = self._core.view.nodes.get(node)
        is_same = isinstance(held, SignedRecord) and held.instance_id == mine
        return is_same and self._rival() is not None

    # --- healing ----------------------------------------------------------------------

    def settle(self, changes: Iterable[Changed]) -> None:
        """Remember where failed members were; forget it when they are back or left."""
        mine = self._core.record.instance_id
        for node, change, before in changes:
            if not isinstance(node, bytes):
                continue
            if change is Change.FAILED:
                if isinstance(before, SignedRecord):
                    if len(self._failed_addresses) < limits.FAILED_ADDRESSES_MAX:
                        self._failed_addresses[node] = before.record.addresses
                    self.arm_heal()
                continue
            if self._failed_addresses:
                self._failed_addresses.pop(node, None)
            if change is Change.JOINED and mine is not None and self._is_namesake(node, mine):
                timers = self._core.timers
                timers.set_earlier("rival", None, self._core.at.now + timing.RIVAL_LATEST)

    def arm_heal(self) -> None:
        core = self._core
        if self._failed_addresses and not core.timers.is_set("heal", None):
            pause = max(timing.HEAL_INTERVAL, core.view.alive_count / 10)
            core.timers.set("heal", None, core.at.now + pause * core.rng.uniform(0.5, 1.0))

    def heal(self) -> None:
        """While anyone is failed, dial one of them now and then."""
        core = self._core
        for node in tuple(self._failed_addresses):
            if not isinstance(core.view.nodes.get(node), Tombstone):
                del self._failed_addresses[node]
        if self._failed_addresses:
            node = core.rng.choice(sorted(self._failed_addresses))
            attempt = core.connections.attempt(
                Purpose.HEAL, node, self._failed_addresses[node], FoundBy.GOSSIP
            )
            if attempt is not None:
                self._stagger(attempt)
        self.arm_heal()

    # --- leaving ----------------------------------------------------------------------

    def leave(self) -> None:
        """Sign the goodbye and say it on every link."""
        core = self._core
        if core.life is None or core.has_left:
            return
        core.publish(
            msgspec.structs.replace(core.record.record, state=State.LEFT, epoch=None),
            Urgency.ENDING,
        )

    # --- private ----------------------------------------------------------------------

    def rejected(self, link: Link, reason: str) -> None:
        """A link broke before it was up: said once per host and reason.  The port of
        an inbound link is another each time."""
        known = (link.address.rpartition(":")[0], reason)
        if known in self._rejected or len(self._rejected) >= _REJECTIONS_MAX:
            return
        self._rejected.add(known)
        self._core.act(PeerRejected(reason=reason, address=link.address))

    def _reject(self, link: Link, reason: str) -> None:
        core = self._core
        core.count(f"hello {reason.partition(' ')[0]}")
        self.rejected(link, reason)
        core.connections.close(link, reason)

    def _uptime(self) -> int:
        return int((self._core.at.now - self._core.started.now) * 1000)

    def _random(self) -> int:
        return int.from_bytes(self._core.entropy(4))
