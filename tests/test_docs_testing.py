"""What is shown of testing runs as it stands: the page's files, and the simulator's docstring."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import p2pmesh.testing
from p2pmesh.testing import SimNetwork, SimNode, Timeout

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()
FILES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def _tests_in(source: str) -> dict[str, Callable[..., Any]]:
    """The tests in one of the page's files."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "docs/testing.md", "exec"), names)
    return {name: value for name, value in names.items() if name.startswith("test_")}


EXAMPLES = {name: test for source in FILES for name, test in _tests_in(source).items()}


def test_each_file_of_the_page_has_a_test() -> None:
    assert len(FILES) == 4
    assert all(map(_tests_in, FILES))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_page_passes(name: str) -> None:
    test = EXAMPLES[name]
    if "seed" in inspect.signature(test).parameters:
        for seed in range(5):
            test(seed=seed)
    else:
        test()


@pytest.mark.parametrize("seed", range(12))
def test_the_docstring_of_the_simulator_runs_with_any_seed(seed: int) -> None:
    code = re.search(r"::\n\n((?:    .*\n|\n)+)", p2pmesh.testing.__doc__ or "")
    assert code is not None
    program = textwrap.dedent(code[1])
    assert "SimNetwork(seed=7)" in program
    exec(program.replace("seed=7", f"seed={seed}"), {"SimNetwork": SimNetwork})


CALLS = sorted(
    set(
        re.findall(r"`(SimNetwork|net\.\w+|node\.\w+)\(([^`]*)\)`", PAGE.split("## Messages in")[0])
    )
)


@pytest.mark.parametrize(("called", "shown"), CALLS)
def test_a_method_takes_what_the_page_says(called: str, shown: str) -> None:
    of, _, name = called.partition(".")
    method = getattr(SimNode if of == "node" else SimNetwork, name or "__init__")
    known = inspect.signature(method).parameters
    for argument in filter(None, map(str.strip, shown.split(","))):
        if argument != "*":
            bare, _, default = argument.removeprefix("*").partition("=")
            assert bare in known
            assert not default or known[bare].default == ast.literal_eval(default)
    asked = [each for each in known.values() if each.default is each.empty and each.name != "self"]
    for each in asked:
        assert each.kind is each.VAR_KEYWORD or each.name in shown


def test_the_page_shows_how_each_is_called() -> None:
    assert len(CALLS) > 30


def test_what_the_page_shows_of_a_failed_test_is_in_its_story() -> None:
    def fail() -> None:
        with SimNetwork(seed=7) as net:
            for _ in range(3):
                net.add("agent")
            net.run_until(net.agrees, within=5)
            leader = net.oldest()
            net.kill(leader)
            heir = net.oldest()
            net.run_until(lambda: heir.state_of(leader) == "left", within=2)

    def without_figures(text: str) -> list[str]:
        return [re.sub(r"\d+(\.\d+)?", "n", line) for line in text.splitlines()]

    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    with pytest.raises(Timeout) as raised:
        fail()
    told = "\n".join((str(raised.value), *raised.value.__notes__))
    assert set(without_figures(shown)) <= set(without_figures(told))
