"""The message plane on its mesh: when it looks at the view, and what it wants done there.

    changes of the view ─► (wait a little) ─► membership_changed ─┐
    links, peers, time, commands ─► reach() ──────────────────────┴─► post office
                                                                          │ effects
    link · neighbours · membership · actions ◄────── settle() ◄───────────┘

- Whoever tells the post office something reaches for it: it has seen by then all that
  changed before, and its effects are fetched when the input settles.
- It looks at once at who ended and at guests; at new members together, when many come.
- Its effects are told to links in the order in which it made them.

Not here: any rule about messages (``postoffice`` and below), or about members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2pmesh.protocol import timing
from p2pmesh.protocol.commands import Commands
from p2pmesh.protocol.core import Changed, Core
from p2pmesh.protocol.ledger import Ledger
from p2pmesh.protocol.lookup import Lookup
from p2pmesh.protocol.members import Change
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.neighbours import Neighbours
from p2pmesh.protocol.postoffice import PostOffice
from p2pmesh.protocol.sidelinks import SideLinks
from p2pmesh.protocol.types import Instant
from p2pmesh.protocol.ways import Announce, NeedLink, SendTo


class MessagePlane:
    """One node's post office, between the desks of its mesh."""

    def __init__(
        self,
        core: Core,
        lookup: Lookup,
        membership: Membership,
        neighbours: Neighbours,
        side: SideLinks,
        *,
        settle: Callable[[], None],
    ) -> None:
        """``settle``: the door's, for commands that are settled at once."""
        config = core.config
        self._core = core
        self._lookup = lookup
        self._membership = membership
        self._neighbours = neighbours
        self._side = side
        self.ledger = Ledger(core.restored, core.at.now, is_durable=config.persistent)
        #: To be read; who tells it something takes ``reach``.
        self.office = PostOffice(
            lookup,
            self.ledger,
            entropy=core.entropy,
            agent=config.agent.instance_id if config.agent is not None else None,
            begin=self._begin,
            settle=settle,
        )
        self.due_at: float | None = None  # when it wants ``handle_timer``
        self.is_used = False  # it may have effects
        self._unseen: list[Changed] = []  # what it has not looked at
        self._is_look_due = False  # something of it does not wait
        self._looked_at = -timing.NEWS_INTERVAL

    @property
    def commands(self) -> Commands:
        return self.office.commands

    def reach(self) -> PostOffice:
        """The post office, for whoever may give it something to say."""
        if self._unseen:
            self.look()
        self.is_used = True
        return self.office

    def _begin(self, at: Instant) -> None:
        """A command comes."""
        self._core.at = at
        self.reach()

    def handle_timer(self, at: Instant) -> None:
        if self.due_at is not None and self.due_at <= at.now:
            self.reach().handle_timer(at)

    # --- looking ------------------------------------------------------------------------

    def follow(self, changes: Iterable[Changed]) -> None:
        """The view changed."""
        for change in changes:
            self._unseen.append(change)
            self._is_look_due |= not _may_wait(change)

    def look(self) -> None:
        """See all that changed."""
        unseen, self._unseen = self._unseen, []
        self._is_look_due = False
        self._looked_at = self._core.at.now
        nodes = {change.key for change in unseen if isinstance(change.key, bytes)}
        instances = {change.key for change in unseen if isinstance(change.key, str)}
        instances.update(self._lookup.agents_of(nodes))
        self.is_used = True
        self.office.membership_changed(self._core.at, nodes, instances)

    def _look_in_time(self) -> None:
        due_at = self._looked_at + timing.NEWS_INTERVAL
        if self._is_look_due or self._core.at.now >= due_at:
            self.look()
        else:
            self._core.timers.set_earlier("look", None, due_at)

    # --- settling -----------------------------------------------------------------------

    def settle(self) -> None:
        """Look if it is time to, and do what is wanted; the view may change by that."""
        if self._unseen:
            self._look_in_time()
        if self.is_used:
            self._carry_out()

    def _carry_out(self) -> None:
        core = self._core
        self.is_used = False
        effects = self.office.drain(core.at)
        self.due_at = self.office.next_timer()
        for effect in effects:
            match effect:
                case SendTo(peer, message):
                    link = core.links_up.get(peer)
                    if link is not None:
                        core.tell(link, message)
                        self._side.used(link)
                case NeedLink(peer):
                    self._neighbours.connect(peer)
                case Announce(entry):
                    self._membership.announce(entry)
                case _:
                    core.act(effect)


def _may_wait(changed: Changed) -> bool:
    """A member that is new, or says something new."""
    return isinstance(changed.key, bytes) and changed.change in (Change.JOINED, Change.UPDATED)
