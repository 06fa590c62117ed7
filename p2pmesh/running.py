"""One run of a node: made of its parts, driven, and taken apart again.

This is where protocol, transport, data dir, rendezvous, HTTP and the agent's
handlers are joined; none of them knows the others.

    identity ─► store ─► interfaces ─► link port ─► HTTP port ─► core ─► rendezvous ─► joined

Each step leaves its undoing on a stack, so that a start that fails half-way and an
orderly end take the same way out.

Invariants: every action of the core is performed or handed on exactly once; when
``ended`` is done, nothing of the node is open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from p2pmesh.chronicle import Chronicle
from p2pmesh.datadir import DataDir, EphemeralIdentity, Identity
from p2pmesh.delivery import Delivery
from p2pmesh.driver import Driver
from p2pmesh.errors import IdentityConflict, MeshError, NotStarted
from p2pmesh.events import EventHub
from p2pmesh.exchange import Exchange
from p2pmesh.handlers import Handlers
from p2pmesh.http.tokens import Grant, Scope, Tokens
from p2pmesh.ids import new_instance_id
from p2pmesh.leadership import Leadership
from p2pmesh.loops import ask, refuse_outside
from p2pmesh.nodeconfig import NodeConfig
from p2pmesh.outcomes import CoreOutcomes
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.mesh import Mesh, new_book
from p2pmesh.protocol.types import (
    Agent,
    Alone,
    CallEnded,
    Candidate,
    Demoted,
    Elected,
    Event,
    Instant,
    Joined,
    LeaderChanged,
    Life,
    MemberEvent,
    MeshConfig,
    MessageArrived,
    MessageKept,
    MessageMayStart,
    MessageMoved,
    MessageProgress,
    MessageWithdrawn,
    PartArrived,
    PartWanted,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    Restored,
    SendRefused,
    Stop,
    Table,
    Token,
)
from p2pmesh.rendezvous import Presence, Rendezvous
from p2pmesh.store import Store
from p2pmesh.transport.clock import boot_id, instant
from p2pmesh.transport.interfaces import (
    Selection,
    choose,
    join_address,
    read_interfaces,
    split_address,
    watch_interfaces,
)
from p2pmesh.transport.runtime import RuntimeEntry

if TYPE_CHECKING:  # loaded only where HTTP is served
    from p2pmesh.http.server import RegistryServer

log = logging.getLogger("p2pmesh")

#: What a leaving node gives calls over HTTP; less than the core gives handlers.
HTTP_DRAIN: Final = 3.0
CALLBACK_DRAIN: Final = 2.0  # on_demoted is called once the goodbye is said
#: What was verified holds for every node of the process: bytes and their signature.
_BOOK: Final = new_book()

T = TypeVar("T")


class Running:
    """A node between its start and its end."""

    driver: Driver
    exchange: Exchange
    identity: Identity
    restored: Restored
    selection: Selection
    instance_id: str
    port: int

    def __init__(
        self, config: NodeConfig, handlers: Handlers, events: EventHub, leadership: Leadership
    ) -> None:
        self.config = config
        self.handlers = handlers
        self.events = events
        self._chronicle = Chronicle(events)
        self.leadership = leadership
        self.mesh = config.mesh
        self.keys = KeyRing(config.mesh, config.keys)
        self.started_at = time.time()
        self.is_driven = False  # there is a core; it may have ended meanwhile
        self.unsafe: tuple[Delivery, ...] = ()  # at the end: what no second node has
        loop = self._loop = asyncio.get_running_loop()
        #: The node has taken its life.
        self.joined: asyncio.Future[Joined] = loop.create_future()
        #: All is closed; an IdentityConflict when another node made this one end.
        self.ended: asyncio.Future[None] = loop.create_future()
        self._started = instant()
        self._stopped: asyncio.Future[str] = loop.create_future()
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._listening: set[str] = set()
        self.store: Store | None = None
        self._stack = AsyncExitStack()
        self._server: RegistryServer | None = None
        #: Of this run: whoever may read the runtime file may use HTTP.
        self._http_token = secrets.token_urlsafe(32) if config.http_tokens else None
        self._rendezvous: Rendezvous | None = None
        self._drops: list[Callable[[], None]] = []  # what a forked child has to let go of

    # --- views ----------------------------------------------------------------------

    @property
    def core(self) -> Mesh:
        return self.driver.core

    @property
    def uptime(self) -> float:
        return instant().now - self._started.now

    @property
    def http_url(self) -> str | None:
        return self._server.url if self._server is not None else None

    @property
    def http_address(self) -> str | None:
        return self._server.address if self._server is not None else None

    @property
    def http_access(self) -> str | None:
        if self._server is None:
            return None
        if self.config.http_tokens:
            return "token"
        return "open" if self._server.is_wide else "machine"

    @property
    def addresses(self) -> tuple[str, ...]:
        """What others are told, best first."""
        hosts = self.selection.advertised or self.selection.bound[:1]
        return tuple(join_address(host, self.port) for host in hosts)

    def query(self, view: Callable[[Instant], T]) -> T:
        """What a view of the core shows now; from a thread, too, which waits for it.
        Raises NotStarted after the end, and in another loop."""
        if self.driver.is_stopped:
            raise NotStarted("this node has ended: make a new one")
        return ask(self._loop, lambda: view(instant()))

    def token(self) -> Token:
        """As ``query``.  A command, for it may be what notices that this process slept.
        Raises NotAuthoritative."""
        return ask(self._loop, lambda: self.driver.command(self.core.token))

    def refuse_elsewhere(self) -> None:
        """Raise NotStarted outside of the loop, while there is something to be kept from."""
        if not self.ended.done():
            refuse_outside(self._loop)

    def counters(self) -> dict[str, int]:
        transport = {f"transport_{k}": n for k, n in self.driver.transport.dropped.items()}
        http = self._server.counters() if self._server is not None else {}
        refused = {"off_link_refused": self.driver.refused_off_link}
        return {**self.core.counters(), **transport, **refused, **http}

    # --- the start ------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when all ports are bound and others can find this node; it has
        not joined yet.  Raises ConfigError, StoreFull; then it is over.

        A start is never left half-way: cancelled, it goes on to its end, which is near,
        and the node leaves.  Others may have met it by then, and what is opened in a
        thread would stay open."""
        self._starting = self._loop.create_task(self._start())
        try:
            await asyncio.shield(self._starting)
        except BaseException:
            await asyncio.shield(self.begin_leave())
            raise

    async def _start(self) -> None:
        config = self.config
        await self._open_identity()
        self.selection = await asyncio.to_thread(self._select)
        self.driver = Driver(
            outcome=self._perform,
            admits=self._admits,
            persist=self.identity.keep if self.identity.is_persistent else None,
            store=self.store,
        )
        is_durable = self.store is not None
        self.exchange = Exchange(self.driver, is_durable=is_durable)
        self._outcomes = CoreOutcomes(self.driver, self.instance_id, is_durable=is_durable)
        self.handlers.outcomes = self._outcomes
        self._performers = self._who_performs()
        self._stack.push_async_callback(self.driver.aclose)
        self._drops.append(self.driver.drop_in_child)
        await self._listen(config.port)
        if config.http is not None:
            await self._serve_http(config.http)
        self.driver.start(self._make_core())
        self.is_driven = True
        if not config.agent:
            self.instance_id = self.core.node_id.hex()
        self._say_how_it_runs()
        self._rendezvous = Rendezvous(
            found=self._candidate_found,
            lost=self._candidate_lost,
            peers=config.peers,
            mdns=config.mdns,
            zeroconf=config.zeroconf,
        )
        self._stack.push_async_callback(self._rendezvous.close)
        self._drops.append(self._rendezvous.drop_in_child)
        self.driver.command(self.core.look, is_begun=False)
        await self._rendezvous.start(self._presence())
        if not self.driver.is_stopped:
            self.driver.command(self.core.look, is_begun=True)
        watch = watch_interfaces(self.selection, self._select, self._readdress)
        self._stack.callback(asyncio.get_running_loop().create_task(watch).cancel)

    async def _start_over(self) -> None:
        """Until the start is over, whatever became of it."""
        if self._starting is not None and not self._starting.done():
            await asyncio.wait((self._starting,))

    async def _open_identity(self) -> None:
        where = self.config.data_dir
        if where is None:
            self.identity = EphemeralIdentity()
        elif isinstance(where, os.PathLike):
            self.identity = await asyncio.to_thread(DataDir.open, where)
        else:
            self.identity = where
        self._stack.callback(self.identity.close)
        self._drops.append(self.identity.drop_in_child)
        await self._open_store()
        kept = self.identity.instance_id
        self.instance_id = self.config.instance_id or kept or new_instance_id(self.config.name)
        if self.config.agent and self.instance_id != kept:
            await asyncio.to_thread(self.identity.keep_instance_id, self.instance_id)

    async def _open_store(self) -> None:
        self.restored = self.identity.restored
        if self.identity.path is None:
            return
        store = self.store = await asyncio.to_thread(Store.open, self.identity.path, tuple(Table))
        self._stack.push_async_callback(asyncio.to_thread, store.close)
        self._drops.append(store.drop_in_child)
        rows, boot = await asyncio.to_thread(lambda: (store.rows(), boot_id()))
        self.restored = msgspec.structs.replace(self.restored, rows=rows, boot=boot)

    def _select(self) -> Selection:
        return choose(
            read_interfaces(),
            bind=self.config.bind,
            open_mesh=self.keys.is_open,
            loopback=self.config.preset == "local",
        )

    def _admits(self, address: str) -> bool:
        """Without a key, only neighbours are listened to."""
        return not self.keys.is_open or self.selection.is_on_link(split_address(address)[0])

    async def _listen(self, port: int | None) -> None:
        hosts = [host for host in self.selection.bound if host not in self._listening]
        if hosts:
            bound = await self.driver.transport.listen(hosts, port)
            self._listening.update(hosts)
            self.port = split_address(bound[0])[1]

    async def _serve_http(self, http: str) -> None:
        # aiohttp takes a third of a second to load, and the application's loop goes on.
        await asyncio.to_thread(import_module, "p2pmesh.http.server")
        from p2pmesh.backend import NodeBackend
        from p2pmesh.http.server import RegistryServer
        from p2pmesh.transport.ports import listen

        grants = self.config.http_tokens
        if self._http_token is not None:
            grants += (Grant(Scope.ADMIN, self._http_token),)
        self._server = await RegistryServer.start(
            NodeBackend(self),
            http,
            listen=listen,
            names=self.config.http_hosts,
            tokens=Tokens(grants),
            is_open=self.config.http_open,
        )
        self._stack.push_async_callback(self._server.stop)
        self._drops.append(self._server.drop_in_child)

    def _make_core(self) -> Mesh:
        config = self.config
        agent = Agent(
            instance_id=self.instance_id,
            capabilities=config.capabilities,
            profiles=config.profiles,
            hostname=split_address(self.addresses[0])[0],
            http_port=self._server.port if self._server is not None else 0,
            created_at=time.time_ns() // 1000,
            persistent=self.identity.is_persistent,
        )
        return Mesh(
            MeshConfig(
                mesh=config.mesh,
                keys=config.keys,
                name=config.name,
                agent=agent if config.agent else None,
                candidate=config.candidate,
                quorum=config.quorum,
                preset=config.preset,
                addresses=self.addresses,
                persistent=self.store is not None,
                process=os.urandom(8),
            ),
            seed=self.identity.seed,
            at=instant(),
            rng=random.Random(),
            entropy=os.urandom,
            restored=self.restored,
            book=_BOOK,
        )

    def _say_how_it_runs(self) -> None:
        for choice in self.selection.choices:
            verb = "uses" if choice.used else "skips"
            log.info("%s %s on %s: %s", verb, choice.address, choice.interface, choice.reason)
        for notice in (*self.identity.notices, *(self.store.notices if self.store else ())):
            log.warning("%s", notice)
        if self.keys.is_open:
            self._chronicle.is_open(self.mesh)
        if self.http_access == "open":
            self._chronicle.http_is_open()
        node_id = self.core.node_id.hex()
        self._chronicle.started(self.instance_id, node_id, self.mesh, self.addresses, self.http_url)

    # --- being found ------------------------------------------------------------------

    def _presence(self) -> Presence:
        return Presence(
            node_id=self.core.node_id,
            mesh_id=self.keys.mesh_id,
            kid=self.keys.offered.kid,
            is_open=self.keys.is_open,
            hosts=tuple(split_address(address)[0] for address in self.addresses),
            port=self.port,
            entry=RuntimeEntry(
                pid=os.getpid(),
                mesh=self.mesh,
                node_id=self.core.node_id.hex(),
                instance_id=self.instance_id,
                addresses=tuple(join_address(host, self.port) for host in self.selection.bound),
                http=self.http_url,
                token=self._http_token,
                started=self.started_at,
            ),
        )

    def _candidate_found(self, candidate: Candidate) -> None:
        if not self.driver.is_stopped:
            self.driver.command(self.core.candidate_found, candidate)

    def _candidate_lost(self, key: str) -> None:
        if not self.driver.is_stopped:
            self.driver.command(self.core.candidate_lost, key)

    async def _readdress(self, selection: Selection) -> None:
        """The machine's addresses changed."""
        self.selection = selection
        try:
            await self._listen(self.port)
        except MeshError as error:
            log.warning("not listening at a new address: %s", error)
        log.info("this node is now at %s", ", ".join(self.addresses))
        self.driver.command(self.core.addresses_changed, self.addresses)
        if self._rendezvous is not None:
            await self._rendezvous.update(self._presence())

    # --- what the core wants done -------------------------------------------------------

    def _who_performs(self) -> dict[type, Callable[[Any], None]]:
        """Whom each action goes to; what is not named is an event."""
        handlers, exchange = self.handlers, self.exchange
        return {
            MessageArrived: self._message_arrived,
            MessageKept: exchange.kept,
            MessageMayStart: self._outcomes.may_start,
            MessageWithdrawn: lambda action: handlers.withdrawn((action.message_id,)),
            RequestArrived: handlers.request_arrived,
            RequestCancelled: lambda action: handlers.request_cancelled(action.request),
            PartWanted: lambda action: handlers.may_go_on(action.request),
            PartArrived: exchange.part_arrived,
            RequestEnded: exchange.request_ended,
            CallEnded: exchange.call_ended,
            SendRefused: exchange.refused,
            MessageMoved: self._message_moved,
            Stop: self._stop,
        }

    def _perform(self, action: Any) -> None:
        performer = self._performers.get(type(action))
        if performer is not None:
            performer(action)
        else:
            self._happened(action)

    def _message_arrived(self, action: MessageArrived) -> None:
        if self.events.is_read:
            self._chronicle.message_arrived(action.envelope)
        self.handlers.message_arrived(action)

    def _message_moved(self, action: MessageMoved) -> None:
        self.exchange.moved(action)
        if self.events.is_read:
            self._chronicle.message_moved(action)

    def _happened(self, event: Event) -> None:
        """Something worth telling, and for some of it something to do."""
        self._chronicle.happened(event)
        match event:
            case MemberEvent() | LeaderChanged():
                self.exchange.membership_changed()
            case MessageProgress():
                self.exchange.progressed(event)
            case Joined():
                self._joined(event)
            case Elected() | Demoted():
                self.leadership.changed(event)
            case Alone(tried=tried):
                others = self._rendezvous.other_meshes if self._rendezvous is not None else 0
                self._chronicle.alone(tried, self.addresses, mdns=self.config.mdns, others=others)

    def _joined(self, event: Joined) -> None:
        if not self.joined.done():
            self.joined.set_result(event)
        if self.identity.is_persistent:
            ms, logical, number = map(int, event.life.split("."))
            self.driver.persist(Life(ms, logical, number))
        self.exchange.membership_changed()

    # --- the end ----------------------------------------------------------------------------

    async def leave(self) -> None:
        """Say goodbye once what runs (handlers, calls over HTTP) has ended and receipts
        are in, 5 s at most, and close everything.  Cancelled, it closes at once."""
        self.leadership.leaves()
        try:
            await self._start_over()
            if self.is_driven and not self.driver.is_stopped:
                self.handlers.finish()
                if self._server is not None:
                    self._server.leave()
                self.driver.command(self.core.leave, is_working=True)
                working = asyncio.get_running_loop().create_task(self._end_work())
                try:
                    await asyncio.gather(asyncio.shield(self._stopped), self._withdraw())
                finally:
                    working.cancel()
        finally:
            await asyncio.shield(self._begin_close())

    async def _end_work(self) -> None:
        """Tell the core when no message is being handled any more, and no call over HTTP
        waits for its answer."""
        await asyncio.gather(self.handlers.finished(), self._end_calls())
        if not self.driver.is_stopped:
            self.driver.command(self.core.handlers_ended)

    async def _end_calls(self) -> None:
        """Calls over HTTP come to their end, or are told that this node leaves, while
        it has not left."""
        if self._server is not None:
            try:
                async with asyncio.timeout(HTTP_DRAIN):
                    await self._server.drained()
            except TimeoutError:
                self._server.interrupt()

    def begin_leave(self) -> asyncio.Task[None]:
        """Leave in a task of its own, which nobody has to wait for."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self.leave())
        return self._leaving

    async def _withdraw(self) -> None:
        """Be found no more, while the last messages are on their way."""
        if self._rendezvous is not None:
            await self._rendezvous.close()

    def _stop(self, action: Stop) -> None:
        """The core has ended.  When nobody asked it to, everything is closed now."""
        if not self._stopped.done():
            self._stopped.set_result(action.reason)
        if action.reason != "left":
            self._begin_close()

    def _begin_close(self) -> asyncio.Task[None]:
        """Closing is a task of its own: it goes on whatever becomes of who asked for
        it, which may be a handler that it cancels."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        await self._start_over()
        reason = self._stopped.result() if self._stopped.done() else "left"
        error: MeshError = NotStarted("this node has ended: make a new one")
        if reason == "double":
            error = IdentityConflict(
                f"another live process has the identity {self.core.node_id.hex()[:16]}…: give each "
                "its own data directory"
            )
        elif reason != "left":
            error = IdentityConflict(f"{reason}, {self.instance_id!r}: give each its own")
        self.handlers.stop()
        if self._server is not None:
            self._server.interrupt()
        if self.is_driven:
            self.unsafe = self.exchange.node_ended(error)
        await self.leadership.finish(CALLBACK_DRAIN)
        self.events.close()
        try:
            await self._stack.aclose()
        finally:
            self._end(self.joined, error)
            if reason == "left":
                self.ended.set_result(None)
            else:
                self._end(self.ended, error)

    @staticmethod
    def _end(future: asyncio.Future[Any], error: MeshError) -> None:
        """Whoever waits is told; nobody has to."""
        if not future.done():
            future.set_exception(error)
            future.exception()

    def drop_in_child(self) -> None:
        """In a forked child: close what was inherited, say nothing to anyone."""
        for drop in self._drops:
            drop()
