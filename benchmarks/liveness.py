"""How soon everyone knows: deaths, leaders, meetings, splits; and what idling costs.

Real processes on this machine, one node in each but for S3.  A sample is the *last*
observer.  Rows:

    L1   kill -9 of one of N, chosen at random: until all others say that it failed
    L2   the cable of one of 20 hosts is out: the same (network namespaces, as root)
    L4   10 s in a handler that sleeps, 10 s busy, 5 s with the GIL, 10 s stopped: deaths
    L5   kill -9 of the leader of N: until all others follow one and the same other
    L5t  the same, and it leaves on SIGTERM
    L6   an even split of six hosts for 10 s: from its end until all follow the oldest
    L7   two hosts, nothing but mDNS: from the order to start the second, which has
         imported everything, until both see both
    L8   N at a barrier: from the last that is bound until all see all
    L9   N idle: bytes of IP that a node sends in a second (namespaces, as root)
    L10  N idle: processor and memory of a process
    S3   8 processes of 125 nodes: from the order until all see all

    python benchmarks/liveness.py --rows L1,L5 --sizes 10,50,100 --samples 100

Prints one JSON line a result, then a table.  With ``--out FILE`` results are appended
there, and what it holds already is not measured again.  A death of somebody who was
alive is counted in every row as ``false_deaths``.  ``--quick`` takes two samples of
each row with five processes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fleet import Fleet, Member, quantile
from tests.lab.network import Host, Lab

Result = dict[str, Any]
QUIET = 2.0
#: What is asked for: which figure of a row, and what it may be at most.
TARGETS = {
    "L1": {"p50": 0.3, "p99": 1.0, "false_deaths": 0},
    "L2": {"p99": 4.5, "false_deaths": 0},
    "L4": {"false_deaths": 0},
    "L5": {"p99": 1.0, "false_deaths": 0},
    "L5t": {"p99": 0.2, "false_deaths": 0},
    "L6": {"worst": 5.0},
    "L7": {"p50": 0.2},
    "L8": {"worst": 2.0, "false_deaths": 0},
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
def fleet_of(size: int, **settings: Any) -> Iterator[Fleet]:
    with scratch() as directory, Fleet(directory, **settings) as fleet:
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


def killed(size: int, samples: int) -> Result:
    taken: list[float] = []
    dead: set[str] = set()
    with fleet_of(size) as fleet:
        for number in range(samples):
            progress(f"L1 N={size}: {number} of {samples}")
            victim = random.choice(fleet.members)
            began = time.time()
            victim.process.kill()
            fleet.drop(victim)
            dead.add(victim.name)
            known = [each.wait("member_failed", began, of=victim.name) for each in fleet.members]
            taken.append(max(line["t"] for line in known) - began)
            fleet.start(1)
        return spread(taken, deaths(fleet, dead))


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


def cold(size: int, samples: int) -> Result:
    taken: list[float] = []
    wrong = 0
    for number in range(samples):
        progress(f"L8 N={size}: {number} of {samples}")
        with scratch() as directory, Fleet(directory) as fleet:
            members = [fleet.make() for _ in range(size)]
            for member in members:
                member.wait("ready")
            for member in members:
                fleet.run(member, count=size)
            bound = max(member.wait("bound")["t"] for member in members)
            full = max(member.wait("full")["t"] for member in members)
            taken.append(full - bound)
            wrong += deaths(fleet, set())
    return spread(taken, wrong)


def thousand(size: int, samples: int) -> Result:
    """``size`` is of the processes; each has 125 nodes."""
    del samples
    each = 125
    with scratch() as directory, Fleet(directory) as fleet:
        members = [fleet.make() for _ in range(size)]
        for member in members:
            member.wait("ready")
        began = time.time()
        for member in members:
            names = [f"{member.name}-{number}" for number in range(each)]
            nodes = [fleet.settings(name) for name in names]
            member.order(do="run", nodes=nodes, count=size * each)
        last = 0.0
        for member in members:
            for number in range(each):
                progress(f"S3: {member.name}-{number}")
                last = max(last, member.wait("full", id=f"{member.name}-{number}")["t"])
        return {"nodes": size * each, **spread([last - began], deaths(fleet, set()))}


# --- idling -----------------------------------------------------------------------


def traffic(size: int, samples: int) -> Result:
    """All on one host: whatever is on its loopback is theirs, acknowledgements included."""
    seconds = 30.0 if samples > 2 else 5.0
    with lab_of(1) as (_, (host,), _), scratch() as directory, Fleet(directory) as fleet:
        for _ in range(size):
            member = on(host, fleet)
            member.wait("joined")
            progress(f"L9: started {len(fleet.members)} of {size}")
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


def idle(size: int, samples: int) -> Result:
    seconds = 30.0 if samples > 2 else 3.0
    with fleet_of(size) as fleet:
        time.sleep(10 if samples > 2 else 1)
        before = sum(member.cpu for member in fleet.members)
        time.sleep(seconds)
        used = sum(member.cpu for member in fleet.members) - before
        resident = max(member.resident for member in fleet.members)
        return {
            "cpu_percent": round(100 * used / size / seconds, 3),
            "resident_mb": round(resident / 1e6, 1),
        }


ROWS: dict[str, tuple[Callable[[int, int], Result], tuple[int, ...]]] = {
    "L1": (killed, (10, 50, 100)),
    "L2": (unplugged, (20,)),
    "L4": (stalls, (5,)),
    "L5": (leader_killed, (50,)),
    "L5t": (leader_leaves, (50,)),
    "L6": (split, (6,)),
    "L7": (met, (2,)),
    "L8": (cold, (100,)),
    "L9": (traffic, (50,)),
    "L10": (idle, (100,)),
    "S3": (thousand, (8,)),
}
#: Each with few processes, and as anybody: what ``--quick`` looks at.
QUICK = {"L1": 5, "L5": 5, "L5t": 5, "L8": 5, "L10": 5}


def verdict(row: str, result: Result) -> bool:
    return all(result[figure] <= most for figure, most in TARGETS[row].items())


def table(results: list[Result]) -> str:
    lines = [f"{'row':5}{'N':>5}  {'figures':62}{'asked for':34}"]
    for result in results:
        shown = {
            key: value
            for key, value in result.items()
            if key not in ("row", "size", "all", "holds", "quick")
        }
        figures = " ".join(f"{key}={value}" for key, value in shown.items())
        asked = " ".join(f"{key}≤{value}" for key, value in TARGETS[result["row"]].items())
        lines.append(f"{result['row']:5}{result['size']:5}  {figures:62}{asked:34}")
    return "\n".join(lines)


def known(out: Path | None) -> list[Result]:
    if out is None or not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", help="default: all")
    parser.add_argument("--sizes", help="of L1, L5, L8 …; default: as the targets say")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    global QUIET
    QUIET = 0.3 if options.quick else QUIET
    rows = options.rows.split(",") if options.rows else list(QUICK if options.quick else ROWS)
    results = known(options.out)
    done = {(result["row"], result["size"]) for result in results}
    for row in rows:
        measure, sizes = ROWS[row]
        if options.quick:
            sizes = (QUICK.get(row, sizes[0]),)
        elif options.sizes:
            sizes = tuple(map(int, options.sizes.split(",")))
        for size in sizes:
            if (row, size) in done:
                continue
            result = {
                "row": row,
                "size": size,
                **measure(size, 2 if options.quick else options.samples),
            }
            progress("")
            print("\r", end="", file=sys.stderr)
            if not options.quick:
                result["holds"] = verdict(row, result)
            print(json.dumps(result), flush=True)
            results.append(result)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
