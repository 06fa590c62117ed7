"""Who may import whom.

The rules are the tables below, and `docs/protocol-core.md` says why; the rest
of the file reads the imports out of the source, without running it, and holds
them against the tables.  An import inside a function or under TYPE_CHECKING
counts like any other: what a module knows about is what it can come to need.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import p2pmesh

SOURCES: Final = Path(p2pmesh.__file__).parents[1]

#: The protocol in three stacks, each from the bottom up.  A module imports from
#: layers below its own in its stack, so siblings never meet, and any values; the
#: two planes meet only at the door.
PROTOCOL: Final = {
    "values": (
        {"limits", "nearest", "payloads", "timing"},
        {"types"},
        {"wire", "noise", "keys", "stamps"},
        {"frames", "records"},
        {"session", "transfers"},
    ),
    "membership": (
        {
            "candidates",
            "detector",
            "dials",
            "lateness",
            "leader",
            "members",
            "news",
            "rings",
            "suspicion",
        }
        | {"timers"},
        {"gossip"},
        {"links"},
        {"connections"},
        {"core"},  # what those above it share
        {"authority", "membership", "reporting", "seeking", "selfword"},
        {"doubles", "neighbours", "orphans"},
        {"questions", "sidelinks"},
        {"monitoring", "reach"},
        {"converged", "joining", "leading", "lookup"},
        {"sleeping"},
    ),
    "messages": (
        {"directory", "envelopes", "ledger", "window"},
        {"ways", "streams", "parts"},
        {"lanes"},
        {"deadletters"},  # where what ends in those above it is kept
        {"acks", "broadcast", "calls", "casttree", "guests", "intake", "mailbox", "outbox"}
        | {"answering", "asking", "waits"},
        {"home", "places", "targets", "tracking"},
        {"registrar", "sentkeys"},
        {"casting", "guestdesk"},
        {"sending"},
        {"commands"},
        {"postoffice"},
    ),
    "the door": ({"plane"}, {"dispatch"}, {"mesh"}),
}
#: Beside those, the protocol imports nothing that could read a clock, draw a
#: random number, touch a file or a socket, wait, or log.
PURE: Final = {
    *("__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "copy"),
    *("dataclasses", "enum", "functools", "hashlib", "heapq", "hmac", "io", "ipaddress"),
    *(
        "itertools",
        "math",
        "operator",
        "random",
        "re",
        "string",
        "struct",
        "types",
        "typing",
        "unicodedata",
    ),
    *("msgspec", "nacl", "p2pmesh"),
}
#: Of a module that is pure only in part, what the protocol may use.
PURE_PARTS: Final = {"random": {"Random"}, "io": {"BytesIO"}}

#: What the rest of the package may know of the protocol: the door and the values.
OPEN: Final = {"mesh", "types", "timing", "limits", "nearest", "payloads", "keys"}
#: ... and the few that may know less, or have the door itself.
TRANSPORT_KNOWS: Final = {"types", "timing", "limits"}
DOOR_HOLDERS: Final = ("p2pmesh.driver", "p2pmesh.running", "p2pmesh.testing")
#: The simulator gives all of its nodes one book of signatures that were checked.
TESTING_KNOWS: Final = OPEN | {"records"}
#: The node alone joins protocol and transport; the command and the client look around.
TRANSPORT_USERS: Final = (
    *("p2pmesh.node", "p2pmesh.driver", "p2pmesh.rendezvous", "p2pmesh.running"),
    *("p2pmesh.cli", "p2pmesh.client", "p2pmesh.transport"),
)

#: Where a third-party module may be imported.  What is not listed may be nowhere.
HOMES: Final = {
    "aiohttp": ("p2pmesh.http", "p2pmesh.client.aio"),
    "ifaddr": ("p2pmesh.transport",),
    "msgpack": ("p2pmesh.messages",),
    "msgspec": ("p2pmesh",),
    "nacl": ("p2pmesh.protocol.noise", "p2pmesh.protocol.records"),
    "prometheus_client": ("p2pmesh.http.metrics",),
    "rich": ("p2pmesh.cli",),
    "uvloop": ("p2pmesh.cli",),
    "zeroconf": ("p2pmesh.transport.discovery",),
}


PLACES: Final = {
    module: (stack, number)
    for stack, layers in PROTOCOL.items()
    for number, layer in enumerate(layers)
    for module in layer
}


class Import(NamedTuple):
    importer: str  # dotted, as is the next
    imported: str  # the module, or the module and a name out of it
    where: str  # file:line

    def is_of(self, *packages: str) -> bool:
        return is_in(self.imported, *packages)

    def is_by(self, *packages: str) -> bool:
        return is_in(self.importer, *packages)


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports(sources: Path) -> Iterator[Import]:
    for path in sorted(sources.glob("p2pmesh/**/*.py")):
        parts = path.relative_to(sources).with_suffix("").parts
        package = parts[:-1]
        importer = ".".join(package if parts[-1] == "__init__" else parts)
        whole: dict[str, str] = {}  # local name -> module imported as a whole
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            where = f"{path.relative_to(sources)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Import(names):
                    for alias in names:
                        whole[alias.asname or alias.name] = alias.name
                        yield Import(importer, alias.name, where)
                case ast.ImportFrom(module, names, level):
                    base = package[: len(package) - level + 1] if level else ()
                    for alias in names:
                        dotted = ".".join((*base, *filter(None, [module]), alias.name))
                        yield Import(importer, dotted, where)
                case ast.Attribute(ast.Name(name), part) if whole.get(name) in PURE_PARTS:
                    yield Import(importer, f"{whole[name]}.{part}", where)


def objections(found: Import) -> Iterator[str]:
    """What is wrong with one import; nothing when it keeps the rules."""
    top = found.imported.partition(".")[0]
    if top not in sys.stdlib_module_names and top != "p2pmesh":
        if top not in HOMES:
            yield f"{top} is no dependency"
        elif not found.is_by(*HOMES[top]):
            yield f"{top} is imported only by {', '.join(HOMES[top])}"
    if found.is_by("p2pmesh.protocol"):
        yield from _objections_within_the_protocol(found, top)
    elif found.is_of("p2pmesh.protocol"):
        yield from _objections_to_knowing_the_protocol(found)
    if found.is_of("p2pmesh.cli") and not found.is_by("p2pmesh.cli", "p2pmesh.__main__"):
        yield "nothing imports the command"
    if found.is_of("p2pmesh.transport") and not found.is_by(*TRANSPORT_USERS):
        yield "only the node joins protocol and transport"
    if found.is_of("p2pmesh.node", "p2pmesh.running", "p2pmesh.driver") and found.is_by(
        "p2pmesh.http", "p2pmesh.transport"
    ):
        yield "the node imports these, not they the node"
    if found.importer == "p2pmesh.errors" and top == "p2pmesh":
        yield "errors stand below everything"


def _objections_within_the_protocol(found: Import, top: str) -> Iterator[str]:
    if top not in PURE:
        yield f"the protocol is pure: no {top}"
    parts = found.imported.split(".")
    if top in PURE_PARTS and len(parts) > 1 and parts[1] not in PURE_PARTS[top]:
        yield f"the protocol is pure: no {found.imported}, what is random is passed in"
    if top != "p2pmesh" or found.is_of("p2pmesh.errors"):
        return
    if not found.is_of("p2pmesh.protocol"):
        yield "the protocol imports nothing else of the package, errors aside"
    elif module := _protocol_module(found.imported):
        yield from _objections_to_the_layers(_protocol_module(found.importer), module)


def _objections_to_the_layers(importer: str, imported: str) -> Iterator[str]:
    unplaced = [module for module in (importer, imported) if module not in PLACES]
    if unplaced:
        yield f"{unplaced[0]} has no layer yet: give it one in PROTOCOL"
        return
    (stack, layer), (other_stack, other_layer) = PLACES[importer], PLACES[imported]
    if other_stack == stack:
        if other_layer >= layer:
            yield f"{imported} is not below it: imports point towards types"
    elif other_stack != "values" and stack != "the door":
        yield f"the {stack} stack knows nothing of {imported}: they meet at the door"


def _objections_to_knowing_the_protocol(found: Import) -> Iterator[str]:
    module = _protocol_module(found.imported)
    if not module:
        yield "import the module that is needed, not the package"
    elif found.is_by("p2pmesh.transport"):
        if module not in TRANSPORT_KNOWS:
            yield "transport makes no protocol decision"
    elif module not in (TESTING_KNOWS if found.is_by("p2pmesh.testing") else OPEN):
        yield f"{module} is behind the one door, protocol.mesh"
    elif module == "mesh" and not found.is_by(*DOOR_HOLDERS):
        yield f"only {' and '.join(DOOR_HOLDERS)} hold the door"


def _protocol_module(dotted: str) -> str:
    """``p2pmesh.protocol.wire.Hello`` -> ``wire``; "" for the package itself."""
    return dotted.split(".")[2] if dotted.count(".") >= 2 else ""


def violations(sources: Path) -> list[str]:
    return [
        f"{found.where}: {found.importer} imports {found.imported}: {objection}"
        for found in imports(sources)
        for objection in objections(found)
    ]


def test_every_import_keeps_the_layering() -> None:
    assert not violations(SOURCES)


def test_the_layers_name_the_protocol_s_modules_and_no_others() -> None:
    modules = {path.stem for path in (SOURCES / "p2pmesh" / "protocol").glob("[!_]*.py")}
    assert set(PLACES) == modules


@pytest.mark.parametrize(
    ("module", "line", "objection"),
    [
        ("protocol/rings.py", "import asyncio", "the protocol is pure: no asyncio"),
        ("protocol/rings.py", "from time import monotonic", "the protocol is pure: no time"),
        ("protocol/rings.py", "import random\nrandom.random()", "no random.random"),
        ("protocol/rings.py", "import random as r\nr.shuffle([])", "no random.shuffle"),
        ("protocol/rings.py", "from random import choice", "no random.choice"),
        ("protocol/rings.py", "def f():\n    import os", "the protocol is pure: no os"),
        ("protocol/rings.py", "from p2pmesh.protocol.leader import x", "leader is not below it"),
        ("protocol/rings.py", "from .leader import x", "leader is not below it"),
        ("protocol/rings.py", "from . import leader", "leader is not below it"),
        ("protocol/rings.py", "from p2pmesh.protocol import mesh", "knows nothing of mesh"),
        ("protocol/rings.py", "from p2pmesh.protocol import streams", "they meet at the door"),
        ("protocol/wire.py", "from p2pmesh.protocol import rings", "knows nothing of rings"),
        ("protocol/newest.py", "from p2pmesh.protocol import types", "has no layer yet"),
        ("protocol/types.py", "from p2pmesh.protocol import wire", "wire is not below it"),
        ("protocol/rings.py", "from p2pmesh import config", "nothing else of the package"),
        ("protocol/rings.py", "from nacl import bindings", "nacl is imported only by"),
        ("transport/tcp.py", "from p2pmesh.protocol import mesh", "no protocol decision"),
        ("transport/tcp.py", "from ..protocol.wire import Hello", "no protocol decision"),
        ("transport/tcp.py", "import zeroconf", "zeroconf is imported only by"),
        ("transport/tcp.py", "from p2pmesh.node import Node", "not they the node"),
        ("http/v1.py", "from p2pmesh.protocol import wire", "wire is behind the one door"),
        ("http/v1.py", "from p2pmesh.protocol.mesh import Mesh", "hold the door"),
        ("http/v1.py", "from p2pmesh import protocol", "not the package"),
        ("http/v1.py", "from p2pmesh.transport import tcp", "only the node joins"),
        ("handlers.py", "from p2pmesh.transport import tcp", "only the node joins"),
        ("handlers.py", "from p2pmesh.protocol import records", "behind the one door"),
        ("node.py", "from aiohttp import web", "aiohttp is imported only by"),
        ("node.py", "from rich.table import Table", "rich is imported only by"),
        ("node.py", "from p2pmesh.cli import main", "nothing imports the command"),
        ("config.py", "import requests", "requests is no dependency"),
        ("errors.py", "from p2pmesh.protocol.types import Life", "errors stand below"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, module: str, line: str, objection: str
) -> None:
    planted = tmp_path / "p2pmesh" / module
    planted.parent.mkdir(parents=True)
    planted.write_text(line)
    (found,) = violations(tmp_path)
    assert found.startswith(f"p2pmesh/{module}:")
    assert objection in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("protocol/rings.py", "import random\ndef pick(rng: random.Random): ..."),
        ("protocol/rings.py", "def pick(random: int): return random.to_bytes()"),
        ("protocol/rings.py", "from p2pmesh.protocol import limits, records, types, wire"),
        ("protocol/rings.py", "from p2pmesh.errors import ConfigError"),
        ("protocol/mesh.py", "from p2pmesh.protocol import postoffice, rings, types"),
        ("protocol/records.py", "from nacl import bindings"),
        ("transport/tcp.py", "import asyncio, socket\nfrom p2pmesh.protocol.types import Dial"),
        ("http/v1.py", "import aiohttp\nfrom p2pmesh.protocol.types import Member"),
        ("running.py", "from p2pmesh.protocol.mesh import Mesh\nfrom p2pmesh.transport import tcp"),
    ],
)
def test_what_the_layers_are_for_is_allowed(tmp_path: Path, module: str, line: str) -> None:
    allowed = tmp_path / "p2pmesh" / module
    allowed.parent.mkdir(parents=True)
    allowed.write_text(line)
    assert violations(tmp_path) == []
