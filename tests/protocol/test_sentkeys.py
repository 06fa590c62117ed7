"""Keys of sends: each is on disk with its message, and stands for it alone."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import SendKey, SendRefused
from tests.protocol.offices import Office, World

KEY = SendKey(b"key", b"content")


def pair(*, is_durable: bool = True) -> tuple[World, Office, Office]:
    world = World(is_durable=is_durable)
    a, b = world.add("a", persistent=True), world.add("b", persistent=True)
    world.link(a, b)
    return world, a, b


def send(office: Office, target: str = "b-1", key: SendKey = KEY) -> str:
    message_id = office.commands.send(
        office.world.at, source="a-1", target=target, named=False, type="Notification",
        payload=b"x", ttl=3600.0, correlation_id=None, key=key,
    )  # fmt: skip
    office.world.run()
    return message_id


def cast(office: Office) -> str:
    message_id, _ = office.commands.broadcast(
        office.world.at, source="a-1", type="Notification", payload=b"x", ttl=3600.0,
        correlation_id=None, key=KEY._replace(is_broadcast=True),
    )  # fmt: skip
    office.world.run()
    return message_id


def known(office: Office, key: bytes = KEY.key) -> str | None:
    sent = office.commands.sent_before(key)
    return sent.message_id if sent is not None else None


def rows(office: Office) -> int:
    return sum(table == "sent_keys" for table, _ in office.disk)


@pytest.mark.parametrize("accept", [send, cast])
def test_a_key_stands_for_its_message_after_a_restart(accept: object) -> None:
    world, a, b = pair()
    message_id = accept(a)  # type: ignore[operator]
    world.restart(a)
    sent = a.commands.sent_before(KEY.key)
    assert sent is not None
    assert (sent.message_id, sent.content) == (message_id, KEY.content)
    assert sent.recipients == ("b-1",)
    assert b.arrived() == [b"x"]


@pytest.mark.parametrize("accept", [send, cast])
def test_one_save_has_the_key_and_its_message(accept: object) -> None:
    world, a, _ = pair()
    world.saves_at_once = False
    accept(a)  # type: ignore[operator]
    (save,) = a.saves
    tables = {change.table for change in save.changes}
    assert "sent_keys" in tables
    assert tables & {"outbox", "casts"}
    world.restart(a)  # before that save: neither was accepted
    assert known(a) is None


def test_a_broadcast_to_nobody_has_its_key() -> None:
    world = World(is_durable=True)
    a = world.add("a", persistent=True)
    message_id = cast(a)
    world.restart(a)
    assert known(a) == message_id


def test_while_its_target_is_looked_for_nothing_is_known_of_a_key() -> None:
    world, a, _ = pair()
    message_id = send(a, "late-1")
    assert (known(a), rows(a)) == (None, 0)
    world.add("late", persistent=True)
    assert known(a) == message_id
    world.restart(a)
    assert known(a) == message_id


def test_the_key_of_a_send_to_nobody_may_be_used_again() -> None:
    world, a, _ = pair()
    refused = send(a, "nobody")
    world.pass_time(2 * timing.UNKNOWN_TARGET_WAIT)
    assert [each.message_id for each in a.of(SendRefused)] == [refused]
    assert (known(a), rows(a)) == (None, 0)
    message_id = send(a)
    assert known(a) == message_id


@pytest.mark.parametrize("accept", [send, cast])
def test_what_a_full_store_refused_has_no_key_once_it_writes_again(accept: object) -> None:
    world, a, b = pair()
    world.saves_at_once = False
    refused = accept(a)  # type: ignore[operator]
    a.post.save_failed(world.at, "the disk is full")
    world.run()
    assert [each.message_id for each in a.of(SendRefused)] == [refused]
    assert known(a) is None
    a.save()
    assert rows(a) == 0
    assert not b.arrived()


def test_a_key_is_forgotten_after_a_day_of_which_a_restart_takes_nothing() -> None:
    world, a, _ = pair()
    message_id = send(a)
    world.pass_time(timing.SENT_KEY_TTL / 2)
    world.restart(a)
    world.pass_time(timing.SENT_KEY_TTL / 2 - 60.0)
    assert known(a) == message_id
    world.pass_time(61.0)
    assert (known(a), rows(a)) == (None, 0)


@pytest.mark.parametrize("bound", ["SENT_KEYS_MAX", "SENT_KEYS_BYTES_MAX"])
def test_the_oldest_keys_go_first_also_from_the_disk(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, a, _ = pair()
    size = 200 + len(b"0") + len("b-1")
    monkeypatch.setattr(limits, bound, 3 if bound == "SENT_KEYS_MAX" else 3 * size)
    for number in range(5):
        send(a, key=SendKey(b"%d" % number, b"content"))
    assert rows(a) == a.post.load().depths["sent_keys"] == 3
    assert a.post.counters["sent_keys_dropped"] == 2
    world.restart(a)
    assert [known(a, b"%d" % number) is not None for number in range(5)] == [False] * 2 + [True] * 3


def test_a_memory_node_keeps_no_keys() -> None:
    _, a, b = pair(is_durable=False)
    send(a)
    assert b.arrived() == [b"x"]
    assert known(a) is None
    assert a.post.load().depths["sent_keys"] == 0
