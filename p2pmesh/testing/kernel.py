"""The model of the operating system: hosts, sockets, and the wires between them.

It models what a failure detector can tell apart, and no more:

* a *stopped* process still accepts connections and acknowledges bytes, since its
  kernel does; a full backlog drops the SYN;
* a *dead* one ends its connections, refuses dials, and resets whoever writes on;
* a host that is *off*, or behind a cut, answers nothing;
* loss is delay: a lost segment comes 200 ms later, then 400 ms after that …, what
  is behind it waits, and a connection breaks after 15 s without progress.  A lost
  SYN is sent again after 1 s, then 2 s.

A connection needs both directions: over a one-way cut no dial succeeds, and bytes
that arrive but cannot be acknowledged break their connection in the end.

Not modelled: congestion, bandwidth, reordering, and a receiver's window (what a
process does not read piles up, and its sender is told to pause).

Nothing here knows the protocol.  Processes are told what happens through
``Process``; whether one that is stopped looks at it is its own affair.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from p2pmesh.protocol.types import DialOutcome
from p2pmesh.testing.clock import Clock

RETRANSMIT_AFTER: Final = 0.2
SYN_AGAIN_AFTER: Final = 1.0
BREAKS_AFTER: Final = 15.0
BACKLOG: Final = 1024
PROXY: Final = -1  # the number of a host that every path leads to
CROWD: Final = -2  # the number of one from which every path leads everywhere
CROWD_WAITS: Final = 120.0
#: Bytes that both kernels hold for a process that does not read, before the sender
#: is told to pause; it goes on when a quarter is left.
SOCKET_BUFFER: Final = 256 * 1024


class Process(Protocol):
    """What a kernel tells a process."""

    def opened(self, socket: Socket, dial: int | None) -> None: ...
    def received(self, socket: Socket, data: bytes) -> None: ...
    def ended(self, socket: Socket) -> None: ...
    def dial_failed(self, dial: int, outcome: DialOutcome) -> None: ...
    def paused(self, socket: Socket, is_paused: bool) -> None: ...


class _Mute:
    """A process that reads and says nothing."""

    def opened(self, socket: Socket, dial: int | None) -> None: ...
    def received(self, socket: Socket, data: bytes) -> None:
        socket.unread = 0

    def ended(self, socket: Socket) -> None: ...
    def dial_failed(self, dial: int, outcome: DialOutcome) -> None: ...
    def paused(self, socket: Socket, is_paused: bool) -> None: ...


@dataclass(slots=True, eq=False)
class Host:
    """One machine with one process on it."""

    number: int
    process: Process
    address: str  # where it dials from, and listens
    is_listening: bool = False
    unaccepted: int = 0  # connections that the process has not taken yet
    backlog: int = BACKLOG  # how many of them its kernel keeps
    boot: int = 0  # which process this is; what belongs to an earlier one is void
    own_error: bool = False  # its dials fail here: no descriptors, say
    has_proxy: bool = False  # something accepts at its address, whether it lives or not
    sockets: dict[int, Socket] = field(default_factory=dict)  # by link number


@dataclass(slots=True, eq=False)
class Socket:
    """One end of a connection."""

    host: Host
    link: int
    address: str  # of the other end
    peer: Socket = field(init=False, repr=False)
    is_open: bool = True  # its process has neither closed nor lost it
    #: Sent and not acknowledged, in order; None is the FIN.
    segments: deque[bytes | None] = field(default_factory=deque)
    sent: int = 0  # segments ever sent; the last of ``segments`` has this number
    delivered: int = 0  # the number of the last one that arrived
    unacked: int = 0  # bytes in ``segments``
    last_arrival: float = 0.0
    retry_after: float = 0.0  # current retransmission gap; 0: nothing is overdue
    progress_at: float = 0.0
    unread: int = 0  # bytes that arrived here and wait for the process
    is_paused: bool = False
    is_void: bool = False  # an address of it is gone: nothing of it arrives any more


@dataclass(slots=True, eq=False)
class _Connecting:
    host: Host
    boot: int
    dial: int
    address: str
    deadline: float
    is_over: bool = False


class Paths:
    """Which host reaches which, in which direction."""

    def __init__(self) -> None:
        self.is_whole = True  # nothing is cut: the question need not be asked
        self._cuts: set[tuple[int, int]] = set()
        self._unplugged: set[int] = set()
        self._side: dict[int, int] = {}

    def is_open(self, source: int, target: int) -> bool:
        if self.is_whole or source == target:
            return True
        return (
            (source, target) not in self._cuts
            and source not in self._unplugged
            and target not in self._unplugged
            and self._side.get(source, 0) == self._side.get(target, 0)
        )

    def cut(self, source: int, target: int) -> None:
        self._cuts.add((source, target))
        self._changed()

    def mend(self, source: int, target: int) -> None:
        self._cuts.discard((source, target))
        self._changed()

    def unplug(self, host: int) -> None:
        self._unplugged.add(host)
        self._changed()

    def plug_in(self, host: int) -> None:
        self._unplugged.discard(host)
        self._changed()

    def partition(self, sides: list[list[int]]) -> None:
        self._side = {host: number for number, side in enumerate(sides) for host in side}
        self._changed()

    def heal(self) -> None:
        """Cuts and partitions are over; who is unplugged stays so."""
        self._cuts.clear()
        self._side.clear()
        self._changed()

    def _changed(self) -> None:
        self.is_whole = not (self._cuts or self._unplugged or self._side)


class Kernel:
    """All kernels of a network, and the wires between them."""

    def __init__(
        self, clock: Clock, rng: random.Random, *, delay: float, jitter: float, loss: float
    ) -> None:
        self.delay, self.jitter, self.loss = delay, jitter, loss
        self.paths = Paths()
        self._clock = clock
        self._rng = rng
        self._links = 0
        self._hosts: dict[str, Host] = {}

    # --- processes --------------------------------------------------------------------

    def bind(self, host: Host, address: str) -> None:
        """Dials to this address go to this host from now on."""
        self._hosts[address] = host
        host.address = address

    def unbind(self, host: Host) -> None:
        """The host loses its address: nothing answers there, and its connections, which go on
        using it, are mute."""
        if self._hosts.get(host.address) is host:
            del self._hosts[host.address]
        for socket in host.sockets.values():
            socket.is_void = socket.peer.is_void = True

    def boot(self, host: Host) -> None:
        """A process begins, and listens."""
        host.boot += 1
        host.is_listening = True

    def die(self, host: Host) -> None:
        """Its process is gone: the kernel ends its connections and refuses dials."""
        sockets = self._forget(host)
        for socket in sockets:
            self._send(socket, None)

    def power_off(self, host: Host) -> None:
        """Process and kernel are gone, and nobody is told."""
        for socket in self._forget(host):
            socket.segments.clear()

    def _forget(self, host: Host) -> list[Socket]:
        host.boot += 1
        host.is_listening = False
        host.unaccepted = 0
        sockets = list(host.sockets.values())
        host.sockets.clear()
        for socket in sockets:
            socket.is_open = False
        return sockets

    def reset(self, one: Host, other: Host) -> None:
        """Something between them resets their connections: what was under way is lost,
        and both are told."""
        for host, far in ((one, other), (other, one)):
            for socket in [each for each in host.sockets.values() if each.peer.host is far]:
                self._break(socket)

    # --- dialling -----------------------------------------------------------------------

    def dial(self, host: Host, dial: int, address: str, timeout: float) -> None:
        now = self._clock.now
        made = _Connecting(host, host.boot, dial, address, now + timeout)
        if host.own_error:
            self._clock.after(0.0, self._dial_failed, made, DialOutcome.LOCAL_ERROR)
            return
        self._clock.at(made.deadline, self._dial_failed, made, DialOutcome.TIMEOUT)
        self._send_syn(made, SYN_AGAIN_AFTER)

    def besiege(self, host: Host, strangers: int) -> None:
        """So many connect, and say nothing."""
        crowd = Host(CROWD, _Mute(), "10.255.255.254:0")
        for number in range(strangers):
            self.dial(crowd, number, host.address, CROWD_WAITS)

    def _send_syn(self, made: _Connecting, gap: float) -> None:
        if made.is_over or made.host.boot != made.boot:
            return
        if not self._is_lost():
            self._clock.after(self._travel(), self._syn, made)
        self._clock.after(gap, self._send_syn, made, gap * 2)

    def _syn(self, made: _Connecting) -> None:
        """A SYN arrives; the answer may not."""
        target = self._hosts.get(made.address)
        if target is None or made.is_over:
            return
        if target.has_proxy and not target.is_listening:  # a machine of its own answers
            self._clock.after(self._travel(), self._connected_to_nobody, made, target)
            return
        there = self.paths.is_open(made.host.number, target.number)
        back = self.paths.is_open(target.number, made.host.number)
        if not there or not back or self._is_lost():
            return
        if target.is_listening:
            self._clock.after(self._travel(), self._connected, made, target, target.boot)
        else:
            self._clock.after(self._travel(), self._dial_failed, made, DialOutcome.REFUSED)

    def _connected(self, made: _Connecting, target: Host, boot: int) -> None:
        if made.is_over or made.host.boot != made.boot:
            return
        if not self.paths.is_open(target.number, made.host.number):
            return
        if target.boot != boot:  # it died meanwhile: a reset
            self._dial_failed(made, DialOutcome.REFUSED)
            return
        if target.unaccepted >= target.backlog:
            return
        target.unaccepted += 1
        mine, theirs = self._connect(made, target)
        target.process.opened(theirs, None)
        if mine.is_open:
            made.host.process.opened(mine, made.dial)

    def _connected_to_nobody(self, made: _Connecting, target: Host) -> None:
        """The proxy accepts, reads, and has nobody to pass it to."""
        if made.is_over or made.host.boot != made.boot:
            return
        proxy = Host(PROXY, _Mute(), made.address, is_listening=True)
        mine, _ = self._connect(made, proxy)
        made.host.process.opened(mine, made.dial)

    def _connect(self, made: _Connecting, target: Host) -> tuple[Socket, Socket]:
        made.is_over = True
        self._links += 2
        port = 30_000 + self._links % 30_000
        source = f"{made.host.address.rpartition(':')[0]}:{port}"
        mine = Socket(made.host, self._links, made.address)
        theirs = Socket(target, self._links + 1, source)
        mine.peer, theirs.peer = theirs, mine
        for socket in (mine, theirs):
            socket.host.sockets[socket.link] = socket
        return mine, theirs

    def _dial_failed(self, made: _Connecting, outcome: DialOutcome) -> None:
        if not made.is_over:
            made.is_over = True
            if made.host.boot == made.boot:
                made.host.process.dial_failed(made.dial, outcome)

    # --- bytes ------------------------------------------------------------------------------

    def write(self, host: Host, link: int, data: bytes) -> None:
        socket = host.sockets.get(link)
        if socket is None:
            return
        self._send(socket, data)
        if socket.unacked + socket.peer.unread > SOCKET_BUFFER and not socket.is_paused:
            socket.is_paused = True
            self._clock.after(0.0, self._tell_paused, socket, True)

    def close(self, host: Host, link: int) -> None:
        """What was written goes first, then the FIN; the process hears no more."""
        socket = host.sockets.pop(link, None)
        if socket is not None:
            socket.is_open = False
            self._send(socket, None)

    def unacked(self, host: Host, link: int) -> int | None:
        """SIOCOUTQ: written bytes that the other kernel has not acknowledged."""
        socket = host.sockets.get(link)
        return None if socket is None else socket.unacked

    def read(self, socket: Socket, data: bytes) -> None:
        """The process took these bytes out of its socket."""
        socket.unread -= len(data)
        sender = socket.peer
        if sender.is_paused and sender.unacked + socket.unread <= SOCKET_BUFFER // 4:
            sender.is_paused = False
            self._clock.after(self._travel(), self._tell_paused, sender, False)

    def _tell_paused(self, socket: Socket, is_paused: bool) -> None:
        if socket.is_open:
            socket.host.process.paused(socket, is_paused)

    def _send(self, socket: Socket, data: bytes | None) -> None:
        now = self._clock.now
        if not socket.segments:
            socket.progress_at = now
        socket.segments.append(data)
        socket.sent += 1
        if data is not None:
            socket.unacked += len(data)
        if socket.retry_after:
            return  # it goes with what is sent again
        travel = self._travel()
        if self.loss:
            gap = RETRANSMIT_AFTER
            while self._is_lost():
                travel += gap
                gap *= 2
            if travel > BREAKS_AFTER:
                self._clock.after(BREAKS_AFTER, self._break, socket)
                return
        arrival = now + travel
        if arrival < socket.last_arrival:
            arrival = socket.last_arrival
        socket.last_arrival = arrival
        self._clock.at(arrival, self._arrive, socket, socket.sent)

    def _arrive(self, socket: Socket, number: int) -> None:
        """A segment reaches the other host, or a cut."""
        if number != socket.delivered + 1 or socket.retry_after or not socket.segments:
            return
        if self.paths.is_whole and not socket.is_void:
            data = socket.segments.popleft()
            if data is not None:
                socket.unacked -= len(data)
            socket.progress_at = self._clock.now
            socket.delivered = number
            self._deliver(socket, data)
            return
        if self._passes(socket):
            self._deliver_all(socket)
            if self._passes(socket.peer):
                self._acknowledge(socket)
                return
        socket.retry_after = RETRANSMIT_AFTER
        self._clock.after(RETRANSMIT_AFTER, self._retry, socket)

    def _retry(self, socket: Socket) -> None:
        """Send again what is overdue."""
        if not socket.segments:
            socket.retry_after = 0.0
            return
        if self._passes(socket) and not self._is_lost():
            self._deliver_all(socket)
            if self._passes(socket.peer):
                self._acknowledge(socket)
                socket.retry_after = 0.0
                return
        now = self._clock.now
        breaks_at = socket.progress_at + BREAKS_AFTER
        if now >= breaks_at:
            self._break(socket)
            return
        socket.retry_after *= 2
        self._clock.at(min(now + socket.retry_after, breaks_at), self._retry, socket)

    def _passes(self, socket: Socket) -> bool:
        """Does what this end sends arrive?"""
        source, target = socket.host.number, socket.peer.host.number
        return not socket.is_void and self.paths.is_open(source, target)

    def _deliver_all(self, socket: Socket) -> None:
        """Everything that the other end has not had."""
        new = socket.sent - socket.delivered
        for data in list(socket.segments)[len(socket.segments) - new :]:
            socket.delivered += 1
            self._deliver(socket, data)

    def _acknowledge(self, socket: Socket) -> None:
        while len(socket.segments) > socket.sent - socket.delivered:
            socket.unacked -= len(socket.segments.popleft() or b"")
        socket.progress_at = self._clock.now

    def _deliver(self, socket: Socket, data: bytes | None) -> None:
        peer = socket.peer
        if not peer.is_open:
            if data is not None:  # what that end had said comes before the reset
                arrival = max(self._clock.now + self._travel(), peer.last_arrival)
                self._clock.at(arrival, self._reset, socket)
        elif data is None:
            self._end(peer)
        else:
            peer.unread += len(data)
            peer.host.process.received(peer, data)

    # --- ends ---------------------------------------------------------------------------------

    def _reset(self, socket: Socket) -> None:
        """The answer to bytes for a connection that the other kernel does not have."""
        if self._passes(socket.peer):
            self._break(socket)

    def _break(self, socket: Socket) -> None:
        """Reset, or 15 s without progress: this end gives up."""
        socket.segments.clear()
        socket.unacked = 0
        if socket.is_open:
            self._end(socket)

    def _end(self, socket: Socket) -> None:
        socket.is_open = False
        socket.host.sockets.pop(socket.link, None)
        socket.host.process.ended(socket)

    # --- chance -------------------------------------------------------------------------------

    def _travel(self) -> float:
        return self.delay + self._rng.random() * self.jitter

    def _is_lost(self) -> bool:
        return self.loss > 0.0 and self._rng.random() < self.loss
