"""Arguments of the simulator: each as it is used, or refused at the line that gave it.

One name means one thing, in one unit, wherever it is an argument: ``READERS`` is the
table.  An error names the argument, its value and what to give; another kind of thing
is a TypeError, a value that cannot be meant a ValueError.

Does not: know nodes (``steps`` finds those).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn, get_args, get_type_hints

import msgspec

from p2pmesh.protocol import types
from p2pmesh.protocol.mesh import Mesh
from p2pmesh.protocol.types import Candidate, Event, Member, MeshConfig
from p2pmesh.values import read_name, read_peer

#: Virtual seconds in one argument: 30 days.
SECONDS_MAX: Final = 30 * 86_400
#: Seconds one way: of more than this no node waits for an answer.
DELAY_MAX: Final = 10.0
LOSS_MAX: Final = 0.99
#: Milliseconds that a wall clock is ahead or behind: a hundred years.
WALL_OFFSET_MAX: Final = 100 * 366 * 86_400_000
#: Seconds: a process that is stopped for less is not stopped.
STOPS_MIN: Final = 0.001
NODES_MAX: Final = 100_000
STRANGERS_MAX: Final = 100_000
#: Lines of a story.
LINES_MAX: Final = 10_000

Reader = Callable[[str, Any], Any]


def read(argument: str, value: Any) -> Any:
    """The value as it is used; of an argument that no table knows as it is."""
    reader = READERS.get(argument)
    return value if reader is None else reader(argument, value)


def refuse(argument: str, value: object, why: str) -> NoReturn:
    raise ValueError(f"{argument} {value!r:.80}: {why}")


def refuse_kind(argument: str, value: object, give: str) -> NoReturn:
    raise TypeError(f"{argument} {value!r:.80}: give {give}, not {type(value).__name__}")


def meant(word: object, known: Iterable[str]) -> str:
    """The end of an error about a name that is not known."""
    from difflib import get_close_matches  # of an error alone

    names = sorted(known)
    near = get_close_matches(word, names, 1) if isinstance(word, str) else []
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def one_of(argument: str, value: object, known: Iterable[str]) -> None:
    names = frozenset(known)
    if not isinstance(value, str) or value not in names:
        refuse(argument, value, f"is not known; {meant(value, names)}")


# --- numbers ----------------------------------------------------------------------


def _number(argument: str, value: Any, *, least: float, most: float, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse_kind(argument, value, unit)
    if not least <= value <= most:  # nor is NaN
        refuse(argument, value, f"give {unit}, from {least:,} to {most:,}")
    return value


def _whole(argument: str, value: Any, *, least: int, most: int, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        refuse_kind(argument, value, f"a whole number of {unit}")
    if not least <= value <= most:
        refuse(argument, value, f"give {unit}, from {least:,} to {most:,}")
    return value


def _loss(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse_kind(argument, value, "a share of the segments (0.2 is 20 %)")
    if not 0.0 <= value <= LOSS_MAX:
        refuse(
            argument, value,
            f"give a share of the segments, from 0 to {LOSS_MAX} (0.2 is 20 %); "
            "to lose all of them there are partition, cut and unplug",
        )  # fmt: skip
    return value


def _seed(argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        refuse_kind(argument, value, "a whole number, which gives the same run each time")
    return value


def _flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        refuse_kind(argument, value, "True or False")
    return value


# --- names, and what the core takes -----------------------------------------------------


def _name(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse_kind(argument, value, "the name of a node, as text")
    try:
        return read_name(value)
    except ValueError as error:
        refuse(argument, value, str(error))


def _addresses(argument: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        refuse_kind(argument, value, 'a list of "host:port"')
    addresses = tuple(value)
    for address in addresses:
        if not isinstance(address, str):
            refuse_kind(argument, address, '"host:port"')
        try:
            is_whole = read_peer(address) == address
        except ValueError as error:
            refuse(argument, address, str(error))
        if not is_whole:
            refuse(argument, address, 'give "host:port"')
    return addresses


def _candidate(argument: str, value: Any) -> Candidate:
    if not isinstance(value, Candidate):
        refuse_kind(argument, value, "a p2pmesh.protocol.types.Candidate")
    return value


def _key(argument: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse_kind(argument, value, "the key of a candidate, as text")
    return value


_SETTINGS: Final[Mapping[str, Any]] = get_type_hints(MeshConfig)


def _config(argument: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields of MeshConfig, each of its type."""
    for name, setting in value.items():
        one_of("setting", name, _SETTINGS)
        _refuse_unless(name, setting, _SETTINGS[name])
    return value


def _refuse_unless(argument: str, value: Any, kind: Any) -> None:
    """Not of this type; text is no bytes."""
    try:
        msgspec.convert(value, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        refuse(argument, value, str(error))


#: What can be asked of the core's commands: those that take the time.
COMMANDS: Final[Mapping[str, inspect.Signature]] = {
    name: inspect.signature(command, eval_str=True)
    for name, command in vars(get_type_hints(vars(Mesh)["commands"].fget)["return"]).items()
    if not name.startswith("_") and "at" in inspect.signature(command).parameters
}


def read_command(method: Any, arguments: Mapping[str, Any]) -> None:
    """A command of the core, whose arguments have names and types of its own."""
    one_of("command", method, COMMANDS)
    signature = COMMANDS[method]
    try:
        signature.bind(None, None, **arguments)
    except TypeError as error:
        takes = takes_of(signature, beyond=2)
        raise TypeError(f"command {method!r}: {error}; it takes {takes}") from None
    for name, value in arguments.items():
        _refuse_unless(name, value, signature.parameters[name].annotation)
        read(name, value)


def takes_of(signature: inspect.Signature, *, beyond: int) -> str:
    """The names of its arguments beyond the first ones, which are not the caller's."""
    shown = list(signature.parameters.values())[beyond:]
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in shown]
    return str(inspect.Signature(bare))


# --- what nodes tell ------------------------------------------------------------------

#: What the states of a member are called.
STATES: Final = frozenset(get_args(get_type_hints(Member)["state"]))
#: What events are called, of all that the core tells.
KINDS: Final = frozenset(
    str(each.__struct_config__.tag)
    for each in vars(types).values()
    if isinstance(each, type)
    and issubclass(each, Event)
    and str(each.__struct_config__.tag).islower()
)
#: Told by a real node alone; of messages a simulated one has ``outcomes`` instead.
_NOT_SIMULATED: Final = frozenset({"message", "message_done", "lost"})


def read_kind(kind: object) -> None:
    """The name of an event that a simulated node may have."""
    if kind in _NOT_SIMULATED:
        refuse("event", kind, "is told by real nodes alone; look into SimNode.outcomes")
    one_of("event", kind, KINDS - _NOT_SIMULATED)


def _wait(unit: str) -> Reader:
    return partial(_number, least=0, most=SECONDS_MAX, unit=unit)


_DELAY: Final = partial(_number, least=0, most=DELAY_MAX, unit="seconds one way")
_WALL: Final = partial(_whole, least=-WALL_OFFSET_MAX, most=WALL_OFFSET_MAX, unit="milliseconds")

READERS: Final[Mapping[str, Reader]] = {
    "seed": _seed,
    "delay": _DELAY,
    "jitter": _DELAY,
    "loss": _loss,
    "expected": partial(_whole, least=0, most=NODES_MAX, unit="nodes"),
    "count": partial(_whole, least=1, most=NODES_MAX, unit="nodes"),
    "strangers": partial(_whole, least=0, most=STRANGERS_MAX, unit="connections"),
    "last": partial(_whole, least=1, most=LINES_MAX, unit="lines"),
    "backlog": partial(_whole, least=0, most=STRANGERS_MAX, unit="connections"),
    "seconds": _wait("virtual seconds"),
    "time": _wait("virtual seconds since the run began"),
    "within": _wait("virtual seconds"),
    "runs": _wait("seconds of running between two stops"),
    "stops": partial(_number, least=STOPS_MIN, most=SECONDS_MAX, unit="seconds of each stop"),
    "ttl": _wait("seconds"),
    "timeout": _wait("seconds"),
    "wait": _wait("seconds"),
    "port": partial(_whole, least=0, most=65_535, unit="a port"),
    "offset": _WALL,
    "wall_offset": _WALL,
    **dict.fromkeys(("multicast", "start", "both", "works", "work", "has"), _flag),
    "name": _name,
    "addresses": _addresses,
    "candidate": _candidate,
    "key": _key,
    "config": _config,
}
