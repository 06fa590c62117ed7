"""``MeshClient``: the client for asyncio, over aiohttp.

Everything that is decided is decided in the flows of ``nodes``, ``presence`` and
``reading``; this shell takes their steps.  Its twin is ``blocking``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

import aiohttp

from p2pmesh.client import calls
from p2pmesh.client.answers import Heartbeat, Instance, Message, Registration, Sent
from p2pmesh.client.calls import ANSWER_MAX, Answer
from p2pmesh.client.nodes import Ask, Failure, Flow, Look, Looked, Nodes, Pause, Step
from p2pmesh.client.parts import SILENCE_MAX, Parts
from p2pmesh.client.presence import BEAT_INTERVAL, Presence
from p2pmesh.client.reading import Reading
from p2pmesh.client.runtime import look
from p2pmesh.errors import NotStarted
from p2pmesh.ids import hostname as own_hostname
from p2pmesh.ids import new_instance_id, uuid7

T = TypeVar("T")

_CONNECTIONS_MAX: Final = 16  # to one node; a long poll holds one
_WORDS_MAX: Final = 65_536  # of why a request is refused


class MeshClient:
    """Takes part in a mesh through the HTTP API of any of its nodes.

    An async context manager.  All calls raise PeerUnreachable when no node that is
    known answers, ConfigError for what a node could not take, and what else is named.
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
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    @staticmethod
    def generate_instance_id() -> str:
        """``<hostname>-<uuid7>``."""
        return new_instance_id(own_hostname())

    @property
    def url(self) -> str | None:
        """The node that answered last."""
        return self._nodes.url

    # --- the registry -------------------------------------------------------------------

    async def register(
        self,
        instance_id: str,
        *,
        hostname: str | None = None,
        port: int = 0,
        capabilities: Iterable[str] = (),
        agent_profiles: Iterable[str] = (),
    ) -> Registration:
        """Join, or change what is said of this instance.  It is listed as long as it sends
        heartbeats: see :meth:`registered`.  Raises IdentityConflict for the id of a live
        node's own agent, QueueFull when the mesh lists as many guests as it can."""
        hostname = own_hostname() if hostname is None else hostname
        return await self._run(
            self._nodes.call(
                calls.register(instance_id, hostname, port, capabilities, agent_profiles)
            )
        )

    async def heartbeat(
        self, instance_id: str, status: str = "healthy", metrics: Mapping[str, Any] | None = None
    ) -> Heartbeat:
        """Say that it lives, at least every 15 s.  Where ``acknowledged`` is False the mesh
        does not know it (any more): register again."""
        return await self._run(self._nodes.call(calls.heartbeat(instance_id, status, metrics)))

    async def list_instances(self) -> tuple[Instance, ...]:
        """All live ones, oldest first; the leader among them has ``is_leader``."""
        return await self._run(self._nodes.call(calls.list_instances()))

    async def deregister(self, instance_id: str) -> bool:
        """Leave; what was not acknowledged is dead.  False: it was not registered.  Raises
        ConfigError for the id of a live node's own agent."""
        return await self._run(self._nodes.call(calls.deregister(instance_id)))

    @asynccontextmanager
    async def registered(
        self,
        instance_id: str | None = None,
        *,
        hostname: str | None = None,
        port: int = 0,
        capabilities: Iterable[str] = (),
        agent_profiles: Iterable[str] = (),
        interval: float = BEAT_INTERVAL,
    ) -> AsyncIterator[Presence]:
        """Registered while the block runs: a task sends a heartbeat every ``interval``
        seconds, registers again where the mesh has forgotten it, and goes to another node
        when one is gone.  Raises as :meth:`register`."""
        presence = Presence(
            self._nodes,
            instance_id or self.generate_instance_id(),
            hostname=hostname,
            port=port,
            capabilities=capabilities,
            agent_profiles=agent_profiles,
            interval=interval,
        )
        await self._run(presence.enter())
        task = asyncio.create_task(self._run(presence.stay()), name=f"of {presence.instance_id}")
        try:
            yield presence
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self._run(presence.leave())

    # --- messages -----------------------------------------------------------------------

    async def send_message(
        self,
        source: str,
        target: str | None,
        payload: Any,
        *,
        type: str = "Notification",
        correlation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Sent:
        """Send to one instance, or (``target`` None) to all others.

        Asked twice with one ``idempotency_key``, a node takes it for one message; unless
        given, each call has its own.  Raises UnknownTarget, QueueFull, MessageTooLarge, and
        TypeError or ValueError for a payload that JSON does not have.
        """
        return await self._run(
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

    async def get_messages(
        self, instance_id: str, *, wait: float = 0.0, limit: int | None = None
    ) -> tuple[Message, ...]:
        """What it was sent and did not acknowledge, oldest first, at most 8 MiB; reading
        removes nothing.  ``wait``: up to so many seconds (60) for there to be something."""
        request = calls.get_messages(instance_id, wait=wait, limit=limit)
        return await self._run(self._nodes.call(request))

    async def acknowledge_messages(self, instance_id: str, message_ids: Iterable[str]) -> None:
        """It is done with these: they are not listed any more."""
        request = calls.acknowledge_messages(instance_id, message_ids)
        await self._run(self._nodes.call(request))

    async def messages(
        self, instance_id: str, *, acknowledge: bool = True, wait: float = 30.0
    ) -> AsyncGenerator[Message, None]:
        """Its messages, one after the other, for ever.

        Each is acknowledged when the next one is asked for: what a ``break`` or an error
        leaves is listed again.  With ``acknowledge=False`` that is up to you, and each
        comes once.  When no node answers (any more) it waits for one.
        """
        reading = Reading(self._nodes, instance_id, wait=wait, acknowledges=acknowledge)
        while True:
            yield await self._run(reading.next())

    async def stream(
        self, source: str, target: str, payload: Any, *, type: str = "Query", timeout: float = 30.0
    ) -> AsyncGenerator[Any, None]:
        """Ask an instance, by its id or name, and yield the parts of its answer as they come;
        an answer that is whole is the only part.

        It is asked when the first part is.  ``timeout``: seconds that each part may take.
        Leaving off stops the far agent: ``contextlib.aclosing`` makes sure.  Raises
        UnknownTarget, AmbiguousTarget, RemoteError, RequestTimeout, also after some parts;
        a node that dies in the middle is PeerUnreachable, and no other is asked then.
        """
        request = calls.stream(source, target, payload, type=type, timeout=timeout)
        answer = await self._run(self._nodes.call(request))
        response: aiohttp.ClientResponse = answer.body
        parts = Parts(answer.url, lambda problem: calls.refused(answer, problem, target))
        try:
            while not parts.is_over:
                try:
                    async with asyncio.timeout(SILENCE_MAX):
                        chunk = await response.content.readany()
                except TimeoutError:
                    raise parts.broken_off("says nothing") from None
                except aiohttp.ClientError:
                    chunk = b""
                if not chunk:
                    raise parts.broken_off("ended")
                for part in parts.feed(chunk):
                    yield part
        finally:
            response.close()

    # --- its end ------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections; calls raise NotStarted from now on."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- the steps of a flow ------------------------------------------------------------

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(await self._take(step))
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    async def _take(self, step: Step) -> Answer | Failure | Looked | None:
        match step:
            case Ask():
                return await self._ask(step)
            case Look():
                return await asyncio.to_thread(look)
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None

    async def _ask(self, step: Ask) -> Answer | Failure:
        request = step.request
        limit = self._timeout + request.wait
        headers = dict(request.headers)
        if step.token is not None:
            headers["Authorization"] = f"Bearer {step.token}"
        asked_at = time.monotonic()
        try:
            if request.streams:
                async with asyncio.timeout(limit):
                    return await self._begin(step, headers)
            async with self._open().request(
                request.method,
                f"{step.url}{request.path}",
                data=request.body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=limit),
                allow_redirects=False,
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > ANSWER_MAX:
                        return Failure(f"its answer exceeds {ANSWER_MAX:,} bytes")
                took = time.monotonic() - asked_at
                return Answer(step.url, response.status, bytes(content), took)
        except TimeoutError:
            return Failure(f"no answer in {limit:g} s")
        except aiohttp.ClientConnectorError as error:
            return Failure(_why(error.os_error))
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
            return Failure("the connection ended before an answer", is_stale=True)
        except aiohttp.ClientError as error:
            return Failure(f"does not answer as a p2pmesh node does: {type(error).__name__}")

    async def _begin(self, step: Ask, headers: Mapping[str, str]) -> Answer:
        """An answer that is read as it comes, if it is one."""
        request = step.request
        response = await self._open().request(
            request.method,
            f"{step.url}{request.path}",
            data=request.body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            allow_redirects=False,
        )
        if response.ok:
            return Answer(step.url, response.status, b"", 0.0, response)
        async with response:
            return Answer(step.url, response.status, await response.content.read(_WORDS_MAX), 0.0)

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise NotStarted("this client is closed: make another")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit_per_host=_CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
        return self._session


def _why(error: OSError) -> str:
    """In the system's words; asyncio has others."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or "cannot be connected to"
