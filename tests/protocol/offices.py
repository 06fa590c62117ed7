"""A small world of post offices, wired mouth to ear through real bytes.

No mesh, no sockets: who is alive, who is linked and which entries are known is
what the test says.  Every message is encoded and decoded on its way.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from p2pmesh.protocol import wire
from p2pmesh.protocol.directory import is_live
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.postoffice import PostOffice
from p2pmesh.protocol.rings import Rings
from p2pmesh.protocol.types import (
    CallEnded,
    Envelope,
    GuestEntry,
    Instance,
    Instant,
    Life,
    MessageArrived,
    MessageMayStart,
    MessageMoved,
    NodeId,
    RequestEnded,
    Restored,
    Row,
    Save,
    State,
)
from p2pmesh.protocol.ways import Announce, Effect, NeedLink, SendTo

_T = TypeVar("_T")
BORN = 1_760_000_000_000


class View:
    """A ``Directory``: the world as one node sees it."""

    def __init__(self, world: World, office: Office) -> None:
        self._world = world
        self._office = office
        self.buried: set[NodeId] = set()  # nodes that this one takes for failed
        self.entries: dict[str, GuestEntry] = {}

    @property
    def me(self) -> NodeId:
        return self._office.id

    def my_life(self) -> Life | None:
        return self._office.life

    def is_informed(self) -> bool:
        return self._office.life is not None

    def _state(self, office: Office) -> str:
        state = "alive" if office.state == "stopped" else office.state
        return "failed" if office.id in self.buried and state == "alive" else state

    def instance(self, instance_id: str) -> Instance | None:
        for office in self._world.offices.values():
            if office.agent == instance_id and office.life is not None:
                return Instance(
                    instance_id, office.name, office.id, office.life, office.life, "node",
                    self._state(office), office.is_persistent,
                )  # fmt: skip
        entry = self.entries.get(instance_id)
        if entry is None:
            return None
        state = entry.state.name.lower()
        if state == "alive" and self.node_life(entry.home) != entry.home_life:
            state = "suspect"
        return Instance(
            instance_id, instance_id, entry.home, entry.home_life, entry.life, "guest",
            state, True,
        )  # fmt: skip

    def _instances(self) -> list[Instance]:
        ids = [office.agent for office in self._world.offices.values() if office.agent]
        found = [self.instance(each) for each in (*ids, *self.entries)]
        return sorted((each for each in found if each is not None), key=lambda each: each.life)

    def named(self, name: str) -> tuple[Instance, ...]:
        return tuple(each for each in self.live_instances() if each.name == name)

    def gone(self, name: str) -> tuple[Instance, ...]:
        return tuple(each for each in self._instances() if each.name == name and not is_live(each))

    def names(self) -> Iterable[str]:
        yield from (each.instance_id for each in self._instances())
        yield from (each.name for each in self.live_instances())

    def live_instances(self) -> list[Instance]:
        return [each for each in self._instances() if each.state in ("alive", "suspect")]

    def entry(self, instance_id: str) -> GuestEntry | None:
        return self.entries.get(instance_id)

    def node_life(self, node: NodeId) -> Life | None:
        office = self._world.by_id.get(node)
        return office.life if office is not None and self._state(office) == "alive" else None

    def partners(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._office.links))

    def ring_neighbours(self, node: NodeId) -> tuple[NodeId, ...]:
        if self._world.rings:
            return tuple(self._world.rings.get(node, ()))
        live = frozenset(each for each in self._world.by_id if self.node_life(each) is not None)
        return self._world.rings_of(live).neighbours(node)

    def highest(self) -> Life:
        lives = [office.life for office in self._world.offices.values() if office.life is not None]
        return max([*lives, *(entry.life for entry in self.entries.values())])


class Office:
    """One node: a post office, what it was told to do, and its links."""

    def __init__(self, world: World, name: str, agent: str | None, *, persistent: bool) -> None:
        self.world = world
        self.name = name
        self.agent = agent
        self.is_persistent = persistent
        self.state = "alive"
        self.links: set[NodeId] = set()
        self.paused: set[NodeId] = set()
        self.view = View(world, self)
        self.auto_completes = True
        self.id = world.next_id()
        self.effects: list[Effect] = []  # all but SendTo and Announce, since the last ``take``
        self.sent: list[wire.Message] = []  # everything put on a wire
        self.disk: dict[tuple[str, bytes], bytes] = {}
        self.saves: deque[Save] = deque()  # not on disk yet
        self.attempts: dict[str, int] = {}
        self.runs: list[tuple[str, int]] = []  # message and attempt, of all its lives
        self.fails: set[str] = set()  # messages that its handler cannot handle
        self.begin_life()

    def run(self, message_id: str) -> None:
        """The handler of its agent, start to end."""
        if message_id in self.fails:
            self.commands.message_completed(self.world.at, message_id, False, "broken")
            return
        self.runs.append((message_id, self.attempts[message_id]))
        self.commands.message_completed(self.world.at, message_id, True)

    def begin_life(self) -> None:
        self.life: Life | None = self.world.next_life()
        entropy = random.Random(f"{self.name} {self.life}")
        rows = tuple(Row(*place, value) for place, value in self.disk.items())
        restored = Restored(rows=rows, boot="one")
        ledger = Ledger(restored, self.world.at.now, is_durable=self.world.is_durable)
        self.post = PostOffice(
            self.view,
            ledger,
            entropy=entropy.randbytes,
            agent=self.agent,
            begin=lambda at: None,  # the world shows changes at once, and settles when it runs
            settle=lambda: None,
        )
        self.commands = self.post.commands
        self.saves.clear()
        self.post.restore(self.world.at)

    def save(self) -> None:
        """Its store makes all it was given safe."""
        number = 0
        while self.saves:
            number, changes = msgspec.structs.astuple(self.saves.popleft())
            for table, key, value, _ in changes:
                if value is None:
                    self.disk.pop((table, key), None)
                else:
                    self.disk[table, key] = value
        if number:
            self.post.saved(self.world.at, number)
            self.world.run()

    def of(self, kind: type[_T]) -> list[_T]:
        """The effects of one kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def said(self, kind: type[_T]) -> list[_T]:
        return [message for message in self.sent if isinstance(message, kind)]

    def arrived(self) -> list[bytes]:
        """Payloads handed to the own agent, in order."""
        return [effect.envelope.payload for effect in self.of(MessageArrived)]

    def moves(self, message_id: str | None = None) -> list[tuple[str, str]]:
        """(recipient, state) of each MessageMoved."""
        return [
            (effect.recipient, effect.state)
            for effect in self.of(MessageMoved)
            if message_id in (None, effect.message_id)
        ]

    def send(
        self,
        target: str,
        payload: bytes = b"x",
        *,
        named: bool = False,
        ttl: float = 3600.0,
        type: str = "Notification",
        source: str | None = None,
        correlation_id: str | None = None,
    ) -> str:
        message_id = self.commands.send(
            self.world.at, source=source or self.agent or self.name, target=target, named=named,
            type=type, payload=payload, ttl=ttl, correlation_id=correlation_id,
        )  # fmt: skip
        self.world.run()
        return message_id

    def retry(self, message_id: str, recipient: str | None = None) -> tuple[str, ...]:
        gone = self.commands.retry(self.world.at, message_id, recipient, ttl=3600.0)
        self.world.run()
        return tuple(copy.recipient for copy in gone)

    def dead(self) -> list[tuple[str, str, str]]:
        """Message, recipient and reason of each dead letter, the oldest first."""
        letters = self.commands.dead_letters()
        return [(each.envelope.message_id, each.recipient, each.reason) for each in letters]

    def broadcast(
        self, payload: bytes = b"all", *, source: str | None = None, ttl: float = 3600.0
    ) -> str:
        message_id, self.delivered_to = self.commands.broadcast(
            self.world.at, source=source or self.agent or self.name, type="Notification",
            payload=payload, ttl=ttl, correlation_id=None,
        )  # fmt: skip
        self.world.run()
        return message_id

    def request(
        self,
        target: str,
        payload: bytes = b"?",
        *,
        named: bool = False,
        timeout: float = 30.0,
        source: str | None = None,
        known_within: float | None = None,
    ) -> int:
        call = self.commands.request(
            self.world.at, source=source or self.agent or self.name, target=target, named=named,
            type="Query", payload=payload, timeout=timeout, known_within=known_within,
        )  # fmt: skip
        self.world.run()
        return call

    def ended(self, call: int) -> RequestEnded | None:
        return next((end for end in self.of(RequestEnded) if end.call == call), None)

    def call(self, operation: str, instance_id: str, *args: object) -> CallEnded | None:
        """A registry call; its end, if it came at once."""
        if operation == "register" and not args:
            args = ("127.0.0.1", 4101, ("query",), ("default",))
        if operation == "heartbeat" and not args:
            args = ("healthy", None)
        method = getattr(self.commands, operation)
        self.called: int = method(self.world.at, instance_id, *args)
        self.world.run()
        return self.call_ended()

    def call_ended(self) -> CallEnded | None:
        """The end of the last registry call."""
        return next((end for end in self.of(CallEnded) if end.call == self.called), None)

    def status(self) -> str | None:
        end = self.call_ended()
        return end.status if end is not None else None

    def read(self, instance_id: str, limit: int | None = None) -> list[Envelope]:
        end = self.call("read", instance_id, limit)
        assert end is not None
        assert end.status == "ok"
        return list(end.messages)


class World:
    """Offices, their links, and the clock.

    Durable offices have a disk each, which outlives ``restart``; what they wrote is
    on it at once, or (``saves_at_once`` False) when ``Office.save`` says so.
    """

    default_is_durable = False

    def __init__(self, *, is_durable: bool | None = None) -> None:
        self.is_durable = World.default_is_durable if is_durable is None else is_durable
        self.saves_at_once = True  # False: stores save when told to
        self.at = Instant(1000.0, BORN)
        self.offices: dict[str, Office] = {}
        self.by_id: dict[NodeId, Office] = {}
        self.rings: dict[NodeId, list[NodeId]] = {}  # empty: the real ones
        self.links_on_demand = True
        self.blocked: set[frozenset[str]] = set()  # pairs that cannot link
        self.lost: set[type] = set()  # kinds of messages that vanish on the way
        self._wires: deque[tuple[NodeId, NodeId, bytes]] = deque()
        self._ids = 0
        self._rings: dict[frozenset[NodeId], Rings] = {}

    def rings_of(self, nodes: frozenset[NodeId]) -> Rings:
        made = self._rings.get(nodes)
        if made is None:
            made = self._rings[nodes] = Rings(min(nodes))
            for node in nodes:
                made.add(node)
        return made

    def next_id(self) -> NodeId:
        self._ids += 1
        return bytes([self._ids]) * 32

    def next_life(self) -> Life:
        self._ids += 1
        return Life(BORN + self._ids, 0, self._ids)

    def add(self, name: str, *, agent: bool = True, persistent: bool = False) -> Office:
        made = Office(self, name, f"{name}-1" if agent else None, persistent=persistent)
        self.offices[name] = self.by_id[made.id] = made
        self.changed(made)
        return made

    # --- links ----------------------------------------------------------------------

    def link(self, one: Office, other: Office) -> None:
        if frozenset((one.name, other.name)) in self.blocked:
            return
        for mine, theirs in ((one, other), (other, one)):
            mine.links.add(theirs.id)
            mine.post.linked(self.at, theirs.id)
        self.run()

    def link_all(self, *offices: Office) -> None:
        for index, one in enumerate(offices):
            for other in offices[index + 1 :]:
                self.link(one, other)

    def unlink(self, one: Office, other: Office) -> None:
        self._wires = deque(
            wired for wired in self._wires if {wired[0], wired[1]} != {one.id, other.id}
        )
        for mine, theirs in ((one, other), (other, one)):
            if theirs.id in mine.links:
                mine.links.discard(theirs.id)
                mine.post.unlinked(self.at, theirs.id)
        self.run()

    def block(self, one: Office, other: Office) -> None:
        self.blocked.add(frozenset((one.name, other.name)))
        self.unlink(one, other)

    def unblock(self, one: Office, other: Office) -> None:
        self.blocked.discard(frozenset((one.name, other.name)))

    # --- life and death ---------------------------------------------------------------

    def changed(self, *offices: Office, guests: Iterable[str] = ()) -> None:
        """Tell everyone to look at these again."""
        nodes = {office.id for office in offices}
        agents = {office.agent for office in offices if office.agent}
        for office in self.living():
            office.post.membership_changed(self.at, nodes, agents | set(guests))
        self.run()

    def living(self) -> list[Office]:
        return [office for office in self.offices.values() if office.state == "alive"]

    def kill(self, office: Office, state: str = "failed") -> None:
        """Its links end, and everyone learns of it."""
        office.state = state
        for other in list(self.offices.values()):
            if other is not office:
                self.unlink(office, other)
        homed = [i for o in self.living() for i, e in o.view.entries.items() if e.home == office.id]
        self.changed(office, guests=homed)

    def restart(self, office: Office, *, wiped: bool = False) -> None:
        """The same identity in a new life, its memory gone; ``wiped``: its disk, too."""
        if wiped:
            office.disk.clear()
        office.state = "stopped"
        for other in self.offices.values():
            if other is not office:
                self.unlink(office, other)
        office.state = "alive"
        office.effects.clear()
        office.begin_life()
        self.changed(office)

    def split(self, one: Office, other: Office) -> None:
        """Each takes the other for failed."""
        self.block(one, other)
        one.view.buried.add(other.id)
        other.view.buried.add(one.id)
        self.changed(one, other)

    def heal(self, one: Office, other: Office) -> None:
        self.unblock(one, other)
        one.view.buried.discard(other.id)
        other.view.buried.discard(one.id)
        self.changed(one, other)
        for mine, theirs in ((one, other), (other, one)):
            for entry in list(theirs.view.entries.values()):
                self._merge(mine, entry)
        self.link(one, other)

    def _merge(self, office: Office, entry: GuestEntry) -> None:
        known = office.view.entries.get(entry.instance_id)
        if known is None or _version(entry) > _version(known):
            office.view.entries[entry.instance_id] = entry
            if office.state == "alive":
                office.post.membership_changed(self.at, (), (entry.instance_id,))

    # --- time -------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with every timer at its time."""
        until = self.at.now + seconds
        for _ in range(100_000):
            due = [
                (timer, office)
                for office in self.living()
                if (timer := office.post.next_timer()) is not None and timer <= until
            ]
            if not due:
                break
            timer, office = min(due, key=lambda pair: pair[0])
            self._set(max(timer, self.at.now))
            office.post.handle_timer(self.at)
            self.run()
        else:
            raise AssertionError("timers never end")
        self._set(until)

    def _set(self, now: float) -> None:
        self.at = Instant(now, self.at.wall + round((now - self.at.now) * 1000))

    # --- mouth to ear -----------------------------------------------------------------

    def run(self) -> None:
        """Carry messages until everything is quiet."""
        for _ in range(10_000):
            busy = False
            for office in self.living():
                busy |= self._carry_out(office)
            while self._wires:
                busy = True
                self._hand_over(*self._wires.popleft())
            if not busy:
                return
        raise AssertionError("never quiet")

    def _carry_out(self, office: Office) -> bool:
        effects = office.post.drain(self.at)
        needed: list[Office] = []
        for effect in effects:
            match effect:
                case SendTo(peer, message):
                    office.sent.append(message)
                    if peer in office.links and type(message) not in self.lost:
                        self._wires.append((office.id, peer, wire.encode(message)))
                case Announce(entry):
                    for other in self.offices.values():
                        if office.id not in other.view.buried:
                            self._merge(other, entry)
                case NeedLink(peer):
                    office.effects.append(effect)
                    if self.links_on_demand and self.by_id[peer].state == "alive":
                        needed.append(self.by_id[peer])
                case MessageArrived(envelope=envelope, attempt=attempt):
                    office.effects.append(effect)
                    office.attempts[envelope.message_id] = attempt
                    if office.auto_completes and self.is_durable:
                        office.commands.message_started(self.at, envelope.message_id)
                    elif office.auto_completes:
                        office.run(envelope.message_id)
                case MessageMayStart(message_id):
                    office.effects.append(effect)
                    if office.auto_completes:
                        office.run(message_id)
                case Save():
                    office.saves.append(effect)
                case _:
                    office.effects.append(effect)
        if self.saves_at_once:
            office.save()
        for other in needed:
            self.link(office, other)
        return bool(effects)

    def _hand_over(self, sender: NodeId, receiver: NodeId, data: bytes) -> None:
        office = self.by_id[receiver]
        if office.state != "alive" or sender not in office.links:
            return
        message = wire.decode(data)
        assert isinstance(message, wire.MESSAGE_PLANE)
        office.post.received(self.at, sender, message)


def _version(entry: GuestEntry) -> tuple[int, NodeId, Life, int]:
    return (entry.term, entry.home, entry.home_life, entry.revision)


def is_left(entry: GuestEntry) -> bool:
    return entry.state is State.LEFT


def pair(*, linked: bool = True) -> tuple[World, Office, Office]:
    world = World()
    a, b = world.add("a"), world.add("b")
    if linked:
        world.link(a, b)
    return world, a, b


def audit(office: Office) -> None:
    """What is counted is what is held."""
    post = office.post
    outbox = post._outbox
    streams = [lane.stream for lane in outbox._by_id.values()]
    for stream in streams:
        assert stream.bytes == sum(item.size for item in stream.items.values())
        assert list(stream.items) == sorted(stream.items)
        assert all(not item.is_over for item in stream.items.values())
    for outlet in outbox.outlets._outlets.values():
        lanes = outlet.lanes.values()
        flying = [i for lane in lanes for i in lane.stream.items.values() if i.is_flying]
        assert outlet.flight.bytes == sum(i.size for i in flying if not i.is_large)
        assert outlet.flight.large == sum(i.size for i in flying if i.is_large)
        assert all(lane.outlet is outlet for lane in lanes)
    letters = [each for box in post._home.mailboxes.all() for each in box.letters.values()]
    for box in post._home.mailboxes.all():
        assert box.bytes == sum(letter.charge for letter in box.letters.values())
    for stream in post._home.intake._streams.values():
        box = post._home.mailboxes.get(stream.recipient)
        held = box.letters.values() if box is not None else ()
        assert stream.open == {n for letter in held for of, n in letter.places if of is stream}
    parcels = [each for waiting in post._sending._waiting._parcels.values() for each in waiting]
    held_bytes = (
        sum(stream.bytes for stream in streams),
        sum(letter.charge for letter in letters if not letter.is_shared),
        sum(parcel.size for parcel in parcels),
        sum(asked.size for asked in post._asking._asked.values()),
        sum(held.size for held in post._broadcasts._held.values()),
    )
    assert outbox._account.used == sum(held_bytes)
    assert post._answering._kept_bytes == sum(k.size for k in post._answering._kept.values())
    dead = post._dead
    assert dead.bytes == sum(200 + len(each.envelope.payload) for each in dead.all())
    assert {(m, r) for m, of in dead._of.items() for r in of} == set(dead._kept)
    if post._ledger.is_settled and post._ledger.is_durable:
        assert len(dead) == sum(table == "dead_letters" for table, _ in office.disk)
    acks = post._desk._acks
    assert {(i, m) for i, kept in acks._of.items() for m in kept} == set(acks._until)
    if post._ledger.is_settled and post._ledger.is_durable:
        assert len(acks) == sum(table == "acks" for table, _ in office.disk)
