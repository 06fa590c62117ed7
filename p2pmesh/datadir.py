"""What a node keeps on disk of itself: identity, instance id, last life, epoch.

A data dir belongs to one process at a time (a lock on ``lock``, which names its
pid) and holds

    identity    the 32-byte seed of all keys, readable by its owner only
    state       instance id, last life, highest claimed epoch
    messages.db what is accepted, stored and not finished (``store``)

the first two as a line of JSON and a line with its checksum, replaced as a whole, and
synced together with the directory before it counts.  What does not match its
checksum is moved aside and said aloud in ``notices``: never served, never deleted.

Blocks on the disk, so a node that runs calls ``keep`` in a thread, one call at a
time.  Does not choose where the directory is (``config`` does), nor open the store.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final, Protocol, TypeVar

import msgspec

from p2pmesh.errors import ConfigError, StoreFull
from p2pmesh.protocol.types import Life, Restored

SEED_SIZE: Final = 32
Entropy = Callable[[int], bytes]


class Identity(Protocol):
    """Who a node is, and what is remembered of its earlier lives."""

    @property
    def seed(self) -> bytes:
        """32 bytes, of which all keys are made."""

    @property
    def instance_id(self) -> str | None:
        """Its agent's id, if it had an agent before."""

    @property
    def restored(self) -> Restored:
        """The last life and the highest epoch that were kept."""

    @property
    def is_persistent(self) -> bool:
        """Whether the identity comes back after its process."""

    @property
    def path(self) -> Path | None:
        """The directory it is kept in, which is locked; None: nowhere."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What its user has to know, a line each."""

    def keep_instance_id(self, instance_id: str) -> None:
        """Durably; the same errors as ``keep``."""

    def keep(self, life: Life, epoch: int | None) -> None:
        """Returns when no crash can lose it; a kept epoch is never lowered.
        Raises :class:`StoreFull` or :class:`ConfigError`, and then holds what it held."""

    def drop_in_child(self) -> None:
        """After a fork, in the child: let go, without unlocking for the parent."""

    def close(self) -> None:
        """Unlock; may be repeated."""


class EphemeralIdentity:
    """An identity that ends with its process."""

    def __init__(self, entropy: Entropy = os.urandom) -> None:
        self.seed = entropy(SEED_SIZE)
        self.instance_id: str | None = None
        self.path: Path | None = None
        self.restored = Restored()
        self.is_persistent = False
        self.notices: tuple[str, ...] = ()

    def keep_instance_id(self, instance_id: str) -> None:
        self.instance_id = instance_id

    def keep(self, life: Life, epoch: int | None) -> None:
        pass

    def drop_in_child(self) -> None:
        pass

    def close(self) -> None:
        pass


class Locked(ConfigError):
    """Another process has this data dir."""


class _Seed(msgspec.Struct, frozen=True):
    seed: Annotated[bytes, msgspec.Meta(min_length=SEED_SIZE, max_length=SEED_SIZE)]


class _State(msgspec.Struct, frozen=True):
    instance_id: str | None = None
    life: Life | None = None
    epoch: int | None = None


_Content = TypeVar("_Content", _Seed, _State)


class DataDir:
    """An :class:`Identity` in a directory of its own, locked until ``close``."""

    def __init__(self, path: Path, lock: int, entropy: Entropy) -> None:
        """Use ``open``: this reads a directory that is locked already."""
        self.path: Path | None = path
        self._directory = path
        self.is_persistent = True
        self._lock = lock
        self._notices: list[str] = []
        identity = self._read("identity", _Seed, "this node has a new identity from now on")
        if identity is None:
            identity = _Seed(entropy(SEED_SIZE))
            self._write("identity", identity)
        self._close_to_others(path / "identity")
        self._state = (
            self._read("state", _State, "instance id, last life and epoch are forgotten")
            or _State()
        )
        self.seed = identity.seed
        self.restored = Restored(life=self._state.life, epoch=self._state.epoch)
        self.notices = tuple(self._notices)

    @classmethod
    def open(cls, path: Path, entropy: Entropy = os.urandom) -> DataDir:
        """Lock and read a directory, which is made if there is none.

        Raises :class:`Locked`, which names the process that holds it,
        :class:`StoreFull`, or :class:`ConfigError`.
        """
        with _explained(path):
            _make_directory(path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _take_lock(lock, path)
                return cls(path, lock, entropy)
            except BaseException:
                os.close(lock)
                raise

    @classmethod
    def open_first(cls, paths: Iterable[Path], entropy: Entropy = os.urandom) -> DataDir:
        """The first directory that no other process holds."""
        last = None
        for path in paths:
            try:
                return cls.open(path, entropy)
            except Locked:
                last = path
        raise ConfigError(
            f"every data directory of this name up to {last} is in use: "
            "give another --name, or --data-dir"
        )

    @property
    def instance_id(self) -> str | None:
        return self._state.instance_id

    def keep_instance_id(self, instance_id: str) -> None:
        if instance_id != self._state.instance_id:
            self._keep(msgspec.structs.replace(self._state, instance_id=instance_id))

    def keep(self, life: Life, epoch: int | None) -> None:
        kept = self._state.epoch
        if epoch is None or (kept is not None and kept > epoch):
            epoch = kept
        state = msgspec.structs.replace(self._state, life=life, epoch=epoch)
        if state != self._state:
            self._keep(state)

    def drop_in_child(self) -> None:
        self.close()

    def close(self) -> None:
        """Closing is what unlocks: a child that only drops its copy takes nothing from
        the parent, and a killed process holds nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- files -------------------------------------------------------------------

    def _keep(self, state: _State) -> None:
        with _explained(self._directory):
            self._write("state", state)
        self._state = state

    def _read(self, name: str, kind: type[_Content], loss: str) -> _Content | None:
        """What a file holds; None where there is none, or none that can be trusted."""
        path = self._directory / name
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            return None
        body, _, checksum = sealed.partition(b"\n")
        if checksum == _checksum(body):
            try:
                return msgspec.json.decode(body, type=kind)
            except msgspec.DecodeError:
                pass
        aside = _aside(path)
        os.rename(path, aside)
        self._notices.append(f"{path} was damaged and is now {aside}: {loss}")
        return None

    def _close_to_others(self, path: Path) -> None:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            path.chmod(0o600)
            self._notices.append(f"{path} could be read by others, and no longer can")

    def _write(self, name: str, content: _Seed | _State) -> None:
        """All of the file or nothing, whenever the power fails."""
        body = msgspec.json.encode(content)
        path, fresh = self._directory / name, self._directory / f"{name}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body + b"\n" + _checksum(body))
            file.flush()
            _sync(descriptor)
        os.replace(fresh, path)
        _sync_directory(self._directory)


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(PermissionError):  # one may write to a directory and not read it
            _sync_directory(path.parent)


def _take_lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 20, 0).decode(errors="replace").strip()
        holder = f"process {pid}" if pid.isdigit() else "another process"
        raise Locked(
            f"data directory {path} is in use by {holder}: end that, or give another --data-dir"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def _aside(path: Path) -> Path:
    """A name for a damaged file that is not in use."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b"\n"


def _sync(descriptor: int) -> None:
    """To the medium; what macOS calls fsync stops in the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the system become one line with the path and what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"data directory {path}: {why}: make room, or give another --data-dir"
            ) from None
        raise ConfigError(
            f"data directory {path}: {why}: make it a directory that you may write to, "
            "or give another --data-dir"
        ) from None
