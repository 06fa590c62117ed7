"""Repeated sends: the same ``Idempotency-Key`` is one message.

A client that did not see the answer to a send asks again with the same key and
gets the answer that the first one got, or waits with it while it is under way.
The same key with other content is a mistake of the client (422).  Only what was
accepted is remembered: a refused send stored nothing and may be tried again.

What the node's store knows of a key outlives the process, where there is a store: it is
asked for every key that is not remembered here.

Does not: know the keys of another node, or keep anything on disk (``protocol/sentkeys.py``
does, with the message).

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

from p2pmesh.http.backend import Repeated
from p2pmesh.http.calls import Answer, Refusal
from p2pmesh.http.codec import KEY_LENGTH_MAX
from p2pmesh.protocol import limits, timing

KEYS_MAX: Final = limits.SENT_KEYS_MAX
BYTES_MAX: Final = limits.SENT_KEYS_BYTES_MAX
KEPT_FOR: Final = timing.SENT_KEY_TTL

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
    """Answers by key.  ``sent_before``: the content that the store knows for a key, and the
    answer; ``now`` yields monotonic seconds."""

    def __init__(
        self,
        sent_before: Callable[[bytes], tuple[bytes, Answer] | None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sent_before = sent_before
        self._now = now
        self._kept: dict[str, _Kept] = {}  # oldest first
        self._bytes = 0

    async def answer(
        self, key: str, asked: tuple[bytes, ...], send: Callable[[Repeated], Awaitable[Answer]]
    ) -> Answer:
        """The answer to ``asked``, from ``send`` or from the first time.  Raises Refusal."""
        if not 1 <= len(key) <= KEY_LENGTH_MAX:
            raise Refusal(400, f"an Idempotency-Key has 1 to {KEY_LENGTH_MAX} characters")
        self._expire()
        content = _digest(asked)
        kept = self._kept.get(key)
        if kept is None:
            repeated = Repeated(key.encode("utf-8", "surrogateescape"), content)
            stored = self._sent_before(repeated.key)
            if stored is not None:
                _refuse_unless_same(stored[0], content)
                return stored[1]
            # A task of its own: who waits may give up, the message is sent all the same.
            task = asyncio.ensure_future(send(repeated))
            kept = self._kept[key] = _Kept(content, task, self._now() + KEPT_FOR)
            task.add_done_callback(lambda _: self._settle(key, kept))
        else:
            _refuse_unless_same(kept.content, content)
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


def _refuse_unless_same(first: bytes, content: bytes) -> None:
    if first != content:
        raise Refusal(422, "this Idempotency-Key was used for another message")


def _digest(asked: tuple[bytes, ...]) -> bytes:
    digest = blake2b(digest_size=16)
    for part in asked:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
