"""Broadcasts on a network that loses a fifth of all packets, while their relays die."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter

import pytest

from p2pmesh.protocol.casttree import children
from p2pmesh.protocol.rings import Rings
from tests.lab.network import Lab
from tests.processes import Process, eventually

NODES = 21
LOSS = 0.2
BROADCASTS = 1_000
KILLED = 3


def relays(root: bytes, nodes: list[bytes]) -> list[bytes]:
    """Those that pass a broadcast of ``root`` on, who has the most children first."""
    rings = Rings(root)
    for node in nodes:
        rings.add(node)
    below = {node: len(children(rings.neighbours, root, node)) for node in nodes if node != root}
    return sorted((node for node in below if below[node]), key=lambda node: -below[node])


def node_id(process: Process) -> bytes:
    return bytes.fromhex(process.event("ready")["node_id"])


def instance(process: Process) -> str:
    return str(process.event("ready")["instance_id"])


def told(process: Process, event: str, field: str) -> list[str | int]:
    return [line[field] for line in process.lines if line["event"] == event]


@pytest.mark.timeout(400)
def test_each_broadcast_reaches_all_who_live_from_its_send_to_the_end(lab: Lab, mesh: str) -> None:
    """Who lives is taken from the processes, not from what anybody believes: all but the three
    that were killed live from the first send to the end, and each gets every broadcast once,
    also where its sender should have taken it for failed meanwhile.  The sender has the
    receipts of all of these; what it sent to the three before it knew of their end stays
    owed to them."""
    first, *others = lab.hosts(NODES)
    program = (sys.executable, "-m", "tests.lab.caster", mesh)
    sender = first.start(*program, "", str(NODES), str(BROADCASTS))
    peer = f"{first.address}:8078"
    hearers = [host.start(*program, peer, str(NODES), "0") for host in others]
    by_node = {node_id(each): each for each in (sender, *hearers)}
    lab.lose(LOSS)
    began = time.monotonic()
    sender.signal(signal.SIGUSR1)
    sender.event("sent", number=BROADCASTS // 2, timeout=120)
    killed = [by_node[node] for node in relays(node_id(sender), list(by_node))[:KILLED]]
    for each in killed:
        each.kill()
    living = [each for each in hearers if each not in killed]
    sender.event("sent", number=BROADCASTS - 1, timeout=120)
    sent_all = time.monotonic() - began

    for each in living:
        eventually(
            lambda each=each: len(told(each, "got", "number")) >= BROADCASTS,  # type: ignore[misc]
            f"{instance(each)} has all",
            timeout=90,
        )
        assert Counter(told(each, "got", "number")) == Counter(range(BROADCASTS))
    had_all = time.monotonic() - began
    dead = set(map(instance, killed))
    sender.line(
        lambda line: line["event"] == "owed" and dead.issuperset(line["by"]),
        timeout=90,
        what="the receipts of all who live",
    )
    receipted = time.monotonic() - began
    everyone = {each: instance(each) for each in living}
    wrongly = Counter(
        who for each in (sender, *living) for who in told(each, "failed", "who") if who not in dead
    )
    missed = sum(not {*everyone.values()} <= {*to} for to in told(sender, "sent", "to"))
    print(
        f"{BROADCASTS} broadcasts to {NODES - 1} nodes, {LOSS:.0%} of packets lost: sent in "
        f"{sent_all:.1f} s, had by all {had_all - sent_all:.1f} s after the last, receipted after "
        f"{receipted - sent_all:.1f} s; living nodes taken for failed: {dict(wrongly)}, "
        f"broadcasts not addressed to all: {missed}"
    )
