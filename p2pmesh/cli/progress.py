"""The progress of one large message, on one line of a terminal.

    [###########.............]  46 %  0.9 of 2.0 MiB

What it shows is what the recipient's home has, by the events of the node that sends;
before the first of them and without a terminal it shows nothing.  The line is gone
when the message is sent.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from p2pmesh.cli.local import NodeClient
from p2pmesh.errors import MeshError

_WIDTH: Final = 24
_MIB: Final = 1024 * 1024


@contextmanager
def shown(node: NodeClient, message_id: str) -> Iterator[None]:
    """While this lasts, show how far the message is.  ``node`` is the one that sends,
    over a connection of its own; it is closed at the end."""
    bar = _Bar(node, message_id)
    watching = threading.Thread(target=bar.watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        bar.end()


class _Bar:
    def __init__(self, node: NodeClient, message_id: str) -> None:
        self._node = node
        self._message_id = message_id
        self._turn = threading.Lock()
        self._shown = 0  # characters on the line
        self._is_over = False

    def watch(self) -> None:
        with suppress(MeshError, OSError, ValueError, AttributeError):  # the end closes it
            for event in self._node.events():
                if event["event"] == "message_progress" and event["message_id"] == self._message_id:
                    self._draw(line(event["sent"], event["total"]))

    def _draw(self, text: str) -> None:
        with self._turn:
            if not self._is_over:
                self._write("\r" + text.ljust(self._shown))
                self._shown = len(text)

    def end(self) -> None:
        with self._turn:
            self._is_over = True
            if self._shown:
                self._write("\r" + " " * self._shown + "\r")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # nobody looks
            sys.stderr.write(text)
            sys.stderr.flush()


def line(sent: int, total: int) -> str:
    """What is shown of so many bytes."""
    share = min(max(sent / total, 0.0), 1.0) if total else 1.0
    bar = "#" * round(share * _WIDTH)
    return f"[{bar:.<{_WIDTH}}] {share:4.0%}  {sent / _MIB:.1f} of {total / _MIB:.1f} MiB"
