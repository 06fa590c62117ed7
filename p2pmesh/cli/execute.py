"""``run --exec CMD``: a shell command that answers Queries.

The payload goes in as JSON on stdin, the answer comes out as JSON on stdout; an
exit status other than 0 is an error at the asker, with the last line of stderr.

Invariants: at most ``AT_ONCE`` commands run; a command whose asker gave up, or
whose node leaves, is killed with everything that it started; what it prints is
bounded; it does not inherit the mesh key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE
from typing import Any, Final

from p2pmesh.http.codec import read, write
from p2pmesh.protocol.limits import PAYLOAD_MAX

AT_ONCE: Final = 4
_ERRORS_MAX: Final = 4096  # of stderr, its end
_SECRETS: Final = ("P2PMESH_KEY", "P2PMESH_HTTP_TOKEN")


class CommandFailed(Exception):
    """The command gave no answer; the text says why."""


class Executor:
    """Runs one command line for each payload."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._free = asyncio.Semaphore(AT_ONCE)
        self._environ = {k: v for k, v in os.environ.items() if k not in _SECRETS}

    async def answer(self, payload: object) -> Any:
        """What the command says to ``payload``.  Raises CommandFailed."""
        async with self._free:
            process = await asyncio.create_subprocess_shell(
                self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=self._environ,
                start_new_session=True,
            )
            try:
                return await _converse(process, write(payload))
            finally:
                # Also after its end: what it left in the background held our pipes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _converse(process: asyncio.subprocess.Process, question: bytes) -> Any:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    async with asyncio.TaskGroup() as group:
        group.create_task(_write(process.stdin, question))
        printed = group.create_task(_read_all(process.stdout))
        errors = group.create_task(_read_end(process.stderr))
    status = await process.wait()
    answer = printed.result()
    if status != 0:
        lines = errors.result().decode(errors="replace").strip().splitlines()
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise CommandFailed(": ".join([ended, *lines[-1:]]))
    if answer is None:
        raise CommandFailed(f"printed more than {PAYLOAD_MAX} bytes")
    try:
        return read(answer) if answer.strip() else None
    except ValueError as error:
        raise CommandFailed(f"what it printed is not JSON: {error}") from None


async def _write(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """It need not read: a pipe that it closed is no error (uvloop: RuntimeError)."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        stdin.write(data)
        await stdin.drain()
        stdin.close()


async def _read_all(stdout: asyncio.StreamReader) -> bytes | None:
    """All of it, or None when it is too much."""
    parts, size = [], 0
    while part := await stdout.read(65536):
        size += len(part)
        if size <= PAYLOAD_MAX:
            parts.append(part)
    return b"".join(parts) if size <= PAYLOAD_MAX else None


async def _read_end(stderr: asyncio.StreamReader) -> bytes:
    end = b""
    while part := await stderr.read(65536):
        end = (end + part)[-_ERRORS_MAX:]
    return end
