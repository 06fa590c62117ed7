"""Two sides of a split have a leader each; what both write to takes one of them."""

from __future__ import annotations

import itertools
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.lab.network import Host, Lab
from tests.processes import Process

EXAMPLE = Path(__file__).parents[2] / "examples" / "fenced.py"
#: Only where its node looks for others is changed.
RUN = """
import runpy, sys
import p2pmesh
_, path, ledger, mesh = sys.argv
Node = p2pmesh.Node
p2pmesh.Node = lambda **given: Node(**given | {"mesh": mesh, "http": None})
sys.argv = [path, ledger]
runpy.run_path(path, run_name="__main__")
"""


def run(host: Host, ledger: Path, mesh: str) -> Process:
    command = (sys.executable, "-c", RUN, str(EXAMPLE), str(ledger), mesh)
    process = host.start(*command)
    process.event("joined")
    return process


def wrote(process: Process, *, since: int, above: int = 0) -> int:
    """The epoch of its next entry."""
    line = process.line(
        lambda line: line["event"] == "wrote" and line["epoch"] > above,
        since=since,
        what=f"an entry of an epoch above {above}",
    )
    return int(line["epoch"])


def epochs(ledger: Path) -> list[int]:
    """Of all entries, in their order."""
    with closing(sqlite3.connect(ledger)) as db:
        return [epoch for (epoch,) in db.execute("SELECT epoch FROM entries ORDER BY rowid")]


def test_a_leader_that_was_cut_off_is_refused_once_its_successor_wrote(
    lab: Lab, mesh: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.db"
    hosts = lab.hosts(4)
    old, *others = [run(host, ledger, mesh) for host in hosts]
    oldest = old.event("joined")["id"]
    for other in others:  # who met nobody in its first second led itself until it did
        other.event("following", id=oldest)
    new = others[1]
    first = wrote(old, since=len(old.lines))
    at_split = len(new.lines)
    lab.split(hosts[:2], hosts[2:])
    second = wrote(new, since=at_split)
    assert second > first
    old.event("refused")
    at_heal = len(old.lines)
    lab.heal()
    third = wrote(old, since=at_heal, above=second)
    written = [epoch for epoch, _ in itertools.groupby(epochs(ledger))]
    assert written == sorted(set(written)), "an earlier leader wrote again"
    assert written[written.index(second) :] == [second, third]
