"""The pages about the Node say what it has: their code compiles, their names exist."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

import p2pmesh
from p2pmesh import Broadcast, Delivery, MeshError, Node
from p2pmesh.leadership import Leadership
from tests.nodes import until

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "embedding.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_piece_of_code_is_python(block: str) -> None:
    compile(block, "embedding.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def test_who_goes_on_after_a_full_queue_as_shown_loses_nothing(mesh: str) -> None:
    (block,) = (block for block in BLOCKS if "except QueueFull" in block)
    settings: dict[str, Any] = {
        "mesh": mesh, "mdns": False, "bind": ["127.0.0.1"], "port": 0, "http": None,
    }  # fmt: skip
    pages: list[int] = []
    worker = Node("worker", **settings)
    worker.on("Notification")(lambda message: pages.append(message.payload["page"]))
    async with worker, Node("sender", **settings) as node:
        await node.wait_for(count=2, timeout=20)
        there: dict[str, Any] = {"node": node}
        code = compile(block, "embedding.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async with asyncio.timeout(60):
            await types.FunctionType(code, there)()
            await there["sent"][-1].done()
    assert pages == list(range(3000))


async def test_duty_as_shown_begins_with_authority_and_ends_with_it(mesh: str) -> None:
    (block,) = (block for block in BLOCKS if "def duty" in block)
    async with Node("a", mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None) as node:
        there: dict[str, Any] = {"node": node}
        exec(compile(block, "embedding.md", "exec"), there)
        await until(node, lambda: there["on_duty"])
    assert there["on_duty"].cancelled()


def test_what_is_said_of_a_node_exists() -> None:
    node = Node("x")
    for name in re.findall(r"\bnode\.(\w+)", TEXT):
        assert hasattr(type(node), name) or hasattr(node, name), name
    for name in re.findall(r"\bnode\.leadership\.(\w+)", TEXT):
        assert hasattr(Leadership, name), name
    for name in re.findall(r"\bdelivery\.(\w+)", TEXT):
        assert hasattr(Delivery, name), name
    for name in re.findall(r"\bcast\.(\w+)", TEXT):
        assert hasattr(Broadcast, name), name


def test_every_argument_and_every_error_is_explained() -> None:
    arguments = set(inspect.signature(Node.__init__).parameters) - {"self"}
    settings = TEXT[TEXT.index("## Settings") :]
    assert not {name for name in arguments if f"`{name}`" not in settings}
    errors = TEXT[TEXT.index("## Errors") : TEXT.index("## Who is here")]
    public = [getattr(p2pmesh, name) for name in p2pmesh.__all__]
    tree = [e for e in public if isinstance(e, type) and issubclass(e, MeshError)]
    assert not {error.__name__ for error in tree if f"`{error.__name__}`" not in errors}
