"""What a node is told once: the arguments of ``Node``, checked.

Every value is checked when the node is made, so that a mistake is an error at the
line that made it; the message names the argument, the value and the fix.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from p2pmesh.arguments import (
    read,
    read_each,
    read_labels,
    refuse_unless_count,
    refuse_unless_flag,
    refuse_unless_number,
)
from p2pmesh.datadir import Identity
from p2pmesh.errors import ConfigError
from p2pmesh.http import bind as http_bind
from p2pmesh.http.tokens import Given, Grant, grants_of
from p2pmesh.ids import hostname
from p2pmesh.protocol.keys import KeyRing, parse_key, parse_keys
from p2pmesh.protocol.timing import PRESETS
from p2pmesh.values import (
    QUORUM_MAX,
    read_address,
    read_choice,
    read_host,
    read_http,
    read_instance_id,
    read_name,
    read_path,
    read_peer,
    read_port,
)

Keys: TypeAlias = str | bytes | Sequence[str | bytes] | None
DataHome: TypeAlias = str | os.PathLike[str] | Identity | None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The arguments of ``Node``, each as it is used."""

    name: str
    mesh: str
    instance_id: str | None
    capabilities: tuple[str, ...]
    profiles: tuple[str, ...]
    peers: tuple[str, ...]  # "host:port"
    mdns: bool
    port: int | None
    bind: tuple[str, ...]
    http: str | None  # "auto", "host:port"; None: off
    http_tokens: tuple[Grant, ...]  # empty: nobody is asked for one
    http_open: bool
    http_hosts: tuple[str, ...]
    data_dir: Path | Identity | None
    keys: tuple[bytes, ...]  # empty: an open mesh
    agent: bool
    candidate: bool
    quorum: int | None
    preset: str
    zeroconf: Any


def check(
    *,
    name: str | None,
    mesh: str,
    instance_id: str | None,
    capabilities: Iterable[str],
    profiles: Iterable[str],
    peers: Iterable[str],
    mdns: bool,
    port: int | None,
    bind: Iterable[str],
    http: str | None,
    http_token: Given | None,
    http_open: bool,
    http_hosts: Iterable[str],
    data_dir: DataHome,
    key: Keys,
    agent: bool,
    candidate: bool,
    quorum: int | None,
    preset: str,
    zeroconf: Any,
) -> NodeConfig:
    """Check the arguments of ``Node``; raises ConfigError.  Without a ``key`` the
    environment is asked, and may insist on one."""
    flags = {"mdns": mdns, "http_open": http_open, "agent": agent, "candidate": candidate}
    for argument, value in flags.items():
        refuse_unless_flag(argument, value)
    if quorum is not None:
        refuse_unless_count("quorum", quorum, QUORUM_MAX)
    config = NodeConfig(
        name=read("name", read_name, name) if name is not None else hostname(),
        mesh=read("mesh", read_name, mesh),
        instance_id=(
            read("instance_id", read_instance_id, instance_id) if instance_id is not None else None
        ),
        capabilities=read_labels("capabilities", capabilities),
        profiles=read_labels("profiles", profiles),
        peers=read_each("peers", read_peer, peers),
        mdns=mdns,
        port=_port(port),
        bind=read_each("bind", read_address, bind),
        http=_http(http),
        http_tokens=_http_tokens(http_token),
        http_open=http_open,
        http_hosts=read_each("http_hosts", read_host, http_hosts),
        data_dir=_data_home(data_dir),
        keys=_keys(key),
        agent=agent,
        candidate=candidate,
        quorum=quorum,
        preset=read("preset", read_choice(tuple(PRESETS)), preset),
        zeroconf=zeroconf,
    )
    if config.http_open and config.http_tokens:
        raise ConfigError(
            "http_open (--http-open) lets everybody in, and there is a token too "
            "(http_token, P2PMESH_HTTP_TOKEN or --http-token-file): leave one of them out"
        )
    if config.http is not None:  # raises for an address that may not be bound
        http_bind.address(config.http, may_be_wide=config.http_open or bool(config.http_tokens))
    KeyRing(config.mesh, config.keys)  # raises for keys that do not fit each other
    return config


def _port(port: int | None) -> int | None:
    if port is None:
        return None
    refuse_unless_number("port", port, whole=True)
    return read("port", read_port, str(port))


def _http(http: str | None) -> str | None:
    setting = read("http", read_http, http) if http is not None else "off"
    return None if setting == "off" else setting


def _data_home(given: DataHome) -> Path | Identity | None:
    if isinstance(given, str | os.PathLike):
        return Path(read("data_dir", read_path, os.fspath(given)))
    if given is not None and not callable(getattr(given, "keep_instance_id", None)):
        raise ConfigError(f"data_dir {given!r:.80}: give a path, not {type(given).__name__}")
    return given


def _http_tokens(given: Given | None) -> tuple[Grant, ...]:
    """An application that says nothing about tokens obeys who runs it."""
    name = "http_token"
    if given is None:
        name, given = "P2PMESH_HTTP_TOKEN", os.environ.get("P2PMESH_HTTP_TOKEN") or {}
    is_text = isinstance(given, str) or (
        isinstance(given, Mapping) and all(isinstance(each, str) for each in given)
    )
    if not is_text:  # which is not quoted: it may be secret
        raise ConfigError(f"{name}: give text, or a scope for each text")
    try:
        return grants_of(given)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _keys(key: Keys) -> tuple[bytes, ...]:
    match key:
        case None:
            return _keys_of_environment()
        case str() | bytes():
            return (_key(key),)
        case Iterable():
            return tuple(_key(each) for each in key)
    raise ConfigError(f"key: give text or bytes, or up to three of them, not {_kind(key)}")


def _kind(value: object) -> str:
    """Of something that is not quoted: it may be secret."""
    return type(value).__name__


def _key(key: str | bytes) -> bytes:
    if not isinstance(key, str | bytes):
        raise ConfigError(f"key: give text or bytes, not {_kind(key)}")
    try:
        return parse_key(key) if isinstance(key, str) else key
    except ConfigError as error:
        if isinstance(key, str) and os.path.isfile(key):
            raise ConfigError(
                f"key {key!r}: that is a file: give what is in it, Path({key!r}).read_text()"
            ) from None
        raise ConfigError(f"key: {error}") from None


def _keys_of_environment() -> tuple[bytes, ...]:
    """An application that says nothing about keys obeys who runs it."""
    if text := os.environ.get("P2PMESH_KEY"):
        try:
            return parse_keys(text)
        except ConfigError as error:
            raise ConfigError(f"P2PMESH_KEY: {error}") from None
    if os.environ.get("P2PMESH_REQUIRE_KEY") == "1":
        raise ConfigError("P2PMESH_REQUIRE_KEY=1 and there is no key; give P2PMESH_KEY, or key=…")
    return ()
