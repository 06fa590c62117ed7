from __future__ import annotations

from itertools import pairwise

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.envelopes import Account
from p2pmesh.protocol.mailbox import Letter, Mailbox
from p2pmesh.protocol.types import Envelope, MessageArrived, MessageDead, MessageWithdrawn
from tests.protocol.offices import World

ME = b"m" * 32


def letter(number: int, size: int = 10, deadline: float = 1e9) -> Letter:
    envelope = Envelope(f"id{number}", "s", "r", "T", bytes(size), None, 0)
    return Letter(envelope, ME, deadline)


def test_a_handler_that_fails_is_tried_again_five_times_and_later_ones_pass() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    b.auto_completes = False
    message_id = a.send("b-1", b"bad")
    a.send("b-1", b"good")
    good = b.of(MessageArrived)[1].envelope.message_id
    b.commands.message_completed(world.at, good, True)
    tried = 0
    while len(b.arrived()) - 1 > tried:
        tried += 1
        arrived = b.of(MessageArrived)[-1]
        assert tried == 1 or (arrived.envelope.message_id, arrived.attempt) == (message_id, tried)
        b.commands.message_completed(world.at, message_id, False, "it raised")
        world.run()
        world.pass_time(60.0)
    assert tried == 1 + timing.HANDLER_RETRIES
    assert a.moves(message_id)[-1] == ("b-1", "dead")
    assert a.commands.message_state(message_id)[0].reason == "it raised"
    assert [dead.message_id for dead in b.of(MessageDead)] == [message_id]
    assert a.moves(good)[-1] == ("b-1", "done")


def test_the_tries_back_off() -> None:
    world = World()
    a = world.add("a")
    a.auto_completes = False
    message_id = a.send("a-1")
    gaps = []
    for attempt in range(1, 1 + timing.HANDLER_RETRIES):
        a.commands.message_completed(world.at, message_id, False)
        started = world.at.now
        while len(a.arrived()) == attempt:
            world.pass_time(0.05)
        gaps.append(world.at.now - started)
    assert all(later > 2 * sooner for sooner, later in pairwise(gaps))


def test_a_message_completed_twice_or_never_known_is_nothing() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    message_id = a.send("b-1")
    b.commands.message_completed(world.at, message_id, False)
    b.commands.message_completed(world.at, "never", True)
    world.pass_time(60.0)
    assert len(b.arrived()) == 1


def test_the_own_agents_mail_can_be_read_and_acknowledged_like_a_guests() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    b.auto_completes = False
    message_id = a.send("b-1", b"hm")
    assert [envelope.payload for envelope in b.read("b-1")] == [b"hm"]
    assert [envelope.payload for envelope in a.read("b-1")] == [b"hm"], "through any node"
    b.call("acknowledge", "b-1", (message_id,))
    assert a.moves(message_id)[-1] == ("b-1", "done")
    assert [gone.message_id for gone in b.of(MessageWithdrawn)] == [message_id]


def test_a_mailbox_is_bounded_by_number_by_bytes_and_by_the_nodes_account() -> None:
    box = Mailbox("r", Account(), is_agent=False)
    for number in range(limits.MAILBOX_MESSAGES_MAX):
        assert box.put(letter(number))
    assert not box.put(letter(9999))
    assert box.take("id0") is not None
    assert box.put(letter(9999))

    box = Mailbox("r", Account(), is_agent=False)
    for number in range(3):
        assert box.put(letter(number, limits.PAYLOAD_MAX))
    assert not box.put(letter(3, limits.PAYLOAD_MAX))
    assert box.bytes <= limits.MAILBOX_BYTES_MAX

    account = Account(1000)
    box = Mailbox("r", account, is_agent=False)
    assert box.put(letter(1, 700))
    assert not box.put(letter(2, 700))
    assert box.take("id1") is not None
    assert account.used == 0


def test_a_reading_is_the_oldest_first_within_its_limits() -> None:
    box = Mailbox("r", Account(), is_agent=False)
    for number in range(10):
        box.put(letter(number, limits.READ_BYTES_MAX // 4))
    assert [one.message_id for one in box.read(0)] == ["id0", "id1", "id2"]
    assert [one.message_id for one in box.read(2)] == ["id0", "id1"]
    assert len(box.letters) == 10, "reading removes nothing"
    box = Mailbox("r", Account(), is_agent=False)
    box.put(letter(1, 2 * limits.READ_BYTES_MAX))
    assert len(box.read(0)) == 1, "one is read, however large"
