"""Dials and links: from addresses to occurrences, and the bounds on the way."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

import pytest

from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.connections import (
    AttemptFailed,
    Broken,
    Connections,
    Established,
    Occurrence,
    Opened,
    Received,
)
from p2pmesh.protocol.dials import Attempt, Purpose
from p2pmesh.protocol.keys import KeyRing
from p2pmesh.protocol.links import Link, Phase
from p2pmesh.protocol.noise import StaticKey
from p2pmesh.protocol.types import Action, Close, Dial, DialOutcome, FoundBy, Write
from tests.protocol.claims import node_id

PEER = node_id(1)
HELLO = wire.Hello(b"record", (1, 1), b"process", 0, 0)
CONNECT, PROBE = Purpose.CONNECT, Purpose.PROBE


def connections(seed: int = 1, *, mesh: str = "test") -> Connections:
    counter = itertools.count()
    return Connections(
        static=StaticKey.from_seed(bytes([seed]) * 32),
        keys=KeyRing(mesh),
        entropy=lambda size: hashlib.shake_256(b"%d %d" % (seed, next(counter))).digest(size),
        null_cipher=True,
    )


def actions(end: Connections) -> list[Action]:
    done, end.actions = end.actions, []
    return done


def addresses_dialled(end: Connections) -> list[str]:
    return [each.address for each in actions(end) if isinstance(each, Dial)]


def attempt(
    end: Connections, *addresses: str, purpose: Purpose = CONNECT, target: bytes | str = PEER
) -> Attempt:
    made = end.attempt(purpose, target, addresses or ("10.0.0.1:1",), FoundBy.GOSSIP)
    assert made is not None
    return made


def opened(
    end: Connections, number: int, dial: int | None, address: str = "10.0.0.9:1"
) -> list[Occurrence]:
    return list(end.opened(number, address, dial, 0.0))


def link_of(occurrences: Iterable[Occurrence]) -> Link:
    (occurrence,) = occurrences
    assert isinstance(occurrence, Opened)
    return occurrence.link


def written(end: Connections) -> bytes:
    return b"".join(each.data for each in actions(end) if isinstance(each, Write))


class Wired:
    """Two ends, and one link between them: dialled by A."""

    def __init__(self, *, mesh: str = "test") -> None:
        self.a, self.b = connections(1), connections(2, mesh=mesh)
        self.attempt = attempt(self.a)
        actions(self.a)
        self.at_a = link_of(opened(self.a, 10, 1))
        self.at_b = link_of(opened(self.b, 20, None))

    def carry(self, now: float = 0.0) -> tuple[list[Occurrence], list[Occurrence]]:
        """All bytes that wait, both ways, until none do."""
        seen: tuple[list[Occurrence], list[Occurrence]] = ([], [])
        while True:
            to_b, to_a = written(self.a), written(self.b)
            if not to_a and not to_b:
                return seen
            if to_b and self.at_b.phase is not Phase.ENDED:
                seen[1].extend(self.b.receive(self.at_b, to_b, now))
            if to_a and self.at_a.phase is not Phase.ENDED:
                seen[0].extend(self.a.receive(self.at_a, to_a, now))

    def say(self, *messages: wire.Message | bytes) -> list[Occurrence]:
        """From A to B, in one frame."""
        encoded = [m if isinstance(m, bytes) else wire.encode(m) for m in messages]
        return list(self.b.receive(self.at_b, self.at_a.session.seal(encoded), 1.0))


def wired() -> Wired:
    made = Wired()
    made.carry()
    return made


# --- dialling -------------------------------------------------------------------


def test_the_first_address_is_dialled_at_once_and_the_next_when_told() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
    assert actions(end) == [Dial(1, "10.0.0.1:1", timing.DIAL_TIMEOUT)]
    assert end.dial_next(made)
    assert not end.dial_next(made)
    assert actions(end) == [
        Dial(2, "10.0.0.2:1", timing.DIAL_TIMEOUT),
        Dial(3, "10.0.0.3:1", timing.DIAL_TIMEOUT),
    ]
    assert not end.dial_next(made)
    assert actions(end) == []


def test_one_attempt_is_made_for_one_purpose_and_target() -> None:
    end = connections()
    attempt(end)
    assert end.attempt(CONNECT, PEER, ("10.0.0.2:1",), FoundBy.GOSSIP) is None
    assert end.attempt(PROBE, PEER, ("10.0.0.2:1",), FoundBy.GOSSIP) is not None
    assert end.attempt(CONNECT, node_id(2), ("10.0.0.2:1",), FoundBy.GOSSIP) is not None
    assert end.attempt(CONNECT, node_id(3), (), FoundBy.GOSSIP) is None


def test_an_address_that_fails_makes_way_for_the_next() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    assert list(end.dial_failed(1, DialOutcome.TIMEOUT)) == []
    assert addresses_dialled(end) == ["10.0.0.1:1", "10.0.0.2:1"]
    assert list(end.dial_failed(2, DialOutcome.UNREACHABLE)) == [AttemptFailed(made)]
    assert made.outcome is DialOutcome.TIMEOUT
    assert not made.accepted
    assert attempt(end) is not made  # there may be another now


def test_an_attempt_fails_when_all_that_it_began_has_ended() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    end.dial_next(made)
    link = link_of(opened(end, 5, 1))
    assert made.accepted
    assert list(end.dial_failed(2, DialOutcome.REFUSED)) == []
    assert list(end.broken(link, "handshake timeout")) == [
        Broken(link, "handshake timeout"),
        AttemptFailed(made),
    ]


def test_an_attempt_goes_on_while_one_of_its_dials_does() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    end.dial_next(made)
    assert list(end.dial_failed(2, DialOutcome.REFUSED)) == []
    assert list(end.dial_failed(1, DialOutcome.TIMEOUT)) == [AttemptFailed(made)]


def test_a_link_that_ends_makes_way_for_the_next_address() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    link = link_of(opened(end, 5, 1))
    actions(end)
    assert end.ended(5) is link
    assert list(end.after_end(link)) == []
    assert addresses_dialled(end) == ["10.0.0.2:1"]
    assert list(end.dial_failed(2, DialOutcome.REFUSED)) == [AttemptFailed(made)]


def test_what_was_dialled_beside_the_one_that_won_is_not_wanted() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
    end.dial_next(made)
    link_of(opened(end, 5, 1))
    end.finish(made)
    actions(end)
    assert opened(end, 6, 2) == []
    assert actions(end) == [Close(6)]
    assert end.counters == {"dial_not_wanted": 1}
    assert not end.dial_next(made)
    assert actions(end) == []
    assert set(end.links) == {5}


def test_of_a_finished_attempt_nothing_more_is_heard() -> None:
    end = connections()
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    end.finish(made)
    end.finish(made)
    again = attempt(end)
    actions(end)
    assert list(end.dial_failed(1, DialOutcome.REFUSED)) == []
    assert actions(end) == []
    assert made.outcome is DialOutcome.REFUSED
    end.finish(made)  # late, and it does not end the new one
    assert end.attempts == {(CONNECT, PEER): again}
    end.finish(again)
    assert list(end.dial_failed(2, DialOutcome.REFUSED)) == []


@pytest.mark.parametrize("dial", [1, 99])
def test_a_dial_ends_once(dial: int) -> None:
    end = connections()
    attempt(end, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
    list(end.dial_failed(1, DialOutcome.REFUSED))
    actions(end)
    assert list(end.dial_failed(dial, DialOutcome.REFUSED)) == []
    assert opened(end, 5, dial) == []
    assert actions(end) == [Close(5)]


# --- from an open connection to messages -----------------------------------------


def test_a_link_is_opened_then_established_then_heard() -> None:
    ends = Wired()
    assert ends.at_a.is_outbound
    assert (ends.at_a.dial, ends.at_b.dial) == (1, 0)
    assert (ends.at_a.found_by, ends.at_b.found_by) == (FoundBy.GOSSIP, FoundBy.INBOUND)
    at_a, at_b = ends.carry(now=3.0)
    assert at_a == [Established(ends.at_a)]
    assert at_b == [Established(ends.at_b)]
    assert ends.at_a.phase is ends.at_b.phase is Phase.HELLO
    assert ends.say(HELLO, wire.Ping(1)) == [
        Received(ends.at_b, HELLO),
        Received(ends.at_b, wire.Ping(1)),
    ]
    assert ends.at_b.heard_at == 1.0


def test_nothing_follows_in_the_same_bytes_once_a_link_has_ended() -> None:
    ends = wired()
    data = ends.at_a.session.seal([wire.encode(wire.Ping(n)) for n in range(3)])
    heard = []
    for occurrence in ends.b.receive(ends.at_b, data, 0.0):
        heard.append(occurrence)
        ends.b.close(ends.at_b)
    assert heard == [Received(ends.at_b, wire.Ping(0))]


def test_a_message_of_a_later_version_is_counted_and_skipped() -> None:
    ends = wired()
    assert ends.say(b"\x92\x63\x00", wire.Ping(1)) == [Received(ends.at_b, wire.Ping(1))]
    assert ends.b.counters == {"message_unknown": 1}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([b"\xc1"], "malformed message"),
        ([wire.Chunk(1, True, b"\xc1")], "malformed message"),
        ([wire.Chunk(1, True, wire.encode(wire.Chunk(1, True, b"")))], "chunk in chunks"),
        ([wire.Chunk(n, False, b"") for n in range(limits.TRANSFERS_MAX + 1)], "transfers"),
    ],
)
def test_who_breaks_the_rules_loses_the_link(said: list[wire.Message | bytes], reason: str) -> None:
    ends = wired()
    occurrences = ends.say(*said, wire.Ping(1))
    assert occurrences == [Broken(ends.at_b, reason)]
    assert ends.at_b.phase is Phase.ENDED
    assert not ends.b.links
    assert actions(ends.b) == [Close(20)]
    assert ends.b.counters == {f"link {reason}": 1}
    assert list(ends.b.broken(ends.at_b, "again")) == []


def test_messages_in_chunks_are_heard_when_they_are_whole() -> None:
    ends = wired()
    envelope = wire.Envelope("1", "s", "t", "Query", bytes(100_000), None, 0)
    post = wire.Post(b"stream00", 1, 0, 1, envelope)
    ends.at_a.say(post)
    data = ends.at_a.flush(0.0)
    assert list(ends.b.receive(ends.at_b, data, 0.0)) == [Received(ends.at_b, post)]


def test_another_key_is_refused_with_a_reason_at_both_ends() -> None:
    ends = Wired(mesh="another")
    at_a, at_b = ends.carry()
    assert at_b == [Broken(ends.at_b, "other mesh or key")]
    assert at_a == [Broken(ends.at_a, "other mesh or key"), AttemptFailed(ends.attempt)]
    assert ends.attempt.accepted


def test_reasons_that_name_numbers_of_the_other_side_are_one_counter() -> None:
    end = connections()
    for number, version in enumerate((7, 8, 9)):
        link = link_of(opened(end, number, None))
        offer = b"p2pm" + bytes([version]) + bytes(7)
        (broken,) = end.receive(link, offer, 0.0)
        assert isinstance(broken, Broken)
        assert str(version) in broken.reason
    assert end.counters == {"link version": 3}


def test_bytes_that_are_none_of_ours_raise_nothing() -> None:
    end = connections()
    for number, data in enumerate((b"GET / HTTP/1.1\r\n", bytes(100), b"p2pm" + bytes(300))):
        link = link_of(opened(end, number, None))
        assert [type(each) for each in end.receive(link, data, 0.0)] == [Broken]
    assert not end.links


# --- ends -----------------------------------------------------------------------


def test_an_orderly_end_says_why_after_all_that_waits() -> None:
    ends = wired()
    ends.at_a.say(wire.Ping(1))
    ends.a.close(ends.at_a, "idle")
    done = actions(ends.a)
    assert done[-1] == Close(10)
    data = b"".join(each.data for each in done if isinstance(each, Write))
    assert list(ends.b.receive(ends.at_b, data, 0.0)) == [
        Received(ends.at_b, wire.Ping(1)),
        Received(ends.at_b, wire.CloseReason("idle")),
    ]
    ends.a.close(ends.at_a, "idle")
    assert actions(ends.a) == []
    assert ends.a.ended(10) is None


def test_without_a_handshake_there_is_nothing_to_say_at_the_end() -> None:
    end = connections()
    link = link_of(opened(end, 1, None))
    end.close(link, "leaving")
    assert actions(end) == [Close(1)]


def test_an_end_of_the_other_side_forgets_the_link_without_closing_it() -> None:
    ends = wired()
    assert ends.b.ended(20) is ends.at_b
    assert ends.at_b.phase is Phase.ENDED
    assert actions(ends.b) == []
    assert ends.b.ended(20) is None


# --- bounds ---------------------------------------------------------------------


def host(number: int) -> str:
    return f"10.0.{number >> 8}.{number & 255}:{1000 + number}"


def test_so_many_handshakes_of_one_host_may_be_unfinished() -> None:
    end = connections()
    for number in range(limits.HANDSHAKES_PER_IP_MAX):
        link_of(opened(end, number, None, f"10.0.0.1:{number + 1}"))
    assert opened(end, 500, None, "10.0.0.1:9999") == []
    assert actions(end) == [Close(500)]
    assert end.counters == {"handshakes_max": 1}
    link_of(opened(end, 501, None, "10.0.0.2:1"))
    end.ended(3)
    link_of(opened(end, 502, None, "10.0.0.1:9999"))


def test_so_many_handshakes_of_all_hosts_may_be_unfinished() -> None:
    end = connections()
    for number in range(limits.HANDSHAKES_MAX):
        link_of(opened(end, number, None, host(number)))
    assert opened(end, 500, None, host(500)) == []
    end.close(end.links[0])
    link_of(opened(end, 501, None, host(501)))
    attempt(end)
    link_of(opened(end, 502, 1))  # what we dial ourselves is not bounded so


@pytest.mark.parametrize("then", ["finished", "broken", "ended", "closed"])
def test_a_handshake_counts_until_it_is_over_and_once(then: str) -> None:
    end = connections()
    for number in range(3 * limits.HANDSHAKES_MAX):
        link = link_of(opened(end, number, None))
        match then:
            case "finished":
                end.finish_handshake(link)
                link.phase = Phase.UP
            case "broken":
                list(end.broken(link, "x"))
            case "ended":
                end.ended(number)
            case "closed":
                end.close(link)
    for number in range(20):
        attempt(end, target=f"ours-{number}")
        end.close(link_of(opened(end, 500 + number, number + 1)))
    for link in tuple(end.links.values()):
        end.close(link)
    for number in range(limits.HANDSHAKES_MAX):
        link_of(opened(end, 1000 + number, None, host(number)))
    assert opened(end, 2000, None, host(2000)) == []


def filled(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """No room for a further link."""
    monkeypatch.setattr(limits, "LINKS_MAX", 3)
    end = connections()
    for number in range(3):
        end.finish_handshake(link_of(opened(end, number, None)))
    return end


def test_there_are_so_many_links(monkeypatch: pytest.MonkeyPatch) -> None:
    end = filled(monkeypatch)
    assert opened(end, 5, None) == []
    assert actions(end) == [Close(5)]
    assert end.counters == {"links_max": 1}
    end.ended(0)
    link_of(opened(end, 6, None))


def test_a_dial_that_finds_no_room_is_our_own_error_and_the_attempt_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = filled(monkeypatch)
    made = attempt(end, "10.0.0.1:1", "10.0.0.2:1")
    assert opened(end, 5, 1) == []
    assert addresses_dialled(end) == ["10.0.0.1:1", "10.0.0.2:1"]
    assert opened(end, 6, 2) == [AttemptFailed(made)]
    assert made.outcome is DialOutcome.LOCAL_ERROR
    assert not made.accepted
    assert not end.attempts


def test_hosts_that_are_gone_leave_nothing_behind() -> None:
    end = connections()
    for number in range(1000):
        end.ended(link_of(opened(end, number, None, host(number))).id)
    assert end._handshakes == 0
    assert end._handshakes_of == {}
    assert end.links == {}
    made = attempt(end)
    link_of(opened(end, 5000, 1))
    end.finish(made)
    assert end._by_dial == {}
    assert made.dials == {}
