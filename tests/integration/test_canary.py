"""The canary row: it changes as every row does, in turn among workers, and never in the way of a load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from gateway.dev.addresses import Database
from streams.metrics import StreamMetrics
from streams.silos.canary import Canary
from tests.silos import Bench, pool_of, three_lamps

_LOCK = "silogate load lamps"


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with pool_of(gateway_database) as pool:
        yield pool


@pytest.fixture
async def bench(pool: asyncpg.Pool, tmp_path: Path) -> Bench:
    """Three lamps, loaded once."""
    return await three_lamps(pool, tmp_path)


def canary_of(bench: Bench, *, every_s: float = 0.0) -> Canary:
    metrics = StreamMetrics(CollectorRegistry())
    return Canary(bench.pool, {bench.silo.silo: bench.tagger}, metrics, every_s=every_s)


async def test_a_beat_is_a_change_like_any_other(bench: Bench) -> None:
    """Row, change log and progress move together, with the tag that the canary's lookup hangs on and no other."""
    before = (await bench.fetch("select * from progress"))[0]
    assert await canary_of(bench).beat("lamps", bench.tagger) == "beaten"
    after = (await bench.fetch("select * from progress"))[0]
    assert (after["epoch"], after["seq"]) == (before["epoch"], before["seq"] + 1)
    assert after["source_position"] == before["source_position"]
    assert await bench.tags_after(before["seq"]) == {bench.tagger.table_tag("silogate_canary")}
    rows = await bench.fetch("select beat, now() - at < interval '1 minute' as new from silogate_canary")
    assert [tuple(row) for row in rows] == [(1, True)]


async def test_workers_share_the_turns(bench: Bench) -> None:
    """Whoever comes before the interval is over leaves the row as it is."""
    first, second = canary_of(bench, every_s=60), canary_of(bench, every_s=60)
    assert await first.beat("lamps", bench.tagger) == "beaten"
    assert await second.beat("lamps", bench.tagger) == "early"
    assert len(await bench.fetch("select from change_log")) == 3  # the seed, the load, the beat


async def test_a_silo_that_was_never_loaded_has_no_canary(bench: Bench) -> None:
    """A definition that no load has brought yet is not made by the canary either."""
    await bench.fetch("update progress set definition = 'of an older release' returning 1")
    assert await canary_of(bench).beat("lamps", bench.tagger) == "unloaded"


async def test_the_canary_waits_for_a_load_and_a_load_for_the_canary(bench: Bench) -> None:
    """While a load holds the lock the canary keeps still; a load that comes while the canary holds it waits."""
    async with bench.pool.acquire() as other:
        await other.execute("select pg_advisory_lock(hashtextextended($1, 0))", _LOCK)
        assert await canary_of(bench).beat("lamps", bench.tagger) == "busy"
        bench.write("1,BN59 1AG,", "2,BN59 1AB,Exampleson", "3,BN59 1AB,")
        loading = asyncio.create_task(bench.load())
        await asyncio.sleep(0.2)
        assert not loading.done()
        await other.execute("select pg_advisory_unlock(hashtextextended($1, 0))", _LOCK)
        assert (await loading).changed == 1


async def test_a_database_that_is_away_costs_a_turn_only(bench: Bench) -> None:
    """The loop goes on after a failed turn, and ends when it is told to."""
    canary, stop = canary_of(bench, every_s=0.02), asyncio.Event()
    async with bench.pool.acquire() as connection:
        await connection.execute("alter table silo_lamps.silogate_canary rename to elsewhere")
    running = asyncio.create_task(canary.run(stop))
    await asyncio.sleep(0.1)
    async with bench.pool.acquire() as connection:
        await connection.execute("alter table silo_lamps.elsewhere rename to silogate_canary")
    async with asyncio.timeout(20):
        while not await bench.fetch("select from silogate_canary where beat > 0"):
            await asyncio.sleep(0.02)
        stop.set()
        await running
