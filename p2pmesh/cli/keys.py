"""``keygen`` and ``version``: what needs neither a node nor a network."""

from __future__ import annotations

import os
import platform
import sys

import p2pmesh
from p2pmesh.cli.call import Call
from p2pmesh.protocol.keys import generate_key


def keygen(call: Call) -> int:
    """A new mesh key on stdout; on a terminal also what to do with it."""
    key = generate_key(os.urandom)
    if call.settings.json:
        call.out.object({"key": key})
        return 0
    call.out.text(key)
    if call.out.is_terminal:
        call.out.note("Put it in a file that only you can read (chmod 600) on every machine,")
        call.out.note("then: p2pmesh run --key-file FILE")
    return 0


def version(call: Call) -> int:
    python = platform.python_version()
    if call.settings.json:
        call.out.object(
            {"version": p2pmesh.__version__, "python": python, "platform": sys.platform}
        )
    else:
        call.out.text(f"p2pmesh {p2pmesh.__version__} (Python {python}, {sys.platform})")
    return 0
