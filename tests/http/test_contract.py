"""The contract against nodes in memory: three doors of one mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.contract import Contract, Doors
from tests.http.serving import serve


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with serve(nodes=3) as served:
        a, b, c = served.addresses
        first, second, third = (node.instance_id for node in served.mesh.nodes)
        yield Doors((a, b, c), (first, second, third))


class TestNodesInMemory(Contract):
    pass
