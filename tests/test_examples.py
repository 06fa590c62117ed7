"""The examples of the README, run as they stand, but in a mesh of this test's own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import environment

EXAMPLES = Path(__file__).parents[1] / "examples"
HANG = 30.0

#: Nothing of an example is changed: only where its nodes look for others.
IN_A_MESH_OF_ITS_OWN = """
import functools, runpy, sys
import p2pmesh
own = {"mesh": sys.argv[2], "mdns": False, "bind": ["127.0.0.1"], "port": 0, "http": None}
p2pmesh.Node = functools.partial(p2pmesh.Node, **own)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class Example:
    def __init__(self, name: str, mesh: str, home: Path) -> None:
        command = [sys.executable, "-c", IN_A_MESH_OF_ITS_OWN, str(EXAMPLES / name), mesh]
        self.process = subprocess.Popen(
            command,
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Example:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(mesh: str, home: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Example(name, mesh, home)).process


@pytest.mark.parametrize("order", [["worker.py", "ask.py"], ["ask.py", "worker.py"]])
def test_the_asker_gets_its_answer_whoever_starts_first(
    run: Callable[[str], subprocess.Popen[str]], order: list[str]
) -> None:
    started = {name: run(name) for name in order}
    answer, errors = started["ask.py"].communicate(timeout=HANG)
    assert (answer, started["ask.py"].returncode) == ("HELLO\n", 0), errors
    started["worker.py"].send_signal(signal.SIGINT)
    started["worker.py"].communicate(timeout=HANG)


@pytest.mark.parametrize(("name", "most"), [("worker.py", 9), ("ask.py", 7)])
def test_an_example_is_short_and_configures_nothing(name: str, most: int) -> None:
    text = (EXAMPLES / name).read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= most
    assert not {"peers", "bind", "key", "port", "127.0.0.1"} & set(text.replace("=", " ").split())
