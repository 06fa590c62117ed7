"""Bearer tokens: who may ask, and for how much.

A token file has one ``read|write|admin TOKEN`` a line; ``P2PMESH_HTTP_TOKEN`` is one
more, for all there is.  A node keeps digests of them and compares those, every
one of them each time, so that the time it takes tells nothing about any.

Does not: read files or the environment, know what a call needs (its route says
so), or load anything that a one-shot command would have to wait for.

Invariant: no error and no representation quotes a token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

TOKENS_MAX: Final = 64
TOKEN_MAX: Final = 256


class Scope(IntEnum):
    """What a token is good for; each includes the ones before it."""

    READ = 1  # every GET
    WRITE = 2  # registering, sending, asking, acknowledging
    ADMIN = 3  # the node itself

    def __str__(self) -> str:
        return self.name.lower()


class Grant(NamedTuple):
    scope: Scope
    token: str

    def __repr__(self) -> str:
        return f"Grant({self.scope})"


class Tokens:
    """The tokens that a node knows.  False without any: then nobody is asked for one."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._key = os.urandom(32)  # equal tokens have other digests elsewhere
        self._known = tuple((self._digest(grant.token), grant.scope) for grant in grants)

    def __bool__(self) -> bool:
        return bool(self._known)

    def scope_of(self, token: str) -> Scope | None:
        """None: it is none of ours."""
        digest = self._digest(token)
        found = [scope for known, scope in self._known if hmac.compare_digest(known, digest)]
        return max(found, default=None)

    def _digest(self, token: str) -> bytes:
        # What a header holds need not have been text.
        raw = token.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, digest_size=32, key=self._key).digest()


def read_token(text: str) -> str:
    """A token as a header can carry it.  Raises ValueError."""
    if not (re.fullmatch(r"[!-~]+", text) and len(text) <= TOKEN_MAX):
        raise ValueError(f"a token is 1 to {TOKEN_MAX} visible ASCII characters without spaces")
    return text


def read_scope(text: str) -> Scope:
    try:
        return Scope[text.upper()]
    except KeyError:
        raise ValueError("a scope is one of read, write, admin") from None


#: As an application says it: one token for all there is, or the scope of each token.
Given: TypeAlias = str | Mapping[str, str]


def grants_of(given: Given) -> tuple[Grant, ...]:
    """Raises ValueError."""
    if not given:
        return ()
    scopes = {given: "admin"} if isinstance(given, str) else given
    if len(scopes) > TOKENS_MAX:
        raise ValueError(f"{len(scopes)} tokens, at most {TOKENS_MAX}")
    return tuple(Grant(read_scope(scope), read_token(token)) for token, scope in scopes.items())


def read_grants(text: str) -> tuple[Grant, ...]:
    """The tokens of a token file.  A line or a word that begins with ``#`` begins a
    comment.  Raises ValueError, which names the line."""
    grants: dict[str, Grant] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        try:
            if len(words) != 2:
                raise ValueError("give 'read TOKEN', 'write TOKEN' or 'admin TOKEN'")
            grant = Grant(read_scope(words[0]), read_token(words[1]))
            if grant.token in grants:
                raise ValueError("this token stands in an earlier line: remove one")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        grants[grant.token] = grant
    if not grants:
        raise ValueError("there is no token in it: give a line like 'admin TOKEN'")
    if len(grants) > TOKENS_MAX:
        raise ValueError(f"{len(grants)} tokens in it, at most {TOKENS_MAX}")
    return tuple(grants.values())
