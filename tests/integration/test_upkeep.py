"""What is kept only for a time goes, by one worker at a time; what must stay, stays."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from streams.metrics import StreamMetrics
from streams.upkeep import Upkeep, UpkeepLimits
from tests.integration.tcp_gate import Gate

_EFFECT = "00000000-0000-0000-0000-00000000000e"
_CASE = "00000000-0000-0000-0000-00000000000c"
# $1: how old, in days; $2: how many
ROWS = {
    "idempotency": """
        insert into idempotency (api_key, key, request_sha256, case_id, created_at)
        select 'key-form', 'post ' || $1::int || ' ' || n, '', gen_random_uuid(), now() - make_interval(days => $1)
        from generate_series(1, $2::int) as n""",
    "inbox": """
        insert into inbox (source, message_id, outcome, seen_at)
        select 'street-team', $1::int || ' ' || n, 'taken', now() - make_interval(days => $1)
        from generate_series(1, $2::int) as n""",
    "stray_record": """
        insert into stray_record (consumer_group, topic, partition, record_offset, record_sha256, headers, stage,
                                  reason, seen_at)
        select 'recipient.street-team', 'cases.changes.v1', $1, n, '', '[]', 'decode', 'not_a_record',
               now() - make_interval(days => $1)
        from generate_series(1, $2::int) as n""",
    "effect_check": f"""
        insert into effect_check (effect_id, n, at, how, answer)
        select '{_EFFECT}', $1::int * 10000 + n, now() - make_interval(days => $1), 'find', 'not_found'
        from generate_series(1, $2::int) as n""",
}
KEPT_DAYS = {"idempotency": 7, "inbox": 90, "stray_record": 90, "effect_check": 365}


@pytest_asyncio.fixture
async def pool(gateway_database: Any) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        yield pool


@pytest.fixture
def metrics() -> StreamMetrics:
    return StreamMetrics(CollectorRegistry())


async def effect(pool: asyncpg.Pool) -> None:
    """An effect of two years ago, with its case."""
    await pool.execute(
        "insert into cases"
        " (id, reference, type, version, status, document, sealed, submitted_by, created_at, updated_at)"
        " values ($1, 'RAP-1', 't', 1, 'open', '{}', '', 'key-form', now(), now())",
        _CASE,
    )
    columns = await pool.fetch(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = 'gateway' and table_name = 'effect' and is_nullable = 'NO' and column_default is null"
    )
    values = {"uuid": f"'{_CASE}'", "integer": "1", "bigint": "1", "bytea": "''", "text": "'done'", "jsonb": "'{}'"}
    given = {row["column_name"]: values.get(row["data_type"], "now() - interval '2 years'") for row in columns} | {
        "effect_id": f"'{_EFFECT}'",
        "state": "'done'",
    }
    await pool.execute(f"insert into effect ({', '.join(given)}) values ({', '.join(given.values())})")


async def test_what_is_old_goes_and_what_is_not_stays(pool: asyncpg.Pool, metrics: StreamMetrics) -> None:
    """Of each table the rows past their time go, however many; younger ones and the effects themselves stay."""
    await effect(pool)
    for table, insert in ROWS.items():
        await pool.execute(insert, KEPT_DAYS[table] - 1, 3)
        await pool.execute(insert, KEPT_DAYS[table] + 1, 2100 if table == "inbox" else 2)
    removed = await Upkeep(pool, metrics).once(asyncio.Event())
    assert removed == {"idempotency": 2, "inbox": 2100, "stray_record": 2, "dropped_event": 0, "effect_check": 2}
    assert metrics.upkeep_removed.labels("inbox")._value.get() == 2100
    for table in ROWS:
        assert await pool.fetchval(f"select count(*) from {table}") == 3, table
    assert await pool.fetchval("select count(*) from effect") == 1


async def test_what_a_person_dropped_is_kept_for_a_year(pool: asyncpg.Pool, metrics: StreamMetrics) -> None:
    """A dropped event can be looked up for a year."""
    columns = await pool.fetch(
        "select column_name, data_type from information_schema.columns"
        " where table_schema = 'gateway' and table_name = 'dropped_event' and is_nullable = 'NO'"
    )
    values = {"uuid": f"'{_CASE}'", "integer": "1", "bytea": "''", "text": "'x'", "jsonb": "'{}'"}
    for position, days in enumerate((364, 366)):
        given = {row["column_name"]: values.get(row["data_type"], "1") for row in columns} | {
            "position": str(position),
            "dropped_at": f"now() - interval '{days} days'",
        }
        given |= {row["column_name"]: "now()" for row in columns if row["column_name"].endswith("_at")} | {
            "dropped_at": f"now() - interval '{days} days'"
        }
        await pool.execute(f"insert into dropped_event ({', '.join(given)}) values ({', '.join(given.values())})")
    removed = await Upkeep(pool, metrics).once(asyncio.Event())
    assert removed is not None
    assert removed["dropped_event"] == 1
    assert await pool.fetchval("select position from dropped_event") == 0


async def test_one_worker_at_a_time(pool: asyncpg.Pool, metrics: StreamMetrics) -> None:
    """While one is at it, another leaves it alone; afterwards it may."""
    async with pool.acquire() as other:
        await other.execute("select pg_advisory_lock($1::int, 0)", 0x0517_0003)
        assert await Upkeep(pool, metrics).once(asyncio.Event()) is None
    assert await Upkeep(pool, metrics).once(asyncio.Event()) is not None
    assert await Upkeep(pool, metrics).once(asyncio.Event()) is not None


async def test_a_database_that_is_away_is_asked_again(gateway_database: Any, metrics: StreamMetrics) -> None:
    """It waits an outage out, and removes afterwards what has become old."""
    gate = Gate(gateway_database.url)
    await gate.open()
    limits = UpkeepLimits(every_s=0.05, statement_timeout_s=5)
    async with asyncpg.create_pool(
        gate.url, min_size=0, max_size=2, server_settings={"search_path": "gateway"}
    ) as pool:
        await gate.shut()
        stop = asyncio.Event()
        running = asyncio.create_task(Upkeep(pool, metrics, limits).run(stop))
        await asyncio.sleep(0.2)
        assert not running.done()
        await gate.open()
        async with asyncio.timeout(20):
            await pool.execute(ROWS["inbox"], 91, 5)
            while await pool.fetchval("select count(*) from inbox"):
                await asyncio.sleep(0.02)
        stop.set()
        await running
    await gate.shut()
