"""Sending: a message finds its recipient, or the request that it answers.

    send ─┬─ a Response: does it answer a request here? at its source's home?
          └─ find the target ─┬─ an instance: into the outbox (a request: ask its home)
                              ├─ ambiguous: refused
                              └─ nobody: wait, look again when someone appears

A copy whose name lost its holder before it was stored comes back here, and its
name is looked up again.

Not here: streams (``outbox``), and what a target means (``targets``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal

import msgspec

from p2pmesh.errors import MessageTooLarge, QueueFull, UnknownTarget
from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.answering import Answering
from p2pmesh.protocol.asking import Asked, Asking
from p2pmesh.protocol.deadletters import DeadLetters
from p2pmesh.protocol.directory import (
    Directory,
    away,
    is_gone_for_good,
    is_live,
    why_unreachable,
)
from p2pmesh.protocol.envelopes import Account, uuid7
from p2pmesh.protocol.guestdesk import GuestDesk
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.nearest import nearest
from p2pmesh.protocol.outbox import Outbox
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.streams import Item
from p2pmesh.protocol.targets import Absence, Ambiguous, Parcel, Waiting, find
from p2pmesh.protocol.tracking import Ended, Tracking
from p2pmesh.protocol.types import (
    DeadCopy,
    Envelope,
    Instance,
    Instant,
    MessageKept,
    MessageMoved,
    Recipient,
    SendRefused,
    Table,
)
from p2pmesh.protocol.ways import Ways


class _ParcelRow(msgspec.Struct, frozen=True, array_like=True):
    """What waits for a holder of its name, on disk."""

    envelope: Envelope
    target: str
    named: bool
    expires_at: float  # store time


def make_envelope(
    at: Instant,
    entropy: Callable[[int], bytes],
    source: str,
    target: str | None,
    type: str,
    payload: Payload,
    correlation_id: str | None,
    message_id: str | None = None,
) -> Envelope:
    """A new message, under an id of its sender's or of its own.  Raises MessageTooLarge."""
    if len(payload) > limits.PAYLOAD_MAX:
        raise MessageTooLarge(
            f"the payload takes {len(payload)} bytes, the limit is {limits.PAYLOAD_MAX}"
        )
    message_id = message_id or uuid7(at.wall, entropy)
    return Envelope(message_id, source, target, type, payload, correlation_id, at.wall * 1000)


def deadline(at: Instant, seconds: float) -> float:
    """The moment that far ahead, within what a TTL may be."""
    return at.now + min(max(seconds, 0.0), timing.WATERMARK_TTL)


class Sending:
    """Direct messages and requests, from the caller to the outbox or a home."""

    def __init__(
        self,
        directory: Directory,
        ways: Ways,
        account: Account,
        counters: Counter[str],
        outbox: Outbox,
        asking: Asking,
        answering: Answering,
        desk: GuestDesk,
        tracking: Tracking,
        ledger: Ledger,
        dead: DeadLetters,
    ) -> None:
        self._ledger = ledger
        self._dead = dead
        self._directory = directory
        self._ways = ways
        self._counters = counters
        self._outbox = outbox
        self._asking = asking
        self._answering = answering
        self._desk = desk
        self._tracking = tracking
        self._waiting = Waiting(account, counters)
        self._adrift: dict[str, dict[Item, None]] = {}  # in streams of holders that are away
        self._responses: dict[str, Parcel] = {}  # whose home is asked whether they answer

    @property
    def next_at(self) -> float:
        return self._waiting.next_at

    def depths(self) -> dict[str, int]:
        """What has no recipient yet."""
        return {"targets_awaited": len(self._waiting), "responses_asked": len(self._responses)}

    # --- messages -----------------------------------------------------------------------

    def send(
        self, at: Instant, envelope: Envelope, target: str, expires_at: float, *, named: bool
    ) -> None:
        """Raises QueueFull."""
        may_answer = envelope.type == "Response" and envelope.correlation_id is not None
        if not named and not may_answer and self._outbox.knows(target):
            self._post(at, envelope, target, expires_at)
            return
        parcel = Parcel(envelope, target, named=named, deadline=expires_at)
        if not may_answer or not self._is_answer(at, parcel):
            self._address(at, parcel)

    def _is_answer(self, at: Instant, parcel: Parcel) -> bool:
        """Does this Response answer a request here, or may it at its source's home?"""
        response = parcel.envelope
        query = self._answering.asked_with(response.correlation_id)
        if query is not None and query.instance_id == response.source:
            self._answering.answer(query, response)
            self._answered(parcel)
            return True
        if self._asking.responded(response, self._ways.me):
            self._answered(parcel)
            return True
        if not self._desk.respond(at, response):
            return False
        self._responses[response.message_id] = parcel
        parcel.is_told = False
        self._tracking.put(response.message_id, parcel)
        return True

    def _answered(self, parcel: Parcel) -> None:
        self._end(parcel, "done")

    def _end(
        self, parcel: Parcel, state: Literal["done", "expired", "dead"], reason: str = ""
    ) -> None:
        message_id = parcel.envelope.message_id
        self._tracking.put(message_id, Ended(Recipient(parcel.target, state, reason=reason)))
        self._ways.effects.append(MessageMoved(message_id, parcel.target, state, reason))

    def settle(self, at: Instant) -> None:
        """Responses whose source's home has said what they are."""
        for response, is_answer in self._desk.take_responded():
            parcel = self._responses.pop(response.message_id, None)
            if parcel is not None and is_answer:
                self._answered(parcel)
            elif parcel is not None:
                self._address_again(at, parcel)

    # --- sent again -----------------------------------------------------------------------

    def send_again(self, at: Instant, dead: DeadCopy, expires_at: float) -> None:
        """A dead letter, to its recipient; one that was sent to a name to whoever has it
        now.  Raises QueueFull, UnknownTarget: its recipient left for good."""
        envelope, recipient = dead.envelope, dead.recipient
        if dead.name is not None:
            parcel = Parcel(envelope, dead.name, named=True, deadline=expires_at)
            parcel.is_promised = True
            if find(self._directory, dead.name, named=True) is Absence.LEFT:
                raise UnknownTarget(dead.name, has_left=True)
            self._address(at, parcel, again=True)
            return
        instance = self._directory.instance(recipient)
        if instance is not None and is_gone_for_good(instance):
            raise UnknownTarget(recipient, has_left=True)
        item = Item(envelope, recipient, expires_at)
        item.is_promised = True
        self._outbox.accept(at, item)
        if envelope.target is None:
            self._tracking.put_again(envelope.message_id, recipient, item)
        else:
            self._tracking.put(envelope.message_id, item)

    # --- addressing ---------------------------------------------------------------------

    def _address(self, at: Instant, parcel: Parcel, *, again: bool = False) -> None:
        """Find the target; what has none waits.  Raises QueueFull.

        ``again``: the parcel has waited, or its holder is gone.
        """
        found = find(self._directory, parcel.target, named=parcel.named)
        if isinstance(found, Ambiguous) and again:
            oldest = self._directory.instance(found.ids[0])
            found = oldest if oldest is not None else Absence.NO_HOLDER
        match found:
            case Instance():
                self._deliver(at, parcel, found, again=again)
            case Ambiguous(ids):
                self._refuse(parcel, "ambiguous", "\n".join(ids))
            case Absence.LEFT if parcel.call is not None:
                self._refuse(parcel, "unreachable", "it has left the mesh; ask another")
            case Absence.LEFT if again:
                self._give_up(parcel, "left", "left")
            case Absence.LEFT:
                self._refuse(parcel, "left", "")
            case Absence.NO_HOLDER:
                self._wait(at, parcel, parcel.deadline)
            case Absence.UNKNOWN if parcel.call is not None:
                self._wait(at, parcel, parcel.known_by)
            case Absence.UNKNOWN if again and parcel.is_told:
                self._wait(at, parcel, parcel.deadline)
            case Absence.UNKNOWN:
                self._wait(at, parcel, at.now + timing.UNKNOWN_TARGET_WAIT)

    def _deliver(self, at: Instant, parcel: Parcel, instance: Instance, *, again: bool) -> None:
        if parcel.call is not None:
            asked = self._asking.get(parcel.call)
            if asked is not None:
                self._asking.go(at, asked, instance)
            return
        envelope, recipient = parcel.envelope, instance.instance_id
        name = parcel.target if parcel.target != recipient else None
        if envelope.target != recipient:
            envelope = msgspec.structs.replace(envelope, target=recipient)
        self._post(at, envelope, recipient, parcel.deadline, name, is_promised=parcel.is_promised)
        if again:
            self._ways.effects.append(MessageMoved(envelope.message_id, recipient, "queued"))

    def _post(
        self,
        at: Instant,
        envelope: Envelope,
        recipient: str,
        expires_at: float,
        name: str | None = None,
        *,
        is_promised: bool = False,
    ) -> None:
        item = Item(envelope, recipient, expires_at, name)
        item.is_promised = is_promised
        self._outbox.accept(at, item)
        self._tracking.put(envelope.message_id, item)

    def _wait(self, at: Instant, parcel: Parcel, give_up_at: float) -> None:
        self._waiting.add(parcel, give_up_at)
        if parcel.call is None:
            parcel.is_told = give_up_at >= parcel.deadline
            self._tracking.put(parcel.envelope.message_id, parcel)
            if parcel.is_told and self._ledger.is_durable:
                self._keep(parcel)

    # --- the store ----------------------------------------------------------------------

    def _keep(self, parcel: Parcel) -> None:
        expires_at = self._ledger.store_time(parcel.deadline)
        row = _ParcelRow(parcel.envelope, parcel.target, parcel.named, expires_at)
        self._ledger.put(Table.WAITING, parcel.envelope.message_id.encode(), row)
        parcel.is_kept = True
        if not parcel.is_promised:
            parcel.is_promised = True
            kept = MessageKept(parcel.envelope.message_id)
            self._ledger.after(lambda: self._ways.effects.append(kept))

    def _forget(self, parcel: Parcel) -> None:
        """It waits no more: where it goes on, another row takes its place."""
        if parcel.is_kept:
            parcel.is_kept = False
            key = parcel.envelope.message_id.encode()
            self._ledger.gone(Table.WAITING, key, moved=True)

    def restore(self, at: Instant) -> None:
        """Take up what waits for a name since an earlier process, and know what became
        of what is in the outbox."""
        for item in self._outbox.restore(at):
            self._tracking.put(item.message_id, item)
        for _, kept in self._ledger.restored(Table.WAITING, _ParcelRow):
            deadline = self._ledger.own_time(kept.expires_at)
            parcel = Parcel(kept.envelope, kept.target, named=kept.named, deadline=deadline)
            parcel.is_kept = parcel.is_promised = True
            self._address_again(at, parcel)

    def _refuse(self, parcel: Parcel, error: str, detail: str) -> None:
        if parcel.call is not None:
            asked = self._asking.get(parcel.call)
            if asked is not None:
                self._asking.end(asked, error, detail)
            return
        message_id = parcel.envelope.message_id
        self._tracking.drop(message_id)
        self._ways.effects.append(SendRefused(message_id, error, detail))

    def _give_up(self, parcel: Parcel, error: str, detail: str) -> None:
        """It cannot go: what its sender knows to be accepted is dead, what not is refused."""
        if parcel.call is not None or not parcel.is_told:
            self._refuse(parcel, error, detail)
            return
        name = parcel.target if parcel.named else None
        self._dead.add(parcel.envelope, parcel.target, detail, name=name)
        self._end(parcel, "dead", detail)

    def _address_again(self, at: Instant, parcel: Parcel) -> None:
        """As ``_address``, where nobody is there to be told by an exception."""
        self._forget(parcel)
        try:
            self._address(at, parcel, again=True)
        except QueueFull as full:
            self._give_up(parcel, "queue_full", str(full))

    def readdress(self, at: Instant, orphans: Iterable[Item]) -> None:
        """Copies whose name has lost its holder: to another, or to the one that comes
        back, under the number that it may know."""
        for item in orphans:
            if item.envelope is None or item.name is None:
                continue
            if not item.is_over:
                found = find(self._directory, item.name, named=True)
                is_elsewhere = isinstance(found, Ambiguous) or (
                    isinstance(found, Instance) and found.instance_id != item.recipient
                )
                if not is_elsewhere:
                    self._adrift.setdefault(item.name, {})[item] = None
                    continue
                if not self._outbox.release(item):
                    continue
            parcel = Parcel(item.envelope, item.name, named=True, deadline=item.deadline)
            parcel.is_promised = item.is_promised
            self._address_again(at, parcel)

    def _forget_adrift(self) -> None:
        """What ended in its stream is nobody's any more."""
        for name, items in list(self._adrift.items()):
            left = {item: None for item in items if not item.is_over}
            if left:
                self._adrift[name] = left
            else:
                del self._adrift[name]

    def _look_at_adrift(self, at: Instant, names: Iterable[str]) -> None:
        for name in names:
            adrift = self._adrift.pop(name, ())
            self.readdress(at, [item for item in adrift if item.state == "queued"])

    def look(self, at: Instant, instances: Collection[str]) -> None:
        """These instances changed, or are new: does anything wait for them?"""
        if self._adrift:
            self._forget_adrift()
            self._look_at_adrift(at, [*self._ids_and_names(instances)])
        if self._waiting:
            for parcel in self._waiting.take(self._ids_and_names(instances)):
                self._address_again(at, parcel)

    def _ids_and_names(self, instances: Collection[str]) -> Iterator[str]:
        for instance_id in instances:
            yield instance_id
            instance = self._directory.instance(instance_id)
            if instance is not None and instance.name != instance_id:
                yield instance.name

    # --- requests -----------------------------------------------------------------------

    def request(
        self,
        at: Instant,
        envelope: Envelope,
        target: str,
        expires_at: float,
        *,
        named: bool,
        known_by: float,
        streams: bool,
    ) -> int:
        """Its call number; a target that is unknown still at ``known_by`` is not waited
        for.  Raises QueueFull."""
        asked = self._asking.open(envelope, target, expires_at)
        if streams:
            self._asking.stream(at, asked)
        known = self._directory.instance(target)
        is_name = named and bool(self._directory.named(target))
        if known is None and named and not is_name and self._directory.my_life() is not None:
            known = next(iter(away(self._directory, target)), None)
        if known is not None and not is_live(known) and not is_name:
            self._asking.end(asked, "unreachable", why_unreachable(known))
            return asked.call
        parcel = Parcel(envelope, target, named=named, deadline=asked.deadline, call=asked.call)
        parcel.known_by = known_by
        try:
            self._address(at, parcel)
        except QueueFull as full:
            self._asking.end(asked, "refused", str(full))
        return asked.call

    def _lost(self, asked: Asked) -> None:
        """A request whose target did not come within its timeout."""
        if away(self._directory, asked.target):
            self._asking.end(asked, "unreachable", "nobody who is alive has this name; ask another")
        else:
            self._asking.end(asked, *self._unknown(asked.envelope.source, asked.target))

    def _unknown(self, asker: str, target: str) -> tuple[str, str]:
        """The error and the detail where nobody of this id or name came."""
        was_there = bool(self._directory.gone(target))
        return "gone" if was_there else "unknown", self._nearest(asker, target)

    def _nearest(self, asker: str, target: str) -> str:
        """Names like the target, a line each: not the asker's own, and of nobody who left
        for good."""
        directory = self._directory
        own = directory.instance(asker)
        names = set(directory.names()) - {asker, own.name if own is not None else asker}
        found = ((name, directory.instance(name)) for name in names)
        gone = {name for name, instance in found if instance and is_gone_for_good(instance)}
        return "\n".join(nearest(names - gone, target))

    # --- time -----------------------------------------------------------------------------

    def tick(self, at: Instant) -> None:
        for parcel in self._waiting.tick(at):
            self._gave_up(at, parcel)
        for asked in self._asking.tick(at):
            self._lost(asked)

    def _gave_up(self, at: Instant, parcel: Parcel) -> None:
        """Nobody of this id or name came."""
        self._forget(parcel)
        if parcel.call is not None:
            self._request_gave_up(at, parcel, parcel.call)
        elif parcel.deadline <= at.now:
            self._counters["message_expired"] += 1
            self._end(parcel, "expired")
        elif self._directory.my_life() is None:  # not joined yet: everybody is unknown
            self._address_again(at, parcel)
        else:
            self._refuse(parcel, *self._unknown(parcel.envelope.source, parcel.target))

    def _request_gave_up(self, at: Instant, parcel: Parcel, call: int) -> None:
        asked = self._asking.get(call)
        if asked is None:
            return
        if self._directory.my_life() is None and at.now < parcel.deadline:
            parcel.known_by = at.now + timing.UNKNOWN_TARGET_WAIT
            self._address_again(at, parcel)
        else:
            self._lost(asked)
