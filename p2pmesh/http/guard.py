"""The doors that every request passes before a handler sees it, in order.

``DOORS`` is the list to review: each door looks at one thing, fills in what it
found, or refuses with its status.  After the last one the server reads the body,
which has three doors of its own: size as it arrives, syntax, shape.

Why host and origin come first: a page on any site can make a browser send
requests to 127.0.0.1.  A name that resolves to us (DNS rebinding) shows in
``Host``; another site's script shows in ``Origin`` and ``Sec-Fetch-Site``.
Both are refused whatever the method and before anything else is looked at.  Who
has no token learns no more than that one is needed.

Does not: read from a socket, know what calls exist (they come as routes), or
import aiohttp.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from p2pmesh.http import codec
from p2pmesh.http.calls import Call, Headers, Refusal, Route
from p2pmesh.http.tokens import Tokens

# --- what the doors hold requests against ------------------------------------


@dataclass(frozen=True, slots=True)
class _Path:
    """The routes of one path template."""

    segments: tuple[str, ...]
    methods: Mapping[str, Route]

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Parameter name -> raw segment, or None.  A parameter is never empty."""
        found = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{"):
                if not given:
                    return None
                found[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return found


class House:
    """Our names, our calls and whom we let in.

    ``port`` is the bound one; ``addresses`` yields the node's own addresses, which
    may change while it runs; ``names`` are further names that the user gave it.
    Without ``tokens`` everybody may ask for everything.
    """

    HOSTS_REMEMBERED_MAX: Final = 64

    def __init__(
        self,
        routes: Iterable[Route],
        port: int,
        addresses: Callable[[], Iterable[str]],
        names: Iterable[str] = (),
        tokens: Tokens | None = None,
    ) -> None:
        self.port = port
        self.tokens = tokens or Tokens()
        self._addresses = addresses
        hostname = socket.gethostname().lower()
        short = hostname.partition(".")[0]
        self._names = {"localhost", hostname, short, f"{short}.local"}
        self._names.update(name.lower() for name in names)
        self._ours: set[str] = set()  # Host values seen and found to be ours
        self._paths = _table(routes)

    def is_ours(self, authority: str, local: str = "") -> bool:
        """Whether ``host``, ``host:port`` or ``[v6]:port`` is this server; ``local``
        is the address that the request came to, which surely is."""
        if authority in self._ours:
            return True
        match = _AUTHORITY.fullmatch(authority)
        if match is None or int(match["port"] or self.port) != self.port:
            return False
        if not self._is_own_host(match["host"].strip("[]").lower().removesuffix("."), local):
            return False
        if len(self._ours) < self.HOSTS_REMEMBERED_MAX:
            self._ours.add(authority)
        return True

    def _is_own_host(self, host: str, local: str) -> bool:
        if host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        own = filter(None, (local, *self._addresses()))
        return address.is_loopback or address in map(ipaddress.ip_address, own)

    def find(self, path: str) -> tuple[_Path, dict[str, str]] | None:
        """The routes of a path and its raw parameters; a literal segment beats a
        parameter, the leftmost difference decides."""
        segments = path.split("/")
        for each in self._paths.get(len(segments), ()):
            found = each.match(segments)
            if found is not None:
                return each, found
        return None


_AUTHORITY: Final = re.compile(
    r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
)


def _table(routes: Iterable[Route]) -> dict[int, list[_Path]]:
    """Number of segments -> templates, the more literal ones first."""
    methods: dict[tuple[str, ...], dict[str, Route]] = {}
    for route in routes:
        methods.setdefault(tuple(route.template.split("/")), {})[route.method] = route
    table: dict[int, list[_Path]] = {}
    for segments in sorted(methods, key=lambda key: [part.startswith("{") for part in key]):
        table.setdefault(len(segments), []).append(_Path(segments, methods[segments]))
    return table


# --- the doors ----------------------------------------------------------------


def host_is_ours(call: Call, house: House) -> None:
    hosts = call.headers.getall("Host", [])
    if len(hosts) != 1:
        raise Refusal(421, "exactly one Host header is needed")
    for authority in filter(None, (hosts[0].strip(), call.authority)):
        if not house.is_ours(authority, call.local):
            raise Refusal(421, f"this server is not {authority[:100]!r}; use one of its own names")
    if not hosts[0].strip():
        raise Refusal(421, "the Host header is empty")


def origin_is_ours(call: Call, house: House) -> None:
    for site in call.headers.getall("Sec-Fetch-Site", []):
        # "same-site" is another port of this machine: whatever runs there, it is not us.
        if site not in ("same-origin", "none"):
            raise Refusal(403, "requests from other sites are refused")
    for origin in call.headers.getall("Origin", []):
        scheme, _, authority = origin.partition("://")
        is_ours = authority == call.headers.get("Host") or (
            authority.endswith(f":{house.port}") and house.is_ours(authority, call.local)
        )
        if scheme != "http" or not is_ours:
            raise Refusal(403, f"requests from the origin {origin[:100]!r} are refused")


def token_is_known(call: Call, house: House) -> None:
    if not house.tokens:
        return
    given = call.headers.getall("Authorization", [])
    if not given:
        raise _unauthorized("this node asks for a token: send 'Authorization: Bearer TOKEN'")
    scheme, _, token = given[0].partition(" ")
    scope = house.tokens.scope_of(token.strip())
    if scope is None or scheme.lower() != "bearer" or len(given) > 1:
        raise _unauthorized("this node knows no such token", error="invalid_token")
    call.scope = scope


def _unauthorized(detail: str, **attributes: str) -> Refusal:
    return Refusal(401, detail, headers=_challenge(**attributes))


def _challenge(**attributes: str) -> dict[str, str]:
    """RFC 6750, section 3."""
    shown = {"realm": "p2pmesh"} | attributes
    words = ", ".join(f'{name}="{value}"' for name, value in shown.items())
    return {"WWW-Authenticate": f"Bearer {words}"}


def path_is_known(call: Call, house: House) -> None:
    found = house.find(call.path)
    if found is None:
        raise Refusal(404, "no such path")
    path, call.parameters = found
    call.methods = path.methods


def method_is_allowed(call: Call, house: House) -> None:
    call.route = call.methods.get("GET" if call.method == "HEAD" else call.method)
    if call.route is None:
        also = {"HEAD"} if "GET" in call.methods else set()
        allow = ", ".join(sorted(also.union(call.methods)))
        raise Refusal(405, f"this path takes {allow}", headers={"Allow": allow})


def scope_suffices(call: Call, house: House) -> None:
    assert call.route is not None
    needs = call.route.needs
    if call.scope < needs:
        detail = f"this call needs a token of scope {needs}, and yours is of scope {call.scope}"
        challenge = _challenge(error="insufficient_scope", scope=str(needs))
        raise Refusal(403, detail, headers=challenge)


def parameters_are_text(call: Call, house: House) -> None:
    decoded = {}
    for name, raw in call.parameters.items():
        try:
            # The server hands on bytes that are not UTF-8 as lone surrogates.
            decoded[name] = unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
        except UnicodeError:
            raise Refusal(400, f"{name} in the path is not UTF-8") from None
    call.parameters = decoded


def query_fits(call: Call, house: House) -> None:
    assert call.route is not None
    if call.route.query is not None:
        try:
            call.query = codec.shape_query(call.raw_query, call.route.query)
        except codec.WrongShape as error:
            raise Refusal(400, str(error)) from None


def content_is_json(call: Call, house: House) -> None:
    given = call.headers.getall("Content-Type", [])
    if len(given) != 1 or not _JSON_TYPE.fullmatch(given[0].partition(";")[0].strip()):
        said = f"not {given[0][:100]!r}" if given else "and is missing"
        raise Refusal(415, f"the content type must be application/json, {said}")


_JSON_TYPE: Final = re.compile(r"application/(json|[^\s/]+\+json)", re.IGNORECASE)


def content_is_plain(call: Call, house: House) -> None:
    for coding in call.headers.getall("Content-Encoding", []):
        if coding.strip().lower() not in ("", "identity"):
            raise Refusal(415, "compressed bodies are not read; send it plain")
    for coding in ",".join(call.headers.getall("Transfer-Encoding", [])).split(","):
        if coding.strip().lower() not in ("", "chunked"):
            raise Refusal(415, "of transfer codings only chunked is read")


def content_fits(call: Call, house: House) -> None:
    length = call.headers.get("Content-Length")
    if length is not None and int(length) > codec.BODY_MAX:
        raise too_large()


def too_large() -> Refusal:
    return Refusal(
        413,
        f"the body is over {codec.BODY_MAX} bytes: send it in parts, a "
        "reference to it, or (up to 16 MiB) from an embedded node",
    )


Door: TypeAlias = Callable[[Call, House], None]

DOORS: Final[tuple[Door, ...]] = (
    host_is_ours,  #        421
    origin_is_ours,  #      403
    token_is_known,  #      401
    path_is_known,  #       404
    method_is_allowed,  #   405
    scope_suffices,  #      403
    parameters_are_text,  # 400
    query_fits,  #          400
)
#: For calls that take a body.
CONTENT_DOORS: Final[tuple[Door, ...]] = (
    content_is_json,  #     415
    content_is_plain,  #    415
    content_fits,  #        413
)


def admit(method: str, target: str, headers: Headers, house: House, local: str = "") -> Call:
    """A call with its route and parameters; ``local`` is the address that it came to.
    Raises Refusal."""
    authority, path, query = split_target(target)
    call = Call(method, path, query, authority, headers, local)
    try:
        for door in DOORS:
            door(call, house)
        assert call.route is not None
        if call.route.body is not None:
            for door in CONTENT_DOORS:
                door(call, house)
    except Refusal as refusal:
        refusal.route = call.route
        raise
    return call


def split_target(target: str) -> tuple[str | None, str, str]:
    """The authority (of an absolute-form target), path and query of a request line."""
    authority = None
    if match := _ABSOLUTE.match(target):
        authority = match["authority"]
        target = target[match.end() :] or "/"
    path, _, query = target.partition("?")
    return authority, path, query


_ABSOLUTE: Final = re.compile(r"http://(?P<authority>[^/?#]*)", re.IGNORECASE)


# --- the body's doors ---------------------------------------------------------


def read_value(body: bytes) -> Any:
    """Syntax: 400, or 413 where a small body holds too many values."""
    try:
        return codec.read(body)
    except codec.NotJson as error:
        raise Refusal(400, str(error)) from None
    except codec.TooManyValues as error:
        raise Refusal(413, str(error)) from None


def read_shape(value: Any, type: type) -> Any:
    """Shape: 422; or 400 for what the original cannot even parse."""
    try:
        return codec.shape(value, type)
    except codec.NotJson as error:
        raise Refusal(400, str(error)) from None
    except codec.WrongShape as error:
        raise Refusal(422, str(error)) from None
