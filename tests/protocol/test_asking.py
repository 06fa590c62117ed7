from __future__ import annotations

import pytest

from p2pmesh.errors import QueueFull
from p2pmesh.protocol import limits, wire
from p2pmesh.protocol.types import (
    Envelope,
    RequestArrived,
    RequestCancelled,
    RequestEnded,
    SendRefused,
)
from p2pmesh.testing import SimNetwork
from tests.protocol.offices import Office, World, pair


def answer(office: Office, payload: bytes = b"!", index: int = -1) -> None:
    office.commands.respond(office.world.at, office.of(RequestArrived)[index].request, payload)
    office.world.run()


def test_a_request_gets_its_answer() -> None:
    _, a, b = pair()
    call = a.request("b-1", b"6*7")
    (arrived,) = b.of(RequestArrived)
    assert (arrived.envelope.payload, arrived.via, arrived.timeout) == (b"6*7", a.id, 30.0)
    answer(b, b"42")
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None
    assert (end.answer.payload, end.answer.type, end.via) == (b"42", "Response", b.id)
    assert (end.answer.source, end.answer.target) == ("b-1", "a-1")
    assert end.answer.correlation_id == arrived.envelope.message_id


def test_a_request_to_the_own_agent_needs_no_wire() -> None:
    world = World()
    a = world.add("a")
    call = a.request("a-1")
    answer(a, b"me")
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None
    assert a.sent == []


def test_a_handler_that_is_missing_or_fails_is_told_by_its_code() -> None:
    world, a, b = pair()
    for error in ("no_handler", "failed"):
        call = a.request("b-1")
        number = b.of(RequestArrived)[-1].request
        b.commands.respond(world.at, number, None, error, "because")
        world.run()
        end = a.ended(call)
        assert end is not None
        assert (end.answer, end.error, end.detail) == (None, error, "because")


def test_a_request_ends_at_its_timeout_and_cancels_the_handler() -> None:
    world, a, b = pair()
    call = a.request("b-1", timeout=5.0)
    world.pass_time(4.9)
    assert a.ended(call) is None
    world.pass_time(0.2)
    end = a.ended(call)
    assert end is not None
    assert end.error == "timeout"
    assert [c.request for c in b.of(RequestCancelled)] == [b.of(RequestArrived)[0].request]


def test_a_cancelled_request_cancels_the_handler_and_nothing_follows() -> None:
    world, a, b = pair()
    call = a.request("b-1")
    a.commands.cancel(world.at, call)
    world.run()
    assert len(b.of(RequestCancelled)) == 1
    answer(b)
    assert a.of(RequestEnded) == []


@pytest.mark.parametrize("how", ["failed", "left"])
def test_a_request_ends_at_once_when_its_target_goes(how: str) -> None:
    world, a, b = pair()
    call = a.request("b-1")
    world.kill(b, how)
    end = a.ended(call)
    assert end is not None
    assert end.error == "unreachable"
    assert end.detail.startswith(f"it has {how}")
    assert "; ask another" in end.detail


def test_a_request_ends_at_once_when_its_target_lives_anew() -> None:
    world, a, b = pair()
    call = a.request("b-1")
    world.restart(b)
    end = a.ended(call)
    assert end is not None
    assert (end.error, end.detail) == (
        "unreachable",
        "it restarted or moved after it was asked; ask again",
    )


def test_a_request_to_one_known_as_gone_ends_at_once() -> None:
    world, a, b = pair()
    world.kill(b)
    end = a.ended(a.request("b-1"))
    assert end is not None
    assert end.error == "unreachable"
    assert end.detail == "it has failed; ask another, or send a message, which waits for it"


def test_a_request_waits_for_a_link() -> None:
    world = World()
    world.links_on_demand = False
    a, b = world.add("a"), world.add("b")
    call = a.request("b-1", timeout=30.0)
    world.pass_time(10.0)
    world.link(a, b)
    assert [round(arrived.timeout) for arrived in b.of(RequestArrived)] == [20]
    answer(b)
    assert a.ended(call) is not None


def test_a_request_waits_for_a_name() -> None:
    world = World()
    a = world.add("a")
    call = a.request("helper", named=True)
    world.pass_time(10.0)
    helper = world.add("helper")
    answer(helper, b"here")
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None


def test_a_request_whose_target_never_came_ends_unknown_with_near_names() -> None:
    world = World()
    a = world.add("a")
    world.add("helper")
    call = a.request("helpre", named=True, timeout=3.0)
    world.pass_time(3.1)
    end = a.ended(call)
    assert end is not None
    assert (end.error, end.detail.split("\n")[0]) == ("unknown", "helper")


def test_who_asks_for_an_unknown_name_is_offered_neither_its_own_nor_who_left() -> None:
    world = World()
    a = world.add("asker")
    world.add("walker")
    world.kill(world.add("worked"), "left")
    call = a.request("worker", named=True, timeout=3.0)
    a.send("worker", named=True)
    world.pass_time(3.1)
    end = a.ended(call)
    (refused,) = a.of(SendRefused)
    assert end is not None
    for error, detail in ((end.error, end.detail), (refused.error, refused.detail)):
        assert error == "unknown"
        assert detail.split("\n") == ["walker", "walker-1"]


def test_a_request_may_wait_less_for_a_target_that_is_unknown_than_for_its_answer() -> None:
    world = World()
    a = world.add("a")
    life = a.life
    lost, found = (a.request(name, named=True, known_within=1.0) for name in ("helpre", "helper"))
    world.pass_time(0.9)
    assert a.ended(lost) is None
    helper = world.add("helper")
    world.pass_time(0.2)
    end = a.ended(lost)
    assert end is not None
    assert (end.error, end.detail.split("\n")[0]) == ("unknown", "helper")
    world.pass_time(10.0)
    assert a.ended(found) is None, "who is known may take its time"
    answer(helper, b"here")
    assert a.ended(found).answer is not None  # type: ignore[union-attr]
    a.life = None  # before it has joined, nobody is unknown
    early = a.request("later", named=True, known_within=1.0, timeout=5.0)
    world.pass_time(4.0)
    assert a.ended(early) is None
    a.life = life
    world.pass_time(1.1)
    assert a.ended(early).error == "unknown"  # type: ignore[union-attr]


def test_a_request_to_a_name_whose_holder_is_gone_ends_unreachable() -> None:
    world = World()
    a, helper = world.add("a"), world.add("helper")
    world.kill(helper)
    call = a.request("helper", named=True, timeout=3.0)
    world.pass_time(3.1)
    end = a.ended(call)
    assert end is not None
    assert end.error == "unreachable"


def test_a_request_to_an_ambiguous_name_ends_at_once_naming_the_ids() -> None:
    world = World()
    a, one, other = world.add("a"), world.add("one"), world.add("other")
    one.name = other.name = "twin"
    end = a.ended(a.request("twin", named=True))
    assert end is not None
    assert (end.error, end.detail) == ("ambiguous", "one-1\nother-1")


def test_an_answer_lost_with_its_link_is_repeated_and_the_handler_runs_once() -> None:
    world, a, b = pair()
    call = a.request("b-1")
    world.lost = {wire.Answer}
    answer(b, b"once")
    world.lost.clear()
    assert a.ended(call) is None
    world.unlink(a, b)
    end = a.ended(call)
    assert end is not None, "the asker wanted a link and asked again on it"
    assert end.answer is not None
    assert len(b.of(RequestArrived)) == 1


def test_a_request_lost_with_its_link_is_asked_again() -> None:
    world, a, b = pair()
    world.lost = {wire.Ask}
    a.request("b-1")
    world.lost.clear()
    assert b.of(RequestArrived) == []
    world.unlink(a, b)
    assert len(b.of(RequestArrived)) == 1


def test_a_second_life_of_the_asker_shares_no_numbers_with_the_first() -> None:
    world, a, b = pair()
    a.request("b-1")
    world.restart(a)
    assert len(b.of(RequestCancelled)) == 1
    a.request("b-1", b"again")
    assert [arrived.envelope.payload for arrived in b.of(RequestArrived)] == [b"?", b"again"]


def test_an_answer_to_a_backed_up_link_waits() -> None:
    world, a, b = pair()
    call = a.request("b-1")
    b.post.paused(world.at, a.id)
    answer(b)
    assert a.ended(call) is None
    b.post.resumed(world.at, a.id)
    world.run()
    assert a.ended(call) is not None


def test_a_response_sent_as_a_message_reaches_the_waiting_request_and_no_mailbox() -> None:
    _, a, b = pair()
    call = a.request("b-1")
    query = b.of(RequestArrived)[0].envelope
    b.send("a-1", b"by hand", type="Response", correlation_id=query.message_id)
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None
    assert end.answer.payload == b"by hand"
    assert a.arrived() == []


def test_a_third_instances_response_reaches_the_waiting_request_too() -> None:
    world, a, b = pair()
    c = world.add("c")
    call = a.request("b-1")
    query = b.of(RequestArrived)[0].envelope
    message_id = c.send("a-1", b"delegated", type="Response", correlation_id=query.message_id)
    end = a.ended(call)
    assert end is not None
    assert end.answer is not None
    assert a.arrived() == []
    assert c.moves(message_id)[-1] == ("a-1", "done")


def test_a_response_to_nothing_is_a_message() -> None:
    _, a, b = pair()
    b.send("a-1", b"late", type="Response", correlation_id="who knows")
    assert a.arrived() == [b"late"]


def test_an_answer_over_the_limit_is_a_failure_that_says_so() -> None:
    _, a, b = pair()
    call = a.request("b-1")
    answer(b, bytes(limits.PAYLOAD_MAX + 1))
    end = a.ended(call)
    assert end is not None
    assert end.error == "failed"
    assert str(limits.PAYLOAD_MAX) in end.detail


def test_requests_are_bounded_at_both_ends() -> None:
    _, a, b = pair()
    calls = [a.request("b-1") for _ in range(limits.REQUESTS_MAX)]
    with pytest.raises(QueueFull):
        a.request("b-1")
    assert len(b.of(RequestArrived)) == limits.REQUESTS_MAX
    c = b.world.add("c")
    end = c.ended(c.request("b-1"))
    assert end is not None
    assert (end.error, end.detail) == ("refused", "too many requests")
    assert a.ended(calls[0]) is None


def test_kept_answers_are_bounded_in_number_and_bytes() -> None:
    _, a, b = pair()
    for _ in range(20):
        a.request("b-1")
        answer(b, bytes(limits.ANSWERS_KEPT_BYTES_MAX // 4))
    assert b.post._answering._kept_bytes <= limits.ANSWERS_KEPT_BYTES_MAX
    for _ in range(limits.ANSWERS_KEPT_MAX + 5):
        a.request("b-1")
        answer(b)
    assert len(b.post._answering._kept) == limits.ANSWERS_KEPT_MAX


def test_a_malformed_envelope_in_an_answer_is_a_failure() -> None:
    world, a, b = pair()
    call = a.request("b-1")
    bad = Envelope("x" * 200, "b-1", "a-1", "Response", b"", None, 0)
    a.post.received(world.at, b.id, wire.Answer(call, bad))
    world.run()
    end = a.ended(call)
    assert end is not None
    assert end.error == "failed"


def test_a_strangers_answer_is_not_believed() -> None:
    world, a, _ = pair()
    c = world.add("c")
    call = a.request("b-1")
    a.post.received(world.at, c.id, wire.Answer(call, None, "failed"))
    world.run()
    assert a.ended(call) is None


def test_one_that_leaves_answers_no_new_requests() -> None:
    world, a, b = pair()
    b.post.begin_leave(world.at)
    end = a.ended(a.request("b-1"))
    assert end is not None
    assert end.error == "unreachable"


def test_who_leaves_answers_first_what_its_agent_was_asked() -> None:
    network = SimNetwork(seed=9)
    asker, asked = network.add("asker"), network.add("asked")
    network.run_until(network.agrees, within=10)
    network.command(
        asker, "request", source=asker.instance_id, target=asked.instance_id, named=False,
        type="Query", payload=b"\xc0", timeout=30.0,
    )  # fmt: skip
    network.run(0.1)
    (arrived,) = [action for action in asked.outcomes if isinstance(action, RequestArrived)]
    network.leave(asked)
    network.run(1.0)
    assert asked.is_running
    network.command(asked, "respond", request=arrived.request, payload=b"\xc3")
    network.run(0.5)
    assert asked.stopped_because == "left"
    (ended,) = [action for action in asker.outcomes if isinstance(action, RequestEnded)]
    assert ended.answer is not None
    assert ended.answer.payload == b"\xc3"
