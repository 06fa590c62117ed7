"""The node that a one-shot command speaks to: which one, and how.

``choose`` picks it (``--url``, else from the runtime directory the oldest that
answers); ``NodeClient`` makes
JSON calls over one kept connection with http.client.  Every way in which that
can fail ends as a MeshError or ConfigError whose text names the node and the fix.

Does not: import anything of the mesh, retry a call, or follow redirects.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from p2pmesh.cli.output import printable
from p2pmesh.config import Settings
from p2pmesh.credentials import http_token
from p2pmesh.errors import ConfigError, MeshError

ANSWER_TIMEOUT: Final = 10.0  # a local node that takes longer is stopped or starved
EVENT_TIMEOUT: Final = 45.0  # the node says something, if only a comment, every 15 s
WATCH_TIMEOUT: Final = 20.0  # the same, where another node can be asked
PROBE_TIMEOUT: Final = 2.0  # likewise


class NodeGone(MeshError):
    """A node does not answer, or no longer; ``advice`` is for whom there is no other."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what + advice)
        self.what = what


def choose(settings: Settings, *, must_answer: bool = False) -> NodeClient:
    """The node to speak to: ``--url``, else the oldest process on this machine that
    answers; it left its token in the runtime directory.  One that was passed over is told
    of on stderr.  The last is taken unasked, so that it gets its whole time, unless it
    ``must_answer``.  Raises ConfigError, MeshError; NodeGone for a last one that did not."""
    if settings.url is not None:
        others = partial(_others_than, settings.url, settings)
        return NodeClient(settings.url, http_token(settings, os.environ), others)
    from p2pmesh.transport.runtime import list_nodes

    wanted = settings.mesh
    nodes = list_nodes(wanted)
    if not nodes:
        of_mesh = "" if wanted is None else f" of mesh {wanted!r}"
        start = "p2pmesh run" if wanted is None else f"p2pmesh run --mesh {wanted}"
        raise MeshError(
            f"no p2pmesh node{of_mesh} runs here: start one with '{start}' or give --url"
        )
    meshes = sorted({node.mesh for node in nodes})
    if len(meshes) > 1:
        raise ConfigError(
            f"nodes of {len(meshes)} meshes run here: give --mesh, "
            f"one of {', '.join(map(repr, meshes))}"
        )
    served = [node for node in nodes if node.http is not None]  # oldest first
    if not served:
        raise MeshError("every p2pmesh node here runs with --http off: start one without it")
    for number, entry in enumerate(served):
        node = NodeClient(str(entry.http), entry.token)
        is_last = number == len(served) - 1
        if is_last:
            if must_answer:
                _probe(node)
            return node
        if _answers(node, f"{entry.instance_id} (process {entry.pid})"):
            return node
    raise AssertionError("the last one is taken")


def has_other(settings: Settings, node: NodeClient) -> bool:
    """Does another node than this one run here, that could be asked?"""
    from p2pmesh.transport.runtime import list_nodes

    return any(each.http not in (None, node.url) for each in list_nodes(settings.mesh))


def _others_than(url: str, settings: Settings) -> str:
    """What to do instead of asking only that URL, where nodes run here."""
    from p2pmesh.transport.runtime import list_nodes

    try:
        count = sum(each.http not in (None, url) for each in list_nodes(settings.mesh))
    except ConfigError:
        return ""
    said = f"; without --url and P2PMESH_URL one of the nodes here ({count}) is asked"
    return said if count else ""


def _answers(node: NodeClient, who: str) -> bool:
    """Asked before anything is done, so that nothing is done twice."""
    try:
        _probe(node)
    except NodeGone as error:
        warn(f"{error.what}, which is {who}: asking another")
        return False
    return True


def _probe(node: NodeClient) -> None:
    """Raises NodeGone, with the connection closed, where nothing answers."""
    try:
        node.get("/health", timeout=PROBE_TIMEOUT)
    except NodeGone:
        node.close()
        raise
    except MeshError:
        pass  # an answer, too


def warn(text: str) -> None:
    """A line on stderr for what does not end the command."""
    sys.stderr.write(f"p2pmesh: {printable(text)}\n")


class NodeClient:
    """Calls to one node's HTTP API over a kept connection."""

    def __init__(
        self, url: str, token: str | None = None, instead: Callable[[], str] = str
    ) -> None:
        """``instead`` says behind an error what else can be asked."""
        self.url = url
        self._instead = instead
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port or 80, timeout=ANSWER_TIMEOUT
        )

    def get(self, path: str, timeout: float | None = None) -> Any:
        return self._call("GET", path, timeout=timeout)

    def post(
        self,
        path: str,
        body: object,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return self._call("POST", path, json.dumps(body).encode(), timeout, headers)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def instance(self, target: str) -> str:
        """The id of the instance that an id, node id or unique name means."""
        return str(self.get(f"/v1/members/{segment(target)}")["instance_id"])

    def own_instance(self) -> str:
        return str(self.get("/v1/self")["instance_id"])

    def events(self) -> Iterator[dict[str, Any]]:
        """The node's events from now on; ends with NodeGone when the node does."""
        answer = self._open("GET", "/v1/events", None, WATCH_TIMEOUT)
        if answer.status != 200:
            raise _refusal(answer.status, answer.read(), self.url)
        try:
            while line := answer.readline():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        except TimeoutError:
            raise NodeGone(f"the node at {self.url} said nothing for {WATCH_TIMEOUT:g} s") from None
        except (OSError, http.client.HTTPException):
            pass  # as if it had ended
        except ValueError:
            raise MeshError(f"{self.url} sends events that are not JSON") from None
        raise NodeGone(f"the node at {self.url} ended")

    def parts(self, path: str, body: object, timeout: float) -> Iterator[Any]:
        """The parts of an answer as they come, the first within ``timeout``.  Raises
        MeshError, also for what ends it before its end."""
        content = json.dumps(body).encode()
        answer = self._open("POST", f"{path}?stream=1", content, max(timeout, EVENT_TIMEOUT))
        if answer.status != 200:
            raise _refusal(answer.status, answer.read(), self.url)
        try:
            event = b""
            while line := answer.readline():
                if line.startswith(b"event:"):
                    event = line[6:].strip()
                elif not line.startswith(b"data:"):
                    continue
                elif event == b"part":
                    yield json.loads(line[5:])
                elif event == b"error":
                    raise _refusal(0, line[5:], self.url)
                else:
                    return
        except (OSError, http.client.HTTPException):
            pass  # as if it had ended
        except ValueError:
            raise MeshError(f"{self.url} sends parts that are not JSON") from None
        raise MeshError(f"the node at {self.url} ended in the middle of the answer")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        timeout = timeout or ANSWER_TIMEOUT
        answer = self._open(method, path, body, timeout, headers)
        try:
            content = answer.read()
            if answer.status >= 300:
                raise _refusal(answer.status, content, self.url)
            return json.loads(content) if content else None
        except TimeoutError:
            raise self._silent(timeout) from None
        except (OSError, http.client.HTTPException, ValueError):
            raise MeshError(f"{self.url} does not answer as a p2pmesh node does") from None

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float,
        further: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        headers = {**self._headers, **(further or {})}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connection
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse()
        except TimeoutError:
            raise self._silent(timeout) from None
        except http.client.HTTPException:
            raise MeshError(f"{self.url} does not answer as a p2pmesh node does") from None
        except OSError as error:
            reason = error.strerror or error
            raise NodeGone(
                f"no node answers at {self.url} ({reason})",
                f": start one with 'p2pmesh run' or give another --url{self._instead()}",
            ) from None

    def _silent(self, timeout: float) -> NodeGone:
        return NodeGone(f"the node at {self.url} did not answer in {timeout:g} s", self._instead())


def segment(text: str) -> str:
    """One path segment."""
    return quote(text, safe="")


def _refusal(status: int, content: bytes, url: str) -> MeshError:
    """The node's own words, from a problem document or from plain text."""
    if status == 401:
        return MeshError(
            f"{url} asks for a token, and has not got one that it knows: "
            "give P2PMESH_HTTP_TOKEN or --http-token-file FILE"
        )
    try:
        problem = json.loads(content)
        words = problem.get("detail") or problem.get("error") or problem.get("title")
    except (ValueError, AttributeError):
        words = content.decode(errors="replace").strip()
    return MeshError(f"{words}" if words else f"{url} answers {status}")
