from __future__ import annotations

import random

import pytest

from p2pmesh.protocol.casttree import children
from p2pmesh.protocol.rings import Rings


def rings_of(count: int, seed: int) -> tuple[Rings, list[bytes]]:
    rng = random.Random(seed)
    nodes = [rng.randbytes(32) for _ in range(count)]
    rings = Rings(nodes[0])
    for node in nodes:
        rings.add(node)
    return rings, nodes


@pytest.mark.parametrize("count", [1, 2, 3, 10, 200])
def test_what_each_node_computes_for_itself_is_one_tree_over_all(count: int) -> None:
    rings, nodes = rings_of(count, count)
    root = nodes[0]
    parents: dict[bytes, bytes] = {}
    for node in nodes:
        for child in children(rings.neighbours, root, node):
            assert child not in parents, "each node is passed a broadcast once"
            assert child in rings.neighbours(node), "along links that are there anyway"
            parents[child] = node
    assert set(parents) == set(nodes) - {root}
    for node in parents:
        for _ in range(count):
            node = parents.get(node, root)
        assert node == root


def test_a_node_outside_the_rings_has_no_children() -> None:
    rings, nodes = rings_of(5, 1)
    assert children(rings.neighbours, nodes[0], b"?" * 32) == ()


def test_the_tree_of_a_thousand_is_at_most_eight_hops_deep() -> None:
    rings, nodes = rings_of(1000, 7)
    depth, level, seen = 0, [nodes[3]], {nodes[3]}
    while level:
        level = [o for n in level for o in rings.neighbours(n) if not (o in seen or seen.add(o))]
        depth += bool(level)
    assert depth <= 8
