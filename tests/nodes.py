"""Real nodes in one process, over loopback, for the tests of what applications do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from p2pmesh import AgentMessage, Node

HANG = 20.0

Make = Callable[..., Node]
Meet = Callable[..., Awaitable[None]]


def echo(node: Node, **options: Any) -> list[AgentMessage]:
    """Answer Queries with their payload; returns what came, as it comes."""
    got: list[AgentMessage] = []

    @node.on("Query", **options)
    async def answer(message: AgentMessage) -> Any:
        got.append(message)
        return message.payload

    return got


async def until(node: Node, condition: Callable[[], object]) -> None:
    """Look at every event of ``node`` until it is so."""
    events = node.events()
    async with asyncio.timeout(HANG):
        while not condition():
            await anext(events)


def state_of(name: str, node: Node) -> list[str]:
    return [m.state for m in node.members() if m.name == name]
