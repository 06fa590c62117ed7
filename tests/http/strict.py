"""A reader of JSON that is as strict as the registry's strictest client.

Independent of the package under test, so that it can be its judge: what this
reader refuses would cost a client the whole answer.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

#: serde_json gives up here.
NESTING_MAX: Final = 127


def loads(text: bytes) -> Any:
    """The value of a JSON text; AssertionError for what a strict reader refuses."""
    assert not text.startswith(b"\xef\xbb\xbf"), "a byte order mark"
    value = json.loads(
        text.decode("utf-8"),  # strict
        object_pairs_hook=_unique,
        parse_constant=_refuse,
        parse_float=_finite,
        parse_int=_bounded,
    )
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    assert depth(value) <= NESTING_MAX, "nested too deep"
    return value


def depth(value: Any) -> int:
    levels, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        levels += 1
        level = [
            child for each in level for child in (each.values() if isinstance(each, dict) else each)
        ]
    return levels


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    assert len(value) == len(pairs), f"a repeated key among {[key for key, _ in pairs]}"
    return value


def _refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def _finite(text: str) -> float:
    assert math.isfinite(float(text)), f"{text} is no number"
    return float(text)


def _bounded(text: str) -> int:
    assert -(2**63) <= int(text) < 2**64, f"{text} exceeds 64 bits"
    return int(text)
