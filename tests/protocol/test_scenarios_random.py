"""Any faults in any order; when they stop, the mesh is one again (invariants 1, 2, 4)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.node import State
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch

Fault = Callable[[SimNetwork, SimNode, random.Random], None]

DAY: Final = 86_400_000
CLOCKS: Final = (0, 0, DAY, -DAY, 3650 * DAY, -1_789_999_000_000)
PAUSES: Final = (0.0, 0.05, 0.3, 1.0, 2.0, 4.0, 8.0, 20.0)
STARVED_FOR: Final = 8.0


def kill(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.state is not State.DEAD:
        net.kill(node)


def power_off(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.state is not State.DEAD:
        net.power_off(node)


def leave(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.is_running:
        net.leave(node)


def start(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.state is State.DEAD:
        net.start(node)


def add(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.add(persistent=True, wall_offset=rng.choice(CLOCKS))


def stop(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.stop(node)


def resume(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.resume(node)


def sleep(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.sleep(node)


def wake(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.wake(node)


def starve(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.is_running:
        runs, stops = rng.uniform(0.01, 0.5), rng.uniform(0.2, 3.0)
        net.starve(node, runs=runs, stops=stops, seconds=STARVED_FOR)


def set_wall(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.set_wall(node, rng.randint(-(10**11), 10**11))


def jump(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.state is not State.DEAD:
        net.jump(node, rng.choice((0.3, 5.0, 20.0, 4000.0)))


def partition(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    side = rng.sample(net.nodes, rng.randint(1, len(net.nodes)))
    net.partition([other for other in net.nodes if other not in side], side)


def cut(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.cut(node, rng.choice(net.nodes), both=rng.random() < 0.5)


def unplug(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.unplug(node)


def plug_in(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    if node.state is not State.STOPPED:  # who sleeps is plugged in by waking
        net.plug_in(node)


def heal(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.heal()


def lose(net: SimNetwork, node: SimNode, rng: random.Random) -> None:
    net.set_loss(rng.choice((0.0, 0.05, 0.2)))


FAULTS: Final[tuple[Fault, ...]] = (
    kill, kill, start, start, power_off, leave, add, stop, resume, sleep, wake, starve,
    set_wall, jump, partition, heal, cut, unplug, plug_in, lose,
)  # fmt: skip


def stop_faults(net: SimNetwork) -> None:
    net.set_loss(0.0)
    net.heal()
    for node in net.nodes:
        net.wake(node)
    if not net.running():
        net.start(net.nodes[0])
    net.discover()
    net.run(STARVED_FOR)
    for node in net.nodes:
        net.wake(node)


@pytest.mark.parametrize("seed", range(40))
def test_when_the_faults_stop_the_mesh_is_one_again(simulate: Simulate, seed: int) -> None:
    rng = random.Random(seed)
    net = simulate(seed=seed, delay=rng.choice((0.0002, 0.005)))
    watch = Watch(net)
    for _ in range(rng.choice((2, 3, 4, 5, 7, 10))):
        net.add(persistent=True, wall_offset=rng.choice(CLOCKS))
        net.run(rng.choice((0.0, 0.05, 0.5)))
    for _ in range(rng.randint(3, 20)):
        rng.choice(FAULTS)(net, rng.choice(net.nodes), rng)
        net.run(rng.choice(PAUSES))
    stop_faults(net)
    watch.assert_settles()
    watch.assert_nobody_resurrected()
    assert not [node for node in net.nodes if node.stopped_because == "double"]
