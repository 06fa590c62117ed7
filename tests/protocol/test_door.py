"""The one door takes anything, in any order.

Nothing raises, tables stay within their bounds, and what the core wants done is
well-formed: it writes to links that are open, closes each once, numbers dials and
persists once, and says only what it would understand itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from p2pmesh.errors import MeshError
from p2pmesh.protocol import limits, records, wire
from p2pmesh.protocol.mesh import Mesh
from p2pmesh.protocol.session import SessionError
from p2pmesh.protocol.types import (
    Agent,
    AskUnacked,
    Candidate,
    Close,
    Dial,
    DialOutcome,
    FoundBy,
    GuestEntry,
    Instant,
    Life,
    MeshConfig,
    MessageArrived,
    Persist,
    RequestArrived,
    Restored,
    State,
    Stop,
    Write,
)
from tests.protocol.strangers import BORN, LIVES, NUMBERS, Odd, Stranger

ADDRESSES = ("10.0.0.1:8078", "10.0.0.2:8078", "[fd00::1]:8078", "10.1.1.1:8078")
STRANGERS = 4


class Door:
    """One core, driven as the contract says, with strangers at its links."""

    def __init__(self, **config: Any) -> None:
        self.at = Instant(100.0, BORN)
        agent = Agent("me") if config.pop("has_agent", True) else None
        restored = config.pop("restored", Restored())
        self.mesh = Mesh(
            MeshConfig(
                name="me", agent=agent, addresses=ADDRESSES[:1], null_cipher=True,
                process=b"process1", **config,
            ),
            seed=b"\x07" * 32,
            at=self.at,
            rng=random.Random(1),
            entropy=random.Random(2).randbytes,
            restored=restored,
        )  # fmt: skip
        self.links: dict[int, Stranger] = {}
        self.dials: dict[int, str] = {}
        self.persists: list[int] = []
        self.arrived: list[str] = []
        self.requests: list[int] = []
        self.is_stopped = False
        self._numbers = 0
        self._seen: set[tuple[str, int]] = set()
        self._closed: set[int] = set()
        self._opened: set[int] = set()
        self.mesh.start(self.at)
        self.perform()

    def do(self, method: str, *arguments: Any, **options: Any) -> Any:
        """An input or a command, then everything the core wants done."""
        result = attrgetter(method)(self.mesh)(self.at, *arguments, **options)
        self.perform()
        return result

    def perform(self) -> None:
        for _ in range(100):
            actions = self.mesh.actions()
            if not actions:
                break
            for action in actions:
                self._perform(action)
        else:
            raise AssertionError("the core never stops wanting something done")
        due = self.mesh.next_timer()
        assert due is None or math.isfinite(due)

    def _perform(self, action: object) -> None:
        match action:
            case Write(link, data):
                assert link in self._opened, "a write to a link that never was"
                assert link not in self._closed, "a write to a link that is closed"
                assert isinstance(data, bytes)
                assert data
                self._answer(link, data)
            case Close(link):
                assert link in self._opened
                assert link not in self._closed, "closed twice"
                self._closed.add(link)
                self.links.pop(link, None)
            case Dial(number, address, timeout):
                self._once("dial", number)
                assert address
                assert 0 < timeout < 60
                self.dials[number] = address
            case Persist(number, life, epoch):
                self._once("persist", number)
                assert isinstance(life, Life)
                assert epoch is None or epoch > 0
                self.persists.append(number)
            case AskUnacked(link):
                assert link in self._opened
                assert link not in self._closed
            case Stop():
                self.is_stopped = True
            case MessageArrived(envelope):
                self.arrived.append(envelope.message_id)
            case RequestArrived(request):
                self.requests.append(request)

    def _once(self, kind: str, number: int) -> None:
        assert (kind, number) not in self._seen, f"{kind} {number} twice"
        self._seen.add((kind, number))

    def _answer(self, link: int, data: bytes) -> None:
        """The stranger reads what the core says, and goes on with the handshake."""
        stranger = self.links.get(link)
        if stranger is None:
            return
        try:
            answer = stranger.take(data)
        except SessionError:
            return  # a refusal, or our own hostile bytes broke it
        if answer:
            self._later.append((link, answer))

    _later: list[tuple[int, bytes]]

    def open(self, number: int, dial: int | None) -> int:
        """A connection opens, with this stranger at the other end."""
        self._numbers += 1
        link = self._numbers
        address = ADDRESSES[number % len(ADDRESSES)] if dial is None else self.dials.pop(dial)
        self._opened.add(link)
        self.links[link] = Stranger(number, initiator=dial is None)
        self._later = []
        self.do("link_opened", link, address, dial)
        if link in self.links:
            first = self.links[link].begin()
            if first:
                self.say(link, first)
            self.go_on()
        return link

    def say(self, link: int, data: bytes) -> None:
        if link in self.links:
            self.do("bytes_received", link, data)

    def go_on(self) -> None:
        while self._later:
            self.say(*self._later.pop(0))

    def greet(self, link: int, life: Life | None, **fields: Any) -> None:
        """HELLO, once the handshake is done."""
        stranger = self.links[link]
        stranger.greeted = True
        self.say(link, stranger.say(stranger.hello(life, **fields)))

    def introduced(self, number: int, *, born: int = 0) -> int:
        """A link over which a stranger has said HELLO as a member."""
        link = self.open(number, None)
        self.greet(link, Life(BORN + born, 0, number))
        return link

    def pass_time(self, seconds: float) -> None:
        """With all timers on their way."""
        until = self.at.now + seconds
        for _ in range(2_000):
            due = self.mesh.next_timer()
            if due is None or due > until:
                break
            self.at = Instant(max(due, self.at.now), self.at.wall)
            self.do("handle_timer")
        else:
            raise AssertionError("timers never end")
        self.at = Instant(until, self.at.wall)


# --- any order -------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Random inputs at the door."""

    @initialize(
        has_agent=st.booleans(),
        candidate=st.booleans(),
        persistent=st.booleans(),
        quorum=st.sampled_from([None, 1, 3]),
        restored=st.builds(Restored, st.one_of(st.none(), LIVES), st.one_of(st.none(), NUMBERS)),
    )
    def begin(self, restored: Restored, **config: Any) -> None:
        life, epoch = restored.life, restored.epoch
        if life is not None and not all(0 <= part < 2**31 for part in life):
            life = None
        if epoch is not None and not 0 < epoch < 2**40:
            epoch = None
        self.door = Door(restored=Restored(life, epoch), **config)

    def odd(self) -> Odd:
        """What strangers might say, knowing what there is to know."""
        mesh = self.door.mesh
        strangers = [Stranger(number, initiator=True) for number in range(STRANGERS)]
        nodes = [mesh.node_id, *(stranger.signer.node_id for stranger in strangers)]
        life = mesh._core.life
        return Odd(nodes, [life] if life is not None else [], strangers)

    def a_link(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.door.links)))

    has_link = precondition(lambda self: bool(self.door.links))
    is_live = precondition(lambda self: not self.door.is_stopped)

    # --- links

    @is_live
    @rule(number=st.integers(0, STRANGERS - 1))
    def somebody_dials(self, number: int) -> None:
        if len(self.door.links) < 8:
            self.door.open(number, None)

    @precondition(lambda self: bool(self.door.dials))
    @rule(data=st.data(), number=st.integers(0, STRANGERS - 1))
    def a_dial_is_accepted(self, data: st.DataObject, number: int) -> None:
        self.door.open(number, data.draw(st.sampled_from(sorted(self.door.dials))))

    @precondition(lambda self: bool(self.door.dials))
    @rule(data=st.data(), outcome=st.sampled_from(DialOutcome))
    def a_dial_fails(self, data: st.DataObject, outcome: DialOutcome) -> None:
        dial = data.draw(st.sampled_from(sorted(self.door.dials)))
        del self.door.dials[dial]
        self.door.do("dial_failed", dial, outcome)

    @rule(number=NUMBERS, outcome=st.sampled_from(DialOutcome))
    def a_dial_that_never_was_fails(self, number: int, outcome: DialOutcome) -> None:
        self.door.do("dial_failed", -1 - abs(number), outcome)

    @has_link
    @rule(data=st.data())
    def a_link_ends(self, data: st.DataObject) -> None:
        link = self.a_link(data)
        del self.door.links[link]
        self.door._closed.add(link)
        self.door.do("link_ended", link)

    @has_link
    @rule(data=st.data(), is_paused=st.booleans())
    def a_link_pauses_or_goes_on(self, data: st.DataObject, is_paused: bool) -> None:
        self.door.do("link_paused" if is_paused else "link_resumed", self.a_link(data))

    @has_link
    @rule(data=st.data(), unacked=st.integers(0, 3))
    def a_kernel_says_what_it_holds(self, data: st.DataObject, unacked: int) -> None:
        self.door.do("kernel_unacked", self.a_link(data), unacked)

    # --- what strangers say

    @has_link
    @rule(data=st.data(), junk=st.binary(min_size=1, max_size=100))
    def somebody_sends_junk(self, data: st.DataObject, junk: bytes) -> None:
        link = self.a_link(data)
        self.door.say(link, junk)

    @has_link
    @rule(data=st.data(), life=st.one_of(st.none(), LIVES), check=st.booleans())
    def somebody_says_hello(self, data: st.DataObject, life: Life | None, check: bool) -> None:
        link = self.a_link(data)
        stranger = self.door.links[link]
        if stranger.session.established:
            mine = self.door.mesh._core.life
            life = data.draw(st.sampled_from([life, mine, Life(BORN, 0, 1)]))
            self.door.greet(link, life, check=check, highest=life)

    @has_link
    @rule(data=st.data(), fields=st.fixed_dictionaries({}, optional={
        "versions": st.tuples(NUMBERS, NUMBERS),
        "process": st.sampled_from([b"process1", b"", b"x" * 40]),
        "wall": NUMBERS,
        "uptime": NUMBERS,
        "highest": st.one_of(st.none(), LIVES),
        "replaces": st.one_of(st.none(), st.binary(max_size=32)),
        "record": st.binary(max_size=200),
    }))  # fmt: skip
    def somebody_says_an_odd_hello(self, data: st.DataObject, fields: dict[str, Any]) -> None:
        link = self.a_link(data)
        if self.door.links[link].session.established:
            self.door.greet(link, Life(BORN, 0, 1), **fields)

    @has_link
    @rule(data=st.data())
    def somebody_with_a_valid_key_talks_nonsense(self, data: st.DataObject) -> None:
        link = self.a_link(data)
        stranger = self.door.links[link]
        if stranger.session.established:
            messages = data.draw(st.lists(self.odd().message(), min_size=1, max_size=3))
            self.door.say(link, stranger.say(*messages))

    @has_link
    @rule(data=st.data(), encoded=st.binary(max_size=60))
    def somebody_with_a_valid_key_sends_bytes(self, data: st.DataObject, encoded: bytes) -> None:
        link = self.a_link(data)
        stranger = self.door.links[link]
        if stranger.session.established:
            self.door.say(link, stranger.say(encoded))

    # --- the world

    @rule(
        key=st.sampled_from(["peer:a", "mdns:b", "mdns:c"]),
        addresses=st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True),
        found_by=st.sampled_from([FoundBy.MDNS, FoundBy.PEER, FoundBy.RUNTIME]),
        claims=st.booleans(),
    )
    def a_candidate_is_found(
        self, key: str, addresses: list[str], found_by: FoundBy, claims: bool
    ) -> None:
        node = self.door.mesh.node_id if claims else None
        self.door.do("candidate_found", Candidate(key, tuple(addresses), found_by, node))

    @rule(key=st.sampled_from(["peer:a", "mdns:b", "mdns:c", "never"]))
    def a_candidate_is_lost(self, key: str) -> None:
        self.door.do("candidate_lost", key)

    @rule(addresses=st.lists(st.sampled_from(ADDRESSES), max_size=6))
    def the_addresses_change(self, addresses: list[str]) -> None:
        self.door.do("addresses_changed", tuple(addresses))

    @rule(seconds=st.floats(0, 10))
    def the_loop_lags(self, seconds: float) -> None:
        self.door.do("loop_lagged", seconds)

    @precondition(lambda self: bool(self.door.persists))
    @rule(ok=st.booleans())
    def the_store_answers(self, ok: bool) -> None:
        self.door.do("stored", self.door.persists.pop(0), ok)

    @rule(number=st.integers(-3, 99), ok=st.booleans())
    def the_store_answers_what_nobody_asked(self, number: int, ok: bool) -> None:
        if number not in self.door.persists:
            self.door.do("stored", number + 10_000, ok)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.25, 1.0, 1.5, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.door.pass_time(seconds)

    @rule(seconds=st.sampled_from([1.0, 13.5, 60.0, 90_000.0]))
    def time_jumps(self, seconds: float) -> None:
        self.door.at = Instant(self.door.at.now + seconds, self.door.at.wall)
        self.door.do("handle_timer")

    @rule(wall=st.sampled_from([0, 1, BORN, BORN - 10**12, 2**47, -5]))
    def the_wall_clock_steps(self, wall: int) -> None:
        self.door.at = Instant(self.door.at.now, wall)

    # --- commands

    @is_live
    @rule(
        to=st.sampled_from(["me", "stranger-1", "guest", "nobody"]),
        named=st.booleans(),
        ttl=st.sampled_from([0.0, 0.5, 86_400.0]),
    )
    def the_user_sends(self, to: str, named: bool, ttl: float) -> None:
        self._command(
            "commands.send", source="me", target=to, named=named, type="Query", payload=b"\xc0",
            ttl=ttl, correlation_id=None,
        )  # fmt: skip

    @is_live
    @rule(to=st.sampled_from(["me", "stranger-1", "guest", "nobody"]))
    def the_user_asks(self, to: str) -> None:
        self._command(
            "commands.request", source="me", target=to, named=False, type="Query", payload=b"\xc0",
            timeout=2.0,
        )  # fmt: skip

    @is_live
    @rule()
    def the_user_broadcasts(self) -> None:
        self._command(
            "commands.broadcast",
            source="me",
            type="Query",
            payload=b"\xc0",
            ttl=5.0,
            correlation_id=None,
        )

    @is_live
    @rule(guest=st.sampled_from(["guest", "stranger-1", "me"]), what=st.integers(0, 4))
    def a_guest_calls(self, guest: str, what: int) -> None:
        calls: tuple[Callable[[], None], ...] = (
            lambda: self._command("commands.register", guest, "host", 1, ("a",), ()),
            lambda: self._command("commands.heartbeat", guest, "ok", b"\xc0"),
            lambda: self._command("commands.read", guest, None),
            lambda: self._command("commands.acknowledge", guest, ("none",)),
            lambda: self._command("commands.deregister", guest),
        )
        calls[what]()

    @precondition(lambda self: bool(self.door.arrived))
    @rule(ok=st.booleans())
    def a_handler_ends(self, ok: bool) -> None:
        self._command("commands.message_completed", self.door.arrived.pop(), ok)

    @precondition(lambda self: bool(self.door.requests))
    @rule(payload=st.one_of(st.none(), st.just(b"\xc0")))
    def a_request_is_answered(self, payload: bytes | None) -> None:
        self._command("commands.respond", self.door.requests.pop(), payload)

    @rule()
    def the_user_looks(self) -> None:
        mesh, at = self.door.mesh, self.door.at
        members = mesh.members(at)
        assert len({(m.kind, m.instance_id, m.node_id) for m in members}) == len(members)
        mesh.leader(at)
        mesh.links(at)
        mesh.counters()

    @rule(is_working=st.booleans())
    def the_user_leaves(self, is_working: bool) -> None:
        self.door.do("leave", is_working=is_working)

    @rule()
    def handlers_have_ended(self) -> None:
        self.door.do("handlers_ended")

    def _command(self, method: str, *arguments: Any, **options: Any) -> None:
        """Commands raise for the caller's own mistakes, and nothing else."""
        try:
            self.door.do(method, *arguments, **options)
        except MeshError:
            self.door.perform()

    # --- always

    @invariant()
    def tables_are_within_their_bounds(self) -> None:
        if hasattr(self, "door"):
            assert_bounded(self.door.mesh)


def assert_bounded(mesh: Mesh) -> None:
    core = mesh._core
    view = core.view
    assert len(core.connections.links) <= limits.LINKS_MAX
    assert view.alive_count <= limits.MEMBERS_MAX
    assert len(view.nodes) <= limits.MEMBERS_MAX + limits.TOMBSTONES_MAX
    assert len(view.guests) <= limits.GUESTS_MAX
    assert len(core.links_up) <= len(core.connections.links)
    assert view.alive_count == sum(1 for _ in view.all_alive())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=40)


# --- hostile bytes at every phase -----------------------------------------------------------


def phases() -> dict[str, Callable[[Door], int]]:
    """How to get a link into each phase."""

    def handshake(door: Door) -> int:
        door.open(1, None)
        link = max(door.links)
        return link

    def opened(door: Door) -> int:
        door._numbers += 1
        link = door._numbers
        door._opened.add(link)
        door.links[link] = Stranger(1, initiator=True)
        door._later = []
        door.do("link_opened", link, ADDRESSES[1], None)
        return link

    def half(door: Door) -> int:
        link = opened(door)
        door.say(link, door.links[link].begin()[:30])
        return link

    def up(door: Door) -> int:
        return door.introduced(1)

    return {"opened": opened, "half a handshake": half, "before hello": handshake, "up": up}


JUNK = {
    "zeros": bytes(500),
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
    "a frame longer than any": b"\xff\xff" + b"\xaa" * 65_535,
    "one byte": b"p",
    "noise": random.Random(7).randbytes(70_000),
}


@pytest.mark.parametrize("phase", phases())
@pytest.mark.parametrize("junk", JUNK)
def test_junk_at_any_phase_of_a_link_ends_that_link_and_nothing_else(phase: str, junk: str) -> None:
    door = Door()
    other = door.introduced(2)
    link = phases()[phase](door)
    for at in range(0, len(JUNK[junk]), 1000):
        door.say(link, JUNK[junk][at : at + 1000])
    door.pass_time(6.0)  # what is incomplete is ended by the handshake's timeout
    assert (link in door.links) == (junk == "one byte" and phase == "up")  # half a length
    assert other in door.links
    assert {m.node_id for m in door.mesh.members(door.at)} >= {
        door.links[other].signer.node_id.hex()
    }


def test_every_kind_of_message_before_hello_ends_the_link() -> None:
    said = [
        wire.Heartbeat(b"12345678", 0, 0),
        wire.Ping(1),
        wire.News(()),
        wire.Want(b""),
        wire.Relay(b"", b"", b""),
    ]
    for message in said:
        door = Door()
        link = door.open(1, None)
        door.say(link, door.links[link].say(message))
        assert link not in door.links


# --- a flood of valid-key nonsense -------------------------------------------------------------

SMALL = {
    "CLAIMS_MAX": 24,
    "MEMBERS_MAX": 8,
    "TOMBSTONES_MAX": 8,
    "GUESTS_MAX": 8,
    "CANDIDATES_MAX": 8,
    "FAILED_ADDRESSES_MAX": 8,
    "QUESTIONS_MAX": 8,
}


LEAVES = (type, str, bytes, int, float, type(None), random.Random)


def containers(mesh: Mesh) -> dict[str, int]:
    """The sizes of everything that this core holds, by the way to it."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("mesh", mesh)]
    while waiting:
        path, thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, LEAVES):
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            sizes[path] = len(thing)
            waiting += [(f"{path}[]", value) for value in thing.values()]
        elif isinstance(thing, list | set | frozenset) or type(thing).__name__ == "deque":
            sizes[path] = len(thing)
            waiting += [(f"{path}[]", value) for value in thing]
        elif type(thing).__module__.startswith("p2pmesh"):
            for name in (*getattr(thing, "__dict__", ()), *slots_of(thing)):
                waiting.append((f"{path}.{name}", getattr(thing, name, None)))
    return sizes


def slots_of(thing: object) -> list[str]:
    return [
        name
        for kind in type(thing).__mro__
        for name in getattr(kind, "__slots__", ())
        if isinstance(name, str)
    ]


def flood(door: Door, rng: random.Random, numbers: range) -> None:
    """Claims about ever new identities; questions and answers about one that is known,
    by ever new accusers, vouchers and monitors."""
    known = Stranger(1, initiator=True).signer.node_id
    life = Life(BORN, 0, 1)
    for number in numbers:
        link = max(door.links) if door.links else door.introduced(1)
        liar = Stranger(1000 + number, initiator=True)
        other = rng.randbytes(32)
        born = Life(BORN + number, rng.randrange(9), rng.randrange(99))
        entry = GuestEntry(
            f"guest-{number % 20}", born, liar.signer.node_id, born, number, 0, State.ALIVE, "h", 1,
            (), (), 0,
        )  # fmt: skip
        items = [
            liar.record(born).item,
            liar.signer.entry(entry).item,
            wire.encode(wire.Verdict(other, born, 0, rng.randrange(9000), "refused", (other,))),
            wire.encode(wire.Question(known, life, 0, "stalled", other, number, 100)),
            wire.encode(wire.Vouch(known, life, 0, other, number, ((other, number),))),
            wire.encode(wire.Stall(known, life, other, number, True)),
            wire.encode(wire.Vouch(liar.signer.node_id, born, 0, other, 1, ((other, 1),))),
        ]
        door.say(link, door.links[link].say(wire.News(tuple(items))))
        door.pass_time(0.02)
        door.mesh.members(door.at)
        for dial in list(door.dials):
            del door.dials[dial]
            door.do("dial_failed", dial, rng.choice(list(DialOutcome)))


def test_a_flood_of_valid_key_nonsense_leaves_nothing_growing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, small in SMALL.items():
        monkeypatch.setattr(limits, name, small)
    monkeypatch.setattr(records, "_RECORDS_KEPT", 16)
    monkeypatch.setattr(records, "_ENTRIES_KEPT", 16)
    monkeypatch.setattr(records, "_SAID_KEPT", 16)
    door = Door()
    rng = random.Random(5)
    door.introduced(1)
    flood(door, rng, range(400))
    before = containers(door.mesh)
    flood(door, rng, range(400, 1200))
    grown = {
        path: (before.get(path, 0), size)
        for path, size in containers(door.mesh).items()
        if size > before.get(path, 0) + 64
    }
    assert not grown
