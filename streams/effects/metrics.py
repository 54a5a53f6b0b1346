"""What the ledger counts. Labels name sinks, states and outcomes; never a case, an effect or a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streams.effects.effect import Outcome
from streams.metrics import Metric

Answered = Literal["found", "not_found", "cannot_tell"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_WAITING = ("planned", "intent", "unknown")
_ANSWERS: tuple[Answered, ...] = ("found", "not_found", "cannot_tell")


_ATTEMPTS = Metric(
    "silogate_effect_attempts_total", "counter", ("sink", "outcome"), "Ended attempts at effects, by outcome."
)
_LEASES = Metric(
    "silogate_effect_leases_lost_total", "counter", ("sink",), "Effects that another worker took over before the act."
)
_STATE = Metric("silogate_effect_state", "gauge", ("sink", "state"), "Effects that are planned, intent or unknown now.")
_UNKNOWN = Metric(
    "silogate_effect_unknown_age_seconds", "gauge", ("sink",), "How long the oldest unknown effect has waited."
)
_SECONDS_TO_DONE = Metric(
    "silogate_effect_seconds", "histogram", ("sink",), "Time from the planning of an effect to its being done."
)
_HELD = Metric("silogate_effect_held", "gauge", ("sink",), "Effects that are held back now: too many, or a first run.")
_CHECKS = Metric(
    "silogate_effect_checks_total",
    "counter",
    ("sink", "answer"),
    "Questions about unknown effects, by answer: found, not_found, cannot_tell.",
)
_OUTCOMES = Metric(
    "silogate_effect_outcomes_published_total", "counter", (), "Outcomes of effects written for their topic."
)

CATALOGUE: tuple[Metric, ...] = (
    _ATTEMPTS,
    _LEASES,
    _STATE,
    _UNKNOWN,
    _SECONDS_TO_DONE,
    _HELD,
    _CHECKS,
    _OUTCOMES,
)


class EffectMetrics:
    """The catalogue bound to a registry. Every series of the given sinks exists from the start, at zero."""

    def __init__(self, registry: CollectorRegistry, sinks: Iterable[str] = ()) -> None:
        self._attempts = Counter(_ATTEMPTS.name, _ATTEMPTS.help, _ATTEMPTS.labels, registry=registry)
        self._leases = Counter(_LEASES.name, _LEASES.help, _LEASES.labels, registry=registry)
        self._state = Gauge(_STATE.name, _STATE.help, _STATE.labels, registry=registry)
        self._unknown = Gauge(_UNKNOWN.name, _UNKNOWN.help, _UNKNOWN.labels, registry=registry)
        self._to_done = Histogram(
            _SECONDS_TO_DONE.name,
            _SECONDS_TO_DONE.help,
            _SECONDS_TO_DONE.labels,
            registry=registry,
            buckets=_SECONDS,
        )
        self._held = Gauge(_HELD.name, _HELD.help, _HELD.labels, registry=registry)
        self._checks = Counter(_CHECKS.name, _CHECKS.help, _CHECKS.labels, registry=registry)
        self._outcomes = Counter(_OUTCOMES.name, _OUTCOMES.help, registry=registry)
        self._sinks = set(sinks)
        for sink in self._sinks:
            for outcome in ("done", "failed", "unknown", "not_sent"):
                self._attempts.labels(sink, outcome)
            self._leases.labels(sink)
            self._to_done.labels(sink)
            self._held.labels(sink)
            for answer in _ANSWERS:
                self._checks.labels(sink, answer)
        self.census([])

    def ended(self, sink: str, outcome: Outcome) -> None:
        """Count one ended attempt."""
        self._attempts.labels(sink, outcome).inc()

    def lease_lost(self, sink: str) -> None:
        """Count one effect that another worker took over."""
        self._leases.labels(sink).inc()

    def took(self, sink: str, seconds: float) -> None:
        """Note how long an effect took from its planning to its being done."""
        self._to_done.labels(sink).observe(max(0.0, seconds))

    def holds(self, sink: str, effects: int) -> None:
        """Set how many effects of a sink are held back."""
        self._held.labels(sink).set(effects)

    def checked(self, sink: str, answer: Answered) -> None:
        """Count one question about an unknown effect."""
        self._checks.labels(sink, answer).inc()

    def published(self, outcomes: int = 1) -> None:
        """Count outcomes written for their topic."""
        self._outcomes.inc(outcomes)

    def census(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Set the gauges from one count of the table; what no row names is zero."""
        found = {(row["sink"], row["state"]): row for row in rows}
        self._sinks.update(sink for sink, _ in found)
        for sink in self._sinks:
            for state in _WAITING:
                row = found.get((sink, state))
                self._state.labels(sink, state).set(row["effects"] if row else 0)
            oldest = found.get((sink, "unknown"))
            self._unknown.labels(sink).set(oldest["oldest_s"] if oldest else 0)
