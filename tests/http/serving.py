"""Servers of nodes in memory, on a loop of their own, for tests that use plain sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from p2pmesh.http.server import RegistryServer
from p2pmesh.transport.ports import listen
from tests.http.memory import MemoryMesh

T = TypeVar("T")
STARTS_WITHIN: Final = 20.0


class Served:
    """A mesh in memory and the server of each of its nodes."""

    def __init__(self, mesh: MemoryMesh, loop: asyncio.AbstractEventLoop) -> None:
        self.mesh = mesh
        self.servers: list[RegistryServer] = []
        #: What the loop would have printed: exceptions that nobody caught.
        self.uncaught: list[dict[str, Any]] = []
        self._loop = loop
        loop.set_exception_handler(lambda _, context: self.uncaught.append(context))

    @property
    def addresses(self) -> list[str]:
        return [server.url.removeprefix("http://") for server in self.servers]

    def run(self, work: Callable[[], T]) -> T:
        """``work()`` on the servers' loop."""

        async def call() -> T:
            return work()

        return self.wait(call())

    def wait(self, awaitable: Awaitable[T]) -> T:
        return self.start(awaitable).result(STARTS_WITHIN)

    def start(self, awaitable: Awaitable[T]) -> Future[T]:
        """Lets it run there; does not wait."""

        async def call() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(call(), self._loop)


@contextmanager
def serve(nodes: int = 1, http: str = "127.0.0.1:0", **settings: Any) -> Iterator[Served]:
    """``settings`` are more arguments of ``RegistryServer.start``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = Served(MemoryMesh(nodes), loop)
    try:
        for node in served.mesh.nodes:
            starting = RegistryServer.start(
                node, http, listen=listen, names=["my.mesh"], **settings
            )
            served.servers.append(served.wait(starting))
        yield served
    finally:
        for server in served.servers:
            served.wait(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert not served.uncaught
