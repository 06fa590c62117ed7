"""Lanes: streams on their way to the homes of their recipients.

    attach ─► ready ──pump──► under way ──receipted──► (ready)
                ▲               │    │
                │◄── restart ◄──┘    └─ hold ─► held ─(STREAM_RETRY)─► ready
                └◄── probe: nothing was receipted for long

- A lane is one stream and what holds it; an *outlet* is all lanes to one home.
- At most FLIGHT_MAX bytes are under way to one home without a receipt, and of large
  messages LARGE_FLIGHT_MAX; no lane waits for the large messages of another, and each
  has its turn.
- A new way to the home (a link, a relay) rewinds its lanes to their last receipt, asks
  which of the stored copies are over (``Unsure``), and sends on.
- A stored copy whose end nobody told is asked about, more and more seldom.
- What is not on its way any more (detached) is in no outlet, and takes no window.

Not here: what the copies are, and what becomes of them (``outbox``); the numbers and
what is sent again (``streams``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Final

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.streams import Flight, OutStream
from p2pmesh.protocol.types import Instant, Life, NodeId
from p2pmesh.protocol.ways import NEVER, Ways

_HOMES_MAX: Final = 4
_BATCH: Final = 64  # messages of one stream before another has its turn


class Lane:
    """An out-stream on its way: where it leads, and what holds it."""

    __slots__ = (
        "again_until", "home", "homes", "is_refused", "outlet", "retry_at", "retry_gap",
        "stream", "unsure_at", "unsure_gap",
    )  # fmt: skip

    def __init__(self, stream: OutStream) -> None:
        self.stream = stream
        self.home: tuple[NodeId, Life] | None = None  # where the watermark holds
        self.homes: list[NodeId] = []  # the last ones that got messages of it
        self.outlet: Outlet | None = None  # None: the recipient is nowhere now
        self.retry_at = NEVER  # held until then
        self.retry_gap = timing.STREAM_RETRY
        self.is_refused = False  # the recipient's mailbox was full, by the last receipt
        self.again_until = 0.0
        self.unsure_at = NEVER  # when to ask which stored copies are over
        self.unsure_gap = timing.STREAM_UNSURE_AFTER

    @property
    def is_held(self) -> bool:
        return self.retry_at != NEVER

    @property
    def is_full(self) -> bool:
        """Does one message wait already for room in the recipient's mailbox?  It is
        tried now and then, so that the end of this is noticed."""
        return self.is_refused and bool(self.stream.unsent or self.stream.sent)

    def leads_to(self, node: NodeId) -> bool:
        """Is this node the home where the watermark holds?"""
        return self.home is not None and self.home[0] == node

    def release(self) -> None:
        self.is_refused = False
        self.retry_at = NEVER
        self.retry_gap = timing.STREAM_RETRY


class Outlet:
    """All lanes to one home."""

    __slots__ = ("flight", "lanes", "node", "probe_at", "probe_gap", "ready", "ready_large")

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.lanes: dict[bytes, Lane] = {}
        self.ready: dict[Lane, None] = {}  # those with something to send, in turn
        self.ready_large: dict[Lane, None] = {}  # those whose next message is large
        self.probe_at = NEVER
        self.probe_gap = timing.STREAM_PROBE_AFTER
        self.flight = Flight()

    def make_ready(self, lane: Lane) -> None:
        if lane.stream.may_go and not lane.is_held:
            ready = self.ready_large if lane.stream.unsent[0].is_large else self.ready
            ready[lane] = None

    def forget(self, lane: Lane) -> None:
        """It may send nothing now."""
        self.ready.pop(lane, None)
        self.ready_large.pop(lane, None)


class Outlets:
    """All lanes that lead somewhere now, by home."""

    def __init__(self, ways: Ways, counters: Counter[str]) -> None:
        self.next_at = NEVER
        self._ways = ways
        self._counters = counters
        self._outlets: dict[NodeId, Outlet] = {}
        self._unpumped: dict[Outlet, None] = {}  # have more to send since the last save

    # --- where lanes lead ---------------------------------------------------------

    def lanes_to(self, node: NodeId) -> Iterable[Lane]:
        outlet = self._outlets.get(node)
        return outlet.lanes.values() if outlet is not None else ()

    def attach(self, at: Instant, lane: Lane, home: tuple[NodeId, Life] | None) -> None:
        """The recipient lives there; None: nowhere now."""
        if home is None:
            self.detach(lane)
            return
        if lane.home == home and lane.outlet is not None:
            if lane.is_held:  # perhaps it is there by now
                lane.retry_at = self.next_at = at.now
            return
        self.detach(lane)
        if lane.home != home:
            lane.home = home
            lane.homes = [*(node for node in lane.homes if node != home[0]), home[0]][-_HOMES_MAX:]
            lane.stream.receipted = 0
        outlet = self._outlets.get(home[0])
        if outlet is None:
            outlet = self._outlets[home[0]] = Outlet(home[0])
        outlet.lanes[lane.stream.id] = lane
        lane.outlet = outlet
        lane.stream.board(outlet.flight)
        self._restart(at, lane, outlet)
        self.pump(at, outlet)

    def detach(self, lane: Lane) -> None:
        outlet = lane.outlet
        if outlet is None:
            return
        lane.stream.board(Flight())
        lane.release()
        lane.unsure_at = NEVER
        lane.outlet = None
        outlet.forget(lane)
        del outlet.lanes[lane.stream.id]
        if not outlet.lanes:
            del self._outlets[outlet.node]

    # --- the ways there -----------------------------------------------------------

    def opened(self, at: Instant, peer: NodeId) -> None:
        """There is a new way to this peer: what was under way may be lost."""
        outlet = self._outlets.get(peer)
        if outlet is None:
            return
        for lane in outlet.lanes.values():
            self._restart(at, lane, outlet)
        outlet.probe_at = NEVER
        outlet.probe_gap = timing.STREAM_PROBE_AFTER
        self.pump(at, outlet)

    def closed(self, at: Instant, peer: NodeId) -> None:
        """No way to this peer is left."""
        outlet = self._outlets.get(peer)
        if outlet is None:
            return
        for lane in outlet.lanes.values():
            lane.stream.rewind()
            outlet.make_ready(lane)
        self.pump(at, outlet)

    def clear(self, at: Instant, peer: NodeId) -> None:
        """The way to this peer is no longer backed up."""
        outlet = self._outlets.get(peer)
        if outlet is not None:
            self.pump(at, outlet)

    def progressed(self, at: Instant, peer: NodeId) -> None:
        """Something large moves on its way there: nothing is lost, and no receipt due."""
        outlet = self._outlets.get(peer)
        if outlet is not None and outlet.probe_at != NEVER:
            outlet.probe_at = at.now + outlet.probe_gap

    def _restart(self, at: Instant, lane: Lane, outlet: Outlet) -> None:
        lane.stream.rewind()
        lane.release()
        lane.again_until = 0.0
        outlet.make_ready(lane)
        lane.unsure_gap = timing.STREAM_UNSURE_AFTER
        self._ask_unsure(at, lane, outlet)

    def _ask_unsure(self, at: Instant, lane: Lane, outlet: Outlet) -> None:
        """Ask which stored copies are over, now and from time to time."""
        stream = lane.stream
        lane.unsure_at = NEVER
        stored = stream.stored()
        if not stored:
            return
        self._ask_later(at, lane)
        lane.unsure_gap = min(2 * lane.unsure_gap, timing.STREAM_UNSURE_MAX)
        if not self._ways.is_open(outlet.node):
            return
        parts = iter(stored)
        while some := tuple(islice(parts, limits.RANGES_MAX)):
            question = wire.Unsure(stream.origin, stream.id, stream.recipient, some)
            self._ways.send(outlet.node, question)

    def _ask_later(self, at: Instant, lane: Lane) -> None:
        lane.unsure_at = at.now + lane.unsure_gap
        self.next_at = min(self.next_at, lane.unsure_at)

    # --- sending ------------------------------------------------------------------

    def hurry(self, at: Instant, lane: Lane) -> None:
        """There is something new to send."""
        outlet = lane.outlet
        if outlet is not None:
            outlet.make_ready(lane)
            self.pump(at, outlet)

    def hurry_when_saved(self, lane: Lane) -> None:
        """As ``hurry``, together with all that the same save made safe."""
        if lane.outlet is not None:
            lane.outlet.make_ready(lane)
            self._unpumped[lane.outlet] = None

    def saved(self, at: Instant) -> None:
        unpumped, self._unpumped = self._unpumped, {}
        for outlet in unpumped:
            self.pump(at, outlet)

    def pump(self, at: Instant, outlet: Outlet) -> None:
        """Send what may be sent: the window has room, the way is clear."""
        if not outlet.ready and not outlet.ready_large:
            return
        if not self._ways.is_clear(outlet.node):
            if not self._ways.is_open(outlet.node):
                self._ways.want(at, outlet.node)
                self.next_at = min(self.next_at, at.now + timing.LINK_WANTED_AGAIN)
            return
        flight = outlet.flight
        while outlet.ready and flight.bytes < limits.FLIGHT_MAX:
            lane = next(iter(outlet.ready))
            del outlet.ready[lane]
            self._send_some(at, outlet, lane)
        while outlet.ready_large and flight.large < limits.LARGE_FLIGHT_MAX:
            lane = next(iter(outlet.ready_large))
            del outlet.ready_large[lane]
            message = lane.stream.next(at.now) if lane.stream.may_go else None
            if message is not None:
                self._ways.send(outlet.node, message)
            outlet.make_ready(lane)
        if outlet.probe_at == NEVER and flight:
            outlet.probe_at = at.now + outlet.probe_gap
            self.next_at = min(self.next_at, outlet.probe_at)

    def _send_some(self, at: Instant, outlet: Outlet, lane: Lane) -> None:
        """A turn of one lane: what is small, up to its next large message."""
        stream, flight = lane.stream, outlet.flight
        for _ in range(min(_BATCH, len(stream.unsent))):
            if not stream.may_go or stream.unsent[0].is_large:
                break
            message = stream.next(at.now)
            if message is not None:
                self._ways.send(outlet.node, message)
                if flight.bytes >= limits.FLIGHT_MAX:
                    break
        outlet.make_ready(lane)

    # --- what receipts say --------------------------------------------------------

    def receipted(self, at: Instant, lane: Lane, outlet: Outlet) -> None:
        """Its watermark rose: the window has room, and nothing is lost."""
        lane.retry_gap = timing.STREAM_RETRY
        if lane.unsure_at == NEVER:
            self._ask_later(at, lane)
        outlet.probe_gap = timing.STREAM_PROBE_AFTER
        outlet.probe_at = at.now + outlet.probe_gap if outlet.flight else NEVER
        outlet.make_ready(lane)

    def hold(self, at: Instant, lane: Lane, outlet: Outlet, *, is_refused: bool) -> None:
        """The recipient takes nothing now: because its mailbox is full (``is_refused``), or
        because it is not there."""
        if not lane.is_held:
            lane.retry_at = at.now + lane.retry_gap
            lane.retry_gap = min(2 * lane.retry_gap, timing.STREAM_RETRY_MAX)
            self.next_at = min(self.next_at, lane.retry_at)
        lane.stream.rewind()
        outlet.forget(lane)
        lane.is_refused = is_refused

    def send_again(self, at: Instant, lane: Lane, outlet: Outlet, watermark: int) -> None:
        """The recipient has a gap above this watermark."""
        if at.now < lane.again_until:
            self._counters["stream_again_repeated"] += 1
            return
        self._counters["stream_again"] += 1
        lane.again_until = at.now + timing.STREAM_RETRY
        lane.release()
        lane.stream.receipted = watermark
        lane.stream.rewind()
        outlet.make_ready(lane)

    def go_on(self, lane: Lane, outlet: Outlet) -> None:
        """The recipient takes what comes."""
        lane.is_refused = False
        if lane.is_held:
            lane.release()
            outlet.make_ready(lane)

    # --- time ---------------------------------------------------------------------

    def tick_lane(self, at: Instant, lane: Lane) -> None:
        outlet = lane.outlet
        if lane.retry_at <= at.now and outlet is not None:
            lane.retry_at = NEVER
            outlet.make_ready(lane)
        if lane.unsure_at <= at.now and outlet is not None:
            self._ways.want(at, outlet.node)
            self._ask_unsure(at, lane, outlet)
        self.next_at = min(self.next_at, lane.retry_at, lane.unsure_at)

    def tick(self, at: Instant) -> None:
        """After its lanes."""
        for outlet in list(self._outlets.values()):
            self._probe(at, outlet)
            self.pump(at, outlet)
            self.next_at = min(self.next_at, outlet.probe_at)

    def _probe(self, at: Instant, outlet: Outlet) -> None:
        """Nothing was receipted for long: what was sent may be lost on a relay."""
        if at.now < outlet.probe_at:
            return
        outlet.probe_at = NEVER
        if not outlet.flight or not self._ways.is_clear(outlet.node):
            return
        self._counters["stream_probed"] += 1
        outlet.probe_gap *= 2
        for lane in outlet.lanes.values():
            if lane.stream.sent:
                lane.stream.rewind()
                outlet.make_ready(lane)

    def waits_for_receipts(self) -> bool:
        """Might a copy that nobody else holds be receipted soon?"""
        return any(
            lane.stream.unsent or lane.stream.sent
            for outlet in self._outlets.values()
            if outlet.node != self._ways.me
            for lane in outlet.lanes.values()
            if not lane.is_held
        )
