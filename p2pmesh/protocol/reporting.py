"""Member events: what a change of the view is to people and programs."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pmesh.protocol.core import Changed
from p2pmesh.protocol.members import Change, Claim, Tombstone, View
from p2pmesh.protocol.records import Record, SignedEntry, SignedRecord
from p2pmesh.protocol.types import (
    Event,
    Evidence,
    GuestEntry,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    NodeId,
    State,
)

#: What may change in a record without an event: how often it was refuted or said.
_SILENT = ("incarnation", "revision", "epoch")


def who(record: Record) -> dict[str, Any]:
    """The fields that name a node in a member event."""
    return {
        "instance_id": record.agent.instance_id if record.agent else record.id.hex(),
        "node_id": record.id.hex(),
        "name": record.name,
        "kind": "node",
    }


def event_of(changed: Changed, view: View, me: NodeId) -> Event | None:
    """The event of one change, if it is one to others; my own joining is ``joined``,
    told elsewhere."""
    if isinstance(changed.key, str):
        held = view.guests.get(changed.key)
        before = changed.before.entry if isinstance(changed.before, SignedEntry) else None
        if held is None:  # forgotten, perhaps because all others know that it left
            if before is None or changed.change is not Change.LEFT:
                return None
            return _guest_event(_gone(before), before)
        return _guest_event(held.entry, before)
    return None if changed.key == me else _node_event(changed, view.nodes.get(changed.key))


def _node_event(changed: Changed, claim: Claim | None) -> Event | None:
    before = changed.before
    match changed.change, claim:
        case Change.JOINED, SignedRecord(record=record):
            return MemberJoined(**who(record))
        case Change.UPDATED, SignedRecord(record=record):
            if isinstance(before, SignedRecord) and _is_visible(before.record, record):
                return MemberUpdated(**who(record))
        case Change.LEFT, SignedRecord(record=record):
            if isinstance(before, SignedRecord) and before.is_alive:
                return MemberLeft(**who(record))
        case Change.FAILED, Tombstone(evidence=evidence, accusers=accusers):
            if isinstance(before, SignedRecord):
                return MemberFailed(
                    **who(before.record),
                    evidence=evidence_of(evidence),
                    accusers=tuple(accuser.hex() for accuser in accusers),
                )
        case _:
            pass
    return None


def _is_visible(before: Record, after: Record) -> bool:
    return any(
        getattr(before, field) != getattr(after, field)
        for field in Record.__struct_fields__
        if field not in _SILENT
    )


def evidence_of(text: str) -> Evidence:
    """Others' word, and perhaps a later version's."""
    return Evidence(text) if text in tuple(Evidence) else Evidence.UNREACHABLE


def guest_who(entry: GuestEntry) -> dict[str, Any]:
    """The fields that events about a guest share."""
    return {
        "instance_id": entry.instance_id,
        "node_id": entry.home.hex(),
        "name": entry.instance_id,
        "kind": "guest",
    }


def _guest_event(entry: GuestEntry, before: GuestEntry | None) -> Event | None:
    fields = guest_who(entry)
    was = before.state if before is not None else None
    if entry.state is State.ALIVE:
        if was is not State.ALIVE:
            return MemberJoined(**fields)
        if before is not None and _visible(before) != _visible(entry):
            return MemberUpdated(**fields)
    elif was is State.ALIVE:
        if entry.state is State.LEFT:
            return MemberLeft(**fields)
        return MemberFailed(**fields, evidence=Evidence.UNREACHABLE, accusers=())
    return None


def _gone(entry: GuestEntry) -> GuestEntry:
    """Of a guest that is forgotten: all others know that it left, and when."""
    return msgspec.structs.replace(entry, state=State.LEFT)


def _visible(entry: GuestEntry) -> tuple[object, ...]:
    return entry.home, entry.hostname, entry.port, entry.capabilities, entry.profiles
