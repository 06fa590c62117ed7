"""``members``, ``leader`` and ``watch``: what one node sees.

With ``--json`` they print what the node answers, as it stands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from p2pmesh.cli.call import Call
from p2pmesh.cli.local import NodeClient, NodeGone, choose, has_other, segment, warn
from p2pmesh.cli.output import STYLES, to_json
from p2pmesh.errors import MeshError

_NAMES_MAX: Final = 4096  # of whom watch tells apart
_NAMED_MAX: Final = 20


def members(call: Call) -> int:
    if call.settings.discover:
        from p2pmesh.cli.discover import discover

        return discover(call)
    with choose(call.settings) as node:
        view = node.get("/v1/members")
        lacks = None if call.settings.json else _lacks(node, view)
    if call.settings.json:
        call.out.object(view)
        return 0
    rows = [_member_row(member, lacks) for member in view["members"]]
    call.out.table(("NAME", "INSTANCE", "STATE", "SEEN", "KIND", "ADDRESS", ""), rows, style_by=2)
    return 0


def leader(call: Call) -> int:
    with choose(call.settings) as node:
        view = node.get("/v1/leader")
        if call.settings.json:
            call.out.object(view)
        elif view["leader_id"] is None:
            has_joined = node.get("/v1/self").get("life")
            why = "no live member is a candidate" if has_joined else "this node has not joined yet"
            call.out.text(f"nobody leads: {why}")
        else:
            leads = node.own_instance() == view["leader_id"]
            leader = view if leads else _member(node, str(view["leader_id"]))
            facts = _leader_facts(view, leads=leads, is_stalled=leader.get("stalled", False))
            call.out.text(f"{view['leader_id']}  ({', '.join(facts)})")
    return 0


def watch(call: Call) -> int:
    """Until Ctrl-C; when its node ends or falls silent, at another one here that answers."""
    goes_on = False
    while True:
        with choose(call.settings, must_answer=goes_on) as node:
            try:
                _watch(call, node)
            except NodeGone as error:
                if call.settings.url is not None or not has_other(call.settings, node):
                    raise
                warn(f"{error}: what happens until another is asked is not shown")
                goes_on = True


def _watch(call: Call, node: NodeClient) -> None:
    """Until it is gone."""
    names: dict[str, str] = {}  # of node ids
    if not call.settings.json:
        members = node.get("/v1/members")["members"]
        names = {member.get("node_id"): member.get("name") for member in members}
        if not call.settings.quiet:
            call.out.note(f"{node.url} sees {_here(members)}")
    for event in node.events():
        if call.settings.json:
            call.out.object(event)
        else:
            if event.get("kind") == "node":
                names[str(event.get("node_id"))] = str(event.get("name"))
                if len(names) > _NAMES_MAX:
                    names.pop(next(iter(names)))
            call.out.text(event_line(event, names), STYLES.get(str(event.get("event")), ""))


def _here(members: Sequence[Mapping[str, Any]]) -> str:
    """Who is alive, in a line."""
    live = [member for member in members if member["state"] in ("alive", "suspect")]
    said = [
        f"{member['name']} (leader)" if member.get("is_leader") else str(member["name"])
        for member in live[:_NAMED_MAX]
    ]
    more = f" and {len(live) - len(said)} more" if len(live) > len(said) else ""
    return f"{len(live)} alive: {', '.join(said)}{more}"


def event_line(event: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """One event for people: when, what, who, and what else it says.  ``names`` of node
    ids are for those who are accusers."""
    if accusers := event.get("accusers"):
        event = {**event, "accusers": [names.get(each) or each[:16] for each in accusers]}
    at = time.strftime("%H:%M:%S", time.localtime(event.get("t", 0.0)))
    milliseconds = int(event.get("t", 0.0) * 1000) % 1000
    kind = str(event.get("event"))
    return f"{at}.{milliseconds:03d}  {kind:<17} {_event_facts(kind, event)}".rstrip()


def _event_facts(kind: str, event: Mapping[str, Any]) -> str:
    match kind:
        case "message":
            return (
                f"{event.get('message_id')}  {event.get('type')} from {event.get('source')}: "
                f"{to_json(event.get('payload'))}"
            )
        case "leader_changed":
            return f"{event.get('leader_id')}  epoch {event.get('epoch')}, {event.get('reason')}"
        case _:
            who = event.get("name") or event.get("leader_id") or event.get("message_id") or ""
            said = {"event", "t", "seq", "name", "leader_id", "message_id", "node_id", "kind"}
            facts = (f"{key} {_plain(value)}" for key, value in event.items() if key not in said)
            return "  ".join(filter(None, (str(who), ", ".join(facts))))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value) or "-"
    return to_json(value)


def _lacks(node: NodeClient, view: Mapping[str, Any]) -> str | None:
    """What the leader lacks for authority, which only the leader itself knows."""
    leads = any(m["is_leader"] and m["node_id"] == view["node_id"] for m in view["members"])
    lacks: str | None = node.get("/v1/leader").get("lacks") if leads else None
    return lacks


def _member_row(member: Mapping[str, Any], lacks: str | None) -> tuple[str, ...]:
    state = str(member["state"])
    shown = f"{state}, stalled" if member.get("stalled") else state
    age = member.get("last_heartbeat_age")
    leads = f"leader, without authority: {lacks}" if lacks else "leader"
    return (
        str(member["name"]),
        str(member["instance_id"]),
        shown,
        "-" if age is None else f"{age:.1f} s",
        str(member["kind"]),
        " ".join(member.get("addresses") or ()),
        leads if member.get("is_leader") else "",
    )


def _member(node: NodeClient, instance_id: str) -> Mapping[str, Any]:
    """What the node knows of it; nothing, where it went just now."""
    try:
        found: Mapping[str, Any] = node.get(f"/v1/members/{segment(instance_id)}")
    except NodeGone:
        raise
    except MeshError:
        return {}
    return found


def _leader_facts(view: Mapping[str, Any], *, leads: bool, is_stalled: bool) -> list[str]:
    """Its policy, and what it lacks, only the leader itself knows."""
    facts = ["stalled"] if is_stalled else []
    facts.append("no claim yet" if view["epoch"] is None else f"epoch {view['epoch']}")
    if view.get("since") is not None:
        facts.append(f"for {view['since']:.0f} s")
    if not leads:
        return [*facts, "its policy and authority are known to it alone"]
    facts.append(f"policy {view['policy']}")
    if view.get("lacks"):
        facts.append(f"without authority: {view['lacks']}")
    return facts
