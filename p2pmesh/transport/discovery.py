"""Finding nodes by mDNS: our own advertisement, and the offers of others.

What it finds are *offers of addresses*: never trust, never liveness (a killed
process stays advertised until its records expire).  Whoever is dialled proves
itself in the handshake.

Data flow: zeroconf's browser -> :func:`read_offer` (hostile bytes -> ``Offer``
or nothing) -> :class:`Discovery`, which keeps those of this mesh and reports
them as ``Candidate`` values, and their end by key.

Two settings make nodes visible in milliseconds instead of seconds: our service
name is random, so nobody needs to be asked whether it is taken
(``cooperating_responders``), and questions ask for multicast answers (QM),
because a unicast answer reaches only one of several processes on a host.

Invariants: nothing that the network says raises out of here; what is kept is
bounded; the own advertisement is never offered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pmesh.errors import ConfigError
from p2pmesh.forked import let_go
from p2pmesh.protocol.limits import MEMBERS_MAX
from p2pmesh.protocol.types import Candidate, FoundBy, NodeId
from p2pmesh.transport.interfaces import join_address

log = logging.getLogger("p2pmesh.discovery")

SERVICE_TYPE: Final = "_p2pmesh._tcp.local."
TXT_VERSION: Final = "1"
#: More offers than a mesh can have members are somebody's flood.
OFFERS_MAX: Final = MEMBERS_MAX
OFFER_ADDRESSES_MAX: Final = 8
RESOLVING_MAX: Final = 32  # at once; further names wait, newest first
WAITING_MAX: Final = 4096
RESOLVE_TIMEOUT_MS: Final = 3000


class Advert(NamedTuple):
    """What a node says of itself by mDNS."""

    node_id: NodeId
    mesh_id: bytes
    kid: bytes  # which key it offers
    mode: str  # "open" or "keyed"
    hosts: tuple[str, ...]  # IP addresses
    port: int  # of links


class Offer(NamedTuple):
    """What some advertisement says; nothing of it is proved."""

    service: str
    addresses: tuple[str, ...]  # "ip:port" or "[v6]:port"
    node_id: NodeId | None
    mesh_id: str  # hex
    kid: str  # hex
    mode: str


# --- hostile bytes -> Offer ---------------------------------------------------


def read_offer(info: AsyncServiceInfo) -> Offer | None:
    """The offer in a resolved service, or None when it is not usable."""
    txt = info.properties
    port = info.port or 0
    hosts = [host for host in info.parsed_scoped_addresses() if _is_usable(host)]
    if not hosts or not 0 < port < 65536:
        return None
    node_id = _hexadecimal(txt, b"id", 32)
    return Offer(
        service=info.name,
        addresses=tuple(join_address(host, port) for host in hosts[:OFFER_ADDRESSES_MAX]),
        node_id=bytes.fromhex(node_id) if node_id else None,
        mesh_id=_hexadecimal(txt, b"mesh", 8),
        kid=_hexadecimal(txt, b"kid", 6),
        mode="keyed" if txt.get(b"mode") == b"keyed" else "open",
    )


def _is_usable(host: str) -> bool:
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not (ip.is_unspecified or ip.is_multicast or ip.is_link_local or ip.is_reserved)


def _hexadecimal(txt: Mapping[bytes, bytes | None], key: bytes, size: int) -> str:
    value = txt.get(key) or b""
    return value.decode() if re.fullmatch(rb"[0-9a-f]{%d}" % (2 * size), value) else ""


# --- browsing -----------------------------------------------------------------


class Browser:
    """Reports every offer of our service type, again when it changed, and its end."""

    def __init__(
        self, zc: Zeroconf, offered: Callable[[Offer], None], withdrawn: Callable[[str], None]
    ) -> None:
        self._zc = zc
        self._offered = offered
        self._withdrawn = withdrawn
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._browser = AsyncServiceBrowser(
            zc, SERVICE_TYPE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )

    async def close(self) -> None:
        for task in self._resolving.values():
            task.cancel()
        self._waiting.clear()
        await self._browser.async_cancel()

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """zeroconf calls this with keywords, so the names are its own."""
        if state_change is ServiceStateChange.Removed:
            self._waiting.pop(name, None)
            if (task := self._resolving.pop(name, None)) is not None:
                task.cancel()
            self._withdrawn(name)
            return
        info = _service_info(name)
        if info is None:
            return
        if info.load_from_cache(self._zc):  # normally all of it came in one packet
            self._offer(info)
        elif name not in self._resolving:
            self._waiting[name] = None
            self._waiting.move_to_end(name)
            if len(self._waiting) > WAITING_MAX:
                self._waiting.popitem(last=False)
            self._resolve_more()

    def _resolve_more(self) -> None:
        while self._waiting and len(self._resolving) < RESOLVING_MAX:
            name, _ = self._waiting.popitem(last=True)
            self._resolving[name] = asyncio.create_task(self._resolve(name))

    async def _resolve(self, name: str) -> None:
        try:
            info = _service_info(name)
            if info is not None and await info.async_request(
                self._zc, RESOLVE_TIMEOUT_MS, question_type=DNSQuestionType.QM
            ):
                self._offer(info)
        except (OSError, ZeroconfError) as error:
            log.debug("mDNS: %s was not resolved: %s", name, error)
        finally:
            if self._resolving.get(name) is asyncio.current_task():
                del self._resolving[name]
            self._resolve_more()

    def _offer(self, info: AsyncServiceInfo) -> None:
        if (offer := read_offer(info)) is not None:
            self._offered(offer)


def _service_info(name: str) -> AsyncServiceInfo | None:
    try:
        return AsyncServiceInfo(SERVICE_TYPE, name)
    except (ZeroconfError, ValueError):
        return None  # somebody's pointer to a name of another type


# --- a node's discovery --------------------------------------------------------


class Discovery:
    """Advertises one node and reports candidates of its mesh.

    ``found`` gets a candidate when it appears or changes, ``lost`` its key when
    its advertisement ended.  Both are called on the loop.  ``other_meshes``
    counts advertisements that were passed over because they are not ours.
    """

    def __init__(
        self,
        found: Callable[[Candidate], None],
        lost: Callable[[str], None],
        *,
        zeroconf: Zeroconf | AsyncZeroconf | None = None,
    ) -> None:
        """``zeroconf``: the application's own instance, of the running loop.  It
        is used as it is and not closed."""
        self._found = found
        self._lost = lost
        self._given = zeroconf
        self._azc: AsyncZeroconf | None = None
        self._browser: Browser | None = None
        self._info: AsyncServiceInfo | None = None
        self._announcing: asyncio.Future[object] | None = None
        self._label = os.urandom(8).hex()
        self._mesh_id = ""
        self._candidates: dict[str, Candidate] = {}
        self._others: set[str] = set()
        self._is_missed = False  # it could not be started, and that was said

    @property
    def other_meshes(self) -> int:
        return len(self._others)

    @property
    def is_running(self) -> bool:
        return self._azc is not None

    async def start(self, advert: Advert) -> bool:
        """Begin to advertise and to browse; again, where it was in vain.

        False, with one warning however often, when this host cannot do mDNS.  Raises
        ConfigError for a given ``zeroconf`` of another loop.
        """
        self._mesh_id = advert.mesh_id.hex()
        try:
            self._azc = self._open(advert.hosts)
            await self._azc.zeroconf.async_wait_for_start()
            self._browser = Browser(self._azc.zeroconf, self._offered, self._withdrawn)
            await self._announce(advert)
        except (OSError, RuntimeError, ValueError, ZeroconfError) as error:
            log.log(
                logging.DEBUG if self._is_missed else logging.WARNING,
                "mDNS does not work here (%s): nodes on other machines are found only by --peer "
                "until it does",
                error or type(error).__name__,
            )
            self._is_missed = True
            await self.close()
            return False
        if self._is_missed:
            self._is_missed = False
            log.info("mDNS works now")
        return True

    async def update(self, advert: Advert) -> bool:
        """The own addresses changed: advertise these instead.  As :meth:`start`; it
        also starts what could not be started before.

        Our own zeroconf is made anew for them: one that runs passes over an address
        whose interface it has joined by another.
        """
        if self._azc is not None and self._given is not None:
            try:
                await self._announce(advert)
            except (OSError, RuntimeError, ValueError, ZeroconfError) as error:
                log.warning("mDNS does not follow the new addresses (%s)", error)
                return False
            return True
        await self.close()
        for key in tuple(self._candidates):
            del self._candidates[key]
            self._lost(key)
        return await self.start(advert)

    async def close(self) -> None:
        """Say goodbye, stop browsing and let go of every socket that is ours."""
        azc, browser, info = self._azc, self._browser, self._info
        self._azc = self._browser = self._info = None
        if azc is None:
            return
        self._stop_announcing()
        try:
            if browser is not None:
                await browser.close()
            if info is not None:
                await (await azc.async_unregister_service(info))
        except (OSError, ZeroconfError) as error:
            log.debug("mDNS: no goodbye was said: %s", error)
        finally:
            if self._given is None:
                await azc.async_close()

    def drop_in_child(self) -> None:
        """In a forked child: close the inherited sockets, tell nobody."""
        azc, self._azc = self._azc, None
        if azc is None:
            return
        engine = azc.zeroconf.engine
        let_go({wrapped.fileno for wrapped in (*engine.readers, *engine.senders)})

    def _open(self, hosts: Sequence[str]) -> AsyncZeroconf:
        match self._given:
            case None:
                return AsyncZeroconf(interfaces=list(hosts) or ["127.0.0.1"])
            case AsyncZeroconf() as azc:
                pass
            case Zeroconf() as zc:
                azc = AsyncZeroconf(zc=zc)
            case other:
                raise ConfigError(f"zeroconf {other!r:.80}: give a Zeroconf or AsyncZeroconf")
        if azc.zeroconf.loop is not asyncio.get_running_loop():
            raise ConfigError("zeroconf: make it inside the event loop that runs the node")
        return azc

    async def _announce(self, advert: Advert) -> None:
        assert self._azc is not None
        info = self._advertisement(advert)
        self._stop_announcing()
        if self._info is None:
            sending = await self._azc.async_register_service(info, cooperating_responders=True)
        else:
            sending = await self._azc.async_update_service(info)
        self._announcing = asyncio.ensure_future(sending)
        self._info = info

    def _stop_announcing(self) -> None:
        """It is said three times within half a second: not after it was taken back."""
        if self._announcing is not None:
            self._announcing.cancel()

    def _advertisement(self, advert: Advert) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._label}.{SERVICE_TYPE}",
            port=advert.port,
            parsed_addresses=list(advert.hosts),
            server=f"p2pmesh-{self._label}.local.",
            properties={
                "v": TXT_VERSION,
                "id": advert.node_id.hex(),
                "mesh": advert.mesh_id.hex(),
                "kid": advert.kid.hex(),
                "mode": advert.mode,
            },
        )

    def _offered(self, offer: Offer) -> None:
        if offer.service == f"{self._label}.{SERVICE_TYPE}":
            return
        if offer.mesh_id != self._mesh_id:
            if len(self._others) < OFFERS_MAX:
                self._others.add(offer.service)
            return
        key = f"mdns:{offer.service}"
        candidate = Candidate(key, offer.addresses, FoundBy.MDNS, offer.node_id)
        if self._candidates.get(key) == candidate:
            return
        if key not in self._candidates and len(self._candidates) >= OFFERS_MAX:
            return
        self._candidates[key] = candidate
        self._found(candidate)

    def _withdrawn(self, service: str) -> None:
        self._others.discard(service)
        if self._candidates.pop(f"mdns:{service}", None) is not None:
            self._lost(f"mdns:{service}")


async def browse_for(seconds: float, hosts: Sequence[str]) -> tuple[Offer, ...]:
    """What mDNS offers on these addresses within ``seconds``, of every mesh.
    Raises OSError when this host cannot do mDNS."""
    offers: dict[str, Offer] = {}

    def offered(offer: Offer) -> None:
        if len(offers) < OFFERS_MAX:
            offers[offer.service] = offer

    azc = AsyncZeroconf(interfaces=list(hosts))
    browser = Browser(azc.zeroconf, offered, lambda service: offers.pop(service, None) and None)
    try:
        await asyncio.sleep(seconds)
    finally:
        await browser.close()
        await azc.async_close()
    return tuple(offers.values())
