"""What the commands of the benchmarks have in common: their help, and what they may be asked for.

``ROWS`` says which row each command measures.  A row, system, count or file that cannot be
is an error before anything is measured; what is left out is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

#: By command, in the order in which they are measured.
ROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "liveness": (
        *("L1", "L2", "L4", "L5", "L5t", "L5g", "L6", "L7", "L8", "L8s", "L9", "L10", "S3"),
    ),
    "scale": ("L3", "L3c", "L3s", "L6h", "S1", "S2", "S2s"),
    "messages": ("request", "oneway", "bandwidth", "durable"),
    "streaming": ("first", "tokens", "large"),
    "registry": ("agents", "told"),
    "bulk": ("beside", "slow"),
    "broadcast": ("ours", "plumtree", "plumtree-one"),
    "shout": ("shout",),
}


class Command(argparse.ArgumentParser):
    """One of the benchmarks, whose module's text is its help."""

    def __init__(self, name: str, text: str | None) -> None:
        super().__init__(
            f"benchmarks/{name}.py",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.name = name

    def add_rows(self, default: str = "all") -> None:
        rows = ",".join(ROWS[self.name])
        self.add_argument("--rows", help=f"some of {rows}; default: {default}")

    def add_quick(self) -> None:
        self.add_argument("--quick", action="store_true", help="a look, whose figures say little")

    def add_systems(self, known: Collection[str], default: Collection[str]) -> None:
        self.add_argument(
            "--systems", default=",".join(default),
            help=f"some of {','.join(known)}; default: {','.join(default)}",
        )  # fmt: skip

    def rows(self, given: str | None, default: Collection[str] | None = None) -> tuple[str, ...]:
        """The rows that were named, or else the default ones (all)."""
        known = ROWS[self.name]
        if given is None:
            taken = tuple(row for row in known if default is None or row in default)
            self.tell_left_out("rows", set(known) - set(taken))
            return taken
        return self._some_of(given, "row", known)

    def systems(self, given: str, known: Collection[str]) -> tuple[str, ...]:
        return self._some_of(given, "system", known)

    def tell_left_out(self, what: str, names: Collection[str]) -> None:
        order = ROWS[self.name]
        shown = [row for row in order if row in names] or sorted(names)
        if names:
            print(f"{what} left out: {', '.join(shown)} (--{what} names them)", file=sys.stderr)

    def _some_of(self, given: str, what: str, known: Collection[str]) -> tuple[str, ...]:
        names = tuple(name.strip() for name in given.split(","))
        for name in names:
            if name not in known:
                self.error(f"there is no {what} {name!r} here, but {', '.join(known)}{_at(name)}")
        return names


def _at(row: str) -> str:
    """Where a row is that was looked for in the wrong place."""
    for command, rows in ROWS.items():
        if row in rows:
            return f"; python benchmarks/{command}.py has {row}"
    return ""


# --- values ---------------------------------------------------------------------------


def count(text: str) -> int:
    """At least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 at least")
    return number


def counts(text: str) -> tuple[int, ...]:
    return tuple(map(count, text.split(",")))


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds above 0, less than a day")
    return number


def out_file(text: str) -> Path:
    """A file to append to, which may be there or not."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: give a file in a directory that is there")
    return path


def in_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such file")
    return path
