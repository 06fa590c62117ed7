"""``send``, ``request`` and ``broadcast``: a message through a local node.

A TARGET that is a name is looked up first: the registry's calls know ids only.
``send`` and ``broadcast`` wait a moment for the message to be safe, so that what
they print says whether a recipient's home has it or only the node spoken to.  Where
that node has the only copy for now, it says why and nobody waits.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isinf
from typing import Final

from p2pmesh.cli.call import Call
from p2pmesh.cli.local import NodeClient, choose, segment
from p2pmesh.cli.output import Output, printable
from p2pmesh.cli.progress import shown
from p2pmesh.errors import ConfigError
from p2pmesh.ids import uuid7
from p2pmesh.protocol.limits import PROGRESS_MIN

SAFE_WITHIN: Final = 2.0  # what is still queued then is reported as queued
_POLL_INTERVAL: Final = 0.02
_ANSWER_MARGIN: Final = 5.0  # the node keeps the timeout; this is for its saying so

#: What a message carries of integers.
_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**64 - 1
_DIGITS_MAX: Final = 20
_QUOTED_MAX: Final = 40

#: From least to most advanced; a broadcast is as far as its last recipient.
_STATES: Final = ("queued", "stored", "done", "expired", "dead")  # as protocol.types.MessageState


def send(call: Call) -> int:
    payload = read_payload(call.payload)
    with choose(call.settings) as node:
        return _post(call, node, node.instance(call.target), payload)


def broadcast(call: Call) -> int:
    payload = read_payload(call.payload)
    with choose(call.settings) as node:
        return _post(call, node, None, payload)


def request(call: Call) -> int:
    settings = call.settings
    body = {
        "target_instance": call.target,
        "message_type": message_type(settings.type or "Query"),
        "payload": read_payload(call.payload),
        "timeout": settings.timeout,
    }
    timeout = settings.timeout + _ANSWER_MARGIN
    with choose(settings) as node:
        path = f"/v1/request/{segment(settings.from_ or node.own_instance())}"
        if settings.stream:
            _print_parts(call.out, node.parts(path, body, timeout))
            return 0
        payload = node.post(path, body, timeout=timeout)["payload"]
    if settings.json or not isinstance(payload, str):
        call.out.object(payload)
    elif call.out.is_terminal:
        for line in payload.split("\n"):
            call.out.text(line)
    else:
        call.out.write(payload)
    return 0


def _print_parts(out: Output, parts: Iterator[object]) -> None:
    """Texts one behind the other, as a model's tokens are read; anything else, and with
    ``--json`` everything, as JSON on a line of its own."""
    is_in_line = False
    try:
        for part in parts:
            if out.json or not isinstance(part, str):
                if is_in_line:
                    out.write("")
                is_in_line = False
                out.object(part)
            elif part:
                shown = "\n".join(map(printable, part.split("\n"))) if out.is_terminal else part
                out.write(shown, end="")
                is_in_line = not part.endswith("\n")
    finally:
        if is_in_line:
            out.write("")


def _post(call: Call, node: NodeClient, target: str | None, payload: object) -> int:
    source = call.settings.from_ or node.own_instance()
    body = {
        "target_instance": target,
        "message_type": message_type(call.settings.type or "Notification"),
        "payload": payload,
        "correlation_id": None,
    }
    with _progress(call, target, payload) as headers:
        sent = node.post(f"/messages/send/{segment(source)}", body, headers=headers)
    message_id, delivered_to = sent["message_id"], sent["delivered_to"]
    state, why = _state_when_safe(node, message_id) if delivered_to else ("done", "")
    if call.settings.json:
        call.out.object({"message_id": message_id, "delivered_to": delivered_to, "state": state})
    else:
        to = ", ".join(delivered_to) or "nobody: no other instance is alive"
        call.out.text(f"{message_id}  {state}  to {to}" + (f" ({why})" if why else ""))
    return 0


@contextmanager
def _progress(call: Call, target: str | None, payload: object) -> Iterator[dict[str, str]]:
    """How far a large message is, on a terminal; yields the headers of its send."""
    is_wanted = not (target is None or call.out.json or call.out.quiet) and sys.stderr.isatty()
    if not is_wanted or len(json.dumps(payload)) <= PROGRESS_MIN:
        yield {}
        return
    message_id = uuid7()
    with choose(call.settings) as node, shown(node, message_id):
        yield {"Idempotency-Key": message_id}


def _state_when_safe(node: NodeClient, message_id: str) -> tuple[str, str]:
    """The state of the recipient that is least far, and its reason, once no copy is
    merely queued that another node will have."""
    deadline = time.monotonic() + SAFE_WITHIN
    while True:
        recipients = node.get(f"/v1/messages/{segment(message_id)}")["recipients"]
        state = min((str(each["state"]) for each in recipients), key=_STATES.index, default="done")
        reasons = [str(each.get("reason", "")) for each in recipients if each["state"] == state]
        if state != "queued" or all(reasons) or time.monotonic() > deadline:
            return state, next(filter(None, reasons), "")
        time.sleep(_POLL_INTERVAL)


def read_payload(text: str | None) -> object:
    """JSON if it is JSON, else the string itself; ``-`` reads stdin, less the newline
    that ends it; None: null.  Raises ConfigError for what no message can carry, as a node
    would."""
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode().removesuffix("\n")
        text.encode()
    except UnicodeError:
        raise ConfigError("PAYLOAD: not UTF-8; encode it, for instance as base64") from None
    wrong: list[str] = []  # told only when it is JSON to its end
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=partial(_integer, wrong),
            parse_float=partial(_float, wrong),
            object_pairs_hook=partial(_object, wrong),
        )
    except RecursionError:
        raise ConfigError("PAYLOAD: JSON nested too deep; make it flatter") from None
    except ValueError:
        return text
    if wrong:
        raise ConfigError(f"PAYLOAD: {wrong[0]}")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _integer(wrong: list[str], digits: str) -> int:
    # Python refuses to read thousands of digits, and needs not try.
    number = int(digits) if len(digits) <= _DIGITS_MAX else _INTEGER_MAX + 1
    if not _INTEGER_MIN <= number <= _INTEGER_MAX:
        wrong.append(f"the integer {_clip(digits)} exceeds 64 bits; send it as a string")
    return number


def _float(wrong: list[str], digits: str) -> float:
    number = float(digits)
    if isinf(number):
        wrong.append(f"the number {_clip(digits)} exceeds a float; send it as a string")
    return number


def _object(wrong: list[str], pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        wrong.append(f"the key {_clip(key)!r} is repeated in one object")
    return found


def _clip(text: str) -> str:
    return text if len(text) <= _QUOTED_MAX else f"{text[:_QUOTED_MAX]}…"


def message_type(name: str) -> str | dict[str, str]:
    """As the registry spells it: a known type, or a custom one."""
    if name in ("Query", "Notification"):
        return name
    from p2pmesh.protocol.types import KNOWN_TYPES

    return name if name in KNOWN_TYPES else {"Custom": name}
