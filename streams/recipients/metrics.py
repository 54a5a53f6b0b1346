"""What recipients count. Labels name recipients, outcomes and columns; never a case, a code or a person."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streams.metrics import Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# `settled`: contained in a later event, or older than what is there
PUSHED = ("written", "settled", "echo", "elsewhere", "rejected", "held")
POLLED = ("changed", "unchanged", "unmapped", "unknown_case", "refused", "behind")
POLL_ENDS = ("done", "unavailable", "misconfigured")

_EVENTS = Metric(
    "silogate_recipient_events_total",
    "counter",
    ("recipient", "outcome"),
    "Events by what became of them: written, settled, echo, elsewhere, rejected, held.",
)
_APPLY = Metric("silogate_recipient_apply_seconds", "histogram", ("recipient",), "Time to apply a batch of events.")
_FIELDS = Metric(
    "silogate_mapping_field_errors_total",
    "counter",
    ("recipient", "field"),
    "Events that a recipient could not take, by the column that was to blame.",
)
_ROWS = Metric(
    "silogate_poll_rows_total",
    "counter",
    ("recipient", "outcome"),
    "Changes seen at a recipient: changed, unchanged, unmapped, unknown_case, refused, behind.",
)
_POLLS = Metric(
    "silogate_polls_total", "counter", ("recipient", "outcome"), "Polls by end: done, unavailable, misconfigured."
)
_LAST = Metric(
    "silogate_poll_last_done_timestamp_seconds", "gauge", ("recipient",), "When a recipient was last read to its end."
)
_AHEAD = Metric(
    "silogate_poll_rows_ahead",
    "gauge",
    ("recipient",),
    "Rows at a recipient that are not read because their time of change lies in its future, as of the last poll.",
)

CATALOGUE: tuple[Metric, ...] = (_EVENTS, _APPLY, _FIELDS, _ROWS, _POLLS, _LAST, _AHEAD)


class RecipientMetrics:
    """The catalogue bound to one registry. Every series of the given recipients exists from the start, at zero."""

    def __init__(self, registry: CollectorRegistry, recipients: Iterable[str] = ()) -> None:
        self._events = Counter(_EVENTS.name, _EVENTS.help, _EVENTS.labels, registry=registry)
        self._apply = Histogram(_APPLY.name, _APPLY.help, _APPLY.labels, registry=registry, buckets=_SECONDS)
        self._fields = Counter(_FIELDS.name, _FIELDS.help, _FIELDS.labels, registry=registry)
        self._rows = Counter(_ROWS.name, _ROWS.help, _ROWS.labels, registry=registry)
        self._polls = Counter(_POLLS.name, _POLLS.help, _POLLS.labels, registry=registry)
        self._last = Gauge(_LAST.name, _LAST.help, _LAST.labels, registry=registry)
        self._ahead = Gauge(_AHEAD.name, _AHEAD.help, _AHEAD.labels, registry=registry)
        for recipient in recipients:
            self._ahead.labels(recipient)
            self._apply.labels(recipient)
            for outcome in PUSHED:
                self._events.labels(recipient, outcome)
            for outcome in POLLED:
                self._rows.labels(recipient, outcome)
            for outcome in POLL_ENDS:
                self._polls.labels(recipient, outcome)

    def pushed(self, recipient: str, outcome: str, events: int) -> None:
        """Count events that ended alike."""
        if events:
            self._events.labels(recipient, outcome).inc(events)

    def applied(self, recipient: str, seconds: float) -> None:
        """Note how long one batch took."""
        self._apply.labels(recipient).observe(seconds)

    def field_error(self, recipient: str, field: str | None) -> None:
        """Count an event that failed at a column; `row` when the recipient named none."""
        self._fields.labels(recipient, field or "row").inc()

    def polled(self, recipient: str, outcome: str) -> None:
        """Count one change seen at a recipient."""
        self._rows.labels(recipient, outcome).inc()

    def rows_ahead(self, recipient: str, rows: int) -> None:
        """Note how many rows a poll left unread because their time of change has not come yet."""
        self._ahead.labels(recipient).set(rows)

    def poll_ended(self, recipient: str, outcome: str, at: float) -> None:
        """Count one poll; `at` is the time of the wall clock."""
        self._polls.labels(recipient, outcome).inc()
        if outcome == "done":
            self._last.labels(recipient).set(at)
