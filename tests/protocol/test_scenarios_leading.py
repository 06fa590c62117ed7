"""Who leads, with which epoch, and what a token is worth."""

from __future__ import annotations

import pytest

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol import limits, timing, wire
from p2pmesh.protocol.types import (
    Demoted,
    Elected,
    Event,
    LeaderChanged,
    QuorumMissing,
    Restored,
)
from p2pmesh.testing import SimNetwork, SimNode
from p2pmesh.testing.node import kind_of
from tests.protocol.conftest import Simulate
from tests.protocol.invariants import Watch


def epochs(net: SimNetwork) -> set[int | None]:
    return {node.leadership().epoch for node in net.running()}


# --- the claim ------------------------------------------------------------------------


def test_the_first_epoch_is_the_wall_clock_in_seconds(simulate: Simulate) -> None:
    net = simulate()
    node = net.add()
    net.run_until(node.leads, within=3)
    assert abs(node.token().epoch - node.now().wall // 1000) <= 2


def test_a_claim_comes_after_the_leader_was_the_oldest_for_a_while(simulate: Simulate) -> None:
    net = simulate(3)
    watch = Watch(net)
    net.kill(net.nodes[0])
    net.run(2.0)
    (elected,) = watch.events(Elected)
    buried = next(t for t in watch.deaths() if t.node is elected.node)
    assert elected.t - buried.t == pytest.approx(timing.CLAIM_SETTLE, abs=0.01)


def test_a_goodbye_needs_no_settling(simulate: Simulate) -> None:
    net = simulate(3)
    watch = Watch(net)
    net.leave(net.nodes[0])
    left_at = net.clock.now
    net.run(2.0)
    (elected,) = watch.events(Elected)
    assert elected.t - left_at < 0.05


def test_the_epoch_is_null_until_there_is_a_claim(simulate: Simulate) -> None:
    net = simulate(3)
    heir, other = net.nodes[1:]
    net.kill(net.nodes[0])
    net.run_until(lambda: other.leader() == heir.instance_id, within=2)
    assert other.leadership().epoch is None
    net.run(0.5)
    assert other.leadership().epoch == heir.token().epoch


def test_every_node_tells_of_a_leader_once_it_has_a_claim(simulate: Simulate) -> None:
    net = simulate(5)
    watch = Watch(net)
    net.kill(net.nodes[0])
    net.run(3.0)
    for node in net.running():
        (told,) = watch.events(LeaderChanged, nodes=[node])
        assert told.event.leader_id == net.nodes[1].instance_id
        assert told.event.reason == "leader_failed"
        assert told.event.epoch == net.nodes[1].token().epoch


@pytest.mark.parametrize("persistent", [True, False])
def test_tokens_rise_through_one_death_after_the_other(
    simulate: Simulate, persistent: bool
) -> None:
    net = simulate(6, persistent=persistent)
    watch = Watch(net)
    for leader in net.nodes[:5]:
        net.kill(leader)
        net.run(2.0)
    assert net.nodes[5].leads()
    assert len(watch.tokens()) == 5
    watch.assert_tokens_rise()


def test_who_does_not_lead_has_no_token(simulate: Simulate) -> None:
    net = simulate(3)
    for node in net.nodes[1:]:
        with pytest.raises(NotAuthoritative):
            node.token()


# --- outbidding -----------------------------------------------------------------------


def test_the_oldest_outbids_a_higher_claim_that_it_meets(simulate: Simulate) -> None:
    net = simulate(6)
    here, there = net.nodes[:3], net.nodes[3:]
    net.partition(here, there)
    net.run(10.0)
    for leader in there[:2]:  # the other side gets ahead by two more claims
        net.kill(leader)
        net.run(3.0)
    ahead = there[2].token()
    assert ahead.epoch > here[0].token().epoch + 1
    net.heal()
    watch = Watch(net)
    watch.assert_settles()
    assert here[0].token().epoch > ahead.epoch
    assert epochs(net) == {here[0].token().epoch}


def test_who_outbids_another_claim_says_that_it_reclaimed(simulate: Simulate) -> None:
    """Not how its last predecessor ended, long ago."""
    net = simulate(6)
    net.kill(net.nodes[0])
    net.run(3.0)
    here, there = net.nodes[1:3], net.nodes[3:]
    net.partition(here, there)
    net.run(10.0)
    watch = Watch(net)
    net.heal()
    watch.assert_settles(net.running())
    net.run(1.0)
    for node in here:
        (told,) = watch.events(LeaderChanged, nodes=[node])
        assert isinstance(told.event, LeaderChanged)
        assert (told.event.leader_id, told.event.reason) == (here[0].instance_id, "reclaimed")
        since = node.leadership().since
        assert since == pytest.approx(net.clock.now - told.t, abs=0.01)


def test_a_claim_is_outbid_though_its_maker_is_dead_when_the_split_heals(
    simulate: Simulate,
) -> None:
    """Heartbeats tell of the highest epoch, whoever made it."""
    net = simulate(6)
    here, there = net.nodes[:3], net.nodes[3:]
    net.partition(here, there)
    net.run(10.0)
    ahead = there[0].token()
    net.kill(there[0])
    net.stop(there[1])  # the next one, who would claim above it
    net.heal()
    net.run(6.0)
    net.resume(there[1])
    net.run(6.0)
    assert here[0].token() > ahead


def test_of_two_claims_of_one_epoch_neither_is_the_last(simulate: Simulate) -> None:
    """Both sides followed one leader, so both claimed the next epoch; who claimed it
    there is dead when the sides meet, and only an observer has heard of it."""
    net = simulate(3)
    first, here, there = net.nodes
    witness = net.add("observer", agent=None)
    net.run_until(net.agrees, within=5)
    net.kill(first)
    net.partition([here], [there, witness])
    net.run(10.0)
    theirs = there.token()
    assert theirs.epoch == here.token().epoch
    assert theirs > here.token()
    net.kill(there)
    net.run(5.0)
    net.heal()
    Watch(net).assert_settles()
    net.run(3.0)
    assert here.token() > theirs
    assert epochs(net) == {here.token().epoch}


def test_the_older_leader_does_not_lead_beside_the_younger_for_long(simulate: Simulate) -> None:
    """At a heal the younger steps down before the oldest is elected anew."""
    net = simulate(6)
    here, there = net.nodes[:3], net.nodes[3:]
    net.partition(here, there)
    net.run(10.0)
    watch = Watch(net)
    net.heal()
    net.run(6.0)
    (demoted,) = watch.events(Demoted, nodes=there)
    last = watch.events(Elected, nodes=here)[-1]
    assert demoted.t <= last.t


def test_a_claim_far_above_all_that_was_seen_is_refused(simulate: Simulate) -> None:
    net = simulate(3)
    token = net.nodes[0].token()
    mad = net.add("mad", start=False, persistent=True)
    mad.restored = Restored(None, token.epoch + 2 * limits.EPOCH_JUMP_MAX)
    net.partition(net.nodes[:3], [mad])
    net.start(mad)
    net.run(10.0)
    assert mad.token().epoch > token.epoch + 2 * limits.EPOCH_JUMP_MAX
    net.heal()
    net.discover()
    net.run(10.0)
    assert {node.leadership().epoch for node in net.nodes[:3]} == {token.epoch}
    assert net.nodes[0].leads()
    assert any(node.mesh.counters().get("epoch_jump") for node in net.nodes[:3])


def test_a_heartbeat_far_above_all_that_was_seen_is_ignored(simulate: Simulate) -> None:
    net = simulate(3)
    token = net.nodes[0].token()
    leader = net.nodes[0].mesh
    link = next(iter(leader._core.links_up.values()))
    leader._dispatch._received_up(link, wire.Heartbeat(leader.view_hash(), token.epoch + 2**34, 1))
    net.run(5.0)
    assert net.nodes[0].token() == token


# --- the store ------------------------------------------------------------------------


def test_who_cannot_persist_a_claim_is_no_candidate_until_it_can(simulate: Simulate) -> None:
    net = simulate(4, persistent=True)
    oldest, heir, *_ = net.nodes
    net.kill(oldest)
    net.set_store(heir, works=False)
    watch = Watch(net)
    net.run(3.0)
    assert not heir.leads()
    assert net.nodes[2].leads()
    assert not net.nodes[3].lists(heir).candidate
    net.set_store(heir, works=True)
    net.run(2 * timing.STORE_RETRY)
    assert heir.leads()
    assert {node.leader() for node in net.running()} == {heir.instance_id}
    watch.assert_tokens_rise()


def test_a_claim_is_told_only_when_it_is_persisted(simulate: Simulate) -> None:
    net = simulate(2, persistent=True)
    heir = net.nodes[1]
    kept = []

    def observe(node, event):
        if isinstance(event, Elected):
            kept.append((node.restored.epoch, event.token.epoch))

    net.observers.append(observe)
    net.kill(net.nodes[0])
    net.run_until(heir.leads, within=3)
    assert kept == [(kept[0][1], kept[0][1])]


def test_a_node_alone_claims_above_what_it_kept_whatever_its_clock_says(
    simulate: Simulate,
) -> None:
    net = simulate(1, persistent=True)
    (node,) = net.nodes
    token = node.token()
    net.kill(node)
    net.set_wall(node, -20 * 365 * 86_400_000)
    net.start(node)
    net.run_until(node.leads, within=5)
    assert node.token() > token


# --- the policy -----------------------------------------------------------------------


def test_with_a_quorum_the_small_side_has_a_leader_without_authority(simulate: Simulate) -> None:
    net = simulate(5, quorum=3)
    few, many = net.nodes[:2], net.nodes[2:]
    net.partition(few, many)
    Watch(net).assert_settles(few, many)
    assert few[0].leader() == few[0].instance_id
    with pytest.raises(NotAuthoritative):
        few[0].token()
    assert not few[0].leadership().authoritative
    assert few[0].leadership().policy == "quorum=3"
    assert many[0].leadership().authoritative
    many[0].token()
    assert not few[0].leadership().token
    net.heal()
    net.run_until(net.agrees, within=10)
    net.run(1.0)
    few[0].token()


# --- who may lead ---------------------------------------------------------------------


def test_observers_and_those_who_opted_out_never_lead(simulate: Simulate) -> None:
    net = simulate()
    net.add("observer", agent=None)
    net.run(2.0)
    net.add("modest", candidate=False)
    net.run(2.0)
    assert {node.leader() for node in net.nodes} == {None}
    assert epochs(net) == {None}
    willing = net.add("willing")
    net.run(5.0)
    assert {node.leader() for node in net.nodes} == {willing.instance_id}
    assert willing.leads()
    net.kill(willing)
    net.run(3.0)
    assert {node.leader() for node in net.running()} == {None}


def test_the_leader_that_leaves_is_followed_without_a_word_between(simulate: Simulate) -> None:
    """No campaign, no vote: every view names the next oldest at once."""
    net = simulate(5)
    net.leave(net.nodes[0])
    net.run(0.01)
    assert {node.leader() for node in net.running() if node is not net.nodes[0]} == {
        net.nodes[1].instance_id
    }


def turns(node: SimNode) -> list[str]:
    return [kind_of(event) for event in node.seen("elected", "demoted", "quorum_missing")]


def test_authority_begins_with_the_quorum_and_ends_with_it(simulate: Simulate) -> None:
    net = simulate()
    leader = net.add(quorum=2)
    net.run_until(leader.leads, within=3)
    assert turns(leader) == ["quorum_missing"]
    with pytest.raises(NotAuthoritative, match=r"1 of quorum 2; on_elected .* once 2 are"):
        leader.token()
    assert (leader.leadership().token, leader.leadership().lacks) == (None, "1 of quorum 2")
    second = net.add(quorum=2)
    net.run_until(net.agrees, within=10)
    with pytest.raises(NotAuthoritative, match=r"sees 2 of quorum 2, back for .* on_elected"):
        leader.token()
    net.run(timing.QUORUM_SETTLE)
    assert turns(leader) == ["quorum_missing", "elected"]
    token = leader.token()
    net.kill(second)
    net.run_until(lambda: not leader.leadership().authoritative, within=10)
    assert turns(leader) == ["quorum_missing", "elected", "demoted", "quorum_missing"]
    (demoted,) = [event for event in leader.events if isinstance(event, Demoted)]
    assert demoted.reason == "it sees 1 of quorum 2"
    (_, missing) = [event for event in leader.events if isinstance(event, QuorumMissing)]
    assert (missing.seen, missing.quorum) == (1, 2)
    net.start(second)
    net.run_until(lambda: leader.leadership().authoritative, within=10)
    assert turns(leader)[-1] == "elected"
    assert leader.token() == token, "nobody else led meanwhile"


def test_after_a_split_authority_returns_with_a_greater_token_than_the_other_sides(
    simulate: Simulate,
) -> None:
    net = simulate(5, quorum=3)
    few, many = net.nodes[:2], net.nodes[2:]
    net.partition(few, many)
    net.run_until(lambda: not few[0].leadership().authoritative, within=10)
    net.run_until(lambda: many[0].leadership().authoritative, within=10)
    for _ in range(100):
        net.run(0.05)
        assert [node for node in net.running() if node.leadership().token] == [many[0]]
    other = many[0].token()
    net.heal()
    net.run_until(net.agrees, within=10)
    net.run_until(lambda: few[0].leadership().authoritative, within=10)
    assert few[0].token() > other
    for node in net.nodes:
        told = [kind for kind in turns(node) if kind != "quorum_missing"]
        assert told == ["elected", "demoted"] * (len(told) // 2) + ["elected"] * (len(told) % 2)


def test_who_leads_without_authority_is_not_demoted(simulate: Simulate) -> None:
    net = simulate()
    leader = net.add(quorum=2)
    net.run_until(leader.leads, within=3)
    net.leave(leader)
    net.run(1.0)
    assert turns(leader) == ["quorum_missing"]


def rule(
    net: SimNetwork, seconds: float, *, every: float = 0.002
) -> list[tuple[float, tuple[SimNode, ...]]]:
    """Who has authority, looked at so often; each change with its time."""
    told: list[tuple[float, tuple[SimNode, ...]]] = []
    until = net.clock.now + seconds
    while net.clock.now < until:
        net.run(every)
        ruling = tuple(node for node in net.running() if node.leadership().authoritative)
        if not told or told[-1][1] != ruling:
            told.append((net.clock.now, ruling))
    return told


@pytest.mark.parametrize(
    ("sizes", "quorum"),
    [((1, 2), 2), ((2, 1), 2), ((2, 3), 3), ((1, 4), 3), ((3, 4), 4), ((2, 5), 4), ((2, 2, 3), 4)],
    ids=str,
)
@pytest.mark.parametrize("seed", range(8))
def test_when_a_split_begins_no_two_have_authority(
    seed: int, sizes: tuple[int, ...], quorum: int
) -> None:
    """The side that is too small has all of the other in question before that has given up
    the leader: nobody who is asked about counts."""
    with SimNetwork(seed, delay=0.001, jitter=0.002, loss=0.02 * (seed % 2)) as net:
        for _ in range(sum(sizes)):
            net.add(quorum=quorum)
            net.run(0.1)
        net.run(3.0 + seed / 8)
        places = net.nodes[seed:] + net.nodes[:seed]
        sides = [[places.pop() for _ in range(size)] for size in sizes]
        small = [node for side in sides if len(side) < quorum for node in side]
        before = [len(node.seen("elected")) for node in small]
        net.partition(*sides)
        told = rule(net, 9.0, every=0.01)
        assert max(len(ruling) for _, ruling in told) == 1
        assert [len(node.seen("elected")) for node in small] == before


PRESETS = ("lan", "lan", "local", "wifi")  # by seed


@pytest.mark.parametrize(
    ("unheard", "others"), [(1, 2), (1, 4), (2, 3), (3, 4), (4, 5), (2, 9), (1, 40)], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_whom_nobody_hears_has_no_authority_beside_its_successor(
    seed: int, unheard: int, others: int
) -> None:
    """It hears them all: what tells it is that nobody answers."""
    with SimNetwork(seed, delay=0.001, jitter=0.002, loss=0.02 * (seed % 2)) as net:
        for _ in range(unheard + others):
            net.add(quorum=(unheard + others) // 2 + 1, preset=PRESETS[seed])
            net.run(0.1)
        net.run(3.0 + seed / 5)
        first, *rest = net.nodes
        lonely = [first, *rest[seed:], *rest[:seed]][:unheard]
        heard = [node for node in net.nodes if node not in lonely]
        for source in lonely:
            for target in heard:
                net.cut(source, target, both=False)
        told = rule(net, 12.0, every=0.01)
        assert max(len(ruling) for _, ruling in told) == 1
        assert (told[0][1], told[-1][1]) == ((first,), (heard[0],))


@pytest.mark.parametrize("preset", ["lan", "local", "wifi"])
@pytest.mark.parametrize(("size", "stopped"), [(2, 1), (3, 2), (5, 4), (9, 8)], ids=str)
def test_authority_outlives_that_all_others_do_not_run_for_a_while(
    size: int, stopped: int, preset: str
) -> None:
    with SimNetwork(3, delay=0.001, jitter=0.002) as net:
        for _ in range(size):
            net.add(quorum=size // 2 + 1, preset=preset)
            net.run(0.1)
        net.run(3.0)
        for node in net.nodes[-stopped:]:
            net.stop(node)
        net.run(10.0)
        for node in net.nodes[-stopped:]:
            net.resume(node)
        net.run(5.0)
        assert turns(net.nodes[0])[-1] == "elected"
        assert len(net.nodes[0].seen("demoted")) == 0


@pytest.mark.parametrize(
    ("sizes", "quorum"),
    [((3, 3), 4), ((2, 3), 3), ((1, 5), 4), ((2, 2, 2), 4), ((3, 1, 3), 4)],
    ids=str,
)
@pytest.mark.parametrize(
    "network",
    [{"delay": 0.01, "jitter": 0.03}, {"delay": 0.03, "jitter": 0.1, "loss": 0.1}],
    ids=["slow", "lossy"],
)
@pytest.mark.parametrize("seed", [1, 6, 13])
def test_when_a_split_heals_no_two_have_authority_and_tokens_rise(
    seed: int, network: dict[str, float], sizes: tuple[int, ...], quorum: int
) -> None:
    """On an even split both leaders see the quorum come back, and each other later."""
    with SimNetwork(seed, **network) as net:
        for _ in range(sum(sizes)):
            net.add(quorum=quorum)
            net.run(0.2)
        net.run(3.0)
        places = iter(net.nodes)
        sides = [[next(places) for _ in range(size)] for size in sizes]
        net.partition(*sides)
        net.run(8.0)
        net.heal()
        told = rule(net, 8.0)
        assert max(len(ruling) for _, ruling in told) == 1
        assert told[-1][1] == (net.oldest(net.nodes),), "the oldest, with a quorum again"
        elected = sorted((event for n in net.nodes for event in n.seen("elected")), key=by_time)
        assert [e.token for e in elected] == sorted(e.token for e in elected)


def by_time(event: Event) -> float:
    return event.t


def test_members_that_go_on_coming_do_not_put_authority_off_for_ever(simulate: Simulate) -> None:
    net = simulate()
    leader = net.add(quorum=2)
    net.run_until(leader.leads, within=3)
    for _ in range(12):
        net.add(quorum=2)
        net.run(0.6 * timing.QUORUM_SETTLE)
    assert leader.leadership().authoritative


def test_an_ordinary_election_waits_for_no_quorum_that_was_there_all_the_time(
    simulate: Simulate,
) -> None:
    net = simulate(5, quorum=3)
    net.run(3.0)
    watch = Watch(net)
    net.kill(net.nodes[0])
    net.run(2.0)
    (elected,) = watch.events(Elected)
    buried = next(t for t in watch.deaths() if t.node is elected.node)
    assert elected.t - buried.t == pytest.approx(timing.CLAIM_SETTLE, abs=0.01)
