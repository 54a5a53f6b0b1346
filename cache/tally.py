"""Counters and histograms for what happens with every answer: plain numbers of one thread, read when scraped.

Those of the client library take a lock for each number that they change, which for one answer is more than finding it
in the cache costs. They are counted by the event loop alone and scraped by it, so there is nothing to lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a Tally."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class Tally(Collector):
    """A counter with labels; as the client library's, but for its locks and its moments of creation.

    Its labels are under the name that they have there, for what looks through a registry.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these values, which whoever counts often keeps."""
        return self._series.setdefault(values, Count())

    def collect(self) -> Iterator[Metric]:
        """What a scrape shows."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, count in self._series.items():
            family.add_metric(values, count.value)
        yield family


class Spread:
    """One series of a Spreads."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one in the first bucket that it fits into."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Spreads(Collector):
    """A histogram with labels, in the same way."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry, bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def labels(self, *values: str) -> Spread:
        """The series of these values, which whoever counts often keeps."""
        return self._series.setdefault(values, Spread(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """What a scrape shows."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        shown = [floatToGoString(bound) for bound in (*self._bounds, inf)]  # type: ignore[no-untyped-call] # it has no types
        for values, spread in self._series.items():
            buckets = list(zip(shown, accumulate(spread.counts), strict=True))
            family.add_metric(values, buckets, spread.sum)
        yield family
