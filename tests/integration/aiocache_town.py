"""An application that caches with aiocache what it reads of a silo."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, cast

from cache.aiocache_backend import SiloBacking, SiloCache
from cache.link import RedisLink
from cache.recorded import RecordedSilo
from gateway.dev.addresses import Database
from tests.integration.cache_world import SILO, World, address, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
NINO = "QQ123456C"
IN_POSTCODE = "select address from address where postcode = $1 order by uprn"


def typed(decorator: Any) -> Callable[[Callable[..., Coroutine[Any, Any, Any]]], Any]:
    """One of aiocache's decorators, which bring no types."""
    return cast("Callable[[Callable[..., Coroutine[Any, Any, Any]]], Any]", decorator)


@contextlib.asynccontextmanager
async def town_world(database: Database, redis_url: str) -> AsyncIterator[World]:
    """A silo of two addresses, which Redis follows."""
    made = World(database, redis_url)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "1 Crabtree Lane"), address(2, ELM, "Elm House"))
    made.start()
    await made.settled()
    yield made
    await made.stop()


class Town:
    """An application over one silo: its reads, and how often each function really ran."""

    def __init__(self, world: World, urls: Iterable[str] = (), link: RedisLink | None = None) -> None:
        self.world = world
        self.silo = RecordedSilo(world.tagger, list(urls) or [world.database.url])
        self.backing = SiloBacking(world.store, link or world.link, world.ring, world.metrics)
        self.runs = 0

    def cache(self, **options: Any) -> SiloCache:
        return SiloCache(silo=self.backing, **options)

    def tags(self, postcode: str) -> dict[str, list[str]]:
        return {"address": [self.world.tagger.value_tag("address", "postcode", [postcode])]}

    async def read(self, postcode: str) -> list[str]:
        self.runs += 1
        rows = await self.silo.fetch(IN_POSTCODE, postcode, touched=self.tags(postcode))
        return [row["address"] for row in rows]

    async def kept(self, cache: SiloCache, key: str) -> None:
        async def there() -> bool:
            return bool(await cache.exists(key))

        await until(there)

    async def settled(self, outcome: str, wanted: float = 1) -> None:
        """Wait until what was offered has been decided on."""
        await self.world.counts(wanted, "silogate_cache_fills_total", silo=SILO, outcome=outcome)
