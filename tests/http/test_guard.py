"""The doors, without a socket: who is let in, and which door says no."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from p2pmesh.http import codec, guard
from p2pmesh.http.calls import Answer, Call, Refusal, Route

PORT = 8077


async def handler(call: Call) -> Answer:
    raise AssertionError("no door calls a handler")


ROUTES = [
    Route("GET", "/a/{id}", handler),
    Route("GET", "/a/{id}/{more}", handler),
    Route("GET", "/a/{id}/b", handler),
    Route("GET", "/a/b/{id}", handler),
    Route("POST", "/a/{id}", handler, dict),
]


def house(
    addresses: Iterable[str] = (), names: Iterable[str] = (), port: int = PORT
) -> guard.House:
    return guard.House(ROUTES, port, lambda: addresses, names)


def admit(
    method: str = "GET",
    target: str = "/a/x",
    headers: Iterable[tuple[str, str]] = (),
    host: str | None = f"localhost:{PORT}",
    of: guard.House | None = None,
) -> Call:
    fields = CIMultiDict(headers)
    if host is not None:
        fields.add("Host", host)
    return guard.admit(method, target, fields, of or house())


def refused(*arguments: object, **others: object) -> int:
    with pytest.raises(Refusal) as refusal:
        admit(*arguments, **others)  # type: ignore[arg-type]
    return refusal.value.status


def test_own_addresses_are_ours_with_the_port_or_without() -> None:
    mine = house(["192.0.2.1", "2001:db8::1"])
    for host in ("192.0.2.1", "192.0.2.1:8077", "[2001:db8::1]:8077", "[2001:DB8:0::1]"):
        admit(host=host, of=mine)
    for host in ("192.0.2.2", "192.0.2.1:8078", "[2001:db8::2]", "2001:db8::1"):
        assert refused(host=host, of=mine) == 421


def test_an_address_that_the_node_gets_later_is_ours_from_then_on() -> None:
    addresses: list[str] = []
    mine = house(addresses)
    assert refused(host="192.0.2.1", of=mine) == 421
    addresses.append("192.0.2.1")
    admit(host="192.0.2.1", of=mine)


def test_names_that_the_user_gave_and_the_hostname_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.example.net")
    mine = house(names=["My.Mesh"])
    for host in ("my.mesh", "MY.MESH:8077", "box", "box.local", "BOX.example.net.", "localhost"):
        admit(host=host, of=mine)
    for host in ("example.net", "box.local.evil", "x.my.mesh", "boxx", "local"):
        assert refused(host=host, of=mine) == 421


def test_names_that_are_asked_for_often_do_not_fill_the_memory() -> None:
    mine = house()
    for number in range(10_000):
        admit(host=f"127.0.{number >> 8}.{number & 255}", of=mine)
    assert len(mine._ours) <= guard.House.HOSTS_REMEMBERED_MAX


@pytest.mark.parametrize(
    ("target", "template"),
    [
        ("/a/b", "/a/{id}"),
        ("/a/b/c", "/a/b/{id}"),
        ("/a/b/b", "/a/b/{id}"),
        ("/a/c/b", "/a/{id}/b"),
        ("/a/c/d", "/a/{id}/{more}"),
        ("/a/%62/b", "/a/{id}/b"),
    ],
)
def test_the_leftmost_literal_segment_wins(target: str, template: str) -> None:
    assert admit(target=target).route in [each for each in ROUTES if each.template == template]


def test_a_parameter_is_one_segment_decoded_and_never_empty() -> None:
    call = admit(target="/a/x%2Fy%20z/%C3%A4?b=c%20d")
    assert call.parameters == {"id": "x/y z", "more": "ä"}
    assert call.raw_query == "b=c%20d"
    for target in ("/a/", "/a//b", "/a/b/", "/a/x/", "//a/x", "/a/x/y/z", "a/x", "*", ""):
        assert refused(target=target) == 404


def test_head_takes_what_get_takes_and_is_allowed_where_get_is() -> None:
    assert admit("HEAD").route == ROUTES[0]
    with pytest.raises(Refusal) as refusal:
        admit("PUT")
    assert refusal.value.status == 405
    assert refusal.value.headers == {"Allow": "GET, HEAD, POST"}


def test_a_length_is_believed_only_up_to_the_limit() -> None:
    json = ("Content-Type", "application/json")
    admit("POST", headers=[json, ("Content-Length", str(codec.BODY_MAX))])
    assert refused("POST", headers=[json, ("Content-Length", "2097153")]) == 413


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_request_raises_anything_but_a_refusal(
    target: str, host: str, origin: str, content_type: str
) -> None:
    for method, path in (("POST", "/a/x"), ("GET", target), ("GET", f"/a/{target}")):
        try:
            admit(method, path, [("Origin", origin), ("Content-Type", content_type)], host)
        except Refusal as refusal:
            for shown in (refusal.answer("/a"), refusal.answer("/v1/a")):
                assert shown.body.decode()


@given(st.text(max_size=40))
def test_only_our_names_pass_the_first_door(host: str) -> None:
    if house().is_ours(host.strip()):
        admit(host=host)
    else:
        assert refused(host=host) == 421


def test_an_absolute_target_has_two_hosts_to_be_ours() -> None:
    assert admit(target=f"http://localhost:{PORT}/a/x?y").path == "/a/x"
    assert refused(target="http://evil.example/a/x") == 421
    assert refused(target=f"http://localhost:{PORT}/a/x", host="evil.example") == 421
    assert refused(target=f"http://me@localhost:{PORT}/a/x") == 421
    assert refused(target=f"http://localhost:{PORT}") == 404
