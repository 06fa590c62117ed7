"""From the ``http`` setting to the address that may be bound.

``auto`` is 127.0.0.1 and the default port, or any free port where that is taken:
several agents on one machine is the normal case.  ``HOST:PORT`` is meant
literally.  What others than this machine can reach has to be guarded by a token,
or be open on purpose.

Does not: open sockets; whoever starts the server passes how to listen.
"""

from __future__ import annotations

import ipaddress

from p2pmesh.errors import ConfigError
from p2pmesh.values import read_http


def address(setting: str, *, may_be_wide: bool) -> tuple[str, int | None]:
    """The IP address and the port, None: the default one or any.  Raises ConfigError.

    ``may_be_wide``: beyond loopback, because a token is asked for or nobody minds.
    """
    try:
        setting = read_http(setting)
    except ValueError as error:
        raise ConfigError(f"http {setting}: {error}") from None
    if setting == "auto":
        return "127.0.0.1", None
    host, _, port = setting.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        needs_leave = is_wide(host) and not may_be_wide
    except ValueError:  # a name: who knows where it points to tomorrow
        raise ConfigError(
            f"http {setting}: give an IP address of this machine, not a name"
        ) from None
    if needs_leave:
        raise ConfigError(
            f"http {setting}: whoever reaches that address could use and command this node; "
            "give a token (http_token=…, P2PMESH_HTTP_TOKEN or --http-token-file FILE), or "
            f"http_open=True (--http-open) if that is meant, or 127.0.0.1:{port}"
        )
    return host, int(port)


def is_wide(host: str) -> bool:
    """Whether others than this machine can reach what is bound to an IP address."""
    return not ipaddress.ip_address(host).is_loopback


def reachable(host: str) -> str:
    """An address at which this machine reaches what is bound to ``host``."""
    if ipaddress.ip_address(host).is_unspecified:
        return "::1" if ":" in host else "127.0.0.1"
    return host
