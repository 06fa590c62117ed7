"""Many simulated nodes: false deaths under starvation, long splits, and what a thousand cost.

Rows:

    L3   a grid: 50 and 200 nodes × 1, 5, 10 % of them starved × stops of 0.5 to 2.5 s ×
         1, 3, 5 % loss × seeds, 120 virtual seconds each.  The starved alternate between
         0.25 s of running and one stop, all the time.
    L3c  the control arm: the same cells with plain SWIM (``swim.py``), where silence is
         the only evidence and a verdict
    L3s  the same with SWIM's suspicions, which the subject may refute for 4 · log10(n) s
    L6h  an even split of ten nodes for an hour: virtual seconds from its end until all
         hold one view and follow the oldest
    S1   a thousand nodes join within 10 s, ten die after a minute: CPU seconds of 120
         virtual ones
    S2   4,000 nodes (``--nodes``) that begin converged, 1 % of which die: virtual seconds
         until all the others say so, CPU seconds, memory of this process so far
    S2s  the same nodes split in half and healed: virtual seconds until each half, and then
         all, hold one view.  Not among the rows run by default: who loses half of n makes
         up its mind n²/2 times in a second, 270 µs and 2 kB each

The rule for L3, written before it was run: a *false death* is a healthy node (neither
starved nor stopped) of which any node of the mesh tells ``member_failed``; each node
counts once a run.  What is asked for is at most 10 in all 3,600 runs, and that the
control arm has more than 10 in any tenth of them.  The arms of SWIM starve the same
nodes of the same cells in the same way, at the same loss.  L3s is told and not judged:
it says how much of L3c a suspicion takes back, at the price of its time.

    python benchmarks/scale.py --rows L3 --sizes 50 --seeds 40 --out grid.jsonl

Cells that the file holds are not run again.  They are run seed by seed, so that a part
of the grid is a fair sample of it.  A mesh is joined once for each size and seed, and every
cell goes on from there in a process of its own.  Prints
one JSON line a row, then a table.  ``--quick`` takes two cells of five nodes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, count, counts, out_file
from benchmarks.swim import Swim
from p2pmesh.protocol.types import Event, MemberFailed
from p2pmesh.testing import SimNetwork, SimNode

Result = dict[str, Any]
STARVED = (0.01, 0.05, 0.10)
STOPS = (0.5, 1.0, 1.5, 2.0, 2.5)
LOSSES = (0.01, 0.03, 0.05)
RUNS = 0.25  # seconds between two stops
LASTS = 120.0
FALSE_DEATHS_MAX = 10


class Cell(NamedTuple):
    size: int
    seed: int
    starved: float
    stops: float
    loss: float


# --- the grid ---------------------------------------------------------------------


def mesh_of(size: int, seed: int) -> SimNetwork:
    """So many that agree, each told of the first."""
    net = SimNetwork(seed, delay=0.001, jitter=0.001, expected=size)
    for number in range(size):
        net.add(peers=net.nodes[:1] if number else ())
        net.run(0.05)
    net.run_until(net.agrees, within=60)
    net.run(3.0)
    return net


def play(net: SimNetwork, cell: Cell) -> Result:
    """One cell, from a mesh that agrees."""
    starved = [net.nodes[number] for number in starved_of(cell)]
    told: set[str] = set()

    def observe(_: SimNode, event: Event) -> None:
        if isinstance(event, MemberFailed):
            told.add(event.instance_id)

    net.observers.append(observe)
    net.set_loss(cell.loss)
    for node in starved:
        net.starve(node, runs=RUNS, stops=cell.stops, seconds=LASTS)
    net.run(LASTS)
    return judged(cell, told, {node.instance_id for node in starved})


def play_swim(_: None, cell: Cell, *, suspects: bool) -> Result:
    """The same cell in a mesh of SWIM."""
    starved = starved_of(cell)
    told: set[int] = set()
    swim = Swim(cell.size, cell.seed, loss=cell.loss, suspects=suspects, observe=told.add)
    swim.starve(starved, runs=RUNS, stops=cell.stops, seconds=LASTS)
    swim.clock.run_to(LASTS)
    return judged(cell, told, set(starved))


def starved_of(cell: Cell) -> list[int]:
    chance = random.Random(cell.seed)
    return chance.sample(range(cell.size), max(1, round(cell.size * cell.starved)))


def judged(cell: Cell, told: set[Any], starved: set[Any]) -> Result:
    return {
        **cell._asdict(), "false": len(told - starved), "starved_failed": len(told & starved),
        "cpu": round(time.process_time(), 2),
    }  # fmt: skip


class Arm(NamedTuple):
    """What all cells of a size and seed begin with, and how one goes on from there."""

    prepare: Callable[[int, int], Any]
    play: Callable[[Any, Cell], Result]


ARMS = {
    "L3": Arm(mesh_of, play),
    "L3c": Arm(lambda *_: None, partial(play_swim, suspects=False)),
    "L3s": Arm(lambda *_: None, partial(play_swim, suspects=True)),
}


def in_a_child(play: Callable[[Cell], Result], cell: Cell) -> tuple[int, int]:
    """Play it in a copy of this process: its pid, and where its result can be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.write(writing, json.dumps(play(cell)).encode())
    finally:
        os._exit(0)


def grid(arm: Arm, cells: list[Cell], out: Path | None, processes: int) -> Iterator[Result]:
    """The results of all cells; those that ``out`` holds are not played."""
    known = {}
    if out is not None and out.exists():
        for line in out.read_text().splitlines():
            result = json.loads(line)
            known[Cell(*(result[field] for field in Cell._fields))] = result
    yield from (known[cell] for cell in cells if cell in known)
    left = [cell for cell in cells if cell not in known]
    began, done = time.monotonic(), 0
    for (size, seed), group in itertools.groupby(left, key=lambda cell: cell[:2]):
        play_from = partial(arm.play, arm.prepare(size, seed))
        waiting = list(group)
        playing: dict[int, int] = {}
        while waiting or playing:
            while waiting and len(playing) < processes:
                pid, reading = in_a_child(play_from, waiting.pop())
                playing[pid] = reading
            pid, _ = os.wait()
            with open(playing.pop(pid), "rb") as file:
                result = json.loads(file.read())
            if out is not None:
                with out.open("a") as kept:
                    kept.write(json.dumps(result) + "\n")
            yield result
            done += 1
            minutes = (time.monotonic() - began) / done * (len(left) - done) / 60
            text = f"{done} of {len(left)} cells, {minutes:.0f} min left"
            print(f"\r{text:40}", end="", file=sys.stderr, flush=True)
    print(f"\r{'':40}\r", end="", file=sys.stderr)


def starvation(row: str, options: argparse.Namespace) -> list[Result]:
    sizes = (5,) if options.quick else options.sizes
    seeds = range(1 if options.quick else options.seeds)
    shapes = itertools.product(STARVED, STOPS, LOSSES)
    if options.quick:
        shapes = iter([(0.10, 0.5, 0.01), (0.10, 2.5, 0.05)])
    cells = [Cell(*pair, *shape) for shape in shapes for pair in itertools.product(sizes, seeds)]
    results = []
    cells.sort(key=lambda cell: (cell.seed, cell))
    played = list(grid(ARMS[row], cells, options.out, options.processes))
    for size in sizes:
        mine = [result for result in played if result["size"] == size]
        results.append(
            {
                "row": row, "size": size, "runs": len(mine),
                "false_deaths": sum(result["false"] for result in mine),
                "starved_failed": sum(result["starved_failed"] for result in mine),
                "runs_with_any": sum(result["false"] > 0 for result in mine),
            }
        )  # fmt: skip
    return results


# --- the others -------------------------------------------------------------------


def long_split(options: argparse.Namespace) -> list[Result]:
    taken = []
    for seed in range(1 if options.quick else 5):
        net = mesh_of(10, seed)
        net.partition(net.nodes[:5], net.nodes[5:])
        net.run(60.0 if options.quick else 3600.0)
        net.heal()
        taken.append(net.run_until(net.agrees, within=60))
        assert all(node.leader() == net.nodes[0].instance_id for node in net.nodes)
    return [{"row": "L6h", "size": 10, "runs": len(taken), "worst": round(max(taken), 2)}]


def without_collector(
    row: Callable[[argparse.Namespace], list[Result]], options: argparse.Namespace
) -> list[Result]:
    """Of millions of live objects each full collection costs seconds, and none is garbage."""
    gc.collect()
    gc.disable()
    try:
        return row(options)
    finally:
        gc.enable()


def thousand(options: argparse.Namespace) -> list[Result]:
    size = 50 if options.quick else 1000
    chance = random.Random(1)
    net = SimNetwork(1, expected=size, multicast=False)
    began = time.process_time()
    for number in range(size):
        net.run_to(number * 10.0 / size)
        net.add(peers=chance.sample(net.nodes, min(3, number)))
    net.run_to(60.0)
    for node in chance.sample(net.nodes[1:], 10):
        net.kill(node)
    net.run_to(120.0)
    assert net.agrees()
    used = time.process_time() - began
    return [{"row": "S1", "size": size, "cpu": round(used, 1), "trace": net.trace_hash()}]


def converged(options: argparse.Namespace) -> SimNetwork:
    """A mesh that stands, without the messages of its joining."""
    size = 50 if options.quick else options.nodes
    net = SimNetwork(1, expected=size, multicast=False)
    net.add_converged(size)
    net.run_until(net.agrees, within=20)
    net.run(5.0)
    return net


def spent(net: SimNetwork, began: float) -> Result:
    return {
        "cpu": round(time.process_time() - began, 1),
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "trace": net.trace_hash(),
    }


def deaths(options: argparse.Namespace) -> list[Result]:
    began = time.process_time()
    net = converged(options)
    size = len(net.nodes)
    for node in random.Random(1).sample(net.nodes[1:], max(1, size // 100)):
        net.kill(node)
    known = net.run_until(net.agrees, within=60)
    return [{"row": "S2", "size": size, "known": round(known, 2), **spent(net, began)}]


def halves(options: argparse.Namespace) -> list[Result]:
    began = time.process_time()
    net = converged(options)
    size = len(net.nodes)
    sides = net.nodes[: size // 2], net.nodes[size // 2 :]
    net.partition(*sides)
    split = net.run_until(lambda: all(map(net.agrees, sides)), within=120)
    net.run(5.0)
    net.heal()
    healed = net.run_until(net.agrees, within=120)
    assert all(node.leader() == net.nodes[0].instance_id for node in net.nodes)
    figures = {"split": round(split, 2), "healed": round(healed, 2), **spent(net, began)}
    return [{"row": "S2s", "size": size, **figures}]


ROWS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    **{row: partial(starvation, row) for row in ARMS},
    "L6h": long_split,
    "S1": partial(without_collector, thousand),
    "S2": partial(without_collector, deaths),
    "S2s": partial(without_collector, halves),
}


def verdict(result: Result) -> bool | None:
    match result:
        case {"row": "L3", "false_deaths": deaths}:
            return bool(deaths <= FALSE_DEATHS_MAX)
        case {"row": "L3c", "false_deaths": deaths, "runs": runs}:
            return bool(deaths > FALSE_DEATHS_MAX * runs / 360)
        case {"row": "L6h", "worst": worst}:
            return bool(worst <= 5.0)
        case {"row": "S1", "cpu": cpu, "size": 1000}:
            return bool(cpu <= 60.0)
        case {"row": "S2" | "S2s", "size": 4000, "cpu": cpu, "mb": mb}:
            return bool(cpu <= 600.0 and mb <= 6 * 1024)
    return None


def main() -> None:
    command = Command("scale", __doc__)
    command.add_rows("all but S2s")
    command.add_argument(
        "--sizes", type=counts, default=(50, 200), help="of L3, L3c, L3s; default: 50,200"
    )
    command.add_argument("--seeds", type=count, default=40, help="of L3, L3c, L3s; default: 40")
    command.add_argument("--nodes", type=count, default=4000, help="of S2, S2s; default: 4000")
    command.add_argument(
        "--processes", type=count, default=os.cpu_count() or 1, help="at once; default: one a core"
    )
    command.add_argument("--out", type=out_file, help="a file that keeps the cells of one grid")
    command.add_quick()
    options = command.parse_args()
    rows = command.rows(options.rows, set(ROWS) - {"S2s"})
    if options.out is not None and len(ARMS.keys() & set(rows)) != 1:
        command.error(f"--out keeps the cells of one grid: give one of {', '.join(ARMS)} as --rows")
    results = []
    for row in rows:
        results += ROWS[row](options)
    for result in results:
        if not options.quick:
            result["holds"] = verdict(result)
        print(json.dumps(result))
    for result in results:
        figures = " ".join(f"{key}={value}" for key, value in result.items() if key != "row")
        print(f"{result['row']:5}{figures}")


if __name__ == "__main__":
    main()
