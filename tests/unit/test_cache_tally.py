"""What the event loop counts by itself reads like what the client library counts."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from cache.tally import Spreads, Tally

_BOUNDS = (0.001, 0.0025, 1.0, 10)
_SEEN = (0.0, 0.001, 0.0011, 0.5, 1.0, 9.99, 10.0, 11.0, 3600.0)


def test_a_scrape_cannot_tell_them_apart() -> None:
    """Names, labels, buckets, sums and numbers are the same, also of a series that nothing was counted in yet."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    both: list[tuple[Any, Any]] = [
        (
            Tally("answers_total", "Answers.", ("lookup", "source"), ours),
            Spreads("seconds", "Time.", ("lookup",), ours, _BOUNDS),
        ),
        (
            Counter("answers_total", "Answers.", ("lookup", "source"), registry=theirs),
            Histogram("seconds", "Time.", ("lookup",), registry=theirs, buckets=_BOUNDS),
        ),
    ]
    for counter, histogram in both:
        for lookup in ("addresses-by-postcode", 'odd"name\\'):
            counter.labels(lookup, "hit").inc()
            counter.labels(lookup, "hit").inc()
            counter.labels(lookup, "miss")
            for value in _SEEN:
                histogram.labels(lookup).observe(value)
        histogram.labels("never-asked")
    shown = [
        [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
        for registry in (ours, theirs)
    ]
    assert shown[0] == shown[1]
