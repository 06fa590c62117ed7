"""``p2pmesh demo``: every step holds, nothing stays behind, and a step that does not
hold is named."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pmesh.cli.demo import STEPS
from tests.processes import P2PMESH, is_gone, run

#: The demo with one thing in it broken, and little patience.
BROKEN = """
import sys
from p2pmesh.cli import agents, demo, main

def in_vain(self):  # they have started, however long that took
    agents.PATIENCE = 3.0
    return 0

{change}
sys.exit(main.main(["demo"]))
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def demo(home: Path, *flags: str) -> tuple[int, list[str], str]:
    ended = run(*P2PMESH, "demo", *flags, home=home, env={"TMPDIR": os.environ["TMPDIR"]})
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


@pytest.mark.parametrize("agents", [3, 4])
def test_every_step_holds_and_nothing_stays_behind(
    agents: int, home: Path, temporary: Path
) -> None:
    started = time.monotonic()
    status, lines, errors = demo(home, "--agents", f"{agents}")
    took = time.monotonic() - started
    sys.stdout.write("\n".join([*lines, f"{took:.2f} s"]))
    assert (status, errors) == (0, "")
    assert len(lines) <= 40
    for number, (title, _) in enumerate(STEPS, 1):
        assert sum(line.startswith(f"{number}. {title}  (") for line in lines) == 1
    assert any(re.search(r"after \d+ ms all say: \w+ leads", line) for line in lines)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ("agents.Agent.kill = in_vain", "The leader is killed"),
        ("agents.Agent.end = in_vain", "The others leave"),
        ("demo.GUEST = 'a' * 129", "An agent without a node joins over HTTP"),
        ("agents.sys.executable = '/bin/false'", "Agents start, each a process of its own"),
    ],
)
def test_a_step_that_does_not_hold_is_named(
    change: str, title: str, home: Path, temporary: Path
) -> None:
    program = BROKEN.format(change=change)
    ended = run(sys.executable, "-c", program, home=home, env={"TMPDIR": str(temporary)})
    assert ended.returncode == 1
    assert re.match(rf"p2pmesh: this step did not hold: \d\. {title}", ended.stderr)
    assert ended.stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "line"),
    [
        *((signal.SIGINT, line) for line in (0, 1, 6)),
        *((signal.SIGTERM, line) for line in (0, 6)),
        (signal.SIGHUP, 1),
    ],
)
def test_interrupted_anywhere_it_takes_everything_with_it(
    number: signal.Signals, line: int, home: Path, temporary: Path
) -> None:
    with subprocess.Popen(
        [*P2PMESH, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home
    ) as process:
        assert process.stdout
        assert process.stderr
        shown = [process.stdout.readline() for _ in range(line + 1)]
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
    for pid in re.findall(r"process (\d+)", "".join(shown)):
        assert is_gone(int(pid))
    assert list(temporary.iterdir()) == []


def test_it_ends_at_sigint_also_where_a_script_started_it_in_the_background(
    home: Path, temporary: Path
) -> None:
    ignored = "trap '' INT; exec " + shlex.join([*P2PMESH, "demo"])
    with subprocess.Popen(["sh", "-c", ignored], stdout=subprocess.PIPE, cwd=home) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert list(temporary.iterdir()) == []


def test_kept_it_says_what_to_type_next_and_leaves_at_ctrl_c(home: Path, temporary: Path) -> None:
    with subprocess.Popen(
        [*P2PMESH, "demo", "--keep"], stdout=subprocess.PIPE, text=True, cwd=home
    ) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        commands = []
        for line in lines:
            if line.startswith("   p2pmesh "):
                commands.append(shlex.split(line)[1:])
            if line.startswith("Ctrl-C"):
                break
        try:
            for command in commands:
                if command[0] != "watch":
                    ended = run(*P2PMESH, *command, home=home)
                    assert (ended.returncode, ended.stderr) == (0, "")
            assert "watch" in {command[0] for command in commands}
            assert ended.stdout == "hello\n"
        finally:
            process.send_signal(signal.SIGINT)
        rest = "".join(lines)
        assert process.wait(30) == 0
    assert "The others leave" in rest
    assert list(temporary.iterdir()) == []
