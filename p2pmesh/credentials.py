"""Mesh keys and HTTP tokens, from the environment or from files: never from flags.

A flag beats the environment, and a variable with the secret itself beats one that
names a file.  A file that others can read is used, and said aloud.

Does not: hold a secret in ``Settings``, or quote one in any error.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from p2pmesh.config import OPTIONS, Settings, read_file
from p2pmesh.errors import ConfigError
from p2pmesh.http.tokens import Grant, Scope, read_grants, read_token
from p2pmesh.protocol.keys import parse_keys

log = logging.getLogger("p2pmesh")


def mesh_keys(settings: Settings, environ: Mapping[str, str]) -> tuple[bytes, ...]:
    """The mesh keys, first the one to offer; empty: open mode.  Raises ConfigError."""
    text, where = environ.get("P2PMESH_KEY", ""), "P2PMESH_KEY"
    path = settings.key_file
    if path and (not text or _is_flag(settings, "key_file")):
        where = f"--key-file {path!r}"
        text = _secret_text(path, where, "'p2pmesh keygen' makes a key")
    elif not text:
        if settings.require_key:
            raise ConfigError(
                f"{settings.origin['require_key']}: there is no key; give P2PMESH_KEY "
                "or --key-file FILE ('p2pmesh keygen' makes one)"
            )
        return ()
    try:
        return parse_keys(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def http_grants(settings: Settings, environ: Mapping[str, str]) -> tuple[Grant, ...]:
    """Every token that a node takes: those of the file, and that of
    ``P2PMESH_HTTP_TOKEN`` for all there is.  Raises ConfigError."""
    grants = _grants_of_file(settings.http_token_file) if settings.http_token_file else ()
    if token := _token_of(environ):
        grants += (Grant(Scope.ADMIN, token),)
    return grants


def http_token(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """The token that a command shows to a node; of a file the strongest one.
    Raises ConfigError."""
    path, token = settings.http_token_file, _token_of(environ)
    if path and (not token or _is_flag(settings, "http_token_file")):
        return max(_grants_of_file(path), key=lambda grant: grant.scope).token
    return token


def _is_flag(settings: Settings, name: str) -> bool:
    return settings.origin[name] == OPTIONS[name].flag


def _token_of(environ: Mapping[str, str]) -> str | None:
    text = environ.get("P2PMESH_HTTP_TOKEN")
    try:
        return read_token(text) if text else None
    except ValueError as error:
        raise ConfigError(f"P2PMESH_HTTP_TOKEN: {error}") from None


def _grants_of_file(path: str) -> tuple[Grant, ...]:
    where = f"--http-token-file {path!r}"
    try:
        return read_grants(_secret_text(path, where, "make one with a line 'admin TOKEN'"))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _secret_text(path: str, where: str, fix: str) -> str:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        text = read_file(Path(path))
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; {fix}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not a text file") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s: others can use it (mode %04o); run: chmod 600 %s", where, mode, path)
    return text
