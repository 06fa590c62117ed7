"""What ``main`` hands to the function of a command, and the statuses it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pmesh.cli.output import Output
from p2pmesh.config import Settings

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Call:
    settings: Settings
    out: Output
    target: str = ""
    payload: str | None = None  # as typed
