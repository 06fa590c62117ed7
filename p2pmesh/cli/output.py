"""What a command prints: text for people, JSON lines for programs.

Does not: decide what to say.  Colour comes from rich, which is loaded only when
stdout is a terminal and NO_COLOR is unset.

Invariants: nothing that a peer wrote reaches a terminal as a control sequence;
JSON is pure ASCII, one value a line, whatever the locale; a line is flushed
when the call returns.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence

from p2pmesh.errors import MeshError

#: state or event name -> colour
STYLES: Mapping[str, str] = {
    "alive": "green",
    "suspect": "yellow",
    "failed": "red",
    "left": "dim",
    "member_joined": "green",
    "member_recovered": "green",
    "member_suspected": "yellow",
    "member_stalled": "yellow",
    "leader_stalled": "yellow",
    "member_failed": "red",
    "member_left": "dim",
    "leader_changed": "bold cyan",
    "message": "bold",
    "message_dead": "red",
    "identity_conflict": "red",
    "peer_rejected": "yellow",
}


class Output:
    """stdout of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.is_terminal = sys.stdout.isatty()
        self.color = (
            self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

    def object(self, value: object) -> None:
        """One JSON value on its own line."""
        self.write(to_json(value))

    def text(self, text: str, style: str = "") -> None:
        """One line for people."""
        self.write(self.painted(text, style))

    def note(self, text: str) -> None:
        """A line that ``--quiet`` and ``--json`` leave out."""
        if not (self.quiet or self.json):
            self.text(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], style_by: int) -> None:
        """Rows under headings; ``style_by`` is the column whose text colours its row."""
        shown = [[printable(cell) for cell in row] for row in (columns, *rows)]
        widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
        for number, row in enumerate(shown):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            style = STYLES.get(row[style_by], "") if number else "bold"
            self.text("  ".join(cells).rstrip(), style)

    def painted(self, text: str, style: str = "") -> str:
        text = printable(text)
        if not (style and self.color):
            return text
        from rich.console import Console
        from rich.text import Text

        console = Console(file=io.StringIO(), force_terminal=True)
        with console.capture() as capture:
            console.print(Text(text, style=style), soft_wrap=True, end="")
        return capture.get()

    def write(self, text: str, end: str = "\n") -> None:
        try:
            sys.stdout.write(text + end)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            abandon_stdout()
            raise MeshError(f"cannot write to stdout: {error.strerror}") from None


def to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def printable(text: str) -> str:
    """The text with every control character and lone surrogate written out."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def prepare_streams() -> None:
    """Make stdout and stderr usable whatever we were started with: closed (then
    what is written goes nowhere) or of an encoding that cannot carry a name."""
    for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            # The descriptor too: else the first socket would become our stdout.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Nobody reads stdout any more: what is still buffered goes to /dev/null."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


def error_line(text: str) -> None:
    """The one line that a failure ends with."""
    with contextlib.suppress(OSError):  # nobody listens there either
        sys.stderr.write(f"p2pmesh: {printable(text)}\n")
        sys.stderr.flush()
