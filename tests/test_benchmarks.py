"""Each benchmark still runs and prints what it measured; no figure is judged here."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plots import shares
from tests.processes import environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(benchmark: str, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A quick run, with more variables in its environment."""
    command = [sys.executable, str(BENCHMARKS / benchmark), "--quick", *flags]
    variables = {**environment(home), **more}
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def quick(benchmark: str, home: Path, *flags: str) -> dict[str, Any]:
    """The results of a quick run, by row."""
    done = run(benchmark, home, *flags)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {result["row"]: result for result in results}


def test_a_quick_look_at_liveness_prints_what_it_measured(home: Path) -> None:
    results = quick("liveness.py", home, "--rows", "L1,L5t,L10")
    assert set(results) == {"L1", "L5t", "L10"}
    assert all(results[row]["worst"] > 0 for row in ("L1", "L5t"))
    assert results["L10"]["resident_mb"] > 10


def test_a_system_that_cannot_be_had_is_left_out_and_said(home: Path) -> None:
    done = run("liveness.py", home, "--rows", "L5g", "--systems", "p2pmesh,serf", PATH=str(home))
    assert "serf is left out: serf is not here: apt-get install serf" in done.stderr
    assert [json.loads(line)["system"] for line in done.stdout.splitlines() if line[0] == "{"] == [
        "p2pmesh"
    ]


def test_a_benchmark_that_was_interrupted_goes_on_where_it_was(home: Path) -> None:
    kept = home / "results.jsonl"
    done = {"row": "L5t", "size": 5, "p99": 0.1, "false_deaths": 0}
    kept.write_text(json.dumps(done) + "\n")
    assert quick("liveness.py", home, "--rows", "L5t", "--out", str(kept)) == {}


def test_a_drawn_share_rises_with_each_sample_to_all_at_the_slowest() -> None:
    assert shares([0.3, 0.1, 0.2, 0.2]) == (
        [0.1, 0.1, 0.2, 0.2, 0.3],
        [0.0, 0.25, 0.5, 0.75, 1.0],
    )


def test_a_quick_look_at_the_registry_prints_what_it_measured(home: Path) -> None:
    results = quick("registry.py", home, "--instances", "10")
    assert set(results) == {"agents", "told"}
    assert results["agents"]["ratio"] > 0
    assert results["told"]["worst_ms"] > 0


def test_a_quick_look_at_streaming_prints_what_it_measured(home: Path) -> None:
    results = quick("streaming.py", home)
    assert set(results) == {"first", "tokens", "large"}
    assert all(result["p50"] > 0 for result in results.values())


def test_a_quick_look_at_bulk_prints_what_it_measured(home: Path) -> None:
    results = quick("bulk.py", home)
    assert set(results) == {"beside request", "beside broadcast", "slow"}
    assert all(result["worst_ms"] > 0 for result in results.values())
    assert results["slow"]["refused"] > 0


def test_a_quick_look_at_broadcasts_prints_what_it_measured(home: Path) -> None:
    results = quick("broadcast.py", home)
    phases = ("before", "crash", "after")
    rows = ("ours", "plumtree", "plumtree-one")
    assert set(results) == {f"{row} {phase}" for row in rows for phase in phases}
    assert all(result["missed"] == 0 and result["hops"] > 1 for result in results.values())


def test_a_quick_look_at_messages_prints_what_it_measured(home: Path) -> None:
    results = quick("messages.py", home, "--systems", "p2pmesh,tcp")
    assert set(results) == {"request", "oneway", "bandwidth", "durable"}
    assert results["durable"]["rate"] > 0


def test_a_quick_look_at_scale_prints_what_it_measured(home: Path) -> None:
    results = quick("scale.py", home, "--rows", "L3,L3c,L3s,L6h,S1,S2,S2s")
    assert set(results) == {"L3", "L3c", "L3s", "L6h", "S1", "S2", "S2s"}
    assert results["L3"] == {**results["L3"], "runs": 2, "false_deaths": 0}
    assert results["L3c"]["starved_failed"] > 0
    assert len(results["S1"]["trace"]) > 8
    assert 0 < results["S2"]["known"] < 2
    assert results["S2s"]["split"] > 1
    assert results["S2s"]["healed"] > 0


@pytest.mark.parametrize("suspects", [False, True])
def test_the_swim_we_compare_with_buries_the_dead_and_nobody_else_while_nothing_is_lost(
    suspects: bool,
) -> None:
    told: list[int] = []
    make = runpy.run_path(str(BENCHMARKS / "swim.py"))["Swim"]
    swim = make(20, seed=1, loss=0.0, suspects=suspects, observe=told.append)
    swim.clock.run_to(30.0)
    assert told == []
    swim.nodes[7].stop()
    swim.clock.run_to(60.0)
    assert told == [7] * 19
    swim.nodes[7].resume()
    swim.clock.run_to(65.0)
    assert all(node.held[7].status == 0 for node in swim.nodes)
    assert told == [7] * 19


def test_a_quick_look_at_a_shout_prints_what_it_measured(home: Path) -> None:
    results = quick("shout.py", home)
    assert set(results) == {"shout"}
    assert results["shout"]["worst_ms"] > 0
