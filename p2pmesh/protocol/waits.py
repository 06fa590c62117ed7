"""Reads that wait for mail: by readers of this node, and of peers for guests of mine.

    nothing to read ─► add() ─┬─ mail came ──────► take_due() ─► read again
                              ├─ it moved ───────► take(), asked where it lives now
                              ├─ its reader went ► drop(), forget()
                              └─ its time is over ► tick()

All that wait for an instance get what comes: reading removes nothing.

Bounds: WAITS_MAX in all, WAITS_PER_INSTANCE_MAX for one instance, READ_WAIT_MAX
seconds.  Not here: what is read, and where an instance lives (``guestdesk``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from p2pmesh.protocol import limits
from p2pmesh.protocol.types import Instant, NodeId
from p2pmesh.protocol.ways import NEVER


class Reader(NamedTuple):
    """Who waits: the node that was asked, and its number for the call."""

    node: NodeId
    call: int


class Wait(NamedTuple):
    """One read that waits."""

    instance_id: str
    reader: Reader
    limit: int
    until: float


class Waits:
    """All reads that wait at this node."""

    def __init__(self, counters: Counter[str]) -> None:
        self.next_at = NEVER
        self._counters = counters
        self._waits: dict[Reader, Wait] = {}
        self._of: dict[str, dict[Reader, Wait]] = {}  # by instance
        self._due: dict[str, None] = {}  # mail came for these

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, wait: Wait) -> bool:
        """False: too many wait.  The same call again replaces itself."""
        self.drop(wait.reader)
        of_instance = self._of.get(wait.instance_id, {})
        if (
            len(self._waits) >= limits.WAITS_MAX
            or len(of_instance) >= limits.WAITS_PER_INSTANCE_MAX
        ):
            self._counters["waits_full"] += 1
            return False
        self._of[wait.instance_id] = of_instance
        of_instance[wait.reader] = self._waits[wait.reader] = wait
        self.next_at = min(self.next_at, wait.until)
        return True

    def mail_came(self, instance_id: str) -> None:
        if instance_id in self._of:
            self._due[instance_id] = None

    def take_due(self) -> list[Wait]:
        """Those for whom mail came since the last call."""
        if not self._due:
            return []
        due, self._due = self._due, {}
        return [wait for instance_id in due for wait in self.take(instance_id)]

    def take(self, instance_id: str) -> list[Wait]:
        """All that wait for this instance, taken out: its place is to be looked at anew."""
        taken = self._of.pop(instance_id, {})
        for reader in taken:
            del self._waits[reader]
        return list(taken.values())

    def drop(self, reader: Reader) -> Wait | None:
        """Nobody waits for this one any more; None: it did not wait."""
        wait = self._waits.pop(reader, None)
        if wait is not None:
            of_instance = self._of[wait.instance_id]
            del of_instance[reader]
            if not of_instance:
                del self._of[wait.instance_id]
        return wait

    def forget(self, nodes: Collection[NodeId]) -> None:
        """These nodes are gone, and their readers with them."""
        for reader in [reader for reader in self._waits if reader.node in nodes]:
            self.drop(reader)

    def take_own(self, me: NodeId) -> list[Wait]:
        """All whose readers speak to this node, taken out."""
        own = [wait for wait in self._waits.values() if wait.reader.node == me]
        for wait in own:
            self.drop(wait.reader)
        return own

    def tick(self, at: Instant) -> list[Wait]:
        """Those whose time is over, taken out."""
        if at.now < self.next_at:
            return []
        over = [wait for wait in self._waits.values() if wait.until <= at.now]
        for wait in over:
            self.drop(wait.reader)
        self.next_at = min((wait.until for wait in self._waits.values()), default=NEVER)
        return over
