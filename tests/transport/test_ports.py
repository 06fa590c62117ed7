"""Listening sockets: which port is taken, and by whom."""

import os
import socket
import sys
from contextlib import closing

import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.transport import ports
from tests.processes import Process

LISTENER = """
import json, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
sys.stdin.close()
import signal
signal.pause()
"""
both_loopbacks = pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")


@pytest.fixture
def listen():
    """ports.listen, whose sockets end with the test."""
    opened = []

    def listen(hosts, port, preferred=0):
        listeners = ports.listen(hosts, port, preferred)
        opened.extend(listeners)
        return [listener.getsockname()[:2] for listener in listeners]

    yield listen
    for listener in opened:
        listener.close()


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


@both_loopbacks
def test_all_addresses_share_one_port(listen):
    (first, port), (second, same) = listen(("127.0.0.1", "::1"), 0)
    assert (first, second) == ("127.0.0.1", "::1")
    assert port == same != 0


@both_loopbacks
def test_the_wildcards_of_both_families_stand_side_by_side(listen):
    (_, port), (_, same) = listen(("0.0.0.0", "::"), 0)
    assert port == same


def test_the_preferred_port_is_taken_if_it_is_free(listen):
    preferred = free_port()
    assert listen(("127.0.0.1",), None, preferred) == [("127.0.0.1", preferred)]
    ((_, other),) = listen(("127.0.0.1",), None, preferred)
    assert other not in (0, preferred)


def test_a_port_that_is_taken_at_one_address_is_given_up_at_all(listen):
    preferred = free_port()
    listen(("127.0.0.2",), preferred)
    bound = listen(("127.0.0.1", "127.0.0.2"), None, preferred)
    assert preferred not in {port for _, port in bound}
    assert listen(("127.0.0.1",), preferred) == [("127.0.0.1", preferred)]  # not kept


def test_an_explicit_port_that_is_taken_names_this_process(listen):
    ((_, port),) = listen(("127.0.0.1",), 0)
    with pytest.raises(ConfigError, match=f"port {port} at 127.0.0.1 is taken by this process"):
        listen(("127.0.0.1",), port)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_explicit_port_that_is_taken_names_the_other_process(listen, home):
    with Process([sys.executable, "-c", LISTENER], home=home) as other:
        port = other.line(lambda line: True)["port"]
        assert ports.holder_of(port) == other.pid
        with pytest.raises(ConfigError, match=f"taken by process {other.pid}: .* another port"):
            listen(("127.0.0.1",), port)


def test_nobody_holds_a_free_port():
    assert ports.holder_of(free_port()) is None


def test_a_port_whose_connections_wait_to_be_forgotten_is_free(listen):
    """Whoever closes first keeps the connection in TIME_WAIT: a node that restarts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as there:
            here, _ = listener.accept()
            here.close()
            assert there.recv(1) == b""
    assert listen(("127.0.0.1",), port) == [("127.0.0.1", port)]


@pytest.mark.parametrize(
    ("host", "port", "advice"),
    [
        pytest.param("192.0.2.1", 0, "no such address: give one of its own", id="address"),
        pytest.param("nonsense", 0, "cannot listen at nonsense", id="nonsense"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_the_fix(listen, host, port, advice):
    with pytest.raises(ConfigError, match=advice):
        listen((host,), port)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_privileged_port_is_refused_with_the_fix(listen):
    with pytest.raises(ConfigError, match="above 1023"):
        listen(("127.0.0.1",), 81)
