"""Pages of other origins can neither read nor write a node on this machine.

Each attack is tried on a careless server first, where it works: what is shown is that
the node withstands it, and not that the browser never sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
from playwright.sync_api import Page

from p2pmesh.transport.interfaces import read_interfaces
from tests.browser.attacks import GOODBYE, NEVER_SEEN, READS, WRITES, Careless, careless, script
from tests.http.contract import registration
from tests.http.wire import Connection, get
from tests.processes import P2PMESH, Process, eventually

EMPTY_PAGE: Final = "<!doctype html><body>"


@dataclass(frozen=True)
class Node:
    """A node whose page of metrics says how it took what came."""

    port: int
    own: frozenset[str]  # what nobody should learn: its ids

    def refused(self) -> int:
        return sum(self._answered(status) for status in (403, 421))

    def has_refused_since(self, before: int) -> bool:
        return self.refused() > before

    def _answered(self, status: int) -> int:
        with Connection(f"127.0.0.1:{self.port}") as door:
            text = door.ask(get("/metrics")).body.decode()
        found = re.findall(
            rf'^p2pmesh_http_requests_total{{.*status="{status}"}} (\S+)', text, re.M
        )
        return sum(int(float(count)) for count in found)

    def lists(self, instance_id: str) -> bool:
        with Connection(f"127.0.0.1:{self.port}") as door:
            listed = door.ask(get("/registry/agents")).json["instances"]
        return instance_id in [each["instance_id"] for each in listed]

    def register(self, instance_id: str) -> None:
        with Connection(f"127.0.0.1:{self.port}") as door:
            assert door.ask(registration(instance_id)).status == 200


def started(home: Path, *flags: str) -> Process:
    return Process((*P2PMESH, "run", "--json", "--no-mdns", *flags), home=home)


def node_of(process: Process) -> Node:
    ready = process.event("ready")
    process.event("joined")
    port = int(str(ready["http"]).rpartition(":")[2])
    return Node(port, frozenset((ready["instance_id"], ready["node_id"])))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with started(tmp_path_factory.mktemp("home"), "--http", "127.0.0.1:0") as process:
        yield node_of(process)


@pytest.fixture(scope="module")
def wide_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One that asks nobody for a token, at all addresses of this machine."""
    flags = ("--http", "0.0.0.0:0", "--http-open")
    with started(tmp_path_factory.mktemp("home"), *flags) as process:
        yield node_of(process)


@pytest.fixture(scope="module")
def server() -> Iterator[Careless]:
    with careless() as one:
        yield one


@pytest.fixture(scope="module")
def careless_page() -> Iterator[int]:
    """The port of a server that gives away pages."""
    with careless() as one:
        yield one.port


@pytest.fixture(scope="module")
def lan_address() -> str:
    found = [each.ip for one in read_interfaces() for each in one.addresses]
    others = [ip for ip in found if "." in ip and not ip.startswith("127.")]
    if not others:
        pytest.skip("this machine has no address but loopback")
    return others[0]


def open_page(page: Page, origin: str) -> None:
    """A page of this origin.  Where a name leads elsewhere by now, its server gave the
    page before that."""
    page.route("**/page", lambda route: route.fulfill(content_type="text/html", body=EMPTY_PAGE))
    page.goto(f"{origin}/page")


def attack(page: Page, body: str, base: str, instance_id: str = "") -> Any:
    return page.evaluate(script(body), [base, instance_id])


#: Where a page comes from, and as what it knows its victim.
FOREIGN: Final = {
    "another site": ("http://evil.test:{page}", "http://localhost:{victim}"),
    "another site, by address": ("http://evil.test:{page}", "http://127.0.0.1:{victim}"),
    "another port": ("http://localhost:{page}", "http://localhost:{victim}"),
    "a rebound name": ("http://evil.test:{victim}", "http://evil.test:{victim}"),
}
foreign = pytest.mark.parametrize(("origin", "base"), FOREIGN.values(), ids=FOREIGN)


# --- the attacks work ----------------------------------------------------------------


@foreign
def test_a_careless_server_is_read_and_written(
    page: Page, server: Careless, careless_page: int, origin: str, base: str
) -> None:
    ports = {"page": careless_page, "victim": server.port}
    origin, base = origin.format_map(ports), base.format_map(ports)
    open_page(page, origin)
    for name, body in READS.items():
        is_seen = origin == base or name != NEVER_SEEN
        assert bool(attack(page, body, base)) == is_seen, name
    for name, body in WRITES.items():
        attack(page, body, base, f"{name} from {origin}")
        eventually(partial(is_told, server, f"{name} from {origin}"), f"{name} did not come")
    attack(page, GOODBYE, base)
    assert is_told(server, "/v1/leave")


def is_told(server: Careless, words: str) -> bool:
    return any(words in unquote(told) for told in server.told)


def test_a_page_of_the_node_itself_reads_it_and_writes_json(page: Page, node: Node) -> None:
    """So it is not for other reasons that others do not."""
    own = f"http://localhost:{node.port}"
    open_page(page, own)
    for name, body in READS.items():
        assert bool(attack(page, body, own)) == (name != "an image"), name  # it has none
    for name, body in WRITES.items():
        attack(page, body, own, name)
        assert node.lists(name) == (name == "JSON")


# --- a node withstands them -----------------------------------------------------------


@foreign
def test_a_node_is_neither_read_nor_written(
    page: Page, node: Node, careless_page: int, origin: str, base: str
) -> None:
    ports = {"page": careless_page, "victim": node.port}
    origin, base = origin.format_map(ports), base.format_map(ports)
    open_page(page, origin)
    for name, body in READS.items():
        before = node.refused()
        seen = attack(page, body, base)
        # The refusal itself is seen where the browser thinks that it is one origin.
        assert seen is None or (origin == base and not any(own in seen for own in node.own)), name
        eventually(partial(node.has_refused_since, before), f"nothing came by {name}")
    withstands_writes(page, node, origin, base)


def withstands_writes(page: Page, node: Node, origin: str, base: str) -> None:
    for name, body in WRITES.items():
        is_there = name == "a deregistration"
        if is_there:
            node.register(f"{name} from {origin}")
        before = node.refused()
        attack(page, body, base, f"{name} from {origin}")
        eventually(partial(node.has_refused_since, before), f"nothing came by {name}")
        assert node.lists(f"{name} from {origin}") == is_there
    before = node.refused()
    attack(page, GOODBYE, base)
    assert node.has_refused_since(before)  # and it is still there to say so


def test_a_node_that_is_open_to_the_lan_is_neither_read_nor_written(
    page: Page, wide_node: Node, lan_address: str, careless_page: int
) -> None:
    """There the browser does not say whence a request comes, and the node answers some
    that a page cannot read."""
    origin, base = f"http://evil.test:{careless_page}", f"http://{lan_address}:{wide_node.port}"
    open_page(page, origin)
    for name, body in READS.items():
        assert attack(page, body, base) is None, name
    withstands_writes(page, wide_node, origin, base)


def test_no_page_frames_a_node(page: Page, node: Node) -> None:
    """Who is framed can be clicked on unseen; not even its own pages may."""
    own = f"http://localhost:{node.port}"
    open_page(page, own)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.evaluate(
        """url => new Promise(loaded => {
            const frame = document.createElement('iframe');
            frame.onload = loaded;
            frame.src = url;
            document.body.append(frame);
        })""",
        f"{own}/health",
    )
    assert any("frame-ancestors" in text for text in said)
