"""p2pmesh as its users run it: a process with a home of its own that prints JSON lines.

Everything waits with a guard against hanging, never for a fixed time, and says
what was printed instead when the guard strikes.  A process dies with the test
that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import p2pmesh

#: Starts the command that belongs to the package under test, installed or not.
P2PMESH: Final = (sys.executable, "-m", "p2pmesh")

HANG_GUARD: Final = 30.0
_SOURCES: Final = str(Path(p2pmesh.__file__).parents[1])


def environment(home: Path) -> dict[str, str]:
    """The variables of a user whose home is this directory, which is created.

    Nothing of the tester's own settings is in it: no other home, no
    ``P2PMESH_*``, no ``XDG_*``.
    """
    runtime = home / "runtime"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("P2PMESH_", "XDG_"))
    }
    return kept | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(runtime),
        "P2PMESH_RUNTIME_DIR": str(runtime / "p2pmesh"),
        "PYTHONPATH": _SOURCES,
        "PYTHONUNBUFFERED": "1",
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a process's output; ``line["field"]`` reads it."""

    number: int  # from 0
    at: float  # time.monotonic() when it was read
    value: dict[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.value[field]


class Process:
    """A running command whose standard output is JSON lines.

    A context manager: at its end the process is asked to leave, and killed
    when it does not.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        home: Path,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """``prefix`` is a command that becomes the given one, as ``ip netns exec`` does."""
        self.command = tuple(command)
        self.home = home
        variables = environment(home) | dict(env or {})
        self._errors = home / f"errors-{time.monotonic_ns()}.txt"
        self._lines: list[Line] = []
        self._junk = self._ended = ""
        self._changed = threading.Condition()
        with self._errors.open("wb") as errors:
            self._popen = subprocess.Popen(
                [*prefix, *_die_with_parent(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=home,
                env=variables,
                start_new_session=True,
            )
        self.pid: Final = self._popen.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        output = self._popen.stdout
        assert output is not None
        with output:
            for raw in output:
                at = time.monotonic()
                try:
                    value = json.loads(raw)
                    failure = "" if isinstance(value, dict) else "not a JSON object"
                except ValueError as error:
                    failure = str(error)
                with self._changed:
                    if failure:
                        self._junk = f"printed {raw!r}: {failure}"
                    else:
                        self._lines.append(Line(len(self._lines), at, value))
                    self._changed.notify_all()
        with self._changed:
            self._ended = "closed its output"
            self._changed.notify_all()

    @property
    def lines(self) -> tuple[Line, ...]:
        """What was printed so far."""
        with self._changed:
            return tuple(self._lines)

    @property
    def errors(self) -> str:
        """What was written to standard error so far."""
        return self._errors.read_text(errors="replace")

    def event(
        self, name: str, /, *, since: int = 0, timeout: float = HANG_GUARD, **fields: Any
    ) -> Line:
        """The first line from number ``since`` on with this ``event`` and these fields."""
        wanted = {"event": name, **fields}
        return self.line(
            lambda value: wanted.items() <= value.items(),
            since=since,
            timeout=timeout,
            what=str(wanted),
        )

    def line(
        self,
        matches: Callable[[dict[str, Any]], bool],
        *,
        since: int = 0,
        timeout: float = HANG_GUARD,
        what: str = "a matching line",
    ) -> Line:
        """The first line from number ``since`` on that ``matches``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            seen = since
            while True:
                for line in self._lines[seen:]:
                    if matches(line.value):
                        return line
                seen = max(seen, len(self._lines))
                left = deadline - time.monotonic()
                if self._junk or self._ended or left <= 0:
                    why = self._junk or self._ended or f"nothing within {timeout:g} s"
                    raise AssertionError(f"waited for {what}: {why}\n{self._story()}")
                self._changed.wait(left)

    def _story(self) -> str:
        printed = "\n".join(f"  {json.dumps(line.value)}" for line in self._lines[-50:])
        return f"{' '.join(self.command)}\nprinted:\n{printed}\nerrors:\n{self.errors[-4000:]}"

    @property
    def is_over(self) -> bool:
        """It has ended, by itself or by a signal."""
        return self._popen.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Sends this process, and no child of it, a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout: float = HANG_GUARD) -> int:
        """The exit status, once it has ended by itself or by a signal."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout:g} s\n{self._story()}") from None
        self._reader.join(1)  # the rest of its output, which a child may still hold open
        return status

    def kill(self) -> None:
        """``kill -9``."""
        self.signal(signal.SIGKILL)
        self.wait()

    def leave(self, timeout: float = HANG_GUARD) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def close(self) -> None:
        """Ends the process and all of its children; never fails, may be repeated."""
        self._popen.send_signal(signal.SIGTERM)
        self._popen.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._reader.join(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        assert error is not None or not self._junk, f"{self._junk}\n{self._story()}"


def run(
    *command: str,
    home: Path,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    stdin: str = "",
    timeout: float = HANG_GUARD,
) -> subprocess.CompletedProcess[str]:
    """Runs a command that ends by itself; whatever its exit status."""
    return subprocess.run(
        [*prefix, *_die_with_parent(), *command],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home) | dict(env or {}),
        timeout=timeout,
    )


def _die_with_parent() -> tuple[str, ...]:
    """Linux can end a child when its parent is killed; elsewhere only ``close`` does."""
    return ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()


def is_gone(pid: int) -> bool:
    """Whether a process that may be nobody's child has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(holds: Callable[[], bool], what: str, timeout: float = HANG_GUARD) -> None:
    """Waits until ``holds()``; for what nothing announces, such as another process's end."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.01)


def children() -> dict[int, str]:
    """The children of this process: pid -> command.  Empty where there is no /proc."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(directory.name)] = command.decode(errors="replace").strip()
    return found
