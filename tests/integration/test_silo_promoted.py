"""A load on a primary that was promoted since the last one: its positions begin anew, and the cache goes with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from cache.coherence import Invalidator
from cache.definition import IndexTag
from cache.group import Answer, Group
from cache.link import RedisLink
from cache.metrics import CacheMetrics
from cache.seal import KeyRing
from cache.silo import Silo
from cache.store import Store
from gateway.dev.addresses import Database
from tests.integration.cache_world import lookup, rows, until
from tests.silos import Bench, pool_of, three_lamps

LAMPS = lookup(
    "lamps-by-postcode",
    silo="lamps",
    sql="select uprn::text as uprn from lamp where postcode = :postcode order by uprn",
    columns=("uprn",),
    tags={"lamp": IndexTag("postcode", ("postcode",))},
)


@pytest.fixture
async def bench(gateway_database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    """Three lamps, loaded once."""
    async with pool_of(gateway_database) as pool:
        yield await three_lamps(pool, tmp_path)


@asynccontextmanager
async def _cached(bench: Bench, database: Database, redis_url: str) -> AsyncIterator[Group]:
    """The lookup with everything behind it at work."""
    metrics = CacheMetrics(CollectorRegistry())
    link = RedisLink(redis_url, metrics)
    store = Store("lamps", bench.tagger.definition, link, metrics)
    silo = Silo("lamps", database.url, [], bench.tagger, metrics, max_age_s=None, rejects_tolerated=False)
    invalidator = Invalidator("lamps", database.url, store, metrics, poll_s=0.02)
    tasks = [asyncio.create_task(part.run()) for part in (store, silo, invalidator)]
    try:
        yield Group(LAMPS, silo, store, KeyRing({1: b"k" * 32}, 1), metrics)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await link.close()


async def _hit(group: Group, epoch: str) -> Answer:
    """Ask until the answer comes out of Redis under that epoch."""
    answers: list[Answer] = []

    async def hit() -> bool:
        answers[:] = [await group.answer({"postcode": "BN59 1AB"}, timeout_s=5)]
        return answers[0].source == "hit" and answers[0].as_of.epoch == epoch

    await until(hit)
    return answers[0]


async def _progress(bench: Bench) -> asyncpg.Record:
    return (await bench.fetch("select epoch, seq, server from progress"))[0]


async def _seem_promoted(bench: Bench) -> None:
    """The last commit was another timeline's; the same silo on a promoted replica is found like this."""
    server: Any = (await _progress(bench))["server"]
    identifier, _, timeline = server.partition("/")
    before = f"{identifier}/{int(timeline, 16) - 1:08X}"
    await bench.fetch("update progress set server = $1 returning 1", before)


async def test_the_first_change_on_a_promoted_primary_begins_an_epoch(
    bench: Bench, gateway_database: Database, redis_url: str
) -> None:
    """In the commit that gives the first number anew; Redis and its answers follow, and the next load goes on in it."""
    first = await _progress(bench)
    async with _cached(bench, gateway_database, redis_url) as group:
        # the invalidator begins one of its own with an empty Redis
        await until(lambda: _epoch_is_not(bench, first["epoch"]))
        followed = await _progress(bench)
        assert [row["uprn"] for row in rows(await _hit(group, followed["epoch"]))] == ["2", "3"]
        await _seem_promoted(bench)
        bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,", "4,BN59 1AB,")
        promoted = await bench.load()
        assert promoted.epoch != followed["epoch"]
        assert promoted.seq == followed["seq"] + 1
        after = await _progress(bench)
        assert tuple(after.values()) == (promoted.epoch, promoted.seq, first["server"])
        answer = await _hit(group, promoted.epoch)
        assert [row["uprn"] for row in rows(answer)] == ["2", "3", "4"]
        assert answer.as_of.seq == promoted.seq
        bench.write("1,BN59 1AA,", "2,BN59 1AB,Exampleson", "4,BN59 1AB,")
        last = await bench.load()
        assert (last.epoch, last.seq) == (promoted.epoch, promoted.seq + 1)
        await until(lambda: _shows(group, ["2", "4"]))


async def test_a_load_that_changes_nothing_on_a_promoted_primary_leaves_that_to_the_next(bench: Bench) -> None:
    """It gives no number, so it need not end what the cache has; the next one that gives one does."""
    await _seem_promoted(bench)
    before = await _progress(bench)
    await bench.load()
    assert await _progress(bench) == before
    bench.write("1,BN59 1AG,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
    await bench.load()
    after = await _progress(bench)
    assert after["epoch"] != before["epoch"]
    assert after["server"] != before["server"]


async def _epoch_is_not(bench: Bench, epoch: str) -> bool:
    found: str = (await _progress(bench))["epoch"]
    return found != epoch


async def _shows(group: Group, lamps: list[str]) -> bool:
    answer = await group.answer({"postcode": "BN59 1AB"}, timeout_s=5)
    return [row["uprn"] for row in rows(answer)] == lamps
