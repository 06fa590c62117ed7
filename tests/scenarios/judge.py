"""What may never be told, whoever tells it: a simulated node or a real process.

A judge hears every event, in the JSON shape in which nodes print them, and looks at views
when the mesh is said to have settled.  It knows no stage.  The numbers are those of the
design's invariants.

* 1, 2: ``disagreement`` says what keeps views from being one view under one leader.
* 3: a claim is above every claim that its maker's part of the mesh knew when it had last
  settled; no joiner is older than those whom its contact knew then.
* 4: who was failed or left, for a process or for one that it had settled with, is back only
  with a higher version.
* 5, 6, 12, 13: who is told to have failed or left, and how often the leader changed, is
  what the scenario expects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeAlias

from tests.scenarios.steps import Expected

Life: TypeAlias = tuple[int, ...]
#: Life and incarnation.
Version: TypeAlias = tuple[Life, int]
TokenValue: TypeAlias = tuple[int, Life, str]


class Told(NamedTuple):
    """One event.  ``member_joined``, ``member_failed`` and ``member_left`` have, beside the fields
    that they are printed with, the ``version`` that the node held then: life, incarnation."""

    at: float  # seconds of the stage's clock
    agent: int
    run: int  # of its processes
    event: Mapping[str, Any]

    def __str__(self) -> str:
        fields = {k: v for k, v in self.event.items() if k not in ("event", "t", "seq", "name")}
        return f"{self.at:9.3f} {self.agent}: {self.event['event']} {fields}"


class View(NamedTuple):
    """What one process holds of the mesh."""

    node_id: str
    instance_id: str
    life: Life
    hash: str
    live: frozenset[str]  # node ids
    leader: str | None  # an instance id
    epoch: int | None
    leads: bool

    @property
    def claim(self) -> TokenValue | None:
        """The one that it makes itself."""
        return (self.epoch, self.life, self.node_id) if self.leads and self.epoch else None


def disagreement(views: Sequence[View]) -> str:
    """1, 2: what keeps these from one view of exactly themselves, led by the oldest; "" if
    nothing does."""
    if len({view.hash for view in views}) > 1:
        return f"views differ: {[view.hash[:8] for view in views]}"
    everyone = {view.node_id for view in views}
    for view in views:
        if view.live != everyone:
            more, less = len(view.live - everyone), len(everyone - view.live)
            return f"{view.instance_id} lists {more} too many, and not {less} that live"
    oldest = min(views, key=lambda view: (view.life, view.node_id))
    if {view.leader for view in views} != {oldest.instance_id}:
        return f"{oldest.instance_id} is the oldest; followed: {[v.leader for v in views]}"
    if len({view.epoch for view in views}) > 1 or oldest.epoch is None:
        return f"epochs differ: {[view.epoch for view in views]}"
    leading = [view.instance_id for view in views if view.leads]
    return "" if leading == [oldest.instance_id] else f"claims are held by {leading}"


class Endings:
    """4: the versions in which others ended, by observer."""

    def __init__(self) -> None:
        self._ended: dict[tuple[Hashable, str], Version] = {}

    def ended(self, observer: Hashable, subject: str, version: Version) -> None:
        self._ended[observer, subject] = version

    def share(self, observers: Set[Hashable]) -> None:
        """These hold one view: what any of them knows to have ended they all do."""
        known = [
            (subject, version)
            for (observer, subject), version in self._ended.items()
            if observer in observers
        ]
        for subject, ended in known:
            for observer in observers:
                earlier = self._ended.get((observer, subject), ended)
                self._ended[observer, subject] = max(earlier, ended)

    def is_resurrected(self, observer: Hashable, subject: str, version: Version) -> bool:
        """The observer tells that this one is back: with no higher version than it ended in?"""
        ended = self._ended.pop((observer, subject), None)
        return ended is not None and version <= ended


class Judge:
    """Hears all, in the order in which each process told it."""

    def __init__(self, forgives: float) -> None:
        """``forgives``: seconds for which one that may fail is taken for failed (5)."""
        self.told: list[Told] = []
        self.violations: list[str] = []
        self._judged = 0  # of what was told
        self._forgives = forgives
        self._numbers: dict[str, int] = {}  # of node ids
        self._endings = Endings()
        self._claims: dict[int, list[TokenValue]] = {}  # by agent, since the mesh settled
        self._floor: dict[int, TokenValue] = {}  # what its part of the mesh had claimed then
        self._known: dict[int, dict[int, Life]] = {}  # whom it knew then
        self._runs: dict[int, int] = {}  # the latest of each agent
        self._born: set[tuple[int, int]] = set()  # runs that have a life
        self._reborn: set[int] = set()

    def knows(self, number: int, node_id: str) -> None:
        """Of two with one identity the first has the number."""
        self._numbers.setdefault(node_id, number)

    def lives(self, number: int) -> None:
        """Its first process has a life already."""
        self._born.add((number, 1))

    def hear(self, told: Told) -> None:
        self.told.append(told)
        self._runs[told.agent] = told.run
        event = told.event
        match event["event"]:
            case "elected":
                self._claimed(told, token(event["token"]))
            case "joined":
                self._joined(told)
            case "member_joined":
                observer = told.agent, told.run
                if self._endings.is_resurrected(observer, event["node_id"], version(event)):
                    self.violations.append(f"4: resurrected: {told}")
            case "member_failed" | "member_left":
                self._endings.ended((told.agent, told.run), event["node_id"], version(event))
            case _:
                pass

    def settled(self, part: Mapping[int, View]) -> None:
        """These agents agree: from now on each claims above all that any of them did, who joins
        under one of them is younger than all of them, and who ended for one ended for all."""
        known = {agent: view.life for agent, view in part.items()}
        claims = [view.claim for view in part.values() if view.claim is not None]
        claims += [claim for agent in part for claim in self._claims.get(agent, [])]
        claims += [self._floor[agent] for agent in part if agent in self._floor]
        self._endings.share({(agent, self._runs.get(agent, 1)) for agent in part})
        for agent in part:
            self._known[agent] = known
            if claims:
                self._floor[agent] = max(claims)

    # --- 3: age and claims ----------------------------------------------------------------

    def _claimed(self, told: Told, claim: TokenValue) -> None:
        mine = self._claims.setdefault(told.agent, [])
        if claim <= max([*mine, self._floor.get(told.agent, claim[:0])], default=()):
            self.violations.append(f"3: a claim is not above the earlier ones: {told}")
        mine.append(claim)

    def _joined(self, told: Told) -> None:
        run = told.agent, told.run
        if run in self._born:
            self._reborn.add(told.agent)
        self._born.add(run)
        contact = self._numbers.get(told.event["contact"] or "")
        life = life_of(told.event["life"])
        if contact is None:
            return
        older = {
            agent: known
            for agent, known in self._known.get(contact, {}).items()
            if agent != told.agent and known >= life
        }
        if older:
            self.violations.append(f"3: older than {older}, whom its contact knew: {told}")

    # --- 4, 5, 6, 12, 13: who ended, and who leads ---------------------------------------------

    def judge(self, expected: Expected, now: float) -> list[str]:
        """All that went against the invariants or the scenario since this was asked last."""
        wrong = self._judge(self.told[self._judged :], expected, now)
        self._judged = len(self.told)
        self.violations.clear()
        self._reborn.clear()
        return wrong

    def _judge(self, told: Sequence[Told], expected: Expected, now: float) -> list[str]:
        failed = self._subjects(told, "member_failed")
        left = self._subjects(told, "member_left")
        wrong = list(self.violations)
        if not expected.fails <= failed <= expected.fails | expected.may_fail:
            wrong.append(f"5, 6: failed: {sorted(failed)}")
        if left != expected.leaves:
            wrong.append(f"12: left: {sorted(left)}")
        if not self._reborn <= expected.new_lives:
            wrong.append(f"5, 13: new lives without new processes: {sorted(self._reborn)}")
        if unnoticed := expected.notices - {each.event["event"] for each in told}:
            wrong.append(f"nobody told of {sorted(unnoticed)}")
        evidence = {t.event["evidence"] for t in told if t.event["event"] == "member_failed"}
        if expected.evidence and not evidence <= expected.evidence:
            wrong.append(f"evidence: {sorted(evidence)}")
        for agent in expected.may_fail - expected.fails:
            if (longest := self._longest_death(told, agent, now)) > self._forgives:
                wrong.append(f"5: {agent} was taken for failed for {longest:.3f} s")
        if (changes := leader_changes(told)) > expected.leader_changes:
            wrong.append(f"2, 5, 13: {changes} changes of the leader")
        return wrong

    def _subjects(self, told: Sequence[Told], kind: str) -> set[int]:
        return {self._numbers[t.event["node_id"]] for t in told if t.event["event"] == kind}

    def _longest_death(self, told: Sequence[Told], agent: int, now: float) -> float:
        """The longest that any process took this living one for failed (now counts)."""
        since: dict[tuple[int, int], float] = {}
        longest = 0.0
        for each in told:
            if self._numbers.get(each.event.get("node_id", "")) != agent:
                continue
            if each.event["event"] == "member_failed":
                since[each.agent, each.run] = each.at
            elif each.event["event"] == "member_joined":
                longest = max(longest, each.at - since.pop((each.agent, each.run), each.at))
        held = (now - at for (by, run), at in since.items() if run == self._runs[by])
        return max([longest, *held])  # what a process held that is gone nobody holds


def leader_changes(told: Sequence[Told]) -> int:
    """The most that one process told of, but for the first leader that it ever saw."""
    changes = Counter((t.agent, t.run) for t in told if t.event["event"] == "leader_changed")
    born = {(t.agent, t.run) for t in told if t.event["event"] == "joined"}
    return max((count - (run in born) for run, count in changes.items()), default=0)


# --- JSON to values -------------------------------------------------------------------


def life_of(text: str) -> Life:
    return tuple(map(int, text.split(".")))


def version(event: Mapping[str, Any]) -> Version:
    life, incarnation = event["version"]
    return life_of(life), incarnation


def token(value: Mapping[str, Any]) -> TokenValue:
    return value["epoch"], tuple(value["life"]), value["node_id"]
