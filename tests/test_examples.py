"""The examples, run as they stand, but in a mesh of this test's own."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import P2PMESH, Process, environment, eventually
from tests.processes import run as run_command

EXAMPLES = Path(__file__).parents[1] / "examples"
HANG = 30.0

#: Nothing of an example is changed: only where its nodes look for others.
IN_A_MESH_OF_ITS_OWN = """
import runpy, sys
import p2pmesh
_, mesh, *sys.argv = sys.argv
own = {"mesh": mesh, "mdns": False, "bind": ["127.0.0.1"], "port": 0, "http": None}
Node = p2pmesh.Node
p2pmesh.Node = lambda *args, **given: Node(*args, **given | own)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Example:
    def __init__(self, mesh: str, home: Path, name: str, *arguments: str) -> None:
        example = (str(EXAMPLES / name), *arguments)
        command = (sys.executable, "-c", IN_A_MESH_OF_ITS_OWN, mesh, *example)
        self.process = subprocess.Popen(
            command,
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Example:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(mesh: str, home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with ExitStack() as stack:
        yield lambda *example: stack.enter_context(Example(mesh, home, *example)).process


@pytest.mark.parametrize("order", [["worker.py", "ask.py"], ["ask.py", "worker.py"]])
def test_the_asker_gets_its_answer_whoever_starts_first(
    run: Callable[..., subprocess.Popen[str]], order: list[str]
) -> None:
    started = {name: run(name) for name in order}
    said = "asking the worker, and waiting for it if need be\n"
    answer, errors = started["ask.py"].communicate(timeout=HANG)
    assert (answer, started["ask.py"].returncode) == (f"{said}HELLO\n", 0), errors
    started["worker.py"].send_signal(signal.SIGINT)
    started["worker.py"].communicate(timeout=HANG)


def test_parts_are_printed_as_they_come(run: Callable[..., subprocess.Popen[str]]) -> None:
    process = run("stream.py")
    assert process.stdout is not None
    assert process.stdout.read(4) == "Once"
    rest, errors = process.communicate(timeout=HANG)
    assert (rest.strip(), process.returncode) == ("upon a time there was a mesh.", 0), errors


def test_a_leader_waits_for_a_ledger_that_another_holds(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """One that was stopped within its transaction, say."""
    ledger = tmp_path / "ledger.db"
    with closing(sqlite3.connect(ledger, isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        process = run("fenced.py", str(ledger))
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout)
        assert next(events)["event"] == "joined"
        assert next(events) == {"event": "waits", "why": "database is locked"}
        held.execute("ROLLBACK")
    assert next(event for event in events if event["event"] != "waits")["event"] == "wrote"


@pytest.mark.parametrize(("name", "most"), [("worker.py", 9), ("ask.py", 7)])
def test_an_example_is_short_and_configures_nothing(name: str, most: int) -> None:
    text = (EXAMPLES / name).read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= most
    assert not {"peers", "bind", "key", "port", "127.0.0.1"} & set(text.replace("=", " ").split())


# --- agents without a node -------------------------------------------------------------


@pytest.fixture
def token() -> str | None:
    """What the node asks for; a test may say otherwise."""
    return None


@pytest.fixture
def node(mesh: str, home: Path, token: str | None) -> Iterator[Process]:
    """A node on this machine: the only one, so that who looks for one finds it."""
    flags = ("--mesh", mesh, "--no-mdns", "--bind", "127.0.0.1", "--port", "0")
    command = (*P2PMESH, "run", "--json", *flags, "--http", "127.0.0.1:0")
    with Process(command, home=home, env=shown(token)) as process:
        process.event("joined")
        yield process


def shown(token: str | None) -> dict[str, str]:
    return {} if token is None else {"P2PMESH_HTTP_TOKEN": token}


@pytest.fixture
def guest(node: Process, home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an example that takes part through that node."""
    with ExitStack() as stack:

        def start(*command: str, token: str | None = None) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command, env=environment(home) | shown(token), cwd=EXAMPLES, text=True,
                start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def url(node: Process) -> str:
    return str(node.event("ready")["http"])


def lists(home: Path, name: str) -> bool:
    members = json.loads(run_command(*P2PMESH, "members", "--json", home=home).stdout)["members"]
    return name in {each["instance_id"] for each in members if each["state"] == "alive"}


def call(node: Process, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url(node) + path, data, headers)
    with urllib.request.urlopen(request, timeout=HANG) as answer:
        return json.load(answer)


def register(node: Process, name: str) -> None:
    nothing: dict[str, Any] = {"capabilities": [], "agent_profiles": []}
    call(node, "/registry/register", instance_id=name, hostname="", port=0, **nothing)


def send(node: Process, source: str, target: str, message_type: str, payload: Any) -> None:
    body = {"target_instance": target, "message_type": message_type, "payload": payload}
    call(node, f"/messages/send/{source}", **body)


ANSWERING = {"guest.py": "ada", "guest_sync.py": "bob", "guest_requests.py": "eve"}


@pytest.mark.parametrize("example", ANSWERING)
def test_a_guest_goes_on_after_what_it_cannot_or_must_not_answer(
    node: Process, home: Path, guest: Callable[..., subprocess.Popen[str]], example: str
) -> None:
    name = ANSWERING[example]
    guest(sys.executable, example, *((name, url(node)) if name == "eve" else ()))
    eventually(lambda: lists(home, name), f"{name} is listed")
    register(node, "other")
    send(node, "a-stranger", name, "Query", "nobody hears the answer")
    send(node, "other", name, "Response", "an answer to nothing")
    send(node, "other", name, "Query", {"no": "string"})
    answer = run_command(*P2PMESH, "request", name, '"hello"', home=home)
    assert (answer.stdout, answer.returncode) == ("HELLO\n", 0), answer.stderr
    payloads = [each["payload"] for each in call(node, "/messages/other")["messages"]]
    assert payloads == [str({"no": "string"}).upper()]
    eventually(lambda: not call(node, f"/messages/{name}")["messages"], "all is acknowledged")


@pytest.mark.parametrize("example", ANSWERING)
def test_a_guest_answers_what_it_is_asked_through_any_node(
    node: Process, home: Path, guest: Callable[..., subprocess.Popen[str]], example: str
) -> None:
    name = ANSWERING[example]
    arguments = (name, url(node)) if name == "eve" else ()
    process = guest(sys.executable, example, *arguments)
    eventually(lambda: lists(home, name), f"{name} is listed")
    answer = run_command(*P2PMESH, "request", name, '"hello"', home=home)
    assert (answer.stdout, answer.returncode) == ("HELLO\n", 0), answer.stderr
    process.send_signal(signal.SIGINT)
    process.wait(HANG)
    if name != "eve":
        assert not lists(home, name), "it said goodbye"


@pytest.mark.skipif(shutil.which("curl") is None, reason="this example needs curl")
def test_a_guest_may_be_a_shell_script(
    node: Process, home: Path, guest: Callable[..., subprocess.Popen[str]]
) -> None:
    process = guest("./guest.sh", "shell", url(node))
    assert process.stdout is not None
    eventually(lambda: lists(home, "shell"), "it is listed")
    for payload in ("one", "two"):
        sent = run_command(*P2PMESH, "send", "shell", payload, "--json", home=home)
        message_id = json.loads(sent.stdout)["message_id"]
        (message,) = json.loads(process.stdout.readline())["messages"]
        assert (message["payload"], message["message_id"]) == (payload, message_id)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG) == 0
    assert not lists(home, "shell"), "it said goodbye"


SHELL = pytest.param(
    ("./guest.sh",),
    marks=pytest.mark.skipif(shutil.which("curl") is None, reason="this example needs curl"),
)


@pytest.mark.parametrize("token", ["a-token-of-some-length-0123456789"])
@pytest.mark.parametrize("command", [SHELL, (sys.executable, "guest_requests.py")])
def test_a_guest_shows_its_token_and_says_why_it_was_refused(
    node: Process,
    home: Path,
    guest: Callable[..., subprocess.Popen[str]],
    command: tuple[str, ...],
    token: str,
) -> None:
    refused = guest(*command, "wrong", url(node), token="another" + token)
    said = "".join(refused.communicate(timeout=HANG))
    assert refused.returncode != 0
    assert "token" in said, said
    guest(*command, "right", url(node), token=token)
    eventually(lambda: lists(home, "right"), "it is listed")


@pytest.mark.parametrize(
    ("page", "example"),
    [("README.md", "guest_sync.py"), ("docs/client.md", "guest.py"),
     ("README.md", "ask.py"), ("docs/embedding.md", "ask.py"),
     ("docs/http.md", "guest.sh"), ("docs/http.md", "guest_requests.py")],
)  # fmt: skip
def test_the_pages_quote_the_examples_as_they_are(page: str, example: str) -> None:
    text = (EXAMPLES / example).read_text()
    code = text.partition('"""\n\n')[2] if text.startswith('"""') else text.partition("\n")[2]
    assert code.strip()
    assert code.strip() in (EXAMPLES.parent / page).read_text()
