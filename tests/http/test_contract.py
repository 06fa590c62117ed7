"""The contract against nodes in memory: three doors of one mesh."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.http.contract import Contract, Doors
from tests.http.hostile import Hostile
from tests.http.serving import serve


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with serve(nodes=3) as served:
        a, b, c = served.addresses
        first, second, third = (node.instance_id for node in served.mesh.nodes)
        yield Doors((a, b, c), (first, second, third))


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does, nobody has to read of it."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestNodesInMemory(Contract, Hostile):
    pass
