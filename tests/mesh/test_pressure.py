"""Real processes that send faster than somebody takes: who is told, and who pays."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any, Final

from p2pmesh.protocol import limits
from tests.mesh.conftest import RealMesh, all_alive, instance
from tests.processes import Process

ROOM: Final = limits.MAILBOX_MESSAGES_MAX
BURST: Final = 6_000
#: Far more than allocators keep for themselves, far less than what a burst weighs.
FLAT_MIB: Final = 8.0

#: An agent that answers queries and takes half a minute for everything else.
NEVER_DONE: Final = """
import asyncio, json, sys
from p2pmesh import Node

async def main():
    node = Node("slow", mesh=sys.argv[1], http=None)
    taken = 0

    @node.on("Notification")
    async def take(message):
        print(json.dumps({"event": "took", "payload": message.payload}), flush=True)
        await asyncio.sleep(30)

    async with node:
        print(json.dumps({"event": "ready", "instance_id": node.instance_id}), flush=True)
        await node.serve_forever()

asyncio.run(main())
"""

#: Sends as fast as it can to one, between requests to another, and says what it met.
FLOODS: Final = """
import asyncio, json, sys
from p2pmesh import Node, QueueFull

def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

async def main():
    mesh, slow, quick, pid, burst = *sys.argv[1:5], int(sys.argv[5])
    async with Node("sender", mesh=mesh, http=None) as node:
        await node.wait_for(id=slow, timeout=30)
        await node.wait_for(id=quick, timeout=30)
        sizes = []
        for number in range(3):
            accepted = refused = 0
            why = ""
            for sent in range(burst):
                try:
                    node.send_nowait(slow, "x" * 1000)
                    accepted += 1
                except QueueFull as error:
                    refused += 1
                    why = str(error)
                if sent % 500 == 0:
                    assert (await node.request(quick, sent, timeout=30)).payload == sent
            sizes.append([memory("self"), memory(pid)])
            told = {"event": "burst", "accepted": accepted, "refused": refused, "why": why}
            print(json.dumps(told), flush=True)
        print(json.dumps({"event": "memory", "mib": sizes}), flush=True)

asyncio.run(main())
"""


def script(mesh: RealMesh, source: str, *arguments: str) -> Process:
    return mesh.launch((sys.executable, "-c", source, mesh.name, *arguments))


def test_a_sender_learns_of_a_slow_consumer_and_nobody_grows(real_mesh: RealMesh) -> None:
    quick = real_mesh.joined("--echo", "--name", "quick")
    slow = script(real_mesh, NEVER_DONE)
    slow_id = instance(slow)
    sender = script(real_mesh, FLOODS, slow_id, instance(quick), str(slow.pid), str(BURST))
    bursts = [line.value for line in _bursts(sender, 3)]
    accepted = [burst["accepted"] for burst in bursts]
    assert accepted[0] >= ROOM
    assert ROOM <= sum(accepted) <= ROOM + 10, "what the slow one finished, and no more"
    assert all(burst["accepted"] + burst["refused"] == BURST for burst in bursts)
    assert slow_id in bursts[-1]["why"]
    assert f"{ROOM:,} messages" in bursts[-1]["why"]
    sizes = sender.event("memory")["mib"]
    for first, last in zip(sizes[0], sizes[-1], strict=True):
        assert last - first < FLAT_MIB, sizes
    slow.event("took")


def _bursts(sender: Process, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        since = found[-1].number + 1 if found else 0
        found.append(sender.event("burst", since=since, timeout=120.0))
    return found


def test_a_guest_that_never_reads_costs_nobody_but_itself(real_mesh: RealMesh) -> None:
    home, other = real_mesh.joined("--name", "home"), real_mesh.joined("--name", "other", "--echo")
    all_alive([home, other])
    for guest in ("deaf", "hearing"):
        body = {
            "instance_id": guest, "hostname": "h", "port": 1,
            "capabilities": [], "agent_profiles": [],
        }  # fmt: skip
        assert _call(home, "/registry/register", body)[0] == 200
    sender = instance(other)
    statuses = []
    for number in range(ROOM + 3):
        if number % 100 == 0:
            _beat(home, "deaf", "hearing")
        statuses.append(_send(other, sender, "deaf")[0])
    assert statuses == [200] * ROOM + [429] * 3
    status, headers, answer = _send(other, sender, "deaf")
    assert (status, bool(headers["Retry-After"])) == (429, True)
    assert "'deaf'" in answer
    _send(home, instance(home), "deaf")  # it finds out with a message
    assert _send(home, instance(home), "deaf")[0] == 429
    assert _send(other, sender, "hearing")[0] == 200
    (message,) = _call(home, "/messages/hearing?wait=30")[2]["messages"]
    assert message["source_instance"] == sender
    ask = {
        "target_instance": sender,
        "message_type": "Query",
        "payload": "still here",
        "timeout": 30,
    }
    assert _call(home, f"/v1/request/{instance(home)}", ask)[2]["payload"] == "still here"
    _beat(home, "deaf", "hearing")
    assert _call(home, "/messages/ack/hearing", {"message_ids": [message["message_id"]]})[0] == 204
    _, _, cast = _send(other, sender, None)
    assert {"deaf", "hearing"} <= set(cast["delivered_to"])
    (second,) = _call(home, "/messages/hearing?wait=30")[2]["messages"]
    assert second["message_id"] == cast["message_id"], "the broadcast reached who had room"
    first = _call(home, "/messages/deaf?limit=600")[2]["messages"]
    ids = {"message_ids": [each["message_id"] for each in first]}
    assert _call(home, "/messages/ack/deaf", ids)[0] == 204
    assert _send(other, sender, "deaf")[0] == 200, "there is room again"


def _beat(process: Process, *guests: str) -> None:
    for guest in guests:
        status = {"status": "healthy", "metrics": None}
        assert _call(process, f"/registry/heartbeat/{guest}", status)[0] == 200


def _send(process: Process, source: str, target: str | None) -> tuple[int, Any, Any]:
    body = {
        "target_instance": target, "message_type": "Notification", "payload": "a word",
        "correlation_id": None,
    }  # fmt: skip
    return _call(process, f"/messages/send/{source}", body)


def _call(process: Process, path: str, body: object = None) -> tuple[int, Any, Any]:
    """Status, headers and body of a call to this node's HTTP API."""
    url = process.event("ready")["http"] + path
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
            return answer.status, answer.headers, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()
