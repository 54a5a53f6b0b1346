"""What the lookups count. Labels name lookups, silos and servers; never a parameter, a key or an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache.tally import Spreads, Tally


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the catalogue; a test compares it with what /metrics serves."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


_ANSWERS = Metric(
    "silogate_lookup_answers_total",
    "counter",
    ("lookup", "source", "verdict"),
    "Answers by where they came from and what they say.",
)
_UNANSWERED = Metric(
    "silogate_lookup_unanswered_total", "counter", ("lookup",), "Questions that nothing could answer in time."
)
_SECONDS = Metric("silogate_lookup_seconds", "histogram", ("lookup", "source"), "Time to an answer.")
_BATCHED = Metric(
    "silogate_lookup_batched", "gauge", ("lookup",), "1 while its questions go in one query, 0 while one by one."
)
_BROKEN = Metric(
    "silogate_cache_broken_entries_total",
    "counter",
    ("lookup", "reason"),
    "Entries that were not served because they do not parse or do not unseal.",
)
_FILLS = Metric(
    "silogate_cache_fills_total",
    "counter",
    ("silo", "outcome"),
    "Answers offered to Redis: stored, kept (a newer one was there), refused (and by what), negative_capped, dropped.",
)
_REDIS_ERRORS = Metric(
    "silogate_redis_errors_total", "counter", ("kind",), "Failed calls of Redis; each is followed by a second without."
)
_REDIS_SKIPPED = Metric(
    "silogate_redis_skipped_total", "counter", (), "Calls of Redis not made because one had failed a moment ago."
)
_EPOCH_RETRIES = Metric(
    "silogate_cache_epoch_retries_total", "counter", ("silo",), "Reads repeated because the silo had begun a new epoch."
)
_LOADS = Metric(
    "silogate_silo_loads_total", "counter", ("silo", "outcome"), "Batch queries of a silo: answered, poisoned, failed."
)
_LOAD_SECONDS = Metric("silogate_silo_load_seconds", "histogram", ("silo",), "Time of one batch query.")
_LOAD_KEYS = Metric("silogate_silo_load_keys", "histogram", ("silo",), "Questions answered by one batch query.")
_POISONED = Metric(
    "silogate_silo_poisoned_keys_total",
    "counter",
    ("silo", "sqlstate"),
    "Questions that fail alone what would have been a batch.",
)
_WAITING = Metric("silogate_silo_waiting_loads", "gauge", ("silo",), "Questions loading or waiting to.")
_OVERLOADED = Metric(
    "silogate_silo_overloaded_total", "counter", ("silo",), "Questions refused because too many were waiting."
)
_LIMIT = Metric("silogate_silo_limit", "gauge", ("silo",), "Batches that the silo is now asked at a time at most.")
_IN_FLIGHT = Metric("silogate_silo_in_flight", "gauge", ("silo",), "Batches that the silo is being asked.")
_HEDGES = Metric(
    "silogate_silo_hedges_total", "counter", ("silo",), "Batches asked of a second server because the first was late."
)
_LAG_CHANGES = Metric(
    "silogate_silo_lag_changes", "gauge", ("silo", "server"), "Changes of the primary that the replica has not shown."
)
_LAG_SECONDS = Metric(
    "silogate_silo_lag_seconds", "gauge", ("silo", "server"), "For how long the replica has lacked one of them."
)
_SERVER_ERRORS = Metric(
    "silogate_silo_server_errors_total", "counter", ("silo", "server"), "Failed calls of a server of the silo."
)
_EJECTED = Metric(
    "silogate_silo_server_ejected", "gauge", ("silo", "server"), "1 while a replica is asked last, after errors."
)
_COMPLETE = Metric("silogate_silo_complete", "gauge", ("silo",), "1 once a load of the silo has completed.")
_SOURCE_TIME = Metric(
    "silogate_silo_source_time_seconds", "gauge", ("silo",), "Unix time of the source that was loaded last."
)
_DOUBTFUL = Metric(
    "silogate_silo_doubtful_tags", "gauge", ("silo",), "Index values and tables in doubt because of rejected rows."
)
_APPLIED = Metric(
    "silogate_invalidator_applied_total",
    "counter",
    ("silo",),
    "Rows of the change log that this process brought to Redis.",
)
_EPOCHS = Metric(
    "silogate_invalidator_epochs_total", "counter", ("silo", "reason"), "Epochs begun in Redis by this process."
)
_REFUSED = Metric(
    "silogate_invalidator_refused_total",
    "counter",
    ("silo", "script"),
    "Steps that Redis refused because another invalidator had been quicker.",
)
_INVALIDATOR_ERRORS = Metric(
    "silogate_invalidator_errors_total", "counter", ("silo", "at"), "Rounds that failed at redis or at the primary."
)
_STATE_TIME = Metric(
    "silogate_cache_state_time_seconds",
    "gauge",
    ("silo",),
    "Unix time at which what Redis knows was last seen to be the primary's newest.",
)
_BEHIND = Metric(
    "silogate_invalidator_behind",
    "gauge",
    ("silo",),
    "Rows of the change log that Redis lacked at the last look.",
)
_L1_ENTRIES = Metric("silogate_l1_entries", "gauge", ("silo",), "Answers kept in this process.")
_L1_BYTES = Metric("silogate_l1_bytes", "gauge", ("silo",), "What the answers kept in this process take, reckoned.")
_L1_DROPPED = Metric(
    "silogate_l1_dropped_total",
    "counter",
    ("silo", "reason"),
    "Answers that this process keeps no longer: touched by a change, due, evicted, or the feed was lost (and how).",
)

_SENTINEL_CHECKS = Metric(
    "silogate_sentinel_checks_total",
    "counter",
    ("silo", "layer", "within", "found"),
    "Looks whether a layer has a change: current, behind and saying so, violation, unknown.",
)
_SENTINEL_VIOLATIONS = Metric(
    "silogate_sentinel_violations_total",
    "counter",
    ("silo", "layer", "within"),
    "Times a layer answered as if it had a change that it lacks. It must stay at 0.",
)
_SENTINEL_CONVERGENCE = Metric(
    "silogate_sentinel_convergence_seconds",
    "histogram",
    ("silo", "layer"),
    "Time from a change being seen at the primary to the layer having it, as coarse as the sentinel's steps.",
)
_SENTINEL_LAG = Metric(
    "silogate_sentinel_lag", "gauge", ("silo",), "Rows of the change log that Redis lacked when the sentinel looked."
)
_SENTINEL_BLIND = Metric(
    "silogate_sentinel_blind_total", "counter", ("silo",), "Looks of the sentinel that a server did not answer."
)
_CANARY_AGE = Metric(
    "silogate_canary_age_seconds",
    "gauge",
    ("silo",),
    "How old the canary row is, read as any lookup; more than its interval and some seconds: nothing gets through.",
)

CATALOGUE: tuple[Metric, ...] = (
    _ANSWERS,
    _UNANSWERED,
    _SECONDS,
    _BATCHED,
    _BROKEN,
    _FILLS,
    _REDIS_ERRORS,
    _REDIS_SKIPPED,
    _EPOCH_RETRIES,
    _LOADS,
    _LOAD_SECONDS,
    _LOAD_KEYS,
    _POISONED,
    _WAITING,
    _OVERLOADED,
    _LIMIT,
    _IN_FLIGHT,
    _HEDGES,
    _LAG_CHANGES,
    _LAG_SECONDS,
    _SERVER_ERRORS,
    _EJECTED,
    _COMPLETE,
    _SOURCE_TIME,
    _DOUBTFUL,
    _APPLIED,
    _EPOCHS,
    _REFUSED,
    _INVALIDATOR_ERRORS,
    _STATE_TIME,
    _BEHIND,
    _L1_ENTRIES,
    _L1_BYTES,
    _L1_DROPPED,
    _SENTINEL_CHECKS,
    _SENTINEL_VIOLATIONS,
    _SENTINEL_CONVERGENCE,
    _SENTINEL_LAG,
    _SENTINEL_BLIND,
    _CANARY_AGE,
)

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200)


class CacheMetrics:
    """The catalogue bound to a registry, one attribute a metric."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(metric: Metric) -> Counter:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)

        def gauge(metric: Metric) -> Gauge:
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)

        def histogram(metric: Metric, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=buckets)

        self.answers = Tally(_ANSWERS.name, _ANSWERS.help, _ANSWERS.labels, registry)
        self.unanswered = counter(_UNANSWERED)
        self.seconds = Spreads(_SECONDS.name, _SECONDS.help, _SECONDS.labels, registry, _FAST)
        self.batched = gauge(_BATCHED)
        self.broken = counter(_BROKEN)
        self.fills = counter(_FILLS)
        self.redis_errors = counter(_REDIS_ERRORS)
        self.redis_skipped = counter(_REDIS_SKIPPED)
        self.epoch_retries = counter(_EPOCH_RETRIES)
        self.loads = counter(_LOADS)
        self.load_seconds = histogram(_LOAD_SECONDS, _FAST)
        self.load_keys = histogram(_LOAD_KEYS, _COUNTS)
        self.poisoned = counter(_POISONED)
        self.waiting = gauge(_WAITING)
        self.overloaded = counter(_OVERLOADED)
        self.limit = gauge(_LIMIT)
        self.in_flight = gauge(_IN_FLIGHT)
        self.hedges = counter(_HEDGES)
        self.lag_changes = gauge(_LAG_CHANGES)
        self.lag_seconds = gauge(_LAG_SECONDS)
        self.server_errors = counter(_SERVER_ERRORS)
        self.ejected = gauge(_EJECTED)
        self.complete = gauge(_COMPLETE)
        self.source_time = gauge(_SOURCE_TIME)
        self.doubtful = gauge(_DOUBTFUL)
        self.applied = counter(_APPLIED)
        self.epochs = counter(_EPOCHS)
        self.refused = counter(_REFUSED)
        self.invalidator_errors = counter(_INVALIDATOR_ERRORS)
        self.state_time = gauge(_STATE_TIME)
        self.behind = gauge(_BEHIND)
        self.l1_entries = gauge(_L1_ENTRIES)
        self.l1_bytes = gauge(_L1_BYTES)
        self.l1_dropped = counter(_L1_DROPPED)
        self.sentinel_checks = counter(_SENTINEL_CHECKS)
        self.sentinel_violations = counter(_SENTINEL_VIOLATIONS)
        self.sentinel_convergence = histogram(_SENTINEL_CONVERGENCE, (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0))
        self.sentinel_lag = gauge(_SENTINEL_LAG)
        self.sentinel_blind = counter(_SENTINEL_BLIND)
        self.canary_age = gauge(_CANARY_AGE)
