"""What the lab's own tests run inside its hosts; prints JSON lines.

python -m tests.lab.probe echo             answers UDP on PORT, and tells what came
python -m tests.lab.probe ping ADDRESS N   sends N datagrams there, tells what came back
python -m tests.lab.probe send ADDRESS N   sends N datagrams there
python -m tests.lab.probe listen           joins the group and tells what comes
python -m tests.lab.probe serve            tells the digest of what a TCP connection brings
python -m tests.lab.probe upload ADDRESS BYTES   sends that, tells its digest
python -m tests.lab.probe besiege ADDRESS N      opens N connections to LINKS at once, and is mute
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import struct
import sys
import time
from typing import Any, Final

PORT: Final = 5353
GROUP: Final = "224.0.0.251"
LINKS: Final = 8078
_PATIENCE: Final = 1.0  # how long an answer may take


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def echo() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", PORT))
        tell("ready")
        while True:
            data, sender = udp.recvfrom(2048)
            udp.sendto(data, sender)
            tell("got", sender=sender[0], number=int(data))


def ping(address: str, count: str) -> None:
    """One at a time would take long where many are lost: all are under way together."""
    sent: dict[int, float] = {}
    took: list[float] = []
    refused = False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for number in range(int(count)):
            sent[number] = time.monotonic()
            try:
                udp.sendto(str(number).encode(), (address, PORT))
            except OSError:
                refused = True
            time.sleep(0.0005)
            while select.select([udp], [], [], 0)[0]:
                took.append(_answer(udp, sent))
        while len(took) < int(count) and select.select([udp], [], [], _PATIENCE)[0]:
            took.append(_answer(udp, sent))
    tell("pinged", answers=len(took), took=sorted(took), refused=refused)


def _answer(udp: socket.socket, sent: dict[int, float]) -> float:
    return time.monotonic() - sent[int(udp.recv(2048))]


def send(address: str, count: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for number in range(int(count)):
            udp.sendto(str(number).encode(), (address, PORT))
    tell("sent")


def listen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", PORT))
        membership = struct.pack("4sL", socket.inet_aton(GROUP), socket.INADDR_ANY)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        tell("ready")
        while True:
            data, sender = udp.recvfrom(2048)
            tell("got", sender=sender[0], number=int(data))


def serve() -> None:
    with socket.create_server(("", PORT)) as server:
        tell("ready")
        connection, _ = server.accept()
        digest = hashlib.sha256()
        with connection:
            while data := connection.recv(1 << 20):
                digest.update(data)
        tell("received", digest=digest.hexdigest())


def upload(address: str, size: str) -> None:
    data = random.randbytes(int(size))
    with socket.create_connection((address, PORT)) as connection:
        connection.sendall(data)
    tell("sent", digest=hashlib.sha256(data).hexdigest())


def besiege(address: str, count: str) -> None:
    connections = [socket.socket() for _ in range(int(count))]
    for connection in connections:
        connection.setblocking(False)
        connection.connect_ex((address, LINKS))
    time.sleep(_PATIENCE)
    made = select.select([], connections, [], 0)[1]
    tell("besieging", connected=len(made))
    while True:
        time.sleep(_PATIENCE)


if __name__ == "__main__":
    roles = (echo, ping, send, listen, serve, upload, besiege)
    role = {each.__name__: each for each in roles}
    role[sys.argv[1]](*sys.argv[2:])
