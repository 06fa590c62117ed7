"""Readers that wait for messages, and do not stay for the answer."""

from __future__ import annotations

import time

from tests.http.contract import eventually, register, send
from tests.http.serving import Served
from tests.http.wire import Connection, get


def test_a_reader_that_goes_away_waits_no_more(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        me = register(door)
        with Connection(served.addresses[0]) as impatient:
            impatient.send(get(f"/messages/{me}?wait=60"))
            eventually(lambda: served.run(lambda: served.mesh.readers) == 1, "not waiting")
        eventually(lambda: served.run(lambda: served.mesh.readers) == 0, "still waiting")
        assert door.ask(send("x", me)).status == 200


def test_a_reader_that_waits_does_not_hold_up_the_end(served: Served) -> None:
    with Connection(served.addresses[0]) as door:
        door.send(get("/messages/x?wait=60"))
        eventually(lambda: served.run(lambda: served.mesh.readers) == 1, "not waiting")
        started = time.monotonic()
        served.wait(served.servers[0].stop())
        assert time.monotonic() - started < 20
        assert door.read().status == 503
        assert door.rest() == b""
