"""What applications import, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import p2pmesh
from p2pmesh.protocol.types import Event

HEAVY = {"asyncio", "msgspec", "msgpack", "nacl", "ifaddr", "zeroconf", "aiohttp", "rich"}


def loaded_after(code: str) -> set[str]:
    report = f"{code}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    return set(subprocess.check_output([sys.executable, "-c", report], text=True).split())


def test_every_public_name_can_be_had_and_is_listed() -> None:
    for name in p2pmesh.__all__:
        assert getattr(p2pmesh, name) is not None
    assert set(p2pmesh.__all__) - {"__version__"} == set(p2pmesh._HOMES)
    assert set(dir(p2pmesh)) >= set(p2pmesh.__all__)
    assert not hasattr(p2pmesh, "no_such_name")


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded_after("import p2pmesh") == set()
    assert loaded_after("from p2pmesh import MeshError") == set()


def test_importing_the_node_loads_neither_http_nor_mdns() -> None:
    assert not loaded_after("from p2pmesh import Node; Node('a')") & {"aiohttp", "zeroconf", "rich"}


def test_every_kind_of_event_is_public() -> None:
    assert {each.__name__ for each in kinds_of(Event)} <= set(p2pmesh.__all__) | {"MemberEvent"}


def kinds_of(event: type[Event]) -> Iterator[type[Event]]:
    for kind in event.__subclasses__():
        yield kind
        yield from kinds_of(kind)
