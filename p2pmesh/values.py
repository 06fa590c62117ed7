"""One value out of text: names, ids, ports, addresses, peers, URLs, durations.

Each ``read_*`` takes text and returns the value, or raises ValueError saying what to
give instead.  Flags, environment, TOML, the arguments of ``Node`` and the HTTP API
all read through these, so a name that is fit for one is fit for all.

Does not: know where the text came from; whoever calls puts that before the error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from p2pmesh.protocol.limits import (
    HOSTNAME_MAX,
    INSTANCE_ID_MAX,
    LABEL_MAX,
    NAME_MAX,
    TYPE_MAX,
)

QUORUM_MAX: Final = 4096  # as many nodes as a mesh may have
DEFAULT_LINK_PORT: Final = 8078
DEFAULT_HTTP_PORT: Final = 8077
REQUEST_TIMEOUT_MAX: Final = 300.0


def read_name(text: str) -> str:
    """A display name or mesh name: 1-64 bytes of printable UTF-8."""
    return _bounded(text, NAME_MAX, "a name")


def read_instance_id(text: str) -> str:
    return _bounded(text, INSTANCE_ID_MAX, "an instance id")


def read_label(text: str) -> str:
    """A capability or profile."""
    return _bounded(text, LABEL_MAX, "a capability or profile")


def read_hostname(text: str) -> str:
    """Where a guest says it runs: for people, and it may be empty."""
    return _bounded(text, HOSTNAME_MAX, "a hostname") if text else text


def read_type(text: str) -> str:
    """A message type is any text: known names are listed, all others are custom."""
    if len(text.encode("utf-8", "replace")) > TYPE_MAX:
        raise ValueError(f"a message type is at most {TYPE_MAX} bytes of UTF-8")
    return text


def read_given_type(text: str) -> str:
    """As typed: an empty one is a variable of a script that was not set."""
    if not text:
        raise ValueError("a message type is not empty; leave it out for the usual one")
    return read_type(refuse_slip(text))


def refuse_slip(type: str) -> str:
    """A type that is a known one but for its case is a slip, and nobody would take it."""
    known = known_type_like(type)
    if known not in (None, type):
        raise ValueError(f"is not a known type; did you mean {known!r}?")
    return type


def known_type_like(type: str) -> str | None:
    """The known type that reads like this one, whatever its case."""
    from p2pmesh.protocol.types import KNOWN_TYPES  # light commands do without

    folded = type.lower()
    return next((name for name in KNOWN_TYPES if name.lower() == folded), None)


def _bounded(text: str, bytes_max: int, what: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be UTF-8") from None
    if not 1 <= length <= bytes_max:
        raise ValueError(f"{what} is 1 to {bytes_max} bytes of UTF-8, this is {length}")
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        raise ValueError(f"{what} holds no control characters; remove them")
    return text


def read_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("not a port; give 0 to 65535 (0: any free one)")
    return int(text)


def read_address(text: str) -> str:
    """An IP address of this machine."""
    import ipaddress  # only for those who bind

    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("not an IP address; give one of this machine's") from None


def read_peer(text: str) -> str:
    """``HOST``, ``HOST:PORT``, ``[v6]`` or ``[v6]:PORT`` -> the same with its port."""
    host, port = _host_and_port(text, DEFAULT_LINK_PORT)
    if port == 0:
        raise ValueError("a peer listens on a port from 1 to 65535")
    return f"{host}:{port}"


def read_http(text: str) -> str:
    """``HOST:PORT``, ``auto`` or ``off``."""
    if text in ("auto", "off"):
        return text
    host, port = _host_and_port(text, None)
    return f"{host}:{port}"


def _host_and_port(text: str, default_port: int | None) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:\[\]/@]+)(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError("give HOST:PORT, or [ADDRESS]:PORT for IPv6")
    if match[2] is None and default_port is None:
        raise ValueError("give both: HOST:PORT (port 0: any free one)")
    port = default_port if match[2] is None else read_port(match[2])
    assert port is not None
    return match[1], port


def read_host(text: str) -> str:
    """A name or IP address by which others know this machine."""
    if re.fullmatch(r"[A-Za-z0-9._-]{1,253}", text):
        return text.lower().removesuffix(".")
    try:
        return read_address(text)
    except ValueError:
        raise ValueError("give a host name or an IP address, without a port") from None


def read_url(text: str) -> str:
    """``http://HOST[:PORT]`` -> the same without a trailing slash."""
    parts = urlsplit(text)
    try:
        usable = parts.scheme == "http" and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("give http://HOST:PORT, as 'p2pmesh run' prints it")
    return f"http://{parts.netloc}"


def read_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= REQUEST_TIMEOUT_MAX:
        raise ValueError(f"give seconds, above 0 and at most {REQUEST_TIMEOUT_MAX:g}")
    return seconds


def read_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("give a path")
    return os.path.expanduser(text)


def read_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def read_count(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"give a whole number from {least} to {most}")
        return int(text)

    return read


def read_choice(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return text

    return read
