"""The clocks: one that goes on through sleep, and the wall."""

import sys
import time
from pathlib import Path

import pytest

from p2pmesh.transport.clock import instant


def test_now_never_goes_back_and_wall_is_unix_milliseconds():
    before = time.time_ns() // 1_000_000
    moments = [instant() for _ in range(100)]
    after = time.time_ns() // 1_000_000
    assert [moment.now for moment in moments] == sorted(moment.now for moment in moments)
    assert all(before <= moment.wall <= after for moment in moments)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how long it has been up")
def test_now_counts_the_time_asleep():
    """Linux's uptime counts it too, with two digits."""

    def uptime():
        return float(Path("/proc/uptime").read_text().split()[0])

    before, now, after = uptime(), instant().now, uptime()
    assert before - 0.01 <= now <= after + 0.01
