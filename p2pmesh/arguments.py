"""Arguments of the Python API: each as it is used, or refused by its name.

A ConfigError at the line that made the mistake names the argument, the value and the
fix, which ``values`` has the words for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.limits import LABELS_MAX
from p2pmesh.protocol.timing import WATERMARK_TTL
from p2pmesh.protocol.types import KNOWN_TYPES
from p2pmesh.values import read_label, read_type, refuse_slip

T = TypeVar("T")

#: A message lives no longer than it is remembered, and nobody waits longer.
SECONDS_MAX: Final = int(WATERMARK_TTL)


def read(argument: str, reader: Callable[[str], T], value: object) -> T:
    """One text, by what reads it."""
    refuse_unless_text(argument, value)
    assert isinstance(value, str)
    try:
        return reader(value)
    except ValueError as error:
        raise ConfigError(f"{argument} {value!r:.80}: {error}") from None


def refuse_unless_text(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{argument} {value!r:.80}: give text, not {type(value).__name__}")


def refuse_unless_flag(argument: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{argument} {value!r:.80}: give True or False")


def refuse_unless_number(argument: str, value: object, *, whole: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{argument} {value!r:.80}: give {what}, not {type(value).__name__}")


def refuse_unless_count(argument: str, value: int, most: int | None = None) -> None:
    refuse_unless_number(argument, value, whole=True)
    if value < 1:
        raise ConfigError(f"{argument} {value}: give at least 1")
    if most is not None and value > most:
        raise ConfigError(f"{argument}: give {most} at most")


def refuse_unless_seconds(argument: str, value: float) -> None:
    """How long something lasts: no bool, not 0, not infinite, not NaN."""
    if not (_is_number(value) and 0 < value <= SECONDS_MAX):
        raise ConfigError(f"{argument} {value!r:.80}: give seconds above 0, {SECONDS_MAX} at most")


def refuse_unless_wait(argument: str, value: float) -> None:
    """How long a caller waits; 0 is a look."""
    if not (_is_number(value) and 0 <= value <= SECONDS_MAX):
        raise ConfigError(f"{argument} {value!r:.80}: give seconds, from 0 to {SECONDS_MAX}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def refuse_unless_type(argument: str, value: object) -> None:
    """A message type, or None for every type."""
    if value is not None:
        read(argument, read_type, value)


def refuse_nearly_known(argument: str, type: object) -> None:
    """A message type that was meant to be a known one."""
    if isinstance(type, str) and type not in KNOWN_TYPES:
        read(argument, refuse_slip, type)


def refuse_unless_callable(function: object, gets: str) -> None:
    """What is called with one value, named ``gets``."""
    if not callable(function):
        raise ConfigError(f"{function!r:.80} is no function: give one that takes a {gets}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some that are written in C do not say
    try:
        signature.bind(object())
    except TypeError:
        raise ConfigError(
            f"{function!r:.80} takes {signature}: it is called with one argument, the {gets}"
        ) from None


def read_each(
    argument: str, reader: Callable[[str], str], values: Iterable[str]
) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(f"{argument} {values!r:.80}: give a list of texts, not one text")
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        what = type(values).__name__
        raise ConfigError(f"{argument} {values!r:.80}: give a list of texts, not {what}")
    return tuple(read(argument, reader, value) for value in values)


def read_labels(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """Capabilities, or profiles."""
    labels = read_each(argument, read_label, values)
    if len(labels) > LABELS_MAX:
        raise ConfigError(f"{argument}: {len(labels)} are given, at most {LABELS_MAX} are carried")
    return labels
