"""The catalogue names every metric of the package, and nothing in it can hold a person's value."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cache.metrics import CATALOGUE, CacheMetrics

LABELS = {"lookup", "source", "verdict", "silo", "outcome", "reason", "kind", "sqlstate", "server", "script", "at"}
LABELS |= {"layer", "found", "within"}


def test_the_registry_serves_the_catalogue_and_nothing_else() -> None:
    """Name, kind, help and labels of each metric are those declared."""
    registry = CollectorRegistry()
    CacheMetrics(registry)
    served = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, family.documentation)
        for family in registry.collect()
    }
    assert served == {(metric.name, metric.kind, metric.help) for metric in CATALOGUE}
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


def test_names_and_labels_keep_the_rules() -> None:
    """Names begin with `silogate_`; labels name lookups, silos and servers only."""
    for metric in CATALOGUE:
        assert metric.name.startswith("silogate_")
        assert metric.help.endswith(".")
        assert set(metric.labels) <= LABELS
