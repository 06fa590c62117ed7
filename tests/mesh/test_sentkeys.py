"""Sends with an ``Idempotency-Key`` at a real node that is killed: each is one message."""

from __future__ import annotations

import signal
import sys
from typing import Any, Final

import pytest

from tests.http.wire import Connection, Reply, post
from tests.mesh.conftest import RealMesh, instance
from tests.processes import Process

#: ``p2pmesh``, killed by itself when a key is on disk, before its send is answered.
MORTAL: Final = (
    sys.executable,
    "-c",
    """
import os, signal, sys
from p2pmesh.__main__ import main
from p2pmesh.driver import Driver, Saved
from p2pmesh.protocol.types import Save
with_key = []
def witness(driver, happened):
    match happened:
        case Save(number, changes) if any(each.table == "sent_keys" for each in changes):
            with_key.append(number)
        case Saved(number) if with_key and with_key[0] <= number:
            os.kill(os.getpid(), signal.SIGKILL)
Driver.witness = witness
sys.exit(main())
""",
)
UUID7: Final = "01890a5d-ac96-774b-bcce-b302099a8057"


class Door:
    """A node with a data directory, to which a client speaks, and a recipient without."""

    def __init__(self, mesh: RealMesh) -> None:
        self._mesh = mesh
        self.recipient = mesh.joined("--name", "recipient", "--no-mdns")

    def start(self, **command: Any) -> None:
        place = ("--data-dir", str(self._mesh.home / "door"), "--http", "127.0.0.1:0")
        self.process: Process = self._mesh.joined("--name", "door", *place, "--no-mdns", **command)
        self.process.event("member_joined", name="recipient")

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        self.process.wait()

    def send(self, payload: Any, key: str | None, *, is_to_all: bool = False) -> Reply:
        target = {} if is_to_all else {"target_instance": instance(self.recipient)}
        body = {"message_type": "Notification", "payload": payload, **target}
        keyed = () if key is None else (f"idempotency-key: {key}",)
        url = str(self.process.event("ready")["http"]).removeprefix("http://")
        with Connection(url) as connection:
            return connection.ask(post("/messages/send/client", body, *keyed))

    def received(self, *, is_to_all: bool) -> list[tuple[Any, str]]:
        """Payload and id of all that came by the time that one comes that is sent now, the
        same way, after the first: that may have to be repaired."""
        self.recipient.event("message", payload=1)
        assert self.send("the last", None, is_to_all=is_to_all).status == 200
        self.recipient.event("message", payload="the last")
        messages = [line for line in self.recipient.lines if line["event"] == "message"]
        return [(line["payload"], line["message_id"]) for line in messages][:-1]


@pytest.mark.parametrize("key", ["a key", UUID7])
@pytest.mark.parametrize("is_to_all", [False, True], ids=["to one", "to all"])
def test_a_send_is_one_message_though_its_node_is_killed_after_the_answer(
    real_mesh: RealMesh, key: str, is_to_all: bool
) -> None:
    door = Door(real_mesh)
    door.start()
    first = door.send(1, key, is_to_all=is_to_all)
    assert first.status == 200
    door.recipient.event("message", payload=1)
    door.kill()
    door.start()
    assert door.send(2, key, is_to_all=is_to_all).status == 422
    again = door.send(1, key, is_to_all=is_to_all)
    assert again.status == 200
    for field in ("message_id", "status", "delivered_to"):
        assert again.json[field] == first.json[field]
    assert door.received(is_to_all=is_to_all) == [(1, first.json["message_id"])]


@pytest.mark.parametrize("key", ["a key", UUID7])
@pytest.mark.parametrize("is_to_all", [False, True], ids=["to one", "to all"])
def test_a_send_is_one_message_though_its_node_dies_when_it_is_on_disk_and_not_answered(
    real_mesh: RealMesh, key: str, is_to_all: bool
) -> None:
    door = Door(real_mesh)
    door.start(command=MORTAL)
    with pytest.raises((AssertionError, OSError)):
        door.send(1, key, is_to_all=is_to_all)
    assert door.process.wait() == -signal.SIGKILL
    door.start()
    assert door.send(2, key, is_to_all=is_to_all).status == 422
    again = door.send(1, key, is_to_all=is_to_all)
    assert again.status == 200
    assert instance(door.recipient) in again.json["delivered_to"]
    assert door.received(is_to_all=is_to_all) == [(1, again.json["message_id"])]
