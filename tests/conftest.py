"""What every test gets: its own home, its own mesh, and a process list that ends empty; and
what those get that ask for real nodes."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from forbiddenfruit import reverse
from hypothesis import settings

from p2pmesh import Node
from tests.nodes import HANG, Make, Meet
from tests.processes import children, environment

# Helpers that assert; other parts' tests import them before those of their own directory.
pytest.register_assert_rewrite(
    "tests.http.contract", "tests.http.hostile", "tests.http.strict", "tests.http.wire"
)

# The suite is the same on every run; HYPOTHESIS_PROFILE=explore looks for new examples.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own HOME, state and runtime directories, and no settings from outside."""
    path = tmp_path / "home"
    fresh = environment(path)
    for name in set(os.environ) - set(fresh):
        monkeypatch.delenv(name)
    for name, value in fresh.items():
        monkeypatch.setenv(name, value)
    return path


@pytest.fixture
def mesh() -> str:
    """A mesh name that nobody else uses."""
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture(autouse=True)
def _nothing_blocks_a_loop() -> Iterator[None]:
    """Where an event loop runs, the package must not block it: no file, no sleep."""
    with blockbuster_ctx("p2pmesh") as guard:
        yield
    # What was replaced last stays in a built-in type as ``_c_NAME``: a wrapper that holds the
    # standard output, which at exit would be closed after its own type: a segmentation fault.
    for kind in {each.module for each in guard.functions.values()}:
        if isinstance(kind, type):
            for name in [name for name in vars(kind) if name.startswith("_c_")]:
                reverse(kind, name)


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_tests() -> Iterator[None]:
    before = children()
    yield
    left = {pid: command for pid, command in children().items() if pid not in before}
    assert not left, f"processes that a test started and did not end: {left}"


# --- nodes in this process ------------------------------------------------------------


@pytest.fixture
def make(mesh: str) -> Make:
    """Nodes of this test's mesh that stay on loopback."""

    def new(name: str, **options: Any) -> Node:
        settings: dict[str, Any] = {"mdns": False, "bind": ["127.0.0.1"], "port": 0, "http": None}
        return Node(name, mesh=mesh, **(settings | options))

    return new


@pytest.fixture
async def meet() -> AsyncIterator[Meet]:
    """Enter nodes at once and wait until all of them list each other."""
    async with AsyncExitStack() as stack:

        async def enter(*nodes: Node) -> None:
            async with asyncio.timeout(HANG):
                await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
                for node in nodes:
                    await node.wait_for(count=len(nodes), timeout=HANG)

        yield enter


@pytest.fixture
async def pair(make: Make, meet: Meet) -> tuple[Node, Node]:
    a, b = make("a"), make("b")
    await meet(a, b)
    return a, b
