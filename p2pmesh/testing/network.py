"""SimNetwork: real cores over the kernel's model, on a virtual clock.

Every input goes through a core's door and every action through the model, so a
simulated run exercises the bytes, the timers and the rules that a real one does.
Above 200 nodes the cipher is replaced by one of equal length, and all nodes share
one book of verified records; nothing else differs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any, Final

from p2pmesh.protocol.mesh import Mesh
from p2pmesh.protocol.records import RecordBook
from p2pmesh.protocol.types import Agent, Candidate, Event, FoundBy, Life
from p2pmesh.testing.arguments import read, refuse, refuse_kind
from p2pmesh.testing.clock import Clock
from p2pmesh.testing.kernel import BACKLOG, Kernel
from p2pmesh.testing.node import SimNode, State, address
from p2pmesh.testing.scenario import Scenario, Step
from p2pmesh.testing.steps import Which, read_node, read_nodes, step
from p2pmesh.testing.story import TOLD_MAX, Told, awaited, told_by

_REAL_CIPHER_UP_TO: Final = 200
_ARRIVAL: Final = Struct("<IQdI").pack  # node, link, time, length: what the trace is made of
_POLL: Final = 0.01  # how often a condition is looked at
#: mDNS: an advertisement is seen after this long, give or take the second figure.
_ADVERTISED: Final = 0.02
_ADVERTISED_JITTER: Final = 0.05
#: A process sees that its addresses changed after this long.
_ADDRESS_NOTICED: Final = 2.0
#: Addresses that hosts change to are those of hosts with numbers above this.
_LATER_ADDRESSES: Final = 1 << 20


class Timeout(AssertionError):
    """What was waited for did not happen.  The story of the run follows as a note, and the
    scenario when the network was used as a context manager."""


class SimNetwork:
    """A seeded network of simulated nodes.

    As a context manager it adds to whatever is raised inside its story and its scenario,
    so that a failing test prints what happened and how to repeat the run.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        delay: float = 0.0005,
        jitter: float = 0.0005,
        loss: float = 0.0,
        multicast: bool = True,
        expected: int = 0,
    ) -> None:
        """``delay``, ``jitter``: seconds one way, and what is added at random.
        ``loss``: share of the segments that are lost, each time they are sent: 0.2 is 20 %.
        ``multicast``: nodes find each other as by mDNS; without it give ``peers``.
        ``expected``: how many nodes will be added; above 200 the cipher is a null
        one, and events of single members are counted and told to observers, not kept."""
        self._options = (
            ("seed", seed), ("delay", delay), ("jitter", jitter), ("loss", loss),
            ("multicast", multicast), ("expected", expected),
        )  # fmt: skip
        for option, value in self._options:
            read(option, value)
        self.seed = seed
        self.clock = Clock()
        self.nodes: list[SimNode] = []
        self.is_large = expected > _REAL_CIPHER_UP_TO
        #: Called with each event of a node as it happens.
        self.observers: list[Callable[[SimNode, Event], None]] = []
        self._multicast = multicast
        self._rng = random.Random(seed)
        self._kernel = Kernel(self.clock, self._rng, delay=delay, jitter=jitter, loss=loss)
        self._book = RecordBook() if self.is_large else None
        self._trace = blake2b(digest_size=16)
        self.steps: list[Step] = []
        self.told: deque[Told] = deque(maxlen=TOLD_MAX)
        self._readdressed = 0

    def __enter__(self) -> SimNetwork:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._note_story(error)
            error.add_note(f"To repeat this run:\n\n{self.scenario}")

    # --- runs ---------------------------------------------------------------------------

    @property
    def scenario(self) -> Scenario:
        """What was done so far; prints as the program that does it again."""
        return Scenario(self._options, tuple(self.steps), self.clock.now)

    @classmethod
    def replay(cls, scenario: Scenario) -> SimNetwork:
        """The same run again."""
        net = cls(**dict(scenario.options))
        for each in scenario.steps:
            net.run_to(each.at)
            getattr(net, each.verb)(*each.arguments, **dict(each.options))
        net.run_to(scenario.until)
        return net

    def run(self, seconds: float) -> None:
        """Let so many virtual seconds pass."""
        read("seconds", seconds)
        self.clock.run_to(self.clock.now + seconds)

    def run_to(self, time: float) -> None:
        """Let virtual time pass until it is ``time``, in seconds since the run began."""
        read("time", time)
        if time < self.clock.now:
            refuse("time", time, f"it is {self.clock.now} already")
        self.clock.run_to(time)

    def run_until(self, condition: Callable[[], bool], *, within: float) -> float:
        """Run until the condition holds (looked at every 10 ms); the virtual seconds
        that it took, at most ``within``.  Raises Timeout."""
        read("within", within)
        if not callable(condition):
            refuse_kind("condition", condition, "a function that is asked again and again")
        began = self.clock.now
        while not condition():
            if self.clock.now - began >= within:
                raise self._timed_out(condition, within)
            self.run(_POLL)
        return self.clock.now - began

    def story(self, last: int = 40, nodes: Sequence[Which] | None = None) -> str:
        """What happened, for people: the last lines of what was done and of what these
        (all) nodes told, in virtual time, and who sees whom now.  At most 1,000 events
        are kept, and in networks of more than 200 nodes none of single members."""
        read("last", last)
        return told_by(self, self.nodes if nodes is None else self._nodes(nodes), last)

    def _timed_out(self, condition: Callable[[], bool], within: float) -> Timeout:
        what = f"not within {within} virtual seconds (seed {self.seed}): {awaited(condition)}"
        error = Timeout(what)
        self._note_story(error)
        return error

    def _note_story(self, error: BaseException) -> None:
        """Once: no time passes between a Timeout and the end of its ``with``."""
        story = self.story()
        if story not in getattr(error, "__notes__", ()):
            error.add_note(story)

    def trace_hash(self) -> str:
        """Equal for two runs in which the same bytes arrived at the same times."""
        return self._trace.hexdigest()

    # --- steps: nodes ---------------------------------------------------------------------

    @step
    def add(
        self,
        name: str = "node",
        *,
        peers: Sequence[Which] = (),
        start: bool = True,
        wall_offset: int = 0,
        address_of: Which | None = None,
        identity_of: Which | None = None,
        **config: Any,
    ) -> SimNode:
        """A new node on a host of its own.

        ``peers``: whose addresses it is given.  ``start``: without, it is a host on
        which nothing listens yet.  ``wall_offset``: ms that its wall clock is ahead.
        ``address_of``: it takes over that node's address; ``identity_of``: its data
        directory is a copy of that node's, its identity too.  ``config``: fields of MeshConfig
        (``agent=None`` is an observer, ``persistent=True`` has a store)."""
        node = self._made(name, config, address_of=address_of, identity_of=identity_of)
        node.wall_offset = wall_offset
        if start:
            self._start(node, peers)
        return node

    @step
    def add_converged(self, count: int, name: str = "node", **config: Any) -> None:
        """The first nodes of this network, so many, as members of one mesh: each knows all
        from now on, and has links to its ring neighbours within a second.  For thousands,
        whose joining would take longer than what is to be seen."""
        if self.nodes:
            refuse("count", count, f"there are {len(self.nodes)} nodes already: begin with these")
        for _ in range(count):
            node = self._made(name, dict(config))
            node.start(self._rng, null_cipher=self.is_large, book=self._book)
        Mesh.converge([node.mesh for node in self.nodes])
        for node in self.nodes:
            node.perform()

    @step
    def start(self, node: Which, *, peers: Sequence[Which] = (), **config: Any) -> None:
        """A process of this identity: the first, or a restart, with the settings that
        it had unless ``config`` changes them."""
        node = self._node(node)
        if node.state is not State.DEAD:
            refuse("node", node, "runs already")
        node.settings.update(config)
        self._kernel.paths.plug_in(node.number)
        self._start(node, peers)

    @step
    def kill(self, node: Which) -> None:
        """kill -9: connections end, dials are refused, memory is gone."""
        node = self._node(node)
        node.end()
        self._kernel.die(node.host)

    @step
    def leave(self, node: Which) -> None:
        """A graceful leave."""
        self._node(node).input("leave")

    @step
    def stop(self, node: Which) -> None:
        """SIGSTOP."""
        self._node(node).stop()

    @step
    def resume(self, node: Which) -> None:
        """SIGCONT: what waited in the sockets comes first, then the timer."""
        self._node(node).resume()

    @step
    def starve(self, node: Which, *, runs: float, stops: float, seconds: float) -> None:
        """A duty cycle for so many ``seconds``: the process waits ``stops`` seconds for
        the CPU, then has it for ``runs`` seconds."""
        self._starve(self._node(node), runs, stops, self.clock.now + seconds)

    @step
    def command(self, node: Which, method: str, **arguments: Any) -> Any:
        """Call a command of the core (``send``, ``register``, …), and perform what it
        wants done; its result.  Outcomes are appended to ``SimNode.outcomes``."""
        return self._node(node).command(method, **arguments)

    @step
    def offer(self, node: Which, candidate: Candidate) -> None:
        """Discovery offers this candidate to this node."""
        self._node(node).input("candidate_found", candidate)

    @step
    def withdraw(self, node: Which, key: str) -> None:
        """Discovery takes a candidate back."""
        self._node(node).input("candidate_lost", key)

    @step
    def discover(self) -> None:
        """Every running node sees every other's advertisement, where a path is."""
        for node in self.running():
            self._advertise(node)

    # --- steps: machines --------------------------------------------------------------------

    @step
    def power_off(self, node: Which) -> None:
        """The host is off: nothing answers, and nobody is told.  ``start`` boots it."""
        node = self._node(node)
        node.end()
        self._kernel.power_off(node.host)
        self._kernel.paths.unplug(node.number)

    @step
    def sleep(self, node: Which) -> None:
        """The machine sleeps: nothing answers, and its process stands still."""
        node = self._node(node)
        node.stop()
        self._kernel.paths.unplug(node.number)

    @step
    def wake(self, node: Which) -> None:
        """It goes on where it was; its clocks counted."""
        node = self._node(node)
        self._kernel.paths.plug_in(node.number)
        node.resume()

    @step
    def set_wall(self, node: Which, offset: int) -> None:
        """Its wall clock steps to ``offset`` ms ahead of the virtual one."""
        self._node(node).wall_offset = offset

    @step
    def jump(self, node: Which, seconds: float) -> None:
        """Its monotonic clock jumps so many seconds ahead, and the rest of the world does not."""
        node = self._node(node)
        node.mono_offset += seconds
        node.rearm()

    @step
    def set_store(self, node: Which, works: bool) -> None:
        """Whether what its core persists is stored or fails."""
        self._node(node).store_works = works

    @step
    def set_dials(self, node: Which, work: bool) -> None:
        """Whether its dials leave the machine, or fail there (no descriptors, say)."""
        self._node(node).host.own_error = not work

    @step
    def set_proxy(self, node: Which, has: bool) -> None:
        """Whether something accepts dials at its address also when its process is gone
        (a container's published port, a load balancer)."""
        self._node(node).host.has_proxy = has

    @step
    def readdress(self, node: Which) -> None:
        """Its host gets another address instead of its own, and its process notices after
        a while; until then nobody reaches it, nor ever again over its connections."""
        node = self._node(node)
        self._kernel.unbind(node.host)
        self._readdressed += 1
        node.address = address(_LATER_ADDRESSES + self._readdressed)
        node.settings["addresses"] = (node.address,)
        if node.state is State.DEAD:
            self._kernel.bind(node.host, node.address)
        else:
            self.clock.after(_ADDRESS_NOTICED, self._notice_address, node, node.runs)

    @step
    def set_addresses(self, node: Which, addresses: Sequence[str]) -> None:
        """Its process finds its host to have these addresses, whatever it is reached at."""
        self._node(node).input("addresses_changed", tuple(addresses))

    # --- steps: the network -------------------------------------------------------------------

    @step
    def unplug(self, node: Which) -> None:
        """The cable is out: nothing reaches it or comes from it, and it goes on."""
        self._kernel.paths.unplug(self._node(node).number)

    @step
    def plug_in(self, node: Which) -> None:
        self._kernel.paths.plug_in(self._node(node).number)

    @step
    def cut(self, source: Which, target: Which, *, both: bool = True) -> None:
        """No packet from source to target (and back) any more."""
        one, other = self._node(source).number, self._node(target).number
        self._kernel.paths.cut(one, other)
        if both:
            self._kernel.paths.cut(other, one)

    @step
    def reset(self, one: Which, other: Which) -> None:
        """The connections between these two are reset, as by a router that forgot them;
        new ones can be made at once."""
        self._kernel.reset(self._node(one).host, self._node(other).host)

    @step
    def partition(self, *sides: Iterable[Which]) -> None:
        """Only nodes of one side reach each other; the unnamed are with the first."""
        self._kernel.paths.partition([[self._node(n).number for n in side] for side in sides])

    @step
    def heal(self) -> None:
        """All cuts and partitions are over.  Nobody is advertised anew: see
        ``discover``."""
        self._kernel.paths.heal()

    @step
    def besiege(self, node: Which, strangers: int, *, backlog: int = BACKLOG) -> None:
        """So many strangers connect to it at once, and say nothing; ``backlog`` is how many
        connections its kernel keeps that it has not taken."""
        host = self._node(node).host
        host.backlog = backlog
        self._kernel.besiege(host, strangers)

    @step
    def set_loss(self, loss: float) -> None:
        """The share of the segments that are lost from now on: 0.2 is 20 %."""
        self._kernel.loss = loss

    @step
    def set_delay(self, delay: float, *, jitter: float = 0.0) -> None:
        """How long each segment takes from now on, in seconds one way, and what is added at
        random, at most."""
        self._kernel.delay, self._kernel.jitter = delay, jitter

    # --- what tests ask -------------------------------------------------------------------------

    def running(self) -> list[SimNode]:
        """The nodes whose processes run: neither dead nor stopped."""
        return [node for node in self.nodes if node.is_running]

    def agrees(self, nodes: Sequence[Which] | None = None) -> bool:
        """Do these (all running) nodes hold one view, of exactly them, and one leader
        whose claim they know?"""
        these = self.running() if nodes is None else self._nodes(nodes)
        if not these or any(not node.is_running or not node.mesh.is_joined for node in these):
            return False
        if len({node.mesh.view_hash() for node in these}) != 1:
            return False
        first = these[0]
        live = {member.node_id for member in first.members("alive", "suspect")}
        return live == {node.node_id for node in these} and first.leadership().epoch is not None

    def oldest(self, nodes: Sequence[Which] | None = None) -> SimNode:
        """The node of the least life among these (all running) ones; all have joined."""

        def seniority(node: SimNode) -> tuple[Life, str]:
            life = node.life if node.runs else None
            assert life is not None, f"{node.instance_id} has not joined"
            return life, node.node_id

        these = self.running() if nodes is None else self._nodes(nodes)
        if not these:
            raise ValueError("there is no oldest: none of them runs")
        return min(these, key=seniority)

    # --- what nodes tell --------------------------------------------------------------------------

    def happened(self, node: SimNode, event: Event) -> None:
        """A node keeps an event."""
        self.told.append(Told(self.clock.now, node, event))

    def trace(self, node: int, link: int, data: bytes) -> None:
        """A node takes bytes."""
        self._trace.update(_ARRIVAL(node, link, self.clock.now, len(data)) + data)

    def stopped_itself(self, node: SimNode) -> None:
        """Its core said Stop: the process says goodbye to mDNS and ends in order."""
        for other in self.nodes:
            if other is not node and other.is_running and self._reaches(node, other):
                self.clock.after(
                    self._advertised_after(), self._withdraw, other, other.runs, _key(node)
                )
        node.end()
        self._kernel.die(node.host)

    # --- private ----------------------------------------------------------------------------------

    def _node(self, which: Which) -> SimNode:
        return read_node(self, "node", which)

    def _nodes(self, nodes: Sequence[Which]) -> list[SimNode]:
        return read_nodes(self, "nodes", nodes)

    def _made(
        self,
        name: str,
        config: dict[str, Any],
        *,
        address_of: Which | None = None,
        identity_of: Which | None = None,
    ) -> SimNode:
        """A node that does not run yet, on its host."""
        node = SimNode(self, self._kernel, len(self.nodes), name, self._rng.randbytes(32))
        if identity_of is not None:
            node.take_data_of(self._node(identity_of))
        if address_of is not None:
            node.address = self._node(address_of).address
        node.settings = {
            "agent": Agent(node.instance_id, persistent=bool(config.get("persistent"))),
            "addresses": (node.address,),
            "name": name,
            **config,
        }
        self.nodes.append(node)
        self._kernel.bind(node.host, node.address)
        return node

    def _start(self, node: SimNode, peers: Sequence[Which]) -> None:
        node.start(self._rng, null_cipher=self.is_large, book=self._book)
        for which in peers:
            peer = self._node(which)
            offer = Candidate(f"peer:{peer.address}", (peer.address,), FoundBy.PEER)
            node.input("candidate_found", offer)
        if self._multicast:
            self._advertise(node)

    def _starve(self, node: SimNode, runs: float, stops: float, until: float) -> None:
        if self.clock.now < until:
            node.stop()
            self.clock.after(stops, node.resume)
            self.clock.after(stops + runs, self._starve, node, runs, stops, until)

    def _advertise(self, node: SimNode) -> None:
        """mDNS: each sees the other's advertisement."""
        for other in self.nodes:
            if other is not node and other.is_running:
                for found, to in ((node, other), (other, node)):
                    if self._reaches(found, to):
                        self.clock.after(
                            self._advertised_after(), self._found, to, to.runs, _advert(found)
                        )

    def _notice_address(self, node: SimNode, run: int) -> None:
        self._kernel.bind(node.host, node.address)
        if node.runs == run and node.is_running:
            node.input("addresses_changed", (node.address,))
            if self._multicast:
                self._advertise(node)

    def _advertised_after(self) -> float:
        return _ADVERTISED + _ADVERTISED_JITTER * self._rng.random()

    def _found(self, to: SimNode, run: int, candidate: Candidate) -> None:
        if to.runs == run:
            to.input("candidate_found", candidate)

    def _withdraw(self, to: SimNode, run: int, key: str) -> None:
        if to.runs == run:
            to.input("candidate_lost", key)

    def _reaches(self, source: SimNode, target: SimNode) -> bool:
        return self._kernel.paths.is_open(source.number, target.number)


def _key(node: SimNode) -> str:
    """The name of a node's advertisement: another one at each start."""
    return f"mdns:{node.number}.{node.runs}"


def _advert(node: SimNode) -> Candidate:
    addresses = tuple(node.settings["addresses"])
    return Candidate(_key(node), addresses, FoundBy.MDNS, bytes.fromhex(node.node_id))
