"""What the message plane reads of the mesh around it: who is here, who is linked.

The door implements it over its view, rings and links.  The message plane keeps
no copy: it is told *that* something changed (``PostOffice.membership_changed``,
``linked`` …) and looks again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeGuard

from p2pmesh.protocol.types import GuestEntry, Instance, Life, NodeId


class Directory(Protocol):
    """The view of one node, as it is now."""

    @property
    def me(self) -> NodeId: ...

    def my_life(self) -> Life | None:
        """None: not stamped yet."""
        ...

    def is_informed(self) -> bool:
        """Joined, and told what was known: whom I do not know then, nobody does."""
        ...

    def instance(self, instance_id: str) -> Instance | None:
        """The highest version known: own agent, other nodes' agents, guests
        anywhere, failed and left ones included."""
        ...

    def named(self, name: str) -> tuple[Instance, ...]:
        """Live instances of this name, oldest first."""
        ...

    def gone(self, name: str) -> tuple[Instance, ...]:
        """Instances of this name that failed or left."""
        ...

    def names(self) -> Iterable[str]:
        """Ids and names of all known instances, failed ones included."""
        ...

    def live_instances(self) -> Iterable[Instance]:
        """Alive and suspect ones."""
        ...

    def entry(self, instance_id: str) -> GuestEntry | None:
        """The highest guest entry known, mine or another home's."""
        ...

    def node_life(self, node: NodeId) -> Life | None:
        """None: not a live member."""
        ...

    def partners(self) -> tuple[NodeId, ...]:
        """The nodes I have an established link to."""
        ...

    def ring_neighbours(self, node: NodeId) -> tuple[NodeId, ...]:
        """Both ways on all rings, in an order that all who hold this view share."""
        ...

    def highest(self) -> Life:
        """The highest stamp known."""
        ...


def is_live(instance: Instance | None) -> TypeGuard[Instance]:
    return instance is not None and instance.state in ("alive", "suspect")


def is_gone_for_good(instance: Instance) -> bool:
    """It left, and its identity does not come back: a guest that deregistered, an
    agent without a data dir."""
    return instance.state == "left" and (instance.kind == "guest" or not instance.persistent)


def away(directory: Directory, name: str) -> tuple[Instance, ...]:
    """Instances of this name that failed, or left and come back."""
    return tuple(each for each in directory.gone(name) if not is_gone_for_good(each))


def why_unreachable(instance: Instance | None) -> str:
    """What became of whom nobody can ask now, and what to do, for people."""
    if instance is None:
        return "it is not known any more; ask another"
    match instance.state:
        case "left":
            return "it has left the mesh; ask another"
        case "failed":
            return "it has failed; ask another, or send a message, which waits for it"
    return "it restarted or moved after it was asked; ask again"
