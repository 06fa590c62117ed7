"""Presence: an agent that stays registered as long as it is wanted.

    enter ─► register
    stay  ─► pause ─► heartbeat ──404──► register
               ▲          └── nobody answers: try again sooner
    leave ─► deregister

The mesh lists an agent that beats at least every 15 s.  Whatever goes wrong meanwhile is
in ``trouble`` and once in the log; it does not end the presence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from p2pmesh.arguments import refuse_unless_number
from p2pmesh.client import calls
from p2pmesh.client.answers import Registration
from p2pmesh.client.nodes import Flow, Nodes, Pause
from p2pmesh.errors import ConfigError, MeshError
from p2pmesh.ids import hostname as own_hostname

BEAT_INTERVAL: Final = 5.0
_BEAT_MAX: Final = 15.0  # a guest that is silent for so long is not listed any more
_RETRY_INTERVAL: Final = 1.0

_log = logging.getLogger("p2pmesh.client")


class Presence:
    """One agent in the registry.  ``status`` and ``metrics`` may be set at any time: the
    next heartbeat tells them."""

    def __init__(
        self,
        nodes: Nodes,
        instance_id: str,
        *,
        hostname: str | None,
        port: int,
        capabilities: Iterable[str],
        agent_profiles: Iterable[str],
        interval: float,
    ) -> None:
        refuse_unless_number("interval", interval)
        if not 0 < interval < _BEAT_MAX:
            raise ConfigError(f"interval {interval}: give seconds, above 0 and below {_BEAT_MAX:g}")
        self.instance_id = instance_id
        self.status = "healthy"
        self.metrics: Mapping[str, Any] | None = None
        self.leader_id: str | None = None  # by the last answer
        self.trouble: Exception | None = None  # why the last heartbeat did not get through
        self._nodes = nodes
        self._interval = interval
        self._register = calls.register(
            instance_id,
            own_hostname() if hostname is None else hostname,
            port,
            tuple(capabilities),
            tuple(agent_profiles),
        )

    def enter(self) -> Flow[Registration]:
        registration = yield from self._nodes.call(self._register)
        self.leader_id = registration.leader_id
        return registration

    def stay(self) -> Flow[None]:
        """Never ends by itself."""
        while True:
            pause = self._interval if self.trouble is None else _RETRY_INTERVAL
            yield Pause(min(self._interval, pause))
            try:
                yield from self._beat()
            except (MeshError, TypeError, ValueError) as error:  # the latter: of its metrics
                if self.trouble is None:
                    _log.warning("no heartbeat of %s: %s", self.instance_id, error)
                self.trouble = error
            else:
                self.trouble = None

    def _beat(self) -> Flow[None]:
        said = calls.heartbeat(self.instance_id, self.status, self.metrics)
        heartbeat = yield from self._nodes.call(said)
        self.leader_id = heartbeat.leader_id
        if not heartbeat.acknowledged:
            yield from self.enter()

    def leave(self) -> Flow[None]:
        try:
            yield from self._nodes.call(calls.deregister(self.instance_id))
        except MeshError as error:
            _log.warning("%s is not deregistered, and will fail: %s", self.instance_id, error)
