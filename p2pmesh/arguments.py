"""Arguments of the Python API: each as it is used, or refused by its name.

A ConfigError at the line that made the mistake names the argument, the value and the
fix, which ``values`` has the words for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.limits import LABELS_MAX
from p2pmesh.values import read_label

T = TypeVar("T")


def read(argument: str, reader: Callable[[str], T], value: object) -> T:
    """One text, by what reads it."""
    if not isinstance(value, str):
        raise ConfigError(f"{argument} {value!r:.80}: give text, not {type(value).__name__}")
    try:
        return reader(value)
    except ValueError as error:
        raise ConfigError(f"{argument} {value!r:.80}: {error}") from None


def refuse_unless_number(argument: str, value: object, *, whole: bool = False) -> None:
    if not isinstance(value, int if whole else int | float):
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{argument} {value!r:.80}: give {what}, not {type(value).__name__}")


def read_each(
    argument: str, reader: Callable[[str], str], values: Iterable[str]
) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(f"{argument} {values!r:.80}: give a list of texts, not one text")
    return tuple(read(argument, reader, value) for value in values)


def read_labels(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """Capabilities, or profiles."""
    labels = read_each(argument, read_label, values)
    if len(labels) > LABELS_MAX:
        raise ConfigError(f"{argument}: {len(labels)} are given, at most {LABELS_MAX} are carried")
    return labels
