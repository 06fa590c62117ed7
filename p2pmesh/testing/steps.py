"""What is done to a network: checked, written down, and then done.

A step that is refused was not done, and is not in the scenario; one that began is,
whatever it raised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from p2pmesh.testing.arguments import meant, read, read_command, refuse, refuse_kind, takes_of
from p2pmesh.testing.node import SimNode
from p2pmesh.testing.scenario import Step

if TYPE_CHECKING:
    from p2pmesh.testing.network import SimNetwork

M = TypeVar("M", bound=Callable[..., Any])

#: A node, or its number: the count of nodes that were added before it.
Which: TypeAlias = SimNode | int

_NODE: Final = "a node (what net.add returned) or its number"


def step(method: M) -> M:
    """Write down what is done to the network, so that it can be done again."""
    signature = inspect.signature(method)

    @wraps(method)
    def noted(self: SimNetwork, *arguments: Any, **options: Any) -> Any:
        try:
            given = signature.bind(self, *arguments, **options)
        except TypeError as error:
            takes = takes_of(signature, beyond=1)
            raise TypeError(f"net.{method.__name__}: {error}; it takes {takes}") from None
        for name, value in given.arguments.items():
            given.arguments[name] = _read(self, name, value)
        if "method" in given.arguments:
            node, command = given.arguments["node"], given.arguments["method"]
            _refuse_unless_asked(node, command, given.arguments.get("arguments", {}))
        self.steps.append(
            Step(
                self.clock.now,
                method.__name__,
                tuple(_as_data(argument) for argument in given.args[1:]),
                tuple((name, _as_data(value)) for name, value in given.kwargs.items()),
            )
        )
        return method(*given.args, **given.kwargs)

    return cast(M, noted)


def _read(net: SimNetwork, name: str, value: Any) -> Any:
    match name:
        case "node" | "source" | "target" | "one" | "other":
            return read_node(net, name, value)
        case "address_of" | "identity_of":
            return None if value is None else read_node(net, name, value)
        case "peers":
            return read_nodes(net, name, value)
        case "sides":
            return _read_sides(net, value)
    return read(name, value)


# --- nodes ------------------------------------------------------------------------


def read_node(net: SimNetwork, argument: str, which: Any) -> SimNode:
    """The node of this network that is meant."""
    if isinstance(which, SimNode):
        if which.network is not net:
            refuse(argument, which, "is a node of another network")
        return which
    if isinstance(which, str):
        raise TypeError(f"{argument} {which!r:.80}: give {_NODE}; {_called(net, which)}")
    if isinstance(which, bool) or not isinstance(which, int):
        refuse_kind(argument, which, _NODE)
    if not 0 <= which < len(net.nodes):
        refuse(argument, which, f"there are {len(net.nodes)} nodes, numbered from 0")
    return net.nodes[which]


def read_nodes(net: SimNetwork, argument: str, nodes: Any) -> list[SimNode]:
    if isinstance(nodes, str | SimNode) or not isinstance(nodes, Iterable):
        refuse_kind(argument, nodes, "a list of nodes")
    return [read_node(net, argument, which) for which in nodes]


def _called(net: SimNetwork, name: str) -> str:
    """Which node was meant by its name."""
    for node in net.nodes:
        if name == node.instance_id:
            return f"net.nodes[{node.number}] has this instance id"
    of_name = [str(node.number) for node in net.nodes if node.name == name][:10]
    if of_name:
        return f"in net.nodes those with this name are {', '.join(of_name)}"
    return meant(name, {node.instance_id for node in net.nodes}) if net.nodes else "none was added"


def _read_sides(net: SimNetwork, sides: Sequence[Any]) -> tuple[list[SimNode], ...]:
    if len(sides) < 2:
        raise ValueError(
            "partition: give at least two sides, each a list of nodes: "
            "net.partition([leader], others)"
        )
    for side in sides:
        if isinstance(side, SimNode):
            refuse_kind("side", side, "each side as a list of nodes: net.partition([one], [other])")
    read = tuple(read_nodes(net, "side", side) for side in sides)
    named = [node for side in read for node in side]
    for node in named:
        if named.count(node) > 1:
            refuse("side", node, "is named twice")
    return read


def _refuse_unless_asked(node: SimNode, method: Any, arguments: Mapping[str, Any]) -> None:
    """The core knows instance ids and no simulated nodes."""
    for name, value in arguments.items():
        if isinstance(value, SimNode):
            refuse_kind(name, value, "an instance id (node.instance_id)")
    read_command(method, arguments)
    if not node.is_running:
        refuse("command", method, f"{node.instance_id} does not run")


def _as_data(value: Any) -> Any:
    """Nodes as their numbers."""
    if isinstance(value, SimNode):
        return value.number
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_as_data(item) for item in value)
    return value
