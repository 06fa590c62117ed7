"""What happened in a run, for people: what was done, what nodes told, and who sees whom.

It decides nothing and changes nothing: a run is the same whether it is told or not.
Names and nodes beyond the bounds are counted instead.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from p2pmesh.protocol.types import Event, MemberEvent, Token
from p2pmesh.testing.node import SimNode, State, kind_of
from p2pmesh.testing.scenario import Step

if TYPE_CHECKING:
    from p2pmesh.testing.network import SimNetwork

#: Events of all nodes that a network keeps for its story.
TOLD_MAX: Final = 1000
#: Nodes whose views are told, and names in one list of names.
VIEWS_MAX: Final = 50
NAMES_MAX: Final = 12
LINE_MAX: Final = 160

_SAID_BEFORE: Final = ("t", "seq", "instance_id", "node_id", "name", "kind")


class Told(NamedTuple):
    """An event, when and to which node it happened."""

    at: float  # virtual seconds
    node: SimNode
    event: Event


def told_by(net: SimNetwork, nodes: Sequence[SimNode], last: int) -> str:
    """The last lines of what was done to a network and what these nodes told, and what
    they see now."""
    events = [told for told in net.told if told.node in nodes]
    names = {node.mesh.node_id.hex(): node.instance_id for node in net.nodes if node.runs}
    lines = [(step.at, _step_line(step)) for step in net.steps[-last:]]
    lines += [(told.at, _event_line(told, names)) for told in events[-last:]]
    lines.sort(key=lambda line: line[0])  # of one moment the step comes first
    shown = [f"{at:10.3f}  {text}" for at, text in lines[-last:]]
    left_out = len(net.steps) + len(events) - len(shown)
    before = [f"{'':10}  ({left_out} before that)"] if left_out else []
    return "\n".join(
        [
            "What was done and told, in virtual seconds:", *before, *shown,
            f"Who sees whom at {net.clock.now:.3f}:", *_views(nodes),
        ]
    )  # fmt: skip


def _step_line(step: Step) -> str:
    return _cut(str(step))


def _event_line(told: Told, names: dict[str, str]) -> str:
    event = told.event
    words = [kind_of(event)]
    if isinstance(event, MemberEvent):
        words.append(event.instance_id)
    words += [
        f"{field}={_word(getattr(event, field), names)}"
        for field in event.__struct_fields__
        if field not in _SAID_BEFORE or (field == "name" and not isinstance(event, MemberEvent))
    ]
    return _cut(f"{told.node.instance_id}: {' '.join(words)}")


def _word(value: Any, names: dict[str, str]) -> str:
    """Node ids as the instance ids of those who have them."""
    match value:
        case Token(epoch=epoch):
            return f"(epoch {epoch})"
        case Enum():
            return str(value.value)
        case tuple():
            return ",".join(_word(each, names) for each in value)
        case str():
            return names.get(value, value)
    return repr(value)


def _views(nodes: Sequence[SimNode]) -> list[str]:
    """One line for all nodes that see the same."""
    seeing: dict[str, list[str]] = {}
    for node in nodes[:VIEWS_MAX]:
        seeing.setdefault(_view(node), []).append(node.instance_id)
    lines = [_cut_names(names) + f" {view}" for view, names in seeing.items()]
    if len(nodes) > VIEWS_MAX:
        lines.append(f"and {len(nodes) - VIEWS_MAX} more nodes")
    return [f"{'':4}{line}" for line in lines] or [f"{'':4}there are no nodes"]


def _view(node: SimNode) -> str:
    if not node.runs:
        return "(never started)"
    if node.state is State.DEAD:
        return f"({node.stopped_because or 'dead'})"
    members: dict[str, list[str]] = {}
    for member in node.members():
        members.setdefault(member.state, []).append(member.instance_id)
    words = [f"{state}: {_cut_names(sorted(names))}" for state, names in sorted(members.items())]
    if node.life is None:
        words.append("has not joined")
    else:
        info = node.leadership()
        words.append(f"leader: {info.leader_id or 'none'}, epoch {info.epoch}")
    return f"({node.state.value}) {'; '.join(words)}"


def _cut_names(names: Iterable[str]) -> str:
    all_names = list(names)
    more = len(all_names) - NAMES_MAX
    return ", ".join(all_names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    return text if len(text) <= LINE_MAX else f"{text[:LINE_MAX]}…"


# --- what is waited for -----------------------------------------------------------------


def awaited(condition: Callable[[], bool]) -> str:
    """A condition as its author wrote it, or by its name."""
    match condition:
        case MethodType(__self__=SimNode() as node):
            return f"{node.instance_id}.{condition.__name__}()"
        case MethodType():
            return f"{condition.__name__}()"
        case FunctionType(__name__="<lambda>"):
            return _source(condition.__code__) or condition.__qualname__
    return str(getattr(condition, "__qualname__", repr(condition)))


def _source(code: CodeType) -> str:
    """The text of a lambda's body, on one line; "" where that cannot be had."""
    spans = [
        (start, first, end, last)
        for start, end, first, last in code.co_positions()
        if start is not None and end is not None
        and first is not None and last is not None and (start, first) < (end, last)
    ]  # fmt: skip
    if not spans:
        return ""
    start, first = min((start, first) for start, first, _, _ in spans)
    end, last = max((end, last) for _, _, end, last in spans)
    lines = [linecache.getline(code.co_filename, n).encode() for n in range(start, end + 1)]
    if not all(lines):
        return ""
    lines[-1] = lines[-1][:last]
    lines[0] = lines[0][first:]
    return _cut(" ".join(b" ".join(lines).decode(errors="replace").split()))
