"""A run that somebody recorded, said again: by a stranger, byte for byte, and by one who has the
key, item by item.  Nobody is back, nobody dies of it, no view changes (invariant 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

from p2pmesh.protocol.dispatch import Dispatch
from p2pmesh.protocol.types import (
    DialOutcome,
    Elected,
    LeaderChanged,
    MemberFailed,
    MemberJoined,
    MemberLeft,
)
from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.kernel import Host, Socket
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

GUEST = {"instance_id": "g", "hostname": "h", "port": 1, "capabilities": (), "profiles": ()}
LISTENS = ":8078"  # the end of every address that is dialled
STRANGERS = 1000  # the first number of hosts that are no nodes


class Tape:
    """What was said on every link: by who dialled it, and by who was dialled."""

    def __init__(self, net: SimNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_dialler: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        self.by_dialled: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        trace = net.trace

        def record(node: int, link: int, data: bytes) -> None:
            host = net.nodes[node].host
            is_dialler = link in host.sockets and host.sockets[link].address.endswith(LISTENS)
            (self.by_dialled if is_dialler else self.by_dialler)[node, link].append(data)
            trace(node, link, data)

        monkeypatch.setattr(net, "trace", record)


class Stranger:
    """A host that is no node: it says again what it has on tape, and hears what it is told."""

    def __init__(self, net: SimNetwork, number: int, tape: Iterable[bytes]) -> None:
        self.host = Host(STRANGERS + number, self, f"10.99.{number >> 8}.{number & 255}:1")
        self.was_connected = self.was_ended = False
        self._kernel = net._kernel
        self._tape = tuple(tape)

    def dial(self, address: str) -> None:
        self._kernel.boot(self.host)
        self._kernel.dial(self.host, 1, address, 5.0)

    def listen(self, address: str) -> None:
        self._kernel.boot(self.host)
        self._kernel.bind(self.host, address)

    def opened(self, socket: Socket, dial: int | None) -> None:
        self.was_connected = True
        if dial is None:
            self.host.unaccepted -= 1
        for data in self._tape:
            self._kernel.write(self.host, socket.link, data)

    def received(self, socket: Socket, data: bytes) -> None:
        self._kernel.read(socket, data)

    def ended(self, socket: Socket) -> None:
        self.was_ended = True

    def dial_failed(self, dial: int, outcome: DialOutcome) -> None: ...

    def paused(self, socket: Socket, is_paused: bool) -> None: ...


def live(net: SimNetwork) -> None:
    """Six meet.  Members go, refute and return; the leader changes, a guest ends."""
    for _ in range(6):
        net.add()
        net.run(0.2)
    net.run_until(net.agrees, within=10.0)
    net.run(3.0)
    home = net.nodes[1]
    net.command(home, "register", **GUEST)
    net.run(1.0)
    net.command(home, "deregister", instance_id="g")
    net.partition(net.nodes[:3], net.nodes[3:])
    net.run(12.0)
    net.heal()
    net.run_until(net.agrees, within=10.0)
    net.kill(net.nodes[2])
    net.run(1.0)
    net.start(net.nodes[2])
    net.run_until(net.agrees, within=10.0)
    net.kill(net.nodes[0])
    net.leave(net.nodes[5])
    net.run_until(net.agrees, within=10.0)
    net.run(3.0)


def views(net: SimNetwork) -> list[tuple[bytes, str | None, int | None]]:
    return [
        (node.mesh.view_hash(), node.leader(), node.leadership().epoch) for node in net.running()
    ]


def refusals(net: SimNetwork) -> int:
    return sum(
        count
        for node in net.running()
        for reason, count in node.mesh.counters().items()
        if reason.startswith("link ")
    )


def assert_nothing_happened(watch: Watch) -> None:
    told = watch.events(MemberJoined, MemberFailed, MemberLeft, LeaderChanged, Elected)
    assert not told, told
    watch.assert_nobody_resurrected()


@pytest.mark.parametrize("when", ["the next moment", "an hour later"])
def test_what_diallers_said_is_refused_by_all_when_a_stranger_says_it_again(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    net = simulate()
    tape = Tape(net, monkeypatch)
    live(net)
    if when == "an hour later":
        net.run(3600.0)
    taped = list(tape.by_dialler.values())
    assert sum(map(len, taped)) > 100
    before, refused = views(net), refusals(net)
    watch = Watch(net)
    strangers = []
    for said in taped:
        for node in net.running():
            strangers.append(Stranger(net, len(strangers), said))
            strangers[-1].dial(node.address)
            net.run(0.02)
    net.run(6.0)
    assert all(stranger.was_connected and stranger.was_ended for stranger in strangers)
    assert refusals(net) - refused >= len(strangers)
    assert views(net) == before
    assert_nothing_happened(watch)


def test_the_dead_are_not_back_when_a_stranger_answers_for_them_what_they_once_said(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heal dials meet, at the addresses of the dead, whoever took them: now a recording."""
    net = simulate()
    tape = Tape(net, monkeypatch)
    live(net)
    dead = net.nodes[0]
    before, refused = views(net), refusals(net)
    watch = Watch(net)
    for number, said in enumerate(list(tape.by_dialled.values())):
        stranger = Stranger(net, number, said)
        stranger.listen(dead.address)
        net.run_until(lambda stranger=stranger: stranger.was_ended, within=20.0)
    assert refusals(net) > refused
    assert views(net) == before
    assert {node.state_of(dead) for node in net.running()} == {"failed"}
    assert_nothing_happened(watch)


# --- one who has the key ----------------------------------------------------------------


def recorded_items(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, None]:
    """Every item of news and offers that any node is told from now on."""
    items: dict[bytes, None] = {}
    original: Callable[..., None] = Dispatch.items

    def record(dispatch: Dispatch, link: object, encoded: Iterable[bytes], *, flood: bool) -> None:
        encoded = tuple(encoded)
        items.update(dict.fromkeys(encoded))
        original(dispatch, link, encoded, flood=flood)

    monkeypatch.setattr(Dispatch, "items", record)
    return items


def say_again(net: SimNetwork, to: SimNode, items: Iterable[bytes]) -> None:
    """A member that this node is linked to says these."""
    link = next(link for link in to.mesh._core.links_up.values() if link.peer is not None)
    to.input("bytes_received", 0, b"")
    to.mesh._dispatch.items(link, tuple(items), flood=True)
    to.mesh._settle()
    to.perform()


@pytest.mark.parametrize("order", ["as it was", "backwards"])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_member_says_again_of_old_news_changes_nothing(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, order: str, seed: int
) -> None:
    """Records, verdicts, questions, vouches and flags of all that happened, also signed ones."""
    net = simulate(seed=seed)
    items = recorded_items(monkeypatch)
    live(net)
    said = list(items) if order == "as it was" else list(items)[::-1]
    assert len(said) > 50
    before = views(net)
    watch = Watch(net)
    for node in net.running():
        for item in said:
            say_again(net, node, [item])
        net.run(1.0)
    net.run(10.0)
    assert {node.state_of(net.nodes[0]) for node in net.running()} == {"failed"}
    assert {node.state_of(net.nodes[5]) for node in net.running()} == {"left"}
    assert views(net) == before
    assert_nothing_happened(watch)
