"""``p2pmesh run`` as a process: what it says, keeps, answers, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.cli.local import NodeClient
from tests.processes import P2PMESH, Process, eventually, run

Start = Callable[..., Process]
HEX_ID = re.compile(r"[0-9a-f]{64}")


@pytest.fixture
def start(home: Path, mesh: str) -> Iterator[Start]:
    """Starts ``run --json`` on loopback, where nothing of the machine's network matters."""
    with ExitStack() as stack:

        def start(*flags: str, env: dict[str, str] | None = None) -> Process:
            command = (*P2PMESH, "run", "--json", "--mesh", mesh, *LOCAL, *flags)
            return stack.enter_context(Process(command, home=home, env=env))

        yield start


LOCAL = ("--bind", "127.0.0.1", "--no-mdns")


def command(home: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    ended = run(*P2PMESH, *arguments, home=home, env=env)
    return ended.returncode, ended.stdout, ended.stderr


def refusal(home: Path, *flags: str, env: dict[str, str] | None = None) -> str:
    """What ``run`` says when it does not start; usage, one line."""
    status, out, err = command(home, "run", *LOCAL, *flags, env=env)
    lines = [line for line in err.splitlines() if line.startswith("p2pmesh: ")]
    assert (status, out, len(lines)) == (2, "", 1)
    assert "Traceback" not in err
    return lines[0].removeprefix("p2pmesh: ")


# --- what it says -------------------------------------------------------------------


def test_json_begins_with_ready_and_joined_and_goes_on_with_events(start: Start, mesh: str) -> None:
    first = start("--capability", "query")
    first.event("joined")
    second = start()
    ready = first.event("ready").value
    assert set(ready) == {
        "event", "instance_id", "node_id", "mesh", "address", "http", "pid",
    }  # fmt: skip
    assert ready["mesh"] == mesh
    assert HEX_ID.fullmatch(ready["node_id"])
    assert re.fullmatch(r"127\.0\.0\.1:\d+", ready["address"])
    assert ready["pid"] == first.pid
    assert first.event("joined")["contact"] is None
    assert second.event("joined")["contact"] == ready["node_id"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", second.event("joined")["life"])
    other = second.event("ready")["instance_id"]
    assert first.event("member_joined", instance_id=other)["kind"] == "node"
    assert [line["event"] for line in first.lines[:2]] == ["ready", "joined"]
    numbers = [line["seq"] for line in first.lines[1:]]
    assert numbers == sorted(numbers)
    with NodeClient(ready["http"]) as node:  # bound before it was told
        assert node.get("/v1/self")["node_id"] == ready["node_id"]


def test_for_people_it_says_who_and_where_it_is_and_what_it_keeps(home: Path, mesh: str) -> None:
    shell = f"{' '.join(P2PMESH)} run --no-mdns --mesh {mesh} {{}} | tee out | grep -m1 -q joined"
    run("bash", "-c", shell.format(""), home=home)
    shown = (home / "out").read_text()
    for line in (
        r"instance  \S+-[0-9a-f-]{36}",
        r"node      [0-9a-f]{64}",
        rf"mesh      {mesh}",
        r"uses      \S+ on \S+: .+",
        r"skips     127\.0\.0\.1 on lo: loopback",
        r"links     at \S+:\d+",
        r"http      at http://127\.0\.0\.1:\d+ \(everybody on this machine may ask\)",
        r"security  open: whoever reaches this network can join",
        r"keeps     not durable: give --name or --data-dir",
        r"\d\d:\d\d:\d\d\.\d{3}  joined            life .+, contact null",
    ):
        assert re.search(rf"^{line}$", shown, re.MULTILINE), line
    env = {"P2PMESH_KEY": command(home, "keygen")[1].strip()}
    run("bash", "-c", shell.format("--name ada --http off"), home=home, env=env)
    shown = (home / "out").read_text()
    for line in (
        r"http      off",
        r"security  keyed",
        rf"keeps     identity, epoch and messages in {home}/.local/state/p2pmesh/{mesh}/ada\.0",
    ):
        assert re.search(rf"^{line}$", shown, re.MULTILINE), line


def test_a_message_is_acknowledged_once_its_line_is_written(start: Start, home: Path) -> None:
    reader, sender = start("--name", "reader"), start("--name", "sender")
    url = sender.event("ready")["http"]
    reader.event("joined")
    sender.event("member_joined", name="reader")
    payload = {"big": "x" * 100_000, "n": [1, None]}
    (home / "payload").write_text(json.dumps(payload))
    ended = run(
        *P2PMESH, "send", "reader", "-", "--json", "--type", "greeting", "--url", url,
        home=home, stdin=json.dumps(payload),
    )  # fmt: skip
    sent = json.loads(ended.stdout)
    line = reader.event("message", message_id=sent["message_id"])
    assert line["payload"] == payload  # whole, though events elsewhere carry only small ones
    assert line["type"] == "greeting"
    assert line["source"] == sender.event("ready")["instance_id"]
    assert line["seq"] > 0
    sender.event("message_done", message_id=sent["message_id"])
    with NodeClient(reader.event("ready")["http"]) as node:
        reader_id = reader.event("ready")["instance_id"]
        assert node.get(f"/messages/{reader_id}")["messages"] == []


def test_a_stopped_reader_of_its_output_costs_no_message_and_stops_no_node(
    start: Start, home: Path, mesh: str
) -> None:
    sender = start("--name", "sender")
    sender.event("joined")
    environ = {**os.environ, "P2PMESH_MESH": mesh}
    with subprocess.Popen(
        [*P2PMESH, "run", "--json", "--name", "reader", *LOCAL],
        stdout=subprocess.PIPE, env=environ, cwd=home,
    ) as reader:  # fmt: skip
        assert reader.stdout
        ready = json.loads(reader.stdout.readline())
        sender.event("member_joined", name="reader")
        with NodeClient(sender.event("ready")["http"]) as node:
            sent = [_post(node, sender, ready["instance_id"], "x" * 20_000) for _ in range(20)]
            # 400 KB are there then, and a pipe takes 64: the rest stays unacknowledged.
            eventually(lambda: not any(_is_queued(node, each) for each in sent), "all arrived")
            sender.event("message_done", message_id=sent[0])
        with NodeClient(ready["http"]) as node:
            waiting = node.get(f"/messages/{ready['instance_id']}")["messages"]
            assert 10 < len(waiting) < 20
        seen = []
        for line in reader.stdout:
            event = json.loads(line)
            if event["event"] == "message":
                seen.append(event["message_id"])
            if len(seen) == 20:
                break
        assert seen == sent
        sender.event("message_done", message_id=sent[-1])
        reader.send_signal(signal.SIGTERM)
        reader.stdout.read()
    assert reader.returncode == 0


def _post(node: NodeClient, sender: Process, target: str, payload: object) -> str:
    body = {"target_instance": target, "message_type": "Notification", "payload": payload}
    source = sender.event("ready")["instance_id"]
    return str(node.post(f"/messages/send/{source}", body)["message_id"])


def _is_queued(node: NodeClient, message_id: str) -> bool:
    (recipient,) = node.get(f"/v1/messages/{message_id}")["recipients"]
    return bool(recipient["state"] == "queued")


# --- what it answers ------------------------------------------------------------------


def request(home: Path, url: str, *arguments: str) -> tuple[int, str, str]:
    return command(home, "request", *arguments, "--url", url)


def test_echo_answers_a_query_with_its_payload(start: Start, home: Path) -> None:
    start("--name", "echo", "--echo").event("joined")
    url = start().event("ready")["http"]
    payload = '{"text":"gr\\u00fc\\u00dfe","list":[1,2.5,null,true]}'
    assert request(home, url, "echo", payload) == (0, payload + "\n", "")
    assert request(home, url, "echo", "plain") == (0, "plain\n", "")


def test_without_an_answerer_the_asker_is_told(start: Start, home: Path) -> None:
    start("--name", "mute").event("joined")
    url = start().event("ready")["http"]
    status, out, err = request(home, url, "mute", "1")
    assert (status, out) == (1, "")
    assert "no_handler" in err
    status, _, err = request(home, url, "nobody", "1", "--timeout", "0.2")
    assert status == 1
    assert "nobody" in err
    assert err.count("\n") == 1


def test_exec_answers_with_what_the_command_prints_or_why_it_did_not(
    start: Start, home: Path
) -> None:
    script = home / "sum.sh"
    script.write_text('read -r line; [ "$line" = "[1,2]" ] && echo 3 || { echo no >&2; exit 7; }')
    start("--name", "sum", "--exec", f"sh {script}").event("joined")
    url = start().event("ready")["http"]
    assert request(home, url, "sum", "[1, 2]") == (0, "3\n", "")
    status, _, err = request(home, url, "sum", "[1, 3]")
    assert status == 1
    assert "exit status 7: no" in err


# --- what it keeps ----------------------------------------------------------------------


def test_a_name_keeps_the_identity_and_every_process_of_it_has_its_own(
    start: Start, home: Path, mesh: str
) -> None:
    first, second = start("--name", "ada"), start("--name", "ada")
    ids = [(p.event("ready")["node_id"], p.event("ready")["instance_id"]) for p in (first, second)]
    assert len(set(ids)) == 2
    lives = first.event("joined")["life"]
    directories = home / ".local/state/p2pmesh" / mesh
    assert {path.name for path in directories.iterdir()} == {"ada.0", "ada.1"}
    assert first.leave() == 0
    again = start("--name", "ada")
    assert (again.event("ready")["node_id"], again.event("ready")["instance_id"]) == ids[0]
    assert again.event("joined")["life"] != lives


def test_without_a_name_or_with_none_nothing_is_kept(start: Start, home: Path) -> None:
    start().event("joined")
    start("--name", "ada", "--data-dir", "none").event("joined")
    assert not (home / ".local").exists()


def test_a_directory_in_use_is_refused_with_the_process_that_uses_it(
    start: Start, home: Path
) -> None:
    holder = start("--data-dir", str(home / "data"))
    holder.event("ready")
    said = refusal(home, "--data-dir", str(home / "data"))
    assert f"{home}/data is in use by process {holder.pid}" in said


# --- what it refuses -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--port", "--http"])
def test_a_port_in_use_is_refused_with_the_process_that_uses_it(option: str, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value = f"127.0.0.1:{port}" if option == "--http" else f"{port}"
        said = refusal(home, option, value)
    assert f"{port}" in said
    assert f"{os.getpid()}" in said


def test_what_cannot_be_is_refused_in_one_line(home: Path) -> None:
    key = home / "key"
    key.write_text("pmk1_wrong")
    for flags, env, said in (
        (["--echo", "--exec", "cat"], {}, "--echo and --exec: both answer Queries"),
        (["--require-key"], {}, "--require-key: there is no key; give P2PMESH_KEY or --key-file"),
        (["--key-file", str(key)], {}, f"--key-file {str(key)!r}: "),
        ([], {"P2PMESH_KEY": "s3cret"}, "P2PMESH_KEY: a mesh key begins with 'pmk1_'"),
        (["--http", "0.0.0.0:0"], {}, "0.0.0.0"),
        (["--bind", "203.0.113.7"], {}, "203.0.113.7"),
        (["--data-dir", "/proc/none"], {}, "data directory /proc/none: "),
    ):
        text = refusal(home, *flags, env=env)
        assert said in text
        assert "s3cret" not in text


def test_keyed_nodes_meet_and_an_open_one_stays_outside(start: Start, home: Path) -> None:
    key = command(home, "keygen")[1].strip()
    (home / "mesh.key").write_text(f"# ours\n{key}\n")
    first = start(env={"P2PMESH_KEY": key})
    first.event("joined")
    second = start("--key-file", str(home / "mesh.key"))
    assert second.event("joined")["contact"] == first.event("ready")["node_id"]
    outsider = start()
    assert outsider.event("joined")["contact"] is None


# --- who may ask over HTTP ----------------------------------------------------------


def test_commands_of_the_same_user_need_no_token_and_others_do(start: Start, home: Path) -> None:
    tokens = home / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("read r-1\nwrite w-1\n")
    node = start("--echo", "--http", "0.0.0.0:0", "--http-token-file", str(tokens))
    node.event("joined")
    url, me = node.event("ready")["http"], node.event("ready")["instance_id"]
    # What the runtime file holds is of this run only, and for all there is.
    assert json.loads(command(home, "leader", "--json")[1])["leader_id"] == me
    assert command(home, "request", me, "hello") == (0, "hello\n", "")
    (file,) = (home / "runtime" / "p2pmesh").glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert not re.search("r-1|w-1", file.read_text())

    asking = ("request", me, "hello", "--url", url)
    status, out, err = command(home, *asking)
    assert (status, out) == (1, "")
    assert err == (
        f"p2pmesh: {url} asks for a token, and has not got one that it knows: "
        "give P2PMESH_HTTP_TOKEN or --http-token-file FILE\n"
    )
    assert command(home, *asking, "--http-token-file", str(tokens))[:2] == (0, "hello\n")
    assert command(home, *asking, env={"P2PMESH_HTTP_TOKEN": "w-1"})[:2] == (0, "hello\n")
    status, _, err = command(home, *asking, env={"P2PMESH_HTTP_TOKEN": "r-1"})
    assert status == 1
    assert "needs a token of scope write, and yours is of scope read" in err


def shows_a_message(watch: Process, client: NodeClient) -> bool:
    """What happened before it watched is not shown: send again and again."""
    message = {"target_instance": client.own_instance(), "message_type": "Query", "payload": 1}
    client.post("/messages/send/x", message)
    return any(line["event"] == "message" for line in watch.lines)


def test_watch_shows_what_happens_to_a_node_that_asks_for_a_token(start: Start, home: Path) -> None:
    node = start(env={"P2PMESH_HTTP_TOKEN": "s3cret"})
    url = node.event("ready")["http"]
    node.event("joined")
    for more, env in (((), {}), (("--url", url), {"P2PMESH_HTTP_TOKEN": "s3cret"})):
        watching = (*P2PMESH, "watch", "--json", *more)
        with Process(watching, home=home, env=env) as watch, NodeClient(url, "s3cret") as client:
            eventually(partial(shows_a_message, watch, client), "the message is not shown")
    assert "s3cret" not in node.errors


def test_a_bind_beyond_loopback_names_what_it_needs(start: Start, home: Path, mesh: str) -> None:
    said = refusal(home, "--http", "0.0.0.0:0")
    for fix in ("P2PMESH_HTTP_TOKEN", "--http-token-file FILE", "--http-open", "127.0.0.1:0"):
        assert fix in said
    said = refusal(home, "--http-open", env={"P2PMESH_HTTP_TOKEN": "s3cret"})
    assert "(--http-open) lets everybody in, and there is a token too" in said
    assert "s3cret" not in said
    assert "give P2PMESH_HTTP_TOKEN or" not in refusal(home, "--http", "example.net:80")
    opened = start("--http", "0.0.0.0:0", "--http-open", "--http-host", "box.example")
    url = str(opened.event("ready")["http"])
    assert url.startswith("http://127.0.0.1:")
    assert "HTTP is open beyond this machine" in opened.errors


def test_for_people_it_says_where_http_is_bound_and_who_may_ask(home: Path, mesh: str) -> None:
    start = f"{' '.join(P2PMESH)} run --no-mdns --mesh {mesh} --http 0.0.0.0:0"
    for flags, env, said in (
        ("", {"P2PMESH_HTTP_TOKEN": "s3cret"}, "who has a token may ask"),
        ("--http-open", {}, "open: whoever reaches it may ask"),
    ):
        shell = f"{start} {flags} | tee out | grep -m1 -q joined"
        run("bash", "-c", shell, home=home, env=env)
        shown = (home / "out").read_text()
        where = r"at http://127\.0\.0\.1:(\d+), bound to 0\.0\.0\.0:\1"
        assert re.search(rf"^http      {where} \({said}\)$", shown, re.MULTILINE)


# --- how it ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_makes_it_leave_and_the_others_see_it(
    number: signal.Signals, start: Start
) -> None:
    witness, leaver = start(), start()
    instance_id = leaver.event("ready")["instance_id"]
    witness.event("member_joined", instance_id=instance_id)
    leaver.signal(number)
    witness.event("member_left", instance_id=instance_id)
    assert leaver.wait() == 0
    assert leaver.errors.count("\n") <= 1  # the warning of an open mesh


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_it_as_well(number: signal.Signals, start: Start) -> None:
    process = start()
    process.event("ready")
    process.signal(number)
    assert process.wait() == 0


#: p2pmesh whose leaving never ends; with ``time`` it holds the loop, too.
NEVER_LEAVES = """
import asyncio, sys, time
from p2pmesh import Node
from p2pmesh.cli.main import main

async def leave(self):
    print('{{"event": "leaving"}}', flush=True)
    {wait}

Node.leave = leave
sys.exit(main())
"""


@pytest.mark.parametrize("wait", ["await asyncio.sleep(100)", "time.sleep(100)"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_a_second_signal_ends_it_at_once_whatever_holds_it_up(
    number: signal.Signals, status: int, wait: str, home: Path, mesh: str
) -> None:
    program = (sys.executable, "-c", NEVER_LEAVES.format(wait=wait))
    with Process([*program, "run", "--json", "--mesh", mesh, *LOCAL], home=home) as process:
        process.event("joined")
        process.signal(number)
        process.event("leaving")
        process.signal(number)
        asked_at = time.monotonic()
        assert process.wait() == status
        sys.stdout.write(f"the second signal ended it after {time.monotonic() - asked_at:.2f} s\n")


def test_when_nobody_reads_its_output_it_leaves(start: Start, home: Path, mesh: str) -> None:
    witness = start()
    witness.event("joined")
    environ = {**os.environ, "P2PMESH_MESH": mesh}
    with subprocess.Popen(
        [*P2PMESH, "run", "--json", *LOCAL],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=home,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        instance_id = json.loads(process.stdout.readline())["instance_id"]
        witness.event("member_joined", instance_id=instance_id)
        process.stdout.close()
        witness.event("member_left", instance_id=instance_id)
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()


def test_it_runs_on_uvloop_where_that_is_installed(home: Path) -> None:
    program = "from p2pmesh.cli.run import _loop_factory; print(_loop_factory().__module__)"
    assert run(sys.executable, "-c", program, home=home).stdout == "uvloop\n"
    without = f"import sys; sys.modules['uvloop'] = None; {program}".replace(".__module__", "")
    assert run(sys.executable, "-c", without, home=home).stdout == "None\n"


# --- the one-shot commands against a real node ----------------------------------------------


def test_one_shot_commands_find_the_node_of_this_machine(start: Start, home: Path) -> None:
    first = start("--name", "ada")
    first.event("joined")
    second = start("--name", "bob")
    second.event("joined")
    first.event("member_joined", name="bob")
    first.event("leader_changed")
    ids = [process.event("ready")["instance_id"] for process in (first, second)]

    def answer(*arguments: str) -> Any:
        status, out, err = command(home, *arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    assert [member["instance_id"] for member in answer("members")["members"]] == ids
    assert answer("leader")["leader_id"] == ids[0]
    sent = answer("send", "bob", "hello")
    assert sent["delivered_to"] == [ids[1]]
    assert sent["state"] in ("stored", "done")
    assert second.event("message", payload="hello")["source"] == ids[0]
    told = answer("broadcast", "all", "--type", "TaskResult")
    assert told["delivered_to"] == [ids[1]]
    assert second.event("message", payload="all")["type"] == "TaskResult"
    table = command(home, "members")[1]
    assert re.search(rf"^ada +{ids[0]} +alive .*leader$", table, re.MULTILINE)
    status, _, err = command(home, "send", "carl", "x")
    assert status == 1
    assert "'carl'" in err


def test_a_stopped_node_is_passed_over_and_watch_goes_on_at_another(
    start: Start, home: Path
) -> None:
    first = start()
    first.event("joined")
    second = start()
    second.event("joined")
    name = second.event("ready")["instance_id"]
    with Process([*P2PMESH, "watch", "--json"], home=home) as watcher:
        eventually(lambda: shown(watcher, home, name), "the watch shows something of the first")
        first.signal(signal.SIGSTOP)
        try:
            status, out, err = command(home, "leader")
            assert status == 0, err
            assert out
            assert f"(process {first.pid})" in err
        finally:
            first.kill()
        before = len(watcher.lines)
        eventually(
            lambda: shown(watcher, home, name) and len(watcher.lines) > before,
            "the watch goes on at the second",
        )
        assert "is not shown" in watcher.errors
        assert second.leave() == 0
        assert watcher.wait() == 1


def shown(watcher: Process, home: Path, name: str) -> bool:
    command(home, "send", name, "note")
    return bool(watcher.lines)


def test_watch_follows_a_real_node_to_its_end(start: Start, home: Path) -> None:
    node = start()
    node.event("joined")
    with Process([*P2PMESH, "watch", "--json"], home=home) as watcher:

        def sees_what_happens() -> bool:
            command(home, "send", node.event("ready")["instance_id"], "note")
            return bool(watcher.lines)

        eventually(sees_what_happens, "the watch shows something")
        line = watcher.line(lambda event: event["event"].startswith("message"))
        assert node.event(line["event"], message_id=line["message_id"]).value == line.value
        assert node.leave() == 0
        assert watcher.wait() == 1
        assert watcher.errors.endswith(" ended\n")
