"""The view as the message plane reads it (``directory.Directory``), and as people
see it: members with their states.

Who lives where is derived from records and entries; the indexes by instance id
and by name are built when first asked for and forgotten when the view changes.
Of two live nodes with one instance id the older holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from p2pmesh.protocol import timing
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.members import Change, Claim, Tombstone
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.records import SignedEntry, SignedRecord
from p2pmesh.protocol.types import GuestEntry, Instance, Life, Member, NodeId, State


class Word(Protocol):
    """What a guest said of itself with its last heartbeat, and when that was."""

    status: str | None
    metrics: bytes | None
    heard_at: float


#: The word of a guest that is registered at this node.
GuestHere: TypeAlias = Callable[[str], Word | None]
_State: TypeAlias = Literal["alive", "suspect", "failed", "left"]


class Lookup:
    """Reads the core; changes nothing but its own indexes."""

    def __init__(self, core: Core, questions: Questions) -> None:
        self._core = core
        self._questions = questions
        self._by_id: dict[str, Instance] | None = None
        self._by_name: dict[str, tuple[Instance, ...]] = {}
        self._gone: dict[str, tuple[Instance, ...]] = {}
        #: Of failed members: when they were heard last.
        self._heard_last: dict[NodeId, float] = {}

    def changed(self, changes: Iterable[Changed] = ()) -> None:
        """The view or a suspicion changed."""
        self._by_id = None
        for key, change, _ in changes:
            if isinstance(key, bytes) and change is Change.FAILED:
                self._heard_last[key] = self._heard_at(key)
            elif isinstance(key, bytes) and change is not Change.UPDATED:
                self._heard_last.pop(key, None)
        nodes = self._core.view.nodes
        if len(self._heard_last) > len(nodes):  # some are forgotten
            self._heard_last = {n: at for n, at in self._heard_last.items() if n in nodes}

    # --- directory.Directory ------------------------------------------------------------

    @property
    def me(self) -> NodeId:
        return self._core.me

    def my_life(self) -> Life | None:
        return self._core.life

    def is_informed(self) -> bool:
        return self._core.life is not None and self._core.at.now >= self._core.uninformed_until

    def instance(self, instance_id: str) -> Instance | None:
        return self._index().get(instance_id)

    def named(self, name: str) -> tuple[Instance, ...]:
        self._index()
        return self._by_name.get(name, ())

    def gone(self, name: str) -> tuple[Instance, ...]:
        self._index()
        return self._gone.get(name, ())

    def names(self) -> Iterable[str]:
        yield from self._index()
        yield from self._by_name

    def live_instances(self) -> Iterable[Instance]:
        return filter(_is_live, self._index().values())

    def entry(self, instance_id: str) -> GuestEntry | None:
        held = self._core.view.guests.get(instance_id)
        return held.entry if held is not None else None

    def node_life(self, node: NodeId) -> Life | None:
        held = self._core.view.alive(node)
        return held.version.life if held is not None else None

    def partners(self) -> tuple[NodeId, ...]:
        return tuple(self._core.links_up)

    def ring_neighbours(self, node: NodeId) -> tuple[NodeId, ...]:
        return self._core.rings.neighbours(node)

    def highest(self) -> Life:
        return self._core.view.highest

    def agents_of(self, nodes: Iterable[NodeId]) -> Iterator[str]:
        """The instance ids of these nodes' own agents."""
        for node in nodes:
            held = self._core.view.nodes.get(node)
            signed = held.last if isinstance(held, Tombstone) else held
            if signed is not None and signed.instance_id is not None:
                yield signed.instance_id

    # --- members --------------------------------------------------------------------------

    def members(self, guest_here: GuestHere) -> tuple[Member, ...]:
        """Nodes and guests, oldest first, failed and left ones included.  A live agent
        whose id an older one holds is not listed.  ``guest_here`` knows what a guest
        of this home said last."""
        leader = self._core.view.leader()
        leader_node = leader.id if leader else None
        members = [
            (_life(claim), self._member(key, claim, leader_node, guest_here))
            for key, claim in self._core.view.claims()
            if not self._is_second(claim)
        ]
        if self._core.life is None:
            members.append((Life(2**62, 0, 0), self.myself()))
        members.sort(key=lambda pair: (pair[0], pair[1].node_id, pair[1].instance_id))
        return tuple(member for _, member in members)

    def live_at_most(self) -> int:
        """How many of them can be live: it costs nothing."""
        view = self._core.view
        return view.alive_count + len(view.guests) + (self._core.life is None)

    def _is_second(self, claim: Claim) -> bool:
        if not isinstance(claim, SignedRecord) or claim.record.state is not State.ALIVE:
            return False
        agent = claim.record.agent
        holder = self.instance(agent.instance_id) if agent is not None else None
        return holder is not None and holder.home != claim.id

    def myself(self) -> Member:
        """This node; its life is "" until it has joined."""
        leader = self._core.view.leader()
        return self._member(self.me, self._core.record, leader.id if leader else None)

    def _member(
        self,
        key: NodeId | str,
        claim: Claim,
        leader: NodeId | None,
        guest_here: GuestHere | None = None,
    ) -> Member:
        if isinstance(claim, SignedEntry):
            here = guest_here(claim.entry.instance_id) if guest_here is not None else None
            return self._guest(claim, here)
        assert isinstance(key, bytes)
        signed = claim.last if isinstance(claim, Tombstone) else claim
        record = signed.record if signed is not None else None
        agent = record.agent if record is not None else None
        status, metrics = (agent.status, agent.metrics) if agent is not None else (None, None)
        if key == self.me:
            status, metrics = self._core.said
        addresses = record.addresses if record is not None else ()
        return Member(
            instance_id=agent.instance_id if agent else key.hex(),
            node_id=key.hex(),
            name=record.name if record is not None else "",
            kind="node",
            home=key.hex(),
            state=self._state(key, claim),
            stalled=key in self._questions.stalled_since,
            life=str(claim.version.life) if signed is None or (record and record.life) else "",
            incarnation=claim.version.incarnation,
            capabilities=agent.capabilities if agent else (),
            agent_profiles=agent.profiles if agent else (),
            status=status,
            metrics=_metrics(metrics),
            addresses=addresses,
            last_heartbeat_age=self._age(key, key),
            is_leader=key == leader,
            candidate=bool(record and record.candidate and agent),
            hostname=agent.hostname if agent else "",
            port=agent.http_port if agent else 0,
            created_at=agent.created_at if agent else 0,
        )

    def _guest(self, claim: SignedEntry, here: Word | None) -> Member:
        entry = claim.entry
        said = entry if here is None or here.status is None else here
        if here is None or entry.state is State.LEFT:
            age = self._age(entry.instance_id, entry.home)
        else:
            age = max(0.0, self._core.at.now - here.heard_at)
        return Member(
            instance_id=entry.instance_id,
            node_id=entry.home.hex(),
            name=entry.instance_id,
            kind="guest",
            home=entry.home.hex(),
            state=self._guest_state(entry),
            stalled=entry.home in self._questions.stalled_since,
            life=str(entry.life),
            incarnation=0,
            capabilities=entry.capabilities,
            agent_profiles=entry.profiles,
            status=said.status,
            metrics=_metrics(said.metrics),
            addresses=(),
            last_heartbeat_age=age,
            is_leader=False,
            candidate=False,
            hostname=entry.hostname,
            port=entry.port,
            created_at=entry.created_at,
        )

    def _age(self, key: NodeId | str, node: NodeId) -> float:
        """Seconds since the node (a guest's home) was heard, or since it said that it (or
        its guest) ends.  Others' word that it failed is no word of its own."""
        ended_at = self._core.view.ended_at(key)
        if ended_at is None:
            heard_at = self._heard_at(node)
        else:
            heard_at = min(ended_at, self._heard_last.get(node, ended_at))
        return max(0.0, self._core.at.now - heard_at)

    def _heard_at(self, node: NodeId) -> float:
        """When a live one was heard: by me, or by its monitors within their silence limit
        before anybody asked for it or flagged it."""
        core, questions = self._core, self._questions
        if node == core.me:
            return core.at.now
        link = core.links_up.get(node)
        if link is not None:
            return link.heard_at
        since = questions.stalled_since.get(node, core.at.now)
        suspicion = questions.suspicions.open.get(node)
        if suspicion is not None:
            since = min(since, suspicion.opened_at)
        return since - core.timing_with(node).silence_after

    # --- states ---------------------------------------------------------------------------

    def _state(self, node: NodeId, claim: Claim) -> _State:
        if isinstance(claim, Tombstone):
            return "failed"
        if isinstance(claim, SignedRecord) and claim.record.state is State.LEFT:
            return "left"
        return "suspect" if node in self._questions.suspicions.open else "alive"

    def _guest_state(self, entry: GuestEntry) -> _State:
        """Its home's word; a home that is gone, or lives anew without announcing
        it, leaves a guest failed 15 s later, so that another can adopt it."""
        if entry.state is State.LEFT:
            return "left"
        if entry.state is State.FAILED:
            return "failed"
        view = self._core.view
        void_since, home = view.ended_at(entry.instance_id), view.alive(entry.home)
        if void_since is None and home is not None:
            return self._state(entry.home, home)
        is_over = void_since is None or self._core.at.now - void_since >= timing.GUEST_TIMEOUT
        return "failed" if is_over else "suspect"

    # --- indexes --------------------------------------------------------------------------

    def _index(self) -> dict[str, Instance]:
        if self._by_id is not None:
            return self._by_id
        by_id: dict[str, Instance] = {}
        for instance in self._instances():
            known = by_id.get(instance.instance_id)
            if known is None or _outranks(instance, known):
                by_id[instance.instance_id] = instance
        by_name: dict[str, list[Instance]] = {}
        gone: dict[str, list[Instance]] = {}
        for instance in sorted(by_id.values(), key=lambda i: (i.life, i.home)):
            if _is_live(instance):
                by_name.setdefault(instance.name, []).append(instance)
            else:
                gone.setdefault(instance.name, []).append(instance)
        self._by_id = by_id
        self._by_name = {name: tuple(holders) for name, holders in by_name.items()}
        self._gone = {name: tuple(holders) for name, holders in gone.items()}
        return by_id

    def _instances(self) -> Iterator[Instance]:
        for key, claim in self._core.view.nodes.items():
            signed = claim.last if isinstance(claim, Tombstone) else claim
            if signed is None or signed.record.agent is None:
                continue
            agent = signed.record.agent
            life = claim.version.life
            yield Instance(
                agent.instance_id, signed.record.name, key, life, life, "node",
                self._state(key, claim), agent.persistent,
            )  # fmt: skip
        for held in self._core.view.guests.values():
            entry = held.entry
            yield Instance(
                entry.instance_id, entry.instance_id, entry.home, entry.home_life, entry.life,
                "guest", self._guest_state(entry), True,
            )  # fmt: skip


def _outranks(one: Instance, other: Instance) -> bool:
    """Of two holders of one instance id: the live one.  Of two live ones an agent
    before a guest, then the older; of two that are gone the one that lived last."""
    is_live, other_is_live = _is_live(one), _is_live(other)
    if is_live != other_is_live:
        return is_live
    if not is_live:
        return (one.life, one.home) > (other.life, other.home)
    return (one.kind == "guest", one.life, one.home) < (
        other.kind == "guest",
        other.life,
        other.home,
    )


def _is_live(instance: Instance) -> bool:
    return instance.state in ("alive", "suspect")


def _metrics(packed: bytes | None) -> Any:
    """An instance's metrics as values; None when its node told nonsense."""
    if packed is None:
        return None
    try:
        return msgspec.msgpack.decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        return None


def _life(claim: Claim) -> Life:
    return claim.entry.life if isinstance(claim, SignedEntry) else claim.version.life
