"""Draw what ``benchmarks/liveness.py --out FILE`` has kept: how soon, and for how much.

    python benchmarks/plots.py results.jsonl --to docs/img

``liveness-ROW.svg`` for L1, L5g and L8: of all samples, what share was over by when, one
panel for each number of processes.  ``liveness-cost.svg``: what an idle process sends,
computes and holds, against how many there are.  What the file has no results of is not
drawn.  The same results make the same bytes.  ``tox -e plots -- results.jsonl`` has what
it needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Command, in_file

Result = dict[str, Any]
TIMES = {
    "L1": "killed: until all others say so",
    "L5g": "leaves: until all others say so",
    "L8": "cold start: until all see all",
}
COSTS = {
    "bytes_per_s": "bytes of IP sent, a second",
    "cpu_percent": "percent of a core",
    "resident_mb": "memory, MB",
}
#: Colours that the colour-blind tell apart, and a dash of each system's own.
LOOKS = {
    "p2pmesh": ("#0072b2", "-"),
    "serf": ("#d55e00", "--"),
    "serf-local": ("#e69f00", ":"),
    "kinship": ("#009e73", "-."),
    "kinship-local": ("#cc79a7", (0, (1, 2))),
}


def shares(samples: Sequence[float]) -> tuple[list[float], list[float]]:
    """The steps of an empirical distribution: seconds, and the share over by then."""
    ordered = sorted(samples)
    return [ordered[0], *ordered], [n / len(ordered) for n in range(len(ordered) + 1)]


def draw(results: list[Result], directory: Path) -> list[Path]:
    """All that there are results of; returns the files."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "p2pmesh", "svg.fonttype": "none", "font.size": 9, "axes.grid": True}
    )
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for row, title in TIMES.items():
        if found := [result for result in results if result["row"] == row and "all" in result]:
            made.append(directory / f"liveness-{row}.svg")
            _save(_times(found, f"{row}, {title}"), made[-1])
    if found := [result for result in results if set(COSTS) & set(result)]:
        made.append(directory / "liveness-cost.svg")
        _save(_costs(found), made[-1])
    return made


def _times(results: list[Result], title: str) -> Any:
    from matplotlib import pyplot

    sizes = sorted({result["size"] for result in results})
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(1.4 + 3.2 * len(sizes), 2.9), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel, size in zip(panels[0], sizes, strict=True):
        for result in sorted((r for r in results if r["size"] == size), key=_order):
            seconds, share = shares(result["all"])
            label = f"{_system(result)} ({len(result['all'])})"
            panel.step(seconds, share, where="post", label=label, **_look(_system(result)))
        panel.set_xscale("log")
        panel.set_title(f"N = {size}", fontsize=9)
        panel.set_xlabel("seconds")
        panel.legend(fontsize=7, frameon=False)
    panels[0][0].set_ylabel("share of samples")
    figure.suptitle(title, fontsize=10)
    return figure


def _costs(results: list[Result]) -> Any:
    from matplotlib import pyplot

    costs = [cost for cost in COSTS if any(cost in result for result in results)]
    figure, panels = pyplot.subplots(
        1, len(costs), figsize=(1 + 3.2 * len(costs), 2.9), squeeze=False, layout="constrained"
    )
    for panel, cost in zip(panels[0], costs, strict=True):
        found = sorted((result for result in results if cost in result), key=_order)
        for system in dict.fromkeys(map(_system, found)):
            points = sorted((r["size"], r[cost]) for r in found if _system(r) == system)
            panel.plot(*zip(*points, strict=True), marker="o", ms=3, label=system, **_look(system))
        panel.set_ylim(bottom=0)
        panel.set_title(COSTS[cost], fontsize=9)
        panel.set_xlabel("processes")
        panel.legend(fontsize=7, frameon=False)
    figure.suptitle("L9 and L10, an idle process", fontsize=10)
    return figure


def _system(result: Result) -> str:
    return str(result.get("system", "p2pmesh"))


def _order(result: Result) -> int:
    return list(LOOKS).index(_system(result))


def _look(system: str) -> dict[str, Any]:
    colour, dash = LOOKS[system]
    return {"color": colour, "linestyle": dash}


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    command = Command("plots", __doc__)
    command.add_argument("results", type=in_file, help="what --out of liveness.py has kept")
    command.add_argument(
        "--to", type=Path, default=Path("docs/img"), help="a directory; default: docs/img"
    )
    options = command.parse_args()
    results = [json.loads(line) for line in options.results.read_text().splitlines()]
    for file in draw(results, options.to):
        print(file)


if __name__ == "__main__":
    main()
