"""Real sockets on loopback: what the transport says of links, dials and their ends."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import time

import pytest

from p2pmesh.protocol.types import DialOutcome
from p2pmesh.transport import tcp
from p2pmesh.transport.tcp import TcpTransport, outcome_of
from tests.processes import Process

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
GUARD = 10.0  # against hanging, no measurement


class End:
    """A transport that remembers what it said."""

    def __init__(self):
        self.said = asyncio.Queue()
        self.bytes = {}
        self._more = asyncio.Event()
        self.transport = TcpTransport(
            opened=self._opened,
            received=self._received,
            ended=lambda link: self.said.put_nowait(("ended", link)),
            dial_failed=lambda *failed: self.said.put_nowait(("dial_failed", *failed)),
            paused=lambda link: self.said.put_nowait(("paused", link)),
            resumed=lambda link: self.said.put_nowait(("resumed", link)),
        )

    def _opened(self, link, address, dial):
        self.bytes[link] = bytearray()
        self.said.put_nowait(("opened", link, address, dial))

    def _received(self, link, data):
        assert type(data) is bytes
        self.bytes[link] += data
        self._more.set()

    async def next(self):
        async with asyncio.timeout(GUARD):
            return await self.said.get()

    async def opened(self):
        kind, link, *_ = await self.next()
        assert kind == "opened"
        return link

    async def read(self, link, size):
        async with asyncio.timeout(GUARD):
            while len(self.bytes[link]) < size:
                self._more.clear()
                await self._more.wait()
        return bytes(self.bytes[link])

    async def listen(self, host="127.0.0.1"):
        (address,) = await self.transport.listen((host,), 0)
        return address


async def until(holds):
    """For what nothing announces, such as the kernel's doings."""
    turn = asyncio.Event()
    async with asyncio.timeout(GUARD):
        while not holds():
            turn.clear()
            asyncio.get_running_loop().call_later(0.001, turn.set)
            await turn.wait()


@pytest.fixture
async def ends():
    """Makes ends; closes them."""
    made = []

    def make():
        made.append(End())
        return made[-1]

    yield make
    async with asyncio.timeout(GUARD):
        for end in made:
            await end.transport.aclose()


@pytest.fixture
async def pair(ends):
    """(end a, its link, end b, its link); a dialled."""
    a, b = ends(), ends()
    a.transport.dial(1, await b.listen(), GUARD)
    return a, await a.opened(), b, await b.opened()


@contextlib.contextmanager
def silent_listener(*, queue=16):
    """A socket that listens and never accepts: what a stopped process looks like."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(queue)
        yield tcp._text(listener.getsockname())


@contextlib.contextmanager
def no_more_descriptors():
    """Every one that is allowed is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refusing_address():
    with silent_listener() as address:
        return address


NODE = """
import asyncio, json, os, signal, sys
from p2pmesh.transport.tcp import TcpTransport

def say(**line):
    print(json.dumps(line), flush=True)

def nothing(*_):
    pass

async def main():
    forking = sys.argv[1:] == ["fork"]
    def opened(link, address, dial):
        say(opened=link)
        if forking:
            child = os.fork()
            if child == 0:
                transport.drop_in_child()
                say(child=os.getpid())
                os.close(1)
                signal.pause()
    transport = TcpTransport(
        opened=opened, received=lambda link, data: transport.write(link, data),
        ended=nothing, dial_failed=nothing, paused=nothing, resumed=nothing)
    (address,) = await transport.listen(("127.0.0.1",), 0)
    say(address=address)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def process(home):
    """Starts a process that listens and echoes; (process, address)."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            node = stack.enter_context(Process([sys.executable, "-c", NODE, *arguments], home=home))
            return node, node.line(lambda line: "address" in line)["address"]

        yield start


# --- links ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_dial_opens_a_link_at_both_ends(ends, host):
    a, b = ends(), ends()
    address = await b.listen(host)
    a.transport.dial(7, address, GUARD)
    kind, here, dialled, dial = await a.next()
    assert (kind, dialled, dial) == ("opened", address, 7)
    kind, there, caller, dial = await b.next()
    assert (kind, dial) == ("opened", None)
    assert caller.startswith(("127.0.0.1:", "[::1]:"))
    a.transport.write(here, b"ping")
    assert await b.read(there, 4) == b"ping"
    b.transport.write(there, b"pong")
    assert await a.read(here, 4) == b"pong"


async def test_every_link_has_its_own_id(ends):
    a, b = ends(), ends()
    address = await b.listen()
    for dial in range(3):
        a.transport.dial(dial, address, GUARD)
    assert len({await a.opened() for _ in range(3)}) == 3
    assert len({await b.opened() for _ in range(3)}) == 3


async def test_a_link_sends_small_messages_at_once_and_bounds_what_waits(pair):
    a, link, b, there = pair
    for end, link_id in ((a, link), (b, there)):
        sock = end.transport._links[link_id].transport.get_extra_info("socket")
        for level, option, value in tcp._OPTIONS:
            assert sock.getsockopt(level, option) == value
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in tcp._OPTIONS


async def test_close_delivers_everything_although_the_peer_keeps_talking(pair):
    """Unread bytes at a close make the kernel reset the connection, and a reset may
    overtake the last words."""
    a, link, b, there = pair
    last_words = bytes(range(256)) * 8192
    b.transport.write(there, b"x" * 3_000_000)
    a.transport.write(link, last_words)
    a.transport.close(link)
    assert await b.read(there, len(last_words)) == last_words
    while (await b.next())[0] in ("paused", "resumed"):
        pass
    assert a.said.empty() or a.said.get_nowait() == ("paused", link)
    assert a.said.empty()


async def test_a_closed_link_takes_no_more_and_says_no_more(pair):
    a, link, b, there = pair
    b.transport.write(there, b"unread")
    a.transport.close(link)
    a.transport.write(link, b"late")
    a.transport.close(link)
    a.transport.abort(link)
    assert a.transport.unacked(link) is None
    assert await b.next() == ("ended", there)
    assert b.bytes[there] == b""
    assert a.bytes[link] == b""
    assert a.said.empty()


async def test_a_close_waits_only_so_long_for_a_peer_that_does_not_read(ends, monkeypatch):
    monkeypatch.setattr(tcp, "LINGER", 0.05)
    a = ends()
    with silent_listener() as address:
        a.transport.dial(1, address, GUARD)
        link = await a.opened()
        a.transport.write(link, bytes(20_000_000))
        a.transport.close(link)
        async with asyncio.timeout(GUARD):
            await a.transport.aclose()
    assert a.said.get_nowait() == ("paused", link)
    assert a.said.empty()


async def test_a_link_may_be_refused_in_the_very_call_that_reports_it(ends):
    a, b = ends(), ends()
    address = await b.listen()
    b.transport._opened = lambda link, address, dial: b.transport.abort(link)
    a.transport.dial(1, address, GUARD)
    link = await a.opened()
    assert await a.next() == ("ended", link)
    await until(lambda: not b.transport._links)
    assert b.said.empty()


async def test_abort_ends_the_link_for_the_peer_too(pair):
    a, link, b, there = pair
    a.transport.abort(link)
    assert await b.next() == ("ended", there)
    assert a.said.empty()


async def test_a_peer_that_does_not_read_pauses_the_link_and_resumes_it(ends):
    a = ends()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a.transport.dial(1, tcp._text(listener.getsockname()), GUARD)
        link = await a.opened()
        there, _ = listener.accept()
    with there:
        written = 0
        while a.said.empty():
            a.transport.write(link, bytes(65_536))
            written += 65_536
            await asyncio.sleep(0)
        assert await a.next() == ("paused", link)
        there.setblocking(False)
        loop = asyncio.get_running_loop()
        while written:
            written -= len(await loop.sock_recv(there, 1 << 20))
    assert await a.next() == ("resumed", link)
    assert await a.next() == ("ended", link)


async def test_connections_beyond_the_maximum_are_closed_and_counted(ends, monkeypatch):
    monkeypatch.setattr(tcp, "LINKS_MAX", 2)
    a, b = ends(), ends()
    address = await b.listen()
    monkeypatch.setattr(tcp, "LINKS_MAX", 2)
    for dial in range(2):
        a.transport.dial(dial, address, GUARD)
        await b.opened()
        await a.opened()
    a.transport.dial(2, address, GUARD)
    link = await a.opened()
    assert await a.next() == ("ended", link)
    assert b.transport.dropped == {"links_max": 1}
    assert b.said.empty()


@linux
async def test_running_out_of_descriptors_neither_spins_nor_lasts(ends, monkeypatch):
    monkeypatch.setattr(tcp, "ACCEPT_RETRY", 0.2)
    b = ends()
    address = await b.listen()
    with socket.socket() as caller:
        caller.setblocking(False)
        with no_more_descriptors():
            caller.connect_ex(tcp._parse(address)[1])
            await until(lambda: b.transport.dropped)
            for _ in range(100):
                await asyncio.sleep(0)
            assert b.transport.dropped == {"EMFILE": 1}
        await b.opened()


# --- dials ------------------------------------------------------------------------


async def test_a_port_where_nobody_listens_refuses(ends):
    a = ends()
    a.transport.dial(3, refusing_address(), GUARD)
    assert await a.next() == ("dial_failed", 3, DialOutcome.REFUSED)


@linux
async def test_a_kernel_that_does_not_answer_is_a_timeout(ends):
    """A full backlog drops what comes."""
    a = ends()
    with silent_listener(queue=0) as address, socket.socket() as first:
        first.connect(tcp._parse(address)[1])
        a.transport.dial(4, address, 0.05)
        assert await a.next() == ("dial_failed", 4, DialOutcome.TIMEOUT)


@linux
async def test_an_address_without_a_route_is_unreachable(ends):
    a = ends()
    a.transport.dial(5, "127.255.255.255:9", GUARD)
    assert await a.next() == ("dial_failed", 5, DialOutcome.UNREACHABLE)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", ":8078", "localhost:8078",
     "a\0b:8078", "é" * 70 + ":8078", "[::1:8078", "[fe80::1]:8078", "127.0.0.1:8o78"],
)  # fmt: skip
async def test_an_address_that_is_none_says_nothing_about_the_peer(ends, address):
    a = ends()
    a.transport.dial(6, address, GUARD)
    kind, dial, outcome = await a.next()
    assert (kind, dial) == ("dial_failed", 6)
    assert outcome in (DialOutcome.LOCAL_ERROR, DialOutcome.UNREACHABLE)


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ECONNREFUSED, DialOutcome.REFUSED),
        (errno.ETIMEDOUT, DialOutcome.TIMEOUT),
        (errno.EHOSTUNREACH, DialOutcome.UNREACHABLE),
        (errno.ENETUNREACH, DialOutcome.UNREACHABLE),
        (errno.EMFILE, DialOutcome.LOCAL_ERROR),
        (errno.ENFILE, DialOutcome.LOCAL_ERROR),
        (errno.ENOBUFS, DialOutcome.LOCAL_ERROR),
        (errno.ENOMEM, DialOutcome.LOCAL_ERROR),
        (errno.EADDRNOTAVAIL, DialOutcome.LOCAL_ERROR),
        (errno.EPERM, DialOutcome.LOCAL_ERROR),
        (errno.EACCES, DialOutcome.LOCAL_ERROR),
        (errno.ECONNRESET, DialOutcome.LOCAL_ERROR),
    ],
    ids=lambda value: errno.errorcode[value] if type(value) is int else value,
)
def test_each_errno_says_one_thing_about_the_peer(number, outcome):
    assert outcome_of(OSError(number, "")) is outcome


@pytest.mark.parametrize("listens", [True, False])
async def test_an_answer_that_came_while_this_process_did_not_run_counts(ends, listens):
    """The time to wait is over when the loop gets to look; the kernel knows better."""
    a = ends()
    with silent_listener() as address:
        pass
    with silent_listener() if listens else contextlib.nullcontext(address) as address:
        a.transport.dial(1, address, 0.02)
        await asyncio.sleep(0)  # connecting
        time.sleep(0.05)  # noqa: ASYNC251 - starved
        said = await a.next()
    assert said[0] == "opened" if listens else said == ("dial_failed", 1, DialOutcome.REFUSED)


async def test_a_connection_with_itself_is_nobody(ends):
    a = ends()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError, match="itself"):
            await a.transport._connect(sock, sock.getsockname(), GUARD)


@linux
async def test_dialling_without_descriptors_says_nothing_about_the_peer(ends):
    a = ends()
    address = refusing_address()
    with no_more_descriptors():
        a.transport.dial(1, address, GUARD)
        said = await a.next()
    assert said == ("dial_failed", 1, DialOutcome.LOCAL_ERROR)


# --- real processes, and what their kernel says -----------------------------------


async def test_a_killed_process_ends_its_links_and_then_refuses(ends, process):
    node, address = process()
    a = ends()
    a.transport.dial(1, address, GUARD)
    link = await a.opened()
    node.kill()
    assert await a.next() == ("ended", link)
    a.transport.dial(2, address, GUARD)
    assert await a.next() == ("dial_failed", 2, DialOutcome.REFUSED)


@linux
async def test_a_stopped_process_still_accepts_and_acknowledges(ends, process):
    node, address = process()
    a = ends()
    a.transport.dial(1, address, GUARD)
    link = await a.opened()
    node.signal(signal.SIGSTOP)
    a.transport.dial(2, address, GUARD)
    assert (await a.next())[0] == "opened"
    a.transport.write(link, b"are you there?")
    await until(lambda: a.transport.unacked(link) == 0)
    assert a.bytes[link] == b""
    node.signal(signal.SIGCONT)
    assert await a.read(link, 14) == b"are you there?"


@linux
async def test_what_the_peers_kernel_has_no_room_for_is_unacknowledged(ends):
    a = ends()
    with silent_listener() as address:
        a.transport.dial(1, address, GUARD)
        link = await a.opened()
        assert a.transport.unacked(link) == 0
        a.transport.write(link, bytes(30_000_000))
        assert a.transport.unacked(link) > 10_000_000
    assert a.transport.unacked(99) is None


@linux
async def test_a_forked_child_holds_no_socket_of_the_node(ends, process):
    """The parent's death must be seen although the child lives on."""
    node, address = process("fork")
    a = ends()
    a.transport.dial(1, address, GUARD)
    link = await a.opened()
    child = node.line(lambda line: "child" in line)["child"]
    a.transport.write(link, b"echo")  # the parent is none the worse for it
    assert await a.read(link, 4) == b"echo"
    node.kill()
    assert await a.next() == ("ended", link)
    a.transport.dial(2, address, GUARD)
    assert await a.next() == ("dial_failed", 2, DialOutcome.REFUSED)
    os.kill(child, signal.SIGTERM)


# --- the end ----------------------------------------------------------------------


async def test_closing_ends_everything_and_says_nothing(ends):
    a, b = ends(), ends()
    address = await b.listen()
    a.transport.dial(1, address, GUARD)
    await a.opened()
    there = await b.opened()
    with silent_listener(queue=0) as full, socket.socket() as first:
        first.connect(tcp._parse(full)[1])
        a.transport.dial(2, full, GUARD)
        await asyncio.sleep(0)
        await a.transport.aclose()
    await a.transport.aclose()
    assert a.said.empty()
    assert await b.next() == ("ended", there)
    await b.transport.aclose()
    c = ends()
    c.transport.dial(3, address, GUARD)
    assert await c.next() == ("dial_failed", 3, DialOutcome.REFUSED)
