"""Lookups over the gateway's own cases see what was committed a moment ago, or say that they cannot tell."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from cache.cases import UncachedLookup
from cache.definition import InvalidLookup
from cache.metrics import CacheMetrics
from cache.values import VALUE_TYPES
from gateway.dev.addresses import Database
from tests.integration.cache_world import lookup
from tests.integration.tcp_gate import Gate

REPORTED = lookup(
    "asset-already-reported",
    silo="cases",
    parameters={"uprn": VALUE_TYPES["uprn"]},
    sql="""
        select reference, status from cases
        where document @> jsonb_build_object('asset', jsonb_build_object('uprn', (:uprn)::text)) and status = 'open'
        order by created_at desc""",
    columns=("reference", "status"),
    tags={},
    ttl_s=0,
    soft_ttl_s=0,
    negative_ttl_s=0,
    stale_for_s=0,
)


@asynccontextmanager
async def _pool(url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await asyncpg.create_pool(url, min_size=0, max_size=4, server_settings={"search_path": "gateway"})
    try:
        yield pool
    finally:
        pool.terminate()


async def _report(pool: asyncpg.Pool, uprn: str, reference: str) -> None:
    await pool.execute(
        "insert into cases (id, reference, type, version, status, document, sealed, submitted_by) "
        "values ($1, $2, 'public-toilet-problem', 1, 'open', $3, '', 'form')",
        uuid.uuid4(), reference, json.dumps({"asset": {"uprn": uprn}}),
    )  # fmt: skip


async def test_a_case_is_seen_as_soon_as_it_is_committed(gateway_database: Database) -> None:
    """Whoever asks next sees it, whoever submitted it; nothing is kept in between."""
    metrics = CacheMetrics(CollectorRegistry())
    async with _pool(gateway_database.url) as pool:
        reported = UncachedLookup(REPORTED, pool, metrics)
        before = await reported.answer({"uprn": 60001449}, timeout_s=5)
        await _report(pool, "60001449", "RAP-7KQ2-93XD")
        after = await reported.answer({"uprn": 60001449}, timeout_s=5)
        other = await reported.answer({"uprn": 60002210}, timeout_s=5)
    assert (before.verdict, before.results) == ("not_found", b"[]")
    assert (after.verdict, json.loads(after.results)) == ("found", [{"reference": "RAP-7KQ2-93XD", "status": "open"}])
    assert other.verdict == "not_found"
    assert after.as_of.token == "cases:live:0"
    assert after.etag != before.etag
    assert after.staleness_bound_ms is not None
    assert after.source == "bypass"


async def test_when_the_cases_cannot_be_read_nobody_can_tell(gateway_database: Database) -> None:
    """A primary that is away or hangs gives `cannot_tell` within the deadline, never `not_found`."""
    gate = Gate(gateway_database.url)
    await gate.open()
    loop = asyncio.get_running_loop()
    async with _pool(gate.url) as pool:
        reported = UncachedLookup(REPORTED, pool, CacheMetrics(CollectorRegistry()))
        assert (await reported.answer({"uprn": 1}, timeout_s=5)).verdict == "not_found"
        gate.hold()
        started = loop.time()
        hung = await reported.answer({"uprn": 1}, timeout_s=0.3)
        assert loop.time() - started < 1.5
        await gate.open()
        await gate.shut()
        away = await reported.answer({"uprn": 1}, timeout_s=0.5)
        assert [answer.verdict for answer in (hung, away)] == ["cannot_tell"] * 2
        assert {answer.reason for answer in (hung, away)} == {"cases_unreadable"}
        await gate.open()
        assert (await reported.answer({"uprn": 1}, timeout_s=5)).verdict == "not_found"
    await gate.shut()


async def test_a_lookup_over_cases_cannot_write(gateway_database: Database) -> None:
    """It reads in a read-only transaction, though the gateway's own user may write."""
    writing = lookup(
        "writing", silo="cases", parameters={"n": VALUE_TYPES["integer"]}, columns=(), tags={},
        sql="select nextval('gateway.outbox_id_seq') + :n as n",
    )  # fmt: skip
    async with _pool(gateway_database.url) as pool:
        answer = await UncachedLookup(writing, pool, CacheMetrics(CollectorRegistry())).answer({"n": 1}, timeout_s=5)
        assert answer.verdict == "cannot_tell"
        assert await pool.fetchval("select 1") == 1


async def test_only_lookups_over_cases_are_uncached(gateway_database: Database) -> None:
    """A lookup of a silo is not answered by the gateway's own database."""
    async with _pool(gateway_database.url) as pool:
        with pytest.raises(InvalidLookup):
            UncachedLookup(lookup("addresses"), pool, CacheMetrics(CollectorRegistry()))
