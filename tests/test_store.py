"""The store on a real disk: what it was told is safe is there after anything."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pmesh import store as module
from p2pmesh.errors import ConfigError, StoreFull
from p2pmesh.protocol.types import Change, Row
from p2pmesh.store import BALLAST, FILE, SCHEMA_VERSION, Store
from tests.processes import HANG_GUARD as HANG

TABLES = ("outbox", "mailbox")


class Told:
    """What a store said, and a wait for it."""

    def __init__(self) -> None:
        self.saved = 0
        self.failures: list[str] = []
        self._changed = threading.Condition()

    def on_saved(self, number: int) -> None:
        with self._changed:
            self.saved = number
            self._changed.notify_all()

    def on_failed(self, why: str) -> None:
        with self._changed:
            self.failures.append(why)
            self._changed.notify_all()

    def until_saved(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.saved >= number, HANG)

    def until_failed(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.failures, HANG)


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Store, Told]]:
    store, told = Store.open(directory, TABLES), Told()
    store.start(told.on_saved, told.on_failed)
    try:
        yield store, told
    finally:
        store.close()


def put(key: str, value: bytes, table: str = "outbox") -> Change:
    return Change(table, key.encode(), value)


def gone(key: str, table: str = "outbox") -> Change:
    return Change(table, key.encode(), None)


def rows_in(directory: Path) -> dict[str, bytes]:
    store = Store.open(directory, TABLES)
    try:
        return {row.key.decode(): row.value for row in store.rows()}
    finally:
        store.close()


def test_rows_come_back_as_they_were_put_last(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"1"), put("b", b"2"), put("c", b"", "mailbox")])
        store.save(2, [put("a", b"3"), gone("b")])
        told.until_saved(2)
    store = Store.open(tmp_path, TABLES)
    assert set(store.rows()) == {Row("outbox", b"a", b"3"), Row("mailbox", b"c", b"")}
    assert store.notices == []
    store.close()


def test_what_is_said_to_be_safe_survives_kill_9(tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from p2pmesh.store import Store\n"
        "from p2pmesh.protocol.types import Change\n"
        f"store = Store.open(Path(sys.argv[1]), {TABLES!r})\n"
        "store.start(lambda n: print(n, flush=True), print)\n"
        "for n in range(1, 100_000):\n"
        "    store.save(n, [Change('outbox', b'%d' % n, b'x' * 100)])\n"
        "    if n % 50 == 0: threading.Event().wait(0.001)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(5)]
    finally:
        child.kill()
        rest, _ = child.communicate(timeout=HANG)
    told += [int(line) for line in rest.split("\n") if line.isdigit()]
    kept = rows_in(tmp_path)
    assert all(str(n) in kept for n in range(1, max(told) + 1))


def test_whatever_is_cut_off_the_log_each_save_is_whole_or_missing_with_all_after_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "made").mkdir()
    with opened(tmp_path / "made") as (store, told):
        for number in range(1, 41):
            store.save(number, [put(f"{number}.{part}", b"x" * 500) for part in range(3)])
            told.until_saved(number)
        files = {name: (tmp_path / "made" / name).read_bytes() for name in (FILE, f"{FILE}-wal")}
    rng = random.Random(1)
    log = files[f"{FILE}-wal"]
    for attempt in range(20):
        cut = tmp_path / f"cut-{attempt}"
        cut.mkdir()
        (cut / FILE).write_bytes(files[FILE])
        (cut / f"{FILE}-wal").write_bytes(log[: rng.randrange(len(log))])
        kept = rows_in(cut)
        saves = {int(key.partition(".")[0]) for key in kept}
        assert len(kept) == 3 * len(saves)
        assert saves == set(range(1, len(saves) + 1))


def test_no_flipped_bit_is_served(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with opened(tmp_path / "made") as (store, told):
        values = {str(n): random.Random(n).randbytes(300) for n in range(60)}
        store.save(1, [put(key, value) for key, value in values.items()])
        told.until_saved(1)
    rng = random.Random(2)
    whole = (tmp_path / "made" / FILE).read_bytes()
    said = 0
    for _ in range(200):
        directory = tmp_path / "flipped"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (directory / FILE).write_bytes(damaged)
        store = Store.open(directory, TABLES)
        kept = {row.key.decode(): row.value for row in store.rows()}
        assert all(values[key] == value for key, value in kept.items())
        if len(kept) < len(values):
            said += 1
            (notice,) = store.notices
            assert "damaged" in notice
            assert any(path.name.startswith(f"{FILE}.damaged") for path in directory.iterdir())
        store.close()
    assert said > 50


def test_a_file_that_is_no_database_is_moved_aside_and_said(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    store = Store.open(tmp_path, TABLES)
    (notice,) = store.notices
    assert "is now" in notice
    assert store.rows() == ()
    store.close()
    assert (tmp_path / f"{FILE}.damaged-1").read_bytes().startswith(b"not a database")


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Store.open(tmp_path, TABLES).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match="later p2pmesh"):
        Store.open(tmp_path, TABLES)
    assert (tmp_path / FILE).read_bytes() == before


def test_an_earlier_schema_is_migrated_whole_or_not_at_all_and_a_copy_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"1")])
        told.until_saved(1)
    monkeypatch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)

    def half_way(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM outbox")
        raise sqlite3.OperationalError("no")

    monkeypatch.setattr(module, "MIGRATIONS", {SCHEMA_VERSION: half_way})
    with pytest.raises(ConfigError):
        Store.open(tmp_path, TABLES)
    step = "CREATE TABLE added (key BLOB)"
    monkeypatch.setattr(module, "MIGRATIONS", {SCHEMA_VERSION: lambda c: c.execute(step)})
    store = Store.open(tmp_path, TABLES)
    assert [row.value for row in store.rows()] == [b"1"]
    assert any("schema" in notice for notice in store.notices)
    store.close()
    copies = sorted(path.name for path in tmp_path.iterdir() if ".schema-" in path.name)
    assert f"{FILE}.schema-{SCHEMA_VERSION}-1" in copies


def test_a_full_store_says_so_and_goes_on_by_itself_when_something_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES_MAX", 40)
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"x" * 60_000)])
        told.until_saved(1)
        store.save(2, [put("b", b"x" * 120_000)])
        told.until_failed()
        assert "full" in told.failures[0]
        assert told.saved == 1
        store.save(3, [gone("a"), gone("b")])
        told.until_saved(3)
        store.save(4, [put("c", b"x" * 60_000)])
        told.until_saved(4)
    assert list(rows_in(tmp_path)) == ["c"]


def test_what_is_finished_is_deleted_before_more_is_put_where_only_that_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES_MAX", 40)
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"x" * 90_000)])
        told.until_saved(1)
        store.save(2, [put("b", b"y" * 90_000), gone("a")])
        told.until_saved(2)
    assert rows_in(tmp_path) == {"b": b"y" * 90_000}


def test_a_row_that_moved_is_never_missing_from_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES_MAX", 40)
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"x" * 90_000)])
        told.until_saved(1)
        store.save(2, [put("b", b"x" * 90_000), Change("outbox", b"a", None, is_moved=True)])
        told.until_failed()
    assert list(rows_in(tmp_path)) == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_on_a_real_full_disk_the_ballast_lets_it_recover_in_place(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "p2pmesh-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with opened(disk) as (store, told):
            assert (disk / BALLAST).exists()
            number = 0
            while not told.failures:
                number += 1
                store.save(number, [put(str(number), b"x" * 20_000)])
                with told._changed:
                    done = told._changed.wait_for(
                        lambda: told.saved >= number or told.failures,  # noqa: B023
                        HANG,
                    )
                assert done
            assert "full" in told.failures[0]
            store.save(number + 1, [gone(str(n)) for n in range(1, number + 1)])
            told.until_saved(number + 1)
            store.save(number + 2, [put("after", b"x" * 20_000)])
            told.until_saved(number + 2)
        assert list(rows_in(disk)) == ["after"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_without_room_for_a_store_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises((ConfigError, StoreFull), match=FILE):
        Store.open(tmp_path, TABLES)


def test_a_forked_child_lets_go_and_the_parent_writes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"1")])
        told.until_saved(1)
        child = os.fork()
        if child == 0:
            store.drop_in_child()
            held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
            os._exit(any(str(tmp_path) in path for path in held))
        assert os.waitpid(child, 0)[1] == 0
        store.save(2, [put("b", b"2")])
        told.until_saved(2)
    assert sorted(rows_in(tmp_path)) == ["a", "b"]
