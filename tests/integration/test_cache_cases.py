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

from cache.cases import CasesReader, UncachedLookup
from cache.definition import InvalidLookup, LookupDefinition
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
async def _reader(url: str, **options: int) -> AsyncIterator[tuple[CasesReader, asyncpg.Pool]]:
    pool = await asyncpg.create_pool(url, min_size=0, max_size=4, server_settings={"search_path": "gateway"})
    reader = CasesReader(pool, **options)
    running = asyncio.create_task(reader.run())
    try:
        yield reader, pool
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        pool.terminate()


def _lookup_of(reader: CasesReader, definition: LookupDefinition = REPORTED) -> UncachedLookup:
    return UncachedLookup(definition, reader, CacheMetrics(CollectorRegistry()))


async def _report(pool: asyncpg.Pool, uprn: str, reference: str) -> None:
    await pool.execute(
        "insert into cases (id, reference, type, version, status, document, sealed, submitted_by) "
        "values ($1, $2, 'public-toilet-problem', 1, 'open', $3, '', 'form')",
        uuid.uuid4(), reference, json.dumps({"asset": {"uprn": uprn}}),
    )  # fmt: skip


async def test_a_case_is_seen_as_soon_as_it_is_committed(gateway_database: Database) -> None:
    """Whoever asks next sees it, whoever submitted it; nothing is kept in between."""
    async with _reader(gateway_database.url) as (reader, pool):
        reported = _lookup_of(reader)
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
    async with _reader(gate.url) as (reader, _):
        reported = _lookup_of(reader)
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
    async with _reader(gateway_database.url) as (reader, pool):
        answer = await _lookup_of(reader, writing).answer({"n": 1}, timeout_s=5)
        assert answer.verdict == "cannot_tell"
        assert await pool.fetchval("select 1") == 1


async def test_only_lookups_over_cases_are_uncached(gateway_database: Database) -> None:
    """A lookup of a silo is not answered by the gateway's own database."""
    async with _reader(gateway_database.url) as (reader, _):
        with pytest.raises(InvalidLookup):
            _lookup_of(reader, lookup("addresses"))


class _Counted:
    """A pool whose statements over cases are counted, with what each was asked."""

    def __init__(self, reader: CasesReader) -> None:
        self.asked: list[list[object]] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._read = reader._read
        reader._read = self._counted  # type: ignore[method-assign]

    async def _counted(self, sql: str, arguments: list[list[object]]) -> list[asyncpg.Record]:
        self.asked.append(arguments[0])
        rows = await self._read(sql, arguments)
        # held after the statement was run: what is committed now, it has not seen
        self.begun.set()
        await self.go_on.wait()
        return rows


async def test_what_is_asked_together_is_one_statement_and_the_same_question_goes_once(
    gateway_database: Database,
) -> None:
    """A hundred callers of thirty toilets in one turn of the loop; each has its own answer."""
    async with _reader(gateway_database.url) as (reader, pool):
        reported, counted = _lookup_of(reader), _Counted(reader)
        await _report(pool, "7", "RAP-7KQ2-93XD")
        answers = await asyncio.gather(*(reported.answer({"uprn": n % 30 + 1}, timeout_s=5) for n in range(100)))
    assert [len(asked) for asked in counted.asked] == [30]
    assert {n % 30 + 1 for n, answer in enumerate(answers) if answer.verdict == "found"} == {7}


async def test_a_question_never_joins_a_statement_that_was_sent_before_it(gateway_database: Database) -> None:
    """A case that was committed meanwhile would be missing from that answer."""
    async with _reader(gateway_database.url) as (reader, pool):
        reported, counted = _lookup_of(reader), _Counted(reader)
        counted.go_on.clear()
        first = asyncio.create_task(reported.answer({"uprn": 7}, timeout_s=5))
        await counted.begun.wait()
        await _report(pool, "7", "RAP-7KQ2-93XD")
        second = asyncio.create_task(reported.answer({"uprn": 7}, timeout_s=5))
        counted.go_on.set()
        assert [(await answer).verdict for answer in (first, second)] == ["not_found", "found"]


async def test_one_poisonous_value_fails_alone(gateway_database: Database) -> None:
    """A value that the SQL cannot take spoils the statement for nobody else."""
    dividing = lookup(
        "dividing", silo="cases", parameters={"n": VALUE_TYPES["integer"]}, columns=("n",), tags={},
        sql="select 60 / :n as n",
    )  # fmt: skip
    async with _reader(gateway_database.url) as (reader, _):
        shares = _lookup_of(reader, dividing)
        answers = await asyncio.gather(*(shares.answer({"n": n}, timeout_s=5) for n in range(-8, 9)))
    assert [answer.verdict for answer in answers] == ["found"] * 8 + ["cannot_tell"] + ["found"] * 8
    assert json.loads(answers[0].results) == [{"n": -7}]


async def test_a_caller_who_goes_leaves_the_others_their_answer(gateway_database: Database) -> None:
    """The first to ask is cancelled, the second runs out of time, the third is answered."""
    async with _reader(gateway_database.url) as (reader, _):
        reported, counted = _lookup_of(reader), _Counted(reader)
        counted.go_on.clear()
        first = asyncio.create_task(reported.answer({"uprn": 7}, timeout_s=5))
        hasty = asyncio.create_task(reported.answer({"uprn": 7}, timeout_s=0.05))
        third = asyncio.create_task(reported.answer({"uprn": 7}, timeout_s=5))
        await counted.begun.wait()
        first.cancel()
        assert (await hasty).reason == "cases_unreadable"
        counted.go_on.set()
        assert (await third).verdict == "not_found"
        assert len(counted.asked) == 1


async def test_a_column_that_is_not_declared_never_leaves(gateway_database: Database) -> None:
    """Whatever the SQL selects beside what the lookup names."""
    leaking = lookup(
        "leaking", silo="cases", parameters={"n": VALUE_TYPES["integer"]}, columns=("n",), tags={},
        sql="select :n as n, 'QQ123456C' as nino",
    )  # fmt: skip
    async with _reader(gateway_database.url) as (reader, _):
        answer = await _lookup_of(reader, leaking).answer({"n": 1}, timeout_s=5)
    assert answer.results == b'[{"n":1}]'
