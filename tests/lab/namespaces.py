"""Network namespaces that know who made them, so that those of the dead can be removed."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from tests.processes import eventually, is_gone

_COMMANDS: Final = ("ip", "nft", "setpriv")
_DIRECTORY: Final = Path("/run/netns")
_NAME: Final = re.compile(r"p2pmesh-lab-(?P<pid>\d+)-(?P<started>\d+)-.+")
_serial = itertools.count(1)


class LabError(Exception):
    """The system refused something that the lab is made of."""


def unique_name() -> str:
    """A beginning for names of namespaces that nobody uses, and that tells its owner."""
    pid = os.getpid()
    return f"p2pmesh-lab-{pid}-{_started(pid)}-{next(_serial)}"


class Namespace:
    """One network namespace, from here to ``delete``."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: The words that make a command one that runs inside.
        self.prefix = ("ip", "netns", "exec", name)
        command("ip", "netns", "add", name)

    def ip(self, arguments: str) -> None:
        """``ip`` as seen from inside."""
        command("ip", "-n", self.name, *arguments.split())

    def nft(self, rules: str) -> None:
        """Applies nftables rules, all or none of them."""
        command(*self.prefix, "nft", "-f", "-", stdin=rules)

    def set(self, key: str, value: int) -> None:
        """Sets ``net/<key>`` in /proc/sys, where this kernel has it."""
        path = f"/proc/sys/net/{key}"
        command(*self.prefix, "sh", "-c", f"test ! -e {path} || echo {value} > {path}")

    def delete(self) -> None:
        """Kills what runs inside, and removes it."""
        _delete(self.name)


def command(*words: str, stdin: str = "") -> str:
    """Runs a command that sets something up; its output."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}\n{stdin}")
    return done.stdout


def existing() -> set[str]:
    """The names of all namespaces that a lab made and did not remove yet."""
    names = os.listdir(_DIRECTORY) if _DIRECTORY.exists() else []
    return {name for name in names if _NAME.fullmatch(name)}


def sweep() -> None:
    """Removes what labs left whose process is gone: it was killed, or crashed."""
    for name in existing():
        owner = _NAME.fullmatch(name)
        assert owner is not None
        if _started(int(owner["pid"])) != owner["started"]:
            with contextlib.suppress(LabError):  # somebody else sweeps it, too
                _delete(name)


def missing() -> str:
    """What the lab needs and this system does not have; "" when it has everything."""
    if os.geteuid() != 0:
        return "root is needed to make network namespaces"
    if absent := [name for name in _COMMANDS if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)}"
    return ""


def _delete(name: str) -> None:
    pids = [int(pid) for pid in command("ip", "netns", "pids", name).split()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(map(is_gone, pids)), f"the end of what ran in {name}")
    command("ip", "netns", "delete", name)


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" when there is none.  Pids come back."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""
