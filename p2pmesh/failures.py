"""What the log says of handlers that fail.

A message whose handler fails is tried again, and mostly fails in the same way: its
traceback is logged once, then each attempt is a line, and the last one says where the
message is now.

Does not: try again, or give up (the core does).

Invariant: at most ``REMEMBERED_MAX`` messages are remembered; of one that was forgotten
the traceback is logged once more.
"""

from __future__ import annotations

import logging
import traceback
from typing import Final

from p2pmesh.protocol.timing import HANDLER_RETRIES, handler_retry
from p2pmesh.protocol.types import Envelope

REMEMBERED_MAX: Final = 256
_WORDS_MAX: Final = 200  # characters of an exception, in a line

log = logging.getLogger("p2pmesh.handlers")


class Failures:
    """Of the handlers of one node."""

    def __init__(self) -> None:
        #: Message id -> where its handler failed last, oldest first.
        self._places: dict[str, int] = {}

    def of_request(self, envelope: Envelope) -> None:
        """To be called where the error is handled; its asker is told."""
        log.warning("%s", _what(envelope), exc_info=True)

    def of_message(self, envelope: Envelope, attempt: int, error: BaseException) -> None:
        """As :meth:`of_request`; the message comes again, or is given up."""
        frames = traceback.walk_tb(error.__traceback__)
        place = hash((type(error), *((at.f_code.co_filename, line) for at, line in frames)))
        is_known = self._places.pop(envelope.message_id, None) == place
        after = handler_retry(attempt)
        of_all = f"attempt {attempt} of {HANDLER_RETRIES + 1}"
        if after is None:
            outcome = f"{of_all}: it is given up"
            if envelope.target is not None:
                outcome += ", a dead letter where it was sent ('p2pmesh dead-letters' lists those)"
        else:
            self._remember(envelope.message_id, place)
            outcome = f"{of_all}, again in {after:g} s"
        said = f": {_words(error)}" if is_known else ""
        log.warning("%s (%s)%s", _what(envelope), outcome, said, exc_info=not is_known)

    def forget(self, message_id: str) -> None:
        """It did not fail this time."""
        self._places.pop(message_id, None)

    def _remember(self, message_id: str, place: int) -> None:
        self._places[message_id] = place
        if len(self._places) > REMEMBERED_MAX:
            del self._places[next(iter(self._places))]


def _words(error: BaseException) -> str:
    """An exception in a line, though its own text may be many, or fail itself."""
    return " ".join("".join(traceback.format_exception_only(error)).split())[:_WORDS_MAX]


def _what(envelope: Envelope) -> str:
    return (
        f"the handler of {envelope.type!r} failed on message {envelope.message_id} "
        f"from {envelope.source}"
    )
