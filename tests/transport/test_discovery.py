"""mDNS, with real multicast on the loopback interface."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import DNSOutgoing, DNSPointer, Zeroconf, const
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.types import Candidate, FoundBy
from p2pmesh.transport import discovery
from p2pmesh.transport.discovery import (
    SERVICE_TYPE,
    Advert,
    Discovery,
    Offer,
    browse_for,
    read_offer,
)

LOOPBACK = ("127.0.0.1",)
HANG = 20.0


@pytest.fixture
def mesh_id() -> bytes:
    return secrets.token_bytes(8)


class Seen:
    """One node's discovery, and what it reported so far."""

    def __init__(self, zeroconf: Zeroconf | AsyncZeroconf | None = None) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.reports: list[str] = []
        self._changed = asyncio.Event()
        self.discovery = Discovery(self._found, self._lost, zeroconf=zeroconf)

    def _found(self, candidate: Candidate) -> None:
        self.candidates[candidate.key] = candidate
        self.reports.append("found")
        self._changed.set()

    def _lost(self, key: str) -> None:
        del self.candidates[key]
        self.reports.append("lost")
        self._changed.set()

    async def until(self, condition: Callable[[Seen], bool]) -> None:
        async with asyncio.timeout(HANG):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def until_found(self, node_id: bytes) -> Candidate:
        await self.until(lambda seen: any(c.node_id == node_id for c in seen.candidates.values()))
        return next(c for c in self.candidates.values() if c.node_id == node_id)


Start = Callable[..., "asyncio.Future[Seen]"]


@pytest.fixture
async def start(mesh_id: bytes) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def run(number: int, mesh: bytes = mesh_id, **options: object) -> Seen:
            seen = Seen(**options)  # type: ignore[arg-type]
            assert await seen.discovery.start(advert(number, mesh))
            stack.push_async_callback(seen.discovery.close)
            return seen

        yield run


def advert(number: int, mesh_id: bytes, port: int | None = None) -> Advert:
    return Advert(node_id(number), mesh_id, b"k" * 6, "open", LOOPBACK, port or 8000 + number)


def node_id(number: int) -> bytes:
    return bytes([number]) * 32


async def test_two_nodes_see_each_other_whoever_came_first(start: Start) -> None:
    first = await start(1)
    second = await start(2)
    seen = await first.until_found(node_id(2))
    assert seen == Candidate(seen.key, ("127.0.0.1:8002",), FoundBy.MDNS, node_id(2))
    await second.until_found(node_id(1))


async def test_nobody_is_offered_itself(start: Start) -> None:
    first, second = await start(1), await start(2)
    await first.until_found(node_id(2))
    await second.until_found(node_id(1))
    for own, seen in ((1, first), (2, second)):
        assert node_id(own) not in {c.node_id for c in seen.candidates.values()}


async def test_a_goodbye_ends_the_candidate(start: Start) -> None:
    first, second = await start(1), await start(2)
    await first.until_found(node_id(2))
    await second.discovery.close()
    await first.until(lambda seen: not seen.candidates)


async def test_other_meshes_are_counted_and_not_offered(start: Start) -> None:
    first = await start(1)
    await start(2, secrets.token_bytes(8))
    await start(3)
    await first.until_found(node_id(3))
    assert len(first.candidates) == 1
    assert first.discovery.other_meshes >= 1


async def test_a_changed_port_is_offered_again_under_the_same_key(
    start: Start, mesh_id: bytes
) -> None:
    first, second = await start(1), await start(2)
    before = await first.until_found(node_id(2))
    assert await second.discovery.update(advert(2, mesh_id, port=9000))
    await first.until(lambda s: addresses(s) == {"127.0.0.1:9000"})
    assert list(first.candidates) == [before.key]


def addresses(seen: Seen) -> set[str]:
    """Of all candidates; mDNS keeps no order."""
    return {a for candidate in seen.candidates.values() for a in candidate.addresses}


async def test_a_new_address_is_advertised_at_and_listened_at(start: Start, mesh_id: bytes) -> None:
    first, second = await start(1), await start(2)
    before = await first.until_found(node_id(2))
    both = ("127.0.0.1", "127.0.0.2")
    assert await second.discovery.update(advert(2, mesh_id)._replace(hosts=both))
    await first.until(lambda s: addresses(s) == {"127.0.0.1:8002", "127.0.0.2:8002"})
    assert list(first.candidates) == [before.key]
    only = ("127.0.0.2",)
    assert await second.discovery.update(advert(2, mesh_id)._replace(hosts=only))
    third = await start(3)
    await second.until_found(node_id(3))
    await third.until_found(node_id(2))


async def test_the_applications_own_zeroconf_is_used_and_left_running(start: Start) -> None:
    async with AsyncZeroconf(interfaces=list(LOOPBACK)) as given:
        mine = await start(1, zeroconf=given)
        facade = await start(2, zeroconf=given.zeroconf)
        other = await start(3)
        await mine.until_found(node_id(3))
        await facade.until_found(node_id(1))
        await other.until_found(node_id(1))
        await mine.discovery.close()
        assert not given.zeroconf.done
        await other.until(lambda seen: len(seen.candidates) == 1)


async def test_a_zeroconf_of_another_loop_is_refused(mesh_id: bytes) -> None:
    with Zeroconf(interfaces=list(LOOPBACK), use_asyncio=False) as foreign:
        seen = Seen(foreign)
        with pytest.raises(ConfigError, match="event loop"):
            await seen.discovery.start(advert(1, mesh_id))


async def test_a_host_without_multicast_is_one_warning(
    mesh_id: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**options: object) -> AsyncZeroconf:
        raise OSError(19, "No such device")

    monkeypatch.setattr(discovery, "AsyncZeroconf", refuse)
    seen = Seen()
    with caplog.at_level(logging.WARNING):
        assert not await seen.discovery.start(advert(1, mesh_id))
        await seen.discovery.close()
    (record,) = caplog.records
    assert "--peer" in record.message
    assert "No such device" in record.message


async def test_discovery_that_could_not_start_does_with_the_next_addresses(
    mesh_id: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    with monkeypatch.context() as patch:
        patch.setattr(discovery.AsyncZeroconf, "__init__", _refuse)
        assert not await seen.discovery.start(advert(1, mesh_id))
    assert await seen.discovery.update(advert(1, mesh_id))
    await seen.discovery.close()


def _refuse(self: object, **options: object) -> None:
    raise OSError(19, "No such device")


async def test_browsing_alone_lists_offers_of_every_mesh(start: Start, mesh_id: bytes) -> None:
    await start(1)
    other = secrets.token_bytes(8)
    await start(2, other)
    wanted = {(node_id(1), mesh_id.hex()), (node_id(2), other.hex())}
    seen: set[tuple[bytes | None, str]] = set()
    async with asyncio.timeout(HANG):
        while not wanted <= seen:
            seen |= {(offer.node_id, offer.mesh_id) for offer in await browse_for(0.7, LOOPBACK)}


def test_the_advertisement_is_short(mesh_id: bytes) -> None:
    keyed = advert(1, mesh_id)._replace(mode="keyed")
    info = Discovery(print, print)._advertisement(keyed)
    assert len(info.text) <= 200


# --- hostile contents -----------------------------------------------------------


async def test_junk_on_the_group_harms_nobody(
    start: Start, mesh_id: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = await start(1)
    txt = {"mesh": mesh_id.hex()}
    async with AsyncZeroconf(interfaces=list(LOOPBACK)) as attacker:
        for number, (port, properties, hosts) in enumerate(
            [
                (0, txt, ["127.0.0.1"]),
                (1, b"\xff" * 9, ["127.0.0.1"]),
                (1, b"\x00\x05id", ["127.0.0.1"]),
                (1, txt, ["0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1", "::"]),
                (7, txt | {"id": "x" * 64}, [f"127.0.0.{n}" for n in range(1, 40)]),
            ]
        ):
            info = AsyncServiceInfo(
                SERVICE_TYPE,
                f"Ünicode {number} {'x' * 30}.{SERVICE_TYPE}",
                port=port,
                properties=properties,  # type: ignore[arg-type]
                parsed_addresses=hosts,
                server=f"{secrets.token_hex(4)}.local.",
            )
            await attacker.async_register_service(info, cooperating_responders=True)
        _send_pointers(attacker.zeroconf, ["", ".", "a.b._other._tcp.local.", "x" * 60])
        _send_raw([b"", b"\0", b"\xff" * 1400, b"\0" * 12 + b"\xc0\x0c" * 600])
        second = await start(2)
        await first.until_found(node_id(2))
        await second.until_found(node_id(1))
        await first.until(lambda seen: len(seen.candidates) == 2)
        (offered,) = [c for c in first.candidates.values() if c.node_id is None]
    assert len(offered.addresses) == discovery.OFFER_ADDRESSES_MAX
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def _send_pointers(zc: Zeroconf, names: list[str]) -> None:
    out = DNSOutgoing(const._FLAGS_QR_RESPONSE | const._FLAGS_AA)
    for name in names:
        target = name if name.endswith("local.") else f"{name}.{SERVICE_TYPE}".lstrip(".")
        pointer = DNSPointer(SERVICE_TYPE, const._TYPE_PTR, const._CLASS_IN, 120, target)
        out.add_answer_at_time(pointer, 0)
    zc.async_send(out)


def _send_raw(packets: list[bytes]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        interface = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        for packet in packets:
            sender.sendto(packet, ("224.0.0.251", 5353))


@given(
    txt=st.binary(max_size=300),
    port=st.integers(0, 65535),
    addresses=st.lists(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)),
)
def test_no_service_is_too_strange_to_read(txt: bytes, port: int, addresses: list[bytes]) -> None:
    name = f"x.{SERVICE_TYPE}"
    info = AsyncServiceInfo(SERVICE_TYPE, name, port=port, properties=txt, addresses=addresses)
    offer = read_offer(info)
    assert offer is None or len(offer.addresses) <= discovery.OFFER_ADDRESSES_MAX


def test_a_flood_of_offers_is_bounded(mesh_id: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "OFFERS_MAX", 10)
    found: list[Candidate] = []
    node = Discovery(found.append, lambda key: None)
    node._mesh_id = mesh_id.hex()
    for number in range(50):
        mesh = mesh_id.hex() if number % 2 else "ff" * 8
        node._offered(Offer(f"{number}.x", ("10.0.0.1:1",), None, mesh, "", "open"))
    assert len(found) == 10
    assert node.other_meshes == 10


# --- fork -----------------------------------------------------------------------


async def test_a_forked_child_lets_go_of_the_sockets_and_the_parent_keeps_them(
    start: Start,
) -> None:
    first = await start(1)
    pid = os.fork()
    if pid == 0:
        first.discovery.drop_in_child()
        os._exit(sum("socket:" in _target(fd) for fd in os.listdir("/proc/self/fd")) != _others())
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    second = await start(2)
    await first.until_found(node_id(2))
    await second.until_found(node_id(1))


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _others() -> int:
    """Sockets of a loop itself: the pair that wakes it."""
    return 2
