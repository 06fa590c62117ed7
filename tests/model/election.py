"""A small model of age and election, over the real stamps and the real order.

It has no packets and no detector: in each step something happens to the world (a
start through a random contact, a crash, a restart of the same identity, a split, a
heal), then each component gossips until its nodes know the same, and those stamped
before 2024 stamp themselves anew where others know the date.  What a node
knows and what it takes for its life is decided by ``protocol.stamps``; who leads, by
the least (life, id); what is the highest claim, by ``protocol.members``; what is
claimed, by the rule of ``protocol.leader``.

Checked after every step, with no exemptions:

* a joiner is younger than every node its contact knew, dead ones included;
* no two runs of one identity share a life, and a later run is above what was known
  of the earlier (or its tombstone would bury it);
* everyone in a component names the same leader;
* of two claims in one component, the later token is the greater, across restarts.

``rule`` breaks it on purpose: ``NO_RESTAMP`` stamps newcomers by their own clock,
``NO_RANDOM`` leaves the random part out of a life, ``NO_MARKS`` knows claims by their
epoch alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from p2pmesh.protocol.members import View
from p2pmesh.protocol.records import claim_mark
from p2pmesh.protocol.stamps import founding_stamp, is_clock_set, joining_stamp
from p2pmesh.protocol.types import Life

WALL = 1_790_000_000_000
DAY = 86_400_000
IDENTITIES = 8
STEPS = 40


class Rule(Enum):
    REAL = "real"
    NO_RESTAMP = "no_restamp"
    NO_RANDOM = "no_random"
    NO_MARKS = "no_marks"


class Violation(AssertionError):
    """A promise did not hold; the seed is in the message."""


@dataclass
class Process:
    """One run of an identity."""

    identity: bytes
    life: Life
    clock: int  # offset of its wall clock, ms
    side: int
    known: dict[bytes, Life] = field(default_factory=dict)  # every id's highest life
    view: View = field(default_factory=View)  # for the highest claim that it knows of
    claims: set[tuple[int, Life, bytes]] = field(default_factory=set)  # for the check only
    claim: tuple[int, Life, bytes] | None = None

    @property
    def highest(self) -> Life:
        return max(self.known.values())


class World:
    """All runs of all identities, and what happened."""

    def __init__(self, seed: int, rule: Rule) -> None:
        self.seed = seed
        self.rule = rule
        self.rng = random.Random(seed)
        self.now = WALL
        self.alive: dict[bytes, Process] = {}
        self.clocks = {
            bytes([n]): self.rng.choice((0, 0, 0, -DAY, DAY, -WALL, 300, -300))
            for n in range(IDENTITIES)
        }
        self.kept: dict[bytes, tuple[Life, int]] = {}  # data dirs: last life, epoch
        self.lives: dict[bytes, set[Life]] = {}
        self.sides = 1

    def run(self) -> None:
        for _ in range(STEPS):
            # Several starts may fall into one millisecond.
            self.now += self.rng.choice((0, 0, 1, 50, 4000, 3_600_000))
            self.step()
            self.gossip()
            self.elect()

    def step(self) -> None:
        dead = [identity for identity in self.clocks if identity not in self.alive]
        what = self.rng.choice(("start", "start", "start", "crash", "restart", "split", "heal"))
        if what == "start" and dead:
            self.start(self.rng.choice(dead))
        elif what == "crash" and self.alive:
            del self.alive[self.rng.choice(sorted(self.alive))]
        elif what == "restart" and self.alive:
            identity = self.rng.choice(sorted(self.alive))
            del self.alive[identity]
            self.start(identity)
        elif what == "split":
            self.sides = 2
            for process in self.alive.values():
                process.side = self.rng.randrange(2)
        elif what == "heal":
            self.sides = 1
            for process in self.alive.values():
                process.side = 0

    # --- stamps -----------------------------------------------------------------------

    def start(self, identity: bytes) -> None:
        side = self.rng.randrange(self.sides)
        clock = self.clocks[identity]
        wall = self.now + clock
        last, epoch = self.kept.get(identity, (None, 0))
        if self.rng.random() < 0.3:
            last, epoch = None, 0  # the data dir kept the identity, and lost the rest
        view = View()
        view.note_claim(epoch, 0)
        drawn = 0 if self.rule is Rule.NO_RANDOM else self.rng.getrandbits(32)
        peers = [p for p in self.alive.values() if p.side == side]
        known: dict[bytes, Life] = {}
        claims: set[tuple[int, Life, bytes]] = set()
        if not peers or self.rule is Rule.NO_RESTAMP:
            life = founding_stamp(wall, last, drawn)
            contact = self.rng.choice(peers) if peers else None
        else:
            contact = self.rng.choice(peers)
            life = joining_stamp(wall, contact.highest, self.now + contact.clock, last, drawn)
        if contact is not None:
            known, claims = dict(contact.known), set(contact.claims)
            view.note_claim(contact.view.highest_epoch, contact.view.claimant)
        for other, theirs in known.items():
            if other != identity and not life > theirs:
                raise Violation(f"seed {self.seed}: {life} joined under {theirs}, and is older")
        if life in self.lives.setdefault(identity, set()):
            raise Violation(f"seed {self.seed}: {identity!r} lived {life} before")
        self.lives[identity].add(life)
        known[identity] = life
        self.kept[identity] = (life, epoch)
        self.alive[identity] = Process(identity, life, clock, side, known, view, claims)

    # --- what everyone comes to know ------------------------------------------------------

    def components(self) -> list[list[Process]]:
        sides: dict[int, list[Process]] = {}
        for process in self.alive.values():
            sides.setdefault(process.side, []).append(process)
        return list(sides.values())

    def gossip(self) -> None:
        for component in self.components():
            self.restamp(component)
            known: dict[bytes, Life] = {}
            for process in component:
                for other, life in process.known.items():
                    known[other] = max(life, known.get(other, life))
            highest = View()
            for view in (process.view for process in component):
                highest.note_claim(view.highest_epoch, view.claimant)
            claims = set().union(*(process.claims for process in component))
            for process in component:
                process.known, process.claims = dict(known), set(claims)
                process.view.note_claim(highest.highest_epoch, highest.claimant)
                if known[process.identity] != process.life:
                    self.outlived(process, known[process.identity])

    def restamp(self, component: list[Process]) -> None:
        """Whose life was stamped after 2024 takes none from before: its owner stamps
        itself anew under it."""
        contacts = [process for process in component if is_clock_set(process.life)]
        for process in component:
            if contacts and not is_clock_set(process.life):
                contact = self.rng.choice(contacts)
                drawn = 0 if self.rule is Rule.NO_RANDOM else self.rng.getrandbits(32)
                process.known = {i: life for i, life in process.known.items() if is_clock_set(life)}
                self.live_anew(
                    process,
                    joining_stamp(
                        self.now + process.clock,
                        contact.highest,
                        self.now + contact.clock,
                        self.kept[process.identity][0],
                        drawn,
                    ),
                )

    def outlived(self, process: Process, life: Life) -> None:
        """My id is known under a higher life (a run on the other side of a split):
        take one above it, as ``joining`` does."""
        drawn = 0 if self.rule is Rule.NO_RANDOM else self.rng.getrandbits(32)
        self.live_anew(process, Life(life.ms, life.logical + 1, drawn))

    def live_anew(self, process: Process, life: Life) -> None:
        """A new stamp voids the claim."""
        if life in self.lives[process.identity]:
            raise Violation(f"seed {self.seed}: {process.identity!r} lived {life} before")
        process.life = life
        process.claim = None
        process.known[process.identity] = life
        self.lives[process.identity].add(life)
        self.kept[process.identity] = (life, self.kept[process.identity][1])

    # --- leadership -----------------------------------------------------------------------

    def elect(self) -> None:
        for component in self.components():
            oldest = min(component, key=lambda p: (p.life, p.identity))
            for process in component:
                live = {p.identity: p.life for p in component}
                named = min(live, key=lambda identity: (live[identity], identity))
                if named != oldest.identity:
                    raise Violation(f"seed {self.seed}: two leaders in one component")
                if process is not oldest:
                    process.claim = None
            if oldest.claim is None or oldest.claim[0] < oldest.view.highest_epoch:
                self.claim(oldest, component)
            seen = max((claim for p in component for claim in p.claims), default=None)
            if seen is not None and seen > oldest.claim:
                raise Violation(f"seed {self.seed}: token {oldest.claim} after {seen}")

    def claim(self, oldest: Process, component: list[Process]) -> None:
        first = max((self.now + oldest.clock) // 1000, 1)
        epoch = oldest.view.highest_epoch + 1 if oldest.view.highest_epoch else first
        oldest.claim = (epoch, oldest.life, oldest.identity)
        self.kept[oldest.identity] = (oldest.life, epoch)
        known = self.rule is not Rule.NO_MARKS
        mark = claim_mark(oldest.life, oldest.identity) if known else 0
        for process in component:
            process.view.note_claim(epoch, mark)
            process.claims.add(oldest.claim)


def check(seeds: range, rule: Rule = Rule.REAL) -> int:
    """Runs one world a seed; how many of them broke a promise."""
    broken = 0
    for seed in seeds:
        try:
            World(seed, rule).run()
        except Violation:
            if rule is Rule.REAL:
                raise
            broken += 1
    return broken
