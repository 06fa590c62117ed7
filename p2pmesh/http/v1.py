"""The node's own view under ``/v1``: members, leader, links, messages, a request.

Shapes are those of docs/interfaces.md.  Every answer carries ``node_id`` (of the
node that answers, or of the member it is about), ``leader_id`` and ``epoch``.
What is refused is a problem document (RFC 9457).

Does not: decide anything; stream (see ``events``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from p2pmesh.errors import AmbiguousTarget, UnknownTarget
from p2pmesh.http.backend import Backend
from p2pmesh.http.calls import JSON, Answer, Call, Refusal, Route, json_answer
from p2pmesh.http.codec import MessageType, message_out
from p2pmesh.http.registry import SendBody, is_instance_id, sender
from p2pmesh.protocol.types import Member
from p2pmesh.values import REQUEST_TIMEOUT_MAX


class RequestBody(SendBody, frozen=True, kw_only=True):
    """A send that waits for its answer; the target may be a name."""

    target_instance: str
    message_type: MessageType = MessageType("Query")
    timeout: Annotated[float, Meta(gt=0, le=REQUEST_TIMEOUT_MAX)] = 30.0


class MembersQuery(Struct, frozen=True):
    """Members that are in one of these states and have one of these capabilities."""

    state: Annotated[
        tuple[Literal["alive", "suspect", "failed", "left"], ...],
        Meta(description="one of alive, suspect, failed, left"),
    ] = ()
    capability: Annotated[tuple[str, ...], Meta(description="a capability")] = ()


class V1:
    def __init__(self, backend: Backend, version: str) -> None:
        self._backend = backend
        self._version = version

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", "/v1/self", self.own),
            Route("GET", "/v1/members", self.members, query=MembersQuery),
            Route("GET", "/v1/members/{id}", self.member),
            Route("GET", "/v1/leader", self.leader),
            Route("GET", "/v1/links", self.links),
            Route("GET", "/v1/stats", self.stats),
            Route("GET", "/v1/messages/{id}", self.message),
            Route("POST", "/v1/request/{source}", self.request, RequestBody, is_abandonable=True),
        )

    # --- the view --------------------------------------------------------------

    async def own(self, call: Call) -> Answer:
        backend = self._backend
        return self._answer(
            **_shown(backend.self_member()),
            mesh=backend.mesh,
            http=backend.http_url,
            uptime=backend.uptime,
            version=self._version,
            durable=backend.durable,
        )

    async def members(self, call: Call) -> Answer:
        query: MembersQuery = call.query
        states, capabilities = query.state, query.capability
        return self._answer(
            members=[
                _shown(member)
                for member in self._backend.all_members()
                if (not states or member.state in states)
                and (not capabilities or set(capabilities) & set(member.capabilities))
            ]
        )

    async def member(self, call: Call) -> Answer:
        return self._answer(**_shown(_find(call.parameters["id"], self._backend.all_members())))

    async def leader(self, call: Call) -> Answer:
        leader = self._backend.leader_info()
        return self._answer(
            token=leader.token,
            authoritative=leader.authoritative,
            policy=leader.policy,
            since=leader.since,
        )

    async def links(self, call: Call) -> Answer:
        return self._answer(links=self._backend.links())

    async def stats(self, call: Call) -> Answer:
        return self._answer(counters=self._backend.counters())

    def _answer(self, **fields: Any) -> Answer:
        leader = self._backend.leader_info()
        common = {
            "node_id": self._backend.node_id,
            "leader_id": leader.leader_id,
            "epoch": leader.epoch,
        }
        return json_answer(common | fields)

    # --- messages --------------------------------------------------------------

    async def message(self, call: Call) -> Answer:
        message_id = call.parameters["id"]
        recipients = self._backend.message_state(message_id)
        if recipients is None:
            raise Refusal(404, "this node did not accept a message of that id, or forgot it")
        return self._answer(message_id=message_id, recipients=recipients)

    async def request(self, call: Call) -> Answer:
        source, body = sender(call), call.body
        if not is_instance_id(body.target_instance):
            raise UnknownTarget(body.target_instance[:100])
        message = await self._backend.ask(
            source,
            body.target_instance,
            str(body.message_type),
            body.payload,
            body.timeout,
            body.correlation_id,
        )
        return Answer(200, message_out(message), JSON)


# --- members -----------------------------------------------------------------

# The registry's compatible list has these, in its own encodings.
_NOT_SHOWN: Final = {"hostname", "port", "created_at"}
_SHOWN: Final = tuple(
    name for name in (each.name for each in msgspec.structs.fields(Member))
    if name not in _NOT_SHOWN
)  # fmt: skip


def _shown(member: Member) -> dict[str, Any]:
    return {name: getattr(member, name) for name in _SHOWN}


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
    raise UnknownTarget(wanted)


def _ids(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(member.instance_id for member in members)
