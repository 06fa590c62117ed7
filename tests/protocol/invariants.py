"""The invariants of a mesh, as questions about a simulated one.

A ``Watch`` notes what every node tells from the moment it is made; its methods
raise where something was told that may never be.  The numbers are those of the
design's list.  What holds of real processes, too, is in ``tests/scenarios/judge.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from p2pmesh.protocol.types import (
    Elected,
    Event,
    Joined,
    LeaderChanged,
    Life,
    MemberEvent,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    Token,
)
from p2pmesh.testing import SimNetwork, SimNode
from tests.scenarios.judge import Endings
from tests.scenarios.player import settles_within

#: A contact may have learned of a member this shortly before a newcomer's stamp, and
#: said its own highest one before that.
_HELLO_TRAVELS = 0.05


class Told(NamedTuple):
    """One event, by whom, and in which of its runs."""

    t: float
    node: SimNode
    run: int
    event: Event


class Watch:
    """Everything that the nodes of a network tell."""

    def __init__(self, net: SimNetwork) -> None:
        self.net = net
        self.told: list[Told] = []
        self._endings = Endings()
        self.resurrected: list[str] = []
        self.contacts: list[tuple[Joined, SimNode]] = []
        net.observers.append(self._observe)

    def _observe(self, node: SimNode, event: Event) -> None:
        self.told.append(Told(event.t, node, node.runs, event))
        if isinstance(event, MemberFailed | MemberLeft | MemberJoined):
            self._note_version(node, event)

    def _note_version(self, node: SimNode, event: MemberEvent) -> None:
        """4: who was failed or left is back only with a higher version."""
        observer = node.number, node.runs
        member = next((m for m in node.members() if m.node_id == event.node_id), None)
        if member is None or not member.life:
            return
        version = Life(*map(int, member.life.split("."))), member.incarnation
        if isinstance(event, MemberJoined):
            if self._endings.is_resurrected(observer, event.node_id, version):
                self.resurrected.append(f"{event.instance_id} at {node.instance_id}: {event.t}")
        else:
            self._endings.ended(observer, event.node_id, version)

    def events(self, *kinds: type[Event], nodes: Iterable[SimNode] | None = None) -> list[Told]:
        """What these nodes (or all) told of these kinds."""
        chosen = None if nodes is None else set(nodes)
        return [
            told
            for told in self.told
            if isinstance(told.event, kinds) and (chosen is None or told.node in chosen)
        ]

    # --- 1 and 2: one view, one leader -----------------------------------------------------

    def assert_settles(self, *components: Sequence[SimNode]) -> float:
        """1, 2: within the bound every component holds one view of exactly itself, with
        one leader, its oldest candidate.  Virtual seconds that it took."""
        parts = components or (self.net.running(),)
        bound = settles_within(max(map(len, parts)))
        took = self.net.run_until(
            lambda: all(
                self.net.agrees(part) and any(node.leads() for node in part) for part in parts
            ),
            within=bound,
        )
        for part in parts:
            self.assert_led(part)
        return took

    def assert_led(self, part: Sequence[SimNode]) -> None:
        """2: its oldest candidate leads this component, and everyone there says so."""
        candidates = [n for n in part if n.settings["agent"] and n.settings.get("candidate", True)]
        oldest = self.net.oldest(candidates)
        assert {node.leader() for node in part} == {oldest.instance_id}
        assert [node for node in part if node.leads()] == [oldest]

    # --- 3: age and tokens --------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """Of every claim, in the order in which they were made."""
        return [t.event.token for t in self.told if isinstance(t.event, Elected)]

    def assert_tokens_rise(self) -> None:
        """3: for a run without splits, in which all claims are of one component."""
        tokens = self.tokens()
        assert tokens == sorted(set(tokens)), f"tokens did not rise: {tokens}"

    def assert_no_joiner_is_older(self) -> None:
        """3: nobody is older than a member that its contact knew."""
        by_id = {node.node_id: node for node in self.net.nodes if node.runs}
        for told in self.events(Joined):
            joined = told.event
            assert isinstance(joined, Joined)
            if joined.contact is None:
                continue
            contact = by_id[joined.contact]
            life = Life(*map(int, joined.life.split(".")))
            for known in self._known(contact, before=told.t - _HELLO_TRAVELS):
                if known.runs and known.node_id != told.node.node_id and known.life is not None:
                    assert known.life < life, (
                        f"{told.node.instance_id} joined under {contact.instance_id}, which knew "
                        f"{known.instance_id}, and is older"
                    )

    def _known(self, contact: SimNode, *, before: float) -> Iterable[SimNode]:
        """Who was a member at this node then."""
        known = {contact.node_id}
        for told in self.events(MemberJoined, MemberFailed, MemberLeft, nodes=[contact]):
            assert isinstance(told.event, MemberEvent)
            if told.t < before:
                change = known.add if isinstance(told.event, MemberJoined) else known.discard
                change(told.event.node_id)
        return [node for node in self.net.nodes if node.runs == 1 and node.node_id in known]

    # --- 4, 5, 6, 13: deaths ----------------------------------------------------------------------

    def assert_nobody_resurrected(self) -> None:
        """4: nothing brings a failed or left life back but a higher version."""
        assert not self.resurrected, self.resurrected

    def deaths(self, *subjects: SimNode) -> list[Told]:
        """Who told of these (or any) nodes' failures."""
        ids = {node.node_id for node in subjects}
        return [t for t in self.events(MemberFailed) if not ids or t.event.node_id in ids]

    def assert_nobody_failed(self) -> None:
        """5, 6, 13: no node told of a death."""
        assert not self.deaths(), [
            (t.t, t.node.instance_id, t.event.instance_id, t.event.evidence) for t in self.deaths()
        ]

    def leader_changes(self, *nodes: SimNode) -> int:
        """The most ``leader_changed`` events that any (of these) told."""
        counts: dict[SimNode, int] = {}
        for told in self.events(LeaderChanged, nodes=nodes or None):
            counts[told.node] = counts.get(told.node, 0) + 1
        return max(counts.values(), default=0)

    def longest_wrong_death(self, subject: SimNode) -> float:
        """5: the longest that any node took this live one for failed (now counts)."""
        longest = 0.0
        for failed in self.deaths(subject):
            back = [
                told.t
                for told in self.events(MemberJoined, nodes=[failed.node])
                if told.event.node_id == subject.node_id and told.t > failed.t
            ]
            longest = max(longest, (back[0] if back else self.net.clock.now) - failed.t)
        return longest
