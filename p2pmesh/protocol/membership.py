"""The membership desk: whose word is held, and how gaps are repaired.

Items arrive as news (flooded: passed on once, by whoever they are new to) or as
offers (a repair's answer, or a joiner's snapshot).  A record is applied when the
one precedence rule (``members``) says so, and answered when it is buried: a
record at or below a tombstone is answered with it, so that its owner can refute.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2pmesh.protocol import gossip, limits, timing, wire
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.leader import is_epoch_credible
from p2pmesh.protocol.links import Link
from p2pmesh.protocol.members import Change
from p2pmesh.protocol.news import Urgency, pack
from p2pmesh.protocol.records import RecordError, SignedRecord
from p2pmesh.protocol.stamps import is_clock_set
from p2pmesh.protocol.types import GuestEntry, NodeId, State

#: What a peer knows better than I follows its digest within this time.
_OFFERED_WITHIN: Final = 0.5


class Membership:
    """Applies claims to the view."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pulling: NodeId | None = None
        self._pulled_at = 0.0
        #: Set when a record of my own id came from elsewhere (``joining`` decides).
        self.own_seen: list[SignedRecord] = []

    # --- records and entries ------------------------------------------------------

    def record_item(self, item: wire.RecordItem, source: Link | None, *, flood: bool) -> None:
        try:
            signed = self._core.book.record(item.signed)
        except RecordError as error:
            self._core.count(str(error))
            return
        self.record(signed, source, flood=flood, age=item.age / 1000)

    def record(
        self, signed: SignedRecord, source: Link | None, *, flood: bool, age: float = 0.0
    ) -> None:
        """A node's own word, verified; ``age``: seconds since it left."""
        core = self._core
        record = signed.record
        if record.life is None:
            return
        core.view.hearsay.discard(signed.id)
        if signed.id == core.me:
            if signed is not core.record:
                self.own_seen.append(signed)
            return
        if not is_clock_set(record.life) and core.life is not None and is_clock_set(core.life):
            core.count("stamped_before_2024")
            if source is not None and source.peer == record.id:
                core.tell(source, wire.Restamp(core.view.highest, core.at.wall))
            return
        if record.epoch is not None and not is_epoch_credible(
            record.epoch, core.view.highest_epoch
        ):
            core.count("epoch_jump")
            return
        before = core.view.nodes.get(signed.id)
        change = core.view.offer_record(signed, core.at.now, age)
        if change is Change.NONE:
            return
        if change is Change.FULL:
            core.count("members_full")
        elif change is Change.BURIED:
            if source is not None and before is not None:
                core.tell(source, wire.News((core.view.item(signed.id, before, core.at.now),)))
        else:
            core.changes.append(Changed(signed.id, change, before))
            if flood:
                told = core.view.item(signed.id, signed, core.at.now)
                core.flood(signed.id, told, _urgency(signed, before), source=source)

    def entry_item(self, item: wire.EntryItem, source: Link | None, *, flood: bool) -> None:
        core = self._core
        try:
            signed = core.book.entry(item.signed)
        except RecordError as error:
            core.count(str(error))
            return
        guest = signed.entry.instance_id
        before = core.view.guests.get(guest)
        change = core.view.offer_entry(signed, core.at.now, item.age / 1000)
        if change is Change.FULL:
            core.count("guests_full")
        elif change is not Change.NONE:
            core.changes.append(Changed(guest, change, before))
            if flood:
                told = core.view.item(guest, signed, core.at.now)
                core.flood(guest, told, Urgency.CHANGE, source=source)

    def announce(self, entry: GuestEntry) -> None:
        """My word about my guest."""
        core = self._core
        signed = core.signer.entry(entry)
        before = core.view.guests.get(entry.instance_id)
        change = core.view.offer_entry(signed, core.at.now)
        if change in (Change.JOINED, Change.UPDATED):
            core.changes.append(Changed(entry.instance_id, change, before))
            core.flood(entry.instance_id, signed.item, Urgency.CHANGE)

    def raise_incarnation(self, above: int) -> bool:
        """Refute: I am alive, whatever was said of me up to this incarnation.  False: I said
        that already, or cannot."""
        core = self._core
        record = core.record.record
        if record.life is None or record.incarnation > above or core.has_left:
            return False
        if above >= limits.INCARNATION_MAX:
            core.count("incarnation_range")
            return False
        core.publish(
            msgspec.structs.replace(record, incarnation=above + 1, revision=0), Urgency.QUESTION
        )
        return True

    def readdress(self, addresses: tuple[str, ...]) -> None:
        """My link addresses changed."""
        core = self._core
        record = core.record.record
        kept = addresses[: limits.ADDRESSES_MAX]
        if kept != record.addresses and not core.has_left:
            core.publish(
                msgspec.structs.replace(record, addresses=kept, revision=record.revision + 1)
            )

    # --- repair -------------------------------------------------------------------

    def beat(self, link: Link, view_hash: bytes) -> None:
        """A peer told its view's hash.  A repair is opened by the same difference on two
        beats in a row, by any on many in a row, or at once on a stranger's link (two
        meshes meet, a split heals).  A hash is the XOR of what is held, so what both
        learn meanwhile leaves the difference as it is; one that changes is the flood,
        on its way."""
        core = self._core
        if link.peer is not None:
            core.view.hearsay.discard(link.peer)
        mine = core.view.hash()
        if view_hash == mine:
            link.differing_beats, link.difference = 0, 0
            core.view.hearsay.clear()
            return
        before = link.difference
        link.difference = int.from_bytes(mine) ^ int.from_bytes(view_hash)
        link.differing_beats += 1
        is_gap = link.difference == before or link.differing_beats >= timing.REPAIR_AFTER_BEATS
        if is_gap or link.is_strangers or core.view.hearsay:
            link.is_strangers = False
            self._pull(link)

    def _pull(self, link: Link) -> None:
        """One peer at a time, and each at most every 5 s."""
        core = self._core
        now = core.at.now
        if core.life is None or now - link.repaired_at < timing.REPAIR_INTERVAL:
            return
        is_pulling = now - self._pulled_at < timing.REPAIR_INTERVAL and (
            self._pulling in core.links_up and self._pulling != link.peer
        )
        if is_pulling:
            return
        self._pulling, self._pulled_at = link.peer, now
        link.repaired_at = now
        link.differing_beats, link.difference = 0, 0
        core.tell(link, gossip.buckets(core.view))

    def buckets(self, link: Link, theirs: wire.Buckets) -> None:
        if not self._may_ask(link):
            return
        digest = gossip.digest(self._core.view, theirs)
        if digest is not None:
            self._core.tell(link, digest)

    def digest(self, link: Link, theirs: wire.Digest) -> None:
        core = self._core
        if core.view.hearsay:
            gossip.confirm(core.view, theirs)
            core.timers.set_earlier("doubt", None, core.at.now + _OFFERED_WITHIN)
        items, want = gossip.compare(core.view, theirs, core.at.now)
        for group in pack(items):
            core.tell(link, wire.Offer(group))
        if want is not None:
            core.tell(link, want)
        else:
            self._pulling = None

    def want(self, link: Link, want: wire.Want) -> None:
        core = self._core
        if not self._may_ask(link):
            return
        for offer in gossip.offers(core.view, want, core.at.now):
            core.tell(link, offer)
        if not want.subjects:  # a newcomer: until its ring links are up this one serves
            link.fed_until = core.at.now + timing.NEWCOMER_FED

    def _may_ask(self, link: Link) -> bool:
        if link.may_ask_repair(self._core.at.now):
            return True
        self._core.count("repair_too_often")
        return False

    def drop_doubtful_guests(self) -> None:
        """Nobody said again that these are registered: their homes would have."""
        core = self._core
        for guest in [key for key in core.view.hearsay if isinstance(key, str)]:
            before = core.view.guests[guest]
            core.view.forget_guest(guest)
            core.changes.append(Changed(guest, Change.LEFT, before))

    def offered(self, link: Link, *, ends_snapshot: bool) -> None:
        """An offer of this peer was taken in: the next pull may go elsewhere."""
        if ends_snapshot:
            self._core.uninformed_until = 0.0
        if self._pulling == link.peer:
            self._pulling = None

    def ask_snapshot(self, link: Link) -> None:
        """A joiner's one snapshot, from its contact."""
        self._core.uninformed_until = self._core.at.now + timing.SNAPSHOT_PATIENCE
        self._pulling = link.peer
        self._pulled_at = link.repaired_at = self._core.at.now
        self._core.tell(link, wire.Want(b""))


def _urgency(signed: SignedRecord, before: object) -> Urgency:
    """Refutations first, then goodbyes and claims, then the rest."""
    record = signed.record
    if record.state is State.LEFT:
        return Urgency.ENDING
    if isinstance(before, SignedRecord):
        if record.incarnation > before.record.incarnation:
            return Urgency.QUESTION
        if record.epoch != before.record.epoch:
            return Urgency.ENDING
    return Urgency.CHANGE
