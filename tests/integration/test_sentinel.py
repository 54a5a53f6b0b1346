"""The sentinel over a real silo: quiet while all is well, and it finds each way in which the cache could be wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from cache.definition import LookupDefinition, TableTag
from cache.entry import Entry
from cache.feed import L1
from cache.layers import AnswerLayer, Change, Found, L1Layer, Layer, RedisLayer
from cache.sentinel import Sentinel
from cache.server import Server
from cache.state import Position
from cache.store import Store
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, LOOKUP_ROLE, SCHEMA, SILO, World, address, lookup, until

_STEPS_S = (0.05, 0.25, 0.5)


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url)
    await made.prepare()
    yield made
    await made.stop()


def primary_of(world: World) -> Server:
    return Server(
        world.database.url, silo=SILO, schema=SCHEMA, role=LOOKUP_ROLE, statement_timeout_ms=1000, connections=1
    )


@contextlib.asynccontextmanager
async def watching(world: World, *others: Layer, lookups: Sequence[LookupDefinition] = ()) -> AsyncIterator[Sentinel]:
    """A sentinel that has seen where the silo stands, over Redis, whole answers and `others`."""
    primary = primary_of(world)
    layers: list[Layer] = [
        RedisLayer(world.store),
        AnswerLayer(world.silo, [world.group(one) for one in lookups], primary),
        *others,
    ]
    sentinel = Sentinel(SILO, primary, world.store, layers, world.metrics, steps_s=_STEPS_S)
    task = world.run(sentinel.run())

    async def has_looked() -> bool:
        return sentinel.position is not None

    await until(has_looked)
    yield sentinel
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def found(world: World, layer: str, found: Found) -> float:
    return sum(
        world.counted(
            "silogate_sentinel_checks_total", silo=SILO, layer=layer, within=f"{step * 1000:g}ms", found=found
        )
        for step in _STEPS_S
    )


def violations(world: World, layer: str) -> float:
    return sum(
        world.counted("silogate_sentinel_violations_total", silo=SILO, layer=layer, within=f"{step * 1000:g}ms")
        for step in _STEPS_S
    )


async def is_found(world: World, layer: str) -> None:
    """Wait until a violation of the layer is counted, changing a row all the while."""
    turn = 0

    async def seen() -> bool:
        nonlocal turn
        turn += 1
        await world.put("address", address(1, "BN15 9JB", f"{turn} Marsh Street"))
        with contextlib.suppress(Exception):
            await world.ask(BY_POSTCODE, "BN15 9JB")
        await asyncio.sleep(0.05)
        return violations(world, layer) > 0

    await until(seen)


async def test_a_cache_that_follows_is_never_accused(world: World) -> None:
    """Rows change for a while: every layer is found current, convergence is measured, and no violation is counted."""
    l1 = L1(SILO, world.redis_url, world.metrics, most_entries=100, most_bytes=1 << 20)
    world.start()
    world.run(l1.run())
    await world.settled()
    async with watching(world, L1Layer(l1), lookups=[BY_POSTCODE]):
        for turn in range(20):
            await world.put("address", address(1, "BN15 9JB", f"{turn} Marsh Street"))
            await world.ask(BY_POSTCODE, "BN15 9JB")
            await asyncio.sleep(0.1)

        async def all_current() -> bool:
            return all(found(world, layer, "current") >= 3 for layer in ("redis", "answer", "l1"))

        await until(all_current)
        assert [violations(world, layer) for layer in ("redis", "answer", "l1")] == [0, 0, 0]
        assert world.counted("silogate_sentinel_convergence_seconds_count", silo=SILO, layer="redis") >= 1


async def test_being_behind_is_told_and_is_no_violation(world: World) -> None:
    """Nothing brings changes to Redis: the sentinel counts `behind` and the lag, and accuses nobody."""
    world.run(world.store.run())
    world.run(world.silo.run())
    async with world.follower() as follower:
        while await follower.step():
            pass
        async with watching(world):
            await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))

            async def is_behind() -> bool:
                return found(world, "redis", "behind") >= 3

            await until(is_behind)
            assert world.counted("silogate_sentinel_lag", silo=SILO) >= 1
            assert violations(world, "redis") == 0


class _ForgetsTags(Store):
    """A mutant: the state moves on and the tags do not."""

    async def apply(self, expected: Position, seq: int, row_id: str, tags: Sequence[str]) -> str:
        return await super().apply(expected, seq, row_id, ())


async def test_a_change_whose_tags_were_lost_is_found(world: World) -> None:
    """An invalidator that moves the state without the tags is caught at the Redis layer."""
    world.run(world.store.run())
    world.run(world.silo.run())
    forgetful = _ForgetsTags(SILO, world.tagger.definition, world.link, world.metrics)
    async with world.follower(store=forgetful) as follower:
        world.run(follower.run())
        await world.settled()
        async with watching(world):
            await is_found(world, "redis")


class _AlwaysNewest(Store):
    """A mutant: changes are not applied, and the state says all the same that it was the newest one just now."""

    async def apply(self, expected: Position, seq: int, row_id: str, tags: Sequence[str]) -> str:
        _, now_ms = await self.look()
        await self.beat(expected, now_ms)
        return "moved"


async def test_a_bound_that_is_a_lie_is_found(world: World) -> None:
    """A state that claims a time at which the primary was already further on is caught."""
    world.run(world.store.run())
    world.run(world.silo.run())
    async with world.follower() as follower:
        while await follower.step():
            pass
    liar = _AlwaysNewest(SILO, world.tagger.definition, world.link, world.metrics)
    async with watching(world), world.follower(store=liar) as follower:
        world.run(follower.run())
        await is_found(world, "redis")


async def test_a_lookup_with_too_few_tags_is_found(world: World) -> None:
    """A lookup that reads a table which its tags do not name answers from before the change: caught as an answer."""
    blind = lookup(
        "addresses-and-claims",
        sql="select uprn::text as uprn, (select max(name) from claim) as address "
        "from address where postcode = :postcode",
    )
    world.start()
    await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))
    await world.put("claim", {"claim_ref": "C1", "nino": "QQ123456C", "status": "open", "name": "Resident 0"})
    await world.settled()
    await world.stored(blind, "BN15 9JB")
    async with watching(world, lookups=[blind]):
        turn = 0

        async def seen() -> bool:
            nonlocal turn
            turn += 1
            row = {"claim_ref": "C1", "nino": "QQ123456C", "status": "open", "name": f"Resident {turn}"}
            await world.put("claim", row)
            await asyncio.sleep(0.05)
            return violations(world, "answer") > 0

        await until(seen)


class _Deaf(L1):
    """A mutant: the feed moves on, and what it names stays."""

    def _move(self, row: object) -> None:
        super()._move(replace(row, tags=[]))  # type: ignore[type-var,arg-type]


async def test_an_l1_that_drops_nothing_is_found(world: World) -> None:
    """Held answers that outlive a change of their tags are caught at the L1 layer."""
    l1 = _Deaf(SILO, world.redis_url, world.metrics, most_entries=100, most_bytes=1 << 20)
    world.start()
    world.run(l1.run())
    await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))
    state = await world.settled()
    question = world.group(BY_POSTCODE).question({"postcode": "BN15 9JB"})
    later = 2**42
    entry = Entry(state.seq, 0, soft_ms=later, fresh_ms=later, etag=1, negative=False, body=b"[]")

    async def held() -> bool:
        l1.keep(question.digest, question.tags, entry, state)
        return l1.get(question.digest) is not None

    await until(held)
    async with watching(world, L1Layer(l1)):
        await is_found(world, "l1")


class _Fickle:
    """A layer that seems wrong at the first look and right at the second."""

    name = "fickle"

    def __init__(self) -> None:
        self.asked = 0

    async def has(self, change: Change) -> Found:
        self.asked += 1
        return "violation" if self.asked % 2 else "current"


async def test_one_look_alone_accuses_nobody(world: World) -> None:
    """What a second look does not confirm, as while a layer moves, is no violation."""
    world.start()
    await world.settled()
    fickle = _Fickle()
    async with watching(world, fickle):
        await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))

        async def checked() -> bool:
            return found(world, "fickle", "current") >= 3

        await until(checked)
        assert violations(world, "fickle") == 0


async def test_the_canary_is_read_as_any_lookup(world: World) -> None:
    """The age of the canary row, read through the cache, grows while nothing changes and is small after a change."""
    canary = lookup(
        "canary-of-town",
        parameters={"row": world.group(BY_POSTCODE).definition.parameters["postcode"]},
        sql="select extract(epoch from now()) as at where :row is not null",
        shape="one",
        columns=("at",),
        tags={"address": TableTag()},
    )
    world.start()
    await world.settled()

    class _Canary:
        async def answer(self, _parameters: object, *, timeout_s: float) -> object:
            return await world.ask(canary, "BN15 9JB", timeout_s=timeout_s)

    sentinel = Sentinel(SILO, primary_of(world), world.store, [], world.metrics, canary=_Canary())  # type: ignore[arg-type]
    world.run(sentinel.run())

    async def read() -> bool:
        return world.counted("silogate_canary_age_seconds", silo=SILO) > 0.5

    await until(read)
    await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))

    async def is_new() -> bool:
        return world.counted("silogate_canary_age_seconds", silo=SILO) < 0.5

    await until(is_new)


async def test_an_epoch_that_redis_does_not_follow_yet_accuses_nobody(world: World) -> None:
    """While the silo has begun an epoch and Redis is at the old one, answers of the old one are no violation."""
    world.run(world.store.run())
    world.run(world.silo.run())
    await world.put("address", address(1, "BN15 9JB", "1 Marsh Street"))
    async with world.follower() as follower:
        while await follower.step():
            pass
    await world.stored(BY_POSTCODE, "BN15 9JB")
    state = await world.state()
    assert state is not None
    async with world.connect() as connection:
        # as a load too large for tags leaves it: other rows, and an epoch in place of a list
        await connection.execute("update address set address = 'elsewhere'")
        await connection.execute("update progress set epoch = md5(random()::text), seq = seq + 1, id = 'large'")
    primary = primary_of(world)
    await primary.open()
    try:
        change = Change(state.epoch, state.seq, (world.tagger.table_tag("address"),), 0, 0.0)
        assert await AnswerLayer(world.silo, [world.group(BY_POSTCODE)], primary).has(change) == "unknown"
        await world.redis.delete(f"silogate:{{{SILO}}}:tags")
        # without the tags no reader takes an entry, so nobody is answered wrongly
        assert await RedisLayer(world.store).has(change) == "unknown"
    finally:
        await primary.close()
