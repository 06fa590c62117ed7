"""The model of the kernel, with processes made of paper on it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from p2pmesh.protocol.types import DialOutcome
from p2pmesh.testing.clock import Clock
from p2pmesh.testing.kernel import BACKLOG, SOCKET_BUFFER, Host, Kernel, Socket

DIAL = 1.5  # seconds until a dial gives up


@dataclass
class Paper:
    """A process that notes what it is told, and reads at once unless it is stopped."""

    clock: Clock
    kernel: Kernel
    host: Host = field(init=False)
    is_stopped: bool = False
    told: list[tuple[float, str, object]] = field(default_factory=list)
    sockets: list[Socket] = field(default_factory=list)

    def note(self, what: str, detail: object = None) -> None:
        self.told.append((self.clock.now, what, detail))

    def opened(self, socket: Socket, dial: int | None) -> None:
        self.sockets.append(socket)
        self.note("opened", dial)
        if dial is None and not self.is_stopped:
            self.host.unaccepted -= 1

    def received(self, socket: Socket, data: bytes) -> None:
        self.note("received", data)
        if not self.is_stopped:
            self.kernel.read(socket, data)

    def ended(self, socket: Socket) -> None:
        self.note("ended")

    def dial_failed(self, dial: int, outcome: DialOutcome) -> None:
        self.note("failed", outcome)

    def paused(self, socket: Socket, is_paused: bool) -> None:
        self.note("paused" if is_paused else "resumed")

    def what(self) -> list[object]:
        return [detail if what == "received" else what for _, what, detail in self.told]

    def when(self, what: object) -> float:
        """The time of the first of these."""
        return next(
            at for (at, *_), told in zip(self.told, self.what(), strict=True) if told == what
        )


class World:
    """Two hosts with a process each, and a connection between them when asked for."""

    def __init__(self, *, seed: int = 1, loss: float = 0.0) -> None:
        self.clock = Clock()
        self.kernel = Kernel(self.clock, random.Random(seed), delay=0.001, jitter=0.001, loss=loss)
        self.one, self.other = (self._process(number) for number in range(2))

    def _process(self, number: int) -> Paper:
        process = Paper(self.clock, self.kernel)
        process.host = Host(number, process, f"10.0.0.{number}:1")
        self.kernel.bind(process.host, process.host.address)
        self.kernel.boot(process.host)
        return process

    def dial(self) -> None:
        self.kernel.dial(self.one.host, 7, self.other.host.address, DIAL)

    def run(self, seconds: float) -> None:
        self.clock.run_to(self.clock.now + seconds)

    def connected(self) -> World:
        """Both ends are open, and what was told of that is forgotten."""
        self.dial()
        while not self.one.sockets:
            self.run(0.1)
        self.one.told.clear()
        self.other.told.clear()
        return self

    def write(self, data: bytes, *, back: bool = False) -> None:
        writer = self.other if back else self.one
        self.kernel.write(writer.host, writer.sockets[-1].link, data)

    def unacked(self) -> int | None:
        return self.kernel.unacked(self.one.host, self.one.sockets[-1].link)


# --- dialling -----------------------------------------------------------------------


def test_a_dial_opens_a_connection_at_both_ends() -> None:
    world = World()
    world.dial()
    world.run(0.01)
    assert world.one.told[0][1:] == ("opened", 7)
    assert world.other.told[0][1:] == ("opened", None)
    assert world.other.sockets[0].address.startswith("10.0.0.0:")


def test_a_stopped_process_still_accepts_and_its_kernel_acknowledges() -> None:
    world = World()
    world.other.is_stopped = True
    world.connected()
    world.write(b"into its buffer")
    world.run(0.01)
    assert world.unacked() == 0


def test_a_full_backlog_drops_the_dial() -> None:
    world = World()
    world.other.is_stopped = True
    world.other.host.unaccepted = BACKLOG
    world.dial()
    world.run(DIAL)
    assert world.one.told == [(DIAL, "failed", DialOutcome.TIMEOUT)]


def test_strangers_get_as_far_as_the_backlog_and_leave_no_place_to_others() -> None:
    world = World()
    world.other.is_stopped = True
    world.other.host.backlog = 3
    world.kernel.besiege(world.other.host, 5)
    world.run(0.1)
    assert world.other.host.unaccepted == 3
    world.dial()
    world.run(2 * DIAL)
    assert world.one.what() == ["failed"]


def test_a_dead_process_refuses_within_a_round_trip() -> None:
    world = World()
    world.kernel.die(world.other.host)
    world.dial()
    world.run(DIAL)
    assert world.one.told[0][1:] == ("failed", DialOutcome.REFUSED)
    assert world.one.told[0][0] < 0.01


def test_nobody_answers_at_an_address_that_is_not_there() -> None:
    world = World()
    world.kernel.dial(world.one.host, 7, "10.9.9.9:1", DIAL)
    world.run(DIAL)
    assert world.one.told == [(DIAL, "failed", DialOutcome.TIMEOUT)]


def test_a_host_that_is_off_does_not_answer() -> None:
    world = World()
    world.kernel.power_off(world.other.host)
    world.kernel.paths.unplug(world.other.host.number)
    world.dial()
    world.run(DIAL)
    assert world.one.told == [(DIAL, "failed", DialOutcome.TIMEOUT)]


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_a_cut_in_either_direction_fails_the_dial(source: int, target: int) -> None:
    world = World()
    world.kernel.paths.cut(source, target)
    world.dial()
    world.run(DIAL)
    assert world.one.told == [(DIAL, "failed", DialOutcome.TIMEOUT)]


def test_a_path_that_comes_back_while_dialling_is_found_by_the_next_syn() -> None:
    world = World()
    world.kernel.paths.cut(0, 1)
    world.dial()
    world.run(0.5)
    world.kernel.paths.mend(0, 1)
    world.run(1.0)
    assert world.one.what() == ["opened"]
    assert 1.0 < world.one.when("opened") < 1.1


def test_a_dial_that_fails_on_its_own_machine_says_so() -> None:
    world = World()
    world.one.host.own_error = True
    world.dial()
    world.run(DIAL)
    assert world.one.told == [(0.0, "failed", DialOutcome.LOCAL_ERROR)]


def test_a_dial_of_a_process_that_died_meanwhile_is_told_to_nobody() -> None:
    world = World()
    world.dial()
    world.kernel.die(world.one.host)
    world.kernel.boot(world.one.host)
    world.run(DIAL)
    assert world.one.told == []


# --- bytes -----------------------------------------------------------------------------


def test_bytes_arrive_in_order_whatever_is_lost() -> None:
    world = World(seed=5, loss=0.3).connected()
    sent = [b"%d" % number for number in range(50)]
    for data in sent:
        world.write(data)
    world.run(14.0)
    assert world.other.what() == sent


def test_loss_is_delay() -> None:
    """The lost segment comes 200 ms later, and what is behind it waits."""
    delays = []
    for seed in range(40):
        world = World(seed=seed).connected()
        world.kernel.loss = 0.3
        began = world.clock.now
        world.write(b"first")
        world.write(b"second")
        world.run(10.0)
        first, second = world.other.when(b"first") - began, world.other.when(b"second") - began
        assert first <= second
        delays.append(first)
    prompt = [delay for delay in delays if delay < 0.1]
    once = [delay for delay in delays if 0.2 <= delay < 0.3]
    assert len(prompt) > len(once) > 0


def test_bytes_behind_a_cut_arrive_after_it_when_sent_again() -> None:
    world = World().connected()
    world.kernel.paths.cut(0, 1)
    world.write(b"first")
    world.run(5.0)
    assert world.other.what() == []
    assert world.unacked() == len(b"first")
    world.kernel.paths.mend(0, 1)
    world.write(b"second")
    world.run(2.0)
    assert world.other.what() == [b"first", b"second"]
    assert world.unacked() == 0


def test_a_connection_breaks_after_15_s_without_progress() -> None:
    world = World().connected()
    began = world.clock.now
    world.kernel.paths.unplug(1)
    world.write(b"lost")
    world.run(20.0)
    assert world.one.what() == ["ended"]
    assert 14.9 < world.one.when("ended") - began < 15.1
    assert world.other.what() == []  # it has written nothing, and so knows nothing


def test_an_idle_connection_outlives_a_cut() -> None:
    world = World().connected()
    world.kernel.paths.unplug(1)
    world.run(100.0)
    world.kernel.paths.plug_in(1)
    world.write(b"still there")
    world.run(0.01)
    assert world.other.what() == [b"still there"]


def test_bytes_that_cannot_be_acknowledged_arrive_and_break_their_connection() -> None:
    world = World().connected()
    world.kernel.paths.cut(1, 0)
    world.write(b"one way")
    world.run(1.0)
    assert world.other.what() == [b"one way"]
    assert world.unacked() == len(b"one way")
    world.run(15.0)
    assert world.one.what() == ["ended"]


def test_what_is_sent_again_arrives_once() -> None:
    world = World().connected()
    world.kernel.paths.cut(1, 0)
    world.write(b"one way")
    world.run(5.0)
    world.kernel.paths.mend(1, 0)
    world.run(5.0)
    assert world.other.what() == [b"one way"]
    assert world.unacked() == 0
    assert world.one.what() == []


def test_a_partition_separates_sides_and_heals() -> None:
    world = World().connected()
    world.kernel.paths.partition([[0], [1]])
    world.write(b"over there")
    world.run(1.0)
    assert world.other.what() == []
    world.kernel.paths.heal()
    world.run(1.0)
    assert world.other.what() == [b"over there"]


def test_who_writes_to_a_process_that_does_not_read_is_told_to_pause() -> None:
    world = World().connected()
    world.other.is_stopped = True
    world.write(bytes(SOCKET_BUFFER))
    world.run(1.0)
    assert world.one.what() == []
    world.write(b"one more")
    world.run(1.0)
    assert world.one.what() == ["paused"]
    for data in (bytes(SOCKET_BUFFER), b"one more"):
        world.kernel.read(world.other.sockets[0], data)
    world.run(1.0)
    assert world.one.what() == ["paused", "resumed"]


# --- ends ---------------------------------------------------------------------------------


def test_a_close_comes_behind_what_was_written() -> None:
    world = World().connected()
    world.write(b"last words")
    world.kernel.close(world.one.host, world.one.sockets[0].link)
    world.run(1.0)
    assert world.other.what() == [b"last words", "ended"]
    assert world.one.what() == []  # who closes hears no more


def test_a_dead_process_ends_its_connections_within_a_trip() -> None:
    world = World().connected()
    began = world.clock.now
    world.kernel.die(world.other.host)
    world.run(1.0)
    assert world.one.what() == ["ended"]
    assert world.one.when("ended") - began < 0.01


def test_a_reset_ends_both_ends_and_loses_what_was_under_way() -> None:
    world = World().connected()
    world.write(b"lost")
    world.write(b"lost, too", back=True)
    world.kernel.reset(world.one.host, world.other.host)
    world.run(100.0)
    assert world.one.what() == world.other.what() == ["ended"]
    world.dial()
    world.run(1.0)
    assert world.one.what() == ["ended", "opened"]


@pytest.mark.parametrize("seed", range(20))
def test_a_reset_is_not_faster_than_what_was_said_before_it(seed: int) -> None:
    world = World(seed=seed).connected()
    world.write(b"too late")
    world.run(0.001)  # it is about to arrive
    world.write(b"goodbye", back=True)
    world.kernel.close(world.other.host, world.other.sockets[-1].link)
    world.run(1.0)
    assert world.one.what() == [b"goodbye", "ended"]


def test_nobody_is_told_of_a_host_that_is_off() -> None:
    world = World().connected()
    world.kernel.power_off(world.other.host)
    world.kernel.paths.unplug(1)
    world.run(100.0)
    assert world.one.what() == []


def test_a_host_that_was_off_resets_who_writes_on() -> None:
    world = World().connected()
    world.kernel.power_off(world.other.host)
    world.kernel.paths.unplug(1)
    world.run(5.0)
    world.kernel.paths.plug_in(1)
    world.kernel.boot(world.other.host)
    world.write(b"do you remember")
    world.run(0.01)
    assert world.one.what() == ["ended"]
    assert world.other.what() == []


def test_an_end_behind_a_cut_is_told_after_it() -> None:
    world = World().connected()
    world.kernel.paths.unplug(1)
    world.kernel.die(world.other.host)
    world.run(5.0)
    assert world.one.what() == []
    world.kernel.paths.plug_in(1)
    world.run(10.0)
    assert world.one.what() == ["ended"]
