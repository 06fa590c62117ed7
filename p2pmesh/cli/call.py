"""What ``main`` hands to the function of a command."""

from __future__ import annotations

from dataclasses import dataclass

from p2pmesh.cli.output import Output
from p2pmesh.config import Settings


@dataclass(frozen=True, slots=True)
class Call:
    settings: Settings
    out: Output
    target: str = ""
    payload: str | None = None  # as typed
