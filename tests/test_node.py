"""Nodes as applications use them: their life, what they see, and what they keep."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pmesh import (
    AgentMessage,
    ConfigError,
    IdentityConflict,
    Node,
    NotAuthoritative,
    NotStarted,
    PeerUnreachable,
    RequestTimeout,
)
from p2pmesh.protocol import records
from p2pmesh.protocol.timing import ALONE_AFTER, LEAVE_TIMEOUT
from p2pmesh.protocol.types import (
    Alone,
    LeaderChanged,
    Lost,
    MemberJoined,
    MessageEvent,
    Token,
)
from p2pmesh.rendezvous import Presence, Rendezvous
from p2pmesh.transport.interfaces import choose, read_interfaces, split_address
from p2pmesh.transport.runtime import list_nodes
from tests.nodes import HANG, Make, Meet, echo, state_of, until

# --- life -----------------------------------------------------------------------------


async def test_two_nodes_meet_and_agree_on_the_older_as_leader(pair: tuple[Node, Node]) -> None:
    a, b = pair
    oldest = min(a.members(), key=lambda m: tuple(map(int, m.life.split("."))))
    for node in pair:
        assert {m.instance_id for m in node.members()} == {a.instance_id, b.instance_id}
        assert {m.state for m in node.members()} == {"alive"}
        assert node.leader is not None
        assert node.leader.instance_id == oldest.instance_id


async def test_a_node_is_usable_only_between_its_start_and_its_end(make: Make) -> None:
    node = make("a")
    with pytest.raises(NotStarted, match="async with"):
        node.members()
    with pytest.raises(NotStarted):
        await node.send("b", 1)
    async with node:
        assert len(node.id) == 64
    with pytest.raises(NotStarted, match="ended"):
        node.members()
    with pytest.raises(NotStarted):
        await node.request("b", 1)
    with pytest.raises(NotStarted, match="runs once"):
        await node.start()
    assert await node.leave() == ()


async def test_a_node_that_left_is_listed_as_left_and_leaves_no_runtime_file(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    assert len(await asyncio.to_thread(list_nodes, a.mesh)) == 2
    await b.leave()
    await until(a, lambda: state_of("b", a) == ["left"])
    assert [e.instance_id for e in await asyncio.to_thread(list_nodes, a.mesh)] == [a.instance_id]


async def test_serving_forever_starts_the_node_and_cancelling_it_leaves(
    make: Make, meet: Meet
) -> None:
    a, b = make("a"), make("b")
    serving = asyncio.ensure_future(b.serve_forever())
    await meet(a)
    await a.wait_for(name="b", timeout=HANG)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await until(a, lambda: state_of("b", a) == ["left"])


async def test_a_start_that_is_cancelled_says_goodbye_and_leaves_nothing_open(
    make: Make, meet: Meet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a"), make("b", data_dir=tmp_path / "b")
    await meet(a)
    goes_on = asyncio.Event()
    start = Rendezvous.start

    async def slow_start(self: Rendezvous, presence: Presence) -> None:
        await start(self, presence)
        await goes_on.wait()

    monkeypatch.setattr(Rendezvous, "start", slow_start)
    starting = asyncio.ensure_future(b.start())
    await a.wait_for(name="b", timeout=HANG)
    starting.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(a, lambda: state_of("b", a) == ["left"])
    assert [e.instance_id for e in await asyncio.to_thread(list_nodes, a.mesh)] == [a.instance_id]
    async with make("b", data_dir=tmp_path / "b"):  # nothing holds the lock
        pass


@pytest.mark.parametrize("ticks", [0, 1, 2, 4, 8, 16, 32, 64])
async def test_a_start_is_cancelled_anywhere_and_holds_nothing(
    make: Make, tmp_path: Path, ticks: int
) -> None:
    node = make("a", data_dir=tmp_path / "a", http="127.0.0.1:0")
    starting = asyncio.ensure_future(node.start())
    for _ in range(ticks):
        await asyncio.sleep(0.002)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # the last may have started
        await starting
    await node.leave()
    assert not await asyncio.to_thread(list_nodes, node.mesh)
    async with make("a", data_dir=tmp_path / "a") as again:
        assert len(again.members()) == 1


async def test_a_node_whose_discovery_begins_late_joins_and_founds_no_mesh_of_its_own(
    make: Make, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a"), make("b")
    await meet(a)
    start = Rendezvous.start

    async def late_start(self: Rendezvous, presence: Presence) -> None:
        await asyncio.sleep(1.5 * ALONE_AFTER)
        await start(self, presence)

    monkeypatch.setattr(Rendezvous, "start", late_start)
    await meet(b)
    assert (await b.joined()).contact == a.id


async def test_serving_ends_when_the_node_leaves(make: Make, meet: Meet) -> None:
    node = make("a")
    await meet(node)
    serving = asyncio.ensure_future(node.serve_forever())
    await asyncio.sleep(0)
    await node.leave()
    await asyncio.wait_for(serving, HANG)


async def test_a_start_that_fails_leaves_nothing_open(make: Make, meet: Meet) -> None:
    first = make("a")
    await meet(first)
    taken = int(first.address.rpartition(":")[2])
    second = make("b", port=taken)
    with pytest.raises(ConfigError, match=f"port {taken} .* taken by this process"):
        await second.start()
    assert len(await asyncio.to_thread(list_nodes, first.mesh)) == 1


async def test_a_node_that_could_not_start_is_over_and_says_so(make: Make, tmp_path: Path) -> None:
    node = make("a", data_dir=tmp_path / "a", zeroconf=object(), mdns=True)
    with pytest.raises(ConfigError, match="zeroconf"):
        await node.start()
    assert await node.leave() == ()
    with pytest.raises(NotStarted):
        node.members()
    async with make("a", data_dir=tmp_path / "a") as again:  # nothing holds the lock
        assert await asyncio.to_thread(list_nodes, again.mesh)


async def test_a_handler_may_make_its_node_leave(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b")

    @b.on("Note")
    async def stop(message: AgentMessage) -> None:
        await b.leave()

    await meet(a, b)
    a.send_nowait("b", "stop", type="Note")
    await until(a, lambda: state_of("b", a) == ["left"])
    await asyncio.wait_for(b.serve_forever(), HANG)


async def test_leaving_waits_for_a_handler_that_runs_and_starts_no_other(
    make: Make, meet: Meet
) -> None:
    a, b = make("a"), make("b")
    started, may_end = asyncio.Event(), asyncio.Event()
    ran: list[Any] = []

    @b.on("Note")
    async def slow(message: AgentMessage) -> None:
        ran.append(message.payload)
        started.set()
        await may_end.wait()

    await meet(a, b)
    runs, waits = [await a.send("b", each, type="Note") for each in ("runs", "waits")]
    await asyncio.wait_for(started.wait(), HANG)
    leaving = asyncio.create_task(b.leave())
    await asyncio.sleep(0)
    assert b._running.handlers._is_finishing
    assert not leaving.done()
    may_end.set()
    await asyncio.wait_for(leaving, HANG)
    await runs.done(HANG)
    with pytest.raises(PeerUnreachable):
        await waits.done(HANG)
    assert [letter.message_id for letter in a.dead_letters()] == [waits.message_id]
    assert ran == ["runs"]


async def test_a_handler_that_never_ends_holds_its_node_for_5_s_and_its_message_comes_again(
    make: Make, meet: Meet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make("a"), make("b", data_dir=tmp_path / "b")
    started = asyncio.Event()
    attempts: list[int] = []

    @b.on("Note")
    async def endless(message: AgentMessage) -> None:
        attempts.append(message.attempt)
        started.set()
        await asyncio.Event().wait()

    await meet(a, b)
    delivery = await a.send("b", "x", type="Note")
    await asyncio.wait_for(started.wait(), HANG)
    began = time.monotonic()
    await b.leave()
    took = time.monotonic() - began
    assert LEAVE_TIMEOUT <= took < HANG, "5 s where the machine is not loaded"
    (line,) = [each for each in caplog.messages if "is not finished" in each]
    assert f"message {delivery.message_id} ('Note' from {a.instance_id})" in line
    assert delivery.state == "stored"
    b = make("b", data_dir=tmp_path / "b")

    @b.on("Note")
    async def handle(message: AgentMessage) -> None:
        attempts.append(message.attempt)

    await meet(b)
    await delivery.done(HANG)
    assert attempts == [1, 2]


async def test_leaving_while_joining_is_quick(make: Make) -> None:
    node = make("a")
    await node.start()
    await asyncio.wait_for(node.leave(), HANG)
    with pytest.raises(NotStarted):
        await node.joined()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name ''"),
        ({"name": 3}, "name 3: give text"),
        ({"mesh": "x" * 65}, "mesh"),
        ({"instance_id": "a\n"}, "instance_id .* control characters"),
        ({"capabilities": "shout"}, "capabilities 'shout': give a list"),
        ({"profiles": ["p"] * 33}, "profiles: 33 are given"),
        ({"peers": ["http://x"]}, "peers 'http://x'"),
        ({"port": 70000}, "port '70000'"),
        ({"bind": ["eth0"]}, "bind 'eth0': not an IP address"),
        ({"http": "8077"}, "http '8077'"),
        ({"key": "secret"}, "key: a mesh key begins with"),
        ({"http_token": "two words"}, "http_token: a token is 1 to 256 visible"),
        ({"http_token": {"a": "all"}}, "http_token: a scope is one of read, write, admin"),
        ({"http_token": "a", "http_open": True}, "http_open .* and there is a token too"),
        ({"http_hosts": ["a:1"]}, "http_hosts 'a:1': give a host name or an IP address"),
        ({"http_hosts": "box"}, "http_hosts 'box': give a list"),
        ({"key": b"short"}, "32 bytes"),
        ({"key": __file__}, r"key '.*': that is a file: .* Path\(.*\).read_text"),
        ({"quorum": 0}, "quorum 0"),
        ({"preset": "wan"}, "preset 'wan': give one of lan, local, wifi"),
    ],
)
def test_a_mistake_is_an_error_where_it_was_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Node(**options)


def test_the_environment_may_give_or_demand_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Node("a").is_open
    monkeypatch.setenv("P2PMESH_REQUIRE_KEY", "1")
    with pytest.raises(ConfigError, match="P2PMESH_REQUIRE_KEY"):
        Node("a")
    monkeypatch.setenv("P2PMESH_KEY", "nonsense")
    with pytest.raises(ConfigError, match="P2PMESH_KEY: a mesh key begins with"):
        Node("a")


async def test_http_asks_for_what_the_application_or_the_environment_says(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PMESH_HTTP_TOKEN", "of-the-environment")
    several = {"http_token": {"r": "read", "w": "write"}}
    for options, access, token, status in (
        ({}, "token", None, 401),
        ({}, "token", "of-the-environment", 204),
        (several, "token", "of-the-environment", 401),
        (several, "token", "r", 403),
        (several, "token", "w", 204),
        ({"http_token": ""}, "machine", None, 204),
        ({"http": None}, None, None, None),
    ):
        async with make("a", **({"http": "127.0.0.1:0"} | options)) as node:
            assert node.http_access == access
            if status is not None:
                assert await acknowledging(node, token) == status


async def acknowledging(node: Node, token: str | None) -> int:
    """The status of the smallest write."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        url = f"{node.http_url}/messages/ack/x"
        async with session.post(url, json={"message_ids": []}) as answer:
            return answer.status


async def test_http_beyond_loopback_is_refused_unless_it_is_guarded_or_meant(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"http_token=.* http_open=True \(--http-open\)"):
        make("a", http="0.0.0.0:0")
    async with make("a", http="0.0.0.0:0", http_token="t") as node:
        assert node.http_access == "token"
        assert await acknowledging(node, None) == 401
    assert "HTTP is open" not in caplog.text
    async with make("a", http="0.0.0.0:0", http_open=True) as node:
        assert node.http_access == "open"
        assert await acknowledging(node, None) == 204
    assert "HTTP is open beyond this machine" in caplog.text


async def test_http_is_known_by_the_names_that_it_was_given(make: Make) -> None:
    names = ["Box.Example.", "2001:db8::7"]
    async with (
        make("a", http="127.0.0.1:0", http_hosts=names) as node,
        aiohttp.ClientSession() as session,
    ):
        for host in ("box.example", "[2001:db8::7]", "other.example"):
            async with session.get(f"{node.http_url}/health", headers={"Host": host}) as answer:
                assert answer.status == (421 if host == "other.example" else 200)


async def test_nodes_that_share_no_directory_meet_by_mdns_and_by_peer(
    make: Make, meet: Meet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_a_directory_of_its_own(node: Node) -> None:
        monkeypatch.setenv("P2PMESH_RUNTIME_DIR", str(tmp_path / node.name))
        await node.start()

    a, b = make("a", mdns=True), make("b", mdns=True)
    await in_a_directory_of_its_own(a)
    await in_a_directory_of_its_own(b)
    c = make("c", peers=[a.address])
    await in_a_directory_of_its_own(c)
    for node in (a, b, c):
        await node.joined()
        await node.wait_for(count=3, timeout=HANG)
    assert how(b, a) | how(a, b) == {"mdns", "inbound"}
    assert how(c, a) | how(a, c) == {"peer", "inbound"}
    await asyncio.gather(*(node.leave() for node in (a, b, c)))


async def test_nodes_of_one_process_verify_each_record_once(
    make: Make, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature holds for all of them, and is most of what a thousand would compute."""
    verified: list[bytes] = []
    verify = records._verify
    monkeypatch.setattr(
        records, "_verify", lambda signed, key: (verified.append(signed), verify(signed, key))
    )
    nodes = [make(name) for name in "abcd"]
    await meet(*nodes)
    assert len(verified) == len(set(verified))


def how(node: Node, other: Node) -> set[str]:
    """How ``node`` came to its link with ``other``."""
    links = node._running.query(node._running.core.links)
    return {str(link.found_by) for link in links if link.node_id == other.id}


async def test_addresses_that_change_are_listened_at_and_told(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b")
    await meet(a, b)
    port = split_address(b.address)[1]
    moved = choose(await asyncio.to_thread(read_interfaces), bind=("127.0.0.7",))
    await b._running._readdress(moved)
    assert b.address == f"127.0.0.7:{port}"

    def told() -> bool:
        return any(m.addresses == (b.address,) for m in a.members())

    await until(a, told)
    _, client = await asyncio.open_connection("127.0.0.7", port)
    client.close()
    await client.wait_closed()
    c = make("c", peers=[b.address])
    await meet(c)
    await c.wait_for(count=3, timeout=HANG)


async def test_other_keys_and_other_names_do_not_meet_and_say_why(
    make: Make, meet: Meet, caplog: pytest.LogCaptureFixture
) -> None:
    key = b"k" * 32
    keyed, friend, stranger = make("a", key=key), make("b", key=[key]), make("c", key=b"x" * 32)
    await meet(keyed, friend)
    await meet(stranger)
    await until(stranger, lambda: "cannot be a peer" in caplog.text)
    assert len(stranger.members()) == 1
    assert len(keyed.members()) == 2


# --- looking on ---------------------------------------------------------------------------


async def test_events_tell_who_came_who_leads_and_what_arrived(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b")
    reader = a.events()
    await meet(a, b)
    seen: list[Any] = []

    async def first(kind: type) -> Any:
        """The first event of this kind, among those seen or to come."""
        while not (found := [event for event in seen if isinstance(event, kind)]):
            seen.append(await asyncio.wait_for(anext(reader), HANG))
        return found[0]

    assert (await first(MemberJoined)).name == "b"
    assert (await first(LeaderChanged)).epoch is not None
    await b.send("a", {"n": 1})
    message = await first(MessageEvent)
    assert (message.payload, message.source) == ({"n": 1}, b.instance_id)
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert not any(isinstance(event, Lost) for event in seen)


async def test_waiting_for_others_by_what_they_are(make: Make, meet: Meet) -> None:
    a = make("a", capabilities=["shout"])
    b = make("b", capabilities=["shout", "sing"])
    await meet(a, b)
    assert (await a.wait_for(capability="shout")).name == "b"
    assert (await a.wait_for(capability="sing", name="b")).name == "b"
    assert (await a.wait_for(id=b.id)).instance_id == b.instance_id
    assert len(await a.wait_for(count=2)) == 2
    with pytest.raises(RequestTimeout, match=r"nobody with name='z' within 0\.05 s; here are .*a-"):
        await a.wait_for(name="z", timeout=0.05)
    with pytest.raises(RequestTimeout):
        await a.wait_for(capability="shout", count=2, timeout=0.05)


async def test_leadership_is_called_back_and_gives_a_token(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b", candidate=False)
    elected: asyncio.Queue[Token] = asyncio.Queue()
    later: asyncio.Queue[str] = asyncio.Queue()

    @a.leadership.on_elected
    def plain(token: Token) -> None:
        elected.put_nowait(token)

    @a.leadership.on_elected
    async def slow(token: Token) -> None:
        await asyncio.sleep(0)
        later.put_nowait("elected")

    @a.leadership.on_elected
    def broken(token: Token) -> None:
        raise RuntimeError("its own problem")

    await meet(a, b)
    token = await asyncio.wait_for(elected.get(), HANG)
    assert await asyncio.wait_for(later.get(), HANG) == "elected"
    assert a.leadership.token() == token
    assert a.leadership.authoritative
    await until(b, lambda: b.leadership.epoch == token.epoch)
    assert not b.leadership.authoritative
    with pytest.raises(NotAuthoritative):
        b.leadership.token()


async def test_with_a_quorum_the_callbacks_follow_authority(make: Make) -> None:
    a, b = make("a", quorum=2), make("b", quorum=2, candidate=False)
    told: asyncio.Queue[str] = asyncio.Queue()
    a.leadership.on_elected(lambda token: told.put_nowait("elected"))
    a.leadership.on_demoted(told.put_nowait)
    async with a:
        await until(a, lambda: a.leadership.epoch is not None)
        assert told.empty()
        with pytest.raises(NotAuthoritative, match="leads, but sees 1 of quorum 2; on_elected is"):
            a.leadership.token()
        async with b:
            assert await asyncio.wait_for(told.get(), HANG) == "elected"
            a.leadership.token()
        assert await asyncio.wait_for(told.get(), HANG) == "it sees 1 of quorum 2"
        assert not a.leadership.authoritative
    assert told.empty()


async def test_on_elected_of_a_node_that_leads_already_is_called_once(make: Make) -> None:
    told: asyncio.Queue[Token] = asyncio.Queue()
    async with make("a") as a:
        await until(a, lambda: a.leadership.authoritative)
        a.leadership.on_elected(told.put_nowait)
        a.leadership.on_demoted(told.put_nowait)
        assert told.empty(), "not before whoever registers it goes on"
        assert await asyncio.wait_for(told.get(), HANG) == a.leadership.token()
        await asyncio.sleep(0.05)
        assert told.empty()


async def test_a_thread_may_register_callbacks_of_a_node_that_leads(make: Make) -> None:
    told: asyncio.Queue[Token] = asyncio.Queue()
    async with make("a") as a:
        await until(a, lambda: a.leadership.authoritative)
        await asyncio.to_thread(a.leadership.on_elected, told.put_nowait)
        assert await asyncio.wait_for(told.get(), HANG) == a.leadership.token()


async def test_a_callback_that_another_registers_is_called_once(make: Make) -> None:
    told: list[Token] = []
    a = make("a")

    @a.leadership.on_elected
    def register(token: Token) -> None:
        a.leadership.on_elected(told.append)

    async with a:
        await until(a, lambda: told != [])
        await asyncio.sleep(0.05)
        assert told == [a.leadership.token()]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_what_a_callback_raises_keeps_no_other_from_being_called(
    make: Make, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """A plain function raises CancelledError where it asks what was cancelled for its result."""
    told: list[object] = []
    a = make("a")

    def fails(_: object) -> None:
        raise error

    for register in (a.leadership.on_elected, a.leadership.on_demoted):
        register(fails)
        register(told.append)
    async with a:
        await until(a, lambda: told != [])
        assert told == [a.leadership.token()]
    assert told[1:] == ["this node leaves"]
    assert caplog.text.count("the callback") == 2


async def test_what_on_demoted_begins_when_its_node_leaves_may_end(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    async with make("a") as a:
        await until(a, lambda: a.leadership.authoritative)

        @a.leadership.on_demoted
        async def stop(reason: str) -> None:
            await asyncio.sleep(0.2)
            ended.append(reason)

    assert ended == ["this node leaves"]
    assert "is cancelled" not in caplog.text


async def test_a_callback_that_does_not_end_is_cancelled_and_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("p2pmesh.running.CALLBACK_DRAIN", 0.05)
    async with make("a") as a:
        await until(a, lambda: a.leadership.authoritative)

        @a.leadership.on_demoted
        async def never_ends(reason: str) -> None:
            await asyncio.Event().wait()

    assert "never_ends" in caplog.text
    assert "did not end in time" in caplog.text


@pytest.mark.parametrize("when", ["on_elected", "on_demoted"])
async def test_a_callback_may_make_its_node_leave(make: Make, when: str) -> None:
    """Also in what it starts; it gets what ``leave`` returns, and goes on."""
    told: asyncio.Queue[object] = asyncio.Queue()
    a = make("a")

    async def leave(_: object) -> None:
        left = await asyncio.create_task(a.leave())
        await asyncio.sleep(0)
        told.put_nowait(left)

    getattr(a.leadership, when)(leave)
    async with a:
        await until(a, lambda: a.leadership.epoch is not None)
        if when == "on_demoted":
            await a.leave()
        assert await asyncio.wait_for(told.get(), HANG) == ()


async def test_an_observer_sees_and_is_not_an_instance(make: Make, meet: Meet) -> None:
    a, b = make("a"), make("b", agent=False)
    await meet(a, b)
    assert b.instance_id == b.id
    assert b.leader is not None
    assert b.leader.instance_id == a.instance_id
    cast = await a.broadcast("x")
    assert cast.delivered_to == ()


# --- the data dir ---------------------------------------------------------------------------


async def test_a_data_dir_keeps_the_identity_and_a_restart_has_a_higher_life(
    make: Make, tmp_path: Path
) -> None:
    async def once() -> tuple[str, str, str]:
        async with make("a", data_dir=tmp_path / "data") as node:
            (me,) = node.members()
            return node.id, node.instance_id, me.life

    first, second = await once(), await once()
    assert first[:2] == second[:2]
    assert tuple(map(int, first[2].split("."))) < tuple(map(int, second[2].split(".")))


async def test_a_data_dir_has_one_node_at_a_time(make: Make, meet: Meet, tmp_path: Path) -> None:
    first = make("a", data_dir=tmp_path / "data")
    await meet(first)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        await make("b", data_dir=tmp_path / "data").start()


async def test_a_copied_identity_ends_one_of_the_two_with_an_error(
    make: Make, tmp_path: Path
) -> None:
    async with make("a", data_dir=tmp_path / "one"):
        pass
    (tmp_path / "two").mkdir()
    for name in ("identity", "state"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    twins = [make("a", data_dir=tmp_path / each) for each in ("one", "two")]
    serving = [asyncio.ensure_future(twin.serve_forever()) for twin in twins]
    async with asyncio.timeout(HANG):
        ended, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(IdentityConflict, match="own data directory"):
        await ended.pop()
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def test_who_takes_an_older_agents_instance_id_ends_and_is_told_to_have_its_own(
    make: Make, meet: Meet
) -> None:
    await meet(make("a", instance_id="worker"), make("c"))
    with pytest.raises(IdentityConflict, match="has this instance id, 'worker': give each"):
        async with asyncio.timeout(HANG):
            await make("b", instance_id="worker").serve_forever()


# --- this process -----------------------------------------------------------------------------


async def test_a_loop_that_is_blocked_costs_nobody_its_life(make: Make, meet: Meet) -> None:
    a, b = make("a", preset="local"), make("b", preset="local")
    await meet(a, b)
    reader = a.events()
    # The blocked loop is the subject: six times what a member may be silent here.
    _block(2.0)
    await asyncio.sleep(0.5)
    assert {m.state for node in (a, b) for m in node.members()} == {"alive"}
    await a.leave()
    assert not [e async for e in reader if type(e).__name__ == "MemberFailed"]


def _block(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_forked_child_has_no_node_and_the_parent_keeps_its_own(
    make: Make, meet: Meet, tmp_path: Path
) -> None:
    a, b = make("a", http="127.0.0.1:0", mdns=True, data_dir=tmp_path / "a"), make("b")
    echo(b)
    await meet(a, b)
    _, client = await asyncio.open_connection(*split_address(a.http_url.removeprefix("http://")))
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        open_ones = [_target(fd) for fd in os.listdir("/proc/self/fd")]
        sockets = sum("socket:" in target for target in open_ones)
        locks = open_ones.count(str(tmp_path / "a" / "lock"))
        try:
            a.members()
        except NotStarted as error:
            # What is left: the loop's own pair of sockets, and this test's one.
            os._exit(sockets - 3 + 50 * locks if "forked" in str(error) else 100)
        os._exit(101)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    client.close()
    await client.wait_closed()
    assert (await a.request("b", "still here")).payload == "still here"


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


async def test_a_runtime_directory_that_cannot_be_used_is_one_warning(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(tmp_path.chmod, 0o755)
    monkeypatch.setenv("P2PMESH_RUNTIME_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "p2pmesh"):
        async with make("a", key=b"k" * 32):
            pass
    (warning,) = [r.message for r in caplog.records]
    assert f"chmod 700 {tmp_path}" in warning


async def test_who_is_alone_is_told_what_was_tried(
    make: Make, meet: Meet, caplog: pytest.LogCaptureFixture
) -> None:
    node = make("a")
    await meet(node)
    node._running._perform(Alone(tried=("10.0.0.1:8078 (peer)",)))
    warning = caplog.records[-1].message
    assert "nobody else was met" in warning
    assert "10.0.0.1:8078 (peer)" in warning
    assert "page on troubleshooting" in warning


async def test_an_open_mesh_is_one_warning(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "p2pmesh"):
        async with make("a"):
            pass
    (warning,) = [r.message for r in caplog.records]
    assert "is open" in warning


async def test_a_node_that_is_gone_leaves_nothing_behind(make: Make, meet: Meet) -> None:
    async def once() -> None:
        a, b = make("a"), make("b")
        echo(b)
        async with AsyncExitStack() as stack:
            await asyncio.gather(*(stack.enter_async_context(node) for node in (a, b)))
            await a.request("b", 1)

    await once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    await once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(asyncio.all_tasks()) == 1
