"""What the recipient's end keeps, and for how long."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import Envelope
from tests.protocol.offices import Office, pair


def post(office: Office, sender: Office, stream: bytes, seq: int, prev: int) -> None:
    envelope = Envelope(f"{stream!r}{seq}", "s", office.agent, "T", b"%d" % seq, None, 0)
    office.post.received(office.world.at, sender.id, wire.Post(stream, seq, prev, 10**6, envelope))


def test_a_gap_is_told_once_for_each_way() -> None:
    world, a, b = pair()
    for seq in (5, 6, 7):
        post(b, a, b"stream00", seq, seq - 1)
        world.run()
    assert b.said(wire.Receipt) == [wire.Receipt(b"stream00", 0, wire.RECEIPT_AGAIN)]
    world.unlink(a, b)
    world.link(a, b)
    post(b, a, b"stream00", 7, 6)
    world.run()
    assert len(b.said(wire.Receipt)) == 2
    assert b.arrived() == []


def test_what_was_stored_before_is_receipted_again() -> None:
    world, a, b = pair()
    for _ in range(3):
        post(b, a, b"stream00", 1, 0)
        world.run()
    assert b.arrived() == [b"1"]
    assert b.said(wire.Receipt) == [wire.Receipt(b"stream00", 1)] * 3


def test_one_who_does_not_live_here_is_said_to_be_elsewhere() -> None:
    world, a, b = pair()
    envelope = Envelope("id", "s", "nobody", "T", b"", None, 0)
    b.post.received(world.at, a.id, wire.Post(b"stream00", 1, 0, 1000, envelope))
    world.run()
    assert b.said(wire.Receipt) == [wire.Receipt(b"stream00", 0, wire.RECEIPT_NOT_HERE)]
    assert b.post._home.intake._streams == {}


def test_unsure_of_what_was_never_stored_is_told_to_send_it_again() -> None:
    world, a, b = pair()
    b.post.received(world.at, a.id, wire.Unsure(a.id, b"stream00", "b-1", ((1, 9),)))
    world.run()
    assert b.said(wire.Receipt) == [wire.Receipt(b"stream00", 0, wire.RECEIPT_AGAIN)]
    assert b.said(wire.Done) == []


def test_malformed_posts_are_counted_and_change_nothing() -> None:
    world, a, b = pair()
    post(b, a, b"short", 1, 0)
    post(b, a, b"stream00", 0, 0)
    post(b, a, b"stream00", 3, 3)
    no_target = Envelope("id", "s", None, "T", b"", None, 0)
    b.post.received(world.at, a.id, wire.Post(b"stream00", 1, 0, 1000, no_target))
    assert b.post.counters["post_malformed"] == 4
    bad = Envelope("x" * 99, "s", "b-1", "T", b"", None, 0)
    b.post.received(world.at, a.id, wire.Post(b"stream01", 1, 0, 1000, bad))
    world.run()
    assert b.arrived() == []
    assert b.said(wire.Done)[-1].failed == ((1, "dead", "malformed"),)


def test_watermarks_are_bounded_and_the_least_recently_used_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "STREAMS_MAX", 16)
    world, a, b = pair()
    for number in range(100):
        world.pass_time(0.01)
        post(b, a, b"%08d" % number, 1, 0)
        post(b, a, b"%08d" % 0, number + 2, 0)
        world.run()
    kept = {stream for _, stream in b.post._home.intake._streams}
    assert len(kept) <= 16
    assert {b"%08d" % 0, b"%08d" % 99} <= kept
    assert b.post.counters["watermark_forgotten"] >= 84


def test_a_watermark_is_forgotten_thirty_days_after_its_streams_last_contact() -> None:
    world, a, b = pair()
    post(b, a, b"stream00", 1, 0)
    world.pass_time(timing.WATERMARK_TTL / 2)
    post(b, a, b"stream00", 2, 1)
    world.pass_time(0.8 * timing.WATERMARK_TTL)
    assert len(b.post._home.intake._streams) == 1
    world.pass_time(0.3 * timing.WATERMARK_TTL)
    assert b.post._home.intake._streams == {}
