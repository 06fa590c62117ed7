"""A slow cable: carries frames between two interfaces and takes its time.

    python -m tests.lab.wire ONE OTHER DELAY JITTER

Seconds each way, give or take the jitter.  Frames keep their order, as they do
on a cable and on Wi-Fi: a frame that is lucky waits for the one before it.
Prints a line when it has begun, and runs until it is killed.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
from collections import deque
from typing import Final

_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_ETH_P_ALL: Final = 3
_FRAME_MAX: Final = 1 << 17
_BUFFER: Final = 32 << 20
_BURST: Final = 256  # frames read before the other direction has its turn


class Direction:
    """Frames on their way from one end to the other."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self._target = target
        self._queue: deque[tuple[float, bytes]] = deque()

    def take(self, delay: float, jitter: float) -> None:
        """Reads what has come, and decides when it arrives."""
        for _ in range(_BURST):
            try:
                frame = self.source.recv(_FRAME_MAX)
            except BlockingIOError:
                return
            arrives_at = time.monotonic() + delay + random.uniform(-jitter, jitter)
            if self._queue:
                arrives_at = max(arrives_at, self._queue[-1][0])
            self._queue.append((arrives_at, frame))

    def deliver(self) -> float | None:
        """Sends what has arrived; when the next frame will, if any is under way."""
        while self._queue:
            arrives_at, frame = self._queue[0]
            if arrives_at > time.monotonic():
                return arrives_at
            self._queue.popleft()
            try:
                self._target.send(frame)
            except OSError as error:  # a full queue or a port that is down loses the frame
                print(error, file=sys.stderr)
        return None


def open_port(name: str) -> socket.socket:
    """A socket for whole frames, with the kernel's notes on checksums and segments.

    With these notes a frame may be as the sender's TCP left it for the hardware
    to finish: unsegmented and without checksum.  The receiver takes it as it is.
    """
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    port.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    port.bind((name, _ETH_P_ALL))
    port.setblocking(False)
    return port


def carry(one: socket.socket, other: socket.socket, delay: float, jitter: float) -> None:
    directions = (Direction(one, other), Direction(other, one))
    by_source = {direction.source: direction for direction in directions}
    while True:
        arrivals = [at for at in (each.deliver() for each in directions) if at is not None]
        pause = max(0.0, min(arrivals) - time.monotonic()) if arrivals else None
        for source in select.select(by_source, [], [], pause)[0]:
            by_source[source].take(delay, jitter)


def main() -> None:
    one, other, delay, jitter = sys.argv[1:]
    ports = open_port(one), open_port(other)
    print(json.dumps({"event": "ready"}), flush=True)
    carry(*ports, float(delay), float(jitter))


if __name__ == "__main__":
    main()
