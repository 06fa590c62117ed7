"""Repeated sends: the same ``Idempotency-Key`` is one message.

A client that did not see the answer to a send asks again with the same key and
gets the answer that the first one got, or waits with it while it is under way.
The same key with other content is a mistake of the client (422).  Only what was
accepted is remembered: a refused send stored nothing and may be tried again.

Does not: outlive this node, or know the keys of another.

Invariants: at most ``KEYS_MAX`` keys and ``BYTES_MAX`` bytes of answers, each for
``KEPT_FOR`` seconds; the oldest go first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from p2pmesh.http.calls import Answer, Refusal
from p2pmesh.http.codec import KEY_LENGTH_MAX

KEYS_MAX: Final = 4096
BYTES_MAX: Final = 8 * 1024 * 1024
KEPT_FOR: Final = 24 * 3600.0

IdempotencyKey: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=KEY_LENGTH_MAX,
        description="a send that is repeated with its key is one message",
    ),
]


@dataclass(slots=True)
class _Kept:
    content: bytes  # digest of what was asked
    answer: asyncio.Future[Answer]
    until: float
    size: int | None = None  # bytes of the answer; None: under way


class KeyedAnswers:
    """Answers by key.  ``now`` yields monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kept: dict[str, _Kept] = {}  # oldest first
        self._bytes = 0

    async def answer(
        self, key: str, asked: tuple[bytes, ...], send: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer to ``asked``, from ``send`` or from the first time.  Raises Refusal."""
        if not 1 <= len(key) <= KEY_LENGTH_MAX:
            raise Refusal(400, f"an Idempotency-Key has 1 to {KEY_LENGTH_MAX} characters")
        self._expire()
        content = _digest(asked)
        kept = self._kept.get(key)
        if kept is None:
            # A task of its own: who waits may give up, the message is sent all the same.
            task = asyncio.ensure_future(send())
            kept = self._kept[key] = _Kept(content, task, self._now() + KEPT_FOR)
            task.add_done_callback(lambda _: self._settle(key, kept))
        elif kept.content != content:
            raise Refusal(422, "this Idempotency-Key was used for another message")
        return await asyncio.shield(kept.answer)

    def _settle(self, key: str, kept: _Kept) -> None:
        task = kept.answer
        if task.cancelled() or task.exception() or task.result().status != 200:
            del self._kept[key]
        else:
            kept.size = len(task.result().body)
            self._bytes += kept.size

    def _expire(self) -> None:
        """Drops the oldest while they are too old or all are too many."""
        now = self._now()
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            is_full = len(self._kept) >= KEYS_MAX or self._bytes > BYTES_MAX
            if oldest.size is None or not (is_full or oldest.until <= now):
                break
            del self._kept[key]
            self._bytes -= oldest.size


def _digest(asked: tuple[bytes, ...]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in asked:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
