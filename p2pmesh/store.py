"""The store: rows that outlive the process, in one SQLite file of a data directory.

    save(number, changes) ─► worker: all that came meanwhile, one transaction ─► saved
                                └─ the disk is full ─► failed, kept, tried again

A commit starts when the one before it ends: whoever writes alone waits for one
``fsync``, whoever writes a lot shares it.  A file that is damaged, when it is opened or
later, is moved aside, what is sound of it is kept (``salvage``), and that is said: in
``notices``, or in the log.  A ballast file is given up when the disk is full, so that what
was finished can be deleted and the store recovers in place.

Does not: know what is in a row (``protocol/ledger.py`` does) or what damage looks like
(``salvage.py``), keep other processes away (the data directory's lock does), or touch
the event loop but by the two callbacks, which run in the worker's thread.

Invariants: saves are applied whole and in their order; ``saved`` is told only of what a
loss of power leaves; at most ``PAGES_MAX`` pages are used.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from p2pmesh import salvage
from p2pmesh.errors import ConfigError, StoreFull
from p2pmesh.forked import let_go
from p2pmesh.protocol.types import Change, Row
from p2pmesh.salvage import SCHEMA_VERSION, Damaged
from p2pmesh.storelog import PAGE_SIZE

FILE: Final = "messages.db"
FRESH: Final = f"{FILE}.fresh"  # what is to take the place of a damaged one
BALLAST: Final = "ballast"
#: The ballast, and what the write-ahead log holds before it is folded into the file:
#: folding it in must fit into the ballast.  A quarter of what is free, within these.
RESERVE_MIN: Final = 64 * 1024
RESERVE_MAX: Final = 1024 * 1024
PAGES_MAX: Final = 1024 * 1024 * 1024 // PAGE_SIZE
RETRY_AFTER: Final = 1.0  # seconds from a commit that failed to the next try
_DELETED_AT_ONCE: Final = 64  # rows, where the disk is full: what fits into the ballast

#: From each earlier schema version to the next, in one transaction with all others.
MIGRATIONS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {}

_log = logging.getLogger("p2pmesh.store")


class Store:
    """The rows of one node.  Made by :meth:`open`; ``start`` before the first ``save``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, tables: Sequence[str]) -> None:
        self.path = path
        self.notices: list[str] = []
        self._connection = connection
        self._rows: tuple[Row, ...] = ()  # until they are asked for
        self._tables = tuple(tables)
        self._reserve = _reserve(path.parent)
        self._saved: Callable[[int], None]
        self._failed: Callable[[str], None]
        self._changes: dict[tuple[str, bytes], Change] = {}  # not given to the worker yet
        self._number = 0
        self._is_closing = False
        self._wake = threading.Condition()
        self._worker: threading.Thread | None = None

    @classmethod
    def open(cls, directory: Path, tables: Sequence[str]) -> Store:
        """The store in a data directory, made if there is none; blocks on the disk.

        ``tables``: the names that rows may have.  Raises ConfigError where it cannot be
        used, and StoreFull where there is no room even for an empty one.
        """
        path = directory / FILE
        with _explained(path):
            salvage.resume(path, path.with_name(FRESH))
            try:
                self = cls._opened(path, tables)
            except Damaged as damage:
                with _given_up(path.with_name(BALLAST)):  # room for what is sound
                    notice = _salvage(path, tables, damage)
                self = cls._opened(path, tables)
                self.notices.append(notice)
            with suppress(OSError):  # full already: messages are taken once it is not
                self._keep_ballast()
        return self

    @classmethod
    def _opened(cls, path: Path, tables: Sequence[str]) -> Store:
        salvage.look(path, is_new=not path.with_name(BALLAST).exists())
        connection = _connect(path)
        try:
            self = cls(path, connection, tables)
            version = salvage.check(path, connection, tables)
            self._rows = salvage.rows(connection, tables)  # before anything is written
            self._prepare(version)
            if 0 < version < SCHEMA_VERSION:
                self._rows = salvage.rows(connection, tables)
        except BaseException:
            connection.close()
            raise
        return self

    def _prepare(self, version: int) -> None:
        """Bring the schema of a file that is sound to this version."""
        run = self._connection.execute
        _tune(self._connection, self._reserve)
        if 0 < version < SCHEMA_VERSION:
            self._migrate(version)
        with self._transaction():
            there = {name for (name,) in run("SELECT name FROM sqlite_schema")}
            for table in self._tables:
                if table not in there:
                    run(salvage.create_table(table))
            run(f"PRAGMA user_version = {SCHEMA_VERSION}")
            run(f"PRAGMA application_id = {salvage.application_id(SCHEMA_VERSION)}")

    def _migrate(self, version: int) -> None:
        """All steps or none, after a copy was made beside the file."""
        backup = salvage.unused(self.path.with_name(f"{self.path.name}.schema-{version}"))
        _create(backup)
        self._connection.execute("VACUUM INTO ?", (str(backup),))
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for step in range(version, SCHEMA_VERSION):
                MIGRATIONS[step](self._connection)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        self.notices.append(f"{self.path} was brought to schema {SCHEMA_VERSION}; before: {backup}")

    # --- reading ------------------------------------------------------------------------

    def rows(self) -> tuple[Row, ...]:
        """All rows that an earlier process left; they can be had once."""
        rows, self._rows = self._rows, ()
        return rows

    # --- writing ------------------------------------------------------------------------

    def start(self, saved: Callable[[int], None], failed: Callable[[str], None]) -> None:
        """Begin to write.  ``saved`` and ``failed`` are called in the worker's thread."""
        self._saved, self._failed = saved, failed
        self._worker = threading.Thread(target=self._work, name="p2pmesh-store", daemon=True)
        self._worker.start()

    def save(self, number: int, changes: Sequence[Change]) -> None:
        """Have these changes made, after all earlier ones; returns at once."""
        with self._wake:
            for change in changes:
                self._changes[change.table, change.key] = change
            self._number = number
            self._wake.notify()

    def close(self) -> None:
        """Write what was given, and close; blocks for as long as that takes.  What
        cannot be written is lost, as by a loss of power."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        with suppress(sqlite3.Error):
            self._connection.close()

    def drop_in_child(self) -> None:
        """In a forked child: let go of the files; the parent has them open."""
        names = tuple(os.fsencode(f"{self.path}{end}") for end in ("", "-wal", "-shm"))
        let_go(descriptor for descriptor in _open_descriptors() if _path_of(descriptor) in names)

    def _work(self) -> None:
        pending: dict[tuple[str, bytes], Change] = {}
        told = ""
        while True:
            with self._wake:
                if not self._changes and not self._is_closing:
                    self._wake.wait(RETRY_AFTER if pending else None)
                pending.update(self._changes)
                self._changes = {}
                number, is_last = self._number, self._is_closing
            if pending:
                why = self._try(pending)
                if not why:
                    pending.clear()
                    told = ""
                    self._saved(number)
                elif why != told:
                    told = why
                    self._failed(why)
            if is_last:
                return

    def _try(self, pending: dict[tuple[str, bytes], Change]) -> str:
        """One transaction; the empty text, or why it cannot be made."""
        try:
            self._commit(pending.values())
            return ""
        except sqlite3.Error as error:
            first = error
        try:
            if salvage.says_damage(first):
                self._heal(first)
            else:
                self._make_room(pending)
            self._commit(pending.values())
            return ""
        except (sqlite3.Error, OSError, Damaged) as error:
            _log.debug("the store cannot be written: %s", error)
            return str(error)

    def _heal(self, damage: sqlite3.Error) -> None:
        """Go on with what is sound of a file that turned out to be damaged."""
        self._connection.close()
        try:
            _log.warning("%s", _salvage(self.path, self._tables, damage))
        finally:
            self._connection = _connect(self.path)
            _tune(self._connection, self._reserve)

    def _make_room(self, pending: dict[tuple[str, bytes], Change]) -> None:
        """Delete what is finished, with the room that the ballast has kept.  Nothing new
        is put before the ballast is back: it is there for the next time."""
        self._ballast.unlink(missing_ok=True)
        self._fold()
        finished = (c for c in list(pending.values()) if c.value is None and not c.is_moved)
        while some := list(itertools.islice(finished, _DELETED_AT_ONCE)):
            self._commit(some)
            self._fold()
            for change in some:
                del pending[change.table, change.key]
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()
        self._fold()
        self._keep_ballast()

    def _fold(self) -> None:
        """Fold the log into the file: what it took is free again."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _commit(self, changes: Iterable[Change]) -> None:
        with self._transaction():
            for table, key, value, _ in changes:
                if value is None:
                    self._connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
                else:
                    self._connection.execute(
                        f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",
                        (key, value, salvage.checksum(table, key, value)),
                    )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has rolled back already
                self._connection.execute("ROLLBACK")
            raise

    # --- ballast ------------------------------------------------------------------------

    @property
    def _ballast(self) -> Path:
        return self.path.with_name(BALLAST)

    def _keep_ballast(self) -> None:
        """Raises OSError where there is no room for it."""
        if self._ballast.exists():
            return
        try:
            self._ballast.write_bytes(bytes(self._reserve))
        except OSError:
            self._ballast.unlink(missing_ok=True)
            raise


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        _create(path)
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)


def _create(path: Path) -> None:
    """An empty file, for its owner only."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _tune(connection: sqlite3.Connection, reserve: int) -> None:
    run = connection.execute
    run(f"PRAGMA page_size = {PAGE_SIZE}")
    run("PRAGMA auto_vacuum = INCREMENTAL")
    run("PRAGMA journal_mode = WAL")
    run("PRAGMA synchronous = FULL")
    run("PRAGMA secure_delete = OFF")  # else deleting needs as much of the log as putting
    run(f"PRAGMA max_page_count = {PAGES_MAX}")
    run(f"PRAGMA wal_autocheckpoint = {reserve // PAGE_SIZE}")
    run(f"PRAGMA journal_size_limit = {reserve}")


def _reserve(directory: Path) -> int:
    disk = os.statvfs(directory)
    return min(max(disk.f_bavail * disk.f_frsize // 4, RESERVE_MIN), RESERVE_MAX)


@contextmanager
def _given_up(ballast: Path) -> Iterator[None]:
    """Its room may be used.  Where that does not help it is there as before."""
    size = ballast.stat().st_size if ballast.exists() else 0
    ballast.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if size:
            with suppress(OSError):
                ballast.write_bytes(bytes(size))
        raise


def _salvage(path: Path, tables: Sequence[str], damage: Exception) -> str:
    """Have a sound file in the place of a damaged one; what to say of it.  Where there
    is no room for another, all is left as it was."""
    rows = salvage.sound_rows(path, tables)
    fresh = path.with_name(FRESH)
    salvage.discard(fresh)
    try:
        store = Store._opened(fresh, tables)
        try:
            store._commit(Change(*row) for row in rows)
            store._fold()  # its log stays behind
        finally:
            store.close()
    except BaseException:
        salvage.discard(fresh)
        raise
    aside = salvage.exchange(path, fresh)
    return (
        f"{path} was damaged ({damage}) and is now {aside}: {len(rows)} rows of it were sound "
        "and are kept; what was in others is lost"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of SQLite and the system become one line with the path and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "full" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            raise StoreFull(f"{path}: {error}: make room, or give another --data-dir") from None
        raise ConfigError(
            f"{path}: {error}: make it a file that you may write to, or give another --data-dir"
        ) from None


# --- forks -------------------------------------------------------------------------------


def _open_descriptors() -> Iterator[int]:
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):
            if name.isdigit():
                yield int(name)


def _path_of(descriptor: int) -> bytes | None:
    with suppress(OSError):
        return os.readlink(b"/proc/self/fd/%d" % descriptor)
    return None
