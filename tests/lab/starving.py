"""Processes that hardly have the CPU: by a quota of cgroups v1, or stopped and resumed in turns."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

from tests.processes import Process, eventually

_CPU: Final = Path("/sys/fs/cgroup/cpu")
_PERIOD_MAX: Final = 1.0  # the kernel's
_QUOTA_MIN: Final = 0.001


class Starvation:
    """So long a process waits ``stops`` seconds for the CPU, then has it for ``runs`` seconds."""

    def __init__(self, process: Process, *, runs: float, stops: float, seconds: float) -> None:
        self._process = process
        self._runs, self._stops, self._seconds = runs, stops, seconds
        self._is_over = threading.Event()
        group = self._group() if runs + stops <= _PERIOD_MAX and runs >= _QUOTA_MIN else None
        work = self._stop_and_go if group is None else self._wait_in
        self._thread = threading.Thread(target=work, args=() if group is None else (group,))
        self._thread.start()

    def end(self) -> None:
        """At once, if it is not over; may be repeated."""
        self._is_over.set()
        self._thread.join()

    def _group(self) -> Path | None:
        """A group with the quota and this process in it; None where there are none to be had."""
        group = _CPU / f"p2pmesh-lab-{os.getpid()}-{self._process.pid}"
        try:
            group.mkdir()
        except OSError:
            return None
        period = round((self._runs + self._stops) * 1e6)
        (group / "cpu.cfs_period_us").write_text(str(period))
        (group / "cpu.cfs_quota_us").write_text(str(round(self._runs * 1e6)))
        (group / "cgroup.procs").write_text(str(self._process.pid))
        return group

    def _wait_in(self, group: Path) -> None:
        self._is_over.wait(self._seconds)
        with contextlib.suppress(ProcessLookupError):
            (group.parent / "cgroup.procs").write_text(str(self._process.pid))
        eventually(lambda: _is_removed(group), f"{group} is removed")

    def _stop_and_go(self) -> None:
        until = time.monotonic() + self._seconds
        while time.monotonic() < until and not self._is_over.is_set():
            self._process.signal(signal.SIGSTOP)
            self._is_over.wait(self._stops)
            self._process.signal(signal.SIGCONT)
            self._is_over.wait(self._runs)


def _is_removed(group: Path) -> bool:
    """The kernel keeps it until the last process of it is gone."""
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
