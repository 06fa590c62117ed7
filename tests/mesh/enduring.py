"""An agent for a long run: ``python enduring.py CONFIG``; tells what it does as JSON lines.

CONFIG is JSON: ``name``, ``mesh``, ``data`` (null: memory only) and for the receiver
``journal``, a file to which each completion is appended as a line: sender, number, attempt.
A sender has ``count`` instead, the number of messages that it sends; at SIGUSR1 it resets
all of its connections.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections import deque
from typing import Any, Final

from p2pmesh import Delivery, Node

WINDOW: Final = 400  # sent and not done
TELL_EVERY: Final = 1000
AF_UNSPEC: Final = bytes(16)  # a sockaddr


def tell(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def reset_connections() -> None:
    """As if a firewall had forgotten them: both ends are reset, and what is under way is lost."""
    libc = ctypes.CDLL(None)
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                is_link = one.type == socket.SOCK_STREAM and bool(one.getpeername())
                if is_link and one.family in (socket.AF_INET, socket.AF_INET6):
                    libc.connect(one.fileno(), AF_UNSPEC, len(AF_UNSPEC))
        except OSError:
            continue  # no socket, or none with a peer


async def receive(node: Node, journal: str) -> None:
    file = os.open(journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    @node.on("Notification")
    async def complete(message: Any) -> None:
        os.write(file, f"{message.payload} {message.attempt}\n".encode())

    async with node:
        tell("joined")
        await asyncio.Event().wait()


async def send(node: Node, name: str, count: int) -> None:
    loop = asyncio.get_running_loop()
    window: deque[Delivery] = deque()
    async with node:
        loop.add_signal_handler(signal.SIGUSR1, reset_connections)
        receiver = await node.wait_for(name="receiver", timeout=60)
        tell("joined")
        for number in range(count):
            if len(window) == WINDOW:
                await window.popleft().done()
            window.append(node.send_nowait(receiver, f"{name} {number}"))
            if number % TELL_EVERY == 0:
                tell("sent", number=number)
        for delivery in window:
            await delivery.done()
        tell("finished")


async def main(config: dict[str, Any]) -> None:
    node = Node(
        config["name"], mesh=config["mesh"], preset="local", mdns=False, http=None,
        data_dir=config["data"],
    )  # fmt: skip
    if config["name"] == "receiver":
        await receive(node, config["journal"])
    else:
        await send(node, config["name"], config["count"])


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
