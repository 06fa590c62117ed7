"""From the ``http`` setting to a listening socket, or to a line that says why not.

``auto`` is 127.0.0.1 and the default port, or any free port where that is taken
(several agents on one machine is the normal case).  ``HOST:PORT`` is meant
literally: a taken port is an error that names the process that has it.

Until the API has a token, only loopback addresses can be bound.

Does not: serve.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final

from p2pmesh.config import DEFAULT_HTTP_PORT, read_http
from p2pmesh.errors import ConfigError

BACKLOG: Final = 1024


def listen(setting: str) -> socket.socket:
    """A socket that listens at ``setting``: ``auto`` or ``HOST:PORT``.  Raises ConfigError."""
    try:
        setting = read_http(setting)
    except ValueError as error:
        raise ConfigError(f"--http {setting}: {error}") from None
    if setting == "auto":
        try:
            return _bind("127.0.0.1", DEFAULT_HTTP_PORT)
        except OSError:
            return _bind("127.0.0.1", 0)
    host, _, port = setting.rpartition(":")
    try:
        return _bind(_loopback(setting, host.strip("[]")), int(port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--http {setting}: the port is taken by {_holder(int(port))}; "
                "give another, or 0 for any free one"
            ) from None
        raise ConfigError(f"--http {setting}: {error.strerror or error}") from None


def _loopback(setting: str, host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    raise ConfigError(
        f"--http {setting}: only loopback can be bound, since the HTTP API asks for no "
        f"token yet; give 127.0.0.1:{setting.rpartition(':')[2]}"
    )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


# --- who has the port ----------------------------------------------------------


def _holder(port: int) -> str:
    """``process 123 (name)``, as far as this system and our rights tell."""
    inodes = _listeners(port)
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            for descriptor in (directory / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    name = (directory / "comm").read_text().strip()
                    return f"process {directory.name} ({name})"
    return "another process"


def _listeners(port: int) -> set[str]:
    """What /proc calls the sockets that listen on a TCP port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
