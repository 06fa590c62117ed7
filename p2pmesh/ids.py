"""New ids, and the name of this host.

Does not: check instance ids that others made (``values``), nor make the ids of messages
in the core, whose randomness is passed in.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import Final

from p2pmesh.protocol.limits import NAME_MAX


def uuid7() -> str:
    """RFC 9562: 48 bits of unix milliseconds, then 74 random ones."""
    tail = bytearray(os.urandom(10))
    tail[0] = tail[0] & 0x0F | 0x70  # version 7
    tail[2] = tail[2] & 0x3F | 0x80  # the RFC's variant
    text = ((time.time_ns() // 1_000_000) & 0xFFFF_FFFF_FFFF).to_bytes(6).hex() + tail.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_uuid7(text: str) -> bool:
    """As :func:`uuid7` writes it."""
    return _UUID7.fullmatch(text) is not None


_UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_instance_id(name: str) -> str:
    """``<name>-<uuid7>``: sorts by time, and nobody else has it."""
    return f"{name}-{uuid7()}"


def hostname() -> str:
    """The host's name as far as it is fit to be shown, 1 to 64 bytes."""
    text = "".join(c for c in socket.gethostname() if c.isprintable())
    return text.encode(errors="replace")[:NAME_MAX].decode(errors="ignore") or "node"
