"""The schema on a real Postgres: how a database that holds rows is brought up to date, and what it refuses itself."""

import secrets
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from gateway.audit import verify
from streams.sql.migrate import migrate, migrations
from tests import effects

REPORTED = """
insert into cases (id, reference, type, version, status, document, sealed, submitted_by)
values ($1, $2, 'public-toilet-problem', 1, 'open', '{}', '', 'key-form')
"""


@pytest_asyncio.fixture
async def connection(database: Any) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(database.url, server_settings={"search_path": "gateway"})
    yield opened
    await opened.close()


async def _case(connection: asyncpg.Connection) -> UUID:
    case_id = uuid4()
    await connection.execute(REPORTED, case_id, f"RAP-{secrets.token_hex(4)}")
    return case_id


async def _effect(connection: asyncpg.Connection, sink: str, attempt: int) -> UUID:
    effect_id = uuid4()
    await connection.execute(
        "insert into effect (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, attempt,"
        " correlation_id) values ($1, $2, $3, 1, 'confirmation', 'once', 'intent', '', $4, 'c')",
        effect_id,
        sink,
        await _case(connection),
        attempt,
    )
    return effect_id


async def test_a_database_with_rows_is_brought_up_to_date(connection: asyncpg.Connection) -> None:
    """Rows of the first schema survive, its audit chain holds together, and a sink that has acted is no new one."""
    first, *later = migrations()
    await connection.execute(first.sql)
    await connection.execute("set search_path = gateway")
    acted = await _effect(connection, "email", 1)
    await _effect(connection, "letters", 0)
    await connection.execute("insert into partition_fence values ('g', 't', 0, 7)")
    await connection.execute("insert into parked_key values ('g', $1, 't', 0, 'data', null, 'odd', 1)", uuid4())
    await connection.execute(
        "insert into audit (chain, n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash)"
        " values ($1, 1, now(), 'a', 'b', 'c', 'd', 'e', '{}', '', '')",
        uuid4(),
    )
    for migration in (*later, *later):
        await connection.execute(migration.sql)
        await connection.execute("set search_path = gateway")
    assert await connection.fetchval("select epoch from partition_fence where next_offset is null") == 7
    assert await connection.fetchval("select count(*) from parked_key where resume_until is null") == 1
    assert await connection.fetchval("select checks from effect where effect_id = $1 and held is null", acted) == 0
    assert await connection.fetchval("select count(*) from audit where once is null") == 1
    assert [row["sink"] for row in await connection.fetch("select sink from sink_governor")] == ["email"]


async def test_a_shut_database_takes_no_change_of_a_case_and_begins_no_act(connection: asyncpg.Connection) -> None:
    """While the row is there every writer is refused with one code; a recovery passes, and without the row all do."""
    await migrate(connection)
    case_id = await _case(connection)
    effect_id = await _effect(connection, "email", 1)
    await connection.execute("insert into shut (reason, detail) values ('restored', '{}')")
    refused = (
        (REPORTED, uuid4(), "RAP-2"),
        ("update cases set version = 2 where id = $1", case_id),
        ("insert into effect_attempt (effect_id, attempt, owner, phase) values ($1, 1, $1, 'sending')", effect_id),
    )
    for statement, *values in refused:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(statement, *values)
        assert caught.value.sqlstate == "SG001"
    async with connection.transaction():
        await connection.execute("set local silogate.recovering = 'on'")
        await connection.execute("update cases set version = 2 where id = $1", case_id)
    with pytest.raises(asyncpg.PostgresError):
        await connection.execute("update cases set version = 3 where id = $1", case_id)
    await connection.execute("delete from shut")
    for statement, *values in refused:
        await connection.execute(statement, *values)


async def test_a_held_effect_is_claimed_by_nobody(gateway_database: Any) -> None:
    """What is held waits, however long it is due, and goes on when it is let go."""
    async with effects.open_pool(gateway_database.url) as pool, effects.auditing(pool) as audit:
        await effects.plan_confirmation(pool)
        await effects.plan_confirmation(pool)
        await pool.execute(
            "update effect set held = 'first_run' where effect_id = (select min(effect_id::text)::uuid from effect)"
        )
        sink = effects.ControlledSink()
        async with effects.running(effects.ledger(pool, sink, audit)):
            await effects.until(lambda: _count(pool, "state = 'done'", 1))
            assert await _count(pool, "state = 'planned' and held = 'first_run'", 1)
            await pool.execute("update effect set held = null")
            await effects.until(lambda: _count(pool, "state = 'done'", 2))


async def _count(pool: asyncpg.Pool, what: str, expected: int) -> bool:
    found: int = await pool.fetchval(f"select count(*) from effect where {what}")
    return found == expected


async def test_an_audit_row_may_carry_a_name_that_is_used_once(gateway_database: Any) -> None:
    """Two rows of one name are refused, rows without one are not, and the chain does not depend on the name."""
    async with effects.open_pool(gateway_database.url) as pool:
        async with effects.auditing(pool) as audit:
            for _ in range(2):
                await audit.record(actor="a", action="b", subject="c", outcome="d", correlation_id="e", detail={})
        named = (
            "insert into audit (chain, n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash,"
            " once) select $1, n, at, actor, action, subject, outcome, correlation_id, detail, previous, hash, 'x'"
            " from audit where n = 1 and once is null"
        )
        assert await verify(pool) == []
        await pool.execute(named, uuid4())
        with pytest.raises(asyncpg.UniqueViolationError):
            await pool.execute(named, uuid4())
