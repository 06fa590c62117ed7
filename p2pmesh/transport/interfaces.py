"""Which of this machine's addresses a node listens on and tells others.

Data flow: the operating system's tables -> :class:`Interface` facts
(:func:`read_interfaces`) -> one decision (:func:`choose`) -> :class:`Selection`,
which says for every address whether it is used and why, so that a start line
can print it.  The decision is a pure function over plain facts; the reader
decides nothing.

It never asks the network: no packet is sent, no public address is "connected"
to in order to learn the own one.

Invariants: a link-local address is never used; loopback only when asked for or
when nothing else is left; an open mesh never uses a public address.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, TypeAlias

import ifaddr

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.limits import ADDRESSES_MAX

IP: TypeAlias = IPv4Address | IPv6Address

#: How often the tables are read again.
POLL_INTERVAL: Final = 5.0


def join_address(host: str, port: int) -> str:
    """``ip:port``, or ``[v6]:port``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` -> host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


# --- facts -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface, as the kernel has it."""

    ip: str
    prefix: int
    temporary: bool = False  # an IPv6 privacy address: gone in a day
    settled: bool = True  # False: tentative, duplicate or deprecated


@dataclass(frozen=True, slots=True)
class Interface:
    """What the decision needs to know of one interface."""

    name: str
    addresses: tuple[Address, ...]
    up: bool = True
    #: A NIC, or something that rests on one: a bridge with it as port, a bond,
    #: a VLAN.  None: the operating system does not say.
    physical: bool | None = None
    default_route: bool = False


# --- the decision ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided about one address, and why."""

    interface: str
    address: str
    used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision about all of them.

    ``advertised``: for the record and mDNS, best first, at most four.
    ``bound``: what to listen on; loopback is added to a selection that was not
    asked for by ``bind``, so that this machine reaches its own nodes whatever
    becomes of the network.
    """

    choices: tuple[Choice, ...]
    advertised: tuple[str, ...]
    bound: tuple[str, ...]
    networks: tuple[IPv4Network | IPv6Network, ...]

    def is_on_link(self, host: str) -> bool:
        """Whether ``host`` is in a network that this machine is attached to."""
        ip = ip_address(host.partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None)
        ip = mapped if mapped is not None else ip
        return ip.is_loopback or any(
            ip in network for network in self.networks if network.version == ip.version
        )


_VIRTUAL_NAMES: Final = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|veth.*|podman\d+|cni.*|flannel.*|cali.*|kube-.*"
    r"|virbr.*|vmnet\d+|vboxnet\d+|lxcbr\d+|lxdbr\d+"
)
_TUNNEL_NAMES: Final = re.compile(r"tun.*|tap.*|utun.*|wg.*|ppp.*|ipsec.*|tailscale.*|zt.*|gif\d+")
_APPLE_NAMES: Final = re.compile(r"awdl\d+|llw\d+|anpi\d+|ap\d+")
_CONTAINER_NIC: Final = "eth0"  # inside a container it is a veth end

_LAST_RESORT: Final = "nothing better is there"


def choose(
    interfaces: Iterable[Interface],
    *,
    bind: tuple[str, ...] = (),
    open_mesh: bool = True,
    loopback: bool = False,
) -> Selection:
    """Decide about every address.

    ``bind`` overrides everything else: exactly these addresses, ``0.0.0.0`` and
    ``::`` meaning every address of that family.  ``open_mesh``: no key was
    given, so public addresses are refused.  ``loopback``: use it beside the
    others.  Raises ConfigError for a ``bind`` that cannot be honoured.
    """
    present = tuple(interfaces)
    if bind:
        choices = _choose_bound(present, bind, open_mesh)
    else:
        choices = _choose_freely(present, open_mesh, loopback)
    used = tuple(choice.address for choice in choices if choice.used)
    kept = () if bind else tuple(a for a in _loopback_addresses(present) if a not in used)
    return Selection(
        choices=choices,
        advertised=used[:ADDRESSES_MAX],
        bound=used + kept,
        networks=tuple(
            ip_network(f"{address.ip}/{address.prefix}", strict=False)
            for interface in present
            for address in interface.addresses
        ),
    )


def _choose_freely(
    interfaces: tuple[Interface, ...], open_mesh: bool, loopback: bool
) -> tuple[Choice, ...]:
    used: list[tuple[tuple[bool, int, bool], Choice]] = []
    spare: list[Choice] = []  # nothing against the address, something against its interface
    skipped: list[Choice] = []
    for position, interface in enumerate(interfaces):
        against, for_it = _judge_interface(interface)
        for address in interface.addresses:
            ip = ip_address(address.ip)
            wrong = _judge_address(ip, address, interface, open_mesh)
            if ip.is_loopback and loopback:
                rank = (True, len(interfaces), ip.version == 6)
                used.append((rank, Choice(interface.name, address.ip, True, "preset local")))
            elif wrong:
                skipped.append(Choice(interface.name, address.ip, False, wrong))
            elif against:
                spare.append(Choice(interface.name, address.ip, False, against))
            else:
                rank = (not interface.default_route, position, ip.version == 6)
                used.append((rank, Choice(interface.name, address.ip, True, for_it)))
    chosen = [choice for _, choice in sorted(used, key=lambda item: item[0])]
    if not any(not ip_address(choice.address).is_loopback for choice in chosen) and spare:
        chosen = [*(_taken(choice) for choice in spare), *chosen]
        spare = []
    if not chosen:
        chosen = [_taken(c) for c in skipped if ip_address(c.address).is_loopback]
        skipped = [c for c in skipped if not ip_address(c.address).is_loopback]
    return (*chosen, *spare, *skipped)


def _taken(choice: Choice) -> Choice:
    return Choice(choice.interface, choice.address, True, _LAST_RESORT)


def _judge_interface(interface: Interface) -> tuple[str, str]:
    """What speaks against an interface ("" for nothing), and what for it."""
    name = interface.name.partition(":")[0]  # eth0:1 is an alias of eth0
    if _VIRTUAL_NAMES.fullmatch(name):
        return "belongs to containers or virtual machines, by its name", ""
    if _TUNNEL_NAMES.fullmatch(name):
        return "a tunnel or VPN, by its name", ""
    if _APPLE_NAMES.fullmatch(name):
        return "internal to the operating system, by its name", ""
    if interface.default_route:
        return "", "default route"
    if interface.physical:
        return "", "physical"
    if name == _CONTAINER_NIC:
        return "", "a container's network"
    if interface.physical is None:
        return "", "global address"
    return "virtual: no default route and no physical port", ""


def _judge_address(ip: IP, address: Address, interface: Interface, open_mesh: bool) -> str:
    """What speaks against an address, whatever its interface ("" for nothing)."""
    if ip.is_loopback:
        return "loopback"
    if not interface.up:
        return "interface is down"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return "link-local" if ip.is_link_local else "not a host's address"
    if not address.settled:
        return "deprecated or not confirmed by the kernel"
    if address.temporary and any(_is_stable_v6(other) for other in interface.addresses):
        return "temporary privacy address beside a stable one"
    if open_mesh and ip.is_global:
        return "public address: an open mesh stays off it, give the mesh a key"
    return ""


def _is_stable_v6(address: Address) -> bool:
    ip = ip_address(address.ip)
    stable = address.settled and not address.temporary
    return stable and ip.version == 6 and not ip.is_link_local


def _choose_bound(
    interfaces: tuple[Interface, ...], bind: tuple[str, ...], open_mesh: bool
) -> tuple[Choice, ...]:
    owner = {str(ip_address(a.ip)): i.name for i in interfaces for a in i.addresses}
    wanted: dict[str, None] = {}
    for text in bind:
        ip = _parse_bind(text)
        if ip.is_unspecified:
            every = (a for a in owner if ip_address(a).version == ip.version)
            wanted |= dict.fromkeys(a for a in every if _is_bindable(a, open_mesh))
            continue
        if ip.is_loopback:
            owner.setdefault(str(ip), "loopback")  # all of 127.0.0.0/8 is, not only what is listed
        if str(ip) not in owner:
            here = ", ".join(f"{a} ({name})" for a, name in owner.items())
            raise ConfigError(f"bind {text!r}: not an address of this machine, which has {here}")
        if ip.is_link_local:
            raise ConfigError(f"bind {text!r}: link-local; nobody beyond this cable could use it")
        if open_mesh and ip.is_global:
            raise ConfigError(f"bind {text!r}: public; an open mesh refuses that, give it a key")
        wanted[str(ip)] = None
    chosen = [Choice(owner[address], address, True, "bind") for address in wanted]
    rest = [
        Choice(name, address, False, "not named by bind")
        for address, name in owner.items()
        if address not in wanted
    ]
    return (*chosen, *rest)


def _parse_bind(text: str) -> IP:
    try:
        return ip_address(text.strip("[]"))
    except ValueError:
        raise ConfigError(f"bind {text!r}: not an IP address, such as 192.168.1.7") from None


def _is_bindable(address: str, open_mesh: bool) -> bool:
    ip = ip_address(address)
    return not (ip.is_link_local or ip.is_loopback or (open_mesh and ip.is_global))


def _loopback_addresses(interfaces: Iterable[Interface]) -> tuple[str, ...]:
    present = (a.ip for interface in interfaces for a in interface.addresses)
    return tuple(ip for ip in present if ip_address(ip).is_loopback) or ("127.0.0.1",)


# --- the reader --------------------------------------------------------------

_SYS: Final = Path("/sys/class/net")
_PROC: Final = Path("/proc/net")
_IFA_TEMPORARY: Final = 0x01
_IFA_UNSETTLED: Final = 0x08 | 0x20 | 0x40  # dadfailed, deprecated, tentative
_NESTING_MAX: Final = 4  # a bridge over a VLAN over a bond over a NIC


def read_interfaces(sys: Path = _SYS, proc: Path = _PROC) -> tuple[Interface, ...]:
    """The facts as they are now.  What the system does not tell stays unknown."""
    routed = _default_routes(proc)
    flags = _ipv6_flags(proc)
    found = []
    for adapter in ifaddr.get_adapters():
        addresses = []
        for entry in adapter.ips:
            ip = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            flag = flags.get(str(ip_address(ip)), 0)
            addresses.append(
                Address(
                    ip=str(ip_address(ip)),
                    prefix=entry.network_prefix,
                    temporary=bool(flag & _IFA_TEMPORARY),
                    settled=not flag & _IFA_UNSETTLED,
                )
            )
        found.append(
            Interface(
                name=adapter.name,
                addresses=tuple(addresses),
                up=_is_up(sys / adapter.name),
                physical=_rests_on_nic(sys, adapter.name),
                default_route=adapter.name in routed,
            )
        )
    return tuple(found)


def _is_up(entry: Path) -> bool:
    return _read(entry / "operstate") not in {"down", "lowerlayerdown", "notpresent"}


def _rests_on_nic(sys: Path, name: str, depth: int = 0) -> bool | None:
    entry = sys / name
    if not entry.is_dir():
        return None
    if (entry / "device").exists():
        return True
    below = [p.name.removeprefix("lower_") for p in entry.glob("lower_*")]
    return depth < _NESTING_MAX and any(_rests_on_nic(sys, n, depth + 1) for n in below)


def _default_routes(proc: Path) -> frozenset[str]:
    """Names of interfaces that a default route leaves through."""
    names = set()
    for line in _read(proc / "route").splitlines()[1:]:
        match line.split():
            case [name, "00000000", _, _, _, _, _, "00000000", *_]:
                names.add(name)
    for line in _read(proc / "ipv6_route").splitlines():
        match line.split():
            # An unreachable default route is listed too, on lo.
            case [destination, "00", *_, name] if not destination.strip("0") and name != "lo":
                names.add(name)
    return frozenset(names)


def _ipv6_flags(proc: Path) -> dict[str, int]:
    flags = {}
    for line in _read(proc / "if_inet6").splitlines():
        match line.split():
            case [packed, _, _, _, flag, _]:
                flags[str(IPv6Address(bytes.fromhex(packed)))] = int(flag, 16)
    return flags


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


# --- changes -----------------------------------------------------------------


async def watch_interfaces(
    current: Selection,
    look: Callable[[], Selection],
    changed: Callable[[Selection], Awaitable[None]],
    *,
    interval: float = POLL_INTERVAL,
) -> None:
    """Call ``look`` every ``interval`` seconds for ever, in a thread, and ``changed``
    with each selection that listens or advertises differently from the one before."""
    while True:
        await asyncio.sleep(interval)
        try:
            latest = await asyncio.to_thread(look)
        except (OSError, ConfigError):
            continue  # an address that `bind` names is away; what was bound stays
        if (latest.advertised, latest.bound) != (current.advertised, current.bound):
            current = latest
            await changed(latest)
