"""Listening sockets: one port at several addresses, and who holds it already.

Does not accept, and does not choose the addresses.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pmesh.errors import ConfigError

BACKLOG: Final = 1024  # a mesh that heals dials all at once
_FREE_PORT_ATTEMPTS: Final = 16

_FIXES: Final = {
    errno.EADDRNOTAVAIL: "this machine has no such address: give one of its own",
    errno.EAFNOSUPPORT: "this machine does not speak that family: leave the address out",
    errno.EACCES: "that needs privileges: give a port above 1023",
}


def listen(hosts: Sequence[str], port: int | None, preferred: int) -> list[socket.socket]:
    """Non-blocking listening sockets, one a host (an IP address), all at one port.

    ``port`` None: ``preferred`` if it is free at all of them, else any that is;
    0: any.  Raises :class:`ConfigError` that names the port's holder, or the
    address that cannot be used.
    """
    wanted = preferred if port is None else port
    if wanted:
        try:
            return _listen_at_all(hosts, wanted)
        except _Taken as taken:
            if port is not None:
                raise ConfigError(_taken_by(taken.host, port)) from None
    for _ in range(_FREE_PORT_ATTEMPTS):
        # The first host picks a port, which may be taken at another.
        with suppress(_Taken):
            return _listen_at_all(hosts, 0)
    raise ConfigError(
        f"no port is free at all of {', '.join(hosts)}: give one with --port, or fewer with --bind"
    )


def holder_of(port: int) -> int | None:
    """The process that listens at a TCP port of this machine, where /proc tells."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return None
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if any(os.readlink(descriptors / name) in sockets for name in os.listdir(descriptors)):
                return int(descriptors.parent.name)
    return None


class _Taken(Exception):
    def __init__(self, host: str) -> None:
        self.host = host


def _listen_at_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            listeners.append(_listen_at(host, port))
            port = listeners[0].getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen_at(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unusable(host, port, error) from None
    try:
        # Take the port over from connections that only wait to be forgotten.  Two
        # listeners are still refused, some by bind and some not before listen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _Taken(host) from None
        raise _unusable(host, port, error) from None
    return listener


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    why = _FIXES.get(error.errno or 0) or error.strerror or "unknown reason"
    return ConfigError(f"cannot listen at {host} port {port}: {why}")


def _taken_by(host: str, port: int) -> str:
    pid = holder_of(port)
    if pid is None:
        who = "another process"
    else:
        who = "this process" if pid == os.getpid() else f"process {pid}"
    return f"port {port} at {host} is taken by {who}: end that, or give another port (0: any free)"


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    found.add(inode)
    return found
