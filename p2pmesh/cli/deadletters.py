"""``dead-letters``: messages that a node accepted and that ended dead; again, or away.

Without an option it lists them, the oldest first.  ``all`` takes them one after the
other: what cannot be sent again is told at the end, and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from p2pmesh.cli.call import Call
from p2pmesh.cli.local import NodeClient, choose, segment
from p2pmesh.errors import ConfigError, MeshError

_ALL: Final = "all"
_PATH: Final = "/v1/dead-letters"
_LISTED_MAX: Final = 1000  # as many as a node keeps


def dead_letters(call: Call) -> int:
    retry, drop = call.settings.retry, call.settings.drop
    if retry is not None and drop is not None:
        raise ConfigError("--retry and --drop: give one of them")
    with choose(call.settings) as node:
        if retry is not None:
            _each(call, node, retry, _sent_again)
        elif drop is not None:
            _each(call, node, drop, _dropped)
        else:
            _list(call, node)
    return 0


def _list(call: Call, node: NodeClient) -> None:
    view = node.get(f"{_PATH}?limit={_LISTED_MAX}")
    if call.settings.json:
        call.out.object(view)
    elif view["dead_letters"]:
        rows = [_row(letter) for letter in view["dead_letters"]]
        columns = ("ID", "DIED", "FROM", "RECIPIENT", "TYPE", "REASON")
        call.out.table(columns, rows, style_by=0)
    else:
        call.out.note(f"no dead letters at {_asked(node)}")


def _asked(node: NodeClient) -> str:
    return f"{node.url} (each node has those that it accepted: --url asks another)"


def _row(letter: Mapping[str, Any]) -> tuple[str, ...]:
    kind = letter["message_type"]
    died_at = datetime.fromisoformat(letter["died_at"]).astimezone()
    return (
        str(letter["message_id"]),
        died_at.strftime("%Y-%m-%d %H:%M:%S"),
        str(letter["source_instance"]),
        str(letter["recipient"]),
        str(kind["Custom"] if isinstance(kind, dict) else kind),
        str(letter["reason"]),
    )


def _each(
    call: Call, node: NodeClient, which: str, what: Callable[[Call, NodeClient, str], None]
) -> None:
    """Do it to one, or to all that there are.  Raises MeshError, for some after all."""
    if which != _ALL:
        what(call, node, which)
        return
    letters = node.get(f"{_PATH}?limit={_LISTED_MAX}")["dead_letters"]
    if not letters:
        call.out.note(f"nothing to do: no dead letters at {_asked(node)}")
    message_ids = list(dict.fromkeys(str(letter["message_id"]) for letter in letters))
    failures: list[MeshError] = []
    for message_id in message_ids:
        try:
            what(call, node, message_id)
        except MeshError as error:
            failures.append(error)
    if failures:
        raise MeshError(f"{len(failures)} of {len(message_ids)} stay: {failures[0]}")


def _sent_again(call: Call, node: NodeClient, message_id: str) -> None:
    answer = node.post(f"{_PATH}/{segment(message_id)}/retry", {})
    recipients = answer["recipients"]
    if call.settings.json:
        call.out.object({"message_id": message_id, "recipients": recipients})
        return
    going = (f"{each['instance_id']} ({each['state']})" for each in recipients)
    call.out.text(f"{message_id}  sent again to {', '.join(going)}")


def _dropped(call: Call, node: NodeClient, message_id: str) -> None:
    node.delete(f"{_PATH}/{segment(message_id)}")
    if call.settings.json:
        call.out.object({"message_id": message_id, "dropped": True})
    else:
        call.out.text(f"{message_id}  dropped")
