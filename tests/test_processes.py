"""The helper that other tests stand on: what it promises about the processes it starts."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import Process, environment, eventually, is_gone, run

Start = Callable[..., Process]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda program: stack.enter_context(
            Process([sys.executable, "-c", textwrap.dedent(program)], home=home)
        )


def test_an_event_is_found_by_its_name_and_fields_wherever_it_stands(start: Start) -> None:
    process = start("""
        print('{"event": "a", "n": 1}')
        print('{"event": "b", "n": 1}')
        print('{"event": "a", "n": 2}')
    """)
    assert process.event("a", n=2).number == 2
    assert process.event("b")["n"] == 1
    assert process.event("a", since=1)["n"] == 2
    assert process.wait() == 0


def test_a_process_that_ends_without_the_event_fails_at_once_and_tells_its_story(
    start: Start,
) -> None:
    process = start("""
        import sys
        print('{"event": "a"}')
        print("what went wrong", file=sys.stderr)
    """)
    with pytest.raises(AssertionError, match=r'(?s)closed its output.*"event": "a".*went wrong'):
        process.event("b")


def test_a_silent_process_trips_the_hang_guard(start: Start) -> None:
    process = start("import signal; signal.pause()")
    with pytest.raises(AssertionError, match=r"nothing within 0\.05 s"):
        process.event("a", timeout=0.05)


def test_output_that_is_not_json_lines_fails_the_test_even_if_nobody_waited_for_it(
    home: Path,
) -> None:
    process = Process([sys.executable, "-c", "print('hello')"], home=home)
    with pytest.raises(AssertionError, match=r"printed b'hello\\n'"), process:
        process.wait()


def test_a_stopped_process_ends_with_the_test_and_a_child_that_ignores_sigterm_too(
    home: Path,
) -> None:
    with Process([sys.executable, "-c", FORKS_A_STUBBORN_CHILD], home=home) as process:
        child = process.event("child")["pid"]
        process.signal(signal.SIGSTOP)
    assert is_gone(process.pid)
    eventually(lambda: is_gone(child), "the child's end")


FORKS_A_STUBBORN_CHILD = """
import json, os, signal
child = os.fork()
if child:
    print(json.dumps({"event": "child", "pid": child}))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    signal.pause()
"""


def test_nothing_of_the_testers_own_settings_reaches_a_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PMESH_KEY", "secret")
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    variables = environment(home)
    assert variables["HOME"] == str(home)
    assert not {"P2PMESH_KEY", "XDG_STATE_HOME"} & set(variables)
    program = "import os; print(os.environ.get('P2PMESH_KEY'), os.environ['HOME'])"
    assert run(sys.executable, "-c", program, home=home).stdout == f"None {home}\n"
