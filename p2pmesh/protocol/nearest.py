"""Names that look like one that nobody has, for whoever mistyped it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

_NEAREST: Final = 3
_NEAREST_AMONG: Final = 4096
_SIMILAR: Final = 0.5  # of 1: the same letters and pairs of letters


def nearest(names: Iterable[str], target: str) -> tuple[str, ...]:
    """Known names that look like the target, best first."""
    wanted = target.casefold()
    pieces = _pieces(wanted)
    scored: list[tuple[float, str]] = []
    for name in set(islice(names, _NEAREST_AMONG)):
        folded = name.casefold()
        theirs = _pieces(folded)
        score = 2 * len(pieces & theirs) / (len(pieces) + len(theirs))
        if folded.startswith(wanted) or wanted.startswith(folded):
            score += 1
        if score >= _SIMILAR:
            scored.append((-score, name))
    return tuple(name for _, name in sorted(scored)[:_NEAREST])


def _pieces(text: str) -> set[str]:
    """Its letters, and its pairs of neighbouring ones, ends included."""
    padded = f" {text} "
    return {*padded, *(padded[at : at + 2] for at in range(len(padded) - 1))}
