"""What can be done to a mesh, and what is to come of it: scenarios as values.

A scenario is a name, how many agents there are, what is done to them one after the other,
and what is expected.  Agents are numbers, 0 the oldest, which leads.  Nothing here says how
a thing is done: a *stage* does (``simulated.py`` in the simulator, ``tests/lab/stage.py``
with real processes on hosts of their own).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

#: What wall clocks may be ahead, in seconds.
DAY: Final = 86_400.0
_NOW: Final = 1_790_000_000.0  # when these are played, near enough: the end of 2026
IN_1970: Final = 60.0 - _NOW
IN_2038: Final = 2_147_483_648.0 - _NOW
BACKLOG: Final = 100

# --- the network ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """Only agents of one side reach each other; who is not named is with the first."""

    sides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """No packet between these two; others reach both."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class CutOneWay:
    """No packet from the source to the target."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Lose:
    """This share of all packets is lost."""

    share: float


@dataclass(frozen=True, slots=True)
class Heal:
    """Splits, cuts and losses are over."""


@dataclass(frozen=True, slots=True)
class Unplug:
    """The cable is out of its host."""

    agent: int


@dataclass(frozen=True, slots=True)
class PlugIn:
    agent: int


@dataclass(frozen=True, slots=True)
class Readdress:
    """Its host has another address, instead of the one that it had."""

    agent: int


@dataclass(frozen=True, slots=True)
class ChangeInterface:
    """Its host is on the network by another interface than before, under another address."""

    agent: int


@dataclass(frozen=True, slots=True)
class TakeDown:
    """The interface of its host is down, and its own kernel says so."""

    agent: int


@dataclass(frozen=True, slots=True)
class BringUp:
    """It is up again, with the address that it had."""

    agent: int


# --- processes ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9."""

    agent: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A graceful leave, to its end."""

    agent: int


@dataclass(frozen=True, slots=True)
class Start:
    """A new process of an agent whose process has ended, with the data directory that it had."""

    agent: int


@dataclass(frozen=True, slots=True)
class Add:
    """One more agent, on a host of its own; it has the next number."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One more agent, with a copy of this one's data directory: the same identity lives twice."""

    agent: int


@dataclass(frozen=True, slots=True)
class Replace:
    """One more agent, where this one's process has ended: at its address and port."""

    agent: int


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGSTOP."""

    agent: int


@dataclass(frozen=True, slots=True)
class Resume:
    agent: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Its machine sleeps: nothing answers, and its process stands still."""

    agent: int


@dataclass(frozen=True, slots=True)
class Wake:
    """It goes on; its clock counted."""

    agent: int


@dataclass(frozen=True, slots=True)
class Starve:
    """For so long its process waits ``stops`` seconds for the CPU, then has it for ``runs``."""

    agent: int
    runs: float
    stops: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Busy:
    """Its loop computes for so long, and does nothing else."""

    agent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class HoldInterpreter:
    """A C call holds the interpreter's lock for so long: no thread of it runs."""

    agent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fork:
    """It forks; the child lives on without an exec, and says nothing."""

    agent: int


@dataclass(frozen=True, slots=True)
class Besiege:
    """So many strangers connect at once, and say nothing.  Its kernel keeps ``BACKLOG``
    connections that its process has not taken."""

    agent: int
    strangers: int


@dataclass(frozen=True, slots=True)
class SetClock:
    """Its wall clock steps to so many seconds ahead of the true one."""

    agent: int
    ahead: float


# --- time -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes; where it is real, ``real`` seconds are enough if they are given."""

    seconds: float
    real: float | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """Within so many seconds (None: the bound of the invariant) all who reach each other hold one
    view, of exactly themselves, and follow the oldest of them (invariants 1 and 2)."""

    within: float | None = None


Step: TypeAlias = (
    Split | Cut | CutOneWay | Lose | Heal
    | Unplug | PlugIn | Readdress | ChangeInterface | TakeDown | BringUp
    | Kill | Leave | Start | Add | Copy | Replace | Stop | Resume | Sleep | Wake
    | Starve | Busy | HoldInterpreter | Fork | Besiege | SetClock
    | Wait | Settle
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """What agents tell of each other from the first step on."""

    #: Each of these is taken for failed by somebody.  Of nobody else that is told, but of
    fails: frozenset[int] = frozenset()
    #: these, for no longer than it takes them to refute.
    may_fail: frozenset[int] = frozenset()
    #: What the deaths are told to rest on; empty: on anything.
    evidence: frozenset[str] = frozenset()
    #: Each of these is told to have left; nobody else is.
    leaves: frozenset[int] = frozenset()
    #: The most changes of the leader that any one process tells of.
    leader_changes: int = 0
    #: Some of these may take a new life without a new process.
    new_lives: frozenset[int] = frozenset()
    #: Kinds of events that somebody tells: a fault that nobody notices is none.
    notices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scenario:
    """``str()`` of it is what to put into the catalogue to play it again."""

    name: str
    agents: int
    steps: tuple[Step, ...]
    expected: Expected = field(default_factory=Expected)
    #: Every agent announces, beside its own address, one that leads elsewhere: each host's
    #: bridge of containers has it, too.
    is_ambiguous: bool = False
    #: Played in each run of the lab, too; it takes real time.
    is_real: bool = False
    #: Seconds that a packet takes at least, and half of what it takes at most.
    delay: float = 0.0005

    def __str__(self) -> str:
        steps = "".join(f"    {step},\n" for step in self.steps)
        return f"{self.name!r}, {self.agents} agents\n{steps}{self.expected}"
