"""The ledger while its database or its audit trail is away: an answer is never lost, and nothing counts unrecorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from gateway.audit import Audit
from gateway.dev.addresses import Database, Servers
from streams.outages import DATABASE_ERRORS
from streams.sinks import CommitPoint
from tests.effects import (
    ControlledSink,
    audit_rows,
    auditing,
    ledger,
    lose,
    open_pool,
    plan_confirmation,
    running,
    settled,
    states,
    until,
)

ONE = ("effect.attempt", "done", 1)


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def test_an_outage_of_the_database_does_not_lose_an_answer(
    pool: asyncpg.Pool, audit: Audit, servers: Servers
) -> None:
    """When the database goes away as the provider answers, the answer is kept until it is back: done, not unknown."""

    async def during_outage(request: bytes, commit_point: CommitPoint) -> str:
        answer = await sink.act(request, commit_point)
        group.create_task(_outage(servers, database, 1.0))
        await asyncio.sleep(0.2)
        return answer

    sink = ControlledSink(during_outage)
    database = await pool.fetchval("select current_database()")
    await plan_confirmation(pool)
    async with asyncio.TaskGroup() as group, running(ledger(pool, sink, audit, lease_s=5.0)):
        await _settled_after_outage(pool, "done")
    assert len(sink.done) == 1
    assert await audit_rows(pool) == [ONE]


async def test_an_outage_at_the_commit_point_sends_nothing(pool: asyncpg.Pool, audit: Audit, servers: Servers) -> None:
    """When the commit point cannot be written, the act does not happen now, and happens once later."""

    async def without_database(request: bytes, commit_point: CommitPoint) -> str:
        group.create_task(_outage(servers, database, 1.0))
        await asyncio.sleep(0.2)
        return await sink.act(request, commit_point)

    sink = ControlledSink(without_database)
    database = await pool.fetchval("select current_database()")
    await plan_confirmation(pool)
    async with asyncio.TaskGroup() as group, running(ledger(pool, sink, audit, lease_s=5.0)):
        await _settled_after_outage(pool, "done")
    assert (len(sink.tried), len(sink.done)) == (2, 1)


async def _outage(servers: Servers, database: str, seconds: float) -> None:
    """Cut every connection to the test's database and refuse new ones for a while."""
    admin = await asyncpg.connect(servers.postgres_url)
    try:
        await admin.execute(f'alter database "{database}" with connection limit 0 allow_connections false')
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", database)
        await asyncio.sleep(seconds)
    finally:
        await admin.execute(f'alter database "{database}" with connection limit -1 allow_connections true')
        await admin.close()


async def _settled_after_outage(pool: asyncpg.Pool, state: str) -> None:
    async def reached() -> bool:
        with suppress(*DATABASE_ERRORS):
            return await states(pool) == [state]
        return False

    await until(reached)


class FaultyAudit:
    """An audit trail that fails a number of times: before its commit, or after it, when only the answer is lost."""

    def __init__(self, trail: Audit, *, failures: int, committed: bool) -> None:
        self._trail = trail
        self._failures = failures
        self._committed = committed

    async def record(self, **row: Any) -> None:
        self._failures -= 1
        if self._failures >= 0 and not self._committed:
            raise ConnectionError
        await self._trail.record(**row)
        if self._failures >= 0:
            raise ConnectionError


@pytest.mark.parametrize("committed", [False, True])
async def test_nothing_counts_before_its_audit_row(pool: asyncpg.Pool, audit: Audit, committed: bool) -> None:
    """The effect is settled only once its audit row is there; there is one, also when its commit's answer was lost."""
    sink = ControlledSink()
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, FaultyAudit(audit, failures=1, committed=committed))):
        await settled(pool, "done")
    assert len(sink.done) == 1
    assert await audit_rows(pool) == [ONE]


class StuckAudit:
    """An audit trail that never answers; it may have written the row before."""

    def __init__(self, trail: Audit | None) -> None:
        self._trail = trail
        self.there = asyncio.Event()

    async def record(self, **row: Any) -> None:
        if self._trail is not None:
            await self._trail.record(**row)
        self.there.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("written", [False, True])
async def test_an_answer_that_was_written_down_is_finished_by_another(
    pool: asyncpg.Pool, audit: Audit, written: bool
) -> None:
    """A worker lost between answer, audit row and effect leaves what another needs: done, once, with one audit row."""
    sink = ControlledSink()
    stuck = StuckAudit(audit if written else None)
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, stuck)) as task:
        await stuck.there.wait()
        await lose(task)
    assert await states(pool) == ["intent"]
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done")
    assert (len(sink.done), await audit_rows(pool)) == (1, [ONE])


@pytest.mark.parametrize("when", ["before", "between"])
async def test_nothing_acts_while_the_gateway_is_shut(pool: asyncpg.Pool, audit: Audit, when: str) -> None:
    """Shut, even between claim and attempt, no sink is called and the worker goes on; opened, the effect is done."""
    shut = "insert into gateway.shut (reason, detail) values ('restored', '{}')"
    sink = ControlledSink()
    await plan_confirmation(pool)
    if when == "before":
        await pool.execute(shut)
    else:
        await pool.execute(
            f"create function shut_now() returns trigger language plpgsql as $$ begin {shut}; return null; end $$;"
            " create trigger shut_now after update of state on effect for each row"
            " when (old.state = 'planned' and new.state = 'intent') execute function shut_now()"
        )
    async with running(ledger(pool, sink, audit)):
        await until(lambda: pool.fetchval("select exists (select from shut)"))
        await asyncio.sleep(1.5)  # longer than a lease
        assert sink.tried == []
        await pool.execute("delete from shut")
        await settled(pool, "done")
    assert len(sink.done) == 1
