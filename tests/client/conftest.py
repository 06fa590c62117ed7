"""The two clients as one, so that each test of them is held against both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from p2pmesh.client import MeshClient, Message, Presence, SyncMeshClient


class InThreads:
    """A SyncMeshClient whose calls are awaited, as those of a MeshClient are."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self.client = SyncMeshClient(*urls, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not callable(method) or name == "generate_instance_id":
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *arguments, **options)

        return call

    @asynccontextmanager
    async def registered(self, *arguments: Any, **options: Any) -> AsyncIterator[Presence]:
        manager = self.client.registered(*arguments, **options)
        presence = await asyncio.to_thread(manager.__enter__)
        try:
            yield presence
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    async def messages(self, *arguments: Any, **options: Any) -> AsyncIterator[Message]:
        reader = self.client.messages(*arguments, **options)
        while True:
            yield await asyncio.to_thread(next, reader)

    async def stream(self, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        parts = self.client.stream(*arguments, **options)
        try:
            while (part := await asyncio.to_thread(next, parts, self)) is not self:
                yield part
        finally:
            await asyncio.to_thread(parts.close)  # type: ignore[attr-defined]

    async def __aenter__(self) -> InThreads:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()


Connect = Callable[..., Any]


@pytest.fixture(params=["async", "sync"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Makes clients, which are closed at the end."""
    kind = MeshClient if request.param == "async" else InThreads
    async with AsyncExitStack() as stack:
        made = []

        def make(*urls: str, **options: Any) -> Any:
            made.append(kind(*urls, **options))
            return made[-1]

        yield make
        for client in made:
            await stack.enter_async_context(client)
