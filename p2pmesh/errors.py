"""The one tree of errors that p2pmesh raises.

Each message names what it is about and what to do.  Errors of the other side
(bytes, records, requests from the network) never surface as these: they are
counted, reported as events, and end at the boundary where they arrived.
"""

from __future__ import annotations


class MeshError(Exception):
    """Anything p2pmesh raises on purpose."""


class ConfigError(MeshError):
    """A setting, argument or identifier is not usable; names it and the fix."""


class NotStarted(MeshError):
    """The node is not running (not entered yet, left, or in a forked child)."""


class UnknownTarget(MeshError):
    """No instance has this id or name; ``nearest`` holds similar names.  ``has_left``: one
    had it, and left for good (``was_name``: its name).  ``asked`` is the URL of the node that
    a client of the HTTP API spoke to.  ``problem`` is the message without what to do in
    Python."""

    def __init__(
        self,
        target: str,
        nearest: tuple[str, ...] = (),
        asked: str = "",
        *,
        has_left: bool = False,
        was_name: bool = False,
    ) -> None:
        hint = f"; did you mean {', '.join(map(repr, nearest))}?" if nearest else ""
        where = f"the mesh of {asked}" if asked else "this mesh"
        wait = ""
        if has_left and not was_name:
            problem = f"{target!r} has left {where} for good: send to another, or by name"
        else:
            begins = " If" if hint else "; if"
            wait = f"{begins} it is still to come, wait: await node.wait_for(name={target!r})"
            problem = (
                f"nobody is called {target!r} any more: who was has left {where} for good{hint}"
                if has_left
                else f"no instance {target!r} is known in {where}{hint}"
            )
        super().__init__(problem if asked else problem + wait)
        self.problem = problem
        self.target = target
        self.nearest = nearest
        self.has_left = has_left


class AmbiguousTarget(MeshError):
    """Several live instances have this name; ``candidates`` holds their ids."""

    def __init__(self, target: str, candidates: tuple[str, ...]) -> None:
        super().__init__(
            f"{target!r} is the name of {len(candidates)} instances: "
            f"{', '.join(candidates)}; address one by its id"
        )
        self.target = target
        self.candidates = candidates


class PeerUnreachable(MeshError):
    """The target failed, left, restarted, or no link to it can be made."""


class RequestTimeout(MeshError, TimeoutError):
    """No answer came within the timeout."""


class RemoteError(MeshError):
    """The other side's handler raised or is missing; ``code`` says which."""

    def __init__(self, code: str, detail: str = "", peer: str = "") -> None:
        where = f" at {peer}" if peer else ""
        super().__init__(f"{code}{where}: {detail}" if detail else f"{code}{where}")
        self.code = code
        self.detail = detail
        self.peer = peer


class MessageTooLarge(MeshError):
    """The encoded payload is over the size limit; names both sizes."""


class QueueFull(MeshError):
    """A bounded queue has no room; nothing was accepted."""


class StoreFull(MeshError):
    """The disk has no room; nothing was accepted."""


class NotAuthoritative(MeshError):
    """This node does not hold leadership that its policy accepts."""


class IdentityConflict(MeshError):
    """Another live node has this identity or instance id; names both."""
