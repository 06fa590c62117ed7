"""Where nodes meet: the three places, each with the others out of the way."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pmesh import rendezvous
from p2pmesh.protocol.types import Candidate, FoundBy
from p2pmesh.rendezvous import Presence, Rendezvous
from p2pmesh.transport import discovery
from p2pmesh.transport.runtime import RuntimeEntry, list_nodes, runtime_path

HANG = 20.0


class Place:
    """One node's rendezvous, and what it reported."""

    def __init__(self, mesh: str, number: int, **options: Any) -> None:
        self.node_id = bytes([number]) * 32
        self.reports: asyncio.Queue[Candidate | str] = asyncio.Queue()
        self.presence = Presence(
            node_id=self.node_id,
            mesh_id=mesh.encode()[-8:],
            kid=b"k" * 6,
            is_open=True,
            hosts=("127.0.0.1",),
            port=8000 + number,
            entry=RuntimeEntry(
                pid=os.getpid(),
                mesh=mesh,
                node_id=self.node_id.hex(),
                instance_id=f"agent-{number}",
                addresses=(f"127.0.0.1:{8000 + number}",),
                http=None,
                token=None,
                started=float(number),
            ),
        )
        settings: dict[str, Any] = {"peers": (), "mdns": False} | options
        self.rendezvous = Rendezvous(
            found=self.reports.put_nowait, lost=self.reports.put_nowait, **settings
        )

    async def next(self) -> Candidate | str:
        return await asyncio.wait_for(self.reports.get(), HANG)


Enter = Callable[..., Awaitable[Place]]


@pytest.fixture
async def enter(mesh: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Enter]:
    monkeypatch.setattr(rendezvous, "RUNTIME_POLL_INTERVAL", 0.01)
    monkeypatch.setattr(rendezvous, "CANDIDATE_RETRY", 0.01)
    monkeypatch.setattr(rendezvous, "CANDIDATE_RETRY_MAX", 0.02)
    async with AsyncExitStack() as stack:

        async def start(number: int, **options: Any) -> Place:
            place = Place(mesh, number, **options)
            await place.rendezvous.start(place.presence)
            stack.push_async_callback(place.rendezvous.close)
            return place

        yield start


# --- the runtime directory ---------------------------------------------------------


async def test_nodes_of_one_machine_meet_whoever_came_first_and_miss_who_goes(
    enter: Enter,
) -> None:
    first = await enter(1)
    second = await enter(2)
    seen = await second.next()
    assert isinstance(seen, Candidate)
    assert (seen.addresses, seen.found_by) == (("127.0.0.1:8001",), FoundBy.RUNTIME)
    assert seen.node_id == first.node_id
    met = await first.next()
    assert isinstance(met, Candidate)
    assert met.node_id == second.node_id
    await second.rendezvous.close()
    assert await first.next() == met.key


async def test_changed_addresses_are_offered_again_under_the_same_key(enter: Enter) -> None:
    first, second = await enter(1), await enter(2)
    before = await first.next()
    entry = second.presence.entry._replace(addresses=("127.0.0.1:9999",))
    await second.rendezvous.update(second.presence._replace(entry=entry))
    after = await first.next()
    assert isinstance(before, Candidate)
    assert isinstance(after, Candidate)
    assert (after.key, after.addresses) == (before.key, ("127.0.0.1:9999",))


async def test_a_file_that_does_not_name_a_node_is_still_an_address(
    enter: Enter, mesh: str
) -> None:
    odd = Place(mesh, 9)
    entry = odd.presence.entry._replace(node_id="nonsense")
    await odd.rendezvous.start(odd.presence._replace(entry=entry))
    seen = await (await enter(1)).next()
    assert isinstance(seen, Candidate)
    assert seen.node_id is None
    await odd.rendezvous.close()


async def test_a_directory_that_cannot_be_made_is_one_warning(
    enter: Enter, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("P2PMESH_RUNTIME_DIR", "/proc/no/such/place")
    with caplog.at_level(logging.WARNING):
        place = await enter(1)
        await place.rendezvous.update(place.presence)
    (warning,) = caplog.records
    assert "/proc/no" in warning.message


# --- given peers ---------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[tuple[str, ...] | OSError]:
    """What the resolver says, one after the other; then it does not answer."""
    said: asyncio.Queue[tuple[str, ...] | OSError] = asyncio.Queue()

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        assert (host, port) == ("printer.lan", 7)
        answer = await said.get()
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(rendezvous, "resolve", resolve)
    return said


async def test_a_name_is_asked_for_until_it_leads_somewhere_and_followed_when_it_moves(
    enter: Enter,
    answers: asyncio.Queue[tuple[str, ...] | OSError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for answer in (
        OSError("printer.lan: unknown"),
        OSError("printer.lan: unknown"),
        ("10.0.0.1:7",),
        ("10.0.0.1:7",),
        OSError("printer.lan: unknown"),
        ("10.0.0.2:7", "[fd00::2]:7"),
    ):
        answers.put_nowait(answer)
    with caplog.at_level(logging.WARNING):
        place = await enter(1, peers=["printer.lan:7", "printer.lan:7"])
        first, second = await place.next(), await place.next()
    assert first == Candidate("peer:printer.lan:7", ("10.0.0.1:7",), FoundBy.PEER)
    assert second == Candidate("peer:printer.lan:7", ("10.0.0.2:7", "[fd00::2]:7"), FoundBy.PEER)
    assert [r.message for r in caplog.records] == [
        "peer printer.lan:7: printer.lan: unknown; it is asked for again and again"
    ]


@pytest.mark.parametrize("address", ["10.0.0.1:8078", "[fd00::1]:8078"])
async def test_an_address_is_offered_once_and_never_asked_for_again(
    enter: Enter, address: str
) -> None:
    place = await enter(1, peers=[address])
    assert await place.next() == Candidate(f"peer:{address}", (address,), FoundBy.PEER)


# --- mDNS ------------------------------------------------------------------------------


async def test_nodes_that_share_no_directory_meet_by_mdns(
    enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await enter(1, mdns=True)
    monkeypatch.setenv("P2PMESH_RUNTIME_DIR", str(tmp_path / "another"))
    second = await enter(2, mdns=True)
    for place, other, port in ((first, second, 8002), (second, first, 8001)):
        seen = await place.next()
        assert isinstance(seen, Candidate)
        assert (seen.found_by, seen.node_id) == (FoundBy.MDNS, other.node_id)
        assert seen.addresses == (f"127.0.0.1:{port}",)


async def test_mdns_that_fails_at_the_start_is_tried_again_and_said_once(
    enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: asyncio.Queue[None] = asyncio.Queue()

    def refuse(*args: object, **options: object) -> None:
        attempts.put_nowait(None)
        raise OSError(19, "No such device")

    monkeypatch.setattr(rendezvous, "MDNS_RETRY_INTERVAL", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(discovery.AsyncZeroconf, "__init__", refuse)
        first = await enter(1, mdns=True)
        for _ in range(3):
            await asyncio.wait_for(attempts.get(), HANG)
    monkeypatch.setenv("P2PMESH_RUNTIME_DIR", str(tmp_path / "another"))
    second = await enter(2, mdns=True)
    for place, other in ((first, second), (second, first)):
        seen = await place.next()
        assert isinstance(seen, Candidate)
        assert (seen.found_by, seen.node_id) == (FoundBy.MDNS, other.node_id)
    assert [r.message for r in caplog.records].count("mDNS works now") <= 1
    assert len([r for r in caplog.records if "mDNS does not work" in r.message]) == 1


async def test_nothing_is_left_behind(enter: Enter, mesh: str) -> None:
    place = await enter(1, mdns=True, peers=["127.0.0.1:8078"])
    await place.rendezvous.close()
    await place.rendezvous.close()
    assert await asyncio.to_thread(list_nodes, mesh, runtime_path()) == ()
    assert len(asyncio.all_tasks()) == 1
