"""Nodes as applications use them: requests, messages, dead letters and large payloads."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest

from p2pmesh import (
    AgentMessage,
    AmbiguousTarget,
    ConfigError,
    Node,
    NotStarted,
    PeerUnreachable,
    QueueFull,
    RemoteError,
    RequestTimeout,
    UnknownTarget,
)
from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.types import (
    MessageDead,
    MessageDone,
    MessageProgress,
)
from tests.nodes import HANG, Make, Meet, echo, state_of, until

# --- requests ---------------------------------------------------------------------------


async def test_a_request_is_answered_whether_by_name_by_id_or_by_member(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    got = echo(b)
    member = await a.wait_for(name="b")
    for target in ("b", b.instance_id, member):
        answer = await a.request(target, {"n": [1, None, "x", b"\0"]})
        assert answer.payload == {"n": [1, None, "x", b"\0"]}
        assert (answer.message_type, answer.source_instance) == ("Response", b.instance_id)
        assert answer.via == b.id
    assert {m.source_instance for m in got} == {a.instance_id}
    assert {m.via for m in got} == {a.id}


async def test_a_request_to_oneself_is_answered(make: Make, meet: Meet) -> None:
    node = make("a")
    echo(node)
    await meet(node)
    assert (await node.request("a", 7)).payload == 7


async def test_a_request_waits_for_a_target_that_is_not_here_yet(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b")
    echo(b)
    await meet(a)
    asking = asyncio.ensure_future(a.request("b", "early", timeout=HANG))
    await asyncio.sleep(0)
    await meet(b)
    assert (await asking).payload == "early"


async def test_what_is_asked_before_joining_is_asked_then(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b")
    echo(b)
    await a.start()
    asking = asyncio.ensure_future(a.request("b", "early", timeout=HANG))
    sent = a.send_nowait("b", "early too")
    await meet(b)
    assert (await asking).payload == "early"
    await asyncio.wait_for(sent.stored(), HANG)
    await a.leave()


async def test_what_the_other_side_raises_comes_back_typed(pair: tuple[Node, Node]) -> None:
    a, b = pair

    @b.on("Query")
    async def fail(message: AgentMessage) -> None:
        raise ZeroDivisionError("too small")

    with pytest.raises(RemoteError, match="failed at b: ZeroDivisionError: too small") as caught:
        await a.request("b", 1)
    assert (caught.value.code, caught.value.peer) == ("failed", "b")
    with pytest.raises(RemoteError) as caught:
        await a.request("b", 1, type="Unheard")
    assert caught.value.code == "no_handler"


async def test_a_request_without_an_answer_times_out_and_cancels_the_handler(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    cancelled = asyncio.Event()

    @b.on("Query")
    async def wait(message: AgentMessage) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(RequestTimeout, match=r"'b' did not answer within 0\.1 s"):
        await a.request("b", 1, timeout=0.1)
    await asyncio.wait_for(cancelled.wait(), HANG)


async def test_cancelling_a_request_cancels_its_handler(pair: tuple[Node, Node]) -> None:
    a, b = pair
    started, cancelled = asyncio.Event(), asyncio.Event()

    @b.on("Query")
    async def wait(message: AgentMessage) -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    asking = asyncio.ensure_future(a.request("b", 1))
    await asyncio.wait_for(started.wait(), HANG)
    asking.cancel()
    await asyncio.wait_for(cancelled.wait(), HANG)


async def test_a_request_ends_when_its_target_leaves(pair: tuple[Node, Node]) -> None:
    a, b = pair
    started = asyncio.Event()

    @b.on("Query")
    async def wait(message: AgentMessage) -> None:
        started.set()
        await asyncio.sleep(3600)

    asking = asyncio.ensure_future(a.request("b", 1))
    await asyncio.wait_for(started.wait(), HANG)
    b_is_leaving = asyncio.ensure_future(b.leave())
    with pytest.raises((PeerUnreachable, RemoteError)):
        await asyncio.wait_for(asking, HANG)
    await b_is_leaving


async def test_a_request_that_runs_when_the_own_node_leaves_ends(pair: tuple[Node, Node]) -> None:
    a, b = pair
    started = asyncio.Event()

    @b.on("Query")
    async def wait(message: AgentMessage) -> None:
        started.set()
        await asyncio.sleep(3600)

    asking = asyncio.ensure_future(a.request("b", 1))
    await asyncio.wait_for(started.wait(), HANG)
    await a.leave()
    with pytest.raises((NotStarted, PeerUnreachable, RemoteError)):
        await asyncio.wait_for(asking, HANG)


async def test_an_unknown_target_names_the_nearest_and_an_ambiguous_one_all(
    make: Make, meet: Meet
) -> None:
    a, b, twin = make("a"), make("worker"), make("worker")
    await meet(a, b, twin)
    with pytest.raises(UnknownTarget) as unknown:
        await a.request("worked", 1, timeout=0.1)
    assert "worker" in unknown.value.nearest
    with pytest.raises(UnknownTarget):
        await a.send("worked", 1)
    with pytest.raises(AmbiguousTarget) as ambiguous:
        await a.request("worker", 1)
    assert set(ambiguous.value.candidates) == {b.instance_id, twin.instance_id}
    with pytest.raises(AmbiguousTarget):
        await a.send("worker", 1)


# --- messages ---------------------------------------------------------------------------


async def test_a_message_is_stored_when_send_returns_and_done_when_it_was_handled(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    release = asyncio.Event()

    @b.on("Note")
    async def handle(message: AgentMessage) -> None:
        await release.wait()

    delivery = await a.send("b", "x", type="Note")
    assert delivery.state == "stored"
    release.set()
    await delivery.done(HANG)
    assert delivery.state == "done"


async def test_messages_of_one_sender_arrive_in_their_order(pair: tuple[Node, Node]) -> None:
    a, b = pair
    got: list[int] = []
    all_here = asyncio.Event()

    @b.on("Note")
    async def handle(message: AgentMessage) -> None:
        got.append(message.payload)
        if len(got) == 500:
            all_here.set()

    for number in range(500):
        a.send_nowait("b", number, type="Note")
    await asyncio.wait_for(all_here.wait(), HANG)
    assert got == list(range(500))


async def test_a_message_to_oneself_is_queued_and_says_so(make: Make, meet: Meet) -> None:
    node = make("a")
    await meet(node)
    delivery = await node.send("a", "x", type="Note")
    assert (delivery.state, delivery.reason) == ("queued", "only here: its recipient is here too")
    got = await anext(node.messages("Note"))
    await got.ack()
    await delivery.done(HANG)


async def test_one_who_left_for_good_is_no_target_any_more(pair: tuple[Node, Node]) -> None:
    a, b = pair
    target = await a.wait_for(name="b")
    await b.leave()
    await until(a, lambda: state_of("b", a) == ["left"])
    for meant in (target, target.instance_id):
        with pytest.raises(UnknownTarget, match="has left this mesh for good") as caught:
            await a.send(meant, "x")
        assert caught.value.has_left


async def test_a_message_to_one_who_is_away_is_queued_and_says_so(
    make: Make, meet: Meet, tmp_path: Path
) -> None:
    a, b = make("a"), make("b", data_dir=tmp_path / "b")
    await meet(a, b)
    target = await a.wait_for(name="b")
    await b.leave()
    await until(a, lambda: state_of("b", a) == ["left"])
    delivery = await a.send(target, "x", type="Note")
    assert (delivery.state, delivery.reason) == ("queued", "only here: its recipient is away")
    by_name = await a.send("b", "y", type="Note")
    assert (by_name.state, by_name.reason) == ("queued", "only here: its recipient is away")
    with pytest.raises(PeerUnreachable, match="'b' cannot be reached: it has left the mesh"):
        await a.request("b", 1)
    again = make("b", data_dir=tmp_path / "b")
    await meet(again)
    await asyncio.wait_for(delivery.stored(), HANG)
    await asyncio.wait_for(by_name.stored(), HANG)
    got = await asyncio.wait_for(anext(again.messages("Note")), HANG)
    assert got.payload == "x"
    await got.ack()
    await delivery.done(HANG)


@pytest.mark.parametrize("by_name", [False, True])
async def test_what_waits_on_disk_for_one_who_is_away_says_who(
    make: Make, meet: Meet, tmp_path: Path, by_name: bool
) -> None:
    a, b = make("a", data_dir=tmp_path / "a"), make("b", data_dir=tmp_path / "b")
    await meet(a, b)
    target = "b" if by_name else b.instance_id
    await b.leave()
    await until(a, lambda: state_of("b", a) == ["left"])
    delivery = await a.send(target, "x", type="Note")
    why = f"'{target}' has left; it goes when '{target}' is back"
    assert (delivery.state, delivery.reason) == ("queued", why)
    with pytest.raises(RequestTimeout, match=re.escape(f"it is queued ({why})")):
        await delivery.done(0)
    await meet(make("b", data_dir=tmp_path / "b"))
    await asyncio.wait_for(delivery.stored(), HANG)
    assert delivery.reason == ""


async def test_leaving_says_which_messages_nobody_else_has(
    make: Make, meet: Meet, tmp_path: Path
) -> None:
    a, b = make("a"), make("b", data_dir=tmp_path / "b")
    await meet(a, b)
    target = await a.wait_for(name="b")
    safe = await a.send(target, "safe")
    await b.leave()
    await until(a, lambda: state_of("b", a) == ["left"])
    unsafe = await a.send(target, "x")
    assert await a.leave() == (unsafe,)
    with pytest.raises(NotStarted):
        await safe.done()


async def test_a_failing_handler_is_tried_again(pair: tuple[Node, Node]) -> None:
    a, b = pair
    attempts: list[int] = []

    @b.on("Note")
    async def handle(message: AgentMessage) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise RuntimeError("not yet")

    delivery = await a.send("b", "x", type="Note")
    await delivery.done(HANG)
    assert attempts == [1, 2]


async def test_a_query_sent_as_a_message_is_answered_by_a_response(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    echo(b)
    delivery = await a.send("b", "hi", type="Query")
    answer = await asyncio.wait_for(anext(a.messages("Response")), HANG)
    assert (answer.payload, answer.correlation_id) == ("hi", delivery.message_id)
    await answer.ack()


async def test_a_broadcast_reaches_everyone_but_its_sender(make: Make, meet: Meet) -> None:
    nodes = [make(name) for name in "abc"]
    await meet(*nodes)
    cast = await nodes[0].broadcast({"all": True}, type="Note")
    assert set(cast.delivered_to) == {node.instance_id for node in nodes[1:]}
    await cast.stored(HANG)
    assert cast.refused == {}
    for node in nodes[1:]:
        got = await asyncio.wait_for(anext(node.messages("Note")), HANG)
        assert (got.payload, got.target_instance) == ({"all": True}, None)
        await got.ack()
    assert (await cast.stored()) is None


async def test_a_broadcast_must_be_what_everyone_can_read(pair: tuple[Node, Node]) -> None:
    with pytest.raises(TypeError, match="everyone reads as JSON"):
        await pair[0].broadcast({"image": b"\0"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": ""}, "target ''"),
        ({"target": 3}, "target 3"),
        ({"target": "b", "type": "x" * 129}, "type 'xxx"),
        ({"target": "b", "type": None}, "type None: not a text"),
        (
            {"target": "b", "type": "notification"},
            "type 'notification': is not a known type; did you mean 'Notification'",
        ),
        ({"target": "\ud800"}, "target .* not a text"),
        ({"target": "b", "correlation_id": "\ud800"}, "correlation_id .* not a text"),
        ({"target": "b", "ttl": 0}, "ttl 0"),
        ({"target": "b", "ttl": "60"}, "ttl '60'"),
        ({"target": "b", "ttl": None}, "ttl None"),
        ({"target": "b", "ttl": True}, "ttl True"),
        ({"target": "b", "ttl": float("nan")}, "ttl nan"),
        ({"target": "b", "correlation_id": "x" * 257}, "correlation_id"),
    ],
)
async def test_a_send_with_a_mistake_is_refused_at_once(
    make: Make, meet: Meet, arguments: dict[str, Any], message: str
) -> None:
    node = make("a")
    await meet(node)
    with pytest.raises(ConfigError, match=message):
        node.send_nowait(payload=1, **arguments)


async def test_a_timeout_that_is_no_time_is_refused_at_once(make: Make, meet: Meet) -> None:
    node = make("a")
    await meet(node)
    for timeout in (0, "soon", None):
        with pytest.raises(ConfigError, match=f"timeout {timeout!r}: give seconds"):
            await node.request("b", 1, timeout=timeout)  # type: ignore[arg-type]


# --- dead letters -------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that fail are tried again at once."""
    monkeypatch.setattr(timing, "HANDLER_RETRY", 0.001)


def clumsy(node: Node) -> list[Any]:
    """Its handler of notes fails while there is anything in the list."""
    faults: list[Any] = ["out of order"]

    @node.on("Note")
    async def handle(message: AgentMessage) -> None:
        if faults:
            raise RuntimeError(faults[0])

    return faults


@pytest.mark.usefixtures("impatient")
async def test_what_a_handler_gave_up_is_listed_at_its_sender_and_can_be_sent_again(
    make: Make, meet: Meet, tmp_path: Path
) -> None:
    a, b = make("a", data_dir=tmp_path / "a"), make("b")
    faults = clumsy(b)
    await meet(a, b)
    delivery = await a.send("b", {"page": 7}, type="Note")
    with pytest.raises(RemoteError, match="out of order"):
        await delivery.done(HANG)
    (letter,) = a.dead_letters()
    assert (letter.message_id, letter.recipient, letter.name) == (
        delivery.message_id,
        b.instance_id,
        "b",
    )
    assert (letter.payload, letter.small_payload) == ({"page": 7}, {"page": 7})
    assert letter.reason == "RuntimeError: out of order"
    assert 0 <= letter.died_at - letter.created_at < HANG * 1_000_000
    assert b.dead_letters() == ()
    faults.clear()
    with pytest.raises(ConfigError, match="no such dead letter for 'somebody else' is here"):
        await a.retry_dead_letter(letter.message_id, "somebody else")
    with pytest.raises(ConfigError, match="message_id DeadLetter"):
        await a.retry_dead_letter(letter)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recipient 7: not a text"):
        a.drop_dead_letter(letter.message_id, 7)  # type: ignore[arg-type]
    (again,) = await a.retry_dead_letter(letter.message_id)
    assert again is delivery, "who sent it follows it still"
    await delivery.done(HANG)
    assert a.dead_letters() == ()
    with pytest.raises(ConfigError, match="no such dead letter is here"):
        await a.retry_dead_letter(letter.message_id)


@pytest.mark.parametrize("recipient", ["a", "b"])
@pytest.mark.usefixtures("impatient")
async def test_a_death_is_told_once_wherever_the_recipient_lives(
    make: Make, meet: Meet, recipient: str
) -> None:
    nodes = {name: make(name) for name in "ab"}
    faults = clumsy(nodes[recipient])
    await meet(*nodes.values())
    events = nodes["a"].events()
    delivery = await nodes["a"].send(recipient, "x", type="Note")
    with pytest.raises(RemoteError):
        await delivery.done(HANG)
    faults.clear()
    last = await nodes["a"].send(recipient, "last", type="Note")
    told: list[tuple[str, str]] = []
    async with asyncio.timeout(HANG):
        async for event in events:
            if isinstance(event, MessageDead):
                told.append((event.message_id, event.reason))
            if isinstance(event, MessageDone) and event.message_id == last.message_id:
                break
    assert told == [(delivery.message_id, "RuntimeError: out of order")]


@pytest.mark.usefixtures("impatient")
async def test_a_dead_letter_survives_its_node_and_can_be_dropped(
    make: Make, meet: Meet, tmp_path: Path
) -> None:
    a, b = make("a", data_dir=tmp_path / "a"), make("b")
    clumsy(b)
    await meet(a, b)
    delivery = await a.send("b", "x", type="Note")
    with pytest.raises(RemoteError):
        await delivery.done(HANG)
    before = a.dead_letters()
    await a.leave()
    a = make("a", data_dir=tmp_path / "a")
    await meet(a)
    assert a.dead_letters() == before
    assert a.drop_dead_letter(delivery.message_id) == 1
    assert a.dead_letters() == ()
    assert a.drop_dead_letter(delivery.message_id) == 0


async def test_a_dead_letter_to_one_who_left_for_good_cannot_be_sent_again(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    target = await a.wait_for(name="b")
    delivery = a.send_nowait(target, "x", type="Note")
    await delivery.stored()
    await b.leave()
    with pytest.raises(PeerUnreachable, match="has left: the message is dead-lettered; send it"):
        await delivery.done(HANG)
    assert [letter.reason for letter in a.dead_letters()] == ["left"]
    with pytest.raises(PeerUnreachable, match="cannot be reached: it has left the mesh; ask ano"):
        await a.request(target, 1)
    with pytest.raises(UnknownTarget, match="has left this mesh for good"):
        await a.retry_dead_letter(delivery.message_id)
    assert len(a.dead_letters()) == 1


async def test_what_was_sent_to_a_name_that_left_goes_to_who_has_it_next(
    make: Make, meet: Meet, pair: tuple[Node, Node]
) -> None:
    a, b = pair
    delivery = await a.send("b", "x", type="Note")
    await b.leave()
    with pytest.raises(PeerUnreachable, match="to who has that name now, or next") as caught:
        await delivery.done(HANG)
    assert f"p2pmesh dead-letters --retry {delivery.message_id}" in str(caught.value)
    with pytest.raises(UnknownTarget, match=r"nobody is called 'b' any more.*wait_for") as gone:
        await a.send("b", "y", type="Note")
    assert gone.value.has_left
    with pytest.raises(UnknownTarget, match="nobody is called 'b' any more"):
        await a.request("b", "y", timeout=0.1)
    (again,) = await a.retry_dead_letter(delivery.message_id)
    assert again is delivery
    heir = make("b")
    heir.on("Note")(lambda message: None)
    await meet(heir)
    await delivery.done(HANG)


async def test_a_copy_of_a_broadcast_that_goes_again_has_a_delivery_of_its_own(
    make: Make, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = make("a"), make("b"), make("c")
    await meet(a, b, c)
    monkeypatch.setattr(limits, "MAILBOX_MESSAGES_MAX", 1)
    first = await a.send("b", "fills its mailbox", type="Note")
    cast = await a.broadcast("all", type="Note")
    await cast.stored(HANG)
    assert cast.refused == {b.instance_id: "mailbox full"}
    taken = await asyncio.wait_for(anext(b.messages("Note")), HANG)
    await taken.ack()
    await first.done(HANG)
    (delivery,) = await a.retry_dead_letter(cast.message_id)
    assert (delivery.target, delivery.message_id) == (b.instance_id, cast.message_id)
    got = await asyncio.wait_for(anext(b.messages("Note")), HANG)
    assert got.payload == "all"
    await got.ack()
    await delivery.done(HANG)
    assert cast.refused == {}


# --- large payloads and full queues ------------------------------------------------------


async def test_a_large_message_says_how_far_it_is_and_arrives_as_it_was(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    payload = os.urandom(8 * 1024 * 1024)
    events = a.events()
    got = asyncio.get_running_loop().create_future()

    @b.on("Notification")
    async def take(message: AgentMessage) -> None:
        got.set_result(message.payload)

    delivery = a.send_nowait(b.instance_id, payload)
    total = delivery.progress[1]
    assert delivery.progress == (0, total)
    assert total > len(payload)
    told = []
    async with asyncio.timeout(HANG):
        await delivery.done()
        assert await got == payload
        while not told or told[-1] < total:
            event = await anext(events)
            if isinstance(event, MessageProgress):
                assert (event.message_id, event.recipient, event.total) == (
                    delivery.message_id, b.instance_id, total,
                )  # fmt: skip
                told.append(event.sent)
    assert all(0 < sent <= total for sent in told)  # it begins anew over a new link
    assert delivery.progress == (total, total)


async def test_requests_and_answers_may_be_as_large_as_any_payload(pair: tuple[Node, Node]) -> None:
    a, b = pair
    echo(b)
    payload = os.urandom(limits.PAYLOAD_MAX - 5)  # a length of five bytes before it
    async with asyncio.timeout(HANG):
        assert (await a.request(b.instance_id, payload)).payload == payload


async def test_small_messages_are_answered_while_a_large_one_moves(pair: tuple[Node, Node]) -> None:
    a, b = pair
    echo(b)
    delivery = a.send_nowait(b.instance_id, bytes(limits.PAYLOAD_MAX - 5))
    async with asyncio.timeout(HANG):
        for number in range(5):
            await a.request(b.instance_id, number)
        assert delivery.state == "queued", "they passed it"


async def test_a_full_queue_says_whose_it_is_and_how_full(pair: tuple[Node, Node]) -> None:
    a, b = pair
    for _ in range(limits.MAILBOX_MESSAGES_MAX):
        a.send_nowait(b.instance_id, "nobody reads this")
    with pytest.raises(QueueFull, match=rf"1,000 messages \(.* bytes\) to '{b.instance_id}'"):
        a.send_nowait(b.instance_id, "one more")
