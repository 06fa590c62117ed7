"""``--exec``: what a command's output, status, death and descendants mean."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from pathlib import Path

import pytest

from p2pmesh.cli.execute import AT_ONCE, CommandFailed, Executor
from tests.processes import eventually, is_gone


@pytest.mark.parametrize(
    ("command", "payload", "answer"),
    [
        ("cat", {"n": [1, None, "ü"]}, {"n": [1, None, "ü"]}),
        ("true", 1, None),
        ("echo 42; echo noise >&2", "a question that nobody reads" * 100_000, 42),
        ('echo \\"$P2PMESH_KEY$KEPT\\"', 0, "kept"),
    ],
)
async def test_what_it_prints_is_the_answer(
    command: str, payload: object, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PMESH_KEY", "secret")
    monkeypatch.setenv("KEPT", "kept")
    assert await Executor(command).answer(payload) == answer


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo 1; echo first >&2; echo no such thing >&2; exit 3", "exit status 3: no such thing"),
        ("exit 4", "exit status 4"),
        ("kill -9 $$", "signal 9"),
        ("echo {", "what it printed is not JSON"),
        ("echo NaN", "what it printed is not JSON"),
        ("echo 1e400", "what it printed is not JSON"),
        ('echo \'{"a":1,"a":2}\'', "what it printed is not JSON"),
        ("printf '[%.0s' $(seq 200); printf ']%.0s' $(seq 200)", "what it printed is not JSON"),
        ("/no/such/command", "exit status 127: "),
        ("head -c 17000000 /dev/zero", "printed more than 16777216 bytes"),
    ],
)
async def test_a_command_that_gives_no_answer_says_why(command: str, said: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        await Executor(command).answer(1)
    assert str(caught.value).startswith(said)


async def test_four_run_at_once_and_no_more(tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    executor = Executor(
        f"echo + >>{log}; while [ ! -e {gate} ]; do sleep 0.01; done; echo - >>{log}; cat"
    )
    answers = asyncio.gather(*(executor.answer(number) for number in range(AT_ONCE + 3)))
    await asyncio.to_thread(
        eventually, lambda: log.read_text().count("+") >= AT_ONCE, "four of them run"
    )
    gate.touch()
    assert await answers == list(range(AT_ONCE + 3))
    running = [{"+": 1, "-": -1}[line] for line in log.read_text().split()]
    assert max(accumulate(running)) == AT_ONCE


async def test_giving_up_kills_the_command_and_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"sleep 100 & echo $! $$ >{pids}; wait"
    task = asyncio.create_task(Executor(command).answer(1))
    pids.touch()
    await asyncio.to_thread(eventually, lambda: "\n" in pids.read_text(), "the command runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in map(int, pids.read_text().split()):
        eventually(lambda pid=pid: is_gone(pid), f"the end of {pid}")  # type: ignore[misc]


def test_on_uvloop_too_a_command_need_not_read_its_question() -> None:
    """uvloop says RuntimeError where asyncio says that the pipe is broken."""
    uvloop = pytest.importorskip("uvloop")

    async def ask_again_and_again() -> None:
        for _ in range(20):
            assert await Executor("echo 5").answer({"q": 1}) == 5

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask_again_and_again())
