"""Reading: the messages of an agent, one after the other, as they come.

    next ─► acknowledge the one before ─► the next of those that were read
                                            none left: a long poll

Asking for the next message says that the one before is dealt with.  Who acknowledges by
itself gets each message once as long as it is listed.  When no node answers, reading goes
on once one does.

Invariants: at most ``SEEN_MAX`` ids are remembered; a node that answers at once and has
nothing new is not asked again before ``POLL_INTERVAL``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from typing import Final, TypeVar

from p2pmesh.client import calls
from p2pmesh.client.answers import Message
from p2pmesh.client.calls import Request
from p2pmesh.client.nodes import Flow, Nodes, Pause
from p2pmesh.errors import PeerUnreachable

POLL_INTERVAL: Final = 0.5
_RETRY_INTERVAL: Final = 1.0  # no node answers
SEEN_MAX: Final = 4096

T = TypeVar("T")

_log = logging.getLogger("p2pmesh.client")


class Reading:
    """One reader of one mailbox."""

    def __init__(self, nodes: Nodes, instance_id: str, *, wait: float, acknowledges: bool) -> None:
        self._nodes = nodes
        self._instance_id = instance_id
        self._acknowledges = acknowledges
        self._poll = calls.timed(calls.get_messages(instance_id, wait=wait))
        self._read: deque[Message] = deque()
        self._given: str | None = None  # the id that the caller is busy with
        self._seen: OrderedDict[str, None] = OrderedDict()  # given, and may be listed still

    def next(self) -> Flow[Message]:
        if self._given is not None:
            yield from self._done_with(self._given)
        self._given = None
        while not self._read:
            yield from self._more()
        message = self._read.popleft()
        self._given = message.message_id
        self._seen[message.message_id] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        return message

    def _done_with(self, *message_ids: str) -> Flow[None]:
        if self._acknowledges:
            yield from self._patiently(calls.acknowledge_messages(self._instance_id, message_ids))

    def _more(self) -> Flow[None]:
        listed, took = yield from self._patiently(self._poll)
        again = [each.message_id for each in listed if each.message_id in self._seen]
        if again:  # its home died before it could tell the sender, or does not know yet
            yield from self._done_with(*again)
        self._read.extend(each for each in listed if each.message_id not in self._seen)
        if not self._read and took < POLL_INTERVAL:
            yield Pause(POLL_INTERVAL)

    def _patiently(self, request: Request[T]) -> Flow[T]:
        """Until a node answers, if one ever did."""
        is_told = False
        while True:
            try:
                return (yield from self._nodes.call(request))
            except PeerUnreachable as error:
                if self._nodes.url is None:
                    raise
                if not is_told:
                    _log.warning("the messages of %s wait: %s", self._instance_id, error)
                is_told = True
                yield Pause(_RETRY_INTERVAL)
