"""With ``quorum=n`` one node at a time may act as leader, whatever the network does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from tests.lab.network import Host, Lab
from tests.processes import P2PMESH, Process


def run(host: Host, mesh: str) -> Process:
    process = host.start(*P2PMESH, "run", "--json", "--mesh", mesh, "--quorum", "3")
    process.event("joined")
    return process


def rule(processes: Sequence[Process]) -> list[tuple[float, float, Process]]:
    """From when until when who had authority, in order; by the clock that all share."""
    spans = []
    for process in processes:
        told = [line for line in process.lines if line["event"] in ("elected", "demoted")]
        begins = [line["t"] for line in told[::2]]
        ends = [line["t"] for line in told[1::2]]
        assert [line["event"] for line in told[:2]] in ([], ["elected"], ["elected", "demoted"])
        spans += [(begin, end, process) for begin, end in zip(begins, [*ends, 1e12], strict=False)]
    return sorted(spans, key=lambda span: span[:2])


@pytest.mark.parametrize("unheard", [1, 2])
@pytest.mark.parametrize("is_one_way", [False, True], ids=["both ways", "one way"])
def test_authority_ends_before_another_has_it(
    lab: Lab, mesh: str, unheard: int, is_one_way: bool
) -> None:
    """The leader's side is the smaller one; one way, it hears all, and nobody hears it."""
    hosts = lab.hosts(5)
    first, *others = [run(host, mesh) for host in hosts]
    first.event("elected")
    for other in others:
        other.event("leader_changed", leader_id=first.event("ready")["instance_id"])
    here, there = hosts[:unheard], hosts[unheard:]
    if is_one_way:
        for source in here:
            for target in there:
                lab.cut_one_way(source, target)
    else:
        lab.split(here, there)
    heir = others[unheard - 1]
    heir.event("elected")
    before = len(first.lines)
    lab.heal()
    first.event("elected", since=before)
    spans = rule([first, *others])
    assert [process for _, _, process in spans] == [first, heir, first]
    for (_, end, _), (begin, _, _) in itertools.pairwise(spans):
        assert end <= begin, "two had authority"
