"""Fleets of other systems that know who is alive, for a comparison in the same run.

``serf`` and ``serf-local`` are agents of Serf (Go, memberlist) with its profiles ``lan``
and ``local``; ``kinship`` and ``kinship-local`` are processes of the Python library of
that name (Rust inside), likewise.  Both encrypt here, as ours does, and are otherwise as
they come.  A fleet of theirs has the interface of ``Fleet`` and says the same words.

Serf speaks through its log, and a line has the time at which it was read here: its event
handlers and streams are told one to three seconds later, since it gathers events for
them.  The first process is the seed of all others.
"""

from __future__ import annotations

import base64
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from benchmarks import debian
from benchmarks.debian import CACHE
from benchmarks.fleet import Fleet, Member

PORTS = range(20_000, 32_000)  # below those that the system gives away


class Missing(Exception):
    """That system cannot be had here; the text says how to get it."""


class Peers(Fleet):
    """Processes of another system.  All know all when ``start`` returns."""

    def __init__(self, directory: Path, profile: str) -> None:
        super().__init__(directory)
        self.profile = profile
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._ports = iter(random.sample(PORTS, len(PORTS)))
        self._addresses: dict[str, int] = {}

    def port(self) -> int:
        """One that nobody uses, neither for streams nor for datagrams."""
        for port in self._ports:
            with suppress(OSError):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with closing(socket.socket(type=kind)) as probe:
                        probe.bind(("127.0.0.1", port))
                return port
        raise RuntimeError("no free port")

    def seeds(self, member: Member) -> list[str]:
        """The address of the oldest that is alive, which answers by then."""
        first = self.members[0]
        if first is member:
            return []
        first.wait("joined")
        return [f"127.0.0.1:{self._addresses[first.name]}"]

    def start(self, number: int, *, said: Callable[[str], None] = lambda _: None) -> None:
        fresh = [self.make() for _ in range(number)]
        for at, member in enumerate(fresh, 1):
            member.wait("ready")
            self.run(member)
            member.wait("joined")
            said(f"started {at} of {number}")
        for member in self.members:
            for other in self.members if member in fresh else fresh:
                if other is not member:
                    member.wait("member_joined", of=other.name)
        self.settle()


# --- serf ---------------------------------------------------------------------------


LINE = re.compile(r"\[INFO\] serf: EventMember(Join|Failed|Leave): (\S+)")
EVENTS = {"Join": "member_joined", "Failed": "member_failed", "Leave": "member_left"}


class SerfMember(Member):
    leaving = signal.SIGINT  # the signal that it takes for a wish to leave

    def __init__(self, name: str, command: Sequence[str], home: Path) -> None:
        self.count = 0
        self._known: set[str] = set()
        super().__init__(name, command, home)

    def heard(self, line: str) -> list[dict[str, Any]]:
        events: list[tuple[str, str | None]] = []
        if line.startswith("ready"):
            events = [("ready", None)]
        elif line.startswith("==> Serf agent running"):
            events = [("bound", None)]
        elif line.startswith("==> Log data"):  # it says so when it has joined
            events = [("joined", None)]
        elif found := LINE.search(line):
            kind, of = found.groups()
            events = [(EVENTS[kind], of)]
            (self._known.add if kind == "Join" else self._known.discard)(of)
            if kind == "Join" and len(self._known) == self.count:
                events.append(("full", None))
        t = time.time()
        return [{"event": event, "by": self.name, "of": of, "t": t} for event, of in events]


class SerfFleet(Peers):
    def member(self, name: str, prefix: Sequence[str]) -> Member:
        # The barrier: a shell that becomes the agent once it has read its arguments.
        script = 'echo ready; read -r arguments; exec "$0" agent $arguments 2>&1'
        return SerfMember(name, [*prefix, "sh", "-c", script, serf()], self._home)

    def run(self, member: Member, count: int = 0, **_: Any) -> None:
        assert isinstance(member, SerfMember)
        assert member.process.stdin is not None
        seeds = [f"-join={seed}" for seed in self.seeds(member)]
        port = self._addresses[member.name] = self.port()
        arguments = [
            f"-node={member.name}", f"-bind=127.0.0.1:{port}", f"-profile={self.profile}",
            f"-rpc-addr=127.0.0.1:{self.port()}", f"-encrypt={self.key}", *seeds,
        ]  # fmt: skip
        member.count = count
        member.process.stdin.write(" ".join(arguments) + "\n")
        member.process.stdin.flush()


def serf() -> str:
    return debian.program("serf", "serf")


def install_serf() -> None:
    if not Path(serf()).exists():
        debian.unpack("serf")
    if not Path(serf()).exists():
        raise Missing("serf is not here: apt-get install serf")


# --- kinship ------------------------------------------------------------------------


class KinshipFleet(Peers):
    def member(self, name: str, prefix: Sequence[str]) -> Member:
        agent = Path(__file__).with_name("kinship_agent.py")
        return Member(name, [*prefix, str(kinship()), str(agent), name], self._home)

    def run(self, member: Member, count: int = 0, **_: Any) -> None:
        seeds = self.seeds(member)
        port = self._addresses[member.name] = self.port()
        member.order(profile=self.profile, port=port, seeds=seeds, key=self.key, count=count)


def kinship() -> Path:
    return CACHE / "kinship/bin/python"


def install_kinship() -> None:
    if not kinship().exists():
        subprocess.run([sys.executable, "-m", "venv", str(CACHE / "kinship")], check=True)
    has = [str(kinship()), "-c", "import kinship"]
    if subprocess.run(has, capture_output=True, check=False).returncode == 0:
        return
    pip = [str(kinship()), "-m", "pip", "install", "-q", "kinship==0.4.0"]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        raise Missing(f"kinship is not here: {' '.join(pip)}")


# --- all of them --------------------------------------------------------------------

FLEETS: dict[str, tuple[Callable[[], None], type[Peers], str]] = {
    "serf": (install_serf, SerfFleet, "lan"),
    "serf-local": (install_serf, SerfFleet, "local"),
    "kinship": (install_kinship, KinshipFleet, "lan"),
    "kinship-local": (install_kinship, KinshipFleet, "local"),
}
SYSTEMS = ("p2pmesh", *FLEETS)


def install(system: str) -> None:
    """Make sure that it can run, in a directory of the benchmarks' own; or ``Missing``."""
    if system in FLEETS:
        FLEETS[system][0]()


def fleet(system: str, directory: Path) -> Fleet:
    if system not in FLEETS:
        return Fleet(directory)
    _, kind, profile = FLEETS[system]
    return kind(directory, profile)
