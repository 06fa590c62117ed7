"""The data dir: one holder, nothing lost, nothing damaged served."""

import errno
import os
import signal
import sys

import pytest

from p2pmesh import datadir
from p2pmesh.datadir import DataDir, EphemeralIdentity, Locked
from p2pmesh.errors import ConfigError, StoreFull
from p2pmesh.protocol.types import Life, Restored
from tests.processes import Process

FIRST, SECOND = Life(1_700_000_000_000, 3, 77), Life(1_700_000_000_001, 0, 5)

HOLDER = """
import json, os, signal, sys
from pathlib import Path
from p2pmesh.datadir import DataDir
held = DataDir.open(Path(sys.argv[1]))
if "fork" in sys.argv:
    dropped, done = os.pipe()
    if os.fork() == 0:
        held.drop_in_child()
        os.close(1)
        os.close(done)
        signal.pause()
    os.close(done)
    os.read(dropped, 1)
print(json.dumps({"holds": sys.argv[1]}), flush=True)
signal.pause()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "p2pmesh" / "ada.0"


@pytest.fixture
def open_dir():
    """DataDir.open, closed at the end of the test."""
    opened = []

    def open_dir(path, **more):
        opened.append(DataDir.open(path, **more))
        return opened[-1]

    yield open_dir
    for each in opened:
        each.close()


@pytest.fixture
def holder(home, path):
    """Another process that holds the directory."""

    def start(*arguments):
        other = Process([sys.executable, "-c", HOLDER, str(path), *arguments], home=home)
        started.append(other)
        other.line(lambda line: "holds" in line)
        return other

    started = []
    yield start
    for other in started:
        other.close()


# --- what is kept -----------------------------------------------------------------


def test_a_new_directory_holds_a_new_identity_and_no_past(open_dir, path):
    made = open_dir(path, entropy=lambda size: b"\x05" * size)
    assert made.seed == b"\x05" * 32
    assert (made.instance_id, made.restored, made.notices) == (None, Restored(), ())
    assert made.is_persistent


def test_identity_instance_id_life_and_epoch_come_back(open_dir, path):
    first = open_dir(path)
    first.keep_instance_id("ada-1")
    first.keep(FIRST, 41)
    first.keep(SECOND, None)
    first.close()
    second = open_dir(path)
    assert second.seed == first.seed
    assert second.instance_id == "ada-1"
    assert second.restored == Restored(life=SECOND, epoch=41)


def test_two_directories_are_two_identities(open_dir, tmp_path):
    assert open_dir(tmp_path / "a").seed != open_dir(tmp_path / "b").seed


def test_an_epoch_is_never_lowered(open_dir, path):
    first = open_dir(path)
    first.keep(FIRST, 41)
    first.keep(FIRST, 40)
    first.close()
    assert open_dir(path).restored.epoch == 41


def test_what_was_restored_is_the_past_not_what_was_kept_since(open_dir, path):
    held = open_dir(path)
    held.keep(FIRST, 41)
    assert held.restored == Restored()


def test_directory_and_files_are_their_owners_alone(open_dir, path):
    before = os.umask(0)
    try:
        open_dir(path).keep(FIRST, 1)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == {
        "identity": 0o600, "state": 0o600, "lock": 0o600,
    }  # fmt: skip


def test_an_identity_that_others_could_read_is_closed_to_them_and_told(open_dir, path):
    first = open_dir(path)
    first.close()
    (path / "identity").chmod(0o644)
    second = open_dir(path)
    assert second.seed == first.seed
    assert (path / "identity").stat().st_mode & 0o777 == 0o600
    assert second.notices == (f"{path / 'identity'} could be read by others, and no longer can",)


def test_an_ephemeral_identity_has_the_same_face_and_no_past():
    one, other = EphemeralIdentity(), EphemeralIdentity(lambda size: b"\x01" * size)
    assert one.seed != other.seed == b"\x01" * 32
    one.keep(FIRST, 1)
    one.keep_instance_id("ada-1")
    one.drop_in_child()
    one.close()
    assert (one.instance_id, one.restored, one.notices) == ("ada-1", Restored(), ())
    assert not one.is_persistent


# --- one holder -------------------------------------------------------------------


def test_a_directory_that_is_in_use_is_refused_naming_the_process(holder, path):
    other = holder()
    with pytest.raises(Locked, match=f"{path} is in use by process {other.pid}: .*--data-dir"):
        DataDir.open(path)


def test_a_killed_process_holds_nothing(holder, open_dir, path):
    holder().kill()
    open_dir(path)


def test_a_forked_child_lets_go_of_the_lock_and_its_parent_keeps_it(holder, open_dir, path):
    other = holder("fork")
    with pytest.raises(Locked):
        DataDir.open(path)
    other.signal(signal.SIGKILL)
    other.wait()
    open_dir(path)


def test_a_refused_directory_is_left_as_it_was(holder, path):
    other = holder()
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(Locked):
        DataDir.open(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert (path / "lock").read_text() == f"{other.pid}\n"


def test_closing_unlocks_and_may_be_repeated(open_dir, path):
    first = open_dir(path)
    first.close()
    second = open_dir(path)
    first.close()
    with pytest.raises(Locked, match=str(os.getpid())):
        DataDir.open(path)
    second.close()


def test_processes_of_one_name_take_the_first_directory_that_is_free(tmp_path):
    paths = [tmp_path / f"ada.{number}" for number in range(3)]
    held = [DataDir.open_first(paths) for _ in paths]
    assert [each.path for each in held] == paths
    with pytest.raises(ConfigError, match=r"ada\.2 is in use: .*--data-dir"):
        DataDir.open_first(paths)
    held[1].close()
    again = DataDir.open_first(paths)
    assert (again.path, again.seed) == (paths[1], held[1].seed)
    for each in (*held, again):
        each.close()


def test_a_directory_that_cannot_be_used_is_not_skipped_for_the_next(tmp_path):
    (tmp_path / "ada.0").write_text("a file")
    with pytest.raises(ConfigError, match=r"ada\.0"):
        DataDir.open_first([tmp_path / "ada.0", tmp_path / "ada.1"])
    assert not (tmp_path / "ada.1").exists()


# --- damage and crashes -----------------------------------------------------------


def damaged(sealed):
    """A file with each byte changed, and cut at each length."""
    for index in range(len(sealed)):
        yield sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        yield sealed[:index]
    yield sealed + b"x"


def test_a_damaged_state_is_moved_aside_said_aloud_and_never_served(open_dir, path):
    first = open_dir(path)
    first.keep_instance_id("ada-1")
    first.keep(FIRST, 41)
    first.close()
    sealed = (path / "state").read_bytes()
    for number, broken in enumerate(damaged(sealed), 1):
        (path / "state").write_bytes(broken)
        held = DataDir.open(path)
        held.close()
        assert (held.seed, held.instance_id, held.restored) == (first.seed, None, Restored())
        (notice,) = held.notices
        assert notice == (
            f"{path / 'state'} was damaged and is now {path / f'state.damaged-{number}'}: "
            "instance id, last life and epoch are forgotten"
        )
        assert (path / f"state.damaged-{number}").read_bytes() == broken
        assert not (path / "state").exists()


def test_a_damaged_identity_is_moved_aside_and_replaced(open_dir, path):
    first = open_dir(path)
    first.keep(FIRST, 41)
    first.close()
    (path / "identity").write_bytes(b"x" + (path / "identity").read_bytes())
    second = open_dir(path)
    assert second.seed != first.seed
    assert second.restored == Restored(life=FIRST, epoch=41)
    assert "a new identity" in second.notices[0]
    second.close()
    third = open_dir(path)
    assert (third.seed, third.notices) == (second.seed, ())


def test_a_seal_around_another_thing_is_damage(open_dir, path):
    path.mkdir(parents=True)
    for body in (b"{}", b'{"seed":"AAAA"}', b"[]", b"nonsense"):
        (path / "identity").write_bytes(body + b"\n" + datadir._checksum(body))
        held = DataDir.open(path)
        held.close()
        assert len(held.seed) == 32
        assert "was damaged" in held.notices[-1]


def test_a_write_is_on_the_medium_before_it_replaces_the_old(open_dir, path, monkeypatch):
    held = open_dir(path)
    steps = []

    def noted(name, does):
        def step(*arguments):
            steps.append(name)
            return does(*arguments)

        return step

    monkeypatch.setattr(datadir, "_sync", noted("sync file", datadir._sync))
    monkeypatch.setattr(os, "replace", noted("replace", os.replace))
    monkeypatch.setattr(datadir, "_sync_directory", noted("sync directory", lambda path: None))
    held.keep(FIRST, 1)
    assert steps == ["sync file", "replace", "sync directory"]
    held.keep(FIRST, 1)
    assert len(steps) == 3  # nothing new to keep


@pytest.mark.parametrize("step", ["_sync", "_sync_directory"])
@pytest.mark.parametrize(
    ("number", "error", "advice"),
    [
        (errno.ENOSPC, StoreFull, "No space left on device: make room"),
        (errno.EDQUOT, StoreFull, "make room"),
        (errno.EROFS, ConfigError, "Read-only file system: make it a directory that you may"),
        (errno.EIO, ConfigError, "Input/output error"),
    ],
)
def test_a_write_that_fails_is_an_error_with_the_path_and_keeps_what_was(
    open_dir, path, monkeypatch, step, number, error, advice
):
    held = open_dir(path)
    held.keep(FIRST, 41)

    def fails(_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(datadir, step, fails)
        with pytest.raises(error, match=advice) as refused:
            held.keep(SECOND, 42)
        assert str(path) in str(refused.value)
    held.close()
    restored = open_dir(path).restored
    assert restored in (Restored(life=FIRST, epoch=41), Restored(life=SECOND, epoch=42))
    assert restored.epoch == 41 or step == "_sync_directory"


def test_a_node_whose_disk_recovers_keeps_on_where_it_was(open_dir, path, monkeypatch):
    held = open_dir(path)

    def fails(_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr(datadir, "_sync", fails)
        with pytest.raises(StoreFull):
            held.keep(FIRST, 41)
    held.keep(FIRST, 41)
    held.close()
    assert open_dir(path).restored == Restored(life=FIRST, epoch=41)


def test_a_path_that_is_no_directory_is_refused_with_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"{path}: .*--data-dir"):
            DataDir.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_one_may_not_write_to_is_refused_with_the_fix(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        DataDir.open(tmp_path / "below")


def test_a_failed_start_holds_no_lock(open_dir, path, monkeypatch):
    def fails(_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr(datadir, "_sync", fails)
        with pytest.raises(StoreFull):
            DataDir.open(path)
    open_dir(path)
