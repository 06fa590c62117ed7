"""Both clients against nodes: the whole life of a guest.

Where nothing but the API matters the nodes are in memory, which takes no time.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pmesh import AgentMessage, Node
from p2pmesh.errors import ConfigError, IdentityConflict, PeerUnreachable, UnknownTarget
from p2pmesh.ids import uuid7
from tests.client.conftest import Connect
from tests.http.contract import fresh
from tests.http.serving import serve

HANG = 20.0


@pytest.fixture(scope="module")
def doors() -> Iterator[tuple[str, str]]:
    """Two nodes of one mesh, in memory: their agents are agent-1, which leads, and agent-2."""
    with serve(2) as served:
        first, second = (server.url for server in served.servers)
        yield first, second


async def test_an_agent_lives_its_life_over_http(doors: tuple[str, str], connect: Connect) -> None:
    here, there = map(connect, doors)
    me = here.generate_instance_id()
    assert (await here.register(me, capabilities=["see"], port=4101)).instance_id == me
    listed = {each.instance_id: each for each in await there.list_instances()}
    assert {"agent-1", "agent-2", me} <= set(listed)
    assert (listed[me].capabilities, listed[me].port) == (("see",), 4101)
    assert [each.instance_id for each in listed.values() if each.is_leader] == ["agent-1"]
    beat = await there.heartbeat(me, "busy", {"load": 0.5})
    assert (beat.acknowledged, beat.leader_id) == (True, "agent-1")
    sent = await there.send_message("someone", me, {"n": 1}, type="weather", correlation_id="c")
    assert (sent.delivered_to, sent.status) == ((me,), "queued")
    (message,) = await here.get_messages(me)
    assert (message.message_id, message.source_instance, message.target_instance) == (
        sent.message_id, "someone", me,
    )  # fmt: skip
    assert (message.message_type, message.payload, message.correlation_id) == (
        "weather", {"n": 1}, "c",
    )  # fmt: skip
    await there.acknowledge_messages(me, [message.message_id])
    assert await here.get_messages(me) == ()
    assert await there.deregister(me) is True
    assert await there.deregister(me) is False
    assert (await here.heartbeat(me)).acknowledged is False


async def test_a_key_that_is_used_twice_is_one_message(
    doors: tuple[str, str], connect: Connect
) -> None:
    client = connect(doors[0])
    await client.register(me := fresh())
    first = await client.send_message("me", me, 1, idempotency_key=me)
    assert await client.send_message("me", me, 1, idempotency_key=me) == first
    assert len(await client.get_messages(me)) == 1
    await client.send_message("me", me, 1)
    await client.send_message("me", me, 1)
    assert len(await client.get_messages(me, limit=2)) == 2
    assert len(await client.get_messages(me)) == 3
    with pytest.raises(ConfigError, match="Idempotency-Key"):
        await client.send_message("me", me, 2, idempotency_key=me)


async def test_what_the_mesh_refuses_is_an_error_of_the_tree(
    doors: tuple[str, str], connect: Connect
) -> None:
    client = connect(doors[0])
    with pytest.raises(UnknownTarget, match=rf"'nobody'.*{doors[0]}"):
        await client.send_message("me", "nobody", 1)
    with pytest.raises(IdentityConflict, match="agent of a live node"):
        await client.register("agent-2")
    with pytest.raises(ConfigError, match="agent of a live node"):
        await client.deregister("agent-2")


async def test_messages_come_one_after_the_other_and_what_is_left_is_listed_again(
    doors: tuple[str, str], connect: Connect
) -> None:
    client = connect(doors[0])
    await client.register(me := fresh())
    for number in range(3):
        await client.send_message("me", me, number)
    payloads = []
    async for message in client.messages(me, wait=1.0):
        payloads.append(message.payload)
        if len(payloads) == 2:
            break
    assert payloads == [0, 1]
    assert [each.payload for each in await client.get_messages(me)] == [1, 2]


async def test_the_mesh_forgets_and_the_presence_registers_again(
    doors: tuple[str, str], connect: Connect
) -> None:
    client = connect(doors[0])
    async with client.registered(me := fresh(), interval=0.05):
        assert await client.deregister(me)
        async with asyncio.timeout(HANG):
            while me not in {each.instance_id for each in await client.list_instances()}:
                pass


async def test_many_share_one_client(doors: tuple[str, str], connect: Connect) -> None:
    client = connect(doors[0])
    await client.register(me := fresh())
    async with asyncio.timeout(HANG):
        await asyncio.gather(*(client.send_message("me", me, number) for number in range(50)))
    read: list[Any] = [each.payload for each in await client.get_messages(me)]
    assert sorted(read) == list(range(50))


# --- where the mesh matters -----------------------------------------------------------


@pytest.fixture
async def nodes(mesh: str) -> AsyncIterator[list[Node]]:
    made = [
        Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http="127.0.0.1:0")
        for name in "ab"
    ]
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for node in made:
            await stack.enter_async_context(node)
        for node in made:
            await node.wait_for(count=2, timeout=HANG)
        yield made


def url(node: Node) -> str:
    return str(node.http_url)


async def test_an_agent_answers_what_it_reads_and_hears_broadcasts(
    nodes: list[Node], connect: Connect
) -> None:
    a, b = nodes
    client = connect(url(a))
    async with client.registered("g", interval=0.2) as presence:
        await b.wait_for(id="g", timeout=HANG)
        asked = asyncio.ensure_future(b.request("g", "hello", timeout=HANG))
        messages = client.messages("g", wait=1.0)
        query = await anext(messages)
        assert (query.message_type, query.payload) == ("Query", "hello")
        await client.send_message(
            "g", query.source_instance, "HELLO", type="Response", correlation_id=query.message_id
        )
        assert (await asked).payload == "HELLO"
        cast = await b.broadcast("to all")
        heard = await anext(messages)
        assert (heard.message_id, heard.target_instance) == (cast.message_id, None)
        assert presence.trouble is None
    assert "g" not in {each.instance_id for each in await client.list_instances()}


async def test_a_node_that_leaves_is_followed_by_another_of_this_machine(
    nodes: list[Node], connect: Connect
) -> None:
    a, b = nodes
    client = connect(url(a))
    async with client.registered("g", interval=0.1) as presence:
        await b.wait_for(id="g", timeout=HANG)
        await a.leave()
        async with asyncio.timeout(HANG):
            while client.url != url(b):
                await client.list_instances()
            while b.members()[-1].home != b.id:
                await client.heartbeat("g")
        assert {each.instance_id for each in await client.list_instances()} == {
            b.instance_id, "g",
        }  # fmt: skip
        await b.send("g", "still there")
        (message,) = await client.get_messages("g")
        assert message.payload == "still there"
        assert presence.trouble is None


async def test_a_token_is_shown_where_one_is_asked_for(
    mesh: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = {"bind": ["127.0.0.1"], "port": 0, "http": "127.0.0.1:0"}
    node = Node("a", mesh=mesh, mdns=False, http_token="s3cret-of-the-node", **address)
    async with node:
        assert len(await connect().list_instances()) == 1, "the runtime directory has one"
        assert len(await connect(url(node)).list_instances()) == 1
        monkeypatch.setenv("P2PMESH_RUNTIME_DIR", str(tmp_path / "nothing"))
        with pytest.raises(ConfigError, match=rf"{url(node)}.*token=…"):
            await connect(url(node)).list_instances()
        client = connect(url(node), token="s3cret-of-the-node")
        assert len(await client.list_instances()) == 1


async def test_a_send_that_is_repeated_at_another_node_is_the_same_message(
    nodes: list[Node], connect: Connect
) -> None:
    a, b = map(url, nodes)
    here, there = connect(a), connect(b)
    await here.register("g")
    await nodes[1].wait_for(id="g", timeout=HANG)
    key = uuid7()
    for client in (here, there):
        sent = await client.send_message("me", "g", 1, idempotency_key=key)
        assert sent.message_id == key
    (message,) = await here.get_messages("g")
    assert message.message_id == key
    await there.acknowledge_messages("g", [key])
    assert await here.get_messages("g") == ()
    for client in (here, there):
        cast = await client.send_message(
            "me", None, "to all", idempotency_key=(cast_key := uuid7())
        )
        assert cast.message_id == cast_key


async def test_without_a_url_the_node_of_this_machine_is_found(
    nodes: list[Node], connect: Connect, mesh: str
) -> None:
    client = connect()
    assert len(await client.list_instances()) == 2
    assert client.url in {url(node) for node in nodes}
    with pytest.raises(PeerUnreachable, match="of mesh 'other'"):
        await connect(mesh="other").list_instances()


async def test_an_agent_with_a_node_hears_who_a_guest_is(
    nodes: list[Node], connect: Connect
) -> None:
    heard: asyncio.Queue[AgentMessage] = asyncio.Queue()

    @nodes[1].on("Notification")
    async def hear(message: AgentMessage) -> None:
        heard.put_nowait(message)

    await connect(url(nodes[0])).send_message("g", nodes[1].instance_id, [1, None, "ä"])
    message = await asyncio.wait_for(heard.get(), HANG)
    assert (message.source_instance, message.payload) == ("g", [1, None, "ä"])


def test_the_blocking_client_imports_nothing_heavy() -> None:
    code = (
        "import sys; from p2pmesh.client import SyncMeshClient; SyncMeshClient();"
        "heavy = {'aiohttp', 'asyncio', 'zeroconf', 'rich', 'nacl', 'p2pmesh.node'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
