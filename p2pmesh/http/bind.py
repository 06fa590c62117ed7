"""From the ``http`` setting to the address that may be bound.

``auto`` is 127.0.0.1 and the default port, or any free port where that is taken:
several agents on one machine is the normal case.  ``HOST:PORT`` is meant
literally.  Until the API asks for a token, only loopback addresses are allowed.

Does not: open sockets; whoever starts the server passes how to listen.
"""

from __future__ import annotations

import ipaddress

from p2pmesh.errors import ConfigError
from p2pmesh.values import read_http


def address(setting: str) -> tuple[str, int | None]:
    """The IP address and the port, None: the default one or any.  Raises ConfigError."""
    try:
        setting = read_http(setting)
    except ValueError as error:
        raise ConfigError(f"--http {setting}: {error}") from None
    if setting == "auto":
        return "127.0.0.1", None
    host, _, port = setting.rpartition(":")
    return _loopback(setting, host.strip("[]")), int(port)


def _loopback(setting: str, host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass  # a name: who knows where it points to tomorrow
    port = setting.rpartition(":")[2]
    raise ConfigError(
        f"--http {setting}: only a loopback address can be bound, since the HTTP API has no "
        f"token yet; give 127.0.0.1:{port}"
    )
