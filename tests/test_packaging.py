"""What is built from this tree is what its users need, and the documents agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import p2pmesh

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel that this tree makes: name -> content."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = target.glob("p2pmesh-*.whl")
    with zipfile.ZipFile(path) as built:
        return {name: built.read(name) for name in built.namelist()}


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "p2pmesh").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel if ".dist-info/" not in name}
    assert held == sources
    assert "p2pmesh/py.typed" in held


def test_the_wheel_says_its_version_its_licence_and_its_command(wheel: dict[str, bytes]) -> None:
    info = f"p2pmesh-{p2pmesh.__version__}.dist-info"
    metadata = Parser().parsestr(wheel[f"{info}/METADATA"].decode())
    assert metadata["Version"] == p2pmesh.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert b"p2pmesh = p2pmesh.cli.main:main" in wheel[f"{info}/entry_points.txt"]


def test_the_readme_s_two_commands_are_the_ones_that_are_run() -> None:
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    for end in (
        "pip install -q . && .venv/bin/p2pmesh demo",
        "pip install -q tox && .venv/bin/tox",
    ):
        command = f"python3 -m venv .venv && .venv/bin/{end}"
        assert f"```sh\n{command}\n```" in readme
        assert f"'{command}'" in script


def test_every_test_environment_is_explained_to_contributors() -> None:
    environments = re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(), re.M)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert environments
    assert [name for name in environments if f"`tox -e {name}`" not in contributing] == []


def test_the_status_page_names_only_tests_that_exist() -> None:
    status = (ROOT / "docs" / "status.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", status)
    assert named
    for path, function in named:
        assert f"def {function}" in (ROOT / path).read_text()


def test_every_dependency_is_imported_somewhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.split("[><=]", each)[0] for each in project["dependencies"]]
    modules = {"prometheus-client": "prometheus_client", "pynacl": "nacl"}
    sources = "\n".join(path.read_text() for path in (ROOT / "p2pmesh").rglob("*.py"))
    unused = [
        name
        for name in named
        if not re.search(rf"^\s*(import|from) {modules.get(name, name)}\b", sources, re.M)
    ]
    assert unused == []
