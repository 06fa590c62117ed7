"""The joining desk: HELLOs, which of two links to keep, and the stamp of a life.

A node begins unstamped.  It takes its life under the first stamped node it meets,
or founds a mesh when it meets nobody::

    newcomer ── HELLO(life: null, uptime) ──► contact
    newcomer ◄── HELLO(highest stamp M) ───── contact
      stamps itself above M
    newcomer ── News(record) ──► contact ──► everyone
    newcomer ── Want(everything) ──► contact ── Offer(snapshot) ──► newcomer

Two unstamped nodes: the one up longer founds, the other joins under it.

Not here: whom to dial (``seeking``), and what others hold of my id (``doubles``).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import VERSIONS, Changed, Core
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.doubles import Doubles
from p2pmesh.protocol.links import Link, Phase, stays
from p2pmesh.protocol.members import Change, Tombstone
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.monitoring import Monitoring
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.news import Urgency
from p2pmesh.protocol.records import RecordError, SignedRecord, is_plausible
from p2pmesh.protocol.seeking import Seeking
from p2pmesh.protocol.session import NO_HANDSHAKE
from p2pmesh.protocol.stamps import (
    founding_stamp,
    founds_first,
    is_clock_set,
    joining_stamp,
)
from p2pmesh.protocol.types import (
    Joined,
    Life,
    NodeId,
    PeerRejected,
    State,
    Stop,
)

_REJECTIONS_MAX: Final = 256


class Joining:
    """How this node meets others and takes its life."""

    def __init__(
        self,
        core: Core,
        membership: Membership,
        neighbours: Neighbours,
        monitoring: Monitoring,
        seeking: Seeking,
        doubles: Doubles,
    ) -> None:
        self._core = core
        self._membership = membership
        self._neighbours = neighbours
        self._monitoring = monitoring
        self._seeking = seeking
        self._doubles = doubles
        self._rejected: set[tuple[str, str]] = set()
        self._looks_until = 0.0  # that nobody was found says nothing before

    # --- starting ---------------------------------------------------------------------

    def start(self) -> None:
        core = self._core
        core.timers.set("alone", None, core.at.now + timing.ALONE_AFTER)

    def look(self, *, is_begun: bool) -> None:
        """Discovery is about to begin, which takes a busy machine a while, or has begun."""
        self._looks_until = self._core.at.now + timing.LOOK_GRACE if is_begun else math.inf

    def alone_due(self) -> None:
        """Nobody met: found a mesh, unless somebody is dialled or looked for (5 s at most)."""
        core = self._core
        if core.life is not None:
            return
        shaking = any(not link.is_up for link in core.connections.links.values())
        is_looking = core.at.now < self._looks_until
        pending = is_looking or shaking or bool(core.links_up) or self._seeking.candidates.pending()
        latest = core.started.now + timing.STAMP_LATEST
        if pending and core.at.now < latest - 0.001:
            core.timers.set("alone", None, min(core.at.now + 0.1, latest))
        else:
            self.found()

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
            self._seeking.candidate_tried(attempt, peer)

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
            core.life_number(),
        )
        self._take(life, link.peer)
        self._membership.ask_snapshot(link)

    def found(self) -> None:
        """Begin a mesh: the stamp is my own clock's."""
        core = self._core
        self._take(founding_stamp(core.at.wall, core.restored.life, core.life_number()), None)

    def _take(self, life: Life, contact: NodeId | None) -> None:
        core = self._core
        self._seeking.joined()
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
            core.at.wall, message.highest, message.wall, core.restored.life, core.life_number()
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
                self._seeking.candidates.is_myself(attempt.target, core.at.now)
            elif attempt is not None:
                self._answered_by_another(attempt, link)
            core.connections.close(link, "myself")
            return
        mine = core.life or Life(0, 0, 0)
        core.connections.close(link, "double")
        self._doubles.tell((link.address, *core.config.addresses))
        if (mine, core.config.process) < (theirs.record.life or Life(0, 0, 0), hello.process):
            core.act(Stop("double"))

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
        if reason == NO_HANDSHAKE and self._is_at_a_members(link):
            return  # it is stopped or starved; whoever watches it says so
        known = (link.address.rpartition(":")[0], reason)
        if known in self._rejected or len(self._rejected) >= _REJECTIONS_MAX:
            return
        self._rejected.add(known)
        self._core.act(PeerRejected(reason=reason, address=link.address))

    def _is_at_a_members(self, link: Link) -> bool:
        """Was an address dialled that a member has, be it one that failed?"""
        records = (
            held.last if isinstance(held, Tombstone) else held
            for held in self._core.view.nodes.values()
        )
        return link.is_outbound and any(
            link.address in each.record.addresses for each in records if each is not None
        )

    def _reject(self, link: Link, reason: str) -> None:
        core = self._core
        core.count(f"hello {reason.partition(' ')[0]}")
        self.rejected(link, reason)
        core.connections.close(link, reason)

    def _uptime(self) -> int:
        return int((self._core.at.now - self._core.started.now) * 1000)
