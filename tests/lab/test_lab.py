"""The lab itself: a fault that it claims to make is there and ends, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.namespaces import existing, sweep
from tests.lab.network import Host, Lab
from tests.lab.probe import GROUP
from tests.processes import Process, eventually, is_gone

PROBE = (sys.executable, "-m", "tests.lab.probe")


def echoing(lab: Lab, count: int) -> tuple[Host, ...]:
    """Hosts that answer pings."""
    hosts = lab.hosts(count)
    for host in hosts:
        host.start(*PROBE, "echo").event("ready")
    return hosts


def ping(source: Host, target: Host, count: int = 10) -> dict[str, Any]:
    return source.start(*PROBE, "ping", target.address, str(count)).event("pinged").value


def reaches(source: Host, target: Host) -> bool:
    return bool(ping(source, target)["answers"])


def test_every_host_reaches_every_other_under_its_own_address(lab: Lab) -> None:
    hosts = lab.hosts(3)
    echoes = {host: host.start(*PROBE, "echo") for host in hosts}
    for target, echo in echoes.items():
        echo.event("ready")
        for source in set(hosts) - {target}:
            assert reaches(source, target)
            echo.event("got", sender=source.address)


def test_a_host_has_a_default_route_and_sees_only_its_own_interfaces(lab: Lab) -> None:
    (host,) = lab.hosts(1)
    assert "default via" in host.run("ip", "-4", "route").stdout
    assert host.run("ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    assert host.run("sh", "-c", "echo $HOME").stdout.strip() == str(host.home)


def test_a_cut_stops_packets_both_ways_between_these_two_until_it_is_healed(lab: Lab) -> None:
    a, b, c = echoing(lab, 3)
    lab.cut(a, b)
    assert not reaches(a, b)
    assert not reaches(b, a)
    assert reaches(a, c)
    lab.heal()
    assert reaches(a, b)


def test_a_one_way_cut_lets_the_other_way_through(lab: Lab) -> None:
    a, b = lab.hosts(2)
    hears = {host: host.start(*PROBE, "listen") for host in (a, b)}
    for listening in hears.values():
        listening.event("ready")
    lab.cut_one_way(a, b)
    a.start(*PROBE, "send", b.address, "5").event("sent")
    b.start(*PROBE, "send", a.address, "5").event("sent")
    hears[a].event("got", number=4)
    lab.heal()
    a.start(*PROBE, "send", b.address, "1").event("sent")
    assert hears[b].event("got")["number"] == 0
    assert len(hears[b].lines) == 2  # `ready` and the one after the cut


def test_a_split_leaves_each_side_whole(lab: Lab) -> None:
    a, b, c, d = echoing(lab, 4)
    lab.split([a, b], [c, d])
    assert reaches(a, b)
    assert reaches(c, d)
    assert not any(reaches(one, other) for one in (a, b) for other in (c, d))


def test_the_share_that_is_lost_is_about_the_share_that_was_asked_for(lab: Lab) -> None:
    a, b = echoing(lab, 2)
    lab.lose(0.2)
    # Both ways must work: 1,280 of 2,000 are expected, and five deviations are 108.
    assert 1_170 <= ping(a, b, 2_000)["answers"] <= 1_390
    lab.heal()
    assert ping(a, b, 200)["answers"] == 200


def test_an_unplugged_host_hears_nothing_and_is_told_nothing(lab: Lab) -> None:
    a, b = echoing(lab, 2)
    b.unplug()
    assert not reaches(a, b)
    assert "state UP" in b.run("ip", "link", "show", "eth0").stdout
    b.plug_in()
    assert reaches(a, b)


def test_a_delayed_cable_takes_about_that_long_each_way_and_loses_nothing(lab: Lab) -> None:
    a, b = echoing(lab, 2)
    b.delay(0.05)
    pinged = ping(a, b, 200)
    assert pinged["answers"] == 200
    assert pinged["took"][0] >= 0.1
    assert statistics.median(pinged["took"]) < 0.2
    b.delay(0.2)
    assert ping(a, b)["took"][0] >= 0.4


def test_jitter_spreads_the_delay_and_keeps_the_order(lab: Lab) -> None:
    a, b = lab.hosts(2)
    listening = b.start(*PROBE, "listen")
    listening.event("ready")
    b.delay(0.1, jitter=0.08)
    a.start(*PROBE, "send", b.address, "150").event("sent")
    listening.event("got", number=149)
    assert [line["number"] for line in listening.lines[1:]] == list(range(150))
    listening.leave()
    b.start(*PROBE, "echo").event("ready")
    took = [ping(a, b, 1)["took"][0] for _ in range(8)]
    assert min(took) >= 0.04
    assert max(took) - min(took) > 0.01


def test_cuts_and_unplugging_work_on_a_delayed_cable_too(lab: Lab) -> None:
    a, b, c = echoing(lab, 3)
    b.delay(0.01)
    lab.cut(a, b)
    assert not reaches(a, b)
    assert reaches(c, b)
    lab.heal()
    b.unplug()
    assert not reaches(a, b)
    b.plug_in()
    assert reaches(a, b)


def test_tcp_goes_through_a_delayed_cable_unharmed(lab: Lab) -> None:
    a, b = lab.hosts(2)
    serving = b.start(*PROBE, "serve")
    serving.event("ready")
    b.delay(0.005)
    sent = a.start(*PROBE, "upload", b.address, str(8 << 20)).event("sent")
    assert serving.event("received")["digest"] == sent["digest"]


def test_multicast_reaches_all_that_joined_and_stops_at_a_host_that_blocks_it(lab: Lab) -> None:
    a, b, c = lab.hosts(3)
    hears = {host: host.start(*PROBE, "listen") for host in (b, c)}
    for listening in hears.values():
        listening.event("ready")
    a.start(*PROBE, "send", GROUP, "1").event("sent")
    for listening in hears.values():
        assert listening.event("got")["sender"] == a.address
    b.block_multicast()
    a.start(*PROBE, "send", GROUP, "2").event("sent")
    a.start(*PROBE, "send", b.address, "3").event("sent")
    hears[c].event("got", number=1)
    hears[b].event("got", number=2)
    numbers = [line["number"] for line in hears[b].lines[1:]]
    assert numbers == [0, 0, 1, 2]  # the first multicast, then only what was sent to it alone


def test_multicast_respects_a_one_way_cut(lab: Lab) -> None:
    a, b, c = lab.hosts(3)
    hears = {host: host.start(*PROBE, "listen") for host in (b, c)}
    for listening in hears.values():
        listening.event("ready")
    lab.cut_one_way(a, b)
    a.start(*PROBE, "send", GROUP, "1").event("sent")
    c.start(*PROBE, "send", GROUP, "1").event("sent")
    hears[c].event("got", sender=a.address)
    hears[b].event("got", sender=c.address)
    assert len(hears[b].lines) == 2


def test_the_end_of_a_lab_ends_its_processes_and_removes_its_hosts(
    system: None, tmp_path: Path
) -> None:
    before = labs_of(os.getpid())
    with Lab(tmp_path) as lab:
        (host,) = lab.hosts(1)
        stubborn = host.start(sys.executable, "-c", STUBBORN).event("ready")["pid"]
        slow = host.start(*PROBE, "echo")
        slow.event("ready")
        slow.signal(signal.SIGSTOP)
        assert len(labs_of(os.getpid()) - before) == 2
    assert labs_of(os.getpid()) == before
    assert is_gone(stubborn)
    assert is_gone(slow.pid)


#: Leaves a process behind that no parent knows and that ignores being asked to end.
STUBBORN = """
import json, os, signal
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({"event": "ready", "pid": os.getpid()}), flush=True)
    signal.pause()
"""

#: Makes a lab, says so, and is then ended by a signal.
OWNER = f"""
import json, pathlib, signal, sys
from tests.lab.network import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
with Lab(pathlib.Path("hosts")) as lab:
    (host,) = lab.hosts(1)
    host.delay(0.01)
    stubborn = host.start(sys.executable, "-c", {STUBBORN!r}).event("ready")["pid"]
    print(json.dumps({{"event": "ready", "stubborn": stubborn}}), flush=True)
    signal.pause()
"""


def labs_of(pid: int) -> set[str]:
    return {name for name in existing() if name.startswith(f"p2pmesh-lab-{pid}-")}


def test_a_lab_that_is_interrupted_leaves_nothing(system: None, home: Path) -> None:
    with Process([sys.executable, "-c", OWNER], home=home) as owner:
        stubborn = owner.event("ready")["stubborn"]
        assert len(labs_of(owner.pid)) == 2
        owner.signal(signal.SIGINT)
        owner.wait()
    assert not labs_of(owner.pid)
    assert is_gone(stubborn)


def test_what_a_killed_lab_left_is_swept_and_living_labs_are_not(lab: Lab, home: Path) -> None:
    (living,) = lab.hosts(1)
    with Process([sys.executable, "-c", OWNER], home=home) as owner:
        stubborn = owner.event("ready")["stubborn"]
        sweep()
        assert len(labs_of(owner.pid)) == 2
        owner.kill()
    assert len(labs_of(owner.pid)) == 2
    sweep()
    assert not labs_of(owner.pid)
    eventually(lambda: is_gone(stubborn), "the end of what the killed lab had started")
    assert living.run("true").returncode == 0


@pytest.mark.parametrize(("required", "status"), [("0", 0), ("1", 1)])
def test_a_system_without_the_tools_skips_visibly_unless_the_lab_is_required(
    required: str, status: int
) -> None:
    test = f"{__file__}::test_a_split_leaves_each_side_whole"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        env=os.environ | {"PATH": "/nowhere", "LAB_REQUIRED": required},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert "not installed: ip, nft, setpriv" in done.stdout
