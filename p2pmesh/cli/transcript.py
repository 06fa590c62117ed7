"""What ``run`` prints: who this node is, then what happens and what it is told.

Two things are printed side by side: events that are not messages, and messages.
A message is acknowledged once its line is written, never before, so a reader that
does not keep up loses no message: it fills this agent's mailbox, and its senders
are told.  Events that it does not keep up with are lost, and one line says so.

A message takes its time and number from its event, which a third reader collects
without ever waiting for output.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Container
from typing import Any, Final

import msgspec

from p2pmesh import AgentMessage, Event, Node, NotStarted
from p2pmesh.cli.lines import LineWriter
from p2pmesh.cli.output import STYLES, Output
from p2pmesh.cli.views import event_line
from p2pmesh.http.codec import write
from p2pmesh.protocol.limits import MAILBOX_MESSAGES_MAX
from p2pmesh.protocol.types import MessageEvent


class Transcript:
    """The lines of one node.  Make it before the node is started: then it misses nothing."""

    def __init__(self, node: Node, out: Output, lines: LineWriter, handled: Container[str]) -> None:
        """``handled``: types whose messages a handler completes."""
        self._node = node
        self._out = out
        self._lines = lines
        self._handled = handled
        self._events = node.events()
        self._numbering = node.events()
        self._messages = node.messages()
        self._stamps: OrderedDict[str, MessageEvent] = OrderedDict()

    async def open(self, kept_in: str | None) -> None:
        """Say who this node is, once it is bound."""
        node = self._node
        if self._out.json:
            ready = {
                "event": "ready",
                "instance_id": node.instance_id,
                "node_id": node.id,
                "mesh": node.mesh,
                "address": node.address,
                "http": node.http_url,
                "pid": os.getpid(),
            }
            await self._lines.write(write(ready))
        elif not self._out.quiet:
            for line in _start_lines(node, kept_in):
                await self._print(line, "")

    async def run(self) -> None:
        """Print until the node ends.  Raises OSError when stdout cannot be written."""
        works = (self._number_messages(), self._print_events(), self._print_messages())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _print_events(self) -> None:
        async for event in self._events:
            # A message is printed by who acknowledges it, unless a handler does that.
            if not isinstance(event, MessageEvent) or event.type in self._handled:
                await self._say(event)

    async def _number_messages(self) -> None:
        async for event in self._numbering:
            if isinstance(event, MessageEvent) and event.type not in self._handled:
                self._stamps[event.message_id] = event
                if len(self._stamps) > MAILBOX_MESSAGES_MAX:
                    self._stamps.popitem(last=False)

    async def _print_messages(self) -> None:
        async for message in self._messages:
            await self._say(self._event_of(message))
            await message.ack()

    def _event_of(self, message: AgentMessage) -> MessageEvent:
        """Its event, with the whole payload: events at large carry only small ones."""
        stamp = self._stamps.pop(message.message_id, None)
        return MessageEvent(
            t=stamp.t if stamp is not None else time.time(),
            seq=stamp.seq if stamp is not None else 0,
            message_id=message.message_id,
            source=message.source_instance,
            type=message.message_type,
            payload=message.payload,
        )

    async def _say(self, event: Event) -> None:
        try:
            encoded = write(event)
        except (ValueError, TypeError, RecursionError):
            # Between embedded agents a payload may be more than JSON can carry.
            assert isinstance(event, MessageEvent)
            event = msgspec.structs.replace(event, payload=repr(event.payload))
            encoded = write(event)
        if self._out.json:
            await self._lines.write(encoded)
        else:
            shown: dict[str, Any] = msgspec.json.decode(encoded)
            await self._print(
                event_line(shown, self._names() if "accusers" in shown else {}),
                STYLES.get(str(shown["event"]), ""),
            )

    def _names(self) -> dict[str, str]:
        """By node id."""
        try:
            return {each.node_id: each.name for each in self._node.members()}
        except NotStarted:  # the last lines of a node that has ended
            return {}

    async def _print(self, text: str, style: str) -> None:
        await self._lines.write(self._out.painted(text, style).encode(errors="backslashreplace"))


_WHO_MAY_ASK: Final = {
    "token": "who has a token may ask",
    "machine": "everybody on this machine may ask",
    "open": "open: whoever reaches it may ask",
}
_NOT_DURABLE: Final = "not durable: give --name or --data-dir"


def _start_lines(node: Node, kept_in: str | None) -> list[str]:
    used = [choice for choice in node.interfaces if choice.used]
    skipped = [choice for choice in node.interfaces if not choice.used]
    facts = [
        ("instance", node.instance_id),
        ("node", node.id),
        ("mesh", node.mesh),
        *(("uses", f"{each.address} on {each.interface}: {each.reason}") for each in used),
        *(("skips", f"{each.address} on {each.interface}: {each.reason}") for each in skipped),
        ("links", f"at {node.address}"),
        ("http", _http_fact(node)),
        ("security", "open: whoever reaches this network can join" if node.is_open else "keyed"),
        (
            "keeps",
            f"identity, epoch and messages in {kept_in}" if kept_in else _NOT_DURABLE,
        ),
    ]
    return [f"{name:<9} {text}" for name, text in facts]


def _http_fact(node: Node) -> str:
    if node.http_access is None:
        return "off"
    where = f"at {node.http_url}"
    if node.http_url != f"http://{node.http_address}":
        where += f", bound to {node.http_address}"
    return f"{where} ({_WHO_MAY_ASK[node.http_access]})"
