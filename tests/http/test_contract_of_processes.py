"""The contract against three real processes of one mesh: the same table, the real thing."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.http.contract import (
    Contract,
    Doors,
    all_list,
    assert_refused,
    awaited,
    eventually,
    fresh,
    instances,
    messages,
    register,
    send,
)
from tests.http.hostile import Hostile
from tests.http.wire import Connection, get, post
from tests.processes import P2PMESH, Process


@contextmanager
def running(home: Path, count: int) -> Iterator[list[Process]]:
    """So many processes, joined one after the other, each of which lists all."""
    flags = ("--mesh", f"test-{secrets.token_hex(8)}", "--no-mdns", "--http", "127.0.0.1:0")
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = Process((*P2PMESH, "run", "--json", *flags), home=home)
            processes.append(stack.enter_context(process))
            process.event("joined")
        agents = [process.event("ready")["instance_id"] for process in processes]
        for process in processes:
            with Connection(address(process)) as door:
                eventually(partial(_lists_all, door, agents), "they do not meet")
        yield processes


def address(process: Process) -> str:
    return str(process.event("ready")["http"]).removeprefix("http://")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A, B and C."""
    with running(tmp_path_factory.mktemp("home"), 3) as (a, b, c):
        agents = [each.event("ready")["instance_id"] for each in (a, b, c)]
        yield Doors((address(a), address(b), address(c)), (agents[0], agents[1], agents[2]))
        for each in (a, b, c):
            for line in each.errors.splitlines():  # of the mesh, and nothing that a client did
                assert " WARNING p2pmesh: " in line


def _lists_all(door: Connection, agents: list[str]) -> bool:
    listed = door.ask(get("/registry/agents")).json["instances"]
    return {each["instance_id"] for each in listed} == set(agents)


class TestRealProcesses(Contract, Hostile):
    def test_a_connection_is_reused_after_six_seconds(self, doors: Doors) -> None:
        """The one pause of these tests: clients keep a connection for five seconds."""
        with doors.open() as door:
            me = register(door)
            time.sleep(6.0)
            assert door.ask(post(f"/registry/heartbeat/{me}", {"status": "ok"})).status == 200


def test_a_guest_whose_home_is_killed_is_adopted_with_what_waits_for_it(home: Path) -> None:
    with (
        running(home, 2) as (staying, killed),
        Connection(address(staying)) as a,
        Connection(address(killed)) as b,
    ):
        me, source = register(b), register(a)
        all_list([a], me)
        before = instances(a)[me]
        sent = a.ask(send(source, me, "hello")).json
        killed.kill()
        reply = a.ask(post(f"/registry/heartbeat/{me}", {"status": "healthy"}))
        assert (reply.status, reply.json["acknowledged"]) == (200, True)
        after = instances(a)[me]
        assert after["created_at"] == before["created_at"]
        assert after["node_id"] != before["node_id"]
        (message,) = awaited(a, me)
        assert message["message_id"] == sent["message_id"]


def test_a_home_that_is_silent_for_a_second_is_done_without(home: Path) -> None:
    with (
        running(home, 2) as (asked, silent),
        Connection(address(asked)) as a,
        Connection(address(silent)) as b,
    ):
        me = register(b)
        all_list([a], me)
        read = a.ask(send(fresh(), me, "read before")).json["message_id"]
        awaited(a, me)
        before = instances(a)[me]
        silent.signal(signal.SIGSTOP)
        try:
            # What only the home knows ...
            for request in (
                get(f"/messages/{me}"),
                get(f"/registry/deregister/{me}", method="DELETE"),
            ):
                reply = a.ask(request)
                assert_refused(reply, 503)
                assert f"the home of '{me}' does not answer".encode() in reply.body
                assert int(reply.headers["retry-after"]) > 0
            # ... and what can be done without it.
            assert a.ask(post(f"/messages/ack/{me}", {"message_ids": [read]})).status == 204
            beat = a.ask(post(f"/registry/heartbeat/{me}", {"status": "healthy"}))
            assert (beat.status, beat.json["acknowledged"]) == (200, True)
            after = instances(a)[me]
            assert after["node_id"] != before["node_id"]
            assert after["created_at"] == before["created_at"]
            assert messages(a, me) == []
            sent = a.ask(send(fresh(), me, "read later")).json["message_id"]
        finally:
            silent.signal(signal.SIGCONT)
        for door in (a, b):
            eventually(
                lambda door=door: [m["message_id"] for m in messages(door, me)] == [sent],
                "its mail is not the same at both",
            )


def test_a_guest_that_is_silent_is_not_listed_until_it_is_heard_again(home: Path) -> None:
    with (
        running(home, 2) as (one, other),
        Connection(address(one)) as a,
        Connection(address(other)) as b,
    ):
        me = register(a)
        all_list([b], me)
        sessions = [door.ask(get("/health")).json["active_sessions"] for door in (a, b)]
        assert sessions == [1, 0], "at its home alone"
        for door in (a, b):
            eventually(lambda door=door: me not in instances(door), "still listed", within=60.0)
        assert a.ask(get("/health")).json["active_sessions"] == 0
        member = b.ask(get(f"/v1/members/{me}")).json
        assert member["state"] == "failed"
        beat = b.ask(post(f"/registry/heartbeat/{me}", {"status": "back"}))
        assert (beat.status, beat.json["acknowledged"]) == (200, True)
        for door in (a, b):
            all_list([door], me)
        assert instances(a)[me]["node_id"] == one.event("ready")["node_id"]


def test_who_waits_at_a_node_that_leaves_is_answered_and_waits_on_at_another(home: Path) -> None:
    with (
        running(home, 2) as (staying, leaving),
        Connection(address(staying)) as a,
        Connection(address(leaving)) as b,
    ):
        me = register(b)
        all_list([a], me)
        for door in (a, b):
            door.send(get(f"/messages/{me}?wait=60"))
        with Connection(address(leaving)) as other:
            assert other.ask(get(f"/messages/{me}?wait=0.3")).json == {"messages": []}
        assert leaving.leave() == 0
        assert b.read().json == {"messages": []}
        with Connection(address(staying)) as other:
            # Its guest is nobody's now; the node that it speaks to next takes it in.
            beat = other.ask(post(f"/registry/heartbeat/{me}", {"status": "healthy"}))
            assert beat.status == 200
            sent = other.ask(send(fresh(), me, "hello")).json
        (message,) = a.read().json["messages"]
        assert message["message_id"] == sent["message_id"]


def test_a_node_says_how_it_is_is_pinged_and_leaves_when_it_is_asked_to(home: Path) -> None:
    with (
        running(home, 2) as (asked, leaving),
        Connection(address(asked)) as a,
        Connection(address(leaving)) as b,
    ):
        me = leaving.event("ready")["instance_id"]
        said = {"status": "closing", "metrics": {"jobs": 0}}
        patch = post("/v1/self", said).replace(b"POST", b"PATCH", 1)
        assert b.ask(patch).status == 200
        eventually(lambda: said.items() <= instances(a)[me].items(), "it is not heard")
        pong = a.ask(get(f"/v1/ping/{me}", method="POST")).json
        assert pong["home"] == leaving.event("ready")["node_id"]
        assert 0 < pong["rtt"] < 1
        assert b.ask(get("/v1/leave", method="POST")).status == 202
        assert leaving.wait() == 0
        gone = a.ask(get(f"/v1/members/{me}")).json
        assert gone["state"] == "left"
        reply = a.ask(get(f"/v1/ping/{me}", method="POST"))
        assert (reply.status, reply.json["code"]) == (502, "unreachable")
