"""Which change of the view is which event to people and programs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pmesh.protocol import wire
from p2pmesh.protocol.core import Changed
from p2pmesh.protocol.members import Change, View
from p2pmesh.protocol.records import SignedEntry, SignedRecord
from p2pmesh.protocol.reporting import event_of, evidence_of, who
from p2pmesh.protocol.types import Evidence, State
from tests.protocol.claims import (
    agent,
    node_id,
    record,
    signed,
    signed_entry,
    verdict,
)

Claim = SignedRecord | SignedEntry | wire.Verdict


def events(*claims: Claim, me: bytes = b"") -> list[dict[str, Any]]:
    """The events of the last of these claims, on top of those before it."""
    view = View()
    told: list[dict[str, Any]] = []
    for claim in (signed(2), *claims):
        match claim:
            case SignedRecord():
                key: bytes | str = claim.id
                before = view.nodes.get(claim.id)
                change = view.offer_record(claim, 0.0)
            case SignedEntry():
                key = claim.entry.instance_id
                before = view.guests.get(key)
                change = view.offer_entry(claim, 0.0)
            case _:
                key = claim.subject
                before = view.nodes.get(claim.subject)
                change = view.offer_verdict(claim, 0.0)
        event = event_of(Changed(key, change, before), view, me)
        told = [] if event is None else [msgspec.to_builtins(event)]
        assert all(isinstance(each["instance_id"], str) for each in told)
    return told


def kinds(*claims: Claim, me: bytes = b"") -> list[str]:
    return [event["event"].removeprefix("member_") for event in events(*claims, me=me)]


A = signed(1)
LEFT = signed(1, state=State.LEFT)


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ([A], ["joined"]),
        ([A, signed(1, 2)], ["joined"]),  # it restarted
        ([A, verdict(1), signed(1, 1, incarnation=1)], ["joined"]),  # it is back
        ([LEFT, signed(1, 2)], ["joined"]),
        ([A, verdict(1)], ["failed"]),
        ([A, LEFT], ["left"]),
        # What nobody saw alive does not end.
        ([LEFT], []),
        ([LEFT, signed(1, 2, state=State.LEFT)], []),
        ([verdict(1)], []),
        ([A, verdict(1), LEFT], []),
        ([A, verdict(1), verdict(1, 1, 1)], []),
        # What changes in a record.
        ([A, signed(1, revision=1, name="renamed")], ["updated"]),
        ([A, signed(1, revision=1, addresses=())], ["updated"]),
        ([A, signed(1, revision=1, candidate=False)], ["updated"]),
        ([A, signed(1, revision=1, agent=agent(1, capabilities=("c",)))], ["updated"]),
        ([A, signed(1, revision=1)], []),
        ([A, signed(1, incarnation=1)], []),
        ([A, signed(1, revision=1, epoch=7)], []),
    ],
)
def test_a_change_of_a_node(claims: list[Claim], told: list[str]) -> None:
    assert kinds(*claims) == told
    assert kinds(*claims, me=node_id(1)) == []  # my own is told elsewhere


GUEST = signed_entry("g", 2)


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ([GUEST], ["joined"]),
        ([GUEST, signed_entry("g", 2, revision=1, state=State.FAILED)], ["failed"]),
        ([GUEST, signed_entry("g", 2, revision=1, state=State.LEFT)], ["left"]),
        ([signed_entry("g", 2, state=State.FAILED)], []),
        ([signed_entry("g", 2, state=State.FAILED), signed_entry("g", 2, revision=1)], ["joined"]),
        ([signed_entry("g", 2, state=State.LEFT), signed_entry("g", 2, term=2)], ["joined"]),
        (
            [
                signed_entry("g", 2, state=State.FAILED),
                signed_entry("g", 2, revision=1, state=State.LEFT),
            ],
            [],
        ),
        ([signed(1), GUEST, signed_entry("g", 1, term=2)], ["updated"]),  # it lives elsewhere
        ([GUEST, signed_entry("g", 2, revision=1, port=9)], ["updated"]),
        ([GUEST, signed_entry("g", 2, revision=1, hostname="h")], ["updated"]),
        ([GUEST, signed_entry("g", 2, revision=1, capabilities=())], ["updated"]),
        ([GUEST, signed_entry("g", 2, revision=1, profiles=("p",))], ["updated"]),
        ([GUEST, signed_entry("g", 2, revision=1)], []),
        ([GUEST, signed_entry("g", 2, revision=1, status="busy")], []),
    ],
)
def test_a_change_of_a_guest(claims: list[Claim], told: list[str]) -> None:
    assert kinds(*claims) == told
    assert kinds(*claims, me=node_id(2)) == told  # my guests are told like others


def test_an_event_names_the_member_and_what_was_found() -> None:
    said = verdict(1, evidence="unreachable", accusers=(node_id(8), node_id(9)))
    (failed,) = events(A, said)
    assert failed == {
        "event": "member_failed",
        "t": 0.0,
        "seq": 0,
        "instance_id": "agent-1",
        "node_id": node_id(1).hex(),
        "name": "node-1",
        "kind": "node",
        "evidence": "unreachable",
        "accusers": (node_id(8).hex(), node_id(9).hex()),
    }
    (joined,) = events(GUEST)
    assert (joined["instance_id"], joined["node_id"], joined["kind"]) == (
        "g",
        node_id(2).hex(),
        "guest",
    )


def test_an_observer_is_named_by_its_node() -> None:
    assert who(record(1, agent=None))["instance_id"] == node_id(1).hex()


@pytest.mark.parametrize(
    ("text", "evidence"),
    [*((kind.value, kind) for kind in Evidence), ("a later kind", Evidence.UNREACHABLE)],
)
def test_evidence_of_a_later_version_is_the_weak_kind(text: str, evidence: Evidence) -> None:
    assert evidence_of(text) is evidence


def test_a_forgotten_claim_is_no_event() -> None:
    for key, before in ((node_id(1), A), ("g", GUEST)):
        assert event_of(Changed(key, Change.JOINED, before), View(), b"") is None
