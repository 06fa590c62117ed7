"""Leadership: one node's steps from being the oldest to leading, and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol import limits, timing
from p2pmesh.protocol.leader import Leadership, Phase, is_epoch_credible

ME, OTHER = b"\x01" * 32, b"\x02" * 32
WALL = 1_790_000_000_000
FOLLOWING, SETTLING, CLAIMING, LEADING = (
    Phase.FOLLOWING,
    Phase.SETTLING,
    Phase.CLAIMING,
    Phase.LEADING,
)


def brought_to(phase: Phase, *, highest: int = 6) -> Leadership:
    """With epoch 7 where there is one."""
    leadership = Leadership(ME)
    if phase is not FOLLOWING:
        leadership.observe(ME, 0.0, previous_left=True)
    if phase in (CLAIMING, LEADING):
        assert leadership.claim(highest, WALL, 0.0) == highest + 1
    if phase is LEADING:
        assert leadership.hold()
    assert leadership.phase is phase
    return leadership


#: Phase × input -> phase, and what the input says.
TABLE: list[tuple[Phase, str, Callable[[Leadership], object], Phase, object]] = [
    (FOLLOWING, "older", lambda x: x.observe(OTHER, 1.0, previous_left=False), FOLLOWING, False),
    (SETTLING, "older", lambda x: x.observe(OTHER, 1.0, previous_left=False), FOLLOWING, False),
    (CLAIMING, "older", lambda x: x.observe(OTHER, 1.0, previous_left=False), FOLLOWING, False),
    (LEADING, "older", lambda x: x.observe(OTHER, 1.0, previous_left=False), FOLLOWING, True),
    (LEADING, "nobody", lambda x: x.observe(None, 1.0, previous_left=False), FOLLOWING, True),
    (FOLLOWING, "me", lambda x: x.observe(ME, 1.0, previous_left=False), SETTLING, False),
    (SETTLING, "me", lambda x: x.observe(ME, 1.0, previous_left=False), SETTLING, False),
    (CLAIMING, "me", lambda x: x.observe(ME, 1.0, previous_left=False), CLAIMING, False),
    (LEADING, "me", lambda x: x.observe(ME, 1.0, previous_left=False), LEADING, False),
    (FOLLOWING, "epoch 7", lambda x: x.outbid(7), FOLLOWING, False),
    (SETTLING, "epoch 7", lambda x: x.outbid(7), SETTLING, False),
    (CLAIMING, "epoch 7", lambda x: x.outbid(7), FOLLOWING, False),
    (LEADING, "epoch 7", lambda x: x.outbid(7), FOLLOWING, True),
    (LEADING, "epoch 8", lambda x: x.outbid(8), FOLLOWING, True),
    (LEADING, "epoch 6", lambda x: x.outbid(6), LEADING, False),
    (CLAIMING, "epoch 6", lambda x: x.outbid(6), CLAIMING, False),
    (FOLLOWING, "claim", lambda x: x.claim(6, WALL, 9.0), FOLLOWING, None),
    (SETTLING, "claim", lambda x: x.claim(6, WALL, 9.0), CLAIMING, 7),
    (CLAIMING, "claim", lambda x: x.claim(6, WALL, 9.0), CLAIMING, None),
    (LEADING, "claim", lambda x: x.claim(6, WALL, 9.0), LEADING, None),
    (FOLLOWING, "hold", lambda x: x.hold(), FOLLOWING, False),
    (SETTLING, "hold", lambda x: x.hold(), SETTLING, False),
    (CLAIMING, "hold", lambda x: x.hold(), LEADING, True),
    (LEADING, "hold", lambda x: x.hold(), LEADING, False),
    (FOLLOWING, "give up", lambda x: x.give_up(), FOLLOWING, False),
    (SETTLING, "give up", lambda x: x.give_up(), FOLLOWING, False),
    (CLAIMING, "give up", lambda x: x.give_up(), FOLLOWING, False),
    (LEADING, "give up", lambda x: x.give_up(), FOLLOWING, True),
]


@pytest.mark.parametrize(
    ("phase", "given", "do", "then", "says"), TABLE, ids=[f"{r[0].value}-{r[1]}" for r in TABLE]
)
def test_the_table(
    phase: Phase, given: str, do: Callable[[Leadership], object], then: Phase, says: object
) -> None:
    leadership = brought_to(phase)
    assert do(leadership) == says
    assert leadership.phase is then
    assert leadership.epoch == (7 if then in (CLAIMING, LEADING) else None)


def test_the_oldest_waits_before_it_claims() -> None:
    leadership = Leadership(ME)
    leadership.observe(ME, 10.0, previous_left=False)
    assert leadership.settled_at == 10.0 + timing.CLAIM_SETTLE
    assert leadership.claim(6, WALL, leadership.settled_at - 0.001) is None
    leadership.observe(ME, 10.1, previous_left=False)  # still: it does not start again
    assert leadership.claim(6, WALL, leadership.settled_at) == 7


def test_after_a_goodbye_the_next_one_claims_at_once() -> None:
    leadership = Leadership(ME)
    leadership.observe(ME, 10.0, previous_left=True)
    assert leadership.claim(6, WALL, 10.0) == 7


def test_an_interruption_starts_the_wait_again() -> None:
    leadership = Leadership(ME)
    leadership.observe(ME, 10.0, previous_left=False)
    leadership.observe(OTHER, 10.1, previous_left=False)
    leadership.observe(ME, 10.15, previous_left=False)
    assert leadership.claim(6, WALL, 10.3) is None
    assert leadership.claim(6, WALL, 10.35) == 7


@pytest.mark.parametrize(
    ("highest", "wall", "epoch"),
    [
        (0, WALL, WALL // 1000),
        (0, 0, 1),
        (0, -5_000_000, 1),
        (0, 10**15, limits.EPOCH_JUMP_MAX),
        (1, WALL, 2),
        (WALL // 1000 + 500, WALL, WALL // 1000 + 501),
    ],
)
def test_the_first_epoch_is_the_clocks_and_later_ones_rise(
    highest: int, wall: int, epoch: int
) -> None:
    leadership = brought_to(SETTLING)
    assert leadership.claim(highest, wall, 1.0) == epoch


@given(st.integers(-(10**15), 10**15), st.integers(0, 30), st.integers(0, 30))
def test_an_epoch_that_a_mesh_came_to_is_credible_to_all(wall: int, claims: int, seen: int) -> None:
    """To who followed it, and to a newcomer that has seen none."""
    highest = 0
    epochs = []
    for _ in range(claims + 1):
        epoch = brought_to(SETTLING).claim(highest, wall, 1.0)
        assert epoch is not None
        assert epoch > highest
        assert is_epoch_credible(epoch, highest)
        assert is_epoch_credible(epoch, 0)
        epochs.append(epoch)
        highest = epoch
    assert is_epoch_credible(highest, epochs[min(seen, claims)])


def test_an_epoch_from_nowhere_is_a_fault() -> None:
    most = 2**32
    for highest in (0, 5, most):
        assert is_epoch_credible(2 * most, highest)
        assert not is_epoch_credible(2 * most + 1, highest)
    assert is_epoch_credible(3 * most, 2 * most)
    assert not is_epoch_credible(3 * most + 1, 2 * most)


ACTIONS = ("me", "other", "higher", "tick", "stored", "give up")


@given(st.lists(st.sampled_from(ACTIONS), max_size=30))
def test_who_leads_claimed_and_held_and_every_epoch_is_higher(actions: list[str]) -> None:
    """Whatever happens between: leading is reached only over settle, claim, hold; each
    step down is told once; and a later claim of mine is never lower."""
    leadership = Leadership(ME)
    leads, highest, claims = False, 6, []
    for now, action in zip(itertools.count(), actions, strict=False):
        match action:
            case "me" | "other":
                stepped_down = leadership.observe(
                    ME if action == "me" else OTHER, float(now), previous_left=False
                )
            case "higher":
                highest += 1
                stepped_down = leadership.outbid(highest)
            case "give up":
                stepped_down = leadership.give_up()
            case "stored":
                held = leadership.hold()
                assert not (held and leads)
                leads, stepped_down = leads or held, False
            case _:
                stepped_down = False
                claimed = leadership.claim(highest, WALL, float(now))
                if claimed is not None:
                    claims.append(claimed)
                    highest = claimed
        assert not stepped_down or leads
        leads = leads and not stepped_down
        assert leads is (leadership.phase is LEADING)
        assert (leadership.epoch is not None) is (leadership.phase in (CLAIMING, LEADING))
        assert claims == sorted(set(claims))
