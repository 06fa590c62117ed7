"""A node's answers to registry calls, and what changes its guests without a call.

    perform   a call about an instance that is at home here, or that nobody else answers
    follow    the view changed: guests that live elsewhere by now go
    sweep     guests that were silent too long

Where an instance is was looked up before (``places``); ``guestdesk`` has the table.
Not here: asking other homes, and what a guest's entry says (``guests``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.acks import KeptAcks
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.calls import NO_LETTERS, Body
from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.guests import Guests, is_registrable
from p2pmesh.protocol.home import HandOver, Home
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.places import Place, Where
from p2pmesh.protocol.stamps import joining_stamp
from p2pmesh.protocol.types import Envelope, GuestEntry, Instant, State, Table
from p2pmesh.protocol.waits import Reader, Wait
from p2pmesh.protocol.ways import Announce, Ways


class Outcome(NamedTuple):
    """The end of a call, as ``types.CallEnded`` has it; or ``WAITING``."""

    status: str
    letters: wire.Letters = NO_LETTERS


WAITING: Final = Outcome("waiting")


class Registrar:
    """The guests of this home, and who asks about them here."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        home: Home,
        answering: Answering,
        acks: KeptAcks,
        counters: Counter[str],
        entropy: Callable[[int], bytes],
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self.guests = Guests(directory.me)
        self._directory = directory
        self._ways = ways
        self._home = home
        self._answering = answering
        self._acks = acks
        self._counters = counters
        self._entropy = entropy
        self._life = directory.my_life()

    # --- calls ------------------------------------------------------------------------

    def perform(
        self, at: Instant, where: Where, instance_id: str, body: Body, reader: Reader
    ) -> Outcome:
        """Answer here: it is at home here, or whoever should have answered did not."""
        match body:
            case wire.RegisterBody():
                return self._register(at, where, instance_id, body)
            case wire.HeartbeatBody():
                return self._heartbeat(at, where, instance_id, body)
            case wire.ReadBody():
                return self.read(at, where, instance_id, body, reader)
            case wire.AckBody():
                return self._acknowledge(at, where, instance_id, body)
            case Envelope():
                return self._respond(body)
            case None:
                return self._deregister(at, where, instance_id)

    def _register(
        self, at: Instant, where: Where, instance_id: str, body: wire.RegisterBody
    ) -> Outcome:
        life = self._directory.my_life()
        if where.place is Place.AGENT:
            return Outcome("conflict")
        if life is None:
            return Outcome("unavailable")
        if not is_registrable(instance_id, body):
            return Outcome("too_large")
        if where.place is not Place.MINE and self.guests.is_full():
            self._counters["guests_full"] += 1
            return Outcome("full")
        random = int.from_bytes(self._entropy(4))
        stamp = joining_stamp(at.wall, self._directory.highest(), at.wall, None, random)
        self._announce(
            self.guests.register(at, instance_id, body, life=life, known=where.entry, stamp=stamp)
        )
        self._home.mailboxes.open(instance_id)
        return Outcome("ok")

    def _heartbeat(
        self, at: Instant, where: Where, instance_id: str, body: wire.HeartbeatBody
    ) -> Outcome:
        if where.place is Place.AGENT:
            return Outcome("ok")
        if where.place is Place.NOWHERE or where.entry is None:
            return self._unknown()
        if where.place is not Place.MINE:
            refused = self._adopt(at, instance_id, where.entry)
            if refused is not None:
                return refused
        elif not self.guests.can_revive(at, instance_id):
            return Outcome("unknown")
        self._announce(self.guests.beat(at, instance_id, body.status, body.metrics))
        return Outcome("ok")

    def _adopt(self, at: Instant, instance_id: str, entry: GuestEntry) -> Outcome | None:
        """Its home does not answer for it any more; None: it lives here now."""
        life = self._directory.my_life()
        if life is None:
            return Outcome("unavailable")
        if self.guests.is_full():
            self._counters["guests_full"] += 1
            return Outcome("full")
        self._counters["guest_adopted"] += 1
        self._announce(self.guests.adopt(at, entry, life))
        self._home.mailboxes.open(instance_id)
        return None

    def _unknown(self) -> Outcome:
        """Nobody here knows it; before this node is told who is here that says nothing."""
        return Outcome("unknown" if self._directory.is_informed() else "unavailable")

    def _deregister(self, at: Instant, where: Where, instance_id: str) -> Outcome:
        match where.place:
            case Place.AGENT:
                return Outcome("forbidden")
            case Place.NOWHERE:
                return self._unknown()
            case Place.REMOTE:
                return Outcome("unavailable")
            case Place.ORPHAN:
                assert where.entry is not None
                refused = self._adopt(at, instance_id, where.entry)
                if refused is not None:
                    return refused
        self._announce(self.guests.leave(instance_id))
        self._home.close(instance_id)
        return Outcome("ok")

    def read(
        self, at: Instant, where: Where, instance_id: str, body: wire.ReadBody, reader: Reader
    ) -> Outcome:
        box = self._home.mailboxes.get(instance_id) if where.home == self._ways.me else None
        is_elsewhere = where.place in (Place.REMOTE, Place.AGENT)
        if box is None and (is_elsewhere or self._directory.my_life() is None):
            return Outcome("unavailable")
        letters = box.read(body.limit) if box is not None else ()
        if not letters and body.wait > 0 and not self._home.is_leaving:
            seconds = min(body.wait / 1000, timing.READ_WAIT_MAX)
            return self.wait(Wait(instance_id, reader, body.limit, at.now + seconds))
        if where.place is Place.ORPHAN:  # its mail is where nobody can ask until it beats
            return Outcome("unavailable")
        return Outcome(
            "ok",
            wire.Letters(
                tuple(letter.envelope for letter in letters),
                tuple(letter.via for letter in letters),
            ),
        )

    def wait(self, wait: Wait) -> Outcome:
        return WAITING if self._home.waits.add(wait) else Outcome("busy")

    def _acknowledge(
        self, at: Instant, where: Where, instance_id: str, body: wire.AckBody
    ) -> Outcome:
        if where.home == self._ways.me:
            self._home.acknowledge(at, instance_id, body.message_ids)
        elif where.place is not Place.NOWHERE or not self._directory.is_informed():
            self._acks.keep(at, instance_id, body.message_ids)
        return Outcome("ok")

    def _respond(self, response: Envelope) -> Outcome:
        query = self._answering.asked_with(response.correlation_id)
        if query is None or query.instance_id != response.source:
            return Outcome("unknown")
        self._answering.answer(query, response)
        return Outcome("ok")

    def _announce(self, entry: GuestEntry | None) -> None:
        if entry is not None:
            self._ways.effects.append(Announce(entry))
            self._keep(entry)

    # --- the store --------------------------------------------------------------------

    def _keep(self, entry: GuestEntry) -> None:
        key = entry.instance_id.encode()
        if entry.state is State.LEFT:
            self._ledger.gone(Table.GUESTS, key)
        else:
            self._ledger.put(Table.GUESTS, key, entry)

    def restore(self, at: Instant) -> None:
        """Take up the guests of an earlier process."""
        for _, entry in self._ledger.restored(Table.GUESTS, GuestEntry):
            if entry.home == self._ways.me and not self.guests.is_full():
                self.guests.restore(at, entry)
                self._home.mailboxes.open(entry.instance_id)
        self._life = None  # their entries are of an earlier one

    # --- changes and time -------------------------------------------------------------

    def follow(self, at: Instant, instances: Collection[str]) -> list[tuple[str, list[HandOver]]]:
        """Entries, or my life, changed.  Returns what guests that live elsewhere by
        now had not finished here."""
        life = self._directory.my_life()
        if life is not None and life != self._life:
            self._life = life
            for entry in self.guests.relive(at, life):
                self._announce(entry)
        moved: list[tuple[str, list[HandOver]]] = []
        for instance_id in instances:
            if instance_id not in self.guests:
                continue
            instance = self._directory.instance(instance_id)
            if is_live(instance) and instance.kind == "node":
                self._announce(self.guests.leave(instance_id))  # an agent outbids a guest
            elif self._is_outbid(at, instance_id):
                self.guests.drop(instance_id)
                self._ledger.gone(Table.GUESTS, instance_id.encode())
            else:
                continue
            self._counters["guest_outbid"] += 1
            moved.append((instance_id, self._home.move_out(at, instance_id)))
        return moved

    def _is_outbid(self, at: Instant, instance_id: str) -> bool:
        """Has another home the guest now?  Not if it is heard here and not there: then
        mine is made the highest entry again."""
        entry = self._directory.entry(instance_id)
        if entry is not None and self.guests.is_untold(instance_id):
            is_other = entry.home != self._ways.me and entry.state is State.ALIVE
            if is_other and self._directory.node_life(entry.home) == entry.home_life:
                return True  # whatever its term: mine is a memory
        if entry is None or not self.guests.is_outbid(entry, instance_id):
            return False
        life = self._directory.my_life()
        if life is None or self._is_heard_there(entry, instance_id):
            return True
        if not self.guests.is_heard(at, instance_id):
            return True
        self._counters["guest_reclaimed"] += 1
        self._announce(self.guests.reclaim(instance_id, entry, life))
        return False

    def _is_heard_there(self, entry: GuestEntry, instance_id: str) -> bool:
        """Is this the word of a home that hears the guest, or heard it leave?"""
        if entry.state is State.LEFT:
            guest = self.guests.get(instance_id)
            return guest is None or entry.life >= guest.entry.life  # else: an earlier one left
        life = self._directory.node_life(entry.home)  # None: it may be on its way back
        return entry.state is State.ALIVE and (life is None or life <= entry.home_life)

    def sweep(self, at: Instant) -> None:
        for entry in self.guests.sweep(at):
            self._announce(entry)
            if entry.state is State.LEFT:
                self._home.close(entry.instance_id)
