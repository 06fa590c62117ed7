"""``SyncMeshClient``: the client for programs without an event loop, over http.client.

Everything that is decided is decided in the flows of ``nodes``, ``presence`` and
``reading``; this shell takes their steps.  Its twin is ``aio``.

Threads may share a client: a call takes a connection that nobody uses, or opens one.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from p2pmesh.client import calls
from p2pmesh.client.answers import Heartbeat, Instance, Message, Registration, Sent
from p2pmesh.client.calls import ANSWER_MAX, Answer
from p2pmesh.client.deadline import Connection
from p2pmesh.client.nodes import Ask, Failure, Flow, Look, Looked, Nodes, Pause, Step
from p2pmesh.client.parts import SILENCE_MAX, Parts
from p2pmesh.client.presence import BEAT_INTERVAL, Presence
from p2pmesh.client.reading import Reading
from p2pmesh.client.runtime import look
from p2pmesh.errors import NotStarted
from p2pmesh.ids import hostname as own_hostname
from p2pmesh.ids import new_instance_id, uuid7

T = TypeVar("T")

_IDLE_MAX: Final = 8  # connections kept to one node
_CHUNK: Final = 65_536


class SyncMeshClient:
    """As ``MeshClient``, call by call, but each returns when it is done.

    A context manager.
    """

    def __init__(
        self, *urls: str, mesh: str | None = None, token: str | None = None, timeout: float = 10.0
    ) -> None:
        """``urls``: of nodes, the preferred one first; P2PMESH_URL if none is given.  The
        nodes that run on this machine in the same mesh are known anyway; ``mesh`` says
        which one that is where it is not clear.  ``token``: P2PMESH_HTTP_TOKEN unless
        given.  ``timeout``: seconds that one node may take to answer."""
        calls.check_timeout(timeout)
        self._nodes = Nodes(urls, mesh, token)
        self._timeout = timeout
        self._idle: dict[str, list[Connection]] = {}
        self._is_closed = threading.Event()

    @staticmethod
    def generate_instance_id() -> str:
        """``<hostname>-<uuid7>``."""
        return new_instance_id(own_hostname())

    @property
    def url(self) -> str | None:
        """The node that answered last."""
        return self._nodes.url

    # --- the registry -------------------------------------------------------------------

    def register(
        self,
        instance_id: str,
        *,
        hostname: str | None = None,
        port: int = 0,
        capabilities: Iterable[str] = (),
        agent_profiles: Iterable[str] = (),
    ) -> Registration:
        hostname = own_hostname() if hostname is None else hostname
        return self._run(
            self._nodes.call(
                calls.register(instance_id, hostname, port, capabilities, agent_profiles)
            )
        )

    def heartbeat(
        self, instance_id: str, status: str = "healthy", metrics: Mapping[str, Any] | None = None
    ) -> Heartbeat:
        return self._run(self._nodes.call(calls.heartbeat(instance_id, status, metrics)))

    def list_instances(self) -> tuple[Instance, ...]:
        return self._run(self._nodes.call(calls.list_instances()))

    def deregister(self, instance_id: str) -> bool:
        return self._run(self._nodes.call(calls.deregister(instance_id)))

    @contextmanager
    def registered(
        self,
        instance_id: str | None = None,
        *,
        hostname: str | None = None,
        port: int = 0,
        capabilities: Iterable[str] = (),
        agent_profiles: Iterable[str] = (),
        interval: float = BEAT_INTERVAL,
    ) -> Iterator[Presence]:
        """As ``MeshClient.registered``: a thread sends the heartbeats."""
        presence = Presence(
            self._nodes,
            instance_id or self.generate_instance_id(),
            hostname=hostname,
            port=port,
            capabilities=capabilities,
            agent_profiles=agent_profiles,
            interval=interval,
        )
        self._run(presence.enter())
        is_over = threading.Event()
        thread = threading.Thread(
            target=self._run_until,
            args=(is_over, presence.stay()),
            name=f"of {presence.instance_id}",
            daemon=True,
        )
        thread.start()
        try:
            yield presence
        finally:
            is_over.set()
            thread.join()
            self._run(presence.leave())

    # --- messages -----------------------------------------------------------------------

    def send_message(
        self,
        source: str,
        target: str | None,
        payload: Any,
        *,
        type: str = "Notification",
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Sent:
        return self._run(
            self._nodes.call(
                calls.send_message(
                    source,
                    target,
                    payload,
                    type=type,
                    correlation_id=correlation_id,
                    idempotency_key=uuid7() if idempotency_key is None else idempotency_key,
                )
            )
        )

    def get_messages(
        self, instance_id: str, *, wait: float = 0.0, limit: int | None = None
    ) -> tuple[Message, ...]:
        return self._run(self._nodes.call(calls.get_messages(instance_id, wait=wait, limit=limit)))

    def acknowledge_messages(self, instance_id: str, message_ids: Iterable[str]) -> None:
        self._run(self._nodes.call(calls.acknowledge_messages(instance_id, message_ids)))

    def messages(
        self, instance_id: str, *, acknowledge: bool = True, wait: float = 30.0
    ) -> Iterator[Message]:
        reading = Reading(self._nodes, instance_id, wait=wait, acknowledges=acknowledge)
        while True:
            yield self._run(reading.next())

    def stream(
        self, source: str, target: str, payload: Any, *, type: str = "Query", timeout: float = 30.0
    ) -> Iterator[Any]:
        request = calls.stream(source, target, payload, type=type, timeout=timeout)
        answer = self._run(self._nodes.call(request))
        parts = Parts(answer.url, lambda problem: calls.refused(answer, problem, target))
        with closing(answer.body) as body:
            while not parts.is_over:
                try:
                    chunk = body.read()
                except TimeoutError:
                    raise parts.broken_off("says nothing") from None
                except (OSError, http.client.HTTPException):
                    chunk = b""
                if not chunk:
                    raise parts.broken_off("ended")
                yield from parts.feed(chunk)

    # --- its end ------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections that nobody uses; calls raise NotStarted from now on."""
        self._is_closed.set()
        for idle in list(self._idle.values()):
            while idle:
                idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the steps of a flow ------------------------------------------------------------

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(self._take(step, self._is_closed))
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    def _run_until(self, is_over: threading.Event, flow: Flow[None]) -> None:
        """A flow that does not end by itself, in a thread of its own."""
        with closing(flow), suppress(NotStarted):
            step = next(flow)
            while not is_over.is_set():
                step = flow.send(self._take(step, is_over))

    def _take(self, step: Step, wakes: threading.Event) -> Answer | Failure | Looked | None:
        if self._is_closed.is_set():
            raise NotStarted("this client is closed: make another")
        match step:
            case Ask():
                return self._ask(step)
            case Look():
                return look()
            case Pause(seconds):
                wakes.wait(seconds)
                return None

    def _ask(self, step: Ask) -> Answer | Failure:
        limit = self._timeout + step.request.wait
        connection, is_reused = self._open(step.url, time.monotonic() + limit)
        is_kept = False
        is_read = None  # as it comes, by who closes it
        try:
            answer = _exchange(connection, step)
            is_kept = isinstance(answer, Answer) and connection.sock is not None
            is_read = answer.body if isinstance(answer, Answer) else None
            return answer
        except TimeoutError:
            return Failure(f"no answer in {limit:g} s")
        except ConnectionError as error:  # with those of http.client
            self._forget(step.url)
            reason = error.strerror or "the connection ended before an answer"
            return Failure(reason, is_stale=is_reused)
        except http.client.HTTPException as error:
            return Failure(f"does not answer as a p2pmesh node does: {type(error).__name__}")
        except OSError as error:
            return Failure(error.strerror or "cannot be connected to")
        finally:
            if is_read is not None:
                pass
            elif is_kept:
                self._keep(step.url, connection)
            else:
                connection.close()

    # --- connections --------------------------------------------------------------------

    def _open(self, url: str, ends_at: float) -> tuple[Connection, bool]:
        """A connection that nobody uses; whether it was used before."""
        idle = self._idle.get(url)
        if idle:
            with suppress(IndexError):  # another thread was first
                connection = idle.pop()
                connection.set_deadline(ends_at)
                return connection, True
        parts = urlsplit(url)
        return Connection(parts.hostname or "", parts.port or 80, ends_at), False

    def _keep(self, url: str, connection: Connection) -> None:
        idle = self._idle.setdefault(url, [])
        if len(idle) >= _IDLE_MAX or self._is_closed.is_set():
            connection.close()
        else:
            idle.append(connection)

    def _forget(self, url: str) -> None:
        """What was kept to a node that hung up once is of no use."""
        for connection in self._idle.pop(url, []):
            connection.close()


def _exchange(connection: Connection, step: Ask) -> Answer | Failure:
    """One request and its answer; raises OSError, HTTPException."""
    request = step.request
    headers = dict(request.headers)
    if step.token is not None:
        headers["Authorization"] = f"Bearer {step.token}"
    asked_at = time.monotonic()
    connection.request(request.method, request.path, request.body, headers)
    if request.streams:
        response = connection.getresponse()
        if response.status == http.client.OK:
            return Answer(step.url, response.status, b"", 0.0, _Body(connection, response))
        with response:
            return Answer(step.url, response.status, response.read(_CHUNK), 0.0)
    with connection.getresponse() as response:
        content = bytearray()
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > ANSWER_MAX:
                return Failure(f"its answer exceeds {ANSWER_MAX:,} bytes")
        if response.length:  # what was announced and never came
            raise ConnectionResetError
        took = time.monotonic() - asked_at
        return Answer(step.url, response.status, bytes(content), took)


class _Body:
    """An answer that is read as it comes, with its connection."""

    def __init__(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def read(self) -> bytes:
        """What came; empty: it has ended.  Raises OSError, HTTPException."""
        self._connection.set_deadline(time.monotonic() + SILENCE_MAX)
        return self._response.read1(_CHUNK)

    def close(self) -> None:
        self._response.close()
        self._connection.close()
