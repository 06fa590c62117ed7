"""The page about the clients says what they have, and the two have the same."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import p2pmesh
from p2pmesh import client
from p2pmesh.client import MeshClient, Presence, SyncMeshClient
from p2pmesh.errors import MeshError

TEXT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(getattr(kind, name))
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name))
    }


def test_the_two_clients_take_the_same_calls_with_the_same_arguments() -> None:
    ours, theirs = public(MeshClient), public(SyncMeshClient)
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].parameters == theirs[name].parameters, name
    assert inspect.signature(MeshClient) == inspect.signature(SyncMeshClient)


def test_the_page_lists_every_call_with_its_arguments_and_no_others() -> None:
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", TEXT, re.M))
    signatures = public(MeshClient)
    assert set(rows) == set(signatures)
    for name, arguments in rows.items():
        taken = set(signatures[name].parameters) - {"self"}
        told = set(re.findall(r"\b(\w+)(?==)|^(\w+)|, (\w+)(?=[,)]|$)", arguments))
        told_names = {part for parts in told for part in parts if part}
        assert told_names == taken or ("…" in arguments and told_names <= taken), name


def test_every_piece_of_code_is_python() -> None:
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        compile(block, "client.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_what_is_said_of_a_client_and_a_presence_exists() -> None:
    for attribute in re.findall(r"(?<!p2pmesh\.)\bclient\.(\w+)", TEXT):
        assert hasattr(MeshClient, attribute), attribute
    for attribute in re.findall(r"\bpresence\.(\w+)", TEXT):
        assert re.search(rf"self\.{attribute}\b.* = ", inspect.getsource(Presence)), attribute


def test_every_name_is_exported_and_every_error_is_one_of_the_tree() -> None:
    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    for name in re.findall(r"^\| `([A-Z]\w+)` \|", TEXT, re.M):
        assert issubclass(getattr(p2pmesh, name), MeshError)
    with pytest.raises(AttributeError):
        _ = client.Nobody
