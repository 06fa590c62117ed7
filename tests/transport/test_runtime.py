"""The runtime directory, with real files and real processes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.transport import runtime
from p2pmesh.transport.runtime import RuntimeEntry, RuntimeFile, RuntimeWatch, list_nodes


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "run")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def entry(mesh: str = "m", *, pid: int | None = None, started: float = 1.5) -> RuntimeEntry:
    return RuntimeEntry(
        pid=os.getpid() if pid is None else pid,
        mesh=mesh,
        node_id="ab" * 32,
        instance_id="worker-1",
        addresses=("192.168.1.7:8078", "[fd12::7]:8078"),
        http="http://127.0.0.1:8077",
        token=None,
        started=started,
    )


def write(directory: str, value: RuntimeEntry) -> RuntimeFile:
    file = RuntimeFile(directory)
    file.write(value)
    return file


def test_a_node_is_listed_with_what_it_said(directory: str) -> None:
    write(directory, entry())
    (listed,) = list_nodes(directory=directory)
    assert listed._replace(birth="") == entry()


def test_only_the_owner_can_read_the_file_and_the_directory(directory: str) -> None:
    file = write(directory, entry())
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(directory, file.name)).st_mode) == 0o600


def test_nodes_are_listed_oldest_first_and_by_mesh(directory: str) -> None:
    for mesh, started in [("a", 3.0), ("b", 2.0), ("a", 1.0)]:
        write(directory, entry(mesh, started=started))
    assert [e.started for e in list_nodes(directory=directory)] == [1.0, 2.0, 3.0]
    assert [e.started for e in list_nodes("a", directory)] == [1.0, 3.0]


def test_a_removed_file_is_listed_no_more_and_removing_it_again_is_nothing(directory: str) -> None:
    file = write(directory, entry())
    file.remove()
    file.remove()
    assert list_nodes(directory=directory) == ()
    assert os.listdir(directory) == []


def test_the_file_of_a_dead_process_is_removed(
    directory: str, sleeper: subprocess.Popen[bytes]
) -> None:
    write(directory, entry(pid=sleeper.pid))
    assert len(list_nodes(directory=directory)) == 1
    sleeper.kill()
    sleeper.wait()
    assert list_nodes(directory=directory) == ()
    assert os.listdir(directory) == []


def test_the_file_of_a_killed_process_is_removed_before_its_parent_has_noticed(
    directory: str, sleeper: subprocess.Popen[bytes]
) -> None:
    write(directory, entry(pid=sleeper.pid))
    assert len(list_nodes(directory=directory)) == 1
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
    assert list_nodes(directory=directory) == ()
    assert os.listdir(directory) == []


def test_a_reused_pid_does_not_keep_a_file_alive(directory: str) -> None:
    file = write(directory, entry())
    path = Path(directory, file.name)
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"birth": said["birth"] + "9"}))
    assert list_nodes(directory=directory) == ()
    assert not path.exists()


def test_a_process_of_another_container_is_not_judged_by_our_pids(
    directory: str, sleeper: subprocess.Popen[bytes]
) -> None:
    sleeper.kill()
    sleeper.wait()
    file = write(directory, entry(pid=sleeper.pid))
    path = Path(directory, file.name)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"birth": "pid:[1] 5"}))
    assert len(list_nodes(directory=directory)) == 1


def test_where_the_kernel_tells_no_birth_the_pid_alone_decides(
    monkeypatch: pytest.MonkeyPatch, directory: str, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(runtime, "process_birth", lambda pid: "")
    write(directory, entry(pid=sleeper.pid))
    assert len(list_nodes(directory=directory)) == 1
    sleeper.kill()
    sleeper.wait()
    assert list_nodes(directory=directory) == ()


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 10_000,
        b"\xff\xfe",
        b'{"pid": 1}',
        b'{"pid": -1, "mesh": "m", "node_id": "", "instance_id": "", "addresses": [],'
        b' "http": null, "token": null, "started": 1, "birth": ""}',
        b" " * 20_000,
    ],
)
def test_junk_is_passed_over_and_left_alone(directory: str, junk: bytes) -> None:
    write(directory, entry())
    Path(directory, "1-00000000.json").write_bytes(junk)
    Path(directory, "2-00000000.json").symlink_to("/etc/passwd")
    Path(directory, "3-00000000.json").mkdir()
    os.mkfifo(Path(directory, "4-00000000.json"))
    assert len(list_nodes(directory=directory)) == 1


def test_a_directory_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list_nodes(directory=str(tmp_path / "none")) == ()


def test_a_directory_open_to_others_is_refused_with_the_fix(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for use in (RuntimeFile, lambda path: list_nodes(directory=path)):
        with pytest.raises(ConfigError, match=f"chmod 700 {tmp_path}"):
            use(str(tmp_path))


def test_somebody_elses_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    owner = os.getuid()
    monkeypatch.setattr(runtime.os, "getuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to uid {owner}"):
        RuntimeFile(str(tmp_path))


def test_a_symlink_planted_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="not a directory"):
        RuntimeFile(str(tmp_path / "link"))


def test_the_environment_says_where_it_is(tmp_path: Path) -> None:
    session = str(tmp_path)
    given = {"P2PMESH_RUNTIME_DIR": "/x", "XDG_RUNTIME_DIR": session}
    assert runtime.runtime_path(given) == "/x"
    assert runtime.runtime_path({"XDG_RUNTIME_DIR": session}) == f"{session}/p2pmesh"
    mine = f"p2pmesh-{os.getuid()}"
    assert runtime.runtime_path({"XDG_RUNTIME_DIR": "/nowhere"}) == f"/tmp/{mine}"
    assert runtime.runtime_path({"TMPDIR": "/var/tmp"}) == f"/var/tmp/{mine}"


# --- watching -----------------------------------------------------------------


def test_the_watch_reports_each_file_once_and_its_end(directory: str) -> None:
    own = write(directory, entry())
    watch = RuntimeWatch(directory, "m", own.name)
    assert watch.poll() == ({}, [])
    other = write(directory, entry(started=2.0))
    write(directory, entry("another mesh"))
    found, lost = watch.poll()
    assert (list(found), found[other.name].started, lost) == ([other.name], 2.0, [])
    assert watch.poll() == ({}, [])
    other.remove()
    assert watch.poll() == ({}, [other.name])


def test_the_watch_reports_a_rewritten_file_again(directory: str) -> None:
    watch = RuntimeWatch(directory, "m", "")
    file = write(directory, entry())
    watch.poll()
    file.write(entry(started=9.0))
    found, lost = watch.poll()
    assert (found[file.name].started, lost) == (9.0, [])


def test_the_watch_notices_a_killed_process_without_any_change_to_the_directory(
    directory: str, sleeper: subprocess.Popen[bytes]
) -> None:
    watch = RuntimeWatch(directory, "m", "")
    file = write(directory, entry(pid=sleeper.pid))
    os.utime(directory, (1, 1))
    watch.poll()
    sleeper.kill()
    sleeper.wait()
    polls = [watch.poll() for _ in range(runtime._POLLS_PER_SWEEP)]
    assert [lost for _, lost in polls if lost] == [[file.name]]


def test_a_poll_without_a_change_reads_no_file(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = RuntimeWatch(directory, "m", "")
    write(directory, entry())
    os.utime(directory, (1, 1))
    watch.poll()
    monkeypatch.setattr(runtime, "_files", pytest.fail)
    assert watch.poll() == ({}, [])


def test_a_poll_after_a_change_reads_only_the_files_that_changed(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = RuntimeWatch(directory, "m", "")
    stays, changes, goes = (write(directory, entry(started=n)) for n in (1.0, 2.0, 3.0))
    write(directory, entry("other"))
    assert len(watch.poll()[0]) == 3
    read: list[str] = []
    read_live = runtime._read_live
    monkeypatch.setattr(
        runtime, "_read_live", lambda at, name: read.append(name) or read_live(at, name)
    )
    changes.write(entry(started=9.0))
    goes.remove()
    comes = write(directory, entry(started=4.0))
    found, lost = watch.poll()
    assert set(found) == set(read) == {changes.name, comes.name}
    assert lost == [goes.name]
    stays.write(entry(started=5.0))
    assert set(watch.poll()[0]) == {stays.name}


def test_a_change_in_the_same_tick_as_the_last_poll_is_not_missed(directory: str) -> None:
    watch = RuntimeWatch(directory, "m", "")
    write(directory, entry())
    before = os.stat(directory).st_mtime_ns
    watch.poll()
    write(directory, entry(started=2.0))
    os.utime(directory, ns=(before, before))
    assert len(watch.poll()[0]) == 1


def test_an_unreadable_directory_loses_nobody(directory: str) -> None:
    watch = RuntimeWatch(directory, "m", "")
    write(directory, entry())
    watch.poll()
    os.rename(directory, directory + ".away")
    assert watch.poll() == ({}, [])


def test_listing_needs_only_light_modules() -> None:
    code = (
        "import sys; from p2pmesh.transport.runtime import list_nodes;"
        "list_nodes(directory='/none');"
        "heavy = {'asyncio', 'msgspec', 'aiohttp', 'zeroconf', 'msgpack', 'ifaddr', 'nacl'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_file_that_a_cleaner_removed_with_its_directory_is_written_again(directory: str) -> None:
    file = write(directory, entry())
    assert not file.restore(entry())
    shutil.rmtree(directory)
    assert file.restore(entry())
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    (listed,) = list_nodes(directory=directory)
    assert listed.instance_id == "worker-1"
