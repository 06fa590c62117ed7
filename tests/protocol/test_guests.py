"""The entries of a home's guests, alone."""

from __future__ import annotations

import msgspec

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.guests import Guests, is_registrable
from p2pmesh.protocol.types import GuestEntry, Instant, Life, State
from p2pmesh.protocol.wire import RegisterBody

ME, OTHER = b"m" * 32, b"o" * 32
LIFE, STAMP, LATER = Life(5, 0, 1), Life(9, 0, 2), Life(10, 0, 3)
BODY = RegisterBody("127.0.0.1", 4101, ("query",), ("default",))


def at(now: float) -> Instant:
    return Instant(now, 1_760_000_000_000 + round(now * 1000))


def registered(guests: Guests, now: float = 0.0, known: GuestEntry | None = None) -> GuestEntry:
    entry = guests.register(at(now), "g", BODY, life=LIFE, known=known, stamp=STAMP)
    assert entry is not None
    return entry


def test_a_first_registration_takes_a_stamp_and_term_one() -> None:
    entry = registered(Guests(ME))
    assert (entry.life, entry.term, entry.revision, entry.home) == (STAMP, 1, 0, ME)
    assert (entry.home_life, entry.state, entry.created_at) == (
        LIFE, State.ALIVE, 1_760_000_000_000_000,
    )  # fmt: skip


def test_registering_again_keeps_created_at_and_life_and_says_only_what_changed() -> None:
    guests = Guests(ME)
    first = registered(guests)
    assert guests.register(at(5), "g", BODY, life=LIFE, known=first, stamp=LATER) is None
    moved = msgspec.structs.replace(BODY, port=9)
    again = guests.register(at(6), "g", moved, life=LIFE, known=first, stamp=LATER)
    assert again is not None
    assert (again.port, again.revision, again.term) == (9, 1, 1)
    assert (again.life, again.created_at) == (first.life, first.created_at)


def test_silence_of_fifteen_seconds_fails_it_and_a_heartbeat_revives_it() -> None:
    guests = Guests(ME)
    registered(guests)
    guests.beat(at(10), "g", "healthy", None)
    assert guests.sweep(at(24)) == []
    (failed,) = guests.sweep(at(25))
    assert failed.state is State.FAILED
    assert guests.next_at == 25 + timing.GUEST_SWEEP
    revived = guests.beat(at(26), "g", "healthy", b"m")
    assert revived is not None
    assert (revived.state, revived.revision) == (State.ALIVE, failed.revision + 1)
    guest = guests.get("g")
    assert guest is not None
    assert (guest.status, guest.metrics) == ("healthy", b"m")


def test_after_an_hour_only_a_registration_revives_it_and_after_a_day_it_is_left() -> None:
    guests = Guests(ME)
    registered(guests)
    guests.sweep(at(15))
    assert guests.can_revive(at(15 + timing.GUEST_REVIVAL - 1), "g")
    assert not guests.can_revive(at(15 + timing.GUEST_REVIVAL), "g")
    assert registered(guests, 5000).state is State.ALIVE
    guests.sweep(at(6000))
    (left,) = guests.sweep(at(6000 + timing.GUEST_FORGOTTEN_AFTER))
    assert left.state is State.LEFT
    assert "g" not in guests


def test_leaving_is_a_last_revision_and_registering_then_is_a_new_life() -> None:
    guests = Guests(ME)
    registered(guests)
    left = guests.leave("g")
    assert (left.state, left.revision, left.term) == (State.LEFT, 1, 1)
    again = guests.register(at(9), "g", BODY, life=LIFE, known=left, stamp=LATER)
    assert again is not None
    assert (again.term, again.life) == (2, LATER)
    assert again.created_at > left.created_at


def test_adoption_keeps_the_stamp_and_outbids_every_term_seen() -> None:
    theirs = msgspec.structs.replace(registered(Guests(OTHER)), term=7, home=OTHER)
    guests = Guests(ME)
    adopted = guests.adopt(at(50), theirs, LIFE)
    assert (adopted.term, adopted.home, adopted.revision) == (8, ME, 0)
    assert (adopted.life, adopted.created_at, adopted.port) == (STAMP, theirs.created_at, 4101)
    assert not guests.is_outbid(theirs, "g")
    assert guests.is_outbid(msgspec.structs.replace(theirs, term=9), "g")
    same_term = msgspec.structs.replace(theirs, term=8)
    assert guests.is_outbid(same_term, "g") is (OTHER > ME)


def test_a_new_life_of_the_home_announces_its_guests_again() -> None:
    guests = Guests(ME)
    registered(guests)
    (entry,) = guests.relive(at(1), LATER)
    assert (entry.home_life, entry.revision) == (LATER, 1)
    assert guests.relive(at(1), LATER) == []


def test_what_would_not_fit_an_entry_is_not_registrable() -> None:
    assert is_registrable("g", BODY)
    labels = tuple(f"{n:02}" + "x" * (limits.LABEL_MAX - 2) for n in range(limits.LABELS_MAX))
    for instance_id, change in (
        ("", {}),
        ("x" * 129, {}),
        ("a\x00b", {}),
        ("g", {"hostname": "h" * 256}),
        ("g", {"port": 65_536}),
        ("g", {"port": -1}),
        ("g", {"capabilities": ("",)}),
        ("g", {"capabilities": ("x" * 65,)}),
        ("g", {"profiles": ("x",) * 33}),
        ("g", {"capabilities": labels, "profiles": labels}),
    ):
        assert not is_registrable(instance_id, msgspec.structs.replace(BODY, **change))
