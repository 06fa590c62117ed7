"""A node whose disk, a real one, has no room left."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pmesh import AgentMessage, Delivery, Node, StoreFull
from p2pmesh.protocol.types import MemberFailed, MemberSuspected

HANG = 30.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Half a mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "p2pmesh-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_refuses_messages_and_nothing_else_until_there_is_room(
    small_disk: Path, tmp_path: Path, mesh: str
) -> None:
    def make(name: str, **options: Any) -> Node:
        return Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None, **options)

    sender, watcher = make("sender", data_dir=small_disk), make("watcher")
    async with asyncio.timeout(HANG), sender, watcher:
        async with make("receiver", data_dir=tmp_path / "receiver"):
            target = await sender.wait_for(name="receiver")
        watched = watcher.events()
        accepted: list[Delivery] = []

        async def send_on() -> None:
            while True:
                accepted.append(await sender.send(target, "x" * 20_000))

        with pytest.raises(StoreFull):
            await send_on()
        assert accepted
        with pytest.raises(StoreFull):
            await sender.broadcast("no room for that either")

        @watcher.on("Query")
        async def answer(message: AgentMessage) -> Any:
            return message.payload

        # Membership, gossip and requests know nothing of disks.
        async with make("newcomer") as newcomer:
            await newcomer.wait_for(count=3, timeout=HANG)
            await sender.wait_for(name="newcomer", timeout=HANG)
            answered = await sender.request("watcher", "still there?")
            assert answered.payload == "still there?"
        members = {member.name: member.state for member in watcher.members()}
        assert members["sender"] == "alive"

        got: list[str] = []
        back = make("receiver", data_dir=tmp_path / "receiver")

        @back.on("Notification")
        async def take(message: AgentMessage) -> None:
            got.append(message.message_id)

        async with back:
            for delivery in accepted:
                await delivery.done(HANG)
            accepted.append(await sender.send(target, "there is room again"))
            await accepted[-1].done(HANG)
        assert got == [delivery.message_id for delivery in accepted]
        await watcher.leave()
        told = [event async for event in watched]
        assert not [each for each in told if isinstance(each, MemberSuspected | MemberFailed)]
