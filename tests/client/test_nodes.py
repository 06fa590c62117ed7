"""Whom a client asks, and whom when that one does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.client import calls
from p2pmesh.client.nodes import NODES_MAX, Nodes
from p2pmesh.errors import ConfigError, PeerUnreachable, QueueFull
from tests.client.driving import REFUSED, STALE, World, entry, said

A, B, C = (f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003))
LISTING = said({"instances": []})


def nodes(*urls: str, mesh: str | None = None, token: str | None = None) -> Nodes:
    return Nodes(urls, mesh, token)


def ask(world: World, known: Nodes) -> list[str]:
    """One call; the nodes that were asked."""
    before = len(world.asked)
    world.run(known.call(calls.list_instances()))
    return world.urls[before:]


def test_the_first_given_node_is_asked_and_the_next_ones_when_it_does_not_answer() -> None:
    world = World({A: LISTING, B: LISTING, C: LISTING})
    known = nodes(A, B, C)
    assert ask(world, known) == [A]
    world.nodes[A] = REFUSED
    assert ask(world, known) == [A, B]
    assert known.url == B
    world.nodes[A] = LISTING
    assert ask(world, known) == [B], "the one that answered last"


def test_a_node_that_answers_503_is_passed_over_and_any_other_refusal_is_the_answer() -> None:
    busy = said(b"try again", 503)
    assert ask(World({A: busy, B: LISTING}), nodes(A, B)) == [A, B]
    with pytest.raises(QueueFull):
        ask(World({A: said(b"full", 429), B: LISTING}), nodes(A, B))


def test_a_kept_connection_that_had_ended_is_no_reason_to_leave_its_node() -> None:
    world = World({A: LISTING, B: LISTING})
    known = nodes(A, B)
    ask(world, known)
    world.nodes[A] = [STALE, LISTING]
    assert ask(world, known) == [A, A]
    world.nodes[A] = [STALE, STALE, LISTING]
    assert ask(world, known) == [A, A, B], "but twice is"


def test_the_error_names_every_node_that_was_asked_why_it_did_not_do_and_what_helps() -> None:
    world = World({B: said(b"the home of 'x' does not answer", 503)})
    with pytest.raises(PeerUnreachable) as caught:
        ask(world, nodes(A, B))
    text = str(caught.value)
    assert f"{A} (Connection refused)" in text
    assert f"{B} (the home of 'x' does not answer)" in text
    assert "p2pmesh run" in text


def test_without_a_url_the_nodes_of_this_machine_are_asked() -> None:
    world = World({A: LISTING, B: LISTING}, here=(entry(A), entry(None), entry(B)))
    known = nodes()
    assert ask(world, known) == [A]
    world.nodes[A] = REFUSED
    world.here = (entry(B), entry(C))
    assert ask(world, known) == [A, B]


def test_who_started_after_the_others_died_is_found() -> None:
    world = World({A: LISTING}, here=(entry(A),))
    known = nodes()
    ask(world, known)
    world.nodes, world.here = {C: LISTING}, (entry(C),)
    assert ask(world, known) == [A, C]


def test_a_client_never_goes_over_to_another_mesh() -> None:
    both = (entry(A, "lab"), entry(B, "home"), entry(C, "lab"))
    assert ask(World({C: LISTING, B: LISTING}, both), nodes(mesh="lab")) == [A, C]
    world = World({A: LISTING, B: LISTING, C: LISTING}, both)
    known = nodes(A)
    ask(world, known)
    world.nodes[A], world.here = REFUSED, both[1:]  # the file of A went with it
    assert ask(world, known) == [A, C], "the mesh that A was of"


def test_of_several_meshes_here_one_has_to_be_chosen() -> None:
    world = World({A: LISTING}, here=(entry(A, "lab"), entry(B, "home")))
    with pytest.raises(ConfigError, match="'home', 'lab'"):
        ask(world, nodes())


def test_a_given_node_that_is_not_of_this_machine_stays_alone_unless_its_mesh_is_named() -> None:
    far = "http://192.0.2.7:8077"
    here = (entry(A, "lab"), entry(B, "lab"))
    with pytest.raises(PeerUnreachable):
        ask(world := World({A: LISTING}, here), nodes(far))
    assert world.urls == [far]
    assert ask(World({A: LISTING}, here), nodes(far, mesh="lab")) == [far, A]


def test_no_node_at_all_is_an_error_that_says_how_to_start_one() -> None:
    with pytest.raises(PeerUnreachable, match="runs here: start one with 'p2pmesh run'"):
        ask(World(), nodes())
    with pytest.raises(PeerUnreachable, match="of mesh 'lab'"):
        ask(World(here=(entry(A, "home"),)), nodes(mesh="lab"))


def test_a_runtime_directory_that_is_refused_matters_only_where_nothing_was_given() -> None:
    unsafe = ConfigError("runtime directory /x: open to others")
    assert ask(World({A: LISTING}, unsafe), nodes(A)) == [A]
    with pytest.raises(ConfigError, match="open to others"):
        ask(World(here=unsafe), nodes())


def test_a_call_asks_a_bounded_number_of_nodes() -> None:
    many = [f"http://127.0.0.1:{port}" for port in range(9000, 9100)]
    world = World()
    with pytest.raises(PeerUnreachable):
        ask(world, nodes(*many))
    assert world.urls == many[:NODES_MAX]


def test_each_node_gets_the_token_that_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({C: LISTING}, here=(entry(A), entry(B, token="of B"), entry(C)))
    world.run(nodes(A, token="mine").call(calls.list_instances()))
    assert list(zip(world.urls, world.tokens, strict=True)) == [
        (A, "mine"), (B, "of B"), (C, "mine"),
    ]  # fmt: skip
    world = World({B: LISTING}, here=(entry(B, token="of B"),))
    world.run(nodes(B).call(calls.list_instances()))
    assert world.tokens == ["of B"], "a given node may be one of this machine"
    monkeypatch.setenv("P2PMESH_HTTP_TOKEN", "of-the-environment")
    world = World({A: LISTING})
    world.run(nodes(A).call(calls.list_instances()))
    assert world.tokens == ["of-the-environment"]


@pytest.mark.parametrize("bad", ["SECRET\n", "SEC RET", "SECRET\r\nX: y", "SECRET" * 99, b"SECRET"])
def test_a_token_that_no_header_carries_is_refused_and_never_quoted(
    monkeypatch: pytest.MonkeyPatch, bad: Any
) -> None:
    with pytest.raises(ConfigError, match=r"^token: ") as caught:
        nodes(A, token=bad)
    assert "SEC" not in str(caught.value)
    if isinstance(bad, str):
        monkeypatch.setenv("P2PMESH_HTTP_TOKEN", bad)
        with pytest.raises(ConfigError, match=r"^P2PMESH_HTTP_TOKEN: ") as caught:
            nodes(A)
        assert "SEC" not in str(caught.value)


def test_a_node_that_runs_anew_has_another_token_which_is_looked_up() -> None:
    world = World({A: LISTING}, here=(entry(A, token="old"),))
    known = nodes()
    ask(world, known)
    world.here = (entry(A, token="new"),)
    world.nodes[A] = [said(b"who are you?", 401), LISTING]
    assert ask(world, known) == [A, A]
    assert world.tokens == ["old", "old", "new"]
    world.nodes[A] = said(b"who are you?", 401)
    with pytest.raises(ConfigError, match="who are you"):
        ask(world, known)
    assert len(world.asked) == 4, "it is still the newest"


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PMESH_URL", f"{B}/")
    assert ask(World({A: LISTING, B: LISTING}), nodes()) == [B]
    assert ask(World({A: LISTING, B: LISTING}), nodes(A)) == [A]
    monkeypatch.setenv("P2PMESH_URL", "somewhere")
    with pytest.raises(ConfigError, match="P2PMESH_URL 'somewhere'"):
        nodes()
    with pytest.raises(ConfigError, match="url 'ftp://x'"):
        nodes("ftp://x")
