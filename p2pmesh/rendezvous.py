"""Where a node meets others: mDNS, the runtime directory, and the peers it was given.

All three offer *candidate addresses* (``found``) and take them back (``lost``);
the core dials, and whoever answers proves itself.  Each of the three may fail
without harm to the others: that is one warning.

    mDNS       other machines          transport.discovery
    runtime    this machine            transport.runtime, looked at twice a second
    peers      wherever a name leads   transport.resolve, asked again for ever
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.timing import CANDIDATE_RETRY, CANDIDATE_RETRY_MAX
from p2pmesh.protocol.types import Candidate, FoundBy, NodeId
from p2pmesh.transport.interfaces import split_address
from p2pmesh.transport.resolve import resolve
from p2pmesh.transport.runtime import RuntimeEntry, RuntimeFile, RuntimeWatch, runtime_path

if TYPE_CHECKING:  # loaded only where mDNS is used
    from p2pmesh.transport.discovery import Advert, Discovery

log = logging.getLogger("p2pmesh.rendezvous")

RUNTIME_POLL_INTERVAL: Final = 0.5
#: mDNS that does not work is tried again so often, and when the addresses change.
MDNS_RETRY_INTERVAL: Final = 30.0


class Presence(NamedTuple):
    """What others are told of this node."""

    node_id: NodeId
    mesh_id: bytes
    kid: bytes
    is_open: bool
    hosts: tuple[str, ...]
    port: int
    entry: RuntimeEntry


class Rendezvous:
    """The places where one node can be met."""

    def __init__(
        self,
        *,
        found: Callable[[Candidate], None],
        lost: Callable[[str], None],
        peers: Sequence[str],
        mdns: bool,
        zeroconf: Any = None,
    ) -> None:
        """``peers``: "host:port" or "[v6]:port".  ``zeroconf``: the application's own."""
        self._found = found
        self._lost = lost
        self._peers = tuple(dict.fromkeys(peers))
        self._uses_mdns = mdns
        self._zeroconf = zeroconf
        self._discovery: Discovery | None = None
        self._advertising = asyncio.Lock()  # one start or update of mDNS at a time
        self._presence: Presence | None = None  # what mDNS says, when it can
        self._file: RuntimeFile | None = None
        self._entry: RuntimeEntry | None = None  # what the file says
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def other_meshes(self) -> int:
        """How many nodes of other meshes mDNS showed."""
        return self._discovery.other_meshes if self._discovery is not None else 0

    async def start(self, presence: Presence) -> None:
        """Returns when the runtime file is written and mDNS was tried.  Raises
        ConfigError for a ``zeroconf`` that cannot be used."""
        await self._enter_runtime_directory(presence.entry)
        for peer in self._peers:
            self._spawn(self._follow_peer(peer))
        if self._uses_mdns:
            # In a thread: zeroconf takes a while to load.
            await asyncio.to_thread(import_module, "p2pmesh.transport.discovery")
            from p2pmesh.transport.discovery import Discovery

            self._discovery = Discovery(self._found, self._lost, zeroconf=self._zeroconf)
            self._presence = presence
            await self._discovery.start(_advert(presence))
            self._spawn(self._keep_mdns(self._discovery))

    async def update(self, presence: Presence) -> None:
        """The own addresses changed."""
        if self._file is not None:
            self._entry = presence.entry
            try:
                await asyncio.to_thread(self._file.write, presence.entry)
            except OSError as error:
                log.warning("the runtime file keeps the old addresses: %s", error)
        if self._discovery is not None:
            async with self._advertising:
                self._presence = presence
                await self._discovery.update(_advert(presence))

    async def close(self) -> None:
        """Withdraw from everywhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._file is not None:
            await asyncio.to_thread(self._file.remove)
        if self._discovery is not None:
            await self._discovery.close()

    def drop_in_child(self) -> None:
        if self._discovery is not None:
            self._discovery.drop_in_child()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    # --- the LAN ------------------------------------------------------------------------

    async def _keep_mdns(self, discovery: Discovery) -> None:
        """A network may come, or let multicast through, while the addresses stay."""
        while True:
            await asyncio.sleep(MDNS_RETRY_INTERVAL)
            async with self._advertising:
                if not discovery.is_running and self._presence is not None:
                    await discovery.start(_advert(self._presence))

    # --- this machine -----------------------------------------------------------------

    async def _enter_runtime_directory(self, entry: RuntimeEntry) -> None:
        try:
            self._file = await asyncio.to_thread(_write_runtime_file, entry)
        except (ConfigError, OSError) as error:
            log.warning(
                "nodes on this machine, and the command line, will not find this one: %s", error
            )
            return
        self._entry = entry
        watch = RuntimeWatch(self._file.directory, entry.mesh, self._file.name)
        await self._look(watch)
        self._spawn(self._watch_runtime_directory(watch))

    async def _watch_runtime_directory(self, watch: RuntimeWatch) -> None:
        while True:
            await asyncio.sleep(RUNTIME_POLL_INTERVAL)
            await self._restore()
            await self._look(watch)

    async def _restore(self) -> None:
        """The file is there, or is written again; what prevents it was said at first."""
        if self._file is not None and self._entry is not None:
            with contextlib.suppress(ConfigError, OSError):
                if await asyncio.to_thread(self._file.restore, self._entry):
                    log.warning("the runtime file was removed; it is written again")

    async def _look(self, watch: RuntimeWatch) -> None:
        found, lost = await asyncio.to_thread(watch.poll)
        for name in lost:
            self._lost(f"runtime:{name}")
        for name, entry in found.items():
            node_id = _node_id(entry.node_id)
            self._found(Candidate(f"runtime:{name}", entry.addresses, FoundBy.RUNTIME, node_id))

    # --- given peers --------------------------------------------------------------------

    async def _follow_peer(self, peer: str) -> None:
        """Ask for the name again and again: it may lead elsewhere one day.  The core
        does the dialling, for ever."""
        host, port = split_address(peer)
        known: tuple[str, ...] = ()
        delay = CANDIDATE_RETRY
        while True:
            try:
                addresses = await resolve(host, port)
            except OSError as error:
                if delay == CANDIDATE_RETRY:
                    log.warning("peer %s: %s; it is asked for again and again", peer, error)
            else:
                if addresses != known:
                    known = addresses
                    self._found(Candidate(f"peer:{peer}", addresses, FoundBy.PEER))
                if addresses == (peer,):
                    return  # an address means itself for ever
            await asyncio.sleep(delay)
            delay = min(2 * delay, CANDIDATE_RETRY_MAX)


def _write_runtime_file(entry: RuntimeEntry) -> RuntimeFile:
    file = RuntimeFile(runtime_path())
    file.write(entry)
    return file


def _advert(presence: Presence) -> Advert:
    from p2pmesh.transport.discovery import Advert

    mode = "open" if presence.is_open else "keyed"
    return Advert(
        presence.node_id, presence.mesh_id, presence.kid, mode, presence.hosts, presence.port
    )


def _node_id(text: str) -> bytes | None:
    try:
        node_id = bytes.fromhex(text)
    except ValueError:
        return None
    return node_id if len(node_id) == 32 else None
