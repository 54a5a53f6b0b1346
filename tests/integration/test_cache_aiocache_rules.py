"""What a SiloCache does with names, lives, values and failures, and what it refuses."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiocache import cached
from aiocache.lock import OptimisticLock
from aiocache.serializers import PickleSerializer

from cache import recorded
from cache.aiocache_backend import SiloCache, Unsupported
from cache.link import RedisLink
from cache.state import Position, State
from cache.store import Store
from gateway.dev.addresses import Database
from tests.integration.aiocache_town import CRABTREE, ELM, NINO, Town, town_world, typed
from tests.integration.cache_world import SILO, World, address, claim
from tests.integration.tcp_gate import Gate


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    async with town_world(database, redis_url) as made:
        yield made


@pytest.fixture
async def town(world: World) -> AsyncIterator[Town]:
    made = Town(world)
    async with made.silo:
        yield made


async def test_namespaces_are_apart(town: Town) -> None:
    """The same key in two of them is two answers, and clearing one leaves the other."""
    one, two = town.cache(namespace="one"), town.cache(namespace="two")
    for cache, postcode in ((one, CRABTREE), (two, ELM)):
        assert await cache.get("k") is None
        assert await cache.set("k", await town.read(postcode)) is True
        await town.kept(cache, "k")
    assert (await one.get("k"), await two.get("k")) == (["1 Crabtree Lane"], ["Elm House"])
    assert await one.get("k", namespace="two") == ["Elm House"]
    assert await one.clear() is True
    assert (await one.exists("k"), await two.exists("k")) == (False, True)
    assert await one.clear(namespace="two") is True
    assert not await two.exists("k")


async def test_delete_and_expire_end_an_answer(town: Town) -> None:
    """Deleted is gone at once; a shorter life is taken, a longer one is not."""
    cache = town.cache(ttl=50)
    assert await cache.get("k") is None
    await cache.set("k", await town.read(CRABTREE))
    await town.kept(cache, "k")
    assert await cache.expire("k", 1000) is True
    [entry] = await town.world.entries()
    assert 0 < await town.world.redis.pttl(entry) <= 50_000
    assert await cache.expire("k", 20) is True
    assert 0 < await town.world.redis.pttl(entry) <= 20_000
    assert await cache.expire("absent", 20) is False
    assert await cache.delete("k") == 1
    assert await cache.delete("k") == 0
    assert await cache.get("k") is None


async def test_personal_answers_and_keys_cannot_be_read_in_redis(
    world: World, town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    """Values are sealed, keys and namespaces are HMACs, and aiocache's own log has neither."""
    await world.put("claim", claim("c1", NINO, name="Ada Applicant"))
    await world.settled()

    @typed(
        cached(
            cache=SiloCache, silo=town.backing, personal=True, namespace="claimant-", key_builder=lambda _f, nino: nino
        )
    )
    async def claimant(nino: str) -> str:
        rows = await town.silo.fetch("select name from claim where nino = $1", nino)
        return str(rows[0]["name"])

    with caplog.at_level(logging.DEBUG):
        assert await claimant(NINO) == "Ada Applicant"
        await town.kept(claimant.cache, NINO)
        assert await claimant(NINO) == "Ada Applicant"
    found = await world.entries()
    assert len(found) == 1
    for secret in (NINO, "claimant", "Ada"):
        assert secret.encode() not in b"".join([*found, *found.values()])
    aiocache_log = [record.getMessage() for record in caplog.records if record.name.startswith("aiocache")]
    assert aiocache_log
    assert not [line for line in aiocache_log if NINO in line or "claimant" in line]


async def test_an_altered_entry_is_a_miss_and_replaced(world: World, town: Town) -> None:
    """Its tags could have been taken out; it is authenticated, so that is seen."""
    cache = town.cache()
    await cache.get("k")
    await cache.set("k", await town.read(CRABTREE))
    await town.kept(cache, "k")
    [(key, value)] = (await world.entries()).items()
    await world.redis.set(key, value[:-3] + b"ZZZ", px=100_000)
    assert await cache.get("k") is None
    await world.counts(1, "silogate_cache_broken_entries_total", lookup="aiocache", reason="seal")
    await cache.set("k", await town.read(CRABTREE))
    await town.kept(cache, "k")


async def test_a_value_that_would_come_back_as_another_is_not_kept(town: Town) -> None:
    """A tuple, a date, a row of the driver, None: the function ran, its answer is right, and it runs again."""
    for n, value in enumerate([("a", "b"), {1: "a"}, None, float("nan"), object()]):

        @typed(cached(cache=SiloCache, silo=town.backing, key=f"k{n}"))
        async def made(value: object = value) -> object:
            await town.read(CRABTREE)
            return value

        assert await made() is value
    assert await town.world.entries() == {}


async def test_another_serializer_can_be_used(town: Town) -> None:
    """What pickle writes is authenticated before it is read."""

    @typed(cached(cache=SiloCache, silo=town.backing, key="k", serializer=PickleSerializer()))
    async def made() -> tuple[str, ...]:
        return tuple(await town.read(CRABTREE))

    await made()
    await town.kept(made.cache, "k")
    assert await made() == ("1 Crabtree Lane",)
    assert town.runs == 1


async def test_what_would_break_the_protocol_is_refused(town: Town) -> None:
    """Each with its reason, and nothing is written."""
    cache = town.cache()
    with pytest.raises(Unsupported, match="counter"):
        await cache.increment("k")
    with pytest.raises(Unsupported, match="tag"):
        await cache.raw("set", "k", "v")
    with pytest.raises(Unsupported, match="position"):
        await cache.add("k", "v")
    with pytest.raises(Unsupported, match="for ever"):
        await cache.expire("k", 0)
    with pytest.raises(Unsupported, match="position"):
        async with OptimisticLock(cache, "k"):
            pass
    with pytest.raises(Unsupported, match="position"):
        await cache.set("k", "v", _cas_token="v")
    assert await town.world.entries() == {}


async def test_a_redis_that_is_hung_or_dead_is_a_miss(world: World, redis_url: str) -> None:
    """The caller gets its answer from the silo, soon and without an error."""
    gate = Gate(redis_url)
    await gate.open()
    link = RedisLink(gate.url, world.metrics)
    world.store = Store(SILO, world.tagger.definition, link, world.metrics)
    world.run(world.store.run())
    town = Town(world, link=link)
    async with town.silo:

        @typed(cached(cache=SiloCache, silo=town.backing, key="k"))
        async def made() -> list[str]:
            return await town.read(CRABTREE)

        await made()
        await town.kept(made.cache, "k")
        for stop in (gate.hold, gate.shut):
            if (stopped := stop()) is not None:
                await stopped
            async with asyncio.timeout(10):
                for _ in range(5):
                    assert await made() == ["1 Crabtree Lane"]
                assert await made.cache.delete("k") == 0
                assert await made.cache.clear() is False
                assert await made.cache.exists("k") is False
    await gate.shut()
    await link.close()


class ClaimsTheNewest(SiloCache):
    """Stores at the newest position that Redis knows of, whatever the answer was read at."""

    newest: State | None = None

    async def _set(
        self, key: str, value: Any, ttl: float | None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        self.newest = State.parse((await self._silo.store.look())[0])
        return await super()._set(key, value, ttl)

    def _storable(self, recording: recorded.Recording | None) -> Position | None:
        position = super()._storable(recording)
        return position if position is None or self.newest is None else replace(position, seq=self.newest.seq)


async def _stale(world: World, town: Town, kind: type[SiloCache], *, changes: int) -> list[str]:
    """Answers older than what Redis knew of when they were asked for, while one row keeps changing, up to the first."""
    rng = random.Random(12)
    stale: list[str] = []
    known = 0

    @typed(cached(cache=kind, silo=town.backing, key="k"))
    async def text() -> str:
        [found] = await town.read(CRABTREE)
        await asyncio.sleep(rng.random() * 0.05)
        return found

    async def ask() -> None:
        while True:
            least = known
            got = await text()
            if int(got.rpartition(" ")[2]) < least:
                stale.append(f"{got}, after {least}")
            await asyncio.sleep(0.001)

    await world.put("address", address(1, CRABTREE, "Changed 0"))
    asking = [asyncio.create_task(ask()) for _ in range(6)]
    async with world.connect() as connection:
        for number in range(1, changes + 1):
            await world.apply_on(connection, "address", {1: address(1, CRABTREE, f"Changed {number}")})
            await world.settled()
            known = number
            await asyncio.sleep(rng.random() * 0.05)
            if stale:
                break
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return stale


async def test_under_traffic_no_answer_is_older_than_its_silo(world: World, town: Town) -> None:
    """Slow functions, six callers, a row that keeps changing: nothing stale is kept."""
    assert await _stale(world, town, SiloCache, changes=50) == []
    assert world.counted("silogate_cache_fills_total", silo=SILO, outcome="stored") > 0


async def test_an_answer_stored_at_another_position_would_be_stale(world: World, town: Town) -> None:
    """The same traffic finds out a cache that does not use the recorded position."""
    assert await _stale(world, town, ClaimsTheNewest, changes=500)
