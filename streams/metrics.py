"""What the relay and the consumers count. Labels name groups, outcomes and reasons; never a case or a person."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the catalogue; a test compares it with what /metrics serves."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


_PUBLISHED = Metric("silogate_outbox_published_total", "counter", (), "Events that Kafka has acknowledged.")
_FAILURES = Metric(
    "silogate_outbox_failures_total",
    "counter",
    ("reason",),
    "Rounds of the relay that failed: kafka, database, record.",
)
_PENDING = Metric("silogate_outbox_pending", "gauge", (), "Events that wait to be published, as this relay last saw.")
_AGE = Metric("silogate_outbox_oldest_age_seconds", "gauge", (), "How long the oldest unpublished event has waited.")
_BUCKETS = Metric("silogate_outbox_buckets", "gauge", (), "Outbox buckets that this relay owns.")
_EVENTS = Metric(
    "silogate_consumer_events_total",
    "counter",
    ("group", "outcome"),
    "Events by what became of them: done, retried, parked, appended to a parked case, undecodable, stray, duplicate.",
)
_LAG = Metric(
    "silogate_consumer_event_seconds", "histogram", ("group",), "Time from a case's change to its being handled."
)
_LANES = Metric("silogate_consumer_lanes", "gauge", ("group",), "Cases that this consumer holds events of.")
_BUFFERED = Metric("silogate_consumer_buffered_events", "gauge", ("group",), "Events fetched and not yet settled.")
_BYTES = Metric("silogate_consumer_buffered_bytes", "gauge", ("group",), "Bytes of the events not yet settled.")
_OLDEST = Metric(
    "silogate_consumer_oldest_unsettled_seconds", "gauge", ("group",), "How long the oldest unsettled event is held."
)
_COMMITS = Metric(
    "silogate_consumer_commits_total", "counter", ("group", "outcome"), "Commits of offsets: done, failed."
)
_FENCED = Metric("silogate_consumer_fenced_total", "counter", ("group",), "Times another process owned a partition.")
_REBALANCES = Metric("silogate_consumer_rebalances_total", "counter", ("group",), "Assignments received.")
_REBUILDS = Metric(
    "silogate_consumer_rebuilds_total", "counter", ("group", "reason"), "Times the Kafka client was built anew."
)
_UP = Metric("silogate_consumer_up", "gauge", ("group",), "1 while the consumer runs, 0 once it has stopped.")
_PARKED = Metric("silogate_parked_cases", "gauge", ("group",), "Cases that wait for a person at this group.")
_PARKED_EVENTS = Metric("silogate_parked_events", "gauge", ("group",), "Events of the cases that wait at this group.")
_MIRRORED = Metric(
    "silogate_dlq_mirrored_total",
    "counter",
    ("group", "outcome"),
    "Parked events copied to the group's dead letter topic: done, failed.",
)
_BEHIND = Metric(
    "silogate_consumer_lag_events", "gauge", ("group",), "Events of the partitions held that are not settled yet."
)
_DUPLICATES = Metric(
    "silogate_consumer_duplicates_total", "counter", ("group",), "Events dropped because their version was seen before."
)
_GAPS = Metric(
    "silogate_consumer_gaps_total",
    "counter",
    ("group", "outcome"),
    "Events that came before the one before them: filled from the gateway's database, unfilled.",
)
_POSITION = Metric(
    "silogate_consumer_position_total",
    "counter",
    ("group", "outcome"),
    "Partitions taken over, by what lay at the last position: same, recreated, expired, new.",
)
_STALLS = Metric(
    "silogate_consumer_stalls_total", "counter", ("group",), "Times a consumer with work to do had stopped moving."
)
_FUSE = Metric(
    "silogate_consumer_fuse_blown_total", "counter", ("group",), "Times a consumer stopped because most cases failed."
)
_SPILLED = Metric(
    "silogate_consumer_spilled_total", "counter", ("group",), "Cases parked to make room while they were waiting."
)
_REMOVED = Metric("silogate_upkeep_removed_total", "counter", ("table",), "Rows removed because of their age.")
_CANARY = Metric(
    "silogate_canary_beats_total",
    "counter",
    ("silo", "outcome"),
    "Turns of a silo's canary row: beaten, early (another worker did), busy (a load runs), unloaded, failed.",
)

CATALOGUE: tuple[Metric, ...] = (
    _PUBLISHED,
    _FAILURES,
    _PENDING,
    _AGE,
    _BUCKETS,
    _EVENTS,
    _LAG,
    _LANES,
    _BUFFERED,
    _BYTES,
    _OLDEST,
    _COMMITS,
    _FENCED,
    _REBALANCES,
    _REBUILDS,
    _UP,
    _PARKED,
    _PARKED_EVENTS,
    _MIRRORED,
    _BEHIND,
    _DUPLICATES,
    _GAPS,
    _POSITION,
    _STALLS,
    _FUSE,
    _SPILLED,
    _REMOVED,
    _CANARY,
)


class StreamMetrics:
    """The catalogue bound to one registry: one object for all relays and consumers of a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outbox_published = _counter(_PUBLISHED, registry)
        self.outbox_failures = _counter(_FAILURES, registry)
        self.outbox_pending = _gauge(_PENDING, registry)
        self.outbox_age = _gauge(_AGE, registry)
        self.outbox_buckets = _gauge(_BUCKETS, registry)
        self.events = _counter(_EVENTS, registry)
        self.event_seconds = Histogram(_LAG.name, _LAG.help, _LAG.labels, registry=registry, buckets=_SECONDS)
        self.lanes = _gauge(_LANES, registry)
        self.buffered_events = _gauge(_BUFFERED, registry)
        self.buffered_bytes = _gauge(_BYTES, registry)
        self.oldest_unsettled = _gauge(_OLDEST, registry)
        self.commits = _counter(_COMMITS, registry)
        self.fenced = _counter(_FENCED, registry)
        self.rebalances = _counter(_REBALANCES, registry)
        self.rebuilds = _counter(_REBUILDS, registry)
        self.up = _gauge(_UP, registry)
        self.parked_cases = _gauge(_PARKED, registry)
        self.parked_events = _gauge(_PARKED_EVENTS, registry)
        self.dlq_mirrored = _counter(_MIRRORED, registry)
        self.lag_events = _gauge(_BEHIND, registry)
        self.duplicates = _counter(_DUPLICATES, registry)
        self.gaps = _counter(_GAPS, registry)
        self.positions = _counter(_POSITION, registry)
        self.stalls = _counter(_STALLS, registry)
        self.fuse_blown = _counter(_FUSE, registry)
        self.spilled = _counter(_SPILLED, registry)
        self.upkeep_removed = _counter(_REMOVED, registry)
        self.canary_beats = _counter(_CANARY, registry)


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)
