"""Makes generated requests say what a JSON schema cannot, and end soon.

Loaded by schemathesis.  A request that should be refused stays as wrong as it was.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Final

import schemathesis

from p2pmesh.protocol.limits import CORRELATION_MAX, HOSTNAME_MAX, INSTANCE_ID_MAX, LABEL_MAX

#: Schemas count characters, these limits are bytes.
BYTES: Final = {
    "instance_id": INSTANCE_ID_MAX, "source": INSTANCE_ID_MAX, "hostname": HOSTNAME_MAX,
    "capabilities": LABEL_MAX, "agent_profiles": LABEL_MAX, "correlation_id": CORRELATION_MAX,
    "Custom": 128,
}  # fmt: skip
#: What asks and waits gives up after this many seconds.
PATIENCE: Final = 0.05

_keys = itertools.count(1)


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    if isinstance(case.body, dict | list):
        case.body = _mended(case.body)
    if isinstance(case.body, dict):
        timeout = case.body.get("timeout", 30.0)
        is_asking = case.operation.path.startswith("/v1/request/")
        if is_asking and type(timeout) in (int, float) and 0 < timeout <= 300:
            case.body["timeout"] = PATIENCE
    for name, value in (case.path_parameters or {}).items():
        case.path_parameters[name] = _mended(value, name)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if PATIENCE < float(case.query["wait"]) <= 60:
            case.query["wait"] = PATIENCE
    # One key for two messages is a mistake that no schema knows of.
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and 1 <= len(key) <= 256:
        case.headers["Idempotency-Key"] = f"{next(_keys):064}"


def _mended(value: Any, name: str = "") -> Any:
    match value:
        case dict():
            return {key: _mended(each, key) for key, each in value.items()}
        case list():
            return [_mended(each, name) for each in value]
        case str() if name in BYTES and len(value) <= BYTES[name]:
            return value.encode()[: BYTES[name]].decode(errors="ignore")
        case float() if name == "port" and value.is_integer():
            return int(value)  # to a schema both are one number
        case int() if not -(2**63) <= value < 2**64:
            return 2**64 - 1
    return value
