"""Repeated sends: one message per key, for a day and within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from p2pmesh.http import idempotency
from p2pmesh.http.backend import Repeated
from p2pmesh.http.calls import Answer, Refusal
from p2pmesh.http.idempotency import KeyedAnswers

ASKED = (b"/messages/send/a", b"{}")


def no_store(key: bytes) -> None:
    """Nothing was sent before."""


class Sender:
    """Counts what was sent; each answer says which it was."""

    def __init__(self, status: int = 200, size: int = 0) -> None:
        self.sent = 0
        self.status = status
        self.size = size

    async def send(self, repeated: Repeated) -> Answer:
        self.sent += 1
        return Answer(self.status, b"%d" % self.sent + b"x" * self.size)


async def test_the_second_one_gets_the_answer_of_the_first() -> None:
    keyed, sender = KeyedAnswers(no_store), Sender()
    answers = [await keyed.answer("k", ASKED, sender.send) for _ in range(3)]
    assert [each.body for each in answers] == [b"1"] * 3
    await keyed.answer("other", ASKED, sender.send)
    assert sender.sent == 2


async def test_another_body_or_path_under_one_key_is_422() -> None:
    keyed, sender = KeyedAnswers(no_store), Sender()
    await keyed.answer("k", (b"a", b"bc"), sender.send)
    for asked in ((b"ab", b"c"), (b"a", b"bd"), (b"a", b"bc", b"")):
        with pytest.raises(Refusal) as refusal:
            await keyed.answer("k", asked, sender.send)
        assert refusal.value.status == 422
    assert sender.sent == 1


async def test_the_second_one_waits_while_the_first_is_under_way() -> None:
    keyed, gate, sent = KeyedAnswers(no_store), asyncio.Event(), 0

    async def send(repeated: Repeated) -> Answer:
        nonlocal sent
        sent += 1
        await gate.wait()
        return Answer(200, b"done")

    both = [asyncio.create_task(keyed.answer("k", ASKED, send)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()  # whoever asked first gives up; the message is sent all the same
    await asyncio.sleep(0)
    gate.set()
    assert (await both[1]).body == b"done"
    assert both[0].cancelled()
    assert sent == 1


async def test_what_was_refused_may_be_tried_again() -> None:
    keyed, sender = KeyedAnswers(no_store), Sender(status=400)
    for attempt in (1, 2):
        assert (await keyed.answer("k", ASKED, sender.send)).status == 400
        assert sender.sent == attempt

    async def full(repeated: Repeated) -> Answer:
        raise Refusal(429, "full")

    for _ in range(2):
        with pytest.raises(Refusal):
            await keyed.answer("k", ASKED, full)
    sender.status = 200
    assert (await keyed.answer("k", ASKED, sender.send)).status == 200


async def test_a_key_is_forgotten_after_a_day() -> None:
    now = 0.0
    keyed, sender = KeyedAnswers(no_store, lambda: now), Sender()
    await keyed.answer("k", ASKED, sender.send)
    now = idempotency.KEPT_FOR - 1
    await keyed.answer("k", ASKED, sender.send)
    assert sender.sent == 1
    now = idempotency.KEPT_FOR
    await keyed.answer("k", ASKED, sender.send)
    assert sender.sent == 2


@pytest.mark.parametrize("size", [0, 100_000], ids=["many keys", "large answers"])
async def test_keys_are_bounded_and_the_oldest_go_first(size: int) -> None:
    keyed, sender = KeyedAnswers(no_store), Sender(size=size)
    count = idempotency.KEYS_MAX + 10 if not size else idempotency.BYTES_MAX // size + 10
    for number in range(count):
        await keyed.answer(f"k{number}", ASKED, sender.send)
    assert len(keyed._kept) <= idempotency.KEYS_MAX
    assert keyed._bytes <= idempotency.BYTES_MAX + size + 10
    await keyed.answer(f"k{count - 1}", ASKED, sender.send)
    assert sender.sent == count
    await keyed.answer("k0", ASKED, sender.send)
    assert sender.sent == count + 1


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_has_1_to_256_characters(key: str) -> None:
    send: Callable[[Repeated], Awaitable[Answer]] = Sender().send
    with pytest.raises(Refusal) as refusal:
        await KeyedAnswers(no_store).answer(key, ASKED, send)
    assert refusal.value.status == 400


async def test_a_key_that_only_the_store_knows_is_answered_from_it_and_not_sent() -> None:
    stored: dict[bytes, tuple[bytes, Answer]] = {}
    sender = Sender()

    async def send(repeated: Repeated) -> Answer:
        stored[repeated.key] = (repeated.content, Answer(200, b"of the store"))
        return await sender.send(repeated)

    first = await KeyedAnswers(stored.get).answer("k", ASKED, send)
    restarted = KeyedAnswers(stored.get)
    assert first.body == b"1"
    assert (await restarted.answer("k", ASKED, send)).body == b"of the store"
    with pytest.raises(Refusal) as refusal:
        await restarted.answer("k", (b"/messages/send/a", b"[]"), send)
    assert refusal.value.status == 422
    assert sender.sent == 1
