"""Nodes of one mesh that is a few dictionaries: the Backend that HTTP tests drive.

It keeps the promises that the HTTP API is written against (p2pmesh/http/backend.py)
and nothing else; it breaks down when it is asked about an id that cannot be.  The
contract that runs against it runs against real nodes too, which keeps it honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from p2pmesh.errors import (
    AmbiguousTarget,
    PeerUnreachable,
    QueueFull,
    RequestTimeout,
    UnknownTarget,
)
from p2pmesh.http.backend import Conflict, Forbidden, RegistryMessage, Repeated, Sent
from p2pmesh.lag import Lag
from p2pmesh.messages import DeadLetter
from p2pmesh.protocol.types import (
    Event,
    FoundBy,
    LeaderInfo,
    LinkInfo,
    Load,
    Lost,
    Member,
    MemberJoined,
    Recipient,
)
from p2pmesh.values import read_instance_id

EVENTS_KEPT: Final = 1000
QUEUE_MAX: Final = 1000
QUEUE_BYTES_MAX: Final = 64 * 2**20


def _now() -> int:
    return time.time_ns() // 1000


@dataclass
class _Agent:
    """An instance, whoever it is."""

    member: Member
    beat_at: float = 0.0
    queue: list[RegistryMessage] = field(default_factory=list)

    def is_full(self, payload: Any) -> bool:
        size = sum(_size(message.payload) for message in self.queue) if _size(payload) > 4096 else 0
        return len(self.queue) >= QUEUE_MAX or size + _size(payload) > QUEUE_BYTES_MAX


class MemoryMesh:
    def __init__(self, nodes: int = 1) -> None:
        self.agents: dict[str, _Agent] = {}  # oldest first
        self.states: dict[str, dict[str, str]] = {}
        self.dead: dict[str, DeadLetter] = {}  # by message
        self.waiting: dict[str, asyncio.Future[RegistryMessage]] = {}  # by query id
        #: What a node's own agent answers to a request; by instance id.
        self.handlers: dict[str, Callable[[Any], Any]] = {}
        #: ... and those that answer in parts.
        self.generators: dict[str, Callable[[Any], AsyncGenerator[Any, None]]] = {}
        self._births = itertools.count(1)
        self.nodes = [MemoryNode(self, number) for number in range(1, nodes + 1)]
        self.leader_id: str | None = self.nodes[0].instance_id
        self.readers = 0  # that wait for mail
        self._mail: asyncio.Future[None] | None = None

    @property
    def mail(self) -> asyncio.Future[None]:
        """Done when a message comes for anybody; shielded from whoever gives up."""
        if self._mail is None:
            self._mail = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._mail)

    def mail_came(self) -> None:
        if self._mail is not None:
            self._mail.set_result(None)
            self._mail = None

    def life(self) -> str:
        return f"1795333175000.{next(self._births)}.7"

    def member(self, instance_id: str) -> Member:
        agent = self.agents[instance_id]
        return msgspec.structs.replace(
            agent.member,
            last_heartbeat_age=time.monotonic() - agent.beat_at,
            is_leader=instance_id == self.leader_id,
        )

    def set_state(self, instance_id: str, state: str) -> None:
        agent = self.agents[instance_id]
        agent.member = msgspec.structs.replace(agent.member, state=state)

    def live(self) -> list[str]:
        return [key for key, agent in self.agents.items() if agent.member.state == "alive"]

    def emit(self, event: Event) -> None:
        for node in self.nodes:
            node.emit(event)


class MemoryNode:
    """One node's backend."""

    durable: bool = False
    mesh: str = "memory"
    has_left = False

    def __init__(self, mesh: MemoryMesh, number: int) -> None:
        self.memory = mesh
        self.node_id = f"{number:x}" * 64
        self.instance_id = f"agent-{number}"
        self.http_url: str | None = f"http://127.0.0.1:{number}"
        self._started = time.monotonic()
        self._seq = 0
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._readers: set[asyncio.Queue[Event]] = set()
        self._add(self.instance_id, "node", "host", 0, ("echo",), ())

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._started

    # --- the view --------------------------------------------------------------

    def self_member(self) -> Member:
        return self.memory.member(self.instance_id)

    def all_members(self) -> tuple[Member, ...]:
        return tuple(map(self.memory.member, self.memory.agents))

    def version(self) -> Hashable:
        members = [agent.member for agent in self.memory.agents.values()]
        return self.memory.leader_id, msgspec.json.encode(members)

    def leader_info(self) -> LeaderInfo:
        return LeaderInfo(self.memory.leader_id, 7, None, False, None, "available", 1.5)

    def links(self) -> tuple[LinkInfo, ...]:
        others = (node for node in self.memory.nodes if node is not self)
        return tuple(
            LinkInfo(node.node_id, "127.0.0.1:1", "out", True, FoundBy.MDNS, 0.001, 2.0)
            for node in others
        )

    def counters(self) -> dict[str, int]:
        return {"links_opened": 1}

    def load(self) -> Load:
        return Load({"mailbox_guests": 3}, 1000, {"accepted": 5, "done": 2})

    def loop_lag(self) -> Lag:
        lag = Lag()
        lag.add(0.02)
        return lag

    # --- the node itself ---------------------------------------------------------

    def describe(self, status: str | None, metrics: Any) -> None:
        own = self.memory.agents[self.instance_id]
        own.member = msgspec.structs.replace(own.member, status=status, metrics=metrics)

    async def ping(self, node_id: str) -> float:
        others = {node.node_id for node in self.memory.nodes}
        if node_id not in others:
            raise PeerUnreachable(f"node {node_id} does not answer")
        return 0.0 if node_id == self.node_id else 0.001

    def leave(self) -> None:
        self.has_left = True

    # --- guests ----------------------------------------------------------------

    async def register(
        self,
        instance_id: str,
        hostname: str,
        port: int,
        capabilities: tuple[str, ...],
        profiles: tuple[str, ...],
    ) -> None:
        read_instance_id(instance_id)
        known = self.memory.agents.get(instance_id)
        if known is not None and known.member.kind == "node":
            raise Conflict(f"{instance_id!r} is the agent of a live node")
        self._add(instance_id, "guest", hostname, port, capabilities, profiles)

    def _add(
        self,
        instance_id: str,
        kind: str,
        hostname: str,
        port: int,
        capabilities: tuple[str, ...],
        profiles: tuple[str, ...],
    ) -> None:
        known = self.memory.agents.get(instance_id)
        member = Member(
            instance_id=instance_id,
            node_id=self.node_id,
            name=instance_id,
            kind=kind,  # type: ignore[arg-type]
            home=self.node_id,
            state="alive",
            stalled=False,
            life=known.member.life if known else self.memory.life(),
            incarnation=0,
            capabilities=capabilities,
            agent_profiles=profiles,
            status=None,
            metrics=None,
            addresses=("192.0.2.1:8078", "[2001:db8::1]:8078") if kind == "node" else (),
            last_heartbeat_age=0.0,
            is_leader=False,
            candidate=kind == "node",
            hostname=hostname,
            port=port,
            created_at=known.member.created_at if known else _now(),
        )
        if known is None:
            self.memory.agents[instance_id] = _Agent(member, time.monotonic())
        else:
            known.member, known.beat_at = member, time.monotonic()

    async def heartbeat(self, instance_id: str, status: str, metrics: Any) -> bool:
        agent = self.memory.agents.get(read_instance_id(instance_id))
        if agent is None:
            return False
        agent.beat_at = time.monotonic()
        agent.member = msgspec.structs.replace(
            agent.member, status=status, metrics=metrics, state="alive"
        )
        return True

    async def deregister(self, instance_id: str) -> bool:
        agent = self.memory.agents.get(read_instance_id(instance_id))
        if agent is not None and agent.member.kind == "node":
            raise Forbidden(f"{instance_id!r} is the agent of a live node; stop that instead")
        return self.memory.agents.pop(instance_id, None) is not None

    # --- messages --------------------------------------------------------------

    async def post(
        self,
        source: str,
        target: str | None,
        type: str,
        payload: Any,
        correlation_id: str | None,
        message_id: str | None = None,
        repeated: Repeated | None = None,
    ) -> Sent:
        agents = self.memory.agents
        if target is not None and read_instance_id(target) not in agents:
            raise UnknownTarget(target)
        recipients = [target] if target else [each for each in self.memory.live() if each != source]
        if target is not None and agents[target].is_full(payload):
            raise QueueFull(f"{target!r} has {QUEUE_MAX} messages waiting")
        message = RegistryMessage(
            message_id or _uuid7(), source, target, type, payload, correlation_id, _now()
        )
        answered = self.memory.waiting.get(correlation_id or "")
        if type == "Response" and answered is not None and not answered.done():
            answered.set_result(message)
        states = self.memory.states[message.message_id] = {}
        for each in recipients:
            is_guest = agents[each].member.kind == "guest"
            states[each] = "stored" if is_guest else "done"
            if is_guest:
                agents[each].queue.append(message)
        self.memory.mail_came()
        return Sent(message.message_id, tuple(recipients), "stored")

    def sent_before(self, key: bytes) -> tuple[bytes, Sent] | None:
        return None  # there is no store

    async def read(
        self, instance_id: str, *, limit: int | None = None, wait: float = 0.0
    ) -> tuple[RegistryMessage, ...]:
        read_instance_id(instance_id)
        deadline = time.monotonic() + wait
        while True:
            agent = self.memory.agents.get(instance_id)
            rest = deadline - time.monotonic()
            if (agent is not None and agent.queue) or rest <= 0:
                return tuple(agent.queue[:limit]) if agent else ()
            self.memory.readers += 1
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(rest):
                        await self.memory.mail
                finally:
                    self.memory.readers -= 1

    async def acknowledge(self, instance_id: str, message_ids: tuple[str, ...]) -> None:
        agent = self.memory.agents.get(read_instance_id(instance_id))
        if agent is not None:
            agent.queue = [each for each in agent.queue if each.message_id not in message_ids]
            for message_id in message_ids:
                if instance_id in self.memory.states.get(message_id, {}):
                    self.memory.states[message_id][instance_id] = "done"

    def message_state(self, message_id: str) -> tuple[Recipient, ...] | None:
        states = self.memory.states.get(message_id)
        if states is None:
            return None
        return tuple(Recipient(key, state, 1) for key, state in states.items())  # type: ignore[arg-type]

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        return tuple(self.memory.dead.values())

    async def retry_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        letter = self.memory.dead.get(message_id)
        if letter is None or recipient not in (None, letter.recipient):
            return False
        if letter.reason == "left":
            raise UnknownTarget(letter.recipient, has_left=True)
        del self.memory.dead[message_id]
        self.memory.states[message_id] = {letter.recipient: "queued"}
        return True

    def drop_dead_letter(self, message_id: str, recipient: str | None) -> bool:
        letter = self.memory.dead.get(message_id)
        if letter is None or recipient not in (None, letter.recipient):
            return False
        del self.memory.dead[message_id]
        return True

    async def ask(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> RegistryMessage:
        agents = self.memory.agents
        named = [key for key, agent in agents.items() if agent.member.name == target]
        if target not in agents and len(named) > 1:
            raise AmbiguousTarget(target, tuple(named))
        if target not in agents and not named:
            raise UnknownTarget(target, ("agent-1",))
        target = target if target in agents else named[0]
        if handler := self.memory.handlers.get(target):
            return RegistryMessage(
                _uuid7(), target, source, "Response", handler(payload), _uuid7(), _now()
            )
        sent = await self.post(source, target, type, payload, correlation_id)
        answer: asyncio.Future[RegistryMessage] = asyncio.get_running_loop().create_future()
        self.memory.waiting[sent.message_id] = answer
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise RequestTimeout(f"no answer from {target!r} in {timeout:g} s") from None
        finally:
            del self.memory.waiting[sent.message_id]

    async def stream(
        self,
        source: str,
        target: str,
        type: str,
        payload: Any,
        timeout: float,
        correlation_id: str | None,
    ) -> AsyncGenerator[Any, None]:
        generate = self.memory.generators.get(target)
        if generate is None:
            yield (await self.ask(source, target, type, payload, timeout, correlation_id)).payload
            return
        async with contextlib.aclosing(generate(payload)) as parts:
            async for part in parts:
                yield part

    # --- events ----------------------------------------------------------------

    def emit(self, event: Event) -> None:
        self._seq += 1
        event = msgspec.structs.replace(event, seq=self._seq, t=time.time())
        self._events.append(event)
        for reader in self._readers:
            reader.put_nowait(event)

    @property
    def readers(self) -> int:
        return len(self._readers)

    async def subscribe(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        reader: asyncio.Queue[Event] = asyncio.Queue()
        if after is not None:
            since = after if after <= self._seq else 0
            for event in self._events:
                if event.seq > since:
                    reader.put_nowait(event)
        self._readers.add(reader)
        try:
            while True:
                yield await reader.get()
        finally:
            self._readers.discard(reader)


def joined(name: str) -> MemberJoined:
    return MemberJoined(instance_id=name, node_id="1" * 64, name=name, kind="node")


def lost(n: int) -> Lost:
    return Lost(n=n)


def _size(payload: Any) -> int:
    return len(payload) if isinstance(payload, str) else 0


def _uuid7() -> str:
    ms = time.time_ns() // 1_000_000
    number = ms << 80 | 7 << 76 | uuid.uuid4().int & (1 << 76) - 1
    return str(uuid.UUID(int=number & ~(3 << 62) | 2 << 62))
