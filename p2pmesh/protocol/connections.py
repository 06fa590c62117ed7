"""Dials and links: from an address to a proven peer.

An *attempt* dials the addresses of one target, 250 ms apart, and keeps the first
that completes.  A link carries the handshake and both HELLOs here; from then on
its messages belong to the door.  This file decides nothing about membership: it
reports *occurrences* (established, hello, message, ended, attempt failed) and
the door acts on them.

Bytes from the network never raise past ``receive``: a broken link ends with a
reason that is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.links import Link, Phase
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.session import Session, SessionError
from p2pmesh.protocol.transfers import TransferError
from p2pmesh.protocol.types import Action, Close, Dial, DialOutcome, FoundBy, NodeId, Write


class Opened(NamedTuple):
    """There is a new link; its handshake has begun."""

    link: Link


class Established(NamedTuple):
    """The handshake is done: say HELLO."""

    link: Link


class Received(NamedTuple):
    link: Link
    message: wire.Message


class Broken(NamedTuple):
    """A link of no more use; it is closed.  ``reason`` is for people and counters."""

    link: Link
    reason: str


class AttemptFailed(NamedTuple):
    """No address brought a link."""

    attempt: Attempt


Occurrence: TypeAlias = Opened | Established | Received | Broken | AttemptFailed


class Connections:
    """All links and dials of one node."""

    def __init__(
        self,
        *,
        static: StaticKey,
        keys: KeyRing,
        entropy: Callable[[int], bytes],
        null_cipher: bool,
    ) -> None:
        self._static = static
        self._keys = keys
        self._entropy = entropy
        self._null_cipher = null_cipher
        self.links: dict[int, Link] = {}
        self.attempts: dict[tuple[Purpose, NodeId | str], Attempt] = {}
        self.counters: dict[str, int] = {}
        self.actions: list[Action] = []
        self._by_dial: dict[int, Attempt] = {}
        self._dials = 0
        self._handshakes = 0
        self._handshakes_of: dict[str, int] = {}

    # --- dialling -----------------------------------------------------------------

    def attempt(
        self,
        purpose: Purpose,
        target: NodeId | str,
        addresses: tuple[str, ...],
        found_by: FoundBy,
        *,
        replaces: bytes | None = None,
    ) -> Attempt | None:
        """Dial a target; None when that is under way already."""
        if (purpose, target) in self.attempts or not addresses:
            return None
        made = Attempt(purpose, target, list(addresses), found_by, replaces)
        self.attempts[purpose, target] = made
        self.dial_next(made)
        return made

    def dial_next(self, attempt: Attempt) -> bool:
        """Dial the attempt's next address.  True: more are waiting."""
        if attempt.is_over or not attempt.waiting:
            return False
        self._dials += 1
        address = attempt.waiting.pop(0)
        attempt.dials[self._dials] = address
        self._by_dial[self._dials] = attempt
        self.actions.append(Dial(self._dials, address, timing.DIAL_TIMEOUT))
        return bool(attempt.waiting)

    def dial_failed(self, dial: int, outcome: DialOutcome) -> Iterator[Occurrence]:
        attempt = self._by_dial.pop(dial, None)
        if attempt is None:
            return
        attempt.failed(dial, outcome)
        yield from self._go_on(attempt)

    def finish(self, attempt: Attempt) -> None:
        """The attempt reached its target (or is given up): forget its other dials."""
        if not attempt.is_over:
            attempt.is_over = True
            self.attempts.pop((attempt.purpose, attempt.target), None)

    def _go_on(self, attempt: Attempt) -> Iterator[Occurrence]:
        if attempt.is_over:
            return
        if attempt.waiting:
            self.dial_next(attempt)
        elif not attempt.dials and not attempt.links:
            self.finish(attempt)
            yield AttemptFailed(attempt)

    # --- links --------------------------------------------------------------------

    def opened(
        self, number: int, address: str, dial: int | None, now: float
    ) -> Iterator[Occurrence]:
        """A connection opened.  It is refused when a bound is reached, or when it is
        wanted no more."""
        attempt = self._by_dial.pop(dial, None) if dial is not None else None
        if dial is None:
            reason = self._bound(address)
        elif attempt is None or attempt.is_over:
            reason = "dial_not_wanted"
        else:
            reason = "links_max" if len(self.links) >= limits.LINKS_MAX else None
        if reason is None:
            yield Opened(self._make(number, address, attempt, dial or 0, now))
            return
        self.count(reason)
        self.refuse(number)
        if attempt is not None and dial is not None:
            attempt.failed(dial, DialOutcome.LOCAL_ERROR)
            yield from self._go_on(attempt)

    def _bound(self, address: str) -> str | None:
        """Which bound keeps an inbound connection out, if any."""
        if len(self.links) >= limits.LINKS_MAX:
            return "links_max"
        from_there = self._handshakes_of.get(_host(address), 0)
        is_full = self._handshakes >= limits.HANDSHAKES_MAX
        if is_full or from_there >= limits.HANDSHAKES_PER_IP_MAX:
            return "handshakes_max"
        return None

    def refuse(self, number: int) -> None:
        """Close a connection that became no link."""
        self.actions.append(Close(number))

    def receive(self, link: Link, data: bytes, now: float) -> Iterator[Occurrence]:
        """Bytes of a link to messages."""
        try:
            answer, messages = link.session.feed(data)
        except SessionError as error:
            if error.reply:
                self.actions.append(Write(link.id, error.reply))
            yield from self.broken(link, error.reason)
            return
        if answer:
            self.actions.append(Write(link.id, answer))
        link.heard_at = now
        if link.phase is Phase.HANDSHAKE and link.session.established:
            link.phase = Phase.HELLO
            link.is_open = True
            yield Established(link)
        for encoded in messages:
            if link.phase is Phase.ENDED:
                return
            try:
                message: wire.Message | None = wire.decode(encoded)
                if isinstance(message, wire.Chunk):
                    if not link.incoming.take(message):
                        continue
                    message = link.incoming.put_together(message)
            except wire.Malformed:
                yield from self.broken(link, "malformed message")
                return
            except TransferError as error:
                yield from self.broken(link, str(error))
                return
            if message is None:
                self.count("message_unknown")
            elif isinstance(message, wire.Chunk):
                yield from self.broken(link, "chunk in chunks")
            else:
                yield Received(link, message)

    def finish_handshake(self, link: Link) -> None:
        """Both HELLOs are read: the link leaves the unfinished handshakes."""
        self._shaken(link)

    def broken(self, link: Link, reason: str, *, is_said: bool = False) -> Iterator[Occurrence]:
        """End a link whose peer breaks the rules, or takes too long: it is told that."""
        if link.phase is Phase.ENDED:
            return
        self.count("link version" if reason.startswith("version ") else f"link {reason}")
        self.close(link, reason if is_said else None)
        yield Broken(link, reason)
        yield from self.after_end(link)

    def close(self, link: Link, reason: str | None = None) -> None:
        """End a link; with a reason it is said first, so that it is no evidence."""
        if link.phase is Phase.ENDED:
            return
        if reason is not None and link.session.established:
            for data in link.last_words(wire.CloseReason(reason)):
                self.write(link, data)
        self._forget(link)
        self.actions.append(Close(link.id))

    def ended(self, number: int) -> Link | None:
        """The connection ended; None: unknown (closed here before)."""
        link = self.links.get(number)
        if link is not None:
            self._forget(link)
        return link

    def after_end(self, link: Link) -> Iterator[Occurrence]:
        """A link is gone, or its peer is not who was looked for: its attempt goes on
        with the next address."""
        if link.attempt is not None:
            yield from self._go_on(link.attempt)

    def write(self, link: Link, data: bytes) -> None:
        self.actions.append(Write(link.id, data))

    def count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1

    # --- private ----------------------------------------------------------------

    def _make(
        self, number: int, address: str, attempt: Attempt | None, dial: int, now: float
    ) -> Link:
        session = Session(
            initiator=attempt is not None,
            static=self._static,
            keys=self._keys,
            entropy=self._entropy,
            null_cipher=self._null_cipher,
        )
        found_by = FoundBy.INBOUND if attempt is None else attempt.found_by
        link = Link(number, address, session, now, attempt=attempt, found_by=found_by, dial=dial)
        self.links[number] = link
        if attempt is not None:
            attempt.dials.pop(dial, None)
            attempt.accepted = True
            attempt.links.add(number)
        else:
            self._handshakes += 1
            host = _host(address)
            self._handshakes_of[host] = self._handshakes_of.get(host, 0) + 1
        first = session.start()
        if first:
            self.actions.append(Write(number, first))
        return link

    def _forget(self, link: Link) -> None:
        self._shaken(link)
        link.phase = Phase.ENDED
        link.is_open = False
        self.links.pop(link.id, None)
        if link.attempt is not None:
            link.attempt.links.discard(link.id)

    def _shaken(self, link: Link) -> None:
        if link.phase in (Phase.HANDSHAKE, Phase.HELLO) and not link.is_outbound:
            self._handshakes -= 1
            host = _host(link.address)
            left = self._handshakes_of.get(host, 0) - 1
            if left > 0:
                self._handshakes_of[host] = left
            else:
                self._handshakes_of.pop(host, None)


def _host(address: str) -> str:
    return address.rpartition(":")[0]
