"""``/openapi.json``: the API described by the routes that serve it.

    Route ─► operation      summary, parameters, body, answers
    types ─► components     the schemas of the very types that are read and written
    doors ─► refusals       what any call may be refused with, by what it takes

Does not: know any call.  What is to be said of one stands in its ``Route``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec

from p2pmesh.http.calls import JSON, PROBLEM, TEXT, Answer, Call, Media, Route, json_answer
from p2pmesh.http.codec import BODY_MAX, MessageType
from p2pmesh.http.registry import InstanceId
from p2pmesh.http.shapes import Problem
from p2pmesh.http.tokens import Scope
from p2pmesh.protocol.limits import TYPE_MAX
from p2pmesh.protocol.types import KNOWN_TYPES

#: The parameters of paths; a source becomes part of a message, an id is looked up.
PARAMETERS: Final[dict[str, Any]] = {"id": str, "source": InstanceId}

_MEANINGS: Final = {
    400: "It cannot be read: the path, the query or the JSON of the body.",
    401: "A token is asked for, and it is missing or wrong.",
    403: "Another site asks, or it is not allowed.",
    404: "There is no such thing.",
    408: "The body was not there in time.",
    409: "It belongs to another, or may mean several.",
    413: f"The body is over {BODY_MAX} bytes.",
    415: "The body is not plain JSON.",
    421: "This server is not the one that was meant.",
    422: "The JSON is not of this shape.",
    429: "There is no room; try again later.",
    502: "The other side failed, or cannot be reached.",
    503: "This node, or the one that knows, does not answer now; try again.",
    504: "No answer in time.",
}
_RETRIED: Final = (429, 503)
_SECURITY: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "Where the node asks for one. Its scope is the one named, or a wider one: "
        f"{', '.join(map(str, Scope))}.",
    }
}


class Description:
    """Describes ``routes``, and itself."""

    def __init__(self, routes: Iterable[Route], version: str) -> None:
        self._routes = tuple(routes)
        self._version = version
        self._answer: Answer | None = None

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET", "/openapi.json", self.describe,
                summary="This description.",
                answers={200: dict[str, Any]},
            ),
        )  # fmt: skip

    async def describe(self, call: Call) -> Answer:
        if self._answer is None:
            document = describe((*self._routes, *self.routes()), self._version)
            self._answer = json_answer(document)
        return self._answer


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    routes = tuple(routes)
    types = list(_types(routes))
    schemas, components = msgspec.json.schema_components(
        types, schema_hook=_schema_of_message_type, ref_template="#/components/schemas/{name}"
    )
    # By their text: a type with limits cannot be hashed.
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, schema_of)
        paths.setdefault(route.template, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "p2pmesh",
            "version": version,
            "summary": "The registry of a mesh without a server: any node answers for all.",
            "description": "HEAD works wherever GET does.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY},
    }


def _types(routes: Iterable[Route]) -> Iterator[Any]:
    """Every type that the description needs the schema of."""
    yield Problem
    yield from PARAMETERS.values()
    for route in routes:
        if route.body is not None:
            yield route.body
        if route.query is not None:
            yield from (each.type for each in msgspec.structs.fields(route.query))
        yield from route.headers.values()
        yield from (type for type in route.answers.values() if _is_json(type))


def _is_json(answer: Any) -> bool:
    return answer is not None and not isinstance(answer, Media)


def _schema_of_message_type(type: Any) -> dict[str, Any]:
    assert type is MessageType
    custom = {"type": "string", "maxLength": TYPE_MAX}
    return {
        "oneOf": [
            {"enum": sorted(KNOWN_TYPES)},
            {
                "type": "object",
                "properties": {"Custom": custom},
                "required": ["Custom"],
                "additionalProperties": False,
            },
        ]
    }


# --- one call ------------------------------------------------------------------


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.template}").strip("_"),
        "summary": route.summary,
        "tags": [route.template.split("/")[1]],
        "parameters": list(_parameters(route, schema_of)),
        "responses": _responses(route, schema_of),
        "security": [{"token": [str(route.needs)]}, {}],
    }
    if route.body is not None:
        content = {JSON: {"schema": schema_of[repr(route.body)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route, schema_of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.template):
        schema = schema_of[repr(PARAMETERS[name])]
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    if route.query is not None:
        for each in msgspec.structs.fields(route.query):
            schema = schema_of[repr(each.type)] | {"default": each.default}
            yield {"name": each.name, "in": "query", "required": False, "schema": schema}
    for name, type in route.headers.items():
        schema = schema_of[repr(type)]
        yield {"name": name, "in": "header", "required": False, "schema": schema}


def _responses(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in route.answers.items():
        responses[str(status)] = _response(status, answer, schema_of)
    if route.streamed is not None:
        text = {"schema": {"type": "string"}}
        responses["200"]["content"][route.streamed.content_type] = text
        responses["200"]["description"] += f", or: {route.streamed.what}"
    for status in sorted(_refusals(route)):
        response = responses.setdefault(str(status), {"description": _MEANINGS[status]})
        response.setdefault("content", {}).update(_refusal(route, schema_of))
        if status in _RETRIED:
            wait = {"description": "Seconds.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": wait}
        if status == 401:
            response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return responses


def _response(status: int, answer: Any, schema_of: dict[str, Any]) -> dict[str, Any]:
    description = _MEANINGS.get(status, HTTPStatus(status).phrase)
    if answer is None:
        return {"description": description}
    if isinstance(answer, Media):
        content: Any = {answer.content_type: {"schema": {"type": "string"}}}
        return {"description": answer.what, "content": content}
    return {"description": description, "content": {JSON: {"schema": schema_of[repr(answer)]}}}


def _refusal(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    if route.template.startswith("/v1/"):
        return {PROBLEM: {"schema": schema_of[repr(Problem)]}}
    return {TEXT: {"schema": {"type": "string"}}}


def _refusals(route: Route) -> set[int]:
    """What the doors refuse with, the end of the node, and the handler's own."""
    refused = {401, 403, 421, 503, *route.refusals}
    if "{" in route.template or route.query is not None:
        refused.add(400)
    if route.body is not None:
        refused.update((400, 408, 413, 415, 422))
    return refused
