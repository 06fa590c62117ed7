"""Bearer tokens: how they are read, and what the door behind which they are asked for does."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest

from p2pmesh.http import tokens
from p2pmesh.http.tokens import Grant, Scope, Tokens, read_grants, read_token
from p2pmesh.transport.interfaces import read_interfaces
from tests.http.contract import BODY_MAX, MESSAGE, REGISTRATION, assert_refused
from tests.http.serving import Served, serve
from tests.http.wire import Connection, Reply, get, post

READ, WRITE, ADMIN = "r-1", "w/2=", "a~3"
GRANTS = (Grant(Scope.READ, READ), Grant(Scope.WRITE, WRITE), Grant(Scope.ADMIN, ADMIN))


@pytest.fixture
def guarded() -> Iterator[Served]:
    with serve(tokens=Tokens(GRANTS)) as served:
        yield served


@pytest.fixture
def door(guarded: Served) -> Iterator[Connection]:
    with Connection(guarded.addresses[0]) as connection:
        yield connection


def bearer(token: str) -> str:
    return f"authorization: Bearer {token}"


# --- reading -----------------------------------------------------------------------


def test_a_token_file_has_a_scope_and_a_token_a_line() -> None:
    text = f"# ours\n\nread {READ}\n  write\t{WRITE}  # the crawler\nadmin {ADMIN}\r\nread a#b\n"
    assert read_grants(text) == (*GRANTS, Grant(Scope.READ, "a#b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no token in it"),
        ("# admin secret-1\n", "there is no token in it"),
        ("secret-1", "line 1: give 'read TOKEN', 'write TOKEN' or 'admin TOKEN'"),
        ("read secret-1 more", "line 1: give 'read TOKEN'"),
        ("\nsecret-1 read", "line 2: a scope is one of read, write, admin"),
        ("all secret-1", "line 1: a scope is one of read, write, admin"),
        ("read sécret-1", "line 1: a token is 1 to 256 visible ASCII characters"),
        ("read " + "secret-1" * 33, "line 1: a token is 1 to 256 visible"),
        ("read secret-1\nadmin secret-1", "line 2: this token stands in an earlier line"),
        ("\n".join(f"read secret-{n}" for n in range(65)), "65 tokens in it, at most 64"),
    ],
)
def test_what_is_no_token_file_is_refused_without_quoting_it(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)token|scope") as error:
        read_grants(text)
    assert said in str(error.value)
    assert "cret" not in str(error.value)


def test_a_token_fits_into_a_header() -> None:
    for good in ("x", "!~", "a" * 256):
        assert read_token(good) == good
    for bad in ("", "a b", "a\tb", "a\nb", "a" * 257, "ä", "\x7f"):
        with pytest.raises(ValueError, match="visible ASCII"):
            read_token(bad)


def test_nothing_that_is_shown_quotes_a_token() -> None:
    assert "secret" not in repr(Grant(Scope.READ, "secret"))
    assert "secret" not in repr([Tokens([Grant(Scope.READ, "secret")])])


def test_every_token_is_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, really = [], hmac.compare_digest

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((len(known), len(given)))
        return really(known, given)

    known = Tokens(GRANTS)
    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    for token, scope in ((READ, 1), (WRITE, 2), (ADMIN, 3), ("x" * 5000, None), ("\ud800", None)):
        compared.clear()
        assert known.scope_of(token) == scope
        assert compared == [(32, 32)] * 3


# --- the door ----------------------------------------------------------------------


def test_without_a_token_nothing_is_answered(door: Connection) -> None:
    for request in (
        get("/health"), get("/registry/agents"), get("/v1/events"), get("/health", method="HEAD"),
        post("/registry/register", REGISTRATION), get("/health", method="OPTIONS"),
    ):  # fmt: skip
        reply = door.ask(request)
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="p2pmesh"'
    assert_refused(door.ask(get("/nowhere")), 401)
    assert door.ask(get("/v1/self")).json["title"] == "Unauthorized"


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Bearer wrong", f"Basic {ADMIN}", ADMIN, f"Bearer {ADMIN}x", "Bearer é",
     f"Bearer {ADMIN} {ADMIN}", f"Bearer {ADMIN}\r\nauthorization: Bearer {ADMIN}"],
)  # fmt: skip
def test_a_wrong_token_is_401_and_says_so(door: Connection, header: str) -> None:
    reply = door.ask(get("/health", f"authorization: {header}"))
    assert_refused(reply, 401)
    assert reply.headers["www-authenticate"] == 'Bearer realm="p2pmesh", error="invalid_token"'


def test_each_scope_includes_the_smaller_ones(door: Connection) -> None:
    for token in (READ, WRITE, ADMIN):
        assert door.ask(get("/health", bearer(token))).status == 200
        assert door.ask(get("/v1/members", bearer(token), method="HEAD")).status == 200
    for token in (WRITE, ADMIN):
        assert door.ask(post("/registry/register", REGISTRATION, bearer(token))).status == 200
        gone = get("/registry/deregister/never-registered", bearer(token), method="DELETE")
        assert door.ask(gone).status == 204


def test_a_scope_that_is_too_small_is_403_and_says_which_is_needed(door: Connection) -> None:
    for request in (
        post("/registry/register", REGISTRATION, bearer(READ)),
        post("/messages/ack/x", {"message_ids": []}, bearer(READ)),
        get("/registry/deregister/x", bearer(READ), method="DELETE"),
    ):
        reply = door.ask(request)
        assert_refused(reply, 403)
        assert reply.body == b"this call needs a token of scope write, and yours is of scope read\n"
        assert reply.headers["www-authenticate"].endswith(
            'error="insufficient_scope", scope="write"'
        )


def test_the_scheme_may_be_written_in_any_case(door: Connection) -> None:
    for scheme in ("bearer", "BEARER"):
        assert door.ask(get("/health", f"Authorization: {scheme}  {READ} ")).status == 200


def test_the_token_is_looked_at_after_host_and_origin_and_before_all_else(
    guarded: Served,
) -> None:
    """Each request has everything wrong from one door on; that door answers."""
    large, foreign = b" " * (BODY_MAX + 1), "origin: http://evil.example"
    for status, request in (
        (421, post("/x", large, foreign).replace(b"{host}", b"evil")),
        (403, post("/x", large, foreign)),
        (401, post("/x", large)),
        (401, post("/messages/%FF", large, bearer("wrong"))),
        (404, post("/x", large, bearer(READ))),
        (405, post("/messages/%FF", large, bearer(READ))),
        (403, post("/messages/send/%FF", large, bearer(READ))),
        (400, post("/messages/send/%FF", large, bearer(WRITE))),
        (413, post("/messages/send/a", large, bearer(WRITE))),
        (200, post("/messages/send/a", MESSAGE, bearer(WRITE))),
    ):
        with Connection(guarded.addresses[0]) as door:
            reply: Reply = door.ask(request)
            assert reply.status == status, request[:200]


def test_events_are_streamed_to_who_has_a_token(door: Connection) -> None:
    door.send(get("/v1/events", bearer(READ)))
    status, headers = door.read_head()
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert door.read_chunk().startswith(b"retry:")


# --- a wider bind ------------------------------------------------------------------


def test_a_wide_bind_is_served_at_loopback_too_and_says_so() -> None:
    with serve(http="0.0.0.0:0", tokens=Tokens(GRANTS)) as served:
        (address,) = served.addresses
        assert address.startswith("127.0.0.1:")
        with Connection(address) as door:
            assert door.ask(get("/health")).status == 401
            assert door.ask(get("/health", bearer(READ))).status == 200


def test_an_address_that_only_the_machine_knows_is_ours_to_who_comes_there() -> None:
    own = [each.ip for one in read_interfaces() for each in one.addresses if is_plain(each.ip)]
    if not own:
        pytest.skip("this machine has no address but loopback")
    with serve(http="0.0.0.0:0", is_open=True) as served:
        port = served.servers[0].port
        with Connection(f"{own[0]}:{port}") as door:
            assert door.ask(get("/health")).status == 200
            other = get("/health").replace(b"{host}", b"198.51.100.7")
            assert_refused(door.ask(other), 421)
            nowhere = get("/health").replace(b"{host}", b"0.0.0.0:%d" % port)
            assert_refused(door.ask(nowhere), 421)


def is_plain(address: str) -> bool:
    """An IPv4 address that others may reach."""
    return "." in address and not address.startswith("127.")
