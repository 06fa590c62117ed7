"""What happens to a node, told twice: to its log, and to whoever reads its events.

Log lines are for people and name what to do; events are for programs and follow
the one schema of docs/interfaces.md.  Nothing here decides anything.

A message's event tells its payload only where that is small and JSON has it.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from p2pmesh.events import EventHub
from p2pmesh.messages import small_json
from p2pmesh.protocol.types import (
    Demoted,
    DoubleIdentity,
    Elected,
    Envelope,
    Event,
    Joined,
    LeaderChanged,
    MemberEvent,
    MessageDead,
    MessageDone,
    MessageEvent,
    MessageExpired,
    MessageMoved,
    PeerRejected,
    QuorumMissing,
)

log = logging.getLogger("p2pmesh")

#: What to do about a rejected peer.
_ADVICE: Final = {"other mesh or key": " (give both the same mesh, and the same key or none)"}


class Chronicle:
    """The log and the events of one node."""

    def __init__(self, events: EventHub) -> None:
        self._events = events
        self._rejected: Counter[str] = Counter()  # by reason

    # --- how it runs ------------------------------------------------------------------

    def started(
        self,
        instance_id: str,
        node_id: str,
        mesh: str,
        addresses: tuple[str, ...],
        http: str | None,
    ) -> None:
        log.info(
            "node %s (%s) of mesh %r listens at %s, HTTP %s",
            instance_id,
            node_id[:16],
            mesh,
            ", ".join(addresses),
            http or "off",
        )

    def is_open(self, mesh: str) -> None:
        log.warning(
            "mesh %r is open: whoever reaches this network can join it and read along; "
            "give every node the same key to close it",
            mesh,
        )

    def http_is_open(self) -> None:
        log.warning(
            "HTTP is open beyond this machine: whoever reaches its address can register, read "
            "and send; give a token to close it"
        )

    def alone(
        self, tried: tuple[str, ...], addresses: tuple[str, ...], *, mdns: bool, others: int
    ) -> None:
        """``others``: nodes of other meshes that were seen."""
        answered = "; ".join(f"{n} answered: {reason}" for reason, n in self._rejected.items())
        log.warning(
            "nobody else was met for 10 s. Listening at %s; tried %s%s; mDNS is %s%s. "
            "The page on troubleshooting asks the next questions",
            ", ".join(addresses),
            ", ".join(tried) or "nobody, since nothing was found",
            f" ({answered})" if answered else "",
            "on" if mdns else "off",
            f" and shows {others} of other meshes" if others else "",
        )

    # --- what happens -----------------------------------------------------------------

    def happened(self, event: Event) -> None:
        self._events.publish(event)
        match event:
            case MemberEvent():
                log.info("%s: %s", type(event).__name__, event.instance_id)
            case LeaderChanged(leader_id=leader, epoch=epoch, reason=reason):
                log.info("the leader is %s, epoch %s (%s)", leader, epoch, reason)
            case Elected(token=token):
                log.info("leads with authority, epoch %d", token.epoch)
            case Demoted(reason=reason):
                log.info("has no authority any more: %s", reason)
            case QuorumMissing(seen=seen, quorum=quorum):
                log.warning(
                    "leads, but sees %d of quorum %d: without authority until %d are seen",
                    seen, quorum, quorum,
                )  # fmt: skip
            case Joined(life=life):
                log.info("joined with life %s", life)
            case PeerRejected(reason=reason, address=address):
                self._rejected[reason] += 1
                advice = _ADVICE.get(reason, "")
                log.warning("%s cannot be a peer: %s%s", address, reason, advice)
            case DoubleIdentity(node_id=node_id, instance_id=instance_id, addresses=addresses):
                log.error(
                    "identity %s, or the instance id %r, is live twice: %s",
                    node_id, instance_id, ", ".join(addresses),
                )  # fmt: skip

    def message_arrived(self, envelope: Envelope) -> None:
        self._events.publish(
            MessageEvent(
                message_id=envelope.message_id,
                source=envelope.source,
                type=envelope.type,
                payload=small_json(envelope.payload),
            )
        )

    def message_moved(self, action: MessageMoved) -> None:
        """A message that was accepted here.  (Of others the core tells how they end at a
        recipient that lives here.)"""
        message_id, recipient = action.message_id, action.recipient
        match action.state:
            case "done":
                self._events.publish(MessageDone(message_id=message_id, recipient=recipient))
            case "expired":
                self._events.publish(MessageExpired(message_id=message_id, recipient=recipient))
            case "dead":
                self._events.publish(
                    MessageDead(message_id=message_id, recipient=recipient, reason=action.reason)
                )
