"""Which addresses are used: the decision as tables over plain facts, the reader
on a made-up /sys and /proc and on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.transport.interfaces import (
    Address,
    Interface,
    Selection,
    choose,
    read_interfaces,
    watch_interfaces,
)

LO = Interface("lo", (Address("127.0.0.1", 8), Address("::1", 128)), physical=False)
NIC = Interface(
    "enp3s0",
    (Address("192.168.1.7", 24), Address("fd12::7", 64), Address("fe80::7", 64)),
    physical=True,
    default_route=True,
)
WIFI = Interface("wlp2s0", (Address("192.168.1.8", 24),), physical=True)
DOCKER = Interface("docker0", (Address("172.17.0.1", 16),), physical=False)


def virtual(name: str, ip: str = "10.9.0.1", *, default_route: bool = False) -> Interface:
    return Interface(name, (Address(ip, 24),), physical=False, default_route=default_route)


def reasons(selection: Selection) -> dict[str, str]:
    return {c.address: c.reason for c in selection.choices if not c.used}


def test_the_nic_is_used_v4_first_and_its_link_local_address_is_not() -> None:
    selection = choose((LO, NIC))
    assert selection.advertised == ("192.168.1.7", "fd12::7")
    assert reasons(selection) == {
        "127.0.0.1": "loopback",
        "::1": "loopback",
        "fe80::7": "link-local",
    }


def test_loopback_is_listened_on_but_not_told_to_others() -> None:
    selection = choose((LO, NIC))
    assert selection.bound == ("192.168.1.7", "fd12::7", "127.0.0.1", "::1")


def test_the_default_route_comes_before_other_nics() -> None:
    other = Interface("enp9s0", (Address("10.0.0.7", 24),), physical=True)
    assert choose((LO, other, NIC)).advertised[0] == "192.168.1.7"


def test_two_nics_are_both_used() -> None:
    assert set(choose((LO, NIC, WIFI)).advertised) == {"192.168.1.7", "fd12::7", "192.168.1.8"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("docker0", "containers"),
        ("docker_gwbridge", "containers"),
        ("br-0123456789ab", "containers"),
        ("virbr0", "containers"),
        ("veth12ab", "containers"),
        ("cni0", "containers"),
        ("podman0", "containers"),
        ("tun0", "tunnel"),
        ("wg0", "tunnel"),
        ("utun3", "tunnel"),
        ("tailscale0", "tunnel"),
        ("awdl0", "operating system"),
        ("dummy0", "no default route"),
    ],
)
def test_what_is_not_the_lan_is_skipped_with_a_reason(name: str, why: str) -> None:
    selection = choose((LO, virtual(name), NIC))
    assert "10.9.0.1" not in selection.bound
    assert why in reasons(selection)["10.9.0.1"]


def test_a_vpn_that_took_the_default_route_is_still_a_vpn() -> None:
    selection = choose((LO, virtual("wg0", default_route=True), WIFI))
    assert selection.advertised == ("192.168.1.8",)


@pytest.mark.parametrize("name", ["br0", "bridge-lan", "bond0", "vlan7"])
def test_a_bridge_or_bond_with_a_physical_port_is_used(name: str) -> None:
    bridge = Interface(name, (Address("192.168.1.9", 24),), physical=True)
    assert choose((LO, DOCKER, bridge)).advertised == ("192.168.1.9",)


def test_a_bridge_without_a_physical_port_is_skipped() -> None:
    assert "10.9.0.1" not in choose((LO, virtual("br0"), NIC)).bound


@pytest.mark.parametrize("default_route", [True, False])
def test_a_containers_eth0_is_used_though_it_is_a_veth_end(default_route: bool) -> None:
    eth0 = virtual("eth0", "172.17.0.5", default_route=default_route)
    assert choose((LO, eth0)).advertised == ("172.17.0.5",)


def test_a_virtual_interface_with_the_default_route_is_used() -> None:
    assert choose((LO, virtual("ens0", default_route=True))).advertised == ("10.9.0.1",)


def test_where_the_system_does_not_tell_what_an_interface_is_names_decide() -> None:
    en0 = Interface("en0", (Address("192.168.1.7", 24),))
    utun = Interface("utun0", (Address("10.8.0.2", 24),))
    assert choose((LO, utun, en0)).advertised == ("192.168.1.7",)


def test_what_was_skipped_is_used_when_nothing_else_is_left() -> None:
    selection = choose((LO, DOCKER, virtual("tun0")))
    assert selection.advertised == ("172.17.0.1", "10.9.0.1")
    assert {c.reason for c in selection.choices if c.used} == {"nothing better is there"}


def test_loopback_is_advertised_only_when_it_is_all_there_is() -> None:
    assert choose((LO,)).advertised == ("127.0.0.1", "::1")
    down = Interface("eth0", (Address("192.168.1.7", 24),), up=False, physical=True)
    assert choose((LO, down)).advertised == ("127.0.0.1", "::1")


def test_a_machine_without_any_interface_still_listens_on_loopback() -> None:
    selection = choose(())
    assert selection.advertised == ()
    assert selection.bound == ("127.0.0.1",)


def test_loopback_is_used_beside_the_others_when_asked_for() -> None:
    assert choose((LO, WIFI), loopback=True).advertised == ("192.168.1.8", "127.0.0.1", "::1")


def test_asking_for_loopback_does_not_hide_the_last_resort() -> None:
    assert choose((LO, DOCKER), loopback=True).advertised == ("172.17.0.1", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (Address("169.254.3.4", 16), "link-local"),
        (Address("2001:db8::9", 64, settled=False), "deprecated"),
        (Address("fd12::9", 64, temporary=True), "temporary"),
    ],
)
def test_addresses_that_will_not_last_are_skipped(address: Address, why: str) -> None:
    nic = Interface("eth0", (address, Address("fd12::1", 64)), physical=True)
    selection = choose((nic,))
    assert selection.advertised == ("fd12::1",)
    assert why in reasons(selection)[address.ip]


def test_a_temporary_address_is_better_than_none() -> None:
    nic = Interface("eth0", (Address("fd12::9", 64, temporary=True),), physical=True)
    assert choose((LO, nic)).advertised == ("fd12::9",)


@pytest.mark.parametrize("public", ["8.8.4.4", "2606:4700::1"])
def test_an_open_mesh_stays_off_public_addresses_and_a_keyed_one_uses_them(public: str) -> None:
    host = Interface("eth0", (Address(public, 20),), physical=True, default_route=True)
    refused = choose((LO, host), open_mesh=True)
    assert public not in refused.bound
    assert "key" in reasons(refused)[public]
    assert refused.advertised == ("127.0.0.1", "::1")
    assert choose((LO, host), open_mesh=False).advertised == (public,)


def test_a_record_carries_four_addresses_at_most() -> None:
    nic = Interface("eth0", tuple(Address(f"10.0.0.{n}", 24) for n in range(9)), physical=True)
    selection = choose((LO, nic))
    assert len(selection.advertised) == 4
    assert len(selection.bound) == 9 + 2


# --- bind ---------------------------------------------------------------------


def test_bind_means_exactly_these_addresses() -> None:
    selection = choose((LO, NIC, DOCKER), bind=("172.17.0.1", "127.0.0.1"))
    assert selection.advertised == selection.bound == ("172.17.0.1", "127.0.0.1")
    assert set(reasons(selection).values()) == {"not named by bind"}


def test_any_loopback_address_can_be_bound() -> None:
    assert choose((LO, NIC), bind=("127.0.0.9",)).bound == ("127.0.0.9",)


def test_binding_the_wildcard_means_every_address_of_its_family() -> None:
    assert choose((LO, NIC, DOCKER), bind=("0.0.0.0",)).bound == ("192.168.1.7", "172.17.0.1")
    assert choose((LO, NIC, DOCKER), bind=("::",)).bound == ("fd12::7",)


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("eth0", "not an IP address"),
        ("10.1.1.1", r"not an address of this machine, which has .*192\.168\.1\.7 \(enp3s0\)"),
        ("fe80::7", "link-local"),
        ("8.8.4.4", "open mesh"),
    ],
)
def test_a_bind_that_cannot_be_honoured_says_why(bind: str, message: str) -> None:
    public = Interface("eth1", (Address("8.8.4.4", 24),), physical=True)
    with pytest.raises(ConfigError, match=message):
        choose((LO, NIC, public), bind=(bind,))


def test_a_keyed_mesh_may_bind_a_public_address() -> None:
    public = Interface("eth1", (Address("8.8.4.4", 24),), physical=True)
    assert choose((public,), bind=("8.8.4.4",), open_mesh=False).bound == ("8.8.4.4",)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.168.1.200", True),
        ("192.168.2.1", False),
        ("172.17.3.3", True),
        ("127.0.0.1", True),
        ("fd12::99", True),
        ("fd13::99", False),
        ("fe80::1%enp3s0", True),
        ("::ffff:192.168.1.5", True),
        ("8.8.8.8", False),
    ],
)
def test_on_link_is_what_this_machine_is_attached_to(host: str, expected: bool) -> None:
    assert choose((LO, NIC, DOCKER)).is_on_link(host) is expected


# --- the reader -----------------------------------------------------------------


def test_the_reader_finds_loopback_here() -> None:
    found = {a.ip for interface in read_interfaces() for a in interface.addresses}
    assert "127.0.0.1" in found


def test_the_reader_follows_a_bridge_to_its_nic_and_reads_routes_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    for name, state in {"br0": "up", "bond0": "up", "eno1": "up", "docker0": "down"}.items():
        (sys / name).mkdir(parents=True)
        (sys / name / "operstate").write_text(state)
    (sys / "br0" / "lower_bond0").mkdir()
    (sys / "bond0" / "lower_eno1").mkdir()
    (sys / "eno1" / "device").mkdir()
    proc.mkdir()
    (proc / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "docker0\t000011AC\t0\t1\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "br0\t00000000\t010200C0\t3\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    (proc / "ipv6_route").write_text(
        f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200       lo\n"
    )
    (proc / "if_inet6").write_text("fd120000000000000000000000000007 02 40 00 a1      br0\n")
    adapters = [
        fake_adapter("br0", "192.168.1.7", ("fd12::7", 0, 0)),
        fake_adapter("docker0", "172.17.0.1"),
        fake_adapter("mystery0", "10.0.0.1"),
    ]
    monkeypatch.setattr("p2pmesh.transport.interfaces.ifaddr.get_adapters", lambda: adapters)
    br0, docker0, mystery0 = read_interfaces(sys, proc)
    assert (br0.up, br0.physical, br0.default_route) == (True, True, True)
    assert br0.addresses[1] == Address("fd12::7", 24, temporary=True, settled=False)
    assert (docker0.up, docker0.physical, docker0.default_route) == (False, False, False)
    assert (mystery0.up, mystery0.physical) == (True, None)


def fake_adapter(name: str, *ips: str | tuple[str, int, int]) -> object:
    class Ip:
        def __init__(self, ip: str | tuple[str, int, int]) -> None:
            self.ip = ip
            self.network_prefix = 24

    class Adapter:
        def __init__(self) -> None:
            self.name = name
            self.ips = [Ip(ip) for ip in ips]

    return Adapter()


# --- changes --------------------------------------------------------------------


async def test_only_a_change_of_what_is_used_is_reported() -> None:
    looks = [choose((LO, NIC)), choose((LO, NIC, DOCKER)), choose((LO, WIFI)), choose((LO, WIFI))]
    seen: list[Selection] = []
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def look() -> Selection:
        if not looks:
            loop.call_soon_threadsafe(done.set)
            raise OSError("no more")
        return looks.pop(0)

    async def changed(selection: Selection) -> None:
        seen.append(selection)

    task = asyncio.create_task(watch_interfaces(choose((LO, NIC)), look, changed, interval=0))
    await done.wait()
    task.cancel()
    assert [s.advertised for s in seen] == [("192.168.1.8",)]
