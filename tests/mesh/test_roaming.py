"""Guests of real processes whose nodes die, restart, or are changed at random."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Any, Final

import pytest

from tests.mesh.conftest import RealMesh, all_alive, figure
from tests.mesh.guests import Beater, Door, Forwarder, Roamer, Sender, Sent, Watcher, until
from tests.processes import Process

GUEST = "guest-1"


def address(process: Process) -> str:
    return str(process.event("ready")["http"]).removeprefix("http://")


def node_id(process: Process) -> str:
    return str(process.event("ready")["node_id"])


def listed(door: Door) -> dict[str, dict[str, Any]]:
    return {each["instance_id"]: each for each in door.get("/registry/agents")["instances"]}


# --- a client that knows nothing of this ----------------------------------------------------


def move_the_name(real_mesh: RealMesh, home: Process, other: Process, name: Forwarder) -> Process:
    home.kill()
    name.target = address(other)
    return other


def take_its_port(real_mesh: RealMesh, home: Process, other: Process, name: Forwarder) -> Process:
    home.kill()
    return real_mesh.joined("--http", address(home))


def restart_it(real_mesh: RealMesh, home: Process, other: Process, name: Forwarder) -> Process:
    home.kill()
    return real_mesh.joined("--http", address(home), "--name", "home")


def restart_it_gracefully(
    real_mesh: RealMesh, home: Process, other: Process, name: Forwarder
) -> Process:
    assert home.leave() == 0
    return real_mesh.joined("--http", address(home), "--name", "home")


#: A home that kept its guests on disk says that they are unheard until they beat.
UNHEARD_AFTER: Final = (restart_it, restart_it_gracefully)
#: The listing at another node follows a heartbeat by news: milliseconds, usually.
LISTED_WITHIN: Final = 3.0


@pytest.mark.parametrize("succeed", [move_the_name, take_its_port, *UNHEARD_AFTER])
def test_a_client_that_only_beats_outlives_its_node_and_stays_listed(
    real_mesh: RealMesh, succeed: Any
) -> None:
    home = real_mesh.start("--name", "home", "--http", "127.0.0.1:0")
    other, witness = real_mesh.start(), real_mesh.start()
    all_alive([home, other, witness])
    with ExitStack() as stack:
        name = stack.enter_context(Forwarder(address(home)))
        beater = stack.enter_context(Beater(name.address, GUEST))
        door = stack.enter_context(Door(address(witness)))
        until(lambda: GUEST in listed(door), "it is listed")
        before = listed(door)[GUEST]
        watcher = stack.enter_context(Watcher(address(witness), GUEST))
        until(lambda: len(beater.beats) >= 3, "it beats")
        ended_at = time.monotonic()
        successor = succeed(real_mesh, home, other, name)
        count = len(beater.beats)
        until(lambda: any(beat.status == 200 for beat in beater.beats[count:]), "it beats again")
        heard_at = next(beat.at for beat in beater.beats[count:] if beat.status == 200)
        until(lambda: listed(door).get(GUEST, {}).get("node_id") == node_id(successor), "it moved")
        count = len(beater.beats)
        until(lambda: len(beater.beats) >= count + 5, "it goes on")
        watcher.stop()
        after = listed(door)[GUEST]
        assert beater.deregister() == 204
        until(lambda: GUEST not in listed(door), "it is gone")
    assert {beat.status for beat in beater.beats} <= {200, 503, 0}, "nobody denied it"
    assert {beat.status for beat in beater.beats if beat.at >= heard_at} == {200}
    missing = [at for at, node in watcher.listed if not node]
    if succeed in UNHEARD_AFTER:
        assert all(ended_at < at < heard_at + LISTED_WITHIN for at in missing)
    else:
        assert not missing
    assert after["created_at"] == before["created_at"]
    figure("a guest is heard after its node ended", heard_at - ended_at)


# --- a thousand messages to guests that roam ---------------------------------------------------


class Killed:
    """Three nodes, guests that roam between them, and what a kill -9 of their home must
    not undo."""

    def __init__(self, processes: list[Process], guests: list[Roamer], sender: Sender) -> None:
        self.home, *self.survivors = processes
        self.guests = guests
        self.sender = sender
        self.doors = {address(each): Door(address(each)) for each in self.survivors}
        #: Acknowledged, and never to be listed again.
        self.firm: set[str] = set()
        self._done: set[str] = set()

    def close(self) -> None:
        for door in self.doors.values():
            door.close()

    def states(self, sent: Sent) -> str:
        """As the node says that accepted it."""
        view = self.doors[sent.via].get(f"/v1/messages/{sent.message_id}")
        (recipient,) = view["recipients"]
        return str(recipient["state"])

    def adoptions(self) -> int:
        counters = [door.get("/v1/stats")["counters"] for door in self.doors.values()]
        return sum(each.get("guest_adopted", 0) + each.get("guest_outbid", 0) for each in counters)

    def is_listed(self, guest: Roamer) -> bool:
        return all(guest.instance_id in listed(door) for door in self.doors.values())

    def has_one_home(self, guest: Roamer) -> bool:
        """Do the survivors agree on one of them?"""
        lists = map(listed, self.doors.values())
        homes = {each.get(guest.instance_id, {}).get("node_id") for each in lists}
        return len(homes) == 1 and homes <= set(map(node_id, self.survivors))

    def note_what_senders_know(self) -> None:
        """What is done for its sender, or has no sender any more, is done for ever."""
        acked = {each for guest in self.guests for each in tuple(guest.notes.acked)}
        for message_id in acked & set(self.sender.sent):
            sent = self.sender.sent[message_id]
            if sent.via not in self.doors or self.states(sent) == "done":
                self.firm.add(message_id)

    def must_arrive(self) -> set[str]:
        """What a second node had, or a survivor accepted."""
        sent = self.sender.sent.values()
        return {
            each.message_id for each in sent if each.state == "stored" or each.via in self.doors
        }

    def unfinished(self) -> list[tuple[Sent, str]]:
        """Of which the node that accepted it does not know that it is done, and what it says."""
        found = []
        for message_id, sent in self.sender.sent.items():
            if message_id not in self._done and sent.via in self.doors:
                state = self.states(sent)
                if state == "done":
                    self._done.add(message_id)
                else:
                    found.append((sent, state))
        return found

    def read(self) -> set[str]:
        return {each for guest in self.guests for each in tuple(guest.notes.read)}


@pytest.mark.timeout(120)
def test_guests_that_roam_lose_nothing_that_was_stored_when_their_home_is_killed(
    real_mesh: RealMesh,
) -> None:
    """Nor does anything come again that was acknowledged, unless it was acknowledged
    between the kill and the next home, or so shortly before that its sender was not told.

    A node that is mute for over a second is outbid, as if it were dead; where this machine
    was that slow, what was acknowledged after the kill proves nothing.
    """
    seed, count = 7, 1000
    processes = [real_mesh.start() for _ in range(3)]
    all_alive(processes)
    addresses = [address(each) for each in processes]
    with ExitStack() as stack:
        guests = [stack.enter_context(Roamer(addresses, f"g{n}", seed)) for n in range(2)]
        sender = Sender(addresses, [guest.instance_id for guest in guests], count, seed)
        world = stack.enter_context(closing(Killed(processes, guests, sender)))
        until(lambda: all(map(world.is_listed, guests)), "all list them")
        stack.enter_context(sender)
        until(lambda: len(sender.sent) >= count // 2, "half of it is sent")
        was_calm = world.adoptions() == 0
        world.note_what_senders_know()

        world.home.kill()
        killed_at = time.monotonic()
        until(lambda: all(map(world.has_one_home, guests)), "they have a home again")
        agreed_at = time.monotonic()
        adoptions = world.adoptions()

        sender.join()
        until(
            lambda: world.must_arrive() <= world.read(),
            "all that was stored is read",
            lambda: world.must_arrive() - world.read(),
        )
        until(lambda: not world.unfinished(), "its senders know it is done", world.unfinished)
        for guest in guests:
            guest.stop()
        for door in world.doors.values():
            assert not any(door.get(f"/messages/{each.instance_id}")["messages"] for each in guests)
        is_calm = was_calm and world.adoptions() == adoptions

    assert len(world.must_arrive()) > count // 2
    assert len(world.read() - set(sender.sent)) <= sender.unsure, "nothing that nobody sent"
    for notes in (guest.notes for guest in guests):
        assert {status for _, status in notes.beats} <= {200, 503}
        if is_calm:
            world.firm |= {each for each, ack in notes.acked.items() if ack.asked_at > agreed_at}
        assert not [each for each in notes.again if each.message_id in world.firm]
    figure("guests have a home again after theirs was killed", agreed_at - killed_at)
