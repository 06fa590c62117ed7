"""The judge and the player: what goes against an invariant is found, and a scenario that fails
says how it went."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pmesh.testing import SimNetwork
from tests.scenarios.catalogue import CATALOGUE
from tests.scenarios.judge import Judge, Told, View, disagreement
from tests.scenarios.player import World, play
from tests.scenarios.simulated import SimStage
from tests.scenarios.steps import (
    Cut,
    Expected,
    Heal,
    Kill,
    Leave,
    PlugIn,
    Scenario,
    SetClock,
    Settle,
    Split,
    Start,
    Step,
    Stop,
    Unplug,
    Wait,
)

LIVES = ("100.0.1", "200.0.1", "300.0.1")


def view(number: int, *, of: int = 3, leader: int = 0) -> View:
    return View(
        node_id=f"id{number}",
        instance_id=f"agent-{number}",
        life=(number,),
        hash="h",
        live=frozenset(f"id{each}" for each in range(of)),
        leader=f"agent-{leader}",
        epoch=7,
        leads=number == leader,
    )


def views() -> list[View]:
    return [view(number) for number in range(3)]


def test_one_view_under_one_leader_is_no_disagreement() -> None:
    assert disagreement(views()) == ""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hash": "other"}, "views differ"),
        ({"live": frozenset({"id0", "id1"})}, "not 1 that live"),
        ({"live": frozenset({"id0", "id1", "id2", "id3"})}, "lists 1 too many"),
        ({"leader": "agent-1"}, "is the oldest"),
        ({"leader": None}, "is the oldest"),
        ({"life": (-1,)}, "agent-2 is the oldest"),
        ({"epoch": 8}, "epochs differ"),
        ({"leads": True}, "claims are held by"),
    ],
)
def test_whatever_differs_is_a_disagreement(changed: dict[str, Any], says: str) -> None:
    *others, last = views()
    assert says in disagreement([*others, last._replace(**changed)])


# --- what is told ---------------------------------------------------------------------


def about(kind: str, subject: int, *, incarnation: int = 0, **fields: Any) -> dict[str, Any]:
    version = [LIVES[subject], incarnation]
    return {"event": kind, "node_id": f"id{subject}", "version": version, **fields}


def failed(subject: int, **fields: Any) -> dict[str, Any]:
    return about("member_failed", subject, **{"evidence": "refused", **fields})


def elected(agent: int, epoch: int) -> dict[str, Any]:
    life = tuple(map(int, LIVES[agent].split(".")))
    return {"event": "elected", "token": {"epoch": epoch, "life": life, "node_id": f"id{agent}"}}


def joined(life: str, contact: int | None) -> dict[str, Any]:
    return {"event": "joined", "life": life, "contact": f"id{contact}"}


CHANGED = {"event": "leader_changed", "leader_id": "agent-1", "epoch": 8, "reason": "first"}


def settled(judge: Judge, part: list[int], *, leader: int = 0) -> None:
    judge.settled({n: view(n, leader=leader)._replace(life=(100 * (n + 1), 0, 1)) for n in part})


def judged(
    *events: tuple[int, dict[str, Any]], expected: Expected | None = None, led_by: int = 0
) -> str:
    """What is found wrong with these, told by the agents of these numbers, a second apart."""
    judge = Judge(forgives=1.5)
    for number in range(3):
        judge.knows(number, f"id{number}")
        judge.lives(number)
    settled(judge, [0, 1, 2], leader=led_by)
    for at, (agent, event) in enumerate(events):
        if event == HEAL:
            settled(judge, [0, 1, 2], leader=led_by)
        else:
            judge.hear(Told(float(at), agent, event.get("run", 1), event))
    return "\n".join(judge.judge(expected or Expected(), float(len(events))))


LEFT = about("member_left", 0)
HEAL = {"event": "heal"}
DIES = Expected(fails=frozenset({0}))
REFUTES = Expected(may_fail=frozenset({0}))


def test_nothing_told_is_nothing_wrong() -> None:
    assert judged() == ""


def test_a_death_that_is_not_expected_is_wrong_and_one_that_is_expected_and_missing() -> None:
    assert "failed: [0]" in judged((1, failed(0)))
    assert "failed: []" in judged(expected=DIES)
    assert judged((1, failed(0)), expected=DIES) == ""


def test_a_death_must_rest_on_the_evidence_that_is_expected() -> None:
    expected = replace(DIES, evidence=frozenset({"refused"}))
    assert judged((1, failed(0)), expected=expected) == ""
    assert "evidence" in judged((1, failed(0, evidence="stalled")), expected=expected)


def test_a_death_is_forgiven_if_it_is_refuted_in_time() -> None:
    back = (1, about("member_joined", 0, incarnation=1))
    assert judged((1, failed(0)), back, expected=REFUTES) == ""
    late = judged((1, failed(0)), (2, CHANGED), back, expected=REFUTES)
    assert "0 was taken for failed for 2.000 s" in late
    never = judged((1, failed(0)), (2, {"event": "x"}), (2, {"event": "x"}), expected=REFUTES)
    assert "0 was taken for failed for 3.000 s" in never
    anew = (1, {**joined("400.0.1", None), "run": 2})
    assert judged((1, failed(0)), anew, (1, {"event": "x", "run": 2}), expected=REFUTES) == ""


@pytest.mark.parametrize("end", ["member_failed", "member_left"])
def test_who_is_back_in_the_version_that_ended_is_resurrected(end: str) -> None:
    leaves = frozenset({0}) if end == "member_left" else frozenset()
    expected = replace(REFUTES, leaves=leaves)
    ended = (1, about(end, 0, evidence="refused"))
    assert "resurrected" in judged(ended, (1, about("member_joined", 0)), expected=expected)
    assert judged(ended, (1, about("member_joined", 0, incarnation=1)), expected=expected) == ""
    assert "resurrected" not in judged(ended, (2, about("member_joined", 0)), expected=expected)


def test_who_is_back_is_resurrected_for_one_who_only_settled_with_those_who_told_of_the_end() -> (
    None
):
    ended, back = (1, failed(0)), (2, about("member_joined", 0))
    assert "resurrected" not in judged(ended, back, expected=REFUTES)
    assert "resurrected" in judged(ended, (1, HEAL), back, expected=REFUTES)
    higher = (2, about("member_joined", 0, incarnation=1))
    assert "resurrected" not in judged(ended, (1, HEAL), higher, expected=REFUTES)


def test_whoever_leaves_is_told_to_have_left_and_nobody_else() -> None:
    leaves = Expected(leaves=frozenset({0}))
    assert "12: left: [0]" in judged((1, LEFT))
    assert "12: left: []" in judged(expected=leaves)
    assert judged((1, LEFT), expected=leaves) == ""
    assert "failed: [0]" in judged((1, failed(0)), expected=leaves)


def test_each_judgement_is_of_what_was_told_since_the_one_before() -> None:
    judge = Judge(forgives=1.5)
    for number in range(3):
        judge.knows(number, f"id{number}")
        judge.lives(number)
    told = [(1, failed(0)), (0, elected(0, 8)), (0, elected(0, 8)), (1, CHANGED)]
    told += [(2, joined("400.0.1", 1))]
    for agent, event in told:
        judge.hear(Told(0.0, agent, 1, event))
    assert len(judge.judge(Expected(), 1.0)) == 4
    assert judge.judge(Expected(), 1.0) == []
    judge.hear(Told(1.0, 0, 1, elected(0, 8)))
    assert "3: a claim" in judge.judge(Expected(), 2.0)[0]


def test_a_claim_is_above_those_that_its_maker_could_know() -> None:
    assert judged((0, elected(0, 8)), (0, elected(0, 9))) == ""
    assert "3: a claim" in judged((0, elected(0, 8)), (0, elected(0, 8)))
    apart = [(0, elected(0, 8)), (1, elected(1, 8))]
    assert judged(*apart) == ""
    heal = (0, HEAL)
    assert "3: a claim" in judged(*apart, heal, (0, elected(0, 8)))
    assert judged(*apart, heal, (0, elected(0, 9))) == ""


def test_a_claim_is_above_the_one_that_was_held_before_anything_was_told() -> None:
    assert "3: a claim" in judged((1, elected(1, 7)), led_by=2)
    assert judged((1, elected(1, 8)), led_by=2) == ""


def test_a_joiner_is_younger_than_all_whom_its_contact_knew() -> None:
    assert judged((3, joined("400.0.1", 1))) == ""
    assert "3: older" in judged((3, joined("250.0.1", 1)))


def test_a_life_ends_with_its_process_unless_it_is_said_that_it_may_not() -> None:
    again = (2, joined("400.0.1", 1))
    assert "new lives" in judged(again)
    assert judged(again, expected=Expected(new_lives=frozenset({2}))) == ""
    assert judged((2, {**joined("400.0.1", 1), "run": 2})) == ""


def test_each_change_of_the_leader_counts_but_the_first_leader_of_a_new_process() -> None:
    assert "1 changes" in judged((2, CHANGED))
    assert judged((2, CHANGED), expected=Expected(leader_changes=1)) == ""
    new = (2, {**joined("400.0.1", 1), "run": 2})
    assert judged(new, (2, {**CHANGED, "run": 2})) == ""


def test_what_nobody_noticed_did_not_happen() -> None:
    expected = Expected(notices=frozenset({"leader_stalled"}))
    assert "nobody told" in judged(expected=expected)
    assert judged((1, {"event": "leader_stalled"}), expected=expected) == ""


# --- the player -----------------------------------------------------------------------


def test_the_world_knows_who_reaches_whom() -> None:
    world = World(6)
    steps: list[tuple[Step, list[list[int]]]] = [
        (Split(((0, 1), (2, 3))), [[0, 1, 4, 5], [2, 3]]),
        (Unplug(1), [[0, 4, 5], [2, 3], [1]]),
        (Kill(2), [[0, 4, 5], [3], [1]]),
        (Stop(3), [[0, 4, 5], [1]]),
        (Heal(), [[0, 4, 5], [1]]),
        (PlugIn(1), [[0, 1, 4, 5]]),
        (Start(2), [[0, 1, 2, 4, 5]]),
    ]
    for step, parts in steps:
        world.do(step)
        assert world.parts() == parts


def broken(scenario: Scenario, **expected: Any) -> str:
    """What is said of this scenario when something else is expected."""
    with pytest.raises(AssertionError) as error, SimNetwork(seed=5) as net:
        play(replace(scenario, expected=Expected(**expected)), SimStage(net))
    return "\n".join([str(error.value), *error.value.__notes__])


def test_a_scenario_that_fails_prints_itself_what_was_told_and_its_seed() -> None:
    said = broken(Scenario("one dies", 3, (Kill(1), Settle())))
    assert "5, 6: failed: [1]" in said
    assert "'one dies', 3 agents\n    Kill(agent=1),\n    Settle(within=None),\n" in said
    assert "member_failed {'instance_id': 'node-1'" in said
    assert "net = SimNetwork(seed=5" in said


class Fatal(SimStage):
    """Where something kills, in a way that some would call gentle."""

    def __init__(self, net: SimNetwork, what: type[Step]) -> None:
        super().__init__(net)
        self._what = what

    def do(self, step: Step) -> None:
        super().do(Kill(step.agent) if isinstance(step, self._what) else step)  # type: ignore[union-attr]


def fatal(what: type[Step]) -> str:
    scenario = Scenario("nothing happens", 3, (Wait(1.0),))
    with pytest.raises(AssertionError) as error, SimNetwork(seed=5) as net:
        play(scenario, Fatal(net, what))
    return str(error.value)


def test_every_scenario_ends_with_clocks_that_jump_and_kill_nobody() -> None:
    assert "no longer there: [0, 1, 2]" in fatal(SetClock)


def test_every_scenario_ends_with_a_leader_that_leaves_and_is_told_to_have_left() -> None:
    said = fatal(Leave)
    assert "failed: [0]" in said
    assert "12: left: []" in said


def test_what_never_settles_says_what_kept_it() -> None:
    said = broken(Scenario("cut for good", 2, (Cut(0, 1), Wait(20.0), Settle(within=1.0))))
    assert "[0, 1]: views differ" in said


def test_names_are_unique_and_what_is_real_is_short() -> None:
    names = [scenario.name for scenario in CATALOGUE]
    assert len(names) == len(set(names))
    lasts = [
        sum(w.seconds if w.real is None else w.real for w in s.steps if isinstance(w, Wait))
        for s in CATALOGUE
        if s.is_real
    ]
    assert [seconds for seconds in lasts if seconds > 25] == [120.0]
