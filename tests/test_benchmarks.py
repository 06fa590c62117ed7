"""Each benchmark still runs and prints what it measured; no figure is judged here."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import liveness
from benchmarks.command import ROWS, Command, count, counts, out_file, seconds
from benchmarks.plots import shares
from tests.processes import environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(benchmark: str, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A quick run, with more variables in its environment."""
    done = start(benchmark, home, "--quick", *flags, **more)
    assert done.returncode == 0, done.stderr
    return done


def start(benchmark: str, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / benchmark), *flags]
    variables = {**environment(home), **more}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, check=False
    )


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


# --- what they are asked for ----------------------------------------------------------

#: The commands, and how each refuses what it has not.
REFUSED = {
    "liveness.py": ("--rows", "S1", "there is no row 'S1' here, but L1, L2, "),
    "scale.py": ("--rows", "L99", "there is no row 'L99' here, but L3, L3c, L3s, L6h, S1, S2, S2s"),
    "messages.py": ("--systems", "zmp", "there is no system 'zmp' here, but p2pmesh, tcp, zmq"),
    "registry.py": ("--rows", "told,tld", "there is no row 'tld' here, but agents, told"),
    "bulk.py": ("--seconds", "-1", "'-1': give seconds above 0"),
    "broadcast.py": ("--rows", "our", "there is no row 'our' here, but ours, plumtree"),
    "shout.py": ("--systems", "nast", "there is no system 'nast' here, but p2pmesh, nats, zyre"),
    "streaming.py": ("--samples", "0", "'0': give a whole number, 1 at least"),
}


@pytest.mark.parametrize("benchmark", REFUSED)
def test_what_a_benchmark_has_not_is_refused_at_once_with_what_it_has(
    benchmark: str, home: Path
) -> None:
    flag, value, said = REFUSED[benchmark]
    done = start(benchmark, home, flag, value)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("name", ROWS)
def test_the_help_of_a_benchmark_names_its_rows_and_its_flags(name: str, home: Path) -> None:
    done = start(f"{name}.py", home, "--help", COLUMNS="1000")
    assert done.returncode == 0
    if name != "shout":  # has one
        assert all(f"    {row} " in done.stdout for row in ROWS[name])
    assert "--quick" in done.stdout
    assert ("--out" in done.stdout) is (name in ("liveness", "scale"))


@pytest.mark.parametrize("name", ["liveness", "scale", "messages", "broadcast"])
def test_each_command_measures_the_rows_that_it_is_known_for(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert tuple(module.ROWS) == ROWS[name]


def test_a_row_of_another_command_is_refused_with_the_command_that_has_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        Command("scale", "").rows("L3,L1")
    assert "; python benchmarks/liveness.py has L1" in capsys.readouterr().err


def test_rows_that_are_not_measured_are_said_unless_others_were_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = Command("scale", "")
    assert command.rows(None, {"S1", "L3"}) == ("L3", "S1")
    left = "rows left out: L3c, L3s, L6h, S2, S2s (--rows names them)\n"
    assert capsys.readouterr().err == left
    assert command.rows("S2, L3") == ("S2", "L3")
    assert command.rows(None) == ROWS["scale"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("quick", [False, True])
def test_rows_that_need_hosts_are_left_out_where_there_are_none_and_refused_by_name(
    quick: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(liveness, "missing", lambda: "only root makes namespaces")
    command = Command("liveness", "")
    rows = liveness.chosen_rows(command, Namespace(rows=None, quick=quick))
    assert "L1" in rows
    assert not {"L2", "L6", "L7", "L9"} & set(rows)
    assert "L2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        liveness.chosen_rows(command, Namespace(rows="L1,L2", quick=quick))
    assert "L2 cannot be measured here: only root makes" in capsys.readouterr().err


def test_cells_of_two_grids_are_not_kept_in_one_file(home: Path) -> None:
    done = start("scale.py", home, "--rows", "L3,L3c", "--out", str(home / "cells"))
    assert done.returncode == 2
    assert "--out keeps the cells of one grid" in done.stderr


def test_values_of_flags_are_read_or_refused(tmp_path: Path) -> None:
    assert counts("10,50") == (10, 50)
    assert seconds("0.5") == 0.5
    assert out_file(str(tmp_path / "new")) == tmp_path / "new"
    for read, text in (
        (count, "0"), (count, "x"), (counts, "1,"), (seconds, "nan"), (seconds, "0"),
        (out_file, str(tmp_path)), (out_file, str(tmp_path / "nowhere" / "new")),
    ):  # fmt: skip
        with pytest.raises(ArgumentTypeError, match="give "):
            read(text)
