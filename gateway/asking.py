"""What answers the declared lookups: each silo with its cache, built alike for `serve` and for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cache.cases import CasesReader, UncachedLookup
from cache.coherence import Invalidator
from cache.definition import LookupDefinition, TableTag
from cache.feed import L1
from cache.group import Group
from cache.joined import JoinedLookup
from cache.layers import AnswerLayer, L1Layer, Layer, RedisLayer
from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.sentinel import Sentinel
from cache.server import Server
from cache.silo import Silo
from cache.store import Store
from cache.values import VALUE_TYPES
from gateway.assembly import Assembly
from gateway.context import Asker
from gateway.settings import Settings
from streams.silos.names import CANARY


@dataclass(frozen=True, slots=True)
class SiloParts:
    """One silo in this process. Each part works while its `run` does."""

    silo: Silo
    store: Store
    invalidator: Invalidator
    l1: L1 | None

    async def run(self) -> None:
        """Read, fill, ask and follow, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for part in (self.store, self.silo, self.invalidator):
                tasks.create_task(part.run())
            if self.l1 is not None:
                tasks.create_task(self.l1.run())


@dataclass(frozen=True, slots=True)
class Asking:
    """Everything that lookups are answered by."""

    link: RedisLink
    silos: Mapping[str, SiloParts]
    groups: Mapping[str, Asker]
    cases: CasesReader
    sentinels: Sequence[Sentinel]

    async def run(self) -> None:
        """Everything that a gateway process does for lookups, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.cases.run(), name="lookups over cases")
            for name, parts in self.silos.items():
                tasks.create_task(parts.run(), name=f"silo {name}")
            for sentinel in self.sentinels:
                tasks.create_task(sentinel.run(), name="sentinel")


@asynccontextmanager
async def asking(assembly: Assembly, metrics: CacheMetrics) -> AsyncIterator[Asking]:
    """Build the parts; the caller runs them, and has stopped them when it leaves."""
    settings = assembly.settings
    link = RedisLink(settings.redis_url.get_secret_value(), metrics)
    silos = {name: _parts(assembly, name, link, metrics) for name in assembly.folders.silos}
    try:
        cases = CasesReader(assembly.pool)
        groups = _groups(assembly, silos, cases, metrics)
        sentinels = [_sentinel(assembly, parts, groups.values(), metrics) for parts in silos.values()]
        yield Asking(link, silos, groups, cases, sentinels)
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
    return SiloParts(silo, store, Invalidator(name, primary, store, metrics), _l1(settings, name, metrics))


def _l1(settings: Settings, silo: str, metrics: CacheMetrics) -> L1 | None:
    if not settings.l1_entries:
        return None
    url = settings.redis_url.get_secret_value()
    return L1(silo, url, metrics, most_entries=settings.l1_entries, most_bytes=settings.l1_bytes)


def _sentinel(assembly: Assembly, parts: SiloParts, groups: Iterable[Asker], metrics: CacheMetrics) -> Sentinel:
    """Make what watches one silo, with a connection of its own to the primary and the lookup of the canary row."""
    settings, name = assembly.settings, parts.silo.name
    primary = Server(
        settings.database_url.get_secret_value(),
        silo=name,
        schema=f"silo_{name}",
        role=settings.lookup_role,
        statement_timeout_ms=1000,
        connections=1,
    )
    plain = [group.group if isinstance(group, JoinedLookup) else group for group in groups]
    of_silo = [group for group in plain if isinstance(group, Group) and group.definition.silo == name]
    layers: list[Layer] = [RedisLayer(parts.store), AnswerLayer(parts.silo, of_silo, primary)]
    if parts.l1 is not None:
        layers.append(L1Layer(parts.l1))
    canary = Group(_canary(name), parts.silo, parts.store, assembly.ring, metrics)
    return Sentinel(name, primary, parts.store, layers, metrics, canary=canary)


def _canary(silo: str) -> LookupDefinition:
    return LookupDefinition(
        name=f"canary-of-{silo}",
        silo=silo,
        parameters={"row": VALUE_TYPES["integer"]},
        sql=f"select extract(epoch from nullif(at, '-infinity')) as at from {CANARY} where id = :row",  # noqa: S608 - a constant
        shape="one",
        columns=("at",),
        tags={CANARY: TableTag()},
        ttl_s=300,
        soft_ttl_s=300,
        negative_ttl_s=300,
        stale_for_s=0,
        max_age_s=None,
        personal=False,
    )


def _groups(
    assembly: Assembly, silos: Mapping[str, SiloParts], cases: CasesReader, metrics: CacheMetrics
) -> dict[str, Asker]:
    groups: dict[str, Asker] = {}
    for integration in assembly.integrations:
        for lookup in integration.lookups:
            definition = lookup.definition
            if lookup.over_cases:
                groups[lookup.name] = UncachedLookup(definition, cases, metrics)
                continue
            parts = silos[definition.silo]
            group = Group(definition, parts.silo, parts.store, assembly.ring, metrics, l1=parts.l1)
            groups[lookup.name] = group
            if lookup.cases is not None:
                groups[lookup.name] = JoinedLookup(group, UncachedLookup(lookup.cases, cases, metrics))
    return groups
