"""A lookup that is slow or wrong in a batch is asked one by one, and `serve` finds that out by itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import pytest

from cache.definition import LookupDefinition, TableTag
from cache.values import VALUE_TYPES
from gateway.declarations import LookupDeclaration, ParameterDeclaration
from gateway.dev.addresses import Database
from gateway.examining import run_examinations
from gateway.settings import Settings, read_settings
from tests.integration.cache_world import BY_POSTCODE, SCHEMA, World, address, lookup, rows, until

BEGINNING = lookup(
    "addresses-that-begin",
    parameters={"part": VALUE_TYPES["text"]},
    sql="select uprn::text as uprn, address from address where address collate \"C\" like :part || '%'"
    " order by uprn limit 20",
    tags={"address": TableTag()},
)
BY_NUMBER = lookup(
    "address-by-number",
    parameters={"number": VALUE_TYPES["text"]},
    sql="select uprn::text as uprn, address from address where uprn = (:number)::int8",
    tags={"address": TableTag()},
)


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    world = World(database, redis_url)
    await world.prepare()
    world.start()
    yield world
    await world.stop()


def settings_of(database: Database) -> Settings:
    return read_settings(
        {
            "SILOGATE_DATABASE_URL": database.url,
            "SILOGATE_REDIS_URL": "redis://127.0.0.1:1",
            "SILOGATE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
            "SILOGATE_SMTP_URL": "smtp://127.0.0.1:1",
            "SILOGATE_KEY_RING": f"1:{base64.b64encode(b'k' * 32).decode()}",
        }
    )


def declared(definition: LookupDefinition, example: str) -> LookupDeclaration:
    return LookupDeclaration(
        definition=definition,
        title=definition.name,
        scope=f"lookups:{definition.name}",
        cache_control="no-store",
        parameters={
            name: ParameterDeclaration(kind, required=True, example=example, title=name)
            for name, kind in definition.parameters.items()
        },
        personal=False,
    )


@contextlib.asynccontextmanager
async def examinations(world: World, *lookups: LookupDeclaration) -> AsyncIterator[None]:
    task = asyncio.create_task(
        run_examinations(
            settings_of(world.database),
            lookups,
            {one.name: world.group(one.definition) for one in lookups},
            {world.silo.name: world.silo},
            world.metrics,
        )
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def fill(world: World) -> None:
    """Five thousand addresses, with the index that a search by their beginning wants, as one load."""
    async with world.connect() as connection:
        await connection.execute(
            f"""insert into {SCHEMA}.address
            select g, 'BN15 9JB', 'house ' || g, 518000 + g, 104000 from generate_series(1, 5000) g;
            create index if not exists address_begins on address (address collate "C");
            analyze address"""
        )
    await world.load()


async def test_a_load_that_makes_the_batch_slow_turns_it_off(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Batched while there is nothing to compare; after the load that filled the table, one by one, and it is logged."""
    caplog.set_level(logging.INFO)
    group, sound = world.group(BEGINNING), world.group(BY_POSTCODE)
    async with examinations(world, declared(BEGINNING, "house"), declared(BY_POSTCODE, "BN15 9JB")):
        await world.counts(1, "silogate_lookup_batched", lookup=BEGINNING.name)
        await fill(world)
        await world.counts(0, "silogate_lookup_batched", lookup=BEGINNING.name)
    assert (group.batched, sound.batched) == (False, True)
    (line,) = [record for record in caplog.records if record.message == "lookup_not_batched"]
    assert line.__dict__["lookup"] == BEGINNING.name
    assert "index_lost_in_batch" in line.__dict__["why"]
    assert "house" not in caplog.text


async def test_answers_are_the_same_one_by_one(world: World) -> None:
    """What fell back answers all who ask at once, absent keys among them, as the batch would."""
    await fill(world)
    parts = [f"house {number}" for number in range(1, 40)] + ["castle"]
    group = world.group(BEGINNING)

    async def asked() -> list[list[dict[str, object]]]:
        answers = await asyncio.gather(*(world.ask(BEGINNING, part) for part in parts))
        return [rows(answer) for answer in answers]

    group.batched = False
    alone = await asked()
    await world.redis.flushdb()
    group.batched = True
    assert alone == await asked()
    async with world.connect() as connection:
        wanted = await connection.fetch(
            "select uprn::text as uprn, address from address where address like 'house 3%' order by 1 limit 20"
        )
    assert alone[2] == [dict(row) for row in wanted]
    assert alone[-1] == []


async def test_one_bad_cast_spoils_nobody_elses_answer(world: World) -> None:
    """A value that the SQL cannot cast fails alone, in batches and one by one."""
    await fill(world)
    for batched in (True, False):
        world.group(BY_NUMBER).batched = batched
        asked = [world.ask(BY_NUMBER, number) for number in ("1", "two", "3")]
        first, bad, third = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(bad, Exception)
        for answer, uprn in ((first, "1"), (third, "3")):
            assert not isinstance(answer, BaseException)
            assert json.loads(answer.results)[0]["uprn"] == uprn
        await world.redis.flushdb()


async def test_a_database_that_is_away_leaves_everything_as_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An examination that cannot be made is logged without an address, and nothing else happens."""
    await world.put("address", address(1, "BN15 9JB", "One"))
    gone = Database(world.database.url.replace("/test_", "/gone_"), world.database.replica_url)
    here, world.database = world.database, gone
    group = world.group(BY_POSTCODE)
    async with examinations(world, declared(BY_POSTCODE, "BN15 9JB")):

        async def logged() -> bool:
            return any(record.message == "lookups_not_examined" for record in caplog.records)

        await until(logged)
    world.database = here
    assert group.batched
    assert "gone_" not in caplog.text
