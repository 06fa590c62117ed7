"""``Node``: the mesh endpoint that an agent embeds.

What an application calls, and nothing else: arguments are checked by
``nodeconfig``, a run is put together by ``running``, messages go out through
``exchange`` and come in through ``handlers``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, overload
from weakref import WeakSet

from p2pmesh.arguments import (
    refuse_nearly_known,
    refuse_unless_count,
    refuse_unless_text,
    refuse_unless_wait,
)
from p2pmesh.delivery import Broadcast, Delivery
from p2pmesh.errors import ConfigError, NotStarted, RequestTimeout
from p2pmesh.events import EventHub, EventReader
from p2pmesh.handlers import Handler, Handlers
from p2pmesh.http.tokens import Given
from p2pmesh.leadership import Leadership
from p2pmesh.messages import AgentMessage, DeadLetter
from p2pmesh.nodeconfig import DataHome, Keys, check
from p2pmesh.partstream import PartStream
from p2pmesh.protocol.timing import MESSAGE_TTL
from p2pmesh.protocol.types import Joined, LeaderInfo, Member, Token
from p2pmesh.reading import MessageReader
from p2pmesh.running import Running
from p2pmesh.transport.interfaces import Choice

H = TypeVar("H", bound=Handler)
Target: TypeAlias = str | Member

_LIVE = ("alive", "suspect")
_FORKED = "this process was forked from the node's: make a new node in it"


class Node:
    """One agent's place in a mesh.

    ::

        node = Node("worker", capabilities=["shout"])

        @node.on("Query")
        async def shout(message):
            return message.payload.upper()

        async with node:  # bound, found by others, and joined
            await node.serve_forever()

    A node runs once: when it has left, make another.  It belongs to the event loop
    in which it was entered, and refuses calls from threads and from other loops; only
    ``members()``, ``leader`` and ``leadership`` answer threads, too (``def`` handlers).
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        mesh: str = "default",
        instance_id: str | None = None,
        capabilities: Iterable[str] = (),
        profiles: Iterable[str] = (),
        peers: Iterable[str] = (),
        mdns: bool = True,
        port: int | None = None,
        bind: Iterable[str] = (),
        http: str | None = "auto",
        http_token: Given | None = None,
        http_open: bool = False,
        http_hosts: Iterable[str] = (),
        data_dir: DataHome = None,
        key: Keys = None,
        agent: bool = True,
        candidate: bool = True,
        quorum: int | None = None,
        preset: str = "lan",
        zeroconf: Any = None,
    ) -> None:
        """Nothing is opened yet.  Raises ConfigError.

        ``name``: shown to others, and an address for messages; default the host's.
        ``mesh``: nodes of one mesh name (and key) meet.
        ``peers``: "host" or "host:port", dialled for ever.
        ``port``: of links; None: 8078 if it is free, else any; 0: any.
        ``bind``: own addresses to use instead of those of the LAN.
        ``http``: "auto" (127.0.0.1:8077 if free, else any port), "host:port", None.
        ``http_token``: what HTTP clients have to show, for all there is; or several,
        each with its scope: ``{"…": "read", "…": "write"}``.  None: what
        ``P2PMESH_HTTP_TOKEN`` says; empty: none, whatever it says.
        ``http_open``: nobody has to, even beyond loopback.
        ``http_hosts``: further names by which HTTP clients know this machine.
        ``data_dir``: keeps identity, instance id, last life and epoch; None: memory.
        ``key``: one to three mesh keys, the first is offered.  None: what
        ``P2PMESH_KEY`` says; an empty sequence: an open mesh, whatever it says.
        ``agent``: False makes an observer, which cannot be addressed and never leads.
        ``candidate``: False: never lead.  ``quorum``: lead with authority only
        while at least this many members are alive, and not suspect.
        ``preset``: "lan", "local" or "wifi": how often and how patiently.
        ``zeroconf``: the application's own instance, of the running loop.
        """
        self._config = check(
            name=name,
            mesh=mesh,
            instance_id=instance_id,
            capabilities=capabilities,
            profiles=profiles,
            peers=peers,
            mdns=mdns,
            port=port,
            bind=bind,
            http=http,
            http_token=http_token,
            http_open=http_open,
            http_hosts=http_hosts,
            data_dir=data_dir,
            key=key,
            agent=agent,
            candidate=candidate,
            quorum=quorum,
            preset=preset,
            zeroconf=zeroconf,
        )
        self._handlers = Handlers()
        self._events = EventHub()
        #: Who leads, whether this node does, and its fencing token.
        self.leadership = Leadership(self._leader_info, self._token)
        self._run: Running | None = None
        self._is_in_child = False

    # --- life ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the ports and let others find this node; :meth:`joined` follows.
        ``async with`` does both.  Raises ConfigError, StoreFull."""
        if self._run is not None or self._is_in_child:
            raise NotStarted("a node runs once: make a new one")
        run = self._run = Running(self._config, self._handlers, self._events, self.leadership)
        _live.add(self)
        await run.start()

    async def joined(self) -> Joined:
        """Until this node has taken its life in the mesh: the event that says which.
        Raises IdentityConflict when a live node has its identity."""
        return await asyncio.shield(self._running_here.joined)

    async def __aenter__(self) -> Self:
        await self.start()
        try:
            await self.joined()
        except BaseException:
            await self.leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.leave()

    async def serve_forever(self) -> None:
        """Run until this node has left; starts it, and leaves when cancelled, unless
        it was entered already.  Raises IdentityConflict."""
        if self._run is None:
            async with self:
                await self.serve_forever()
        else:
            await asyncio.shield(self._running_here.ended)

    async def leave(self) -> tuple[Delivery, ...]:
        """Say goodbye and close everything, within 5 s; running handlers may end and
        receipts come in.  Returns the deliveries that no other node has.  Cancelled,
        it closes at once.  May be called again."""
        run = self._run
        if run is None or self._is_in_child:
            return ()
        run.refuse_elsewhere()
        await run.leave()
        return run.unsafe

    # --- who and where --------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The node id: 64 hexadecimal digits."""
        return self._running.core.node_id.hex()

    @property
    def instance_id(self) -> str:
        """The agent's id in the mesh; an observer's is its node id."""
        return self._running.instance_id

    @property
    def name(self) -> str:
        return self._config.name

    @property
    def mesh(self) -> str:
        return self._config.mesh

    @property
    def address(self) -> str:
        """The best link address, "ip:port" or "[v6]:port"."""
        return self._running.addresses[0]

    @property
    def http_url(self) -> str | None:
        return self._running.http_url

    @property
    def http_address(self) -> str | None:
        """Where HTTP is bound; "0.0.0.0:8077" is every address of the machine.  None: it
        is off."""
        return self._running.http_address

    @property
    def http_access(self) -> str | None:
        """Who may ask over HTTP: who has a "token", everybody on this "machine", or
        everybody who reaches it: "open".  None: it is off."""
        return self._running.http_access

    @property
    def interfaces(self) -> tuple[Choice, ...]:
        """The machine's addresses: which are used, which are not, and why."""
        return self._running.selection.choices

    @property
    def notices(self) -> tuple[str, ...]:
        """What the data dir had to say when it was opened."""
        return self._running.identity.notices

    @property
    def is_open(self) -> bool:
        """Whether the mesh has no key."""
        return not self._config.keys

    def members(self) -> tuple[Member, ...]:
        """Everyone this node knows of, oldest first, failed and left ones included."""
        run = self._running
        return run.query(run.core.members)

    @property
    def leader(self) -> Member | None:
        """The oldest live candidate, as this node sees it."""
        return next((member for member in self.members() if member.is_leader), None)

    # --- what comes in ----------------------------------------------------------------------

    def on(self, type: str | None = "Query", *, concurrency: int = 1) -> Callable[[H], H]:
        """A decorator: the function handles messages of ``type`` (None: of every type
        that nobody else takes).

        It gets an :class:`AgentMessage`; what it returns answers a Query.  ``async
        def`` runs on the loop, ``def`` in a thread.  What a generator of either kind
        yields are the parts of its answer: see :meth:`stream`; who asks by
        :meth:`request` gets a list of them, and a message that nobody waits for has it
        run to its end.  Messages of one sender start in
        order, one at a time unless ``concurrency`` allows more.  A message whose
        handler raises comes again, five times within about 34 s; an asker gets RemoteError.
        """
        if callable(type):
            raise ConfigError(f"node.on was given {type!r:.80}: write @node.on() above it")
        refuse_nearly_known("type", type)

        def register(handler: H) -> H:
            self._handlers.register(type, handler, concurrency)
            return handler

        return register

    def messages(self, type: str | None = None) -> MessageReader:
        """An async iterator of messages of ``type`` (None: of every type) that no
        handler takes; each needs ``await message.ack()``."""
        self._refuse_elsewhere()
        refuse_nearly_known("type", type)
        return self._handlers.reader(type)

    def events(self) -> EventReader:
        """An async iterator of what happens from now on.  One that does not keep up
        loses the oldest events and gets a ``Lost`` that says how many."""
        self._refuse_elsewhere()
        return self._events.subscribe()

    # --- what goes out ------------------------------------------------------------------------

    async def send(
        self,
        target: Target,
        payload: Any,
        *,
        type: str = "Notification",
        ttl: float = MESSAGE_TTL,
        correlation_id: str | None = None,
    ) -> Delivery:
        """Send a message and wait until it is safe: on this node's disk or, where it has
        no data dir, at a second node.  A memory node whose recipient is on the same node
        or away has the only copy: the delivery is ``queued`` and says so.

        ``target``: an instance id, a unique name, or a member.  Raises UnknownTarget,
        AmbiguousTarget, PeerUnreachable, QueueFull, MessageTooLarge, ConfigError,
        and TypeError or ValueError for a payload that cannot be carried.
        """
        delivery = self.send_nowait(
            target, payload, type=type, ttl=ttl, correlation_id=correlation_id
        )
        await self._running_here.exchange.until_safe(delivery)
        return delivery

    def send_nowait(
        self,
        target: Target,
        payload: Any,
        *,
        type: str = "Notification",
        ttl: float = MESSAGE_TTL,
        correlation_id: str | None = None,
    ) -> Delivery:
        """As :meth:`send`, without waiting: many of these travel together.  What is
        wrong with the target is told by the delivery."""
        refuse_nearly_known("type", type)
        target, named = _address(target)
        run = self._running_here
        return run.exchange.send(
            run.instance_id,
            target,
            payload,
            type=type,
            ttl=ttl,
            correlation_id=correlation_id,
            named=named,
        )

    async def request(
        self, target: Target, payload: Any, *, timeout: float = 30.0, type: str = "Query"
    ) -> AgentMessage:
        """Ask, and return the answer.  Waits for the target to appear if it must.

        Raises as :meth:`send`, RequestTimeout, and RemoteError for what the other
        side's handler raised, or ``no_handler``.
        """
        refuse_nearly_known("type", type)
        target, named = _address(target)
        run = self._running_here
        return await run.exchange.request(
            run.instance_id, target, payload, type=type, timeout=timeout, named=named
        )

    def stream(
        self, target: Target, payload: Any, *, timeout: float = 30.0, type: str = "Query"
    ) -> PartStream:
        """Ask, and iterate over the parts of the answer as they come::

            async for part in node.stream("worker", prompt): ...

        They are what a generator handler yields, each once and in order; an answer that
        comes whole is the only part.  A handler waits while its asker does not read on.
        Breaking off cancels it; ``async with node.stream(…) as parts`` does so for sure
        where the block is left.  ``timeout``: seconds that the next part may take, the
        first from now; the whole may take any time.

        Raises as :meth:`send`; reading raises as :meth:`request`, after the parts that came.
        """
        refuse_nearly_known("type", type)
        target, named = _address(target)
        run = self._running_here
        return run.exchange.stream(
            run.instance_id, target, payload, type=type, timeout=timeout, named=named
        )

    async def broadcast(
        self, payload: Any, *, type: str = "Notification", ttl: float = MESSAGE_TTL
    ) -> Broadcast:
        """Send to every instance that is alive now but this one.  The payload has to
        be one that JSON has: guests read it.  Raises as :meth:`send`."""
        refuse_nearly_known("type", type)
        run = self._running_here
        broadcast = run.exchange.broadcast(run.instance_id, payload, type=type, ttl=ttl)
        await run.exchange.until_kept(broadcast)
        return broadcast

    # --- dead letters ---------------------------------------------------------------------

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """What this node accepted and ended dead, the oldest first: the handler of its
        recipient gave up, it left for good, it had no room for a broadcast.  They are
        kept for 30 days, 1,000 or 64 MiB of them, on disk where there is a data dir."""
        return self._running_here.exchange.dead_letters()

    async def retry_dead_letter(
        self, message_id: str, recipient: str | None = None
    ) -> tuple[Delivery, ...]:
        """Send a dead letter again, under its id, to its recipient, or to who has its
        name now.  Of a broadcast every dead copy goes, unless ``recipient`` names one.

        Returns a delivery for each copy that goes, once it is on disk where there is
        one.  Raises UnknownTarget (its recipient left for good), QueueFull, StoreFull:
        then it stays; ConfigError: there is no such dead letter here.
        """
        exchange = self._running_here.exchange
        deliveries = exchange.retry(message_id, recipient)
        if not deliveries:
            whose = "" if recipient is None else f" for {recipient!r}"
            raise ConfigError(
                f"message_id {message_id!r}: no such dead letter{whose} is here; "
                "node.dead_letters() lists them, their recipients by instance id"
            )
        for delivery in deliveries:
            await exchange.until_kept(delivery)
        return deliveries

    def drop_dead_letter(self, message_id: str, recipient: str | None = None) -> int:
        """Nobody wants it any more (of a broadcast: any copy, or that of ``recipient``).
        Returns how many there were.  Raises ConfigError."""
        return self._running_here.exchange.drop_dead_letters(message_id, recipient)

    # --- waiting ------------------------------------------------------------------------------

    @overload
    async def wait_for(
        self,
        *,
        name: str | None = None,
        id: str | None = None,
        capability: str | None = None,
        count: None = None,
        timeout: float = 10.0,
    ) -> Member: ...

    @overload
    async def wait_for(
        self,
        *,
        name: str | None = None,
        id: str | None = None,
        capability: str | None = None,
        count: int,
        timeout: float = 10.0,
    ) -> tuple[Member, ...]: ...

    async def wait_for(
        self,
        *,
        name: str | None = None,
        id: str | None = None,
        capability: str | None = None,
        count: int | None = None,
        timeout: float = 10.0,
    ) -> Member | tuple[Member, ...]:
        """Until somebody is here: the oldest live member with this name, id (of the
        instance or the node) and capability.  With ``count``: until so many are.

        This node itself counts only where nothing but ``count`` is asked for, so
        ``wait_for(count=3)`` waits for two others.  Raises RequestTimeout, ConfigError.
        """
        run = self._running_here
        for argument, text in (("name", name), ("id", id), ("capability", capability)):
            if text is not None:
                refuse_unless_text(argument, text)
        is_selective = any(wanted is not None for wanted in (name, id, capability))
        if count is not None:
            refuse_unless_count("count", count)
        elif not is_selective:
            raise ConfigError("wait_for: give a name, an id, a capability or a count")
        refuse_unless_wait("timeout", timeout)

        def present() -> tuple[Member, ...]:
            return tuple(
                member
                for member in self.members()
                if member.state in _LIVE
                and not (is_selective and member.instance_id == run.instance_id)
                and name in (None, member.name)
                and id in (None, member.instance_id, member.node_id)
                and (capability is None or capability in member.capabilities)
            )

        wanted = 1 if count is None else count
        try:
            async with asyncio.timeout(timeout):
                await run.exchange.membership.until(
                    # All are listed only where they may be enough: each of hundreds that
                    # start together asks at each of the others.
                    lambda: run.core.live_at_most() >= wanted and len(present()) >= wanted
                )
        except TimeoutError:
            asked = {"name": name, "id": id, "capability": capability}
            what = ", ".join(f"{key}={value!r}" for key, value in asked.items() if value)
            whom = ("nobody" if count is None else f"not {count}") + (
                f" with {what}" if what else ""
            )
            here = ", ".join(m.instance_id for m in self.members() if m.state in _LIVE)
            raise RequestTimeout(f"{whom} within {timeout} s; here are {here}") from None
        found = present()
        return found[0] if count is None else found

    # --- inside -------------------------------------------------------------------------------

    @property
    def _running(self) -> Running:
        if self._is_in_child:
            raise NotStarted(_FORKED)
        if self._run is None or not self._run.is_driven:
            raise NotStarted("enter the node first: 'async with node:', or node.serve_forever()")
        return self._run

    def _refuse_elsewhere(self) -> None:
        """As ``_running_here``, for what may be called before the start."""
        if self._is_in_child:
            raise NotStarted(_FORKED)
        if self._run is not None:
            self._run.refuse_elsewhere()

    @property
    def _running_here(self) -> Running:
        run = self._running
        run.refuse_elsewhere()
        return run

    def _leader_info(self) -> LeaderInfo:
        run = self._running
        return run.query(run.core.leader)

    def _token(self) -> Token:
        return self._running.token()

    def _drop_in_child(self) -> None:
        self._is_in_child = True
        if self._run is not None:
            self._run.drop_in_child()


def _address(target: Target) -> tuple[str, bool]:
    """What to send to, and whether it may be a name."""
    match target:
        case Member():
            return target.instance_id, False
        case str():
            return target, True
    raise ConfigError(f"target {target!r:.80}: give an instance id, a name or a member")


# --- fork -------------------------------------------------------------------------------------

#: Nodes that may have sockets open; a forked child lets go of them.
_live: WeakSet[Node] = WeakSet()


def _drop_nodes_in_child() -> None:
    for node in tuple(_live):
        node._drop_in_child()
    _live.clear()


os.register_at_fork(after_in_child=_drop_nodes_in_child)
