"""Both clients against a node that answers badly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from p2pmesh.errors import ConfigError, NotStarted, PeerUnreachable, RemoteError
from tests.client.conftest import Connect
from tests.client.scripted import HANG, HANG_UP, LISTING, Drip, Scripted, http, scripted

HANG_GUARD = 20.0
SENT = {"message_id": "m", "status": "queued", "delivered_to": ["g"], "state": "stored"}

Start = Callable[..., Awaitable[Scripted]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with asyncio.timeout(HANG_GUARD), scripted() as starts:
        yield starts


async def test_a_connection_is_kept_from_call_to_call(connect: Connect, start: Start) -> None:
    node = await start()
    client = connect(node.url)
    for _ in range(3):
        assert await client.list_instances() == ()
    assert [asked.connection for asked in node.asked] == [1, 1, 1]


async def test_calls_at_the_same_time_do_not_wait_for_each_other(
    connect: Connect, start: Start
) -> None:
    node = await start(HANG, http(LISTING))
    client = connect(node.url, timeout=HANG_GUARD)
    poll = asyncio.ensure_future(client.get_messages("g", wait=30))
    await node.was_asked.wait()
    await client.list_instances()
    assert [asked.connection for asked in node.asked] == [1, 2]
    poll.cancel()


async def test_a_send_over_a_connection_that_had_ended_is_sent_again_as_the_same_message(
    connect: Connect, start: Start
) -> None:
    node = await start(http(LISTING), HANG_UP, http(SENT))
    client = connect(node.url)
    await client.list_instances()
    assert (await client.send_message("me", "g", 1)).state == "stored"
    _, first, second = node.asked
    assert (first.connection, second.connection) == (1, 2)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.line == second.line == "POST /messages/send/me"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HANG_UP, "the connection ended before an answer"),
        (http(b"x" * 100)[:-50] + b"Connection: close", "the connection ended before an answer"),
        (HANG, "no answer in 0.3 s"),
        (Drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"), "no answer in 0.3 s"),
        (Drip(b"HTTP/1.1 200 OK\r\nX: "), "no answer in 0.3 s"),
        (Drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9), "no answer in 0.3 s"),
        (b"220 smtp.example ESMTP\r\nConnection: close\r\n", "as a p2pmesh node does"),
    ],
    ids=["hangs up", "hangs up half-way", "says nothing", "drips", "drips its head",
         "says 100 for ever", "is no HTTP server"],
)  # fmt: skip
async def test_where_a_node_does_not_answer_the_next_is_asked(
    connect: Connect, start: Start, answer: object, reason: str
) -> None:
    bad, good = await start(answer), await start()
    is_waited_for = "0.3 s" in reason
    with pytest.raises(PeerUnreachable, match=reason):
        await connect(bad.url, timeout=0.3 if is_waited_for else 10.0).list_instances()
    client = connect(bad.url, good.url, timeout=1.0 if is_waited_for else 10.0)
    assert await client.list_instances() == ()
    assert client.url == good.url


async def test_a_node_that_is_not_there_is_passed_over(connect: Connect, start: Start) -> None:
    good = await start()
    gone = "http://127.0.0.1:1"
    assert await connect(gone, good.url).list_instances() == ()
    with pytest.raises(PeerUnreachable, match=rf"{gone} \(.*refused"):
        await connect(gone).list_instances()
    with pytest.raises(PeerUnreachable, match=r"no\.such\.host\.invalid"):
        await connect("http://no.such.host.invalid:8077").list_instances()


async def test_an_answer_without_end_is_not_read_to_its_end(
    connect: Connect, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shell in ("aio", "blocking"):
        monkeypatch.setattr(f"p2pmesh.client.{shell}.ANSWER_MAX", 50_000)
    node = await start(http(b" " * 50_001), http(b" " * 40_000 + b'{"instances":[]}'))
    client = connect(node.url)
    with pytest.raises(PeerUnreachable, match="exceeds 50,000 bytes"):
        await client.list_instances()
    assert await client.list_instances() == ()


async def test_a_chunked_answer_is_read(connect: Connect, start: Start) -> None:
    chunks = b'e\r\n{"instances":[\r\n2\r\n]}\r\n0\r\n\r\n'
    node = await start(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert await connect(node.url).list_instances() == ()


async def test_nobody_is_led_elsewhere(connect: Connect, start: Start) -> None:
    elsewhere = await start()
    node = await start(http(b"", 307, f"Location: {elsewhere.url}/registry/agents"))
    with pytest.raises(RemoteError, match="307"):
        await connect(node.url).list_instances()
    assert elsewhere.asked == []


async def test_the_token_goes_with_every_call(connect: Connect, start: Start) -> None:
    node = await start()
    await connect(node.url, token="s3cret").list_instances()
    assert node.asked[0].headers["authorization"] == "Bearer s3cret"
    await connect(node.url).list_instances()
    assert "authorization" not in node.asked[1].headers


async def test_a_long_poll_may_take_as_long_as_it_asked_for(connect: Connect, start: Start) -> None:
    node = await start(HANG)
    client = connect(node.url, timeout=0.1)
    with pytest.raises(PeerUnreachable, match=r"no answer in 0\.4 s"):
        await client.get_messages("g", wait=0.3)
    assert node.asked[0].line == "GET /messages/g?wait=0.3"


async def test_a_closed_client_lets_its_connections_go_and_says_that_it_is_closed(
    connect: Connect, start: Start
) -> None:
    node = await start()
    client = connect(node.url)
    await client.list_instances()
    await client.close()
    await node.ended.wait()
    with pytest.raises(NotStarted):
        await client.list_instances()


async def test_mistakes_are_told_before_anybody_is_asked(connect: Connect, start: Start) -> None:
    node = await start()
    client = connect(node.url)
    for call in (
        client.register("a\nb"), client.heartbeat(""), client.deregister("x" * 129),
        client.get_messages("g", limit=0), client.acknowledge_messages("g", "id"),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            await call
    with pytest.raises(ConfigError, match="idempotency_key"):
        await client.send_message("me", "g", 1, idempotency_key="")
    with pytest.raises(TypeError):
        await client.send_message("me", "g", b"bytes")
    with pytest.raises(ConfigError):
        connect("not a url")
    with pytest.raises(ConfigError):
        connect(node.url, timeout=0)
    assert node.asked == []
