"""``run``: one agent's node in the foreground.

Settings -> a Node -> its transcript, until a signal, the end of whoever reads
stdout, or the node's own end; then it leaves.

Invariants: the first SIGTERM or Ctrl-C leaves gracefully and ends with status 0;
after a second one the process ends within a second, whatever holds it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from p2pmesh import AgentMessage, Node, RemoteError
from p2pmesh.cli.call import EXIT_FAILED, EXIT_INTERRUPTED, Call
from p2pmesh.cli.execute import AT_ONCE, CommandFailed, Executor
from p2pmesh.cli.lines import LineWriter
from p2pmesh.cli.transcript import Transcript
from p2pmesh.config import DEFAULT_MESH, Settings, data_dirs_of
from p2pmesh.credentials import http_grants, mesh_keys
from p2pmesh.datadir import DataDir
from p2pmesh.errors import ConfigError, MeshError

_INSISTED_WITHIN: Final = 0.5
_LAST_LINES_WITHIN: Final = 0.5  # of what happened while it left


def run(call: Call) -> int:
    settings = call.settings
    if settings.echo and settings.exec:
        raise ConfigError("--echo and --exec: both answer Queries; give one of them")
    home = _data_home(settings)
    kept_in = str(home.path) if home is not None else None
    try:
        node = _node(settings, home)
    except BaseException:
        if home is not None:
            home.close()
        raise
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        ending = _Ending(runner.get_loop())
        return runner.run(_serve(call, node, ending, kept_in))


def _data_home(settings: Settings) -> DataDir | None:
    """The data dir, locked: the given one, the first free one of the name, or none."""
    if settings.data_dir == "none":
        return None
    if settings.data_dir is not None:
        return DataDir.open(Path(settings.data_dir))
    if settings.name is not None:
        mesh = settings.mesh or DEFAULT_MESH
        return DataDir.open_first(data_dirs_of(mesh, settings.name, os.environ))
    return None


def _node(settings: Settings, home: DataDir | None) -> Node:
    return Node(
        settings.name,
        mesh=settings.mesh or DEFAULT_MESH,
        instance_id=settings.instance_id,
        capabilities=settings.capability,
        profiles=settings.profile,
        peers=settings.peer,
        mdns=not settings.no_mdns,
        port=settings.port,
        bind=settings.bind,
        http=settings.http,
        http_token={grant.token: str(grant.scope) for grant in http_grants(settings, os.environ)},
        http_open=settings.http_open,
        http_hosts=settings.http_host,
        data_dir=home,
        key=mesh_keys(settings, os.environ),
        agent=not settings.observer,
        quorum=settings.quorum,
        preset=settings.preset,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: it halves latency."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# --- the node's time ---------------------------------------------------------------


async def _serve(call: Call, node: Node, ending: _Ending, kept_in: str | None) -> int:
    lines = LineWriter()
    transcript = Transcript(node, call.out, lines, _answer_queries(node, call.settings))
    if not await _unless(ending.asked, node.start()):
        return 0
    saying = asyncio.create_task(_say(transcript, kept_in))
    try:
        await _first(_over(node, saying), ending.asked.wait(), lines.gone.wait())
    except BrokenPipeError:
        pass  # nobody reads any more: that is no failure of ours
    except OSError as error:
        raise MeshError(f"cannot write to stdout: {error.strerror}") from None
    finally:
        is_insisted = not await _unless(ending.insisted, node.leave())
        await asyncio.wait([saying], timeout=0 if is_insisted else _LAST_LINES_WITHIN)
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
    return ending.status if is_insisted else 0


async def _say(transcript: Transcript, kept_in: str | None) -> None:
    await transcript.open(kept_in)
    await transcript.run()


async def _over(node: Node, saying: asyncio.Task[None]) -> None:
    """Until the node has ended by itself; what is being said goes on to its end."""
    await asyncio.gather(node.serve_forever(), asyncio.shield(saying))


async def _first(*works: Coroutine[Any, Any, Any]) -> None:
    """Until the first of them is done; the others are cancelled.  Raises what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do the work; False when the event came first, and the work was cancelled."""
    task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return False
    task.result()
    return True


class _Ending:
    """Signals.  Python's own handlers, not the loop's: they run even when the loop
    does not, and then the second one ends the process from a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked: Final = asyncio.Event()
        self.insisted: Final = asyncio.Event()
        self.status = 0
        self._loop = loop
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, a job in the background
                signal.signal(number, self._received)

    def _received(self, number: int, _: object) -> None:
        if not self.status:
            self.status = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_FAILED
            self._on_loop(self.asked.set)
        else:
            last_resort = threading.Timer(_INSISTED_WITHIN, os._exit, [self.status])
            last_resort.daemon = True
            last_resort.start()
            self._on_loop(self.insisted.set)

    def _on_loop(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # it is over
            self._loop.call_soon_threadsafe(function)


# --- Queries -----------------------------------------------------------------------


def _answer_queries(node: Node, settings: Settings) -> frozenset[str]:
    """Register what answers Queries; the types that are handled."""
    if settings.exec:
        executor = Executor(settings.exec)

        @node.on("Query", concurrency=AT_ONCE)
        async def execute(message: AgentMessage) -> Any:
            try:
                return await executor.answer(message.payload)
            except CommandFailed as error:
                raise RemoteError("failed", str(error)) from None

    elif settings.echo:

        @node.on("Query")
        async def echo(message: AgentMessage) -> Any:
            return message.payload

    else:
        return frozenset()
    return frozenset({"Query"})
