"""SimNetwork: real cores over the kernel's model, on a virtual clock.

A node here is a core, a process state and a wall clock of its own.  Every input
goes through the core's door and every action through the model, so a simulated run
exercises the bytes, the timers and the rules that a real one does.  Above 200 nodes
the cipher is replaced by one of equal length, and all nodes share one book of
verified records; nothing else differs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from p2pmesh.protocol.mesh import Mesh, RecordBook
from p2pmesh.protocol.types import (
    Agent,
    AskUnacked,
    Candidate,
    Close,
    Dial,
    DialOutcome,
    Event,
    FoundBy,
    Instant,
    Life,
    Member,
    MeshConfig,
    Persist,
    Restored,
    Stop,
    Write,
)
from p2pmesh.testing.kernel import (
    BACKLOG,
    BREAKS_AFTER,
    RETRANSMIT_AFTER,
    RETRANSMIT_MAX,
    SOCKET_BUFFER,
    Clock,
    End,
    Paths,
    Process,
)

_WALL: Final = 1_790_000_000_000  # virtual runs begin here (unix ms, 2026)
_REAL_CIPHER_UP_TO: Final = 200


class Timeout(AssertionError):
    """What was waited for did not happen; names the seed and what was done, so that
    the run can be replayed."""


class SimNode:
    """One simulated node: its core, its process, and what it reported."""

    def __init__(self, network: SimNetwork, number: int, name: str, seed: bytes) -> None:
        self.network = network
        self.number = number
        self.name = name
        self.seed = seed
        self.address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8078"
        self.state = Process.DEAD
        self.wall_offset = 0  # ms
        self.wall_drift = 0.0
        self.mono_offset = 0.0
        self.restored = Restored()
        self.events: list[Event] = []
        self.actions: list[object] = []  # what is not the network's: message outcomes
        self.stopped_because: str | None = None
        self.mesh: Mesh
        self.ends: dict[int, End] = {}
        self.waiting: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self.timer_at: float | None = None
        self.run_number = 0

    # --- what tests ask ---------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self.state is Process.RUNNING

    @property
    def node_id(self) -> str:
        return self.mesh.node_id.hex()

    @property
    def instance_id(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def life(self) -> str:
        return self.mesh.me(self.now()).life

    def now(self) -> Instant:
        clock = self.network.clock.now
        wall = _WALL + self.wall_offset + int(clock * 1000 * (1 + self.wall_drift))
        return Instant(clock + self.mono_offset, wall)

    def members(self, *states: str) -> tuple[Member, ...]:
        members = self.mesh.members(self.now())
        return tuple(m for m in members if not states or m.state in states)

    def state_of(self, other: SimNode) -> str | None:
        for member in self.members():
            if member.node_id == other.node_id:
                return member.state
        return None

    def leader(self) -> str | None:
        return self.mesh.leader(self.now()).leader_id

    def leads(self) -> bool:
        return self.mesh.leader(self.now()).token is not None

    def seen(self, kind: str) -> list[Event]:
        """Events of one kind, by their wire name."""
        return [e for e in self.events if e.__struct_config__.tag == kind]


class SimNetwork:
    """A seeded network of simulated nodes."""

    def __init__(
        self,
        seed: int = 0,
        *,
        delay: float = 0.0005,
        jitter: float = 0.0005,
        loss: float = 0.0,
        expected: int = 0,
        multicast: bool = True,
    ) -> None:
        """``delay`` and ``jitter``: seconds one way.  ``loss``: probability that a
        segment is lost once.  ``expected``: how many nodes will be added; above 200
        the cipher is a null one.  ``multicast``: nodes find each other as by mDNS;
        without it give ``peers``."""
        self.seed = seed
        self.clock = Clock()
        self.delay, self.jitter, self.loss = delay, jitter, loss
        self.nodes: list[SimNode] = []
        self.done: list[str] = []  # what was done to the network, for replay
        self._multicast = multicast
        self._null_cipher = expected > _REAL_CIPHER_UP_TO
        self._rng = random.Random(seed)
        self._book = RecordBook()
        self._paths = Paths()
        self._links = 0
        self._by_address: dict[str, SimNode] = {}
        self._trace = blake2b(digest_size=16)

    # --- building and running ----------------------------------------------------------

    def add(
        self,
        name: str = "node",
        *,
        peers: Sequence[SimNode] = (),
        wall_offset: int = 0,
        start: bool = True,
        **config: object,
    ) -> SimNode:
        """A new node; ``config`` are fields of MeshConfig (``agent=None``: an observer)."""
        number = len(self.nodes)
        node = SimNode(self, number, name, self._rng.randbytes(32))
        node.wall_offset = wall_offset
        self.nodes.append(node)
        self._by_address[node.address] = node
        if start:
            self.start(node, peers=peers, **config)
        return node

    def start(self, node: SimNode, *, peers: Sequence[SimNode] = (), **config: object) -> None:
        """Start a process of this node's identity (again: a restart)."""
        self._did(f"start {node.name}-{node.number}")
        node.run_number += 1
        node.state = Process.RUNNING
        node.stopped_because = None
        node.events, node.actions, node.waiting, node.ends = [], [], [], {}
        fields: dict[str, object] = {
            "agent": Agent(node.instance_id),
            "addresses": (node.address,),
            "name": node.name,
            "null_cipher": self._null_cipher,
            "process": self._rng.randbytes(8),
        }
        fields.update(config)
        node.mesh = Mesh(
            MeshConfig(**fields),  # type: ignore[arg-type]  # checked by its users' tests
            seed=node.seed,
            at=node.now(),
            rng=random.Random(self._rng.getrandbits(64)),
            entropy=random.Random(self._rng.getrandbits(64)).randbytes,
            restored=node.restored,
            book=self._book if self._null_cipher else None,
        )
        node.timer_at = None
        node.mesh.start(node.now())
        for peer in peers:
            offer = Candidate(f"peer:{peer.address}", (peer.address,), FoundBy.PEER)
            node.mesh.candidate_found(node.now(), offer)
        self._perform(node)
        if self._multicast:
            self._advertise(node)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.clock.now + seconds
        while self.clock.step(until):
            pass

    def run_until(self, condition: Callable[[], bool], *, within: float) -> float:
        """Run until the condition holds (looked at every 10 ms); the virtual seconds
        that it took.  Raises Timeout."""
        began = self.clock.now
        while not condition():
            if self.clock.now - began >= within:
                raise Timeout(
                    f"not within {within} s; seed {self.seed}, done: {'; '.join(self.done[-50:])}"
                )
            self.run(0.01)
        return self.clock.now - began

    # --- faults ------------------------------------------------------------------------

    def kill(self, node: SimNode) -> None:
        """kill -9: connections reset, dials refused; memory is gone."""
        self._did(f"kill {node.name}-{node.number}")
        self._die(node)

    def unplug(self, node: SimNode) -> None:
        """Host or cable gone: nothing answers any more."""
        self._did(f"unplug {node.name}-{node.number}")
        node.state = Process.GONE

    def stop(self, node: SimNode) -> None:
        """SIGSTOP."""
        self._did(f"stop {node.name}-{node.number}")
        if node.state is Process.RUNNING:
            node.state = Process.STOPPED

    def resume(self, node: SimNode) -> None:
        """SIGCONT: what waited in the sockets comes first, then the timers."""
        self._did(f"resume {node.name}-{node.number}")
        if node.state is not Process.STOPPED:
            return
        node.state = Process.RUNNING
        waiting, node.waiting = node.waiting, []
        for call, args in waiting:
            call(*args)
        self._arm(node)

    def starve(self, node: SimNode, *, runs: float, stops: float, until: float) -> None:
        """A duty cycle: the process gets the CPU for ``runs`` seconds, then waits
        ``stops`` seconds, until that virtual time."""
        if self.clock.now >= until or node.state in (Process.DEAD, Process.GONE):
            return
        self.stop(node)
        self.clock.after(stops, self.resume, node)
        self.clock.after(
            stops + runs,
            lambda: self.starve(node, runs=runs, stops=stops, until=until),
        )

    def leave(self, node: SimNode) -> None:
        """A graceful leave."""
        self._did(f"leave {node.name}-{node.number}")
        node.mesh.leave(node.now())
        self._perform(node)

    def cut(self, source: SimNode, target: SimNode, *, both: bool = True) -> None:
        """No packet from source to target (and back) any more."""
        self._did(f"cut {source.number}->{target.number} both={both}")
        self._paths.cut(source.number, target.number)
        if both:
            self._paths.cut(target.number, source.number)

    def partition(self, *sides: Iterable[SimNode]) -> None:
        """Only nodes of one side reach each other; the unnamed are with the first."""
        groups = [[node.number for node in side] for side in sides]
        self._did(f"partition {groups}")
        self._paths.partition(groups)

    def heal(self) -> None:
        """All cuts and partitions are over."""
        self._did("heal")
        self._paths.heal()

    # --- what tests ask ------------------------------------------------------------------

    def running(self) -> list[SimNode]:
        return [node for node in self.nodes if node.is_running]

    def agrees(self, nodes: Sequence[SimNode] | None = None) -> bool:
        """Do these (all running) nodes hold one view, of all of them, and one leader
        whose claim they know?"""
        nodes = self.running() if nodes is None else nodes
        if not nodes or any(not node.mesh.is_joined for node in nodes):
            return False
        hashes = {node.mesh.view_hash() for node in nodes}
        if len(hashes) != 1:
            return False
        first = nodes[0]
        info = first.mesh.leader(first.now())
        live = {m.node_id for m in first.members("alive", "suspect")}
        return live == {node.node_id for node in nodes} and info.epoch is not None

    def oldest(self, nodes: Sequence[SimNode] | None = None) -> SimNode:
        """The node of the least life among these (all running) ones."""

        def seniority(node: SimNode) -> tuple[Life, str]:
            return Life(*map(int, node.life.split("."))), node.node_id

        return min(self.running() if nodes is None else nodes, key=seniority)

    def trace_hash(self) -> str:
        """Equal for two runs in which the same bytes arrived at the same times."""
        return self._trace.hexdigest()

    # --- the kernel's side: dialling -------------------------------------------------------

    def _perform(self, node: SimNode) -> None:
        """Everything the core wants done, then its one timer."""
        for action in node.mesh.actions():
            match action:
                case Write(link, data):
                    end = node.ends.get(link)
                    if end is not None:
                        self._send(end, data)
                case Dial(dial, address, timeout):
                    self._dial(node, dial, address, timeout)
                case Close(link):
                    self._close(node, link)
                case AskUnacked(link):
                    end = node.ends.get(link)
                    if end is not None:
                        node.mesh.kernel_unacked(node.now(), link, end.unacked)
                case Persist(number, life, epoch):
                    self.clock.after(0.001, self._stored, node, node.run_number, number)
                    node.restored = Restored(life, epoch)
                case Stop(reason):
                    node.stopped_because = reason
                    self.clock.after(0.0, self._die, node)
                case Event():
                    node.events.append(action)
                case _:
                    node.actions.append(action)
        self._arm(node)

    def perform(self, node: SimNode) -> None:
        """Carry out what a command given to ``node.mesh`` wants done."""
        self._perform(node)

    def _stored(self, node: SimNode, run: int, number: int) -> None:
        if node.run_number == run:
            self._input(node, self._do_stored, number)

    def _do_stored(self, node: SimNode, number: int) -> None:
        node.mesh.stored(node.now(), number, True)

    def _travel(self) -> float:
        return self.delay + self._rng.random() * self.jitter

    def _dial(self, node: SimNode, dial: int, address: str, timeout: float) -> None:
        deadline = self.clock.now + timeout
        self.clock.after(self._travel(), self._syn, node, node.run_number, dial, address, deadline)

    def _syn(self, node: SimNode, run: int, dial: int, address: str, deadline: float) -> None:
        """The SYN arrives, or does not."""
        target = self._by_address.get(address)
        back = self.clock.now + self._travel()
        reaches = target is not None and self._is_path(node, target)
        if not reaches or target is None or target.state is Process.GONE:
            self._fail_dial(node, run, dial, DialOutcome.TIMEOUT, deadline)
        elif target.state is Process.DEAD:
            self._fail_dial(node, run, dial, DialOutcome.REFUSED, back)
        elif len(target.waiting) >= BACKLOG and target.state is Process.STOPPED:
            self._fail_dial(node, run, dial, DialOutcome.TIMEOUT, deadline)
        else:
            self.clock.at(back, self._connected, node, run, dial, address, target)

    def _fail_dial(
        self, node: SimNode, run: int, dial: int, outcome: DialOutcome, at: float
    ) -> None:
        def fail() -> None:
            if node.run_number == run:
                self._input(node, self._do_dial_failed, dial, outcome)

        self.clock.at(at, fail)

    def _do_dial_failed(self, node: SimNode, dial: int, outcome: DialOutcome) -> None:
        node.mesh.dial_failed(node.now(), dial, outcome)

    def _connected(self, node: SimNode, run: int, dial: int, address: str, target: SimNode) -> None:
        if node.run_number != run or node.state in (Process.DEAD, Process.GONE):
            return
        if target.state in (Process.DEAD, Process.GONE):
            self._input(node, self._do_dial_failed, dial, DialOutcome.REFUSED)
            return
        self._links += 2
        mine, theirs = End(node, self._links), End(target, self._links + 1)
        mine.peer, theirs.peer = theirs, mine
        mine.progress_at = theirs.progress_at = self.clock.now
        node.ends[mine.link] = mine
        target.ends[theirs.link] = theirs
        from_port = 30_000 + self._links % 30_000
        host = node.address.rpartition(":")[0]
        self._input(target, self._do_opened, theirs.link, f"{host}:{from_port}", None)
        self._input(node, self._do_opened, mine.link, address, dial)

    def _do_opened(self, node: SimNode, link: int, address: str, dial: int | None) -> None:
        node.mesh.link_opened(node.now(), link, address, dial)

    # --- the kernel's side: bytes ------------------------------------------------------------

    def _send(self, end: End, data: bytes) -> None:
        if not end.outgoing:
            end.progress_at = self.clock.now
        end.outgoing.append(data)
        self._push(end, data)
        peer = end.peer
        held = end.unacked + (peer.unread if peer is not None else 0)
        if held > SOCKET_BUFFER and not end.is_paused:
            end.is_paused = True
            self.clock.after(0.0, self._pause, end, True)

    def _push(self, end: End, data: bytes) -> None:
        """Put one segment on its way; it arrives in order, lost ones later."""
        travel = self._travel()
        gap = RETRANSMIT_AFTER
        while self.loss and self._rng.random() < self.loss:
            travel += gap
            gap *= 2
        arrival = max(self.clock.now + travel, end.last_arrival)
        end.last_arrival = arrival
        self.clock.at(arrival, self._arrive, end, data)

    def _arrive(self, end: End, data: bytes) -> None:
        """The first outgoing segment reaches the other host, or is lost on the way."""
        peer = end.peer
        if peer is None or not end.outgoing or end.outgoing[0] is not data:
            return
        source, target = end.owner, peer.owner
        if not end.is_open and not peer.is_open:
            return
        forth = self._is_path(source, target) and target.state is not Process.GONE
        back = self._is_path(target, source)
        if not forth or source.state is Process.GONE:
            self._retry(end, data)
            return
        if back:
            end.progress_at = self.clock.now
        elif self.clock.now - end.progress_at > BREAKS_AFTER:
            self._break(end)
        end.retry = 0.0
        end.outgoing.popleft()
        if peer.is_open:
            peer.unread += len(data)
            self._input(target, self._do_bytes, peer, data)

    def _retry(self, end: End, data: bytes) -> None:
        if self.clock.now - end.progress_at > BREAKS_AFTER:
            self._break(end)
            return
        end.retry = min(end.retry * 2 or RETRANSMIT_AFTER, RETRANSMIT_MAX)
        again = self.clock.now + end.retry
        end.last_arrival = again
        for waiting in end.outgoing:
            self.clock.at(again, self._arrive, end, waiting)

    def _do_bytes(self, node: SimNode, end: End, data: bytes) -> None:
        end.unread -= len(data)
        peer = end.peer
        if peer is not None and peer.is_paused and peer.unacked + end.unread <= SOCKET_BUFFER // 4:
            peer.is_paused = False
            self.clock.after(self._travel(), self._pause, peer, False)
        if end.is_open:
            self._trace.update(b"%d %d %.9f " % (node.number, end.link, self.clock.now) + data)
            node.mesh.bytes_received(node.now(), end.link, data)

    def _pause(self, end: End, is_paused: bool) -> None:
        if end.is_open:
            self._input(end.owner, self._do_pause, end, is_paused)

    def _do_pause(self, node: SimNode, end: End, is_paused: bool) -> None:
        if is_paused:
            node.mesh.link_paused(node.now(), end.link)
        else:
            node.mesh.link_resumed(node.now(), end.link)

    # --- the kernel's side: ends ---------------------------------------------------------------

    def _close(self, node: SimNode, link: int) -> None:
        """FIN, behind what was written."""
        end = node.ends.pop(link, None)
        if end is None:
            return
        end.is_open = False
        self.clock.at(max(self.clock.now + self._travel(), end.last_arrival), self._fin, end, 0)

    def _fin(self, end: End, tries: int) -> None:
        peer = end.peer
        if peer is None or not peer.is_open:
            return
        if end.outgoing or not self._is_path(end.owner, peer.owner):
            if tries < 8:
                self.clock.after(RETRANSMIT_AFTER * 2 ** min(tries, 4), self._fin, end, tries + 1)
            return
        self._ended(peer)

    def _break(self, end: End) -> None:
        """15 s without progress: this end gives up."""
        end.outgoing.clear()
        if end.is_open:
            self._ended(end)

    def _ended(self, end: End) -> None:
        end.is_open = False
        end.owner.ends.pop(end.link, None)
        if end.owner.state in (Process.RUNNING, Process.STOPPED):
            self._input(end.owner, self._do_ended, end.link)

    def _do_ended(self, node: SimNode, link: int) -> None:
        node.mesh.link_ended(node.now(), link)

    def _die(self, node: SimNode) -> None:
        """The process is gone: its kernel resets what it had."""
        if node.state in (Process.DEAD, Process.GONE):
            node.state = Process.DEAD
            return
        node.state = Process.DEAD
        node.run_number += 1
        node.waiting = []
        ends, node.ends = node.ends, {}
        for end in ends.values():
            end.is_open = False
            self.clock.at(max(self.clock.now + self._travel(), end.last_arrival), self._fin, end, 0)

    # --- inputs and timers -----------------------------------------------------------------------

    def _input(self, node: SimNode, call: Callable[..., None], *args: object) -> None:
        """Give an input to a process, or keep it in the kernel while it is stopped."""
        if node.state is Process.RUNNING:
            call(node, *args)
            self._perform(node)
        elif node.state is Process.STOPPED:
            node.waiting.append((self._input, (node, call, *args)))

    def _arm(self, node: SimNode) -> None:
        at = node.mesh.next_timer()
        if at is None:
            node.timer_at = None
            return
        due = max(at - node.mono_offset, self.clock.now)
        if node.timer_at is None or due < node.timer_at:
            node.timer_at = due
            self.clock.at(due, self._timer, node, node.run_number, due)

    def _timer(self, node: SimNode, run: int, due: float) -> None:
        if node.run_number != run or node.timer_at != due:
            return
        if node.state is Process.STOPPED:
            node.waiting.append((self._timer, (node, run, due)))
            return
        node.timer_at = None
        if node.state is Process.RUNNING:
            late = self.clock.now - due
            if late > 0.25:
                node.mesh.loop_lagged(node.now(), late)
            node.mesh.handle_timer(node.now())
            self._perform(node)

    # --- private ---------------------------------------------------------------------------------

    def _is_path(self, source: SimNode, target: SimNode) -> bool:
        return self._paths.is_open(source.number, target.number)

    def _advertise(self, node: SimNode) -> None:
        """mDNS: each sees the others' advertisements within some tens of ms."""
        for other in self.nodes:
            if other is not node and other.is_running:
                for one, two in ((node, other), (other, node)):
                    if self._is_path(one, two):
                        self.clock.after(
                            0.02 + 0.05 * self._rng.random(), self._offer, two, two.run_number, one
                        )

    def _offer(self, to: SimNode, run: int, found: SimNode) -> None:
        if to.run_number == run and to.is_running:
            offer = Candidate(f"mdns:{found.number}", (found.address,), FoundBy.MDNS)
            to.mesh.candidate_found(to.now(), offer)
            self._perform(to)

    def _did(self, what: str) -> None:
        self.done.append(f"{self.clock.now:.3f} {what}")
