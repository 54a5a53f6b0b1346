"""The schema of a silo: who may read it, and how it follows its declaration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.dev.addresses import Database
from streams.silos import SchemaDrift, SiloDeclaration, prepare
from tests.silos import LAMPS, TYPES, Bench, declared, pool_of, three_lamps


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with pool_of(gateway_database) as pool:
        yield pool


@pytest.fixture
async def bench(pool: asyncpg.Pool, tmp_path: Path) -> Bench:
    """Three lamps, loaded once."""
    return await three_lamps(pool, tmp_path)


async def test_the_lookup_role_may_read_and_nobody_else_may(bench: Bench) -> None:
    """The role that lookups run as reads rows, progress and rejects, writes nothing; the public reads nothing."""
    async with bench.pool.acquire() as connection:
        await connection.execute("set role silogate_lookup")
        for table in ("lamp", "progress", "change_log", "load", "reject"):
            await connection.fetch(f"select * from silo_lamps.{table}")
        for statement in ("update silo_lamps.lamp set keeper = 'x'", "create table silo_lamps.x ()"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.execute("reset role")
    public = (
        "select has_schema_privilege('public', 'silo_lamps', 'usage') or has_table_privilege('public', $1, 'select')"
    )
    assert not await bench.pool.fetchval(public, "silo_lamps.lamp")


async def test_prepare_may_be_called_by_all_at_once_and_again(pool: asyncpg.Pool) -> None:
    """Processes that start together make one schema; its epoch is made once."""
    silo = declared("claims")

    async def one() -> None:
        async with pool.acquire() as connection:
            await prepare(connection, silo, TYPES)

    await asyncio.gather(*(one() for _ in range(4)))
    epoch = await pool.fetchval("select epoch from silo_claims.progress")
    await one()
    assert await pool.fetchval("select epoch from silo_claims.progress") == epoch
    assert await pool.fetchval("select seq from silo_claims.progress") == 0
    indexes = await pool.fetch("select indexname from pg_indexes where schemaname = 'silo_claims'")
    assert {"claim_by_nino", "claim_by_uprn"} <= {row["indexname"] for row in indexes}


async def test_a_new_column_is_added_and_another_type_is_refused(bench: Bench) -> None:
    """silo.yaml may grow; what the replica holds is never reinterpreted."""
    wider = LAMPS.replace("    indexes:", "      lit: {from: Keeper, type: text}\n    indexes:")
    bench.silo = SiloDeclaration.parse(wider, Path("silo.yaml"), TYPES)
    assert (await bench.load()).changed == 1
    assert (await bench.fetch("select lit from lamp where uprn = 2"))[0]["lit"] == "Exampleson"
    for change, sentence in (
        (("keeper: {from: Keeper, type: text}", "keeper: {from: Keeper, type: boolean}"), "is text in the replica"),
        (("key: [uprn]", "key: [uprn, postcode]"), "the key of lamps.lamp is no longer uprn, postcode"),
    ):
        bench.silo = SiloDeclaration.parse(LAMPS.replace(*change), Path("silo.yaml"), TYPES)
        bench.write("1,BN59 1AA,yes", "2,BN59 1AB,no")
        with pytest.raises(SchemaDrift, match=sentence):
            await bench.load()
