"""The calls that clients of the registry know, and ``/health``.

This is the contract of an existing system (docs/http.md, part A): statuses, field
names and shapes are exact, and its clients work against any node unchanged.
Every handler is one exchange with the backend between a typed body and an
answer; whose home an instance has is the backend's business.

Does not: decide anything about instances or messages; know sockets.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from p2pmesh.errors import UnknownTarget
from p2pmesh.http.backend import Backend, Repeated, Sent
from p2pmesh.http.calls import JSON, Answer, Call, Refusal, Route, json_answer
from p2pmesh.http.codec import Instance, Message, MessageType, instances_out, message_out
from p2pmesh.http.idempotency import IdempotencyKey, KeyedAnswers
from p2pmesh.http.kept import KeptAnswer
from p2pmesh.ids import is_uuid7
from p2pmesh.protocol.limits import (
    CORRELATION_MAX,
    HOSTNAME_MAX,
    INSTANCE_ID_MAX,
    LABEL_MAX,
    LABELS_MAX,
    MAILBOX_MESSAGES_MAX,
)
from p2pmesh.protocol.timing import READ_WAIT_MAX
from p2pmesh.protocol.types import Member
from p2pmesh.values import read_hostname, read_instance_id, read_label

#: One answer of ``GET /messages``: oldest first, the rest after acknowledgements.
MESSAGES_BYTES_MAX: Final = 8 * 1024 * 1024

# --- bodies ------------------------------------------------------------------

_PRINTABLE: Final = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"

# A schema counts characters, and these are limits of bytes: ``values`` reads them.
InstanceId: TypeAlias = Annotated[
    str,
    Meta(
        description=f"1 to {INSTANCE_ID_MAX} bytes of UTF-8 without control characters",
        extra_json_schema={"minLength": 1, "maxLength": INSTANCE_ID_MAX, "pattern": _PRINTABLE},
    ),
]
_Label: TypeAlias = Annotated[
    str,
    Meta(
        description=f"1 to {LABEL_MAX} bytes of UTF-8 without control characters",
        extra_json_schema={"minLength": 1, "maxLength": LABEL_MAX, "pattern": _PRINTABLE},
    ),
]
_Labels: TypeAlias = Annotated[tuple[_Label, ...], Meta(max_length=LABELS_MAX)]


class RegisterBody(Struct, frozen=True):
    instance_id: InstanceId
    hostname: Annotated[
        str, Meta(extra_json_schema={"maxLength": HOSTNAME_MAX, "pattern": _PRINTABLE})
    ]
    port: Annotated[int, Meta(ge=0, le=65535)]
    capabilities: _Labels
    agent_profiles: _Labels

    def __post_init__(self) -> None:
        read_instance_id(self.instance_id)
        read_hostname(self.hostname)
        for label in (*self.capabilities, *self.agent_profiles):
            read_label(label)


class HeartbeatBody(Struct, frozen=True):
    status: str
    metrics: dict[str, Any] | None = None


class SendBody(Struct, frozen=True, kw_only=True):
    message_type: MessageType
    payload: Any
    target_instance: Annotated[str | None, Meta(description="none: a broadcast")] = None
    correlation_id: Annotated[
        str | None, Meta(extra_json_schema={"maxLength": CORRELATION_MAX})
    ] = None

    def __post_init__(self) -> None:
        if self.correlation_id and len(self.correlation_id.encode()) > CORRELATION_MAX:
            raise ValueError(f"correlation_id is at most {CORRELATION_MAX} bytes")


class MessagesQuery(Struct, frozen=True):
    limit: Annotated[
        int,
        Meta(
            ge=1,
            le=MAILBOX_MESSAGES_MAX,
            description=f"how many messages at most, 1 to {MAILBOX_MESSAGES_MAX}",
        ),
    ] = MAILBOX_MESSAGES_MAX
    wait: Annotated[
        float,
        Meta(
            ge=0,
            le=READ_WAIT_MAX,
            description=f"how many seconds to wait if there is none, 0 to {READ_WAIT_MAX:g}",
        ),
    ] = 0.0


class AckBody(Struct, frozen=True):
    message_ids: tuple[str, ...]


# --- answers -----------------------------------------------------------------


class Registered(Struct, frozen=True):
    success: bool
    instance_id: str
    is_leader: bool
    leader_id: str | None
    peers: tuple[Instance, ...]


class Listing(Struct, frozen=True):
    instances: tuple[Instance, ...]
    leader_id: str | None


class Acknowledged(Struct, frozen=True):
    acknowledged: bool
    leader_id: str | None
    should_sync: bool = False


class SentAnswer(Struct, frozen=True):
    message_id: str
    status: str
    delivered_to: tuple[str, ...]
    state: str  # ours: "stored" when the recipient's home has it


class NoTarget(Struct, frozen=True, omit_defaults=True):
    error: str
    nearest: tuple[str, ...] = ()  # ours: ids and names like it


class Messages(Struct, frozen=True):
    messages: tuple[Message, ...]


class Health(Struct, frozen=True):
    status: str
    version: str
    uptime_seconds: int
    active_sessions: int
    node_id: str
    instance_id: str
    mesh: str
    leader_id: str | None
    instances: int


# --- handlers ----------------------------------------------------------------


class Registry:
    """The handlers, with the answers to repeated sends."""

    def __init__(self, backend: Backend, version: str) -> None:
        self._backend = backend
        self._version = version
        self._keyed = KeyedAnswers(self._sent_before)
        self._list = KeptAnswer(self._list_agents)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "POST", "/registry/register", self.register, RegisterBody,
                summary="Register a guest, or refresh what it says of itself.",
                answers={200: Registered},
                refusals=(409, 429),
            ),
            Route(
                "GET", "/registry/agents", self.agents,
                summary="All live instances of the mesh, oldest first.",
                answers={200: Listing},
            ),
            Route(
                "POST", "/registry/heartbeat/{id}", self.heartbeat, HeartbeatBody,
                summary="A guest is alive, and how.",
                answers={200: Acknowledged, 404: Acknowledged},
                refusals=(429,),
            ),
            Route(
                "DELETE", "/registry/deregister/{id}", self.deregister,
                summary="A guest leaves.",
                answers={204: None, 404: None},
            ),
            Route(
                "POST", "/messages/send/{source}", self.send, SendBody,
                headers={"Idempotency-Key": IdempotencyKey},
                summary="Send a message to one instance, or to all.",
                answers={200: SentAnswer, 400: NoTarget},
                refusals=(429,),
            ),
            Route(
                "GET", "/messages/{id}", self.messages,
                query=MessagesQuery,
                summary="What an instance has not acknowledged, oldest first.",
                answers={200: Messages},
                refusals=(429,),
                is_abandonable=True,
            ),
            # Two clients of one system use two paths.
            *(
                Route(
                    "POST", path, self.acknowledge, AckBody,
                    summary="An instance has finished with these messages.",
                    answers={204: None},
                )
                for path in ("/messages/ack/{id}", "/messages/{id}/ack")
            ),
            Route(
                "GET", "/health", self.health,
                summary="This node serves, and since when.",
                answers={200: Health},
            ),
        )  # fmt: skip

    async def register(self, call: Call) -> Answer:
        body: RegisterBody = call.body
        await self._backend.register(
            body.instance_id, body.hostname, body.port, body.capabilities, body.agent_profiles
        )
        leader_id, instances = self._instances(self._backend.all_members())
        is_leader = body.instance_id == leader_id
        return json_answer(Registered(True, body.instance_id, is_leader, leader_id, instances))

    async def agents(self, call: Call) -> Answer:
        return self._list.answer(self._backend.version())

    def _list_agents(self) -> Answer:
        leader_id, instances = self._instances(self._backend.all_members())
        return json_answer(Listing(instances, leader_id))

    def _instances(self, members: tuple[Member, ...]) -> tuple[str | None, tuple[Instance, ...]]:
        """The leader and the live instances, by seniority."""
        leader_id = self._backend.leader_info().leader_id
        return leader_id, instances_out(members, leader_id)

    async def heartbeat(self, call: Call) -> Answer:
        body: HeartbeatBody = call.body
        instance_id = call.parameters["id"]
        is_known = is_instance_id(instance_id) and await self._backend.heartbeat(
            instance_id, body.status, body.metrics
        )
        leader_id = self._backend.leader_info().leader_id
        return json_answer(Acknowledged(is_known, leader_id), 200 if is_known else 404)

    async def deregister(self, call: Call) -> Answer:
        instance_id = call.parameters["id"]
        if is_instance_id(instance_id) and await self._backend.deregister(instance_id):
            return Answer(204)
        return Answer(404)

    async def send(self, call: Call) -> Answer:
        source = sender(call)
        key = call.headers.get("Idempotency-Key")
        if key is None:
            return await self._send(source, call.body)
        asked = (call.path.encode("utf-8", "replace"), call.raw_body)
        message_id = key if is_uuid7(key) else None
        return await self._keyed.answer(
            key, asked, lambda repeated: self._send(source, call.body, message_id, repeated)
        )

    def _sent_before(self, key: bytes) -> tuple[bytes, Answer] | None:
        found = self._backend.sent_before(key)
        return found and (found[0], _sent_answer(found[1]))

    async def _send(
        self,
        source: str,
        body: SendBody,
        message_id: str | None = None,
        repeated: Repeated | None = None,
    ) -> Answer:
        target = body.target_instance
        try:
            if target is not None and not is_instance_id(target):
                raise UnknownTarget(target)
            sent = await self._backend.post(
                source,
                target,
                str(body.message_type),
                body.payload,
                body.correlation_id,
                message_id,
                repeated,
            )
        except UnknownTarget as error:
            said = f"Target instance '{target}' not found"
            return json_answer(NoTarget(said, error.nearest), 400)
        return _sent_answer(sent)

    async def messages(self, call: Call) -> Answer:
        instance_id, query = call.parameters["id"], call.query
        if not is_instance_id(instance_id):
            return json_answer({"messages": ()})
        texts, size = [], 0
        for message in await self._backend.read(instance_id, limit=query.limit, wait=query.wait):
            texts.append(message_out(message))
            size += len(texts[-1])
            if size > MESSAGES_BYTES_MAX and len(texts) > 1:
                texts.pop()
                break
            if len(texts[-1]) > 100_000:
                await asyncio.sleep(0)  # large messages take a while to encode
        return Answer(200, b'{"messages":[%b]}' % b",".join(texts), JSON)

    async def acknowledge(self, call: Call) -> Answer:
        body: AckBody = call.body
        instance_id = call.parameters["id"]
        if body.message_ids and is_instance_id(instance_id):
            await self._backend.acknowledge(instance_id, body.message_ids)
        return Answer(204)

    async def health(self, call: Call) -> Answer:
        backend = self._backend
        members = backend.all_members()
        leader_id, instances = self._instances(members)
        homed = sum(
            member.kind == "guest"
            and member.home == backend.node_id
            and member.state in ("alive", "suspect")
            for member in members
        )
        return json_answer(
            Health(
                "healthy",
                self._version,
                int(backend.uptime),
                homed,
                backend.node_id,
                backend.instance_id,
                backend.mesh,
                leader_id,
                len(instances),
            )
        )


def _sent_answer(sent: Sent) -> Answer:
    return json_answer(SentAnswer(sent.message_id, "queued", sent.delivered_to, sent.state))


# --- parameters --------------------------------------------------------------


def is_instance_id(text: str) -> bool:
    """Whether an instance can have this id; one that cannot is unknown everywhere."""
    try:
        read_instance_id(text)
    except ValueError:
        return False
    return True


def sender(call: Call) -> str:
    """The source in the path.  It is the sender's word, but it has to be an id."""
    try:
        return read_instance_id(call.parameters["source"])
    except ValueError as error:
        raise Refusal(422, f"the source in the path: {error}") from None
