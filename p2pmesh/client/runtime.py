"""The nodes of this machine, as a client finds them.

Does not: prove that one of them answers.
"""

from __future__ import annotations

from p2pmesh.client.nodes import Looked
from p2pmesh.errors import ConfigError
from p2pmesh.transport.runtime import list_nodes


def look() -> Looked:
    """What the runtime directory offers, or why it cannot be read.  Reads files."""
    try:
        return list_nodes()
    except ConfigError as error:
        return error
    except OSError as error:
        return ConfigError(f"the runtime directory cannot be read: {error}")
