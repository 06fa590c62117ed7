"""What handlers report, told to the core of the node.

    handlers ─► starting · completed · responded · part · answered ─► driver ─► core
    core ─► MessageMayStart ─► may_start() ─► starting() returns

Not here: when a handler runs, and what its end means (``handlers``).

Invariant: where messages are stored, ``starting`` returns only once the store has it
that the message is about to be handled; nothing is reported of a handler before.
"""

from __future__ import annotations

import asyncio

from p2pmesh.driver import Driver
from p2pmesh.protocol.payloads import Payload
from p2pmesh.protocol.timing import MESSAGE_TTL
from p2pmesh.protocol.types import Envelope, MessageMayStart


class CoreOutcomes:
    """``handlers.Outcomes`` of one run of a node."""

    def __init__(self, driver: Driver, instance_id: str, *, is_durable: bool) -> None:
        """``instance_id``: of the agent whose handlers these are."""
        self._driver = driver
        self._instance_id = instance_id
        self._is_durable = is_durable
        self._starting: dict[str, asyncio.Future[None]] = {}  # messages about to be handled

    async def starting(self, message_id: str) -> None:
        if not self._is_durable:
            return
        waiting = self._starting.get(message_id)
        if waiting is None:
            waiting = self._starting[message_id] = asyncio.get_running_loop().create_future()
            self._driver.command(self._driver.core.commands.message_started, message_id)
        await asyncio.shield(waiting)

    def may_start(self, action: MessageMayStart) -> None:
        waiting = self._starting.pop(action.message_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def completed(self, message_id: str, ok: bool, reason: str) -> None:
        commands = self._driver.core.commands
        self._driver.command(commands.message_completed, message_id, ok, reason)

    def responded(self, request: int, payload: Payload | None, error: str, detail: str) -> None:
        commands = self._driver.core.commands
        self._driver.command(commands.respond, request, payload, error, detail)

    def part(self, request: int, payload: Payload) -> bool:
        return self._driver.command(self._driver.core.commands.respond_part, request, payload)

    def parts_ended(self, request: int) -> None:
        self._driver.command(self._driver.core.commands.respond_end, request)

    def answered(self, query: Envelope, payload: Payload) -> None:
        self._driver.command(
            self._driver.core.commands.send,
            source=self._instance_id,
            target=query.source,
            named=False,
            type="Response",
            payload=payload,
            ttl=MESSAGE_TTL,
            correlation_id=query.message_id,
        )
