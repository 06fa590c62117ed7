"""The command line and its endings: statuses, one-line errors, what is loaded."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import p2pmesh as package
from p2pmesh.cli.main import COMMANDS, function_of
from p2pmesh.config import options_of
from p2pmesh.protocol.keys import parse_key
from tests.cli.fake import FakeNode, Run
from tests.processes import P2PMESH, run

LEADER = json.dumps({"node_id": "aa", "leader_id": "ada-1", "epoch": 7})
HEAVY = ("aiohttp", "zeroconf", "rich", "msgspec", "msgpack", "nacl", "asyncio", "ifaddr")


# --- usage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command: give one of run, demo, members"),
        (["dance"], "invalid choice: 'dance'"),
        (["membres"], "there is no command 'membres'; did you mean 'members'?"),
        (["--mesh", "t2", "members"], "--mesh: flags go behind the command: p2pmesh members --"),
        (["send"], "the following arguments are required: TARGET"),
        (["leader", "--colour"], "leader does not take '--colour'; see 'p2pmesh leader --help'"),
        (["leader", "--ur", "http://a"], "leader does not take '--ur'; did you mean --url? See"),
        (["run", "ada"], "run does not take 'ada'; see 'p2pmesh run --help'"),
        (["--colour"], "unknown argument '--colour'; see 'p2pmesh --help'"),
        (["leader", "--url"], "--url: expected one argument; see 'p2pmesh leader --help'"),
        (["leader", "--url", "a"], "--url 'a': give http://HOST:PORT"),
        (["members", "--port", "1"], "members does not take '--port'"),
        (["run", "--config", "/none"], "--config '/none': there is no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], said: str, p2pmesh: Run
) -> None:
    status, out, err = p2pmesh(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("p2pmesh: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--key", "s3cret"], "give the key as P2PMESH_KEY or --key-file FILE"),
        (["--key=s3cret"], "give the key as P2PMESH_KEY or --key-file FILE"),
        (
            ["--http-token", "s3cret"],
            "give the token as P2PMESH_HTTP_TOKEN or --http-token-file FILE",
        ),
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    arguments: list[str], said: str, p2pmesh: Run
) -> None:
    for command in COMMANDS:
        positional = ["x"] * len(COMMANDS[command].positional)
        status, out, err = p2pmesh(command, *positional, *arguments)
        assert status == 2
        assert said in err
        assert "s3cret" not in out + err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_its_variable_and_default(
    command: str, p2pmesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    status, shown, err = p2pmesh(command, "--help")
    assert (status, err) == (0, "")
    for option in options_of(command, *COMMANDS[command].groups).values():
        assert f"{option.flag} {option.metavar}".rstrip() in shown
        assert option.env in shown
        assert option.is_switch or f"(default: {option.shown_default})" in shown


def test_an_error_of_our_own_is_one_line_and_status_1(
    p2pmesh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("p2pmesh.cli.keys.version", fail)
    status, _, err = p2pmesh("version")
    assert status == 1
    assert err == (
        "p2pmesh: internal error, please report it: ZeroDivisionError: a b "
        "(--log-level debug shows where)\n"
    )


# --- keygen and version --------------------------------------------------------------


def test_keygen_prints_a_key_that_a_node_takes_and_another_each_time(p2pmesh: Run) -> None:
    first, second = p2pmesh("keygen")[1], p2pmesh("keygen")[1]
    assert len(parse_key(first)) == 32
    assert first != second
    assert len(parse_key(json.loads(p2pmesh("keygen", "--json")[1])["key"])) == 32


def test_version_is_the_packages(p2pmesh: Run) -> None:
    assert p2pmesh("version")[1].startswith(f"p2pmesh {package.__version__} (Python 3.")
    assert p2pmesh("--version") == p2pmesh("version")
    assert json.loads(p2pmesh("version", "--json")[1])["version"] == package.__version__


# --- as a process ----------------------------------------------------------------------


@pytest.mark.parametrize("command", [["leader"], ["members"], ["request", "ada", "1"]])
def test_a_one_shot_command_loads_nothing_of_the_mesh(
    command: list[str], node: FakeNode, home: Path
) -> None:
    node.answers["POST /v1/request/ada-1"] = (200, {"payload": 1})
    program = (
        "import sys; from p2pmesh.cli.main import main; status = main(sys.argv[1:]); "
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr); sys.exit(status)"
    )
    ended = run(
        sys.executable, "-c", program, *command, "--json", home=home, env={"P2PMESH_URL": node.url}
    )
    assert (ended.returncode, ended.stderr) == (0, "[]\n")
    assert json.loads(ended.stdout)


def test_a_refusal_reaches_a_shell_as_status_and_line(home: Path) -> None:
    ended = run(*P2PMESH, "leader", home=home)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("p2pmesh: no p2pmesh node runs here: start one with")


def test_a_reader_that_closes_our_stdout_ends_us_quietly(node: FakeNode, home: Path) -> None:
    event = b'data: {"event": "alone", "t": 0, "seq": 1, "tried": []}\n\n'
    node.answers["GET /v1/events"] = (200, event * 10_000)
    shell = f"{' '.join(P2PMESH)} watch --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = run("bash", "-c", shell, home=home, env={"P2PMESH_URL": node.url})
    assert ended.stdout.splitlines()[1:] == ["0"]
    assert ended.stderr == ""


@pytest.mark.parametrize("redirection", [">&-", "<&- >&- 2>&-", ">&- 2>&-"])
def test_streams_closed_before_the_start_are_no_reason_to_fail(
    redirection: str, node: FakeNode, home: Path
) -> None:
    shell = f"{' '.join(P2PMESH)} leader --json {redirection}; echo $?"
    ended = run("bash", "-c", shell, home=home, env={"P2PMESH_URL": node.url})
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_a_full_disk_is_said_in_one_line(node: FakeNode, home: Path) -> None:
    shell = f"{' '.join(P2PMESH)} leader --json >/dev/full"
    ended = run("bash", "-c", shell, home=home, env={"P2PMESH_URL": node.url})
    assert ended.returncode == 1
    assert ended.stderr == "p2pmesh: cannot write to stdout: No space left on device\n"


def test_names_print_whatever_the_locale_and_json_is_ascii(node: FakeNode, home: Path) -> None:
    node.answers["GET /v1/leader"] = (200, {"leader_id": "grüße-1", "epoch": None, "policy": "p"})
    env = {"P2PMESH_URL": node.url, "PYTHONIOENCODING": "ascii"}
    assert run(*P2PMESH, "leader", home=home, env=env).stdout.startswith("gr\\xfc\\xdfe-1")
    assert "gr\\u00fc\\u00dfe-1" in run(*P2PMESH, "leader", "--json", home=home, env=env).stdout


def test_ctrl_c_ends_with_130_and_without_a_word(node: FakeNode, home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [*P2PMESH, "watch", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            connection, _ = silent.accept()  # it is waiting for an answer now
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    ("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_did_not_refuse_it(
    env: dict[str, str], colour: bool, node: FakeNode, home: Path
) -> None:
    environ = os.environ | {"P2PMESH_URL": node.url, "TERM": "xterm-256color"} | env
    controller, terminal = pty.openpty()
    with subprocess.Popen([*P2PMESH, "members"], cwd=home, env=environ, stdout=terminal):
        os.close(terminal)
        shown = _read_all(controller)
    os.close(controller)
    assert "ada-1" in shown
    assert ("\x1b[" in shown) is colour


def _read_all(controller: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # Linux says EIO when the other end is closed
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


# --- logging ----------------------------------------------------------------------------


def test_log_lines_are_text_or_one_json_object_each(home: Path) -> None:
    program = (
        "import logging; from p2pmesh.cli.main import main; main({arguments!r}); "
        "logging.getLogger('p2pmesh.x').warning('a %s', '\\x1b'); logging.info('b')"
    )

    def logged(*arguments: str) -> str:
        text = program.format(arguments=["version", *arguments])
        return run(sys.executable, "-c", text, home=home).stderr

    assert logged().endswith("WARNING p2pmesh.x: a \\x1b\n")
    assert logged("--quiet") == ""
    assert logged("-v").endswith("INFO    root: b\n")
    line = json.loads(logged("--log-format", "json"))
    assert (line["level"], line["logger"], line["text"]) == ("warning", "p2pmesh.x", "a \x1b")


def test_a_logged_exception_is_one_line_unless_debugging(home: Path) -> None:
    program = (
        "import logging; from p2pmesh.cli.main import main; main({arguments!r})\n"
        "try: 1 / 0\nexcept Exception: logging.getLogger('x').exception('failed')"
    )

    def logged(*arguments: str) -> str:
        text = program.format(arguments=["version", *arguments])
        return run(sys.executable, "-c", text, home=home).stderr

    assert logged().endswith("x: failed (ZeroDivisionError: division by zero)\n")
    assert "Traceback" in logged("--log-level", "debug")


def test_every_command_has_its_function() -> None:
    for name in COMMANDS:
        assert callable(function_of(name))


@pytest.mark.parametrize("command", ["demo", "keygen", "version"])
def test_a_command_that_asks_no_mesh_takes_none(p2pmesh: Run, command: str) -> None:
    assert "--mesh" not in p2pmesh(command, "--help")[1]
    status, out, err = p2pmesh(command, "--mesh", "shop")
    assert (status, out) == (2, "")
    assert "--mesh" in err
