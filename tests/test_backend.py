"""What HTTP asks of a node, asked of real ones: guests, through any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from p2pmesh import (
    AgentMessage,
    ConfigError,
    Node,
    QueueFull,
    RemoteError,
    RequestTimeout,
    UnknownTarget,
)
from p2pmesh.backend import NodeBackend
from p2pmesh.http.backend import Conflict, Forbidden, Unavailable
from p2pmesh.protocol import limits
from p2pmesh.protocol.limits import MAILBOX_MESSAGES_MAX
from p2pmesh.protocol.types import MemberJoined
from p2pmesh.transport.clock import instant

HANG = 20.0
LABELS = (("query",), ("default",))


@pytest.fixture
async def nodes(mesh: str) -> AsyncIterator[list[Node]]:
    made = [
        Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http="127.0.0.1:0")
        for name in "abc"
    ]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(node) for node in made))
        for node in made:
            await node.wait_for(count=3, timeout=HANG)
        yield made


@pytest.fixture
def backends(nodes: list[Node]) -> list[NodeBackend]:
    return [NodeBackend(node._running) for node in nodes]


async def register(backend: NodeBackend, instance_id: str) -> None:
    await backend.register(instance_id, "127.0.0.1", 4101, *LABELS)


async def listed(node: Node, instance_id: str) -> None:
    await node.wait_for(id=instance_id, timeout=HANG)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_a_node_says_who_it_is(nodes: list[Node], backends: list[NodeBackend]) -> None:
    node, backend = nodes[0], backends[0]
    assert (backend.node_id, backend.instance_id) == (node.id, node.instance_id)
    assert (backend.mesh, backend.http_url, backend.durable) == (node.mesh, node.http_url, False)
    assert backend.self_member() in backend.all_members()
    assert backend.self_member().port == int(str(node.http_url).rpartition(":")[2])
    assert backend.self_member().hostname == backend.self_member().addresses[0].partition(":")[0]
    assert 0 < backend.uptime < HANG
    assert {link.found_by for b in backends for link in b.links()} <= {
        "runtime",
        "inbound",
        "gossip",
    }
    assert backend.leader_info().leader_id in {n.instance_id for n in nodes}
    assert "off_link_refused" in backend.counters()


async def test_a_guest_lives_everywhere_whichever_node_it_speaks_to(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    a, b, c = backends
    await register(a, "guest")
    for node in nodes:
        await listed(node, "guest")
    sent = await c.post("visitor", "guest", "Notification", {"n": 1}, "corr")
    assert (sent.delivered_to, sent.state) == (("guest",), "stored")
    (message,) = await b.read("guest")
    assert (message.message_id, message.payload) == (sent.message_id, {"n": 1})
    assert (message.source_instance, message.correlation_id) == ("visitor", "corr")
    assert await b.heartbeat("guest", "healthy", {"load": 0.5})
    await b.acknowledge("guest", (message.message_id,))
    assert await a.read("guest") == ()
    assert await c.deregister("guest")
    assert not await c.deregister("guest")


async def test_a_message_to_a_guest_of_this_node_says_that_it_has_one_copy(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    a, b, _ = backends
    await register(a, "guest")
    await listed(nodes[1], "guest")
    here = await a.post("visitor", "guest", "Notification", 1, None)
    (recipient,) = a.message_state(here.message_id) or ()
    assert (recipient.state, recipient.reason) == ("queued", "only here: its recipient is here too")
    there = await b.post("visitor", "guest", "Notification", 2, None)
    (recipient,) = b.message_state(there.message_id) or ()
    assert recipient.reason == "", "it is on its way"


async def test_a_reader_that_gives_up_is_forgotten_at_the_guests_home(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    await register(backends[0], "guest")
    await listed(nodes[1], "guest")
    waits = nodes[0]._running.core._plane.office._desk._waits
    reading = [asyncio.create_task(each.read("guest", wait=60.0)) for each in backends]
    await eventually(lambda: len(waits) == 3)
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    await eventually(lambda: len(waits) == 0)


async def test_a_reader_too_many_is_told_so(
    nodes: list[Node], backends: list[NodeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAITS_PER_INSTANCE_MAX", 0)
    await register(backends[0], "guest")
    await listed(nodes[1], "guest")
    for backend in backends[:2]:
        with pytest.raises(QueueFull, match="too many readers wait for messages of 'guest'"):
            await backend.read("guest", wait=60.0)


async def test_a_guest_that_says_too_much_of_itself_is_told_so(
    backends: list[NodeBackend],
) -> None:
    many = tuple(f"{number:064}" for number in range(32))
    for backend in backends[:2]:
        with pytest.raises(ConfigError, match="'guest' says of itself takes more than 4096 bytes"):
            await backend.register("guest", "127.0.0.1", 4101, many, many)


async def test_a_node_that_has_not_joined_says_so(mesh: str) -> None:
    node = Node("d", mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None)
    await node.start()
    with pytest.raises(Unavailable, match="this node has not joined its mesh yet"):
        await register(NodeBackend(node._running), "guest")
    await node.leave()


async def test_a_message_of_a_guest_is_kept_for_a_day(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    await register(backends[0], "guest")
    await backends[0].post("x", "guest", "Notification", 1, None)
    box = nodes[0]._running.core._plane.office._home.mailboxes.get("guest")
    assert box is not None
    (letter,) = box.letters.values()
    left = letter.deadline - instant().now
    assert 24 * 3600 - HANG < left <= 24 * 3600


async def test_an_agent_without_http_is_listed_with_port_0(mesh: str) -> None:
    async with Node(mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None) as node:
        member = NodeBackend(node._running).self_member()
        assert (member.hostname, member.port) == ("127.0.0.1", 0)


async def test_an_observer_has_nothing_to_say(mesh: str) -> None:
    async with Node(mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None, agent=False) as n:
        with pytest.raises(Conflict, match="an observer"):
            NodeBackend(n._running).describe("busy", None)


async def test_the_version_is_another_whenever_what_is_listed_changes(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    a, b, _ = backends
    await eventually(lambda: all(each.leader_info().epoch is not None for each in backends))
    seen = [a.version()]

    async def changes(deed: Any) -> bool:
        await deed
        seen.append(a.version())
        return seen[-1] != seen[-2]

    async def say(status: str) -> None:
        a.describe(status, None)

    assert await changes(register(a, "guest"))
    assert not await changes(register(a, "guest"))
    assert await changes(a.heartbeat("guest", "healthy", None))
    assert not await changes(a.heartbeat("guest", "healthy", None))
    assert await changes(a.heartbeat("guest", "healthy", {"n": 1}))
    await listed(nodes[1], "guest")
    assert await changes(b.heartbeat("guest", "via b", {"n": 1}))
    assert await changes(say("busy"))
    assert not await changes(say("busy"))
    assert await changes(a.deregister("guest"))


async def test_what_nobody_has_is_unknown(backends: list[NodeBackend]) -> None:
    backend = backends[0]
    assert not await backend.heartbeat("nobody", "healthy", None)
    assert not await backend.deregister("nobody")
    assert await backend.read("nobody") == ()
    await backend.acknowledge("nobody", ("m",))
    assert backend.message_state("m") is None
    with pytest.raises(UnknownTarget):
        await backend.post("visitor", "nobody", "Notification", 1, None)


async def test_the_agent_of_a_live_node_is_nobodys_guest(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    with pytest.raises(Conflict):
        await register(backends[0], nodes[1].instance_id)
    with pytest.raises(Forbidden):
        await backends[0].deregister(nodes[1].instance_id)


async def test_a_guest_asks_an_agent_and_gets_its_answer(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    @nodes[1].on("Query")
    async def shout(message: AgentMessage) -> Any:
        return message.payload.upper()

    answer = await backends[0].ask("guest", "b", "Query", "hi", HANG, None)
    assert (answer.payload, answer.message_type) == ("HI", "Response")
    with pytest.raises(RemoteError):
        await backends[0].ask("guest", "b", "Query", 3, HANG, None)
    await register(backends[2], "silent")
    await listed(nodes[0], "silent")
    with pytest.raises(RequestTimeout):
        await backends[0].ask("guest", "silent", "Query", 3, 0.1, None)


async def test_an_agents_payload_that_json_does_not_have_never_reaches_a_guest(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    a = nodes[0]
    await register(backends[1], "guest")
    await listed(a, "guest")
    with pytest.raises(TypeError, match="the guest 'guest' reads as JSON"):
        await a.send("guest", {"image": b"\0"})
    # Sent before it was known that a guest would take the name.
    poison = a.send_nowait("later", b"\0")
    fine = a.send_nowait("later", "fine")
    await register(backends[1], "later")
    await asyncio.wait_for(asyncio.gather(poison.stored(), fine.stored()), HANG)
    assert [m.payload for m in await backends[1].read("later")] == ["fine"]


async def test_a_full_mailbox_is_said_to_the_sender(backends: list[NodeBackend]) -> None:
    await register(backends[0], "guest")
    for number in range(MAILBOX_MESSAGES_MAX):
        await backends[0].post("x", "guest", "Notification", number, None)
    with pytest.raises(QueueFull):
        await backends[0].post("x", "guest", "Notification", "one too many", None)
    assert len(await backends[0].read("guest", limit=7)) == 7


async def test_events_come_in_order_and_end_with_the_node(
    nodes: list[Node], backends: list[NodeBackend]
) -> None:
    events = backends[0].subscribe(0)
    first = await anext(events)
    assert first.seq == 1
    await register(backends[1], "guest")
    async with asyncio.timeout(HANG):
        async for event in events:
            if isinstance(event, MemberJoined) and event.instance_id == "guest":
                break
        await nodes[0].leave()
        rest = [event async for event in events]
    assert [event.seq for event in rest] == list(range(event.seq + 1, event.seq + 1 + len(rest)))
