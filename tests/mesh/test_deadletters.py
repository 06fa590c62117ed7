"""A dead letter between real processes: listed, still there after kill -9, handled at last."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from tests.mesh.conftest import RealMesh, ask
from tests.processes import P2PMESH, Process, environment, eventually

#: An agent whose handler fails as long as a file is there.  It is tried again at once.
CLUMSY = """
import asyncio, json, os, sys
from p2pmesh import Node
from p2pmesh.protocol import timing
timing.HANDLER_RETRY = 0.001
async def main():
    node = Node("clumsy", mesh=sys.argv[1], mdns=False, http=None, data_dir="clumsy")
    @node.on("Notification")
    async def work(message):
        if os.path.exists("broken"):
            raise RuntimeError("out of order")
        print(json.dumps({"event": "handled", "message_id": message.message_id,
                          "payload": message.payload}), flush=True)
    async with node:
        print(json.dumps({"event": "joined"}), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def command(mesh: RealMesh, node: Process, *arguments: str) -> Any:
    """What ``p2pmesh … --json`` says of this node."""
    url = node.event("ready")["http"]
    said = subprocess.run(
        [*P2PMESH, *arguments, "--json", "--url", url],
        env=environment(mesh.home),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


FAULT = "RuntimeError: out of order"


class Workshop:
    """A sender that keeps its messages, and a clumsy agent that could not handle one."""

    def __init__(self, mesh: RealMesh) -> None:
        self.mesh = mesh
        self._broken = mesh.home / "broken"
        self._broken.touch()
        self.clumsy = self.start_clumsy()
        self.sender = self.start_sender()
        self.sender.event("member_joined", name="clumsy")
        sent = command(mesh, self.sender, "send", "clumsy", '{"job": 7}')
        self.message_id = str(sent["message_id"])
        self.sender.event("message_dead", message_id=self.message_id, reason=FAULT)

    def start_clumsy(self) -> Process:
        process = self.mesh.launch((sys.executable, "-c", CLUMSY, self.mesh.name))
        process.event("joined")
        return process

    def start_sender(self) -> Process:
        place = ("--data-dir", str(self.mesh.home / "sender"))
        return self.mesh.joined("--name", "sender", *place, "--no-mdns")

    def repair(self) -> None:
        """The handler works from now on."""
        self._broken.unlink()

    def listed(self) -> list[tuple[str, Any, str]]:
        letters = command(self.mesh, self.sender, "dead-letters")["dead_letters"]
        return [(each["message_id"], each["payload"], each["reason"]) for each in letters]

    def is_done(self) -> bool:
        (recipient,) = ask(self.sender, f"/v1/messages/{self.message_id}")["recipients"]
        return bool(recipient["state"] == "done")

    def handled(self) -> list[Any]:
        return [line["payload"] for line in self.clumsy.lines if line["event"] == "handled"]


def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.wait()


def test_what_a_handler_gave_up_survives_kill_9_and_is_handled_once_when_it_is_sent_again(
    real_mesh: RealMesh,
) -> None:
    shop = Workshop(real_mesh)
    there = [(shop.message_id, {"job": 7}, FAULT)]
    assert shop.listed() == there
    kill(shop.sender)
    shop.sender = shop.start_sender()
    assert shop.listed() == there
    shop.repair()
    command(real_mesh, shop.sender, "dead-letters", "--retry", "all")
    eventually(shop.is_done, "it is done")
    assert shop.listed() == []
    assert shop.handled() == [{"job": 7}]


def test_what_was_said_to_be_sent_again_is_so_though_its_node_is_killed_at_once(
    real_mesh: RealMesh,
) -> None:
    shop = Workshop(real_mesh)
    kill(shop.clumsy)
    shop.repair()
    command(real_mesh, shop.sender, "dead-letters", "--retry", shop.message_id)
    kill(shop.sender)
    shop.sender = shop.start_sender()
    assert shop.listed() == []
    shop.clumsy = shop.start_clumsy()
    eventually(shop.is_done, "it is done")
    assert shop.handled() == [{"job": 7}]
