"""The edge's metrics: one catalogue, and the objects that count. Labels never hold ids, names of people or paths."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache.metrics import Metric
from cache.tally import Count, Spread, Spreads, Tally

UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"})
_LAG_S = 0.25
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


CATALOGUE: tuple[Metric, ...] = (
    Metric(
        "silogate_http_requests_total",
        "counter",
        ("route", "method", "code"),
        "Answers by route template, method and status code.",
    ),
    Metric(
        "silogate_http_request_duration_seconds",
        "histogram",
        ("route",),
        "Time from the first byte of a request to its answer, streams excepted.",
    ),
    Metric("silogate_http_in_flight", "gauge", (), "Requests being answered now, streams excepted."),
    Metric("silogate_http_shed_total", "counter", ("reason",), "Requests refused because too much was in flight."),
    Metric("silogate_http_rate_limited_total", "counter", ("rate_class",), "Requests refused by a key's rate limit."),
    Metric("silogate_http_problems_total", "counter", ("code",), "Refusals by problem code."),
    Metric("silogate_auth_failures_total", "counter", ("reason",), "Requests without a valid API key."),
    Metric("silogate_event_loop_lag_seconds", "gauge", (), "How late the event loop ran its last timer."),
    Metric("silogate_dependency_up", "gauge", ("dependency",), "1 if the dependency answered its last probe."),
    Metric("silogate_audit_rows_total", "counter", (), "Audit rows committed."),
    Metric("silogate_audit_failures_total", "counter", (), "Audit rows that could not be committed."),
    Metric("silogate_audit_queue", "gauge", (), "Audit rows waiting for their commit."),
    Metric("silogate_audit_commit_seconds", "histogram", (), "Time to commit one group of audit rows."),
    Metric("silogate_live_streams", "gauge", (), "Open event streams."),
    Metric("silogate_live_events_total", "counter", (), "Case events handed to open streams."),
    Metric("silogate_live_cut_total", "counter", ("reason",), "Event streams ended by the gateway."),
    Metric("silogate_live_tail_up", "gauge", (), "1 while the tail of the case topic is being read."),
    Metric("silogate_live_undecodable_total", "counter", (), "Records of the case topic that could not be read."),
    Metric("silogate_live_type_streams", "gauge", (), "Open event streams over a whole type of case."),
    Metric("silogate_live_resets_total", "counter", (), "Streams over a type told to begin anew."),
    Metric("silogate_gateway_shut", "gauge", (), "1 while nothing may be written until the gateway is recovered."),
    Metric("silogate_build_info", "gauge", ("version",), "Always 1; the label names the running release."),
)


class EdgeMetrics:
    """The edge's metrics in one registry. Children are made once and kept: finding one costs more than counting."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        self.registry = registry
        self._requests = Tally(*_named("silogate_http_requests_total"), registry)
        self._durations = Spreads(*_named("silogate_http_request_duration_seconds"), registry, _SECONDS)
        self.in_flight = Gauge(*_named("silogate_http_in_flight"), registry=registry)
        self.shed = Counter(*_named("silogate_http_shed_total"), registry=registry)
        self.rate_limited = Counter(*_named("silogate_http_rate_limited_total"), registry=registry)
        self.problems = Counter(*_named("silogate_http_problems_total"), registry=registry)
        self.auth_failures = Counter(*_named("silogate_auth_failures_total"), registry=registry)
        self.loop_lag = Gauge(*_named("silogate_event_loop_lag_seconds"), registry=registry)
        self.dependency_up = Gauge(*_named("silogate_dependency_up"), registry=registry)
        self.audit_rows = Counter(*_named("silogate_audit_rows_total"), registry=registry)
        self.audit_failures = Counter(*_named("silogate_audit_failures_total"), registry=registry)
        self.audit_queue = Gauge(*_named("silogate_audit_queue"), registry=registry)
        self.audit_commit = Histogram(*_named("silogate_audit_commit_seconds"), registry=registry, buckets=_SECONDS)
        self.live_streams = Gauge(*_named("silogate_live_streams"), registry=registry)
        self.live_events = Counter(*_named("silogate_live_events_total"), registry=registry)
        self.live_cut = Counter(*_named("silogate_live_cut_total"), registry=registry)
        self.live_tail_up = Gauge(*_named("silogate_live_tail_up"), registry=registry)
        self.live_undecodable = Counter(*_named("silogate_live_undecodable_total"), registry=registry)
        self.live_type_streams = Gauge(*_named("silogate_live_type_streams"), registry=registry)
        self.live_resets = Counter(*_named("silogate_live_resets_total"), registry=registry)
        self.gateway_shut = Gauge(*_named("silogate_gateway_shut"), registry=registry)
        Gauge(*_named("silogate_build_info"), registry=registry).labels(version).set(1)
        self._answers: dict[tuple[str, str, int], Count] = {}
        self._times: dict[str, Spread] = {}

    def answered(self, route: str, method: str, status: int, seconds: float | None) -> None:
        """Counts one answer. `route` is a template or UNMATCHED; `seconds` is None for a stream."""
        key = (route, method, status)
        answers = self._answers.get(key)
        if answers is None:
            # an invented method must not make a series of its own
            known = method if method in _METHODS else "other"
            answers = self._requests.labels(route, known, str(status))
            if known != "other":
                self._answers[key] = answers
        answers.inc()
        if seconds is None:
            return
        times = self._times.get(route)
        if times is None:
            times = self._times[route] = self._durations.labels(route)
        times.observe(seconds)

    async def watch_loop(self) -> None:
        """Measures the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_S
            await asyncio.sleep(_LAG_S)
            self.loop_lag.set(max(0.0, loop.time() - due))


def _named(name: str) -> tuple[str, str, tuple[str, ...]]:
    metric = next(metric for metric in CATALOGUE if metric.name == name)
    return metric.name, metric.help, metric.labels
