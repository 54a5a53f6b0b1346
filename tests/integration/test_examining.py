"""A lookup that is slow or wrong in a batch is asked one by one, and `serve` finds that out by itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from cache.definition import LookupDefinition, TableTag
from cache.examine.examine import Examined
from cache.values import VALUE_TYPES
from gateway import examining
from gateway.declarations import LookupDeclaration, ParameterDeclaration
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
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


def settings_of(database: Database, *, replica: bool = False) -> Settings:
    return read_settings(
        {
            "SILOGATE_DATABASE_URL": database.url,
            "SILOGATE_REPLICA_URLS": database.replica_url if replica else "",
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
async def examinations(world: World, *lookups: LookupDeclaration, replica: bool = False) -> AsyncIterator[None]:
    task = asyncio.create_task(
        run_examinations(
            settings_of(world.database, replica=replica),
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


async def test_a_load_is_examined_where_it_is_seen(world: World, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is behind is looked at again later: the load that the primary tells of is not ticked off there."""
    monkeypatch.setattr(examining, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(examining, "_AGAIN_AFTER_S", 0.2)
    looks = 0
    connected = examining.lookup_connection

    @contextlib.asynccontextmanager
    async def counted(settings: Settings, silo: str) -> AsyncIterator[asyncpg.Connection]:
        nonlocal looks
        async with connected(settings, silo) as connection:
            assert await connection.fetchval("select pg_is_in_recovery()")
            yield connection
        looks += 1

    monkeypatch.setattr(examining, "lookup_connection", counted)
    group = world.group(BEGINNING)
    await stack.control("replica", "pause")
    try:
        await fill(world)
        async with examinations(world, declared(BEGINNING, "house"), replica=True):

            async def looked_twice() -> bool:
                return looks >= 2

            await until(looked_twice)
            assert group.batched
            await stack.control("replica", "resume")
            await world.counts(0, "silogate_lookup_batched", lookup=BEGINNING.name)
    finally:
        await stack.control("replica", "resume")
    assert not group.batched


async def test_a_lookup_that_fails_keeps_no_other_from_being_examined(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged and tried again; the next one has a connection of its own."""
    monkeypatch.setattr(examining, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(examining, "_AGAIN_AFTER_S", 0.2)
    failures = 2
    tried: list[tuple[str, int]] = []
    real = examining.examine_lookup

    async def failing(connection: asyncpg.Connection, one: LookupDeclaration, *rest: Any, **options: Any) -> Examined:
        nonlocal failures
        tried.append((one.name, await connection.fetchval("select pg_backend_pid()")))
        if one.name == BY_POSTCODE.name and failures:
            failures -= 1
            raise asyncpg.InterfaceError("cannot perform operation: house 12")
        return await real(connection, one, *rest, **options)

    monkeypatch.setattr(examining, "examine_lookup", failing)
    await fill(world)

    async def known() -> bool:
        standing = world.silo.standing
        async with world.connect() as connection:
            return standing is not None and standing.load_id == await connection.fetchval("select max(id) from load")

    # Else what is examined ahead of the silo's own look is examined once more after it.
    await until(known)
    async with examinations(world, declared(BY_POSTCODE, "BN15 9JB"), declared(BEGINNING, "house")):

        async def again() -> bool:
            return len(tried) >= 4

        await until(again)
        await world.counts(0, "silogate_lookup_batched", lookup=BEGINNING.name)
    assert [name for name, _ in tried] == [BY_POSTCODE.name, BEGINNING.name, BY_POSTCODE.name, BY_POSTCODE.name]
    assert tried[0][1] != tried[1][1]
    lines = [record for record in caplog.records if record.message == "lookup_not_examined"]
    assert [(line.__dict__["lookup"], line.__dict__["error"]) for line in lines] == [
        (BY_POSTCODE.name, "InterfaceError")
    ] * 2
    assert "house 12" not in caplog.text
