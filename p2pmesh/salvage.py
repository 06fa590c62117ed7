"""Damage of the store's file: how it is seen, and what becomes of what is sound.

    check ──► Damaged ──► sound_rows ──► a fresh file beside it ──► exchange
                                          └─ no room: as it was       └─ moved aside, whole

There is one way for all damage, whether SQLite sees it (the file, its trees, its
schema) or the checksum of a row does: the sound rows are copied into a fresh file,
which then takes the place of the damaged one.  That is kept as it was, as
``damaged-N``, for its owner only.

Does not: write to a damaged file, or repair anything in it; read what SQLite cannot
open at all.

Invariants: no row is read whose checksum is wrong, and of two with one key the
later one is; killed at any moment, the next start ends what was begun or begins again.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeAlias

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.types import Row
from p2pmesh.storelog import PAGE_SIZE, Log

SCHEMA_VERSION: Final = 1
_APPLICATION: Final = 0x70326D00
_COLUMNS: Final = "(key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL)"
_HEADER: Final = 100  # bytes, of every database
_BESIDE: Final = ("-wal", "-shm")  # what SQLite keeps beside a file
_UNREADABLE: Final = (sqlite3.Error, MemoryError, UnicodeDecodeError)
_ROWID_MAX: Final = 2**63 - 1

#: What the file is not to blame for.
_TROUBLE: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


class Damaged(Exception):
    """The file, or a row of it, is not what was written."""


@contextmanager
def seeing_damage() -> Iterator[None]:
    """Errors of SQLite that only a damaged file can cause become Damaged."""
    try:
        yield
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        raise Damaged(str(error)) from None
    except UnicodeDecodeError:  # of an error's own text, which quotes the schema
        raise Damaged("its schema is not that of a store") from None


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none: text is no UTF-8
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in _TROUBLE


def says_damage(error: sqlite3.Error) -> bool:
    """Of an error that was met while writing, which has many causes."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def create_table(table: str) -> str:
    return f"CREATE TABLE {table} {_COLUMNS}"


def application_id(version: int) -> int:
    """Says the schema's version once more: one of the two may be damaged."""
    return _APPLICATION + version


def checksum(table: str, key: bytes, value: bytes) -> bytes:
    digest = blake2b(table.encode(), digest_size=8, salt=len(key).to_bytes(8))
    digest.update(key)
    digest.update(value)
    return digest.digest()


# --- before SQLite looks --------------------------------------------------------------


def look(path: Path, *, is_new: bool) -> None:
    """See what SQLite takes for the end of a log, or for an empty file, and then deletes
    unread.  ``is_new``: an empty file may be one that nobody wrote yet.  Raises Damaged."""
    if not path.exists():
        return
    size, log = path.stat().st_size, read_log(path)
    if size < _HEADER and (size or log is not None or not is_new):
        raise Damaged("it is cut off")
    if log is not None and log.is_damaged:
        raise Damaged("its log is not what was written")


def read_log(path: Path) -> Log | None:
    """What the write-ahead log beside a file holds, if it holds anything."""
    log = Path(f"{path}-wal")
    if not log.exists() or log.stat().st_size < PAGE_SIZE:
        return None
    return Log.read(log.read_bytes())


# --- looking --------------------------------------------------------------------------


def check(path: Path, connection: sqlite3.Connection, tables: Sequence[str]) -> int:
    """The file's schema version, 0 for a new one.  Raises Damaged, ConfigError."""
    with open(path, "rb") as file:  # before SQLite locks it: closing drops all locks
        formats = file.read(20)[18:20]
    if any(each not in (1, 2) for each in formats):  # else SQLite calls it read-only
        raise Damaged("file is not a database")
    with seeing_damage():
        run = connection.execute
        (version,) = run("PRAGMA user_version").fetchone()
        (application,) = run("PRAGMA application_id").fetchone()
        schema = set(run("SELECT type, name, tbl_name, sql FROM sqlite_schema"))
        if version == application == 0 and not schema:
            return 0
        if application != application_id(version) or version == 0:
            raise Damaged("its header is not that of a store")
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{path} was written by a later p2pmesh (schema {version}, this one reads "
                f"{SCHEMA_VERSION}): use that, or give another --data-dir"
            )
        if version == SCHEMA_VERSION and schema - _schema(tables):
            raise Damaged("its schema is not that of a store")
        (verdict,) = run("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(verdict)
    return int(version)


def _schema(tables: Sequence[str]) -> set[tuple[str, str, str, str | None]]:
    made = {("table", table, table, create_table(table)) for table in tables}
    return made | {("index", f"sqlite_autoindex_{table}_1", table, None) for table in tables}


def rows(connection: sqlite3.Connection, tables: Sequence[str]) -> tuple[Row, ...]:
    """All rows, of a file in which every one is sound.  Raises Damaged."""
    found = []
    with seeing_damage():
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        for table in (table for table in tables if table in there):
            for row in connection.execute(f"SELECT key, value, checksum FROM {table}"):
                if not _is_sound(table, *row):
                    raise Damaged(f"a row of {table!r} has another checksum")
                found.append(Row(table, row[0], row[1]))
    return tuple(found)


def _is_sound(table: str, key: object, value: object, said: object) -> bool:
    return (
        isinstance(key, bytes) and isinstance(value, bytes) and said == checksum(table, key, value)
    )


# --- saving what is sound -------------------------------------------------------------


def sound_rows(path: Path, tables: Sequence[str]) -> tuple[Row, ...]:
    """What is sound in a damaged file, in the order in which it was written."""
    log = read_log(path)
    if log is None or not (log.is_damaged or path.stat().st_size < PAGE_SIZE):
        return _sound_rows(path, tables)
    copy = path.with_name(f"{path.name}.read")
    discard(copy)
    try:
        shutil.copy(path, copy)
        if copy.stat().st_size < PAGE_SIZE:
            os.truncate(copy, PAGE_SIZE)  # SQLite deletes the log of an empty file
        mended = Path(f"{copy}-wal")
        mended.touch(0o600)
        mended.write_bytes(log.mended())
        return _sound_rows(copy, tables)
    finally:
        discard(copy)


def _sound_rows(path: Path, tables: Sequence[str]) -> tuple[Row, ...]:
    found: dict[tuple[str, bytes], tuple[int, bytes]] = {}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = bytes  # one bit makes a text of what was bytes
        for there in _tables_in(connection):
            for rowid, key, value, said in _walk(connection, there):
                table = _table_of(key, value, said, (there, *tables))
                if table in tables and rowid >= found.get((table, key), (rowid,))[0]:
                    found[table, key] = (rowid, value)
    in_order = sorted(found.items(), key=lambda item: item[1][0])
    return tuple(Row(table, key, value) for (table, key), (_, value) in in_order)


def _tables_in(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Their names, which may be damaged, too."""
    try:
        connection.execute("PRAGMA writable_schema = ON")  # else one bad entry hides all tables
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    except _UNREADABLE:
        return ()
    return tuple(name.decode(errors="replace") for (name,) in names if type(name) is bytes)


def _table_of(key: object, value: object, said: object, tables: Sequence[str]) -> str:
    """The table that a row was written to: its checksum says so.  Empty: none."""
    return next((table for table in tables if _is_sound(table, key, value, said)), "")


_Cells: TypeAlias = tuple[int, Any, Any, Any]  # rowid, key, value, checksum


def _walk(connection: sqlite3.Connection, table: str) -> Iterator[_Cells]:
    """The rows of a table, up and down: each way steps over what cannot be read with
    steps that double, and the other has what they cost."""
    end = yield from _steps(connection, table, 1, 0)
    yield from _steps(connection, table, -1, end)


def _steps(
    connection: sqlite3.Connection, table: str, way: int, first: int
) -> Generator[_Cells, None, int]:
    """The rows one way; where to begin the other.  One at a time: a cursor reads ahead,
    and what it cannot read costs the row before."""
    order = "rowid >= ? ORDER BY rowid" if way > 0 else "rowid <= ? ORDER BY rowid DESC"
    query = (
        f'SELECT rowid, key, value, checksum FROM "{table}" NOT INDEXED WHERE {order} LIMIT 1'
    )  # fmt: skip
    at, step = first, 0
    while 0 <= (start := at + way * step) <= _ROWID_MAX:
        try:
            row = connection.execute(query, (start,)).fetchone()
        except _UNREADABLE:
            step = step * 2 or 1
            continue
        if row is None:
            return start
        if (row[0] - start) * way < 0:  # a tree that leads back
            step = step * 2 or 1
        else:
            yield row
            at, step = row[0] + way, 0
    return at


def exchange(path: Path, fresh: Path) -> Path:
    """Put the fresh file in the place of the damaged one; where that is now."""
    aside = unused(_aside_of(path))
    path.chmod(0o600)
    path.rename(aside)
    _end_exchange(path, fresh, aside)
    return aside


def resume(path: Path, fresh: Path) -> None:
    """After an end of the process at any moment of the above."""
    if path.exists():
        discard(fresh)
    elif fresh.exists():
        asides = itertools.takewhile(Path.exists, _numbered(_aside_of(path)))
        _end_exchange(path, fresh, [_aside_of(path), *asides][-1])


def _end_exchange(path: Path, fresh: Path, aside: Path) -> None:
    for end in _BESIDE:
        with suppress(FileNotFoundError):
            os.rename(f"{path}{end}", f"{aside}{end}")
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def discard(fresh: Path) -> None:
    for end in ("", *_BESIDE):
        Path(f"{fresh}{end}").unlink(missing_ok=True)


def unused(path: Path) -> Path:
    """A name for a copy of a file that is not in use."""
    return next(name for name in _numbered(path) if not name.exists())


def _numbered(path: Path) -> Iterator[Path]:
    return (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))


def _aside_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")
