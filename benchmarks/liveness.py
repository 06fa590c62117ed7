"""How soon everyone knows: deaths, leaders, meetings, splits; and what idling costs.

Real processes on this machine, one node in each but for S3.  A sample is the *last*
observer.  Rows:

    L1   kill -9 of one of N, chosen at random: until all others say that it failed
    L2   the cable of one of 20 hosts is out: the same (network namespaces, as root)
    L4   10 s in a handler that sleeps, 10 s busy, 5 s with the GIL, 10 s stopped: deaths
    L5   kill -9 of the leader of N: until all others follow one and the same other
    L5t  the same, and it leaves on SIGTERM
    L5g  one of N leaves when it is asked to: until all others say that it is gone
    L6   an even split of six hosts for 10 s: from its end until all follow the oldest
    L7   two hosts, nothing but mDNS: from the order to start the second, which has
         imported everything, until both see both
    L8   N at a barrier: from the last that is bound until all see all
    L8s  the same, but they pass the barrier one after the other, 0.1 s apart
    L9   N idle: bytes of IP that a node sends in a second (namespaces, as root)
    L10  N idle: processor and memory of a process
    S3   8 processes of 125 nodes, each as on a host of its own: from the order until
         all see all

    python benchmarks/liveness.py --rows L1,L5 --sizes 10,50,100 --samples 100
    python benchmarks/liveness.py --rows L1,L5g,L8 --sizes 10,50 --systems p2pmesh,serf,kinship

The second command measures beside other systems (``benchmarks/peers.py``), one fleet at
a time, in ``--turns`` of some samples each; what cannot be had is left out and said.

Prints one JSON line a result, then a table.  With ``--out FILE`` results are appended
there, and what it holds already is not measured again.  A death of somebody who was
alive, or who left, is counted in every row as ``false_deaths``.  ``--quick`` takes two
samples of each row with five processes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import peers
from benchmarks.command import Command, count, counts, out_file
from benchmarks.fleet import Fleet, Member, quantile
from tests.lab.namespaces import missing
from tests.lab.network import Host, Lab

Result = dict[str, Any]
QUIET = 2.0
STAGGER = 0.1
GONE = ("member_left", "member_failed")
#: What is asked for: which figure of a row, and what it may be at most.
TARGETS = {
    "L1": {"p50": 0.3, "p99": 1.0, "false_deaths": 0},
    "L2": {"p99": 4.5, "false_deaths": 0},
    "L4": {"false_deaths": 0},
    "L5": {"p99": 1.0, "false_deaths": 0},
    "L5t": {"p99": 0.2, "false_deaths": 0},
    "L5g": {"p99": 0.2, "false_deaths": 0},
    "L6": {"worst": 5.0},
    "L7": {"p50": 0.2},
    "L8": {"worst": 2.0, "false_deaths": 0},
    "L8s": {"worst": 1.0, "false_deaths": 0},
    "L9": {"bytes_per_s": 1200},
    "L10": {"cpu_percent": 0.5, "resident_mb": 60},
    "S3": {"worst": 60.0},
}


def progress(text: str) -> None:
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


def spread(samples: list[float], false_deaths: int) -> Result:
    return {
        "samples": len(samples),
        "p50": round(quantile(samples, 0.5), 4),
        "p99": round(quantile(samples, 0.99), 4),
        "worst": round(max(samples), 4),
        "false_deaths": false_deaths,
        "all": [round(sample, 4) for sample in samples],
    }


def deaths(fleet: Fleet, dead: set[str]) -> int:
    """Those told of as failed who were not, each once.  Who was cut off is no witness."""
    told = {
        line["of"]
        for member in fleet.members
        for line in member.said("member_failed")
        if line["by"] not in dead
    }
    return len(told - dead)


@contextmanager
def fleet_of(size: int, system: str = "p2pmesh") -> Iterator[Fleet]:
    with scratch() as directory, peers.fleet(system, directory) as fleet:
        fleet.quiet = QUIET
        fleet.start(size, said=progress)
        yield fleet


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="p2pmesh-bench-") as directory:
        yield Path(directory)


@contextmanager
def lab_of(hosts: int) -> Iterator[tuple[Lab, tuple[Host, ...], Fleet]]:
    """A fleet of real hosts that find each other by mDNS."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pmesh-bench-")))
        lab = stack.enter_context(Lab(home))
        fleet = stack.enter_context(Fleet(home, mdns=True, bind=[]))
        yield lab, lab.hosts(hosts), fleet


def on(host: Host, fleet: Fleet, count: int = 0) -> Member:
    """A process on that host, past the barrier."""
    member = fleet.make(host.prefix)
    member.wait("ready")
    fleet.run(member, count)
    return member


# --- deaths and leaders -----------------------------------------------------------


def killed(size: int, samples: int, system: str = "p2pmesh") -> Result:
    taken: list[float] = []
    dead: set[str] = set()
    with fleet_of(size, system) as fleet:
        for number in range(samples):
            progress(f"L1 {system} N={size}: {number} of {samples}")
            victim = random.choice(fleet.members)
            began = time.time()
            victim.process.kill()
            fleet.drop(victim)
            dead.add(victim.name)
            known = [each.wait("member_failed", began, of=victim.name) for each in fleet.members]
            taken.append(max(line["t"] for line in known) - began)
            if number + 1 < samples:
                fleet.start(1)
        return spread(taken, deaths(fleet, dead))


def left(size: int, samples: int, system: str = "p2pmesh") -> Result:
    taken: list[float] = []
    with fleet_of(size, system) as fleet:
        for number in range(samples):
            progress(f"L5g {system} N={size}: {number} of {samples}")
            leaver = random.choice(fleet.members)
            others = [member for member in fleet.members if member is not leaver]
            began = time.time()
            leaver.leave()
            known = [each.wait(GONE, began, of=leaver.name) for each in others]
            taken.append(max(line["t"] for line in known) - began)
            fleet.drop(leaver)
            if number + 1 < samples:
                fleet.start(1)
        return spread(taken, deaths(fleet, set()))


def _leaders(size: int, samples: int, signum: signal.Signals) -> Result:
    """The oldest is the first that was started, so its heir is the second."""
    taken: list[float] = []
    dead: set[str] = set()
    with fleet_of(size) as fleet:
        for number in range(samples):
            progress(f"{signum.name} of the leader, N={size}: {number} of {samples}")
            leader, heir = fleet.members[:2]
            began = time.time()
            leader.process.send_signal(signum)
            others = fleet.members[1:]
            led = [each.wait("leader_changed", began, of=heir.name) for each in others]
            taken.append(max(line["t"] for line in led) - began)
            fleet.drop(leader)
            dead.add(leader.name)
            fleet.start(1)
        return spread(taken, deaths(fleet, dead))


def leader_killed(size: int, samples: int) -> Result:
    return _leaders(size, samples, signal.SIGKILL)


def leader_leaves(size: int, samples: int) -> Result:
    return _leaders(size, samples, signal.SIGTERM)


def stalls(size: int, samples: int) -> Result:
    """Each kind in turn, with the leader and with another; nobody may be said to fail."""
    del samples
    with fleet_of(size) as fleet:
        for member in fleet.members[:2]:
            for kind, seconds in (("sleep", 10), ("busy", 10), ("hold", 5)):
                progress(f"L4 N={size}: {kind}")
                member.order(do=kind, seconds=seconds)
                time.sleep(seconds + 3)
            member.process.send_signal(signal.SIGSTOP)
            time.sleep(10)
            member.process.send_signal(signal.SIGCONT)
            time.sleep(3)
        return {"false_deaths": deaths(fleet, set())}


def unplugged(size: int, samples: int) -> Result:
    taken: list[float] = []
    dead: set[str] = set()
    with lab_of(size) as (_, hosts, fleet):
        running = {on(host, fleet): host for host in hosts}
        for member in running:
            member.wait("joined")
        for number in range(samples):
            fleet.settle()
            progress(f"L2 N={size}: {number} of {samples}")
            victim = random.choice(list(running))
            others = [member for member in running if member is not victim]
            began = time.time()
            running[victim].unplug()
            known = [each.wait("member_failed", began, of=victim.name) for each in others]
            taken.append(max(line["t"] for line in known) - began)
            back = time.time()
            running[victim].plug_in()  # both sides refute, and are one again
            for each in others:
                each.wait("member_joined", back, of=victim.name)
            dead.add(victim.name)
        return spread(taken, deaths(fleet, dead))


def split(size: int, samples: int) -> Result:
    taken: list[float] = []
    with lab_of(size) as (lab, hosts, fleet):
        members = []
        for host in hosts:
            members.append(on(host, fleet))
            members[-1].wait("joined")
        half = size // 2
        for number in range(samples):
            fleet.settle()
            progress(f"L6 N={size}: {number} of {samples}")
            lab.split(hosts[:half], hosts[half:])
            time.sleep(10)
            began = time.time()
            lab.heal()
            led = [
                each.wait("leader_changed", began, of=members[0].name) for each in members[half:]
            ]
            joined = [
                each.wait("member_joined", began, of=members[-1].name) for each in members[:1]
            ]
            taken.append(max(line["t"] for line in led + joined) - began)
        return spread(taken, 0)


# --- meeting ----------------------------------------------------------------------


def met(size: int, samples: int) -> Result:
    del size
    taken: list[float] = []
    for number in range(samples):
        progress(f"L7: {number} of {samples}")
        with lab_of(2) as (_, hosts, fleet):
            first = on(hosts[0], fleet, count=2)
            first.wait("joined")
            time.sleep(1)
            second = fleet.make(hosts[1].prefix)
            second.wait("ready")
            began = time.time()
            fleet.run(second, count=2)
            taken.append(max(each.wait("full")["t"] for each in (first, second)) - began)
    return spread(taken, 0)


def cold(size: int, samples: int, system: str = "p2pmesh") -> Result:
    return _starts(size, samples, system, apart=0.0)


def staggered(size: int, samples: int) -> Result:
    return _starts(size, samples, "p2pmesh", apart=STAGGER)


def _starts(size: int, samples: int, system: str, *, apart: float) -> Result:
    taken: list[float] = []
    wrong = 0
    for number in range(samples):
        progress(f"L8 {system} N={size}: {number} of {samples}")
        with scratch() as directory, peers.fleet(system, directory) as fleet:
            members = [fleet.make() for _ in range(size)]
            for member in members:
                member.wait("ready")
            for member in members:
                fleet.run(member, count=size)
                time.sleep(apart)
            bound = max(member.wait("bound")["t"] for member in members)
            full = max(member.wait("full")["t"] for member in members)
            taken.append(full - bound)
            wrong += deaths(fleet, set())
    return spread(taken, wrong)


def thousand(size: int, samples: int) -> Result:
    """``size`` is of the processes; each has 125 nodes, and a runtime directory of its
    own, as on a host of its own.  One node of each is told where the very first is."""
    del samples
    each = 125
    with scratch() as directory, Fleet(directory) as fleet:
        members = [
            fleet.make(("env", f"P2PMESH_RUNTIME_DIR={directory}/host{host}"))
            for host in range(size)
        ]
        for member in members:
            member.wait("ready")
        # Of a million joins nobody wants to read.
        order = {"do": "run", "count": size * each, "told": ["member_failed"]}
        first = fleet.settings(f"{members[0].name}-0")
        members[0].order(**order, nodes=[first])
        known = {"peers": [members[0].wait("bound")["at"]]}
        began = time.time()
        for member in members:
            nodes = [fleet.settings(f"{member.name}-{number}") for number in range(each)]
            if member is members[0]:
                del nodes[0]
            else:
                nodes[0] |= known
            member.order(**order, nodes=nodes)
        last = 0.0
        for member in members:
            for number in range(each):
                progress(f"S3: {member.name}-{number}")
                last = max(last, member.wait("full", id=f"{member.name}-{number}")["t"])
        return {"nodes": size * each, **spread([last - began], deaths(fleet, set()))}


# --- idling -----------------------------------------------------------------------


def traffic(size: int, samples: int, system: str = "p2pmesh") -> Result:
    """All on one host: whatever is on its loopback is theirs, acknowledgements included."""
    seconds = 30.0 if samples > 2 else 5.0
    with (
        lab_of(1) as (_, (host,), _),
        scratch() as directory,
        peers.fleet(system, directory) as fleet,
    ):
        for _ in range(size):
            member = on(host, fleet)
            member.wait("joined")
            progress(f"L9 {system}: started {len(fleet.members)} of {size}")
        fleet.settle()
        time.sleep(10 if samples > 2 else 1)
        packets, sent = _loopback(host)
        time.sleep(seconds)
        more_packets, more_sent = _loopback(host)
    packets, sent = more_packets - packets, more_sent - sent
    ip = sent - 14 * packets  # the counter includes an Ethernet header
    return {
        "bytes_per_s": round(ip / size / seconds),
        "packets_per_s": round(packets / size / seconds, 1),
    }


def _loopback(host: Host) -> tuple[int, int]:
    lines = host.run("cat", "/proc/net/dev").stdout.splitlines()
    fields = next(line for line in lines if line.strip().startswith("lo:")).split()
    return int(fields[10]), int(fields[9])  # packets and bytes sent


def idle(size: int, samples: int, system: str = "p2pmesh") -> Result:
    seconds = 30.0 if samples > 2 else 3.0
    with fleet_of(size, system) as fleet:
        progress(f"L10 {system} N={size}")
        time.sleep(10 if samples > 2 else 1)
        before = sum(member.cpu for member in fleet.members)
        time.sleep(seconds)
        used = sum(member.cpu for member in fleet.members) - before
        resident = max(member.resident for member in fleet.members)
        return {
            "cpu_percent": round(100 * used / size / seconds, 3),
            "resident_mb": round(resident / 1e6, 1),
        }


ROWS: dict[str, tuple[Callable[..., Result], tuple[int, ...]]] = {
    "L1": (killed, (10, 50, 100)),
    "L2": (unplugged, (20,)),
    "L4": (stalls, (5,)),
    "L5": (leader_killed, (50,)),
    "L5t": (leader_leaves, (50,)),
    "L5g": (left, (50,)),
    "L6": (split, (6,)),
    "L7": (met, (2,)),
    "L8": (cold, (100,)),
    "L8s": (staggered, (100,)),
    "L9": (traffic, (50,)),
    "L10": (idle, (100,)),
    "S3": (thousand, (8,)),
}
#: Each with few processes, and as anybody: what ``--quick`` looks at.
QUICK = {"L1": 5, "L5": 5, "L5t": 5, "L5g": 5, "L8": 5, "L8s": 5, "L10": 5}
#: What other systems have too: they know neither leaders nor mDNS.
SHARED = ("L1", "L5g", "L8", "L9", "L10")
#: What needs hosts of their own, and so root.
IN_NAMESPACES = frozenset({"L2", "L6", "L7", "L9"})
#: What is looked at for a while instead of so many times.
IDLING = ("L9", "L10")


def in_turns(row: str, size: int, samples: int, systems: list[str], turns: int) -> list[Result]:
    """Some samples of each system, again and again; one result a system."""
    measure, _ = ROWS[row]
    each = samples if row in IDLING else max(1, samples // turns)
    found: dict[str, list[Result]] = {system: [] for system in systems}
    load: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(turns):
        for system, parts in found.items():
            more = () if system == "p2pmesh" else (system,)
            parts.append(measure(size, each, *more))
            load[system].append(os.getloadavg()[0])
    return [
        {
            "row": row,
            "size": size,
            "system": system,
            **merged(parts),
            "load": round(statistics.median(load[system]), 1),
        }
        for system, parts in found.items()
    ]


def merged(parts: list[Result]) -> Result:
    """One result of many: all samples together, or the median of what has none."""
    if len(parts) == 1:
        return parts[0]
    if "all" in parts[0]:
        samples = [sample for part in parts for sample in part["all"]]
        return spread(samples, sum(part["false_deaths"] for part in parts))
    return {key: round(statistics.median(part[key] for part in parts), 3) for key in parts[0]}


def chosen_rows(command: Command, options: Namespace) -> tuple[str, ...]:
    """Those that were named; else those of a quick run, or all that can be had here."""
    lack = missing()
    if options.rows is None and (options.quick or not lack):
        return command.rows(None, QUICK if options.quick else None)
    if options.rows is None:
        print(f"without network namespaces: {lack}", file=sys.stderr)
        return command.rows(None, set(ROWS) - IN_NAMESPACES)
    rows = command.rows(options.rows)
    if lack and (wanting := IN_NAMESPACES.intersection(rows)):
        command.error(f"{', '.join(sorted(wanting))} cannot be measured here: {lack}")
    return rows


def available(systems: tuple[str, ...]) -> list[str]:
    """Those of the systems that can be had."""
    had = []
    for system in systems:
        try:
            peers.install(system)
        except peers.Missing as missing:
            print(f"{system} is left out: {missing}", file=sys.stderr)
        else:
            had.append(system)
    return had


def verdict(row: str, result: Result) -> bool:
    return all(result[figure] <= most for figure, most in TARGETS[row].items())


def table(results: list[Result]) -> str:
    lines = [f"{'row':5}{'N':>5}  {'system':15}{'to ours':>8}  {'figures':84}{'asked for':34}"]
    for result in results:
        system = result.get("system", "p2pmesh")
        shown = {
            key: value
            for key, value in result.items()
            if key not in ("row", "size", "system", "all", "holds", "quick")
        }
        figures = " ".join(f"{key}={value}" for key, value in shown.items())
        asked = TARGETS[result["row"]] if system == "p2pmesh" else {}
        lines.append(
            f"{result['row']:5}{result['size']:5}  {system:15}{beside_ours(result, results):>8}  "
            f"{figures:84}{' '.join(f'{key}≤{value}' for key, value in asked.items()):34}".rstrip()
        )
    return "\n".join(lines)


def beside_ours(result: Result, results: list[Result]) -> str:
    """How many times our figure it has: the row's first."""
    figure = next(key for key in ("p50", "bytes_per_s", "cpu_percent", "row") if key in result)
    for ours in results:
        same = (ours["row"], ours["size"]) == (result["row"], result["size"])
        is_ours = ours.get("system", "p2pmesh") == "p2pmesh"
        if same and is_ours and ours is not result and ours.get(figure):
            return f"{result[figure] / ours[figure]:.2f}×"
    return ""


def known(out: Path | None) -> list[Result]:
    if out is None or not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().splitlines()]


def main() -> None:
    command = Command("liveness", __doc__)
    command.add_rows(f"all, with --quick {','.join(QUICK)}")
    command.add_argument(
        "--sizes", type=counts, help="numbers of processes; default: as the targets say"
    )
    command.add_argument("--samples", type=count, default=20, help="of each row; default: 20")
    command.add_systems(peers.SYSTEMS, ("p2pmesh",))
    command.add_argument(
        "--turns", type=count, default=5, help="of each system, if many; default: 5"
    )
    command.add_argument("--out", type=out_file, help="a file that keeps the results")
    command.add_quick()
    options = command.parse_args()
    global QUIET
    QUIET = 0.3 if options.quick else QUIET
    rows = chosen_rows(command, options)
    systems = available(command.systems(options.systems, peers.SYSTEMS))
    results = known(options.out)
    done = {(result["row"], result["size"], result.get("system", "p2pmesh")) for result in results}
    for row in rows:
        sizes = ROWS[row][1]
        if options.quick:
            sizes = (QUICK.get(row, sizes[0]),)
        elif options.sizes:
            sizes = options.sizes
        for size in sizes:
            todo = [
                system
                for system in systems
                if (row, size, system) not in done and (system == "p2pmesh" or row in SHARED)
            ]
            if not todo:
                continue
            samples = 2 if options.quick else options.samples
            turns = 1 if options.quick or len(todo) == 1 else options.turns
            for result in in_turns(row, size, samples, todo, turns):
                progress("")
                print("\r", end="", file=sys.stderr)
                if not options.quick and result["system"] == "p2pmesh":
                    result["holds"] = verdict(row, result)
                print(json.dumps(result), flush=True)
                results.append(result)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
