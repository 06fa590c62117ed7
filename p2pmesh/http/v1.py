"""The node's own view under ``/v1``: members, leader, links, messages, a request.

Shapes are those of docs/interfaces.md.  Every answer carries ``node_id`` (of the
node that answers, or of the member it is about), ``leader_id`` and ``epoch``.
What is refused is a problem document (RFC 9457).

Does not: decide anything; stream (see ``events``, ``streaming``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from p2pmesh.errors import AmbiguousTarget, UnknownTarget
from p2pmesh.http import shapes
from p2pmesh.http.backend import Backend
from p2pmesh.http.calls import JSON, Answer, Call, Media, Refusal, Route, Stream, json_answer
from p2pmesh.http.codec import Message, MessageType, message_out, message_type_out, timestamp
from p2pmesh.http.registry import SendBody, is_instance_id, sender
from p2pmesh.http.streaming import streamed
from p2pmesh.http.tokens import Scope
from p2pmesh.messages import DeadLetter
from p2pmesh.protocol.limits import DEAD_LETTERS_MAX
from p2pmesh.protocol.nearest import nearest
from p2pmesh.protocol.types import Member
from p2pmesh.values import REQUEST_TIMEOUT_MAX


class RequestBody(SendBody, frozen=True, kw_only=True):
    """A send that waits for its answer; the target may be a name."""

    target_instance: str
    message_type: MessageType = field(default_factory=lambda: MessageType("Query"))
    timeout: Annotated[float, Meta(gt=0, le=REQUEST_TIMEOUT_MAX)] = 30.0


class RequestQuery(Struct, frozen=True):
    stream: Annotated[
        bool, Meta(description="1: the parts of the answer as they come, or 0: one Message")
    ] = False


class SelfBody(Struct, frozen=True):
    """What is given is said from now on; null takes it back."""

    status: str | UnsetType | None = UNSET
    metrics: dict[str, Any] | UnsetType | None = UNSET


class MembersQuery(Struct, frozen=True):
    """Members that are in one of these states and have one of these capabilities."""

    state: Annotated[
        tuple[Literal["alive", "suspect", "failed", "left"], ...],
        Meta(description="one of alive, suspect, failed, left"),
    ] = ()
    capability: Annotated[tuple[str, ...], Meta(description="a capability")] = ()


class DeadLettersQuery(Struct, frozen=True):
    limit: Annotated[
        int,
        Meta(
            ge=1,
            le=DEAD_LETTERS_MAX,
            description=f"how many at most, the oldest, 1 to {DEAD_LETTERS_MAX}",
        ),
    ] = 100


class CopyQuery(Struct, frozen=True):
    recipient: Annotated[
        str | None, Meta(description="of a broadcast: the copy for this recipient alone")
    ] = None


class V1:
    def __init__(self, backend: Backend, version: str) -> None:
        self._backend = backend
        self._version = version

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET", "/v1/self", self.own,
                summary="This node's own agent, and what runs here.",
                answers={200: shapes.Self},
            ),
            Route(
                "PATCH", "/v1/self", self.describe, SelfBody,
                summary="Let this node's own agent say how it is.",
                answers={200: shapes.Self},
                refusals=(409,),
                scope=Scope.ADMIN,
            ),
            Route(
                "POST", "/v1/leave", self.leave,
                summary="Have this node say goodbye and end.",
                answers={202: shapes.View},
                scope=Scope.ADMIN,
            ),
            Route(
                "POST", "/v1/ping/{id}", self.ping,
                summary="How long a member's node takes to answer over the mesh.",
                answers={200: shapes.Pong},
                refusals=(404, 409, 502),
                is_abandonable=True,
            ),
            Route(
                "GET", "/v1/members", self.members,
                query=MembersQuery,
                summary="Everyone this node knows of, oldest first, failed and left ones included.",
                answers={200: shapes.Members},
            ),
            Route(
                "GET", "/v1/members/{id}", self.member,
                summary="One member, by instance id, node id or a name that only one has.",
                answers={200: shapes.OneMember},
                refusals=(404, 409),
            ),
            Route(
                "GET", "/v1/leader", self.leader,
                summary="Who leads, and with what authority.",
                answers={200: shapes.Leader},
            ),
            Route(
                "GET", "/v1/links", self.links,
                summary="The links of this node.",
                answers={200: shapes.Links},
            ),
            Route(
                "GET", "/v1/stats", self.stats,
                summary="What was counted here, drops by their reason.",
                answers={200: shapes.Stats},
            ),
            Route(
                "GET", "/v1/messages/{id}", self.message,
                summary="Where a message is that this node accepted.",
                answers={200: shapes.MessageStates},
                refusals=(404,),
            ),
            Route(
                "GET", "/v1/dead-letters", self.dead_letters,
                query=DeadLettersQuery,
                summary="Messages that this node accepted and that ended dead, oldest first.",
                answers={200: shapes.DeadLetters},
            ),
            Route(
                "POST", "/v1/dead-letters/{id}/retry", self.retry,
                query=CopyQuery,
                summary="Send a dead letter again, under its message id.",
                answers={200: shapes.MessageStates},
                refusals=(404, 429),
            ),
            Route(
                "DELETE", "/v1/dead-letters/{id}", self.drop,
                query=CopyQuery,
                summary="Drop a dead letter.",
                answers={204: None},
                refusals=(404,),
            ),
            Route(
                "POST", "/v1/request/{source}", self.request, RequestBody,
                query=RequestQuery,
                summary="Ask an instance, and wait for its answer, or for each of its parts.",
                answers={200: Message},
                streamed=Media(
                    "text/event-stream",
                    "a `part` for each part of the answer, then `end`, or `error` with a problem.",
                ),
                refusals=(404, 409, 429, 502, 504),
                is_abandonable=True,
            ),
        )  # fmt: skip

    # --- the view --------------------------------------------------------------

    async def own(self, call: Call) -> Answer:
        backend = self._backend
        return json_answer(
            shapes.Self(
                **self._one(backend.self_member()),
                mesh=backend.mesh,
                http=backend.http_url,
                uptime=backend.uptime,
                version=self._version,
                durable=backend.durable,
            )
        )

    async def members(self, call: Call) -> Answer:
        query: MembersQuery = call.query
        states, capabilities = query.state, query.capability
        members = tuple(
            shapes.Member(**_shown(member))
            for member in self._backend.all_members()
            if (not states or member.state in states)
            and (not capabilities or set(capabilities) & set(member.capabilities))
        )
        return json_answer(shapes.Members(**self._view(), members=members))

    async def member(self, call: Call) -> Answer:
        member = _find(call.parameters["id"], self._backend.all_members())
        return json_answer(shapes.OneMember(**self._one(member)))

    async def leader(self, call: Call) -> Answer:
        leader = self._backend.leader_info()
        return json_answer(
            shapes.Leader(
                **self._view(),
                token=leader.token,
                authoritative=leader.authoritative,
                lacks=leader.lacks,
                policy=leader.policy,
                since=leader.since,
            )
        )

    async def links(self, call: Call) -> Answer:
        return json_answer(shapes.Links(**self._view(), links=self._backend.links()))

    async def stats(self, call: Call) -> Answer:
        return json_answer(shapes.Stats(**self._view(), counters=self._backend.counters()))

    def _view(self) -> dict[str, Any]:
        leader = self._backend.leader_info()
        return {
            "node_id": self._backend.node_id,
            "leader_id": leader.leader_id,
            "epoch": leader.epoch,
        }

    def _one(self, member: Member) -> dict[str, Any]:
        return self._view() | _shown(member)

    # --- this node, and others ---------------------------------------------------

    async def describe(self, call: Call) -> Answer:
        body: SelfBody = call.body
        said = self._backend.self_member()
        self._backend.describe(
            said.status if body.status is UNSET else body.status,
            said.metrics if body.metrics is UNSET else body.metrics,
        )
        return await self.own(call)

    async def ping(self, call: Call) -> Answer:
        member = _find(call.parameters["id"], self._backend.all_members())
        rtt = await self._backend.ping(member.home)
        return json_answer(
            shapes.Pong(**self._view(), instance_id=member.instance_id, home=member.home, rtt=rtt)
        )

    async def leave(self, call: Call) -> Answer:
        answer = json_answer(shapes.View(**self._view()), 202)
        self._backend.leave()
        return answer

    # --- messages --------------------------------------------------------------

    async def message(self, call: Call) -> Answer:
        message_id = call.parameters["id"]
        recipients = self._backend.message_state(message_id)
        if recipients is None:
            raise Refusal(404, "this node did not accept a message of that id, or forgot it")
        return json_answer(
            shapes.MessageStates(**self._view(), message_id=message_id, recipients=recipients)
        )

    async def dead_letters(self, call: Call) -> Answer:
        letters = self._backend.dead_letters()
        shown = tuple(map(_dead_letter, letters[: call.query.limit]))
        return json_answer(
            shapes.DeadLetters(**self._view(), total=len(letters), dead_letters=shown)
        )

    async def retry(self, call: Call) -> Answer:
        message_id, recipient = call.parameters["id"], call.query.recipient
        if not await self._backend.retry_dead_letter(message_id, recipient):
            raise _no_dead_letter()
        return await self.message(call)

    async def drop(self, call: Call) -> Answer:
        if not self._backend.drop_dead_letter(call.parameters["id"], call.query.recipient):
            raise _no_dead_letter()
        return Answer(204)

    async def request(self, call: Call) -> Answer | Stream:
        source, body = sender(call), call.body
        if not is_instance_id(body.target_instance):
            raise UnknownTarget(body.target_instance[:100])
        question = (
            source,
            body.target_instance,
            str(body.message_type),
            body.payload,
            body.timeout,
            body.correlation_id,
        )
        if call.query.stream:
            return await streamed(self._backend.stream(*question))
        message = await self._backend.ask(*question)
        return Answer(200, message_out(message), JSON)


def _dead_letter(letter: DeadLetter) -> shapes.DeadLetter:
    return shapes.DeadLetter(
        message_id=letter.message_id,
        source_instance=letter.source_instance,
        recipient=letter.recipient,
        name=letter.name,
        message_type=message_type_out(letter.message_type),
        payload=letter.small_payload,
        payload_bytes=letter.payload_bytes,
        correlation_id=letter.correlation_id,
        created_at=timestamp(letter.created_at),
        died_at=timestamp(letter.died_at),
        reason=letter.reason,
        attempts=letter.attempts,
    )


def _no_dead_letter() -> Refusal:
    lists = "GET /v1/dead-letters or 'p2pmesh dead-letters' lists them"
    return Refusal(404, f"this node has no such dead letter: {lists}")


# --- members -----------------------------------------------------------------


def _shown(member: Member) -> dict[str, Any]:
    return {name: getattr(member, name) for name in _SHOWN}


_SHOWN: Final = shapes.Member.__struct_fields__


def _find(wanted: str, members: tuple[Member, ...]) -> Member:
    """The member that an instance id, a node id or a unique name means.

    Who is alive goes before who is gone, under each of the three.  Raises
    UnknownTarget, AmbiguousTarget.
    """
    alive = [member for member in members if member.state in ("alive", "suspect")]
    for pool in (alive, members):
        for member in pool:
            if member.instance_id == wanted:
                return member
    for pool in (alive, members):
        for member in pool:
            if member.node_id == wanted and member.kind == "node":
                return member
    for pool in (alive, members):
        named = [member for member in pool if member.name == wanted]
        if len(named) == 1:
            return named[0]
        if named:
            raise AmbiguousTarget(wanted, _ids(named))
    called = {name for member in alive for name in (member.instance_id, member.name) if name}
    raise UnknownTarget(wanted, nearest(called, wanted))


def _ids(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(member.instance_id for member in members)
