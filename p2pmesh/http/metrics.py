"""``/metrics``: what to watch on a node, as Prometheus reads it.

Everything is read when it is asked for; nothing is kept here but how many requests
were answered.  docs/http.md lists the names.

Does not: use the library's global registry, where the application's own metrics are.

Invariants: every label has values that this code knows, so that no traffic makes
series; nothing is told of any other member.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from p2pmesh import lag
from p2pmesh.http.backend import Backend
from p2pmesh.http.calls import Answer, Call, Media, Route

#: As ``types.Load`` has them.
_MOVED: Final = ("accepted", "refused", "stored", "done", "expired", "dead")


class Traffic:
    """The requests that were answered, by what answered them."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, int]] = Counter()

    def add(self, route: Route | None, status: int) -> None:
        """``route``: None for what reached none."""
        method, template = (route.method, route.template) if route is not None else ("", "")
        self.answered[method, template, status] += 1


class Metrics:
    def __init__(self, backend: Backend, version: str, traffic: Traffic) -> None:
        self._backend = backend
        self._version = version
        self._traffic = traffic

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET", "/metrics", self.metrics,
                summary="What to watch on this node, as Prometheus reads it.",
                answers={200: Media(CONTENT_TYPE_PLAIN_0_0_4, "Metrics in their text format.")},
            ),
        )  # fmt: skip

    async def metrics(self, call: Call) -> Answer:
        # What is the node's is read here, in its loop; the rest is read from files.
        taken = _Taken(self._families())
        text = await asyncio.to_thread(generate_latest, taken)
        return Answer(200, text, CONTENT_TYPE_PLAIN_0_0_4)

    def _families(self) -> Iterator[Metric]:
        backend = self._backend
        build = InfoMetricFamily("p2pmesh_build", "What runs here.")
        build.add_metric([], {"version": self._version})
        yield build
        node = InfoMetricFamily("p2pmesh_node", "Who this node is.")
        who = {
            "node_id": backend.node_id,
            "instance_id": backend.instance_id,
            "mesh": backend.mesh,
        }
        node.add_metric([], who)
        yield node
        yield _gauge("uptime_seconds", "Since this node started.", backend.uptime)
        yield from self._mesh()
        yield from self._messages()
        yield from self._work()

    def _mesh(self) -> Iterator[Metric]:
        backend = self._backend
        found: Counter[tuple[str, str]] = Counter(
            (member.kind, member.state) for member in backend.all_members()
        )
        members = GaugeMetricFamily(
            "p2pmesh_members", "Members as this node sees them.", labels=("kind", "state")
        )
        for kind, state in product(("node", "guest"), ("alive", "suspect", "failed", "left")):
            members.add_metric((kind, state), found[kind, state])
        yield members
        rings = Counter(link.ring for link in backend.links())
        links = GaugeMetricFamily("p2pmesh_links", "Links that are up.", labels=("kind",))
        links.add_metric(("ring",), rings[True])
        links.add_metric(("other",), rings[False])
        yield links
        leader = backend.leader_info()
        leads = leader.leader_id == backend.instance_id
        yield _gauge("is_leader", "1 where this node leads.", leads)
        has_authority = leader.authoritative
        yield _gauge("has_authority", "1 where it leads and its policy accepts it.", has_authority)
        epoch = leader.epoch or 0
        yield _gauge("leader_epoch", "The highest epoch that was claimed; 0: none.", epoch)

    def _messages(self) -> Iterator[Metric]:
        load = self._backend.load()
        moved = CounterMetricFamily(
            "p2pmesh_messages",
            "Copies of messages accepted at this node, by the states that they reached.",
            labels=("state",),
        )
        for state in _MOVED:
            moved.add_metric((state,), load.moved.get(state, 0))
        yield moved
        depths = GaugeMetricFamily(
            "p2pmesh_queue_depth", "What waits in each queue.", labels=("queue",)
        )
        for queue, depth in load.depths.items():
            depths.add_metric((queue,), depth)
        yield depths
        yield _gauge("queued_bytes", "Of all messages that are held here.", load.bytes)

    def _work(self) -> Iterator[Metric]:
        counted = CounterMetricFamily(
            "p2pmesh_counted",
            "What was dropped, refused or odd, by its reason.",
            labels=("reason",),
        )
        for reason, count in sorted(self._backend.counters().items()):
            counted.add_metric((reason,), count)
        yield counted
        requests = CounterMetricFamily(
            "p2pmesh_http_requests",
            "Requests that were answered; no route: refused before one was found.",
            labels=("method", "route", "status"),
        )
        for (method, route, status), count in sorted(self._traffic.answered.items()):
            requests.add_metric((method, route, str(status)), count)
        yield requests
        yield _gauge("tasks", "Of the event loop, the application's included.", _tasks())
        loop_lag = self._backend.loop_lag()
        bounds = (*map(str, lag.BOUNDS), "+Inf")
        yield HistogramMetricFamily(
            "p2pmesh_event_loop_lag_seconds",
            "How late the event loop ran what was due.",
            buckets=list(zip(bounds, accumulate(loop_lag.counts), strict=True)),
            sum_value=loop_lag.total,
        )


class _Taken(Collector):
    """What was read of the node, and what the system says of the process."""

    _process: Final = ProcessCollector(registry=None)

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from self._process.collect()


def _tasks() -> int:
    return len(asyncio.all_tasks())


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"p2pmesh_{name}", meaning, value=value)
