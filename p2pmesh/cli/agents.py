"""The demo's agents: real ``p2pmesh run --json`` processes in a directory of their own.

``Troupe`` starts them and ends them, ``Agent`` is one of them: what it printed, with
the moment it was read, and its HTTP API.

Invariants: when the ``with`` block of a Troupe ends, however it ends, no process of
it runs and its directory is gone; nothing configured on this machine reaches an
agent, and no agent's files stand anywhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import p2pmesh
from p2pmesh.cli.local import NodeClient
from p2pmesh.errors import MeshError

#: Whatever takes longer does not happen any more.
PATIENCE: Final = 10.0
_POLL_INTERVAL: Final = 0.02


class Unmet(MeshError):
    """Something that had to happen did not; the text says what."""


class Seen(NamedTuple):
    """One line of an agent."""

    event: dict[str, Any]
    at: float  # time.monotonic()


class Agent:
    def __init__(self, name: str, mesh: str, directory: Path, environ: dict[str, str]) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self._seen: list[Seen] = []
        self._changed = threading.Condition()
        self._is_silent = False
        command = (
            *("run", "--json", "--echo", "--log-level", "error"),
            *("--mesh", mesh, "--name", name, "--data-dir", "none"),
        )  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "p2pmesh", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environ,
                start_new_session=True,  # Ctrl-C is for us; we end them
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                seen = Seen(json.loads(line), time.monotonic())
                with self._changed:
                    self._seen.append(seen)
                    self._changed.notify_all()
        with self._changed:
            self._is_silent = True
            self._changed.notify_all()

    def meet_ready(self) -> None:
        """Wait until it listens; then its ids and its API are known."""
        ready = self.wait("ready").event
        self.pid = int(ready["pid"])
        self.instance_id = str(ready["instance_id"])
        self.address = str(ready["address"])
        self.url = str(ready["http"])

    def wait(self, event: str, **fields: object) -> Seen:
        """The first line with this event and these fields.  Raises Unmet."""
        wanted = {"event": event, **fields}
        deadline = time.monotonic() + PATIENCE
        read = 0
        with self._changed:
            while True:
                for seen in self._seen[read:]:
                    if wanted.items() <= seen.event.items():
                        return seen
                read = len(self._seen)
                left = deadline - time.monotonic()
                if self._is_silent or left <= 0:
                    how = "ended" if self._is_silent else f"said nothing of it in {PATIENCE:g} s"
                    raise Unmet(f"no {event} from {self.name}: it {how}")
                self._changed.wait(left)

    def complaint(self) -> str:
        """The last line of its log, which holds errors only."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f" ({self.name} says: {lines[-1]})" if lines else ""

    def get(self, path: str) -> Any:
        with NodeClient(self.url) as node:
            return node.get(path)

    def post(self, path: str, body: object) -> Any:
        with NodeClient(self.url) as node:
            return node.post(path, body)

    def leader(self) -> dict[str, Any]:
        view: dict[str, Any] = self.get("/v1/leader")
        return view

    def members(self) -> list[dict[str, Any]]:
        """The live ones, oldest first."""
        found = self.get("/v1/members")["members"]
        return [member for member in found if member["state"] in ("alive", "suspect")]

    def end(self) -> int:
        """Ask it to leave, and wait for that; its exit status.  Raises Unmet."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unmet(f"{self.name} still runs {PATIENCE:g} s after SIGTERM") from None

    def kill(self) -> float:
        """``kill -9``; when that was."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()


class Troupe:
    """The agents of one demo, and the directory that they share."""

    def __init__(self) -> None:
        token = os.urandom(4).hex()
        self.mesh = f"demo-{token}"
        self.directory = Path(tempfile.gettempdir()) / f"p2pmesh-{self.mesh}"
        self.runtime = self.directory / "runtime"
        self.agents: list[Agent] = []  # those that run

    def start(self, name: str) -> Agent:
        agent = Agent(name, self.mesh, self.directory, self._environ())
        self.agents.append(agent)
        return agent

    def complaints(self) -> str:
        return "".join(agent.complaint() for agent in self.agents)

    def _environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("P2PMESH_", "XDG_"))}
        path = [str(Path(p2pmesh.__file__).parents[1]), kept.get("PYTHONPATH", "")]
        return kept | {
            "P2PMESH_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.directory),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),  # the same package as ours
        }

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # this is short, and has to be done
        for agent in self.agents:
            agent.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def until(holds: Callable[[], bool], what: str) -> None:
    """Ask until it holds; raises Unmet saying ``what`` did not."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise Unmet(f"{what}: not within {PATIENCE:g} s")
        time.sleep(_POLL_INTERVAL)
