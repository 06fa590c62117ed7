"""The store on a real disk: what it was told is safe is there after anything."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from p2pmesh import store as module
from p2pmesh.errors import ConfigError, StoreFull
from p2pmesh.protocol.types import Change, Row
from p2pmesh.salvage import application_id
from p2pmesh.store import BALLAST, FILE, FRESH, PAGE_SIZE, SCHEMA_VERSION, Store
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


def made(directory: Path, count: int) -> tuple[bytes, dict[str, bytes]]:
    """The file of a store with so many rows, and these."""
    directory.mkdir()
    values = {str(n): random.Random(n).randbytes(300) for n in range(count)}
    with opened(directory) as (store, told):
        store.save(1, [put(key, value) for key, value in values.items()])
        told.until_saved(1)
    return (directory / FILE).read_bytes(), values


def flipped(whole: bytes, *bits: int) -> bytes:
    damaged = bytearray(whole)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: these tests start hundreds of stores."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        with tempfile.TemporaryDirectory(dir=memory) as directory:
            yield Path(directory)
    else:
        yield tmp_path


@pytest.fixture(autouse=True)
def _small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESERVE_MAX", module.RESERVE_MIN)


def start_with(content: bytes, directory: Path) -> tuple[dict[str, bytes], list[str]]:
    """What a store serves that finds this file, and what it says.  It moves aside at once
    what it has not got, and starts with all that it served from then on."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / FILE).write_bytes(content)
    store = Store.open(directory, TABLES)
    kept, notices = {row.key.decode(): row.value for row in store.rows()}, store.notices
    store.close()
    aside = [path for path in directory.iterdir() if ".damaged-" in path.name]
    assert len(aside) == len(notices) <= 1
    for path in aside:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name in notices[0]
    again = Store.open(directory, TABLES)
    assert {row.key.decode(): row.value for row in again.rows()} == kept
    assert again.notices == []
    again.close()
    assert [path for path in directory.iterdir() if ".damaged-" in path.name] == aside
    assert not list(directory.glob(f"{FRESH}*"))
    return kept, notices


def test_no_flipped_bit_is_served_and_all_else_is(scratch: Path) -> None:
    whole, values = made(scratch / "made", 60)
    rng = random.Random(2)
    said = 0
    for _ in range(200):
        kept, notices = start_with(
            flipped(whole, rng.randrange(8 * len(whole))), scratch / "flipped"
        )
        assert kept.items() <= values.items()
        assert notices or len(kept) == len(values)
        said += bool(notices)
    assert said > 50


@pytest.mark.parametrize("seed", range(20))
def test_forty_flipped_bits_cost_some_rows_and_never_the_start(scratch: Path, seed: int) -> None:
    whole, values = made(scratch / "made", 400)
    rng = random.Random(seed)
    after_schema = 8 * PAGE_SIZE
    bits = [rng.randrange(after_schema, 8 * len(whole)) for _ in range(40)]
    kept, notices = start_with(flipped(whole, *bits), scratch / "flipped")
    assert kept.items() <= values.items()
    assert len(notices) == 1


def record(whole: bytes, scratch: Path) -> int:
    """Where the header of the record of row 7 is: its length, and the types of its columns.
    SQLite leaves copies in what it does not use; of these nobody sees a flipped bit."""
    header = bytes((5, 14, 0x84, 0x64, 28))  # key of 1 byte, value of 300, checksum of 8
    start = header + b"7" + random.Random(7).randbytes(300)
    copies = [at for at in range(len(whole)) if whole.startswith(start, at)]
    return next(at for at in copies if start_with(flipped(whole, 8 * (at + 4)), scratch)[1])


def test_a_row_whose_column_became_another_type_costs_nothing_else(scratch: Path) -> None:
    whole, values = made(scratch / "made", 60)
    header = record(whole, scratch / "flipped")
    for byte in range(5):
        for bit in range(8):
            damaged = flipped(whole, 8 * (header + byte) + bit)
            kept, notices = start_with(damaged, scratch / "flipped")
            assert kept.items() <= values.items()
            assert len(kept) >= len(values) - 1
            assert len(notices) == 1


def test_a_bit_in_a_header_of_the_file_or_a_page_costs_neither_the_start_nor_a_wrong_row(
    scratch: Path,
) -> None:
    whole, values = made(scratch / "made", 12)
    headers = [*range(112), *range(3900, PAGE_SIZE)]  # of the file, its first page, its schema
    for page in range(PAGE_SIZE, len(whole), PAGE_SIZE):
        headers += range(page, page + 12)
    rng = random.Random(3)
    said = 0
    for _ in range(250):
        bit = 8 * rng.choice(headers) + rng.randrange(8)
        kept, notices = start_with(flipped(whole, bit), scratch / "flipped")
        assert kept.items() <= values.items()
        assert notices or kept == values
        said += bool(notices)
    assert said > 50


def test_a_table_that_lost_its_middle_is_read_from_both_its_ends(scratch: Path) -> None:
    whole, values = made(scratch / "made", 400)
    middle = whole.index(random.Random(200).randbytes(300)) // PAGE_SIZE
    damaged = bytearray(whole)
    damaged[middle * PAGE_SIZE : (middle + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
    kept, notices = start_with(bytes(damaged), scratch / "flipped")
    assert kept.items() <= values.items()
    assert len(values) - PAGE_SIZE // 300 <= len(kept) < len(values)
    assert {"0", "399"} <= kept.keys()
    assert "200" not in kept
    assert f"{len(kept)} rows" in notices[0]


def test_rows_are_found_under_a_table_name_that_was_damaged(scratch: Path) -> None:
    whole, values = made(scratch / "made", 10)
    bits = [8 * (at + 1) for at in range(len(whole)) if whole.startswith(b"outbox", at)]
    for bit in bits:
        kept, _ = start_with(flipped(whole, bit), scratch / "flipped")
        assert kept.items() <= values.items()
    kept, _ = start_with(flipped(whole, *bits), scratch / "flipped")
    assert kept == values


def test_where_what_is_sound_has_no_room_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_store(tmp_path)
    damaged = (tmp_path / FILE).read_bytes()
    (tmp_path / BALLAST).write_bytes(bytes(100))
    with monkeypatch.context() as small:
        small.setattr(module, "PAGES_MAX", 6)
        with pytest.raises(StoreFull):
            Store.open(tmp_path, TABLES)
    assert (tmp_path / FILE).read_bytes() == damaged
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {FILE, BALLAST}
    assert len(rows_in(tmp_path)) >= 59


def damaged_store(directory: Path) -> dict[str, bytes]:
    """A store whose row 7 is damaged; all its rows."""
    whole, values = made(directory / "made", 60)
    at = record(whole, directory / "scratch") + 4
    (directory / FILE).write_bytes(flipped(whole, 8 * at))
    return values


@pytest.mark.parametrize("renamed", range(3))
def test_a_start_that_is_killed_while_it_salvages_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    values = damaged_store(tmp_path)
    (tmp_path / f"{FILE}.fresh-wal").write_bytes(b"of an earlier try")

    class Killed(BaseException):
        pass

    left = [renamed]
    rename = Path.rename

    def killing(path: Path, target: Path) -> Path:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killing)
        with suppress(Killed):
            Store.open(tmp_path, TABLES).close()
    assert rows_in(tmp_path) == values  # the bit made a text of what was bytes
    assert [path.name for path in tmp_path.glob("*.damaged-*")] == [f"{FILE}.damaged-1"]
    assert not list(tmp_path.glob(f"{FRESH}*"))


def test_damage_that_is_met_while_writing_is_salvaged_and_the_write_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path / "made", 400)
    whole = (tmp_path / "made" / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole)
    with opened(tmp_path) as (store, told):
        assert len(store.rows()) == 400
        for page in range(PAGE_SIZE, len(whole), PAGE_SIZE):  # the types of the table's pages
            if whole[page] in (2, 10):
                with open(tmp_path / FILE, "r+b") as file:
                    file.seek(page)
                    file.write(b"\xff")
        store._connection.execute("PRAGMA shrink_memory")  # what it had read is read again
        store.save(1, [put("new", b"1"), gone("0")])
        told.until_saved(1)
        store.save(2, [put("newer", b"2")])
        told.until_saved(2)
        assert told.failures == []
    assert f"{FILE}.damaged-1" in caplog.text
    kept = rows_in(tmp_path)
    assert len(kept) == 401
    assert kept["new"] == b"1"
    assert kept["newer"] == b"2"


def busy(directory: Path) -> tuple[bytes, bytes, dict[str, bytes]]:
    """A file and its log with forty commits, and what is in them at the end."""
    directory.mkdir()
    values: dict[str, bytes] = {}
    with opened(directory) as (store, told):
        store._connection.execute("PRAGMA wal_autocheckpoint = 0")  # all stays in the log
        for number in range(1, 41):
            put_now = {f"{number}.{n}": random.Random(number * n).randbytes(500) for n in range(3)}
            ended = [f"{number - 5}.1"] if number > 5 else []
            store.save(number, [put(*row) for row in put_now.items()] + [*map(gone, ended)])
            told.until_saved(number)
            values = {key: row for key, row in (values | put_now).items() if key not in ended}
        return (directory / FILE).read_bytes(), (directory / f"{FILE}-wal").read_bytes(), values


def start_hot(directory: Path, content: bytes, log: bytes) -> tuple[dict[str, bytes], list[str]]:
    """What a store serves that finds this file and log, now and at its next start."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / FILE).write_bytes(content)
    (directory / f"{FILE}-wal").write_bytes(log)
    store = Store.open(directory, TABLES)
    kept, notices = {row.key.decode(): row.value for row in store.rows()}, store.notices
    store.close()
    assert rows_in(directory) == kept
    assert not list(directory.glob("*.read*"))
    if notices:
        assert (directory / f"{FILE}.damaged-1-wal").read_bytes() == log
    return kept, notices


def test_a_flipped_bit_in_the_log_costs_a_row_at_most_and_is_said(tmp_path: Path) -> None:
    """But for the last commit, which a loss of power may have torn as well."""
    content, log, values = busy(tmp_path / "made")
    frame = 24 + PAGE_SIZE
    # The frame that ends a commit says how many pages the file has then.
    ends = [at + frame for at in range(32, len(log), frame) if any(log[at + 4 : at + 8])]
    assert len(ends) > 40
    before_last = ends[-2]
    rng = random.Random(3)
    places = [*range(0, 8 * 32, 7), *(rng.randrange(8 * before_last) for _ in range(60))]
    places += [8 * (32 + 50 * frame) + bit for bit in range(0, 8 * 24, 5)]  # a frame's header
    for bit in places:
        kept, notices = start_hot(tmp_path / "flipped", content, flipped(log, bit))
        assert kept.items() <= values.items()
        assert len(notices) == 1
        assert len(kept) >= len(values) - (PAGE_SIZE // 500 if bit >= 8 * 32 else 0)


def test_a_log_that_is_cut_off_is_no_damage(tmp_path: Path) -> None:
    content, log, _ = busy(tmp_path / "made")
    rng = random.Random(4)
    for _ in range(20):
        cut = bytearray(log[: rng.randrange(len(log))])
        cut[-min(len(cut), 3000) :] = bytes(min(len(cut), 3000))  # pages that never arrived
        _, notices = start_hot(tmp_path / "cut", content, bytes(cut))
        assert notices == []


@pytest.mark.parametrize("size", [0, 1, 19, 99])
def test_a_file_that_lost_its_beginning_is_not_taken_for_a_new_one(
    tmp_path: Path, size: int
) -> None:
    content, log, values = busy(tmp_path / "made")
    kept, notices = start_hot(tmp_path / "hot", content[:size], log)
    assert kept == values
    assert len(notices) == 1
    Store.open(tmp_path / "made", TABLES).close()  # folds its log in
    os.truncate(tmp_path / "made" / FILE, size)
    store = Store.open(tmp_path / "made", TABLES)
    store.close()
    assert len(store.notices) == 1


def test_a_file_that_is_no_database_is_moved_aside_and_said(tmp_path: Path) -> None:
    content = b"not a database, but long enough to be looked at" * 100
    kept, (notice,) = start_with(content, tmp_path / "other")
    assert kept == {}
    assert "is now" in notice
    assert (tmp_path / "other" / f"{FILE}.damaged-1").read_bytes() == content


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Store.open(tmp_path, TABLES).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.execute(f"PRAGMA application_id = {application_id(SCHEMA_VERSION + 1)}")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match="later p2pmesh"):
        Store.open(tmp_path, TABLES)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_store_of_fewer_tables_is_opened_with_all_its_rows_and_is_not_damaged(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as (store, told):
        store.save(1, [put("a", b"1")])
        told.until_saved(1)
    later = (*TABLES, "sent_keys")
    store = Store.open(tmp_path, later)
    assert [row.value for row in store.rows()] == [b"1"]
    assert store.notices == []
    told = Told()
    store.start(told.on_saved, told.on_failed)
    store.save(1, [put("k", b"2", "sent_keys")])
    told.until_saved(1)
    store.close()
    store = Store.open(tmp_path, later)
    assert {(row.table, row.value) for row in store.rows()} == {
        ("outbox", b"1"),
        ("sent_keys", b"2"),
    }
    store.close()


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
    step = "DELETE FROM mailbox"
    monkeypatch.setattr(module, "MIGRATIONS", {SCHEMA_VERSION: lambda c: c.execute(step)})
    store = Store.open(tmp_path, TABLES)
    assert [row.value for row in store.rows()] == [b"1"]
    assert any("schema" in notice for notice in store.notices)
    store.close()
    copies = sorted(path.name for path in tmp_path.iterdir() if ".schema-" in path.name)
    assert f"{FILE}.schema-{SCHEMA_VERSION}-1" in copies
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in copies)


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
