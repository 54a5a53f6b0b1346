"""aiocache's decorators on a silo: an answer is kept only with what guards it, and ends with the rows it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiocache import cached, cached_stampede, multi_cached

from cache import recorded
from cache.aiocache_backend import SiloCache
from cache.server import Refused
from cache.state import Position
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.integration.aiocache_town import CRABTREE, ELM, NINO, Town, town_world, typed
from tests.integration.cache_world import World, address, claim, until


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    async with town_world(database, redis_url) as made:
        yield made


@pytest.fixture
async def town(world: World) -> AsyncIterator[Town]:
    made = Town(world)
    async with made.silo:
        yield made


async def test_the_decorator_keeps_an_answer_until_its_rows_change(world: World, town: Town) -> None:
    """As aiocache documents it: the first call runs, the next ones do not; a changed row makes it run again."""

    @typed(cached(ttl=600, cache=SiloCache, silo=town.backing, namespace="streets", key_builder=lambda _f, code: code))
    async def addresses(postcode: str) -> list[str]:
        return await town.read(postcode)

    assert await addresses(CRABTREE) == ["1 Crabtree Lane"]
    await town.kept(addresses.cache, CRABTREE)
    for _ in range(5):
        assert await addresses(CRABTREE) == ["1 Crabtree Lane"]
    assert town.runs == 1

    await world.put("address", address(2, ELM, "Elm Cottage"))
    await world.settled()
    assert await addresses(CRABTREE) == ["1 Crabtree Lane"]
    assert town.runs == 1

    await world.put("address", address(3, CRABTREE, "3 Crabtree Lane"))
    await world.settled()
    assert await addresses(CRABTREE) == ["1 Crabtree Lane", "3 Crabtree Lane"]
    assert town.runs == 2
    await town.kept(addresses.cache, CRABTREE)
    assert len(await addresses(CRABTREE)) == 2
    assert town.runs == 2


async def test_a_table_without_tags_counts_as_a_whole(world: World, town: Town) -> None:
    """The plan names every table, also behind a view: what was not narrowed down ends with any change of it."""
    async with world.connect() as connection:
        await connection.execute("create view houses as select * from address")
        await connection.execute("grant select on houses to silogate_lookup")

    @typed(cached(cache=SiloCache, silo=town.backing, key="count"))
    async def count() -> int:
        town.runs += 1
        rows = await town.silo.fetch("select count(*)::int as n from houses", touched={"houses": ["nothing"]})
        return int(rows[0]["n"])

    assert await count() == 2
    await town.kept(count.cache, "count")
    await world.put("claim", claim("c1", NINO))
    await world.settled()
    assert await count() == 2
    assert town.runs == 1
    await world.put("address", address(9, "BN1 1AA", "Ninth"))
    await world.settled()
    assert await count() == 3


@pytest.mark.parametrize(
    "sql",
    [
        "select 1 as a",
        "select now()::text as a from address",
        "select seq as a from progress",
        "select random() as a from address",
        "select n as a from generate_series(1, 2) n, address",
    ],
)
async def test_what_no_tag_guards_is_answered_and_not_kept(town: Town, sql: str) -> None:
    """A clock, chance, or what is no table of the silo."""

    @typed(cached(cache=SiloCache, silo=town.backing, key="k"))
    async def ask() -> str:
        town.runs += 1
        await town.read(CRABTREE) if sql != "select 1 as a" else None
        return str((await town.silo.fetch(sql))[0]["a"])

    assert await ask()
    await town.settled("unrecorded")
    assert await ask()
    assert not await ask.cache.exists("k")


async def test_without_a_recorded_read_nothing_is_kept(town: Town) -> None:
    """An answer from elsewhere, one set by hand, and one made of a read that failed."""
    cache = town.cache()

    @typed(cached(cache=SiloCache, silo=town.backing, key="elsewhere"))
    async def elsewhere() -> str:
        return "out of the air"

    @typed(cached(cache=SiloCache, silo=town.backing, key="failed"))
    async def failed() -> list[str]:
        first = await town.read(CRABTREE)
        try:
            await town.silo.fetch("select no_such_column from address")
        except Refused:
            return first
        raise AssertionError

    assert await elsewhere() == "out of the air"
    assert await failed() == ["1 Crabtree Lane"]
    assert await cache.set("by hand", "x") is False
    await town.read(CRABTREE)
    assert await cache.set("by hand", "x") is False
    await town.settled("unrecorded", 4)
    assert await town.world.entries() == {}


async def test_an_answer_that_the_rows_have_overtaken_is_not_kept(world: World, town: Town) -> None:
    """The row changes between the read and the set: a plain cache would keep the old answer for ever."""
    cache = town.cache()
    assert await cache.get("slow") is None
    old = await town.read(CRABTREE)
    await world.put("address", address(1, CRABTREE, "Renamed"))
    await world.settled()
    assert await cache.set("slow", old) is True
    await town.settled("tag")
    assert await cache.get("slow") is None


async def test_a_lagging_replica_cannot_poison_it(world: World, database: Database, stack: Stack) -> None:
    """What it answers is recorded at its own position, and Redis knows better."""
    town = Town(world, [database.replica_url])
    async with town.silo:

        @typed(cached(cache=SiloCache, silo=town.backing, key_builder=lambda _f, code: code))
        async def addresses(postcode: str) -> list[str]:
            return await town.read(postcode)

        await until(lambda: _reads(town, CRABTREE, ["1 Crabtree Lane"]))
        await stack.control("replica", "pause")
        try:
            await world.put("address", address(1, CRABTREE, "Renamed"))
            await world.settled()
            assert await addresses(CRABTREE) == ["1 Crabtree Lane"]
            await town.settled("tag")
            assert not await addresses.cache.exists(CRABTREE)
        finally:
            await stack.control("replica", "resume")

        async def renamed() -> bool:
            return bool(await addresses(CRABTREE) == ["Renamed"])

        await until(renamed)
        await town.kept(addresses.cache, CRABTREE)


async def _reads(town: Town, postcode: str, wanted: list[str]) -> bool:
    return await town.read(postcode) == wanted


async def test_a_function_made_of_another_ends_with_it(world: World, town: Town) -> None:
    """Also when the inner answer came out of the cache, and also when it was read in a task."""

    @typed(cached(cache=SiloCache, silo=town.backing, namespace="inner", key_builder=lambda _f, code: code))
    async def inner(postcode: str) -> list[str]:
        return await town.read(postcode)

    @typed(cached(cache=SiloCache, silo=town.backing, namespace="outer", key="both"))
    async def outer() -> list[list[str]]:
        return list(await asyncio.gather(inner(CRABTREE), inner(ELM)))

    await inner(CRABTREE)
    await town.kept(inner.cache, CRABTREE)
    assert await outer() == [["1 Crabtree Lane"], ["Elm House"]]
    await town.kept(outer.cache, "both")
    assert town.runs == 2
    await world.put("address", address(1, CRABTREE, "Renamed"))
    await world.settled()
    assert await outer() == [["Renamed"], ["Elm House"]]
    assert town.runs == 3


async def test_an_answer_of_two_silos_is_not_kept(town: Town) -> None:
    """One change log does not speak of the other's rows."""

    @typed(cached(cache=SiloCache, silo=town.backing, key="two"))
    async def two() -> list[str]:
        recorded.note("county", Position("e", 1, "id", "d"), 0, ["t"])
        return await town.read(CRABTREE)

    await two()
    await town.settled("unrecorded")
    assert not await two.cache.exists("two")


async def test_a_stampede_runs_the_function_once(town: Town) -> None:
    """`cached_stampede` works within a process, which is as far as aiocache's lock goes."""

    @typed(cached_stampede(lease=5, cache=SiloCache, silo=town.backing, key="hot"))
    async def hot() -> list[str]:
        found = await town.read(CRABTREE)
        await town.settled("kept", 0)
        return found

    first = await asyncio.gather(*(hot() for _ in range(20)))
    assert first == [["1 Crabtree Lane"]] * 20
    assert town.runs <= 2  # one more where the first fill was still on its way when the second looked
    await town.kept(hot.cache, "hot")
    await hot()
    assert town.runs <= 2


async def test_many_keys_are_kept_each_for_itself(world: World, town: Town) -> None:
    """`multi_cached` asks for what is missing only; all that one run has read guards each of its answers."""
    asked: list[list[str]] = []

    @typed(multi_cached("postcodes", cache=SiloCache, silo=town.backing, namespace="many"))
    async def many(postcodes: list[str]) -> dict[str, list[str]]:
        asked.append(list(postcodes))
        return {postcode: await town.read(postcode) for postcode in postcodes}

    assert await many([CRABTREE]) == {CRABTREE: ["1 Crabtree Lane"]}
    await town.kept(many.cache, CRABTREE)
    assert await many([CRABTREE, ELM]) == {CRABTREE: ["1 Crabtree Lane"], ELM: ["Elm House"]}
    await town.kept(many.cache, ELM)
    assert await many([ELM, CRABTREE]) == {CRABTREE: ["1 Crabtree Lane"], ELM: ["Elm House"]}
    assert asked == [[CRABTREE], [ELM]]
    await world.put("address", address(1, CRABTREE, "Renamed"))
    await world.settled()
    assert (await many([ELM, CRABTREE]))[CRABTREE] == ["Renamed"]
    assert asked[2:] == [[CRABTREE]]


async def test_storing_may_go_on_in_the_background(town: Town) -> None:
    """`aiocache_wait_for_write=False` keeps the answer as well."""

    @typed(cached(cache=SiloCache, silo=town.backing, key="k"))
    async def made() -> list[str]:
        return await town.read(CRABTREE)

    await made(aiocache_wait_for_write=False)
    await town.kept(made.cache, "k")
