"""Guests as they are outside: programs that speak plain HTTP to whichever node is at hand.

``Beater`` is a client of the registry that knows three calls and one address.  ``Roamer``
reads and acknowledges through any node, at random; ``Sender`` sends to it.  Each is a
thread, and writes down what it was told and when.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

HANG_GUARD: Final = 20.0
BEAT_INTERVAL: Final = 0.2  # for tests; the original's is 5 s


class Gone(Exception):
    """No answer: the node is not there (any more)."""


class Reply(NamedTuple):
    status: int
    body: Any


class Door:
    """One node's API over a kept connection that is opened anew when it ended."""

    def __init__(self, address: str, host: str | None = None) -> None:
        """``host``: the name that it is called by, where that is not its address."""
        self.address = address
        self._host = {} if host is None else {"Host": host}
        self._connection = http.client.HTTPConnection(address, timeout=HANG_GUARD)

    def ask(self, method: str, path: str, body: object = None) -> Reply:
        """Raises Gone.  Asked once: what was on its way may have been done."""
        content = None if body is None else json.dumps(body).encode()
        headers = self._host | ({} if content is None else {"Content-Type": "application/json"})
        try:
            self._connection.request(method, path, content, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Gone(str(error)) from None
        return Reply(answer.status, json.loads(text) if text[:1] in (b"{", b"[") else None)

    def get(self, path: str) -> Any:
        reply = self.ask("GET", path)
        assert reply.status == 200, (path, reply)
        return reply.body

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker(threading.Thread):
    """A thread that does one thing again and again until it is told to stop; what it
    raised is raised where it is stopped."""

    def __init__(self, *doors: Door) -> None:
        super().__init__(daemon=True)
        self.is_over = threading.Event()
        self.doors = list(doors)
        self._all_doors = doors
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.is_over.is_set():
                self.work()
        except BaseException as error:
            self._error = error

    def work(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self.is_over.set()
        self.join(HANG_GUARD)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        for door in self._all_doors:
            door.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except Exception:
            if error is None:
                raise
        finally:
            self.close()


# --- a client that knows three calls -------------------------------------------------------


class Beat(NamedTuple):
    at: float  # when it was answered
    status: int  # 0: nobody answered


class Beater(Worker):
    """Registers once, then beats at its one address; a failed beat is tried again with
    the next one, and no answer but its status is looked at."""

    def __init__(self, address: str, instance_id: str) -> None:
        super().__init__(Door(address, "localhost"))
        self.instance_id = instance_id
        self.beats: list[Beat] = []
        (self._door,) = self.doors
        body = {
            "instance_id": instance_id, "hostname": "127.0.0.1", "port": 4101,
            "capabilities": ["query"], "agent_profiles": ["default"],
        }  # fmt: skip
        assert self._door.ask("POST", "/registry/register", body).status == 200

    def work(self) -> None:
        path = f"/registry/heartbeat/{self.instance_id}"
        try:
            status = self._door.ask("POST", path, {"status": "healthy", "metrics": None}).status
        except Gone:
            status = 0
        self.beats.append(Beat(time.monotonic(), status))
        self.is_over.wait(BEAT_INTERVAL)

    def deregister(self) -> int:
        self.stop()
        return self._door.ask("DELETE", f"/registry/deregister/{self.instance_id}").status


class Watcher(Worker):
    """Asks one node all the time whom it lists."""

    def __init__(self, address: str, instance_id: str) -> None:
        super().__init__(Door(address))
        self.listed: list[tuple[float, str]] = []  # when, home; "": not listed
        (self._door,) = self.doors
        self._instance_id = instance_id

    def work(self) -> None:
        instances = self._door.get("/registry/agents")["instances"]
        homes = [each["node_id"] for each in instances if each["instance_id"] == self._instance_id]
        self.listed.append((time.monotonic(), homes[0] if homes else ""))
        self.is_over.wait(0.02)


class Forwarder(Worker):
    """A name that moves: connections to its address go to whichever node it points at."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.05)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"

    def work(self) -> None:
        try:
            accepted, _ = self._listening.accept()
        except TimeoutError:
            return
        host, _, port = self.target.rpartition(":")
        try:
            onward = socket.create_connection((host, int(port)), HANG_GUARD)
        except OSError:
            accepted.close()
            return
        for source, target in ((accepted, onward), (onward, accepted)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    def close(self) -> None:
        self._listening.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


# --- guests that read, and who writes to them ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that a node accepted."""

    message_id: str
    target: str
    via: str  # address
    state: str  # as the answer said


class Sender(Worker):
    """Sends so many messages through nodes at random."""

    def __init__(
        self, addresses: Sequence[str], targets: Sequence[str], count: int, seed: int
    ) -> None:
        super().__init__(*map(Door, addresses))
        self.sent: dict[str, Sent] = {}
        self.unsure = 0  # nobody said what became of these
        self._targets = targets
        self._left = count
        self._rng = random.Random(f"sender {seed}")

    def work(self) -> None:
        if self._left == 0:
            self.is_over.set()
            return
        self._left -= 1
        door, target = self._rng.choice(self.doors), self._rng.choice(self._targets)
        body = {
            "target_instance": target, "message_type": "Notification", "payload": self._left,
            "correlation_id": None,
        }  # fmt: skip
        try:
            reply = door.ask("POST", "/messages/send/sender", body)
        except Gone:
            self.unsure += 1
            self.doors.remove(door)
            return
        assert reply.status == 200, reply
        answer = reply.body
        self.sent[answer["message_id"]] = Sent(
            answer["message_id"], target, door.address, answer["state"]
        )


@dataclass
class Acked:
    asked_at: float
    answered_at: float


@dataclass
class Listed:
    message_id: str
    at: float  # when it was answered


@dataclass
class Notes:
    """What a roamer was told."""

    read: set[str] = field(default_factory=set)
    acked: dict[str, Acked] = field(default_factory=dict)  # by message, with 204
    again: list[Listed] = field(default_factory=list)  # listed after that
    beats: list[tuple[float, int]] = field(default_factory=list)


class Roamer(Worker):
    """A guest that changes its node before every third call or so."""

    def __init__(self, addresses: Sequence[str], instance_id: str, seed: int) -> None:
        super().__init__(*map(Door, addresses))
        self.instance_id = instance_id
        self.notes = Notes()
        self._rng = random.Random(f"{instance_id} {seed}")
        self._door = self.doors[0]
        self._held: list[str] = []
        self._beat_at = 0.0
        body = {
            "instance_id": instance_id, "hostname": "", "port": 0, "capabilities": [],
            "agent_profiles": [],
        }  # fmt: skip
        assert self._door.ask("POST", "/registry/register", body).status == 200

    def work(self) -> None:
        rng = self._rng
        if rng.random() < 0.3:
            self._door = rng.choice(self.doors)
        try:
            self._call()
        except Gone:  # it died: to the others, from now on
            self.doors.remove(self._door)
            self._door = rng.choice(self.doors)
            self._held = []
        time.sleep(rng.uniform(0.0, 0.02))

    def _call(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= BEAT_INTERVAL:
            self._beat_at = now
            self._beat()
        elif self._held:
            self._acknowledge([each for each in self._held if self._rng.random() < 0.7])
        else:
            self._read()

    def _beat(self) -> None:
        body = {"status": "healthy", "metrics": None}
        reply = self._door.ask("POST", f"/registry/heartbeat/{self.instance_id}", body)
        self.notes.beats.append((time.monotonic(), reply.status))

    def _read(self) -> None:
        reply = self._door.ask("GET", f"/messages/{self.instance_id}")
        assert reply.status in (200, 503), reply
        if reply.status == 503:
            return
        at = time.monotonic()
        self._held = [message["message_id"] for message in reply.body["messages"]]
        self.notes.read.update(self._held)
        acked = [each for each in self._held if each in self.notes.acked]
        self.notes.again += [Listed(each, at) for each in acked]

    def _acknowledge(self, message_ids: list[str]) -> None:
        self._held = []
        if not message_ids:
            return
        asked_at = time.monotonic()
        body = {"message_ids": message_ids}
        reply = self._door.ask("POST", f"/messages/ack/{self.instance_id}", body)
        assert reply.status == 204, reply
        acked = Acked(asked_at, time.monotonic())
        for message_id in message_ids:
            self.notes.acked.setdefault(message_id, acked)


def until(holds: Callable[[], bool], what: str, instead: Callable[[], object] = lambda: "") -> None:
    """Wait for what nothing announces, with a guard against hanging that says what
    there is ``instead``."""
    deadline = time.monotonic() + HANG_GUARD
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {HANG_GUARD:g} s {instead()}")
        time.sleep(0.01)
