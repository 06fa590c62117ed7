"""How soon the others know: the leader killed, and the leader leaving.

Real processes on this machine (``p2pmesh run --json``), one mesh of N.  A sample is
the *last* observer: from the signal until every other process has said
``leader_changed`` to the next oldest (rows ``kill`` and ``term``), or
``member_failed`` of the killed one (row ``known``).  After each sample the process
is started again, as the youngest, and the mesh may settle for a few seconds.

    python benchmarks/leadership.py --rows kill,known,term --agents 5 --samples 20

Prints one JSON line a result, then a table.  ``--quick`` takes two samples.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GUARD = 30.0
#: What the issue asks for, seconds at p99.
TARGETS = {"kill": 0.5, "known": 0.3, "term": 0.2}


class Agent:
    """One process and the events it printed."""

    def __init__(self, mesh: str, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "HOME": str(home),
            "P2PMESH_RUNTIME_DIR": str(home.parent / "run"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "p2pmesh", "run", "--json", "--mesh", mesh, "--http", "off"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.instance_id = self.wait("ready")["instance_id"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def wait(self, event: str, **fields: str) -> dict[str, Any]:
        """The next such event; its ``t`` is when this process said it."""
        until = time.monotonic() + GUARD
        while True:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            if line["event"] == event and all(line.get(k) == v for k, v in fields.items()):
                return line

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def sample(agents: list[Agent], stop: signal.Signals) -> dict[str, float]:
    """Signal the oldest; seconds until the last of the others knew."""
    oldest, *others = agents
    began = time.time()
    oldest.process.send_signal(stop)
    if stop is signal.SIGKILL:
        known = [a.wait("member_failed", instance_id=oldest.instance_id)["t"] for a in others]
    else:
        known = [a.wait("member_left", instance_id=oldest.instance_id)["t"] for a in others]
    led = [a.wait("leader_changed", leader_id=others[0].instance_id)["t"] for a in others]
    oldest.process.wait()
    return {"known": max(known) - began, "led": max(led) - began}


def measure(rows: list[str], count: int, samples: int, settle: float) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {row: [] for row in rows}
    mesh = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="p2pmesh-bench-") as directory:
        agents: list[Agent] = []
        started = 0
        try:
            for stop in (signal.SIGKILL, signal.SIGTERM):
                wanted = {"kill", "known"} if stop is signal.SIGKILL else {"term"}
                if not wanted & results.keys():
                    continue
                for number in range(samples):
                    while len(agents) < count:
                        agent = Agent(mesh, Path(directory) / f"home{started}")
                        agent.wait("joined")
                        agents.append(agent)
                        started += 1
                    time.sleep(settle)
                    taken = sample(agents, stop)
                    agents.pop(0)
                    if "known" in results and stop is signal.SIGKILL:
                        results["known"].append(taken["known"])
                    row = "kill" if stop is signal.SIGKILL else "term"
                    if row in results:
                        results[row].append(taken["led"])
                    print(f"{row} {number + 1}/{samples}", file=sys.stderr)
        finally:
            for agent in agents:
                agent.end()
    return results


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="kill,known,term")
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    samples = 2 if options.quick else options.samples
    settle = 0.7 if options.quick else 3.0
    results = measure(options.rows.split(","), options.agents, samples, settle)
    table = [f"{'row':8}{'p50 s':>8}{'p99 s':>8}{'worst':>8}{'target':>8}"]
    for row, values in results.items():
        p50, p99, worst = quantile(values, 0.5), quantile(values, 0.99), max(values)
        line = {
            "row": row, "agents": options.agents, "samples": len(values),
            "p50": round(p50, 4), "p99": round(p99, 4), "worst": round(worst, 4),
            "target_p99": TARGETS[row],
        }  # fmt: skip
        if not options.quick:
            line["holds"] = p99 <= TARGETS[row]
        print(json.dumps(line))
        table.append(f"{row:8}{p50:8.3f}{p99:8.3f}{worst:8.3f}{TARGETS[row]:8.2f}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
