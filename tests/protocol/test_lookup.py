"""Who lives where, and in which state, as the message plane and people read the view."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2pmesh.protocol import timing, wire
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.lookup import Lookup
from p2pmesh.protocol.members import Change
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.questions import Questions
from p2pmesh.protocol.records import SignedEntry, SignedRecord
from p2pmesh.protocol.types import Instance, Instant, Life, Member, MeshConfig, Restored, State
from tests.protocol.claims import (
    agent,
    life,
    node_id,
    question,
    signed,
    signed_entry,
    verdict,
)


class Reader:
    """A lookup over a core whose view is what the test says."""

    def __init__(self, *claims: SignedRecord | SignedEntry | wire.Verdict) -> None:
        self.core = Core(
            MeshConfig(name="me", agent=agent(0), process=b"process."),
            seed=bytes(32),
            at=Instant(100.0, 0),
            rng=random.Random(0),
            entropy=lambda size: bytes(size),
            restored=Restored(),
            book=None,
        )
        self.questions = Questions(self.core, Neighbours(self.core))
        self.lookup = Lookup(self.core, self.questions)
        self.hear(*claims)

    def hear(self, *claims: SignedRecord | SignedEntry | wire.Verdict) -> None:
        view, now = self.core.view, self.core.at.now
        for claim in claims:
            match claim:
                case SignedRecord():
                    view.offer_record(claim, now)
                case SignedEntry():
                    view.offer_entry(claim, now)
                case _:
                    view.offer_verdict(claim, now)
        self.lookup.changed()

    def at(self, now: float) -> None:
        self.core.at = Instant(now, 0)
        self.lookup.changed()

    def instance(self, instance_id: str) -> Instance:
        found = self.lookup.instance(instance_id)
        assert found is not None
        return found

    def member(self, instance_id: str) -> Member:
        (found,) = [m for m in self.members() if m.instance_id == instance_id]
        return found

    def members(self, **words: Any) -> tuple[Member, ...]:
        return self.lookup.members(words.get)


# --- instances ------------------------------------------------------------------


def test_a_nodes_agent_is_an_instance() -> None:
    reader = Reader(signed(1, 5, agent=agent(1, persistent=True), name="worker"))
    assert reader.instance("agent-1") == Instance(
        "agent-1", "worker", node_id(1), life(5), life(5), "node", "alive", True
    )
    assert reader.lookup.instance("agent-2") is None
    assert reader.lookup.node_life(node_id(1)) == life(5)


def test_an_observer_is_no_instance() -> None:
    reader = Reader(signed(1, agent=None))
    assert list(reader.lookup.live_instances()) == []


@pytest.mark.parametrize(
    ("then", "state"),
    [
        (signed(1, revision=1), "alive"),
        (verdict(1), "failed"),
        (signed(1, state=State.LEFT), "left"),
    ],
)
def test_the_state_of_a_node_is_its_claims(then: SignedRecord | wire.Verdict, state: str) -> None:
    reader = Reader(signed(1), then)
    assert reader.instance("agent-1").state == state
    assert reader.member("agent-1").state == state
    assert (reader.lookup.node_life(node_id(1)) is not None) is (state == "alive")
    assert bool(list(reader.lookup.live_instances())) is (state == "alive")


def test_a_node_in_question_is_suspect_and_lives() -> None:
    reader = Reader(signed(1))
    reader.questions.suspicions.ask(question(1), 100.0)
    reader.lookup.changed()
    assert reader.instance("agent-1").state == "suspect"
    assert [i.instance_id for i in reader.lookup.live_instances()] == ["agent-1"]


def test_a_guest_is_an_instance_of_its_home() -> None:
    reader = Reader(signed(1, 5), signed_entry("g", 1, 5))
    assert reader.instance("g") == Instance(
        "g", "g", node_id(1), life(5), life(50), "guest", "alive", True
    )
    entry = reader.lookup.entry("g")
    assert entry is not None
    assert entry.home == node_id(1)
    assert reader.lookup.entry("agent-1") is None


@pytest.mark.parametrize(
    ("home", "at_once", "later"),
    [
        (None, "alive", "alive"),
        (signed(1, 1, revision=1), "alive", "alive"),
        (signed(1, 1, incarnation=1), "alive", "alive"),
        (verdict(1), "suspect", "failed"),
        (signed(1, state=State.LEFT), "suspect", "failed"),
        (signed(1, 2), "suspect", "failed"),
    ],
)
def test_a_guest_fails_fifteen_seconds_after_its_home_is_gone_or_lives_anew(
    home: SignedRecord | wire.Verdict | None, at_once: str, later: str
) -> None:
    reader = Reader(signed(1), signed_entry("g", 1))
    reader.at(200.0)
    if home is not None:
        reader.hear(home)
    assert reader.instance("g").state == at_once
    reader.at(200.0 + timing.GUEST_TIMEOUT - 0.1)
    assert reader.instance("g").state == at_once
    reader.at(200.0 + timing.GUEST_TIMEOUT)
    assert reader.instance("g").state == later
    assert reader.member("g").state == later


def test_nobody_has_to_look_for_a_guests_time_to_run() -> None:
    reader = Reader(signed(1), signed_entry("g", 1), verdict(1))
    reader.at(100.0 + timing.GUEST_TIMEOUT)
    assert reader.instance("g").state == "failed"


def test_a_second_end_of_a_home_has_its_own_fifteen_seconds() -> None:
    reader = Reader(signed(1), signed_entry("g", 1), verdict(1))
    reader.at(200.0)
    reader.hear(signed(1, 1, incarnation=1))
    assert reader.instance("g").state == "alive"
    reader.hear(verdict(1, 1, 1))
    assert reader.instance("g").state == "suspect"


@pytest.mark.parametrize(("state", "shown"), [(State.FAILED, "failed"), (State.LEFT, "left")])
def test_a_guest_is_what_its_home_says(state: State, shown: str) -> None:
    reader = Reader(signed(1), signed_entry("g", 1, state=state))
    assert reader.instance("g").state == shown


def test_a_guest_of_a_suspect_home_is_suspect() -> None:
    reader = Reader(signed(1), signed_entry("g", 1))
    reader.questions.suspicions.ask(question(1), 100.0)
    reader.lookup.changed()
    assert reader.instance("g").state == "suspect"


# --- one id, several holders ------------------------------------------------------


def holder(number: int, born: int, **fields: Any) -> SignedRecord:
    return signed(number, born, agent=agent(number, instance_id="x"), **fields)


@pytest.mark.parametrize(
    ("claims", "home"),
    [
        ([holder(1, 5), holder(2, 4)], 2),  # the older
        ([holder(1, 4), holder(2, 4)], min((1, 2), key=node_id)),
        ([holder(1, 4), verdict(1, 4), holder(2, 5)], 2),  # the live one
        ([holder(1, 4, state=State.LEFT), holder(2, 5)], 2),
        ([holder(1, 4), verdict(1, 4), holder(2, 5), verdict(2, 5)], 2),  # who lived last
        ([holder(1, 4, state=State.LEFT), holder(2, 5), verdict(2, 5)], 2),
        ([holder(1, 5), signed(2, 1), signed_entry("x", 2)], 1),  # an agent before a guest
        ([holder(1, 5), verdict(1, 5), signed(2, 1), signed_entry("x", 2)], 2),
    ],
)
def test_of_several_holders_of_an_id_one_has_it(claims: list[Any], home: int) -> None:
    for order in (claims, claims[::-1] if all(isinstance(c, SignedRecord) for c in claims) else []):
        if order:
            assert Reader(*order).instance("x").home == node_id(home)


def test_a_message_waits_for_who_failed_last_not_for_who_left_before() -> None:
    """An id that left for good and came back is dead-lettered only if it left last."""
    reader = Reader(holder(1, 4, state=State.LEFT), holder(2, 5), verdict(2, 5))
    assert reader.instance("x").state == "failed"


def test_a_live_agent_whose_id_an_older_one_holds_is_not_listed() -> None:
    reader = Reader(holder(1, 4), holder(2, 5), signed(3, 6, agent=None))
    assert reader.member("x").node_id == node_id(1).hex()
    reader.hear(verdict(1, 4))
    assert {(m.instance_id, m.state) for m in reader.members()} >= {
        ("x", "failed"),
        ("x", "alive"),
        (node_id(3).hex(), "alive"),
    }


def test_names_are_of_the_living_oldest_first() -> None:
    reader = Reader(
        signed(1, 3, name="n"),
        signed(2, 2, name="n"),
        signed(3, 1, name="n", state=State.LEFT),
        signed(4, 4, name="m"),
        signed_entry("n", 4, 4, life=Life(0, 0, 1)),
    )
    assert [i.instance_id for i in reader.lookup.named("n")] == ["n", "agent-2", "agent-1"]
    assert reader.lookup.named("o") == ()
    assert [i.instance_id for i in reader.lookup.gone("n")] == ["agent-3"]
    assert {"n", "m", "agent-1", "agent-3"} <= set(reader.lookup.names())


def test_the_index_follows_the_view() -> None:
    reader = Reader(signed(1))
    assert reader.lookup.instance("agent-2") is None
    reader.hear(signed(2))
    assert reader.instance("agent-2").home == node_id(2)
    reader.hear(signed(2, 1, incarnation=1, agent=agent(2, instance_id="renamed")))
    assert reader.lookup.instance("agent-2") is None


def test_the_agents_of_nodes_are_found_behind_tombstones_too() -> None:
    reader = Reader(signed(1), verdict(1), signed(2), signed(3, agent=None), verdict(4))
    nodes = [node_id(number) for number in (1, 2, 3, 4, 5)]
    assert list(reader.lookup.agents_of(nodes)) == ["agent-1", "agent-2"]


# --- members --------------------------------------------------------------------


def test_members_are_listed_oldest_first_ended_ones_included() -> None:
    reader = Reader(
        signed(1, 3),
        signed(2, 1),
        verdict(2, 1),
        signed(3, 2, state=State.LEFT),
        signed_entry("g", 1, 3, life=Life(life(2).ms, 0, 1)),
    )
    assert [m.instance_id for m in reader.members()][:-1] == ["agent-2", "g", "agent-3", "agent-1"]


def test_this_node_is_listed_last_and_without_a_life_until_it_has_joined() -> None:
    reader = Reader(signed(1, 3))
    me = reader.members()[-1]
    assert (me.instance_id, me.life, me.last_heartbeat_age) == ("agent-0", "", 0.0)
    assert reader.lookup.myself() == me


def test_a_member_shows_its_record() -> None:
    made = signed(
        1, 5, incarnation=3, name="worker", addresses=("10.0.0.1:8078",), candidate=True,
        agent=agent(1, capabilities=("c",), profiles=("p",), hostname="h", http_port=8077,
                    created_at=9),
    )  # fmt: skip
    reader = Reader(made, signed(2, 6), signed(3, 7, candidate=False), signed(4, 8, agent=None))
    member = reader.member("agent-1")
    assert msgspec.structs.asdict(member) == {
        "instance_id": "agent-1",
        "node_id": node_id(1).hex(),
        "name": "worker",
        "kind": "node",
        "home": node_id(1).hex(),
        "state": "alive",
        "stalled": False,
        "life": str(life(5)),
        "incarnation": 3,
        "capabilities": ("c",),
        "agent_profiles": ("p",),
        "status": None,
        "metrics": None,
        "addresses": ("10.0.0.1:8078",),
        "last_heartbeat_age": 1.5,
        "is_leader": True,
        "candidate": True,
        "hostname": "h",
        "port": 8077,
        "created_at": 9,
    }
    assert not reader.member("agent-2").is_leader
    assert not reader.member("agent-3").candidate
    observer = reader.member(node_id(4).hex())
    assert (observer.candidate, observer.capabilities, observer.port) == (False, (), 0)


def test_a_tombstone_of_somebody_unknown_is_listed_with_what_is_known() -> None:
    reader = Reader(verdict(1, 5))
    member = reader.member(node_id(1).hex())
    assert (member.state, member.life, member.name) == ("failed", str(life(5)), "")


@pytest.mark.parametrize(
    ("here", "status", "metrics"),
    [
        ({}, "busy", {"load": 1}),
        ({"g": SimpleNamespace(status=None, metrics=None, heard_at=98.0)}, "busy", {"load": 1}),
        ({"g": SimpleNamespace(status="idle", metrics=None, heard_at=98.0)}, "idle", None),
        ({"g": SimpleNamespace(status="idle", metrics=b"\xc1", heard_at=98.0)}, "idle", None),
    ],
)
def test_a_guest_shows_its_word_and_at_its_home_the_latest(
    here: dict[str, Any], status: str, metrics: object
) -> None:
    told = msgspec.msgpack.encode({"load": 1})
    reader = Reader(signed(1), signed_entry("g", 1, status="busy", metrics=told))
    (guest,) = [m for m in reader.members(**here) if m.kind == "guest"]
    assert (guest.status, guest.metrics) == (status, metrics)
    assert (guest.home, guest.port, guest.hostname) == (node_id(1).hex(), 4101, "127.0.0.1")


# --- ages -----------------------------------------------------------------------


def test_the_age_of_a_heartbeat() -> None:
    reader = Reader(signed(1), signed(2), signed(3, preset="wifi"), signed_entry("g", 1))
    reader.core.links_up[node_id(1)] = SimpleNamespace(heard_at=99.25)
    ages = {m.instance_id: m.last_heartbeat_age for m in reader.members()}
    assert ages == {"agent-0": 0.0, "agent-1": 0.75, "g": 0.75, "agent-2": 1.5, "agent-3": 3.0}
    reader.questions.stalled_since[node_id(2)] = 96.0
    member = reader.member("agent-2")
    assert (member.stalled, member.last_heartbeat_age) == (True, 5.5)


def test_the_age_of_who_failed_and_of_its_guests_goes_on() -> None:
    reader = Reader(signed(1), signed_entry("g", 1))
    reader.questions.stalled_since[node_id(1)] = 96.0
    reader.core.view.offer_verdict(verdict(1), 100.0)
    reader.lookup.changed([Changed(node_id(1), Change.FAILED, None)])
    reader.questions.stalled_since.clear()
    reader.at(106.0)
    assert {m.last_heartbeat_age for m in reader.members() if m.node_id == node_id(1).hex()} == {
        11.5
    }


@pytest.mark.parametrize("has_left", [False, True])
def test_the_age_of_who_ended_is_since_then(has_left: bool) -> None:
    reader = Reader(signed(1), signed_entry("g", 1))
    if has_left:
        reader.core.view.offer_record(signed(1, state=State.LEFT), 100.0, age=4.0)
    else:
        reader.hear(verdict(1, age=4_000))
    reader.at(106.0)
    assert [m.last_heartbeat_age for m in reader.members()][:2] == [10.0, 10.0]
