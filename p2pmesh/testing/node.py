"""One simulated node: a core, the process it runs in, and that process's clocks.

The process is what ``p2pmesh.driver`` is on a real machine, and keeps the same
order: a timer that is late is reported as lag before the next input; a process
that was stopped takes what waits in its sockets before its timer.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from p2pmesh.errors import NotAuthoritative
from p2pmesh.protocol.mesh import Mesh
from p2pmesh.protocol.records import RecordBook
from p2pmesh.protocol.timing import LAG_TOLERANCE
from p2pmesh.protocol.types import (
    Action,
    AskUnacked,
    Close,
    Dial,
    DialOutcome,
    Event,
    Instant,
    Joined,
    LeaderInfo,
    Life,
    Member,
    MeshConfig,
    Persist,
    Restored,
    Row,
    Save,
    Stop,
    Token,
    Write,
)
from p2pmesh.testing.arguments import STATES, one_of, read_kind, refuse_kind
from p2pmesh.testing.kernel import Host, Kernel, Socket

if TYPE_CHECKING:
    from p2pmesh.testing.network import SimNetwork

#: Virtual runs begin here (unix ms, 2026).
BEGINNING: Final = 1_790_000_000_000
_STORING_TAKES: Final = 0.001
#: A timer that is due this much earlier than the armed one is worth arming anew.
_REARM_GAIN: Final = 0.0005


def address(number: int) -> str:
    """Where the host of this number listens."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8078"


class State(Enum):
    """What a process does."""

    RUNNING = "running"
    STOPPED = "stopped"  # SIGSTOP, or starved of CPU
    DEAD = "dead"  # never started, killed, or it stopped by itself


class SimNode:
    """One simulated node.  Ask it anything; what is done to it is done by the network."""

    def __init__(
        self, network: SimNetwork, kernel: Kernel, number: int, name: str, seed: bytes
    ) -> None:
        self.network = network
        self.number = number
        self.name = name
        self.seed = seed
        self.address = address(number)
        self.host = Host(number, self, self.address)
        self.state = State.DEAD
        self.wall_offset = 0  # ms that its wall clock is ahead
        self.mono_offset = 0.0  # s that its monotonic clock is ahead
        self.store_works = True
        self.settings: dict[str, Any] = {}  # fields of MeshConfig, as it was last started
        self.restored = Restored()  # what its data dir holds
        self.disk: dict[tuple[str, bytes], bytes] = {}  # the rows of its store
        self.runs = 0  # how often it was started
        self.events: list[Event] = []  # of this run, ``t`` in virtual seconds
        self.counts: Counter[str] = Counter()  # events of this run, by kind
        self.outcomes: list[Action] = []  # of this run: what became of messages and calls
        self.stopped_because: str | None = None
        self._mesh: Mesh | None = None  # from its first start on
        self._kernel = kernel
        self._clock = network.clock
        self._unsaved: list[Save] = []
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._due: float | None = None  # of the armed timer, in this process's seconds
        self._lag_told = False

    def __repr__(self) -> str:
        return f"<SimNode {self.number}, {self.instance_id}>"

    # --- what tests ask ---------------------------------------------------------------

    @property
    def mesh(self) -> Mesh:
        """Its core: the last one that ran."""
        if self._mesh is None:
            raise ValueError(f"{self.instance_id} was never started: net.start(node)")
        return self._mesh

    @property
    def is_running(self) -> bool:
        return self.state is State.RUNNING

    @property
    def node_id(self) -> str:
        return self.mesh.node_id.hex()

    @property
    def instance_id(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def life(self) -> Life | None:
        """The stamp of its life; None before it has joined."""
        text = self.mesh.me(self.now()).life
        return Life(*map(int, text.split("."))) if text else None

    def now(self) -> Instant:
        """Its clocks: monotonic seconds, wall milliseconds."""
        now = self._clock.now
        return Instant(now + self.mono_offset, BEGINNING + self.wall_offset + int(now * 1000))

    def members(self, *states: str) -> tuple[Member, ...]:
        """Those it lists, in these states (``alive``, ``suspect``, ``failed``, ``left``)
        or in any."""
        for state in states:
            one_of("state", state, STATES)
        members = self.mesh.members(self.now())
        return tuple(m for m in members if not states or m.state in states)

    def lists(self, other: SimNode) -> Member | None:
        """The other as this one lists it; None: it does not."""
        if not isinstance(other, SimNode):
            refuse_kind("other", other, "a node (what net.add returned)")
        return next((m for m in self.members() if m.node_id == other.node_id), None)

    def state_of(self, other: SimNode) -> str | None:
        """``alive``, ``suspect``, ``failed``, ``left``; None: not listed."""
        member = self.lists(other)
        return None if member is None else member.state

    def leader(self) -> str | None:
        """The instance id of the leader, as this node sees it."""
        return self.leadership().leader_id

    def leadership(self) -> LeaderInfo:
        return self.mesh.leader(self.now())

    def leads(self) -> bool:
        """Does it hold a claim, with authority or without?"""
        info = self.leadership() if self.is_running else None
        return info is not None and (info.authoritative or info.lacks is not None)

    def token(self) -> Token:
        """Raises NotAuthoritative, also while its process does not run: then there is
        nobody who could show one."""
        if not self.is_running:
            raise NotAuthoritative(f"{self.instance_id} does not run: it is {self.state.value}")
        return self.mesh.token(self.now())

    def seen(self, *kinds: str) -> list[Event]:
        """Its events of these kinds (``member_failed``, …), or of any, since it started.
        In a network of more than 200 nodes those of single members are in ``counts``."""
        for kind in kinds:
            read_kind(kind)
        return [event for event in self.events if not kinds or kind_of(event) in kinds]

    def take_data_of(self, other: SimNode) -> None:
        """Its data directory becomes a copy of the other's, identity and all."""
        self.seed, self.restored, self.disk = other.seed, other.restored, dict(other.disk)

    # --- its process ----------------------------------------------------------------------

    def start(self, rng: random.Random, *, null_cipher: bool, book: RecordBook | None) -> None:
        """A new process of this identity."""
        self.runs += 1
        self._kernel.boot(self.host)
        self.state = State.RUNNING
        self.stopped_because = None
        self.events, self.outcomes, self._waiting = [], [], []
        self._unsaved = []
        self.counts = Counter()
        self._due = None
        settings = {
            "null_cipher": null_cipher,
            "process": rng.randbytes(8),
            **self.settings,
        }
        self._mesh = Mesh(
            MeshConfig(**settings),
            seed=self.seed,
            at=self.now(),
            rng=random.Random(rng.getrandbits(64)),
            entropy=random.Random(rng.getrandbits(64)).randbytes,
            restored=msgspec.structs.replace(
                self.restored,
                rows=tuple(Row(*place, value) for place, value in self.disk.items()),
                boot="simulated",
            ),
            book=book,
        )
        self.mesh.start(self.now())
        self.perform()

    def end(self) -> None:
        """The process is gone; what its kernel makes of that is the network's to say."""
        self.state = State.DEAD
        self._waiting = []

    def stop(self) -> None:
        if self.state is State.RUNNING:
            self.state = State.STOPPED

    def resume(self) -> None:
        if self.state is not State.STOPPED:
            return
        self.state = State.RUNNING
        waiting, self._waiting = self._waiting, []
        for call, arguments in waiting:
            self._input(call, *arguments)
        self.rearm()

    def rearm(self) -> None:
        """Its timer may be overdue: it was stopped, or its clock jumped."""
        if self._due is not None:
            self._schedule(self._due)

    def input(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the core with the time, and perform what it wants done."""
        return self._call(self.mesh, method, *arguments, **options)

    def command(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As ``input``, of the core's ``commands``."""
        return self._call(self.mesh.commands, method, *arguments, **options)

    def _call(self, of: object, method: str, *arguments: Any, **options: Any) -> Any:
        if not self.is_running:
            return None
        result = getattr(of, method)(self._at_input(), *arguments, **options)
        self.perform()
        return result

    # --- what its kernel tells it (kernel.Process) ------------------------------------------

    def opened(self, socket: Socket, dial: int | None) -> None:
        self._input(self._opened, socket, dial)

    def received(self, socket: Socket, data: bytes) -> None:
        if self.state is State.RUNNING:  # most of what happens
            self._received(socket, data)
            self.perform()
        else:
            self._input(self._received, socket, data)

    def ended(self, socket: Socket) -> None:
        self._input(self._ended, socket)

    def dial_failed(self, dial: int, outcome: DialOutcome) -> None:
        self._input(self._dial_failed, dial, outcome)

    def paused(self, socket: Socket, is_paused: bool) -> None:
        self._input(self._paused, socket, is_paused)

    def _input(self, call: Callable[..., None], *arguments: Any) -> None:
        """Now, or when the process runs again."""
        if self.state is State.RUNNING:
            call(*arguments)
            self.perform()
        elif self.state is State.STOPPED:
            self._waiting.append((call, arguments))

    def _opened(self, socket: Socket, dial: int | None) -> None:
        if dial is None:
            self.host.unaccepted -= 1
        self.mesh.link_opened(self._at_input(), socket.link, socket.address, dial)

    def _received(self, socket: Socket, data: bytes) -> None:
        self._kernel.read(socket, data)
        self.network.trace(self.number, socket.link, data)
        self.mesh.bytes_received(self._at_input(), socket.link, data)

    def _ended(self, socket: Socket) -> None:
        self.mesh.link_ended(self._at_input(), socket.link)

    def _dial_failed(self, dial: int, outcome: DialOutcome) -> None:
        self.mesh.dial_failed(self._at_input(), dial, outcome)

    def _paused(self, socket: Socket, is_paused: bool) -> None:
        tell = self.mesh.link_paused if is_paused else self.mesh.link_resumed
        tell(self._at_input(), socket.link)

    # --- time -----------------------------------------------------------------------------------

    def _at_input(self) -> Instant:
        """The time of an input; an overdue timer is reported first."""
        now = self._clock.now
        at = Instant(now + self.mono_offset, BEGINNING + self.wall_offset + int(now * 1000))
        due = self._due
        if due is not None and at.now - due > LAG_TOLERANCE and not self._lag_told:
            self._lag_told = True
            self.mesh.loop_lagged(at, at.now - due)
        return at

    def _arm(self) -> None:
        due = self.mesh.next_timer()
        if due is None:
            self._due = None
        elif self._due is None or due < self._due - _REARM_GAIN:
            self._due = due = max(due, self._clock.now + self.mono_offset)
            self._lag_told = False
            self._schedule(due)

    def _schedule(self, due: float) -> None:
        at = due - self.mono_offset
        while at + self.mono_offset < due:  # rounded down: the timer would find nothing due
            at = math.nextafter(at, math.inf)
        self._clock.at(at, self._fire, self.host.boot, due)

    def _fire(self, boot: int, due: float) -> None:
        if self.host.boot == boot and self._due == due and self.state is State.RUNNING:
            at = self._at_input()
            self._due = None
            self.mesh.handle_timer(at)
            self.perform()

    # --- what the core wants done -----------------------------------------------------------------

    def perform(self) -> None:
        """Everything, then its one timer."""
        actions = self.mesh.actions()
        while actions:
            has_answered = False
            for action in actions:
                match action:
                    case Write(link, data):
                        self._kernel.write(self.host, link, data)
                    case Event():
                        self._happened(action)
                    case Dial(dial, address, timeout):
                        self._kernel.dial(self.host, dial, address, timeout)
                    case Close(link):
                        self._kernel.close(self.host, link)
                    case AskUnacked(link):
                        unacked = self._kernel.unacked(self.host, link)
                        if unacked is not None:
                            self.mesh.kernel_unacked(self.now(), link, unacked)
                            has_answered = True
                    case Persist(number, life, epoch):
                        self._persist(life, epoch, number)
                    case Save():
                        self._save(action)
                    case Stop(reason):
                        self.stopped_because = reason
                        self.network.stopped_itself(self)
                        return
                    case _:
                        self.outcomes.append(action)
            actions = self.mesh.actions() if has_answered else []
        self._arm()

    def _happened(self, event: Event) -> None:
        kind = kind_of(event)
        self.counts[kind] += 1
        is_kept = not self.network.is_large or kind not in _OF_EACH_MEMBER
        if is_kept or self.network.observers:
            told = msgspec.structs.replace(event, t=self._clock.now)
            if is_kept:
                self.events.append(told)
                self.network.happened(self, event)
            for observer in self.network.observers:
                observer(self, told)
        if isinstance(event, Joined) and self.settings.get("persistent"):
            self._persist(Life(*map(int, event.life.split("."))), None, None)

    def _persist(self, life: Life, epoch: int | None, number: int | None) -> None:
        self._clock.after(_STORING_TAKES, self._stored, self.host.boot, life, epoch, number)

    def _stored(self, boot: int, life: Life, epoch: int | None, number: int | None) -> None:
        if self.host.boot != boot:
            return
        if self.store_works:
            known = self.restored.epoch
            self.restored = Restored(life, known if epoch is None else max(epoch, known or 0))
        if number is not None:
            self._input(self._tell_stored, number, self.store_works)

    def _save(self, save: Save) -> None:
        self._clock.after(_STORING_TAKES, self._saved, self.host.boot, save)

    def _saved(self, boot: int, save: Save) -> None:
        """On disk, or kept back and tried again; a process that died has not saved."""
        if self.host.boot != boot:
            return
        self._unsaved.append(save)
        if not self.store_works:
            self._input(self._tell_save_failed)
            self._clock.after(1.0, self._save_again, boot)
            return
        self._flush()

    def _save_again(self, boot: int) -> None:
        if self.host.boot == boot and self._unsaved and self.store_works:
            self._flush()

    def _flush(self) -> None:
        for save in self._unsaved:
            for table, key, value, _ in save.changes:
                if value is None:
                    self.disk.pop((table, key), None)
                else:
                    self.disk[table, key] = value
        number = self._unsaved[-1].number
        self._unsaved.clear()
        self._input(self._tell_saved, number)

    def _tell_saved(self, number: int) -> None:
        self.mesh.saved(self._at_input(), number)

    def _tell_save_failed(self) -> None:
        self.mesh.save_failed(self._at_input(), "the disk is full")

    def _tell_stored(self, number: int, is_stored: bool) -> None:
        self.mesh.stored(self._at_input(), number, is_stored)


#: Events that every node has of every other: in a large network counted, not kept.
_OF_EACH_MEMBER: Final = frozenset(
    f"member_{what}" for what in ("joined", "updated", "suspected", "recovered", "failed", "left")
)


def kind_of(event: Event) -> str:
    """The event's name on the wire."""
    return str(event.__struct_config__.tag)
