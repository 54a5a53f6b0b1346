"""What answers the declared lookups: each silo with its cache, built alike for `serve` and for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cache.cases import UncachedLookup
from cache.coherence import Invalidator
from cache.group import Group
from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.silo import Silo
from cache.store import Store
from gateway.assembly import Assembly
from gateway.context import Asker


@dataclass(frozen=True, slots=True)
class SiloParts:
    """One silo in this process. Each part works while its `run` does."""

    silo: Silo
    store: Store
    invalidator: Invalidator

    async def run(self) -> None:
        """Read, fill, ask and follow, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for part in (self.store, self.silo, self.invalidator):
                tasks.create_task(part.run())


@dataclass(frozen=True, slots=True)
class Asking:
    """Everything that lookups are answered by."""

    link: RedisLink
    silos: Mapping[str, SiloParts]
    groups: Mapping[str, Asker]


@asynccontextmanager
async def asking(assembly: Assembly, metrics: CacheMetrics) -> AsyncIterator[Asking]:
    """Build the parts; the caller runs them, and has stopped them when it leaves."""
    settings = assembly.settings
    link = RedisLink(settings.redis_url.get_secret_value(), metrics)
    silos = {name: _parts(assembly, name, link, metrics) for name in assembly.folders.silos}
    try:
        yield Asking(link, silos, _groups(assembly, silos, metrics))
    finally:
        await link.close()


def _parts(assembly: Assembly, name: str, link: RedisLink, metrics: CacheMetrics) -> SiloParts:
    settings, declaration = assembly.settings, assembly.folders.silos[name]
    primary = settings.database_url.get_secret_value()
    silo = Silo(
        name,
        primary,
        [url.get_secret_value() for url in settings.replica_urls],
        assembly.taggers[name],
        metrics,
        max_age_s=declaration.max_age_s,
        rejects_tolerated=declaration.rejects_tolerated,
        role=settings.lookup_role,
        # a third of what a caller waits, so that another server can still answer when the first one hangs
        statement_timeout_ms=int(settings.lookup_timeout * 1000 / 3),
    )
    store = Store(name, silo.tagger.definition, link, metrics)
    return SiloParts(silo, store, Invalidator(name, primary, store, metrics))


def _groups(assembly: Assembly, silos: Mapping[str, SiloParts], metrics: CacheMetrics) -> dict[str, Asker]:
    groups: dict[str, Asker] = {}
    for integration in assembly.integrations:
        for lookup in integration.lookups:
            definition = lookup.definition
            if lookup.over_cases:
                groups[lookup.name] = UncachedLookup(definition, assembly.pool, metrics)
            else:
                parts = silos[definition.silo]
                groups[lookup.name] = Group(definition, parts.silo, parts.store, assembly.ring, metrics)
    return groups
