"""The runtime directory: where nodes and commands of one user on one machine meet.

One JSON file a node, written when its ports are bound and removed when it ends.
Nodes find each other here even where multicast does not work, and the command
line finds a node to speak to.  It is an *offer of addresses*, like mDNS: a file
proves nothing about its node.

This module is imported by one-shot commands, so it needs nothing but the
standard library's lightest parts.

Invariants: the directory is 0700 and ours, or it is refused; a file is complete
as soon as its name exists (written beside, then renamed) and only its owner can
read it; a file whose process is gone is removed by whoever reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from p2pmesh.errors import ConfigError

FILE_MAX: Final = 16 * 1024
ENTRIES_MAX: Final = 4096
_SUFFIX: Final = ".json"
#: The watch looks at the directory's time at every poll, and at the processes
#: behind known files only at every n-th: a dead candidate does no harm.
_POLLS_PER_SWEEP: Final = 20
#: A directory's time moves in steps of some milliseconds, so one this young may
#: hide a later change of the same step.
_SETTLED_AFTER_NS: Final = 100_000_000
_Stamp: TypeAlias = tuple[int, int]  # a file's number, and when it was written


class RuntimeEntry(NamedTuple):
    """What one node's file says."""

    pid: int
    mesh: str
    node_id: str
    instance_id: str
    addresses: tuple[str, ...]  # link addresses, "ip:port" or "[v6]:port"
    http: str | None  # URL of its HTTP API
    token: str | None  # for that API, of this run; None: it asks for none
    started: float  # unix seconds: the oldest node answers for the machine
    birth: str = ""  # tells this process from a later one with its pid


def runtime_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where the directory is, by the environment; it need not exist."""
    if given := environ.get("P2PMESH_RUNTIME_DIR"):
        return given
    session = environ.get("XDG_RUNTIME_DIR")
    if session and os.path.isdir(session):
        return os.path.join(session, "p2pmesh")
    temporary = next((environ[v] for v in ("TMPDIR", "TEMP", "TMP") if environ.get(v)), "/tmp")
    return os.path.join(temporary, f"p2pmesh-{os.getuid()}")


# --- one node's own file -----------------------------------------------------


class RuntimeFile:
    """This node's file, from :meth:`write` until :meth:`remove`."""

    def __init__(self, directory: str) -> None:
        """Creates the directory where it is missing; raises ConfigError when it
        is not a 0700 directory of this user, OSError when it cannot be made."""
        _make_safe(directory)
        self.directory = directory
        self.name = f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"

    def write(self, entry: RuntimeEntry) -> None:
        """Write or replace the file, all at once."""
        path = os.path.join(self.directory, self.name)
        beside = os.path.join(self.directory, f".{self.name}")
        text = json.dumps(entry._asdict() | {"birth": process_birth(entry.pid)})
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)

    def restore(self, entry: RuntimeEntry) -> bool:
        """Write it again if somebody removed it, or the directory: cleaners of
        temporary files do.  True: it was gone."""
        if os.path.exists(os.path.join(self.directory, self.name)):
            return False
        _make_safe(self.directory)
        self.write(entry)
        return True

    def remove(self) -> None:
        _unlink(os.path.join(self.directory, self.name))


def _make_safe(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    if problem := _problem_with(directory):
        raise ConfigError(f"runtime directory {directory}: {problem}")


def _problem_with(directory: str) -> str:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        return "not a directory; remove it or set P2PMESH_RUNTIME_DIR"
    if found.st_uid != os.getuid():
        return f"belongs to uid {found.st_uid}; set P2PMESH_RUNTIME_DIR to a directory of yours"
    if found.st_mode & 0o077:
        return f"open to others; run: chmod 700 {directory}"
    return ""


# --- everybody's files -------------------------------------------------------


def list_nodes(mesh: str | None = None, directory: str | None = None) -> tuple[RuntimeEntry, ...]:
    """The nodes that run here, oldest first; of one mesh, or of all.

    Raises ConfigError for a directory that is not safely ours; one that does
    not exist is empty.
    """
    where = directory if directory is not None else runtime_path()
    try:
        if problem := _problem_with(where):
            raise ConfigError(f"runtime directory {where}: {problem}")
        names = _files(where)
    except FileNotFoundError:
        return ()
    entries = (_read_live(where, name) for name in names)
    wanted = [e for e in entries if e is not None and mesh in (None, e.mesh)]
    return tuple(sorted(wanted, key=lambda entry: (entry.started, entry.pid)))


def _files(directory: str) -> dict[str, _Stamp]:
    """By name, with what tells a file from the one that replaced it."""
    with os.scandir(directory) as found:
        files = [f for f in found if f.name.endswith(_SUFFIX) and not f.name.startswith(".")]
    files.sort(key=lambda file: file.name)
    return {file.name: _stamp(file) for file in files[:ENTRIES_MAX]}


def _stamp(file: os.DirEntry[str]) -> _Stamp:
    try:
        return file.inode(), file.stat(follow_symlinks=False).st_mtime_ns
    except FileNotFoundError:  # gone meanwhile
        return 0, 0


def _read_live(directory: str, name: str) -> RuntimeEntry | None:
    """The entry of a live process; the file of a dead one is removed."""
    path = os.path.join(directory, name)
    entry = _read(path)
    if entry is not None and not is_running(entry.pid, entry.birth):
        _unlink(path)
        return None
    return entry


def _read(path: str) -> RuntimeEntry | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            data = file.read(FILE_MAX + 1)
        return _parse(json.loads(data)) if len(data) <= FILE_MAX else None
    except (OSError, ValueError, RecursionError):
        return None


def _parse(data: Any) -> RuntimeEntry | None:
    match data:
        case {
            "pid": int(pid),
            "mesh": str(mesh),
            "node_id": str(node_id),
            "instance_id": str(instance_id),
            "addresses": [*addresses],
            "http": str() | None as http,
            "token": str() | None as token,
            "started": int() | float() as started,
            "birth": str(birth),
        } if 0 < pid < 2**31 and all(isinstance(address, str) for address in addresses):
            return RuntimeEntry(
                pid, mesh, node_id, instance_id, tuple(addresses), http, token, started, birth
            )
    return None


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):  # somebody else was first, or the directory is gone
        os.unlink(path)


# --- processes ---------------------------------------------------------------


def process_birth(pid: int) -> str:
    """When the process started, in the kernel's own words; "" where it does not
    say.  With the pid namespace, so that a directory shared between containers
    does not make each bury the other's nodes."""
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {_stat(pid)[19]}"
    except (OSError, IndexError):
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the name: the state is the first."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode("ascii").split()


def _is_zombie(pid: int) -> bool:
    """Dead, and its parent has not asked for its status."""
    try:
        return _stat(pid)[0] in ("Z", "X")
    except (OSError, IndexError):
        return False


def is_running(pid: int, birth: str) -> bool:
    """Whether the process of this pid *and* birth may still live."""
    try:
        os.kill(pid, 0)
        exists = not _is_zombie(pid)
    except ProcessLookupError:
        exists = False
    except PermissionError:
        exists = True
    if not birth:
        return exists
    now = process_birth(pid if exists else os.getpid())
    namespace, _, ticks = now.partition(" ")
    if birth.partition(" ")[0] != namespace:
        return True  # another container's: its pids mean nothing here
    return exists and birth.partition(" ")[2] == ticks


# --- changes -----------------------------------------------------------------


class RuntimeWatch:
    """What changed in the directory since the last poll.  It costs one stat when nothing
    did, and else reads only what is new: hundreds who start together change it often."""

    def __init__(self, directory: str, mesh: str, own_name: str) -> None:
        self._directory = directory
        self._mesh = mesh
        self._own_name = own_name
        self._read: dict[str, tuple[_Stamp, RuntimeEntry | None]] = {}  # every file
        self._known: dict[str, RuntimeEntry] = {}  # those of this mesh
        self._changed_at = -1
        self._polls = 0

    def poll(self) -> tuple[dict[str, RuntimeEntry], list[str]]:
        """Files that are new or different (by name), and names that are gone."""
        self._polls += 1
        is_sweep = self._polls % _POLLS_PER_SWEEP == 0
        try:
            changed_at = os.stat(self._directory).st_mtime_ns
            if changed_at == self._changed_at and not is_sweep:
                return {}, []
            self._read = {
                name: self._look(name, stamp, is_sweep=is_sweep)
                for name, stamp in _files(self._directory).items()
                if name != self._own_name
            }
        except OSError:
            return {}, []  # unreadable now is not gone
        present = {
            name: entry
            for name, (_, entry) in self._read.items()
            if entry is not None and entry.mesh == self._mesh
        }
        is_settled = time.time_ns() - changed_at > _SETTLED_AFTER_NS
        self._changed_at = changed_at if is_settled else -1
        found = {n: entry for n, entry in present.items() if self._known.get(n) != entry}
        lost = [name for name in self._known if name not in present]
        self._known = present
        return found, lost

    def _look(
        self, name: str, stamp: _Stamp, *, is_sweep: bool
    ) -> tuple[_Stamp, RuntimeEntry | None]:
        known = self._read.get(name)
        if known is not None and known[0] == stamp and not is_sweep:
            return known
        return stamp, _read_live(self._directory, name)
