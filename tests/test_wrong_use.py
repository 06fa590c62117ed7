"""Wrong use is an error that names the thing and the fix, and costs no message.

Each row is a sentence and an attempt; whatever it is, a message that was accepted
before it is delivered after it.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from p2pmesh import (
    AgentMessage,
    AmbiguousTarget,
    ConfigError,
    Delivery,
    MessageTooLarge,
    Node,
    NotAuthoritative,
    NotStarted,
    UnknownTarget,
)
from p2pmesh.loops import ask

HANG = 20.0


class World(NamedTuple):
    """Two nodes that met; b begins to handle a Job when it may."""

    a: Node
    b: Node
    may: asyncio.Event
    got: list[Any]


class Row(NamedTuple):
    attempt: Callable[[World], Any]
    error: type[Exception]
    says: str  # a pattern


@pytest.fixture
async def world(mesh: str) -> AsyncIterator[World]:
    a, b = (
        Node(name, mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http="127.0.0.1:0")
        for name in ("a", "b")
    )
    may, got = asyncio.Event(), list[Any]()

    @b.on("Job")
    async def work(message: AgentMessage) -> None:
        await may.wait()
        got.append(message.payload)

    async with a, b:
        await a.wait_for(name="b", timeout=HANG)
        yield World(a, b, may, got)


async def each_is_refused(world: World, rows: Mapping[str, Row]) -> None:
    """At once or when it is awaited; and what was accepted before is delivered."""
    for sentence, row in rows.items():
        before = await world.a.send("b", sentence, type="Job")
        error = await raised_by(row.attempt, world)
        assert isinstance(error, row.error), f"{sentence}: {error!r}"
        assert re.search(row.says, str(error)), f"{sentence}: {error}"
        world.may.set()
        await before.done(HANG)
        world.may.clear()
    assert world.got == list(rows)


async def raised_by(attempt: Callable[[World], Any], world: World) -> Exception | None:
    try:
        async with asyncio.timeout(HANG):
            outcome = attempt(world)
            if isinstance(outcome, Awaitable):
                await outcome
    except Exception as error:
        return error
    return None


# --- arguments ----------------------------------------------------------------------------

HUGE = b"\0" * (17 << 20)
CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


def is_no_time(name: str, *, zero: bool = True) -> Mapping[str, Any]:
    """Values that are no seconds, by what they are called."""
    values: dict[str, Any] = {
        "negative": -1,
        "NaN": math.nan,
        "infinite": math.inf,
        "text": "60",
        "a bool": True,
    }
    if zero:
        values["zero"] = 0
    return {f"{name} is {what}": value for what, value in values.items()}


WRONG_ARGUMENTS: Mapping[str, Row] = {
    # targets
    "nobody has this id or name": Row(
        lambda w: w.a.send("nobody", 1),
        UnknownTarget,
        "no instance 'nobody' is known in this mesh; if .* node.wait_for",
    ),
    "a target is nearly somebody's name": Row(
        lambda w: w.a.send("bb", 1),
        UnknownTarget,
        "'bb' is known .*did you mean 'b'.* If it is still to come, wait",
    ),
    "a target is None": Row(lambda w: w.a.send(None, 1), ConfigError, "target None: give an inst"),
    "a target is bytes": Row(lambda w: w.a.request(b"b", 1), ConfigError, "target b'b': give an"),
    "a target is a node": Row(lambda w: w.a.send(w.b, 1), ConfigError, "target <p2pmesh.*a member"),
    "a target is empty": Row(lambda w: w.a.request("", 1), ConfigError, "target '': give the id"),
    # payloads
    "a payload is an object": Row(
        lambda w: w.a.send("b", object()),
        TypeError,
        "payload is of type object, which cannot be carried",
    ),
    "a payload holds a set": Row(
        lambda w: w.a.send("b", {"x": [{1}]}),
        TypeError,
        r"payload\['x'\]\[0\] is of type set, which cann",
    ),
    "a payload holds itself": Row(
        lambda w: w.a.send("b", CIRCLE), ValueError, "payload is nested too deeply: 124 levels"
    ),
    "a payload is asked that cannot be carried": Row(
        lambda w: w.a.request("b", {1, 2}),
        TypeError,
        "payload is of type set, which cannot be carried",
    ),
    "a payload is 17 MiB": Row(
        lambda w: w.a.send("b", HUGE), MessageTooLarge, "17,825,797 bytes .* 16,777,216 .*in parts"
    ),
    "a question is 17 MiB": Row(
        lambda w: w.a.request("b", HUGE), MessageTooLarge, "17,825,797 bytes .*send it in parts"
    ),
    "a broadcast is 3 MiB": Row(
        lambda w: w.a.broadcast("x" * (3 << 20)), MessageTooLarge, "2,097,152 reach everyone: send"
    ),
    "a broadcast is no JSON": Row(
        lambda w: w.a.broadcast([1j]), TypeError, r"payload\[0\] is of type complex, which"
    ),
    # types and ids
    "a type is None": Row(lambda w: w.a.send("b", 1, type=None), ConfigError, "type None: not a"),
    "a type is long": Row(
        lambda w: w.a.broadcast(1, type="x" * 129), ConfigError, "type 'x+'?: at most 128 bytes"
    ),
    "a correlation id is a number": Row(
        lambda w: w.a.send("b", 1, correlation_id=3), ConfigError, "correlation_id 3: not a text"
    ),
    # times
    **{
        sentence: Row(lambda w, v=v: w.a.send("b", 1, ttl=v), ConfigError, "ttl .*: give seconds")
        for sentence, v in is_no_time("a time to live").items()
    },
    **{
        sentence: Row(lambda w, v=v: w.a.broadcast(1, ttl=v), ConfigError, "ttl .*: give seconds")
        for sentence, v in is_no_time("a broadcast's time to live").items()
    },
    "a time to live is longer than anything is remembered": Row(
        lambda w: w.a.send("b", 1, ttl=31 * 86_400), ConfigError, "ttl 2678400: .* 2592000 at most"
    ),
    **{
        sentence: Row(
            lambda w, v=v: w.a.request("b", 1, timeout=v), ConfigError, "timeout .*: give seconds"
        )
        for sentence, v in is_no_time("a timeout").items()
    },
    **{
        sentence: Row(
            lambda w, v=v: w.a.wait_for(name="z", timeout=v),
            ConfigError,
            "timeout .*: give seconds",
        )
        for sentence, v in is_no_time("a wait", zero=False).items()
    },
    **{
        sentence: Row(
            lambda w, v=v: w.a.send_nowait("b", 1).done(v), ConfigError, "timeout .*: give seconds"
        )
        for sentence, v in is_no_time("a wait for a delivery", zero=False).items()
    },
    # waiting for somebody
    "nobody in particular is waited for": Row(
        lambda w: w.a.wait_for(), ConfigError, "give a name, an id, a capability or a count"
    ),
    "a name that is waited for is a number": Row(
        lambda w: w.a.wait_for(name=3), ConfigError, "name 3: give text, not int"
    ),
    "nobody is counted": Row(lambda w: w.a.wait_for(count=0), ConfigError, "count 0: give at leas"),
    "a count is text": Row(
        lambda w: w.a.wait_for(count="3"), ConfigError, "count '3': give a whol"
    ),
    "a count is half": Row(
        lambda w: w.a.wait_for(count=1.5), ConfigError, "count 1.5: give a whol"
    ),
    "a count is a bool": Row(lambda w: w.a.wait_for(count=True), ConfigError, "count True: give a"),
    # handlers and readers
    "a type gets a second handler": Row(
        lambda w: w.b.on("Job")(print), ConfigError, "a handler for 'Job' already: one handles a"
    ),
    "a type gets a second reader": Row(
        lambda w: [w.a.messages("Twice"), w.a.messages("Twice")], ConfigError, "one reads a type"
    ),
    "a handler's type is a known one but for its case": Row(
        lambda w: w.b.on("query")(print), ConfigError, "type 'query': .*did you mean 'Query'"
    ),
    "a reader's type is a known one but for its case": Row(
        lambda w: w.b.messages("notification"), ConfigError, "did you mean 'Notification'"
    ),
    "three are waited for and two are here": Row(
        lambda w: w.a.wait_for(count=3, timeout=0.05), TimeoutError, "^not 3 within 0.05 s; here"
    ),
    "a port is text": Row(
        lambda w: Node("c", port="8078"), ConfigError, "port '8078': give a whole number, not str"
    ),
    "a handler is registered without parentheses": Row(
        lambda w: w.a.on(print), ConfigError, r"write @node.on\(\) above it"
    ),
    "a handled type is a number": Row(
        lambda w: w.a.on(3)(print), ConfigError, "type 3: give text, not int"
    ),
    "a read type is a list": Row(
        lambda w: w.a.messages(["Job"]), ConfigError, r"type \['Job'\]: give text, not list"
    ),
    "a handled type is longer than any": Row(
        lambda w: w.a.on("x" * 129)(print), ConfigError, "a message type is at most 128 bytes"
    ),
    "a handler takes nothing": Row(
        lambda w: w.a.on("X")(lambda: 1), ConfigError, r"takes \(\): it is called with one argument"
    ),
    "a handler takes two": Row(
        lambda w: w.a.on("X")(lambda x, y: 1), ConfigError, r"takes \(x, y\): .* the message"
    ),
    "a handler is no function": Row(
        lambda w: w.a.on("X")(3), ConfigError, "3 is no function: give one that takes a message"
    ),
    "a handler runs none at once": Row(
        lambda w: w.a.on("X", concurrency=0)(print), ConfigError, "concurrency 0: give at least 1"
    ),
    "a handler runs two and a half at once": Row(
        lambda w: w.a.on("X", concurrency=2.5)(print), ConfigError, "concurrency 2.5: give a whole"
    ),
    "a callback of leadership is no function": Row(
        lambda w: w.a.leadership.on_elected(3), ConfigError, "3 is no function: .* a token"
    ),
    "a callback of leadership takes nothing": Row(
        lambda w: w.a.leadership.on_demoted(lambda: 1), ConfigError, "one argument, the reason"
    ),
    # another life
    "a node is entered twice": Row(
        lambda w: w.a.__aenter__(), NotStarted, "a node runs once: make a new one"
    ),
    "a node is started in two loops": Row(
        lambda w: asyncio.to_thread(lambda: asyncio.run(w.a.start())), NotStarted, "runs once"
    ),
}


async def test_wrong_arguments_are_named_with_the_fix(world: World) -> None:
    await each_is_refused(world, WRONG_ARGUMENTS)


async def test_a_name_of_two_is_refused_with_the_ids_of_both(world: World, mesh: str) -> None:
    twin = Node("b", mesh=mesh, mdns=False, bind=["127.0.0.1"], port=0, http=None)
    before = await world.a.send("b", "before", type="Job")
    async with twin:
        await world.a.wait_for(id=twin.instance_id, timeout=HANG)
        for attempt in (world.a.send, world.a.request):
            with pytest.raises(AmbiguousTarget, match=r"of 2 instances: .* address one by its id"):
                await attempt("b", 1)
    world.may.set()
    await before.done(HANG)


SETTINGS: Mapping[str, tuple[dict[str, Any], str]] = {
    "mdns is text": ({"mdns": "no"}, "mdns 'no': give True or False"),
    "agent is text": ({"agent": "me"}, "agent 'me': give True or False"),
    "candidate is a number": ({"candidate": 0}, "candidate 0: give True or False"),
    "http_open is text": ({"http_open": "yes"}, "http_open 'yes': give True or False"),
    "quorum is text": ({"quorum": "2"}, "quorum '2': give a whole number"),
    "quorum is more than any mesh": ({"quorum": 10**30}, "quorum: give 4096 at most"),
    "quorum is a bool": ({"quorum": True}, "quorum True: give a whole number"),
    "port is no port": ({"port": 8.5}, "port 8.5: give a whole number"),
    "data_dir is a number": ({"data_dir": 3}, "data_dir 3: give a path, not int"),
    "data_dir is empty": ({"data_dir": ""}, "data_dir '': give a path"),
    "data_dir is no path": ({"data_dir": "a\0b"}, r"data_dir .*: give a path"),
    "a key is a number, which is not quoted": ({"key": 4711}, "key: give text or bytes.* not int$"),
    "one of the keys is a number": ({"key": [4711]}, "key: give text or bytes, not int$"),
    "a preset is a list": ({"preset": ["lan"]}, r"preset \['lan'\]: give text"),
    "capabilities are a number": ({"capabilities": 3}, "capabilities 3: give a list of texts"),
    "capabilities are bytes": ({"capabilities": b"x"}, "capabilities b'x': give a list of texts"),
    "a capability is a number": ({"capabilities": [3]}, "capabilities 3: give text, not int"),
    "peers are None": ({"peers": None}, "peers None: give a list of texts"),
    "an http_token is a number": (
        {"http_token": 4711},
        "http_token: give text, or .*text$",
    ),
    "a mesh is None": ({"mesh": None}, "mesh None: give text"),
}


@pytest.mark.parametrize(("options", "says"), SETTINGS.values(), ids=SETTINGS.keys())
def test_wrong_settings_are_refused_where_the_node_is_made(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Node("x", **options)


def test_a_data_dir_may_be_in_the_home(home: Path) -> None:
    assert Node("x", data_dir="~/kept")._config.data_dir == home / "kept"


# --- before and after -----------------------------------------------------------------------

CALLS: Mapping[str, Callable[[Node], Any]] = {
    "send": lambda n: n.send("b", 1),
    "send_nowait": lambda n: n.send_nowait("b", 1),
    "request": lambda n: n.request("b", 1),
    "stream": lambda n: anext(n.stream("b", 1)),
    "broadcast": lambda n: n.broadcast(1),
    "members": lambda n: n.members(),
    "leader": lambda n: n.leader,
    "token": lambda n: n.leadership.token(),
    "wait_for": lambda n: n.wait_for(name="b"),
}


async def test_calls_before_the_start_and_after_the_end_say_so(world: World) -> None:
    fresh = Node("c")
    world.may.set()
    await (await world.a.send("b", "before", type="Job")).done(HANG)
    await world.a.leave()
    for what, call in CALLS.items():
        for node, says in ((fresh, "enter the node first: 'async with"), (world.a, "make a")):
            error = await raised_by(lambda _, node=node, call=call: call(node), world)
            assert isinstance(error, NotStarted), f"{what}: {error!r}"
            assert says in str(error), what
    assert world.got == ["before"]


async def test_iterators_of_a_node_that_left_end_at_once(world: World) -> None:
    await world.a.leave()
    async with asyncio.timeout(HANG):
        assert [event async for event in world.a.events()] == []
        assert [message async for message in world.a.messages("Job")] == []


# --- what is allowed ------------------------------------------------------------------------


async def test_a_delivery_may_be_awaited_by_many_and_cancelled_by_one(world: World) -> None:
    delivery = await world.a.send("b", 1, type="Job")
    waits = [asyncio.ensure_future(delivery.done(HANG)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    world.may.set()
    assert isinstance((await asyncio.gather(*waits, return_exceptions=True))[0], BaseException)
    await delivery.done(HANG)
    assert world.got == [1]


async def test_a_message_acknowledged_twice_is_done_once(world: World) -> None:
    delivery = await world.b.send("a", 1, type="Read")
    message = await asyncio.wait_for(anext(world.a.messages("Read")), HANG)
    await message.ack()
    await message.ack()
    await delivery.done(HANG)


async def test_a_handler_registered_after_the_start_takes_what_waited(world: World) -> None:
    delivery = await world.a.send("b", "early", type="Late")
    got: list[Any] = []

    @world.b.on("Late")
    def take(message: AgentMessage) -> None:
        got.append(message.payload)

    await delivery.done(HANG)
    assert got == ["early"]


async def test_a_type_is_handled_or_read_and_not_both(world: World) -> None:
    with pytest.raises(ConfigError, match="'Job' have a handler: a reader would get none"):
        world.b.messages("Job")
    reader = world.b.messages("Other")
    with pytest.raises(ConfigError, match="'Other' are being read: handle a type, or read it"):
        world.b.on("Other")(print)
    await reader.aclose()
    world.b.on("Other")(print)


async def test_after_a_fork_the_child_has_no_node_and_the_parent_delivers(world: World) -> None:
    before = await world.a.send("b", "before", type="Job")
    # In the child, the code of what was not refused; 0: all was.
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            calls = (CALLS["send_nowait"], CALLS["members"], CALLS["token"], lambda n: n.events())
            for number, call in enumerate(calls):
                try:
                    call(world.a)
                except NotStarted as error:
                    code = 0 if "forked" in str(error) else 50 + number
                else:
                    code = 100 + number
                if code:
                    break
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    world.may.set()
    await before.done(HANG)
    assert world.got == ["before"]


# --- over HTTP ------------------------------------------------------------------------------

GOOD = {"target_instance": "b", "message_type": {"Custom": "Job"}, "payload": 1}
JSON = {"Content-Type": "application/json"}
OVER_HTTP: Mapping[str, tuple[str, str, Any, int, str]] = {
    "nobody has this id": ("POST", "/messages/send/a", GOOD | {"target_instance": "z"}, 400, "'z'"),
    "nobody has this id to ask": (
        "POST", "/v1/request/a", GOOD | {"target_instance": "z"}, 404, "'z'"
    ),
    "a target is a number": (
        "POST", "/messages/send/a", GOOD | {"target_instance": 3}, 422, "target_instance"
    ),
    "a type is unknown": ("POST", "/messages/send/a", GOOD | {"message_type": "Jib"}, 422, "type"),
    "a payload is missing": ("POST", "/messages/send/a", {"message_type": "Query"}, 422, "payload"),
    "a timeout is zero": ("POST", "/v1/request/a", GOOD | {"timeout": 0}, 422, "timeout"),
    "a timeout is negative": ("POST", "/v1/request/a", GOOD | {"timeout": -1}, 422, "timeout"),
    "a timeout is a bool": ("POST", "/v1/request/a", GOOD | {"timeout": True}, 422, "timeout"),
    "a body is 3 MiB": (
        "POST", "/messages/send/a", GOOD | {"payload": "x" * (3 << 20)}, 413, "2,?097,?152"
    ),
    "a member is unknown": ("GET", "/v1/members/z", None, 404, "z"),
    "a path is unknown": ("GET", "/v2/members", None, 404, "no such path"),
}  # fmt: skip


async def test_over_http_the_same_is_a_status_and_a_line_that_says_why(world: World) -> None:
    async with aiohttp.ClientSession(world.a.http_url) as http:
        for sentence, (method, path, body, status, says) in OVER_HTTP.items():
            if body is not None and body.get("target_instance") == "b":
                body = body | {"target_instance": world.b.instance_id}
            before = await world.a.send("b", sentence, type="Job")
            data = None if body is None else io.BytesIO(json.dumps(body).encode())
            async with http.request(method, path, data=data, headers=JSON) as answer:
                text = await answer.text()
                assert (answer.status, bool(re.search(says, text))) == (status, True), (
                    f"{sentence}: {answer.status} {text}"
                )
            world.may.set()
            await before.done(HANG)
            world.may.clear()
    assert world.got == list(OVER_HTTP)


# --- the command ----------------------------------------------------------------------------

COMMANDS: Mapping[str, tuple[list[str], int, str]] = {
    "a target is missing": (["send"], 2, "TARGET"),
    "a timeout is zero": (["request", "b", "1", "--timeout", "0"], 2, "--timeout .*above 0"),
    "a timeout is text": (["request", "b", "1", "--timeout", "soon"], 2, "--timeout .*seconds"),
    "a timeout is not a number": (
        ["request", "b", "1", "--timeout", "nan"],
        2,
        "--timeout .*secon",
    ),
    "a timeout is infinite": (["request", "b", "1", "--timeout", "inf"], 2, "--timeout .*seconds"),
    "a command is unknown": (["sned", "b", "1"], 2, "sned"),
    "an option is unknown": (["send", "b", "1", "--ttl", "5"], 2, "--ttl"),
    "nobody has this name": (["send", "nobody", "1"], 1, "nobody"),
}


async def test_in_the_command_the_same_is_one_line_and_an_exit_code(world: World) -> None:
    for sentence, (arguments, code, says) in COMMANDS.items():
        before = await world.a.send("b", sentence, type="Job")
        command = (sys.executable, "-m", "p2pmesh", *arguments)
        url = ("--url", str(world.a.http_url))
        process = await asyncio.create_subprocess_exec(
            *command, *(() if arguments[0] == "sned" else url),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(HANG):
            out, err = await process.communicate()
        assert (process.returncode, out) == (code, b""), f"{sentence}: {err!r}"
        assert re.search(says, err.decode()), f"{sentence}: {err!r}"
        assert b"Traceback" not in err
        world.may.set()
        await before.done(HANG)
        world.may.clear()
    assert world.got == list(COMMANDS)


# --- threads and loops --------------------------------------------------------------------


async def in_a_loop(question: Callable[[], Any]) -> Any:
    return question()


IN_A_THREAD: Mapping[str, Callable[[World], Any]] = {
    "a thread sends without waiting": lambda w: w.a.send_nowait("b", 1),
    "a thread reads events": lambda w: w.a.events(),
    "a thread reads messages": lambda w: w.a.messages(),
    "another loop lists members": lambda w: asyncio.run(in_a_loop(w.a.members)),
    "another loop sends": lambda w: asyncio.run(w.a.send("b", 1)),
    "another loop asks": lambda w: asyncio.run(w.a.request("b", 1)),
    "another loop broadcasts": lambda w: asyncio.run(w.a.broadcast(1)),
    "another loop waits for somebody": lambda w: asyncio.run(w.a.wait_for(name="b")),
    "another loop waits for the start": lambda w: asyncio.run(w.a.joined()),
    "another loop serves": lambda w: asyncio.run(w.a.serve_forever()),
    "another loop makes it leave": lambda w: asyncio.run(w.a.leave()),
}


async def test_threads_and_other_loops_are_sent_to_the_loop_of_the_node(world: World) -> None:
    says = "this thread or event loop: .*run_coroutine_threadsafe"

    def row(attempt: Callable[[World], Any]) -> Row:
        return Row(lambda w: asyncio.to_thread(attempt, w), NotStarted, says)

    await each_is_refused(world, {name: row(attempt) for name, attempt in IN_A_THREAD.items()})


async def test_a_delivery_is_awaited_in_the_loop_of_its_node(world: World) -> None:
    delivery = await world.a.send("b", 1, type="Job")
    with pytest.raises(NotStarted, match="call it where it was entered"):
        await asyncio.to_thread(lambda: asyncio.run(delivery.done(HANG)))
    world.may.set()
    await delivery.done(HANG)


async def test_a_thread_may_have_the_loop_send_and_look_at_what_is_fixed(world: World) -> None:
    loop = asyncio.get_running_loop()

    def work() -> str:
        sending = asyncio.run_coroutine_threadsafe(world.a.send("b", "threaded", type="Job"), loop)
        assert isinstance(sending.result(HANG), Delivery)
        return world.a.instance_id

    assert (await asyncio.to_thread(work)).startswith("a-")
    world.may.set()
    await (await world.a.send("b", "after", type="Job")).done(HANG)
    assert world.got == ["threaded", "after"]


async def test_a_handler_in_a_thread_may_ask_who_is_here_and_who_leads(world: World) -> None:
    @world.a.on("Query")
    def who(_: AgentMessage) -> Any:
        try:
            token = world.a.leadership.token().epoch
        except NotAuthoritative:
            token = None
        assert world.a.leader is not None
        return [world.a.leader.instance_id, token, len(world.a.members())]

    assert world.a.leader is not None
    leads = world.a.leader.instance_id == world.a.instance_id
    answer = await world.b.request(world.a.instance_id, None, timeout=HANG)
    epoch = world.a.leadership.epoch if leads else None
    assert answer.payload == [world.a.leader.instance_id, epoch, len(world.a.members())]


def test_a_thread_that_asks_is_told_when_the_loop_is_over() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert ask(loop, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        ask(loop, lambda: 1 / 0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(HANG)
    with pytest.raises(NotStarted, match="call it where it was entered"):
        ask(loop, lambda: 7)
    loop.close()
    with pytest.raises(NotStarted, match="call it where it was entered"):
        ask(loop, lambda: 7)


async def test_what_has_left_may_leave_again_in_another_loop(world: World) -> None:
    await world.a.leave()
    assert await asyncio.to_thread(lambda: asyncio.run(world.a.leave())) == ()
