"""Hosts made of network namespaces, and the network between them.

A lab is a namespace with a bridge, and a namespace for each host, joined to the
bridge by a veth pair: the host's ``eth0`` and the bridge's port.  The bridge is
where packets vanish: nftables drop there what is cut or lost, unicast and
multicast alike.  A host's cable can be made slow (see ``wire``).

Nothing is made outside of these namespaces, so deleting them deletes it all.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.lab.namespaces import Namespace, unique_name
from tests.processes import HANG_GUARD, Process, run

HOSTS_MAX: Final = 250
CONTAINER_BRIDGE: Final = "172.17.0.1"
_GATEWAY: Final = "10.77.0.254"  # where default routes point; nobody is there


class Lab:
    """A network and its hosts.  A context manager; nothing of it outlives its end."""

    def __init__(self, home: Path) -> None:
        """``home`` is a directory for the homes of its hosts."""
        self._home = home
        self._name = unique_name()
        self._hosts: list[Host] = []
        self._cuts: set[tuple[Host, Host]] = set()
        self._loss = 0.0
        self._stack = ExitStack()
        with ExitStack() as undo:
            self._bridge = Namespace(f"{self._name}-bridge")
            undo.callback(self._bridge.delete)
            self._bridge.set("ipv6/conf/default/disable_ipv6", 1)  # it only forwards
            self._bridge.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0")
            self._bridge.ip("link set br0 up")
            self._stack = undo.pop_all()

    def hosts(self, count: int) -> tuple[Host, ...]:
        """So many more hosts, each with an address, a default route and a home of its own."""
        return tuple(self._host() for _ in range(count))

    def _host(self) -> Host:
        number = len(self._hosts) + 1
        assert number <= HOSTS_MAX
        namespace = Namespace(f"{self._name}-h{number}")
        self._stack.callback(namespace.delete)
        host = Host(number, namespace, self._bridge, self._home / f"h{number}")
        self._stack.callback(host.close)
        self._hosts.append(host)
        return host

    def cut(self, one: Host, other: Host) -> None:
        """No packet gets from either to the other.

        They still resolve each other's address, as through a firewall; what a
        host that is gone looks like, ``Host.unplug`` shows.
        """
        self.split([one], [other])

    def split(self, one_side: Iterable[Host], other_side: Iterable[Host]) -> None:
        """No packet gets from one side to the other."""
        for one, other in itertools.product(tuple(one_side), tuple(other_side)):
            self._cuts |= {(one, other), (other, one)}
        self._filter()

    def cut_one_way(self, source: Host, target: Host) -> None:
        """No packet gets from ``source`` to ``target``; the other way they do."""
        self._cuts.add((source, target))
        self._filter()

    def lose(self, share: float) -> None:
        """Each packet between hosts is lost with this probability."""
        self._loss = share
        self._filter()

    def heal(self) -> None:
        """Ends all cuts and losses.  What was unplugged or slow remains so."""
        self._cuts.clear()
        self._loss = 0.0
        self._filter()

    def _filter(self) -> None:
        drops = [
            f"iifname {source.ports} oifname {target.ports} drop" for source, target in self._cuts
        ]
        if self._loss:
            drops.append(f"numgen random mod 1000000 < {round(self._loss * 1_000_000)} drop")
        rules = ["type filter hook forward priority 0; policy accept", "ether type arp accept"]
        self._bridge.nft(table("bridge", forward=rules + drops))

    def close(self) -> None:
        """Ends every process of the lab and removes it; may be repeated."""
        for host in self._hosts:
            host.terminate()  # all at once, so that they end at the same time
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Host:
    """One host: ``eth0``, its own address, and the home of one user."""

    def __init__(self, number: int, namespace: Namespace, bridge: Namespace, home: Path) -> None:
        self.address = f"10.77.0.{number}"
        self.home = home
        #: What the bridge may know it by, as nftables writes it: with and without delay, and
        #: after a change of its interface.
        self.ports = f'{{ "p{number}", "q{number}", "r{number}" }}'
        self._port = f"p{number}"  # the one that it is known by now
        self._interface = "eth0"
        self._number = number
        self._namespace = namespace
        self._bridge = bridge
        self._processes: list[Process] = []
        self._wire: Process | None = None
        # An address is usable at once: on a real host that has long been checked.
        namespace.set("ipv6/conf/default/accept_dad", 0)
        namespace.ip("link set lo up")
        self._connect(f"02:00:00:00:00:{number:02x}")

    def _connect(self, mac: str) -> None:
        """Makes the interface and its cable to the bridge."""
        name, there = self._interface, self._namespace.name
        self._bridge.ip(f"link add {self._port} type veth peer name {name} netns {there}")
        self._bridge.ip(f"link set {self._port} up")
        self.plug_in()
        self._namespace.ip(f"addr add {self.address}/24 dev {name}")
        self._namespace.ip(f"link set {name} address {mac}")
        # Packets leave one by one, as long as the network's, so that each is lost for itself.
        self._namespace.ip(f"link set {name} gso_max_segs 1")
        self.bring_up()

    def __repr__(self) -> str:
        return f"Host({self.address})"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Becomes the command behind it, on this host."""
        return self._namespace.prefix

    def start(self, *command: str, env: dict[str, str] | None = None) -> Process:
        """Starts a command that prints JSON lines; it ends with the lab.

        All processes of a host share its home and its runtime directory.
        """
        process = Process(command, home=self.home, env=env, prefix=self._namespace.prefix)
        self._processes.append(process)
        return process

    def run(self, *command: str, timeout: float = HANG_GUARD) -> subprocess.CompletedProcess[str]:
        """Runs a command that ends by itself."""
        return run(*command, home=self.home, prefix=self._namespace.prefix, timeout=timeout)

    def unplug(self) -> None:
        """Its cable is out of the bridge: every frame vanishes, and nothing here shows it."""
        self._bridge.ip(f"link set {self._port} nomaster")

    def plug_in(self) -> None:
        """The opposite of ``unplug``."""
        self._bridge.ip(f"link set {self._port} master br0")

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Its cable takes this long each way, give or take ``jitter``; frames keep their order.

        What is under way when this changes is lost.
        """
        port, inner = f"q{self._number}", f"w{self._number}"
        if self._wire:
            self._wire.close()
        else:
            self._bridge.ip(f"link set {self._port} nomaster")
            self._bridge.ip(f"link add {port} type veth peer name {inner}")
            self._bridge.ip(f"link set {inner} up")
            self._bridge.ip(f"link set {port} up master br0")
            self._port = port
        program = (sys.executable, "-m", "tests.lab.wire")
        self._wire = Process(
            [*program, f"p{self._number}", inner, str(seconds), str(jitter)],
            home=self.home,
            prefix=self._bridge.prefix,
        )
        self._wire.event("ready")

    def readdress(self, address: str) -> None:
        """It has this address instead of its own."""
        self._namespace.ip(f"addr del {self.address}/24 dev {self._interface}")
        self._namespace.ip(f"addr add {address}/24 dev {self._interface}")
        self.address = address

    def change_interface(self, name: str, address: str) -> None:
        """It has this interface and this address instead of its own: Wi-Fi, not a cable, say.
        Not for a host whose cable is slow."""
        self._namespace.ip(f"link delete {self._interface}")
        self._interface, self._port, self.address = name, f"r{self._number}", address
        self._connect(f"02:00:00:00:01:{self._number:02x}")

    def take_down(self) -> None:
        """Its interface is down: there is no way out, and who asks its kernel is told."""
        self._namespace.ip(f"link set {self._interface} down")

    def bring_up(self) -> None:
        """The opposite of ``take_down``; routes are made anew."""
        self._namespace.ip(f"link set {self._interface} up")
        self._namespace.ip(f"route add default via {_GATEWAY}")

    def add_container_bridge(self) -> None:
        """A bridge as docker makes it, with the address that it has on every host."""
        self._namespace.ip("link add docker0 type bridge")
        self._namespace.ip(f"addr add {CONTAINER_BRIDGE}/16 dev docker0")
        self._namespace.ip("link set docker0 up")

    def limit_backlogs(self, connections: int) -> None:
        """Its kernel keeps so many for a listener that does not take them, and one more."""
        self._namespace.set("core/somaxconn", connections)

    def block_multicast(self) -> None:
        """Its firewall drops multicast, also between processes of this host."""
        drops = ["ip daddr 224.0.0.0/4 drop", "ip6 daddr ff02::fb drop"]
        self._namespace.nft(
            table(
                "inet",
                inbound=["type filter hook input priority 0; policy accept", *drops],
                outbound=["type filter hook output priority 0; policy accept", *drops],
            )
        )

    def terminate(self) -> None:
        """Asks every process that was started here to end."""
        for process in self._processes:
            process.signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends every process that was started here."""
        for process in (*self._processes, *filter(None, [self._wire])):
            process.close()


def table(family: str, **chains: list[str]) -> str:
    """One nftables table, instead of the one that was there before."""
    lines = [f"add table {family} lab", f"delete table {family} lab", f"table {family} lab {{"]
    for name, rules in chains.items():
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}", ""])
