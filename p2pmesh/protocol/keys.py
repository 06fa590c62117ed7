"""Mesh keys: their text form, and what a mesh derives from them.

A mesh is a name and one to three 32-byte keys.  From the name and a key *K*
come, by BLAKE2b keyed with *K* and separated by ``person`` strings,

* ``kid`` (6 bytes), said in the clear by whoever dials: which key is meant;
* ``psk`` (32 bytes), mixed into the handshake: proof that both know it.

``mesh_id`` (8 bytes) hashes the name alone: it stays the same while keys are
rotated, so two nodes that see each other can tell "another mesh" from "the same
mesh under another key".  Who guesses the name can recognise the mesh by it, and
no more than that.

Without a key the mesh is *open*: *K* is derived from the name.  That keeps
differently named meshes apart, and stops nobody who wants in.

Rotation: the first key of the ring is offered, all are accepted.  Add the new
one everywhere, then put it first everywhere, then remove the old one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from p2pmesh.errors import ConfigError
from p2pmesh.protocol.limits import KEYS_MAX

KEY_SIZE: Final = 32
KID_SIZE: Final = 6
MESH_ID_SIZE: Final = 8

PREFIX: Final = "pmk1_"
_CHECKSUM_SIZE: Final = 3  # 32 + 3 bytes are exactly 56 characters of base32
_TEXT_SIZE: Final = 56


class LinkKey(NamedTuple):
    """What a link needs of one mesh key."""

    kid: bytes
    psk: bytes


class KeyRing:
    """The keys of one mesh, ready for links.

    ``offered`` is what our dials use, ``accepted`` maps every kid we answer to
    its psk, ``is_open`` says that no key was given.
    """

    __slots__ = ("accepted", "is_open", "mesh_id", "offered")

    def __init__(self, mesh: str, keys: Sequence[bytes] = ()) -> None:
        if len(keys) > KEYS_MAX:
            raise ConfigError(
                f"{len(keys)} keys given, at most {KEYS_MAX} are used: remove the oldest"
            )
        if any(len(key) != KEY_SIZE for key in keys):
            raise ConfigError(f"a mesh key has {KEY_SIZE} bytes: make one with 'p2pmesh keygen'")
        if len(set(keys)) != len(keys):
            raise ConfigError("the same mesh key is given twice: remove one")
        name = mesh.encode()
        derived = [_derive(name, key) for key in keys or (_open_key(name),)]
        self.is_open: Final = not keys
        self.offered: Final = derived[0]
        self.accepted: Final = {key.kid: key.psk for key in derived}
        self.mesh_id: Final = _hash(name, MESH_ID_SIZE, b"p2pmesh mesh id")


def generate_key(entropy: Callable[[int], bytes]) -> str:
    """A new random key in its text form."""
    return format_key(entropy(KEY_SIZE))


def format_key(key: bytes) -> str:
    """The text form of a 32-byte key: ``pmk1_`` and 56 characters of base32."""
    return PREFIX + base64.b32encode(key + _checksum(key)).decode().lower()


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in text form; :class:`ConfigError` says what is wrong
    with it, and never quotes it."""
    text = text.strip()
    if not text.lower().startswith(PREFIX):
        raise ConfigError(
            f"a mesh key begins with '{PREFIX}', this does not: make one with 'p2pmesh keygen'"
        )
    digits = text[len(PREFIX) :]
    if len(digits) != _TEXT_SIZE:
        raise ConfigError(
            f"a mesh key has {_TEXT_SIZE} characters after '{PREFIX}', "
            f"this has {len(digits)}: copy it whole"
        )
    try:
        raw = base64.b32decode(digits.upper())
    except (binascii.Error, ValueError):
        raise ConfigError(
            "a mesh key is made of letters and the digits 2 to 7, "
            "this has other characters: copy it again"
        ) from None
    key, checksum = raw[:KEY_SIZE], raw[KEY_SIZE:]
    if checksum != _checksum(key):
        raise ConfigError("a mesh key has a mistyped character: copy it again")
    return key


def parse_keys(text: str) -> tuple[bytes, ...]:
    """The keys of a key file or ``P2PMESH_KEY``: separated by commas or white
    space, the first is offered; from ``#`` to the end of a line is a comment."""
    lines = (line.partition("#")[0].replace(",", " ") for line in text.splitlines())
    keys = tuple(parse_key(word) for line in lines for word in line.split())
    if not keys:
        raise ConfigError("there is no mesh key in it: make one with 'p2pmesh keygen'")
    if len(keys) > KEYS_MAX:
        raise ConfigError(f"{len(keys)} mesh keys in it, at most {KEYS_MAX}: remove the oldest")
    return keys


def _derive(name: bytes, key: bytes) -> LinkKey:
    return LinkKey(
        kid=_hash(name, KID_SIZE, b"p2pmesh kid", key),
        psk=_hash(name, KEY_SIZE, b"p2pmesh psk", key),
    )


def _open_key(name: bytes) -> bytes:
    return _hash(name, KEY_SIZE, b"p2pmesh open")


def _checksum(key: bytes) -> bytes:
    return _hash(key, _CHECKSUM_SIZE, b"p2pmesh checksum")


def _hash(data: bytes, size: int, person: bytes, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=size, key=key, person=person).digest()
