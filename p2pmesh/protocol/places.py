"""Where an instance is, to a registry call: who may answer for it.

    MINE      a guest of this home
    AGENT     a live node's own, perhaps this one's
    REMOTE    a guest of another live home
    ORPHAN    a guest whose home is gone, or lives anew without announcing it
    NOWHERE   unknown, or it left

What to do there: ``guestdesk``.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from p2pmesh.protocol.directory import Directory, is_live
from p2pmesh.protocol.guests import Guests
from p2pmesh.protocol.types import GuestEntry, NodeId, State


class Place(Enum):
    MINE = "mine"
    AGENT = "agent"
    REMOTE = "remote"
    ORPHAN = "orphan"
    NOWHERE = "nowhere"


class Where(NamedTuple):
    place: Place
    home: NodeId | None = None
    entry: GuestEntry | None = None  # the highest known


class Places:
    """Looks it up, in the view and among the guests of this home."""

    def __init__(self, directory: Directory, guests: Guests, agent: str | None) -> None:
        """``agent``: the instance id of this node's own agent."""
        self._directory = directory
        self._guests = guests
        self._agent = agent

    def find(self, instance_id: str) -> Where:
        directory, me = self._directory, self._directory.me
        if instance_id == self._agent:
            return Where(Place.AGENT, me)
        instance = directory.instance(instance_id)
        if is_live(instance) and instance.kind == "node":
            return Where(Place.AGENT, instance.home)
        guest = self._guests.get(instance_id)
        if guest is not None:
            return Where(Place.MINE, me, guest.entry)
        entry = directory.entry(instance_id)
        if entry is None or entry.state is State.LEFT:
            return Where(Place.NOWHERE, None, entry)
        if directory.node_life(entry.home) != entry.home_life:
            return Where(Place.ORPHAN, None, entry)
        if entry.home == me:  # it just left
            return Where(Place.NOWHERE, None, entry)
        return Where(Place.REMOTE, entry.home, entry)
