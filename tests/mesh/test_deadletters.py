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


def test_what_a_handler_gave_up_survives_kill_9_and_is_handled_once_when_it_is_sent_again(
    real_mesh: RealMesh,
) -> None:
    home = real_mesh.home
    (home / "broken").touch()
    clumsy = real_mesh.launch((sys.executable, "-c", CLUMSY, real_mesh.name))
    clumsy.event("joined")
    flags = ("--name", "sender", "--data-dir", str(home / "sender"), "--no-mdns")
    sender = real_mesh.joined(*flags)
    sender.event("member_joined", name="clumsy")
    sent = command(real_mesh, sender, "send", "clumsy", '{"job": 7}')
    message_id = sent["message_id"]
    sender.event("message_dead", message_id=message_id, reason="RuntimeError: out of order")

    def listed(node: Process) -> list[tuple[str, Any, str]]:
        letters = command(real_mesh, node, "dead-letters")["dead_letters"]
        return [(each["message_id"], each["payload"], each["reason"]) for each in letters]

    there = [(message_id, {"job": 7}, "RuntimeError: out of order")]
    assert listed(sender) == there
    sender.signal(signal.SIGKILL)
    sender.wait()
    again = real_mesh.joined(*flags)
    assert listed(again) == there
    (home / "broken").unlink()
    again.event("member_joined", name="clumsy")
    command(real_mesh, again, "dead-letters", "--retry", "all")

    def is_done() -> bool:
        (recipient,) = ask(again, f"/v1/messages/{message_id}")["recipients"]
        return bool(recipient["state"] == "done")

    eventually(is_done, "it is done")
    assert listed(again) == []
    handled = [line.value for line in clumsy.lines if line["event"] == "handled"]
    assert handled == [{"event": "handled", "message_id": message_id, "payload": {"job": 7}}]
