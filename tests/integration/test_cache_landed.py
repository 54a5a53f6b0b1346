"""Between the landing of an answer and the end of its FILL the silo is not asked again, unless that would be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import cache.landed
from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, World, address, rows, until

CRABTREE = "BN15 9JB"


@pytest.fixture
async def world(database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A silo whose FILLs never arrive, and whose answers are in hand for as long as a test takes."""
    monkeypatch.setattr(cache.landed, "KEPT_S", 60.0)
    made = World(database, redis_url)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "Before"))
    made.start()
    await made.settled()
    monkeypatch.setattr(made.store, "offer", lambda _fill: None)
    yield made
    await made.stop()


def _queries(world: World) -> float:
    return world.counted("silogate_silo_loads_total", silo="town", outcome="answered")


async def test_a_cold_key_costs_one_query_however_its_callers_come(world: World) -> None:
    """Together or one after the other, before Redis has the answer: one query, and each is told the position of it."""
    answers = await asyncio.gather(*(world.ask(BY_POSTCODE, CRABTREE) for _ in range(25)))
    answers += [await world.ask(BY_POSTCODE, CRABTREE) for _ in range(25)]
    assert _queries(world) == 1
    assert {answer.source for answer in answers} == {"miss"}
    assert {(answer.as_of.epoch, answer.as_of.seq) for answer in answers} == {await world.tip()}
    assert {rows(answer)[0]["address"] for answer in answers} == {"Before"}


async def test_a_change_that_the_look_knows_of_is_in_the_answer(world: World) -> None:
    """Who comes after the change is brought to Redis asks the silo anew; another address's change is no reason to."""
    await world.ask(BY_POSTCODE, CRABTREE)
    await world.put("address", address(2, "BN43 5TE", "Elsewhere"))
    await world.settled()
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "Before"
    assert _queries(world) == 1
    await world.put("address", address(1, CRABTREE, "After"))
    await world.settled()
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "After"
    assert _queries(world) == 2


async def test_an_answer_of_an_epoch_that_is_over_is_given_to_nobody(world: World) -> None:
    """Positions of two epochs cannot be compared, nor can tags."""
    before = await world.ask(BY_POSTCODE, CRABTREE)
    await world.redis.flushdb()

    async def begun() -> bool:
        state = await world.state()
        return state is not None and state.epoch != before.as_of.epoch

    await until(begun)
    await world.settled()
    after = await world.ask(BY_POSTCODE, CRABTREE)
    assert after.as_of.epoch != before.as_of.epoch
    assert _queries(world) == 2


async def test_who_asks_for_more_than_it_has_gets_more(world: World) -> None:
    """A position from after the answer is met by the primary, even before Redis knows of it."""
    await world.ask(BY_POSTCODE, CRABTREE)
    world._tasks[-1].cancel()  # the invalidator: Redis learns of nothing more
    await asyncio.gather(world._tasks[-1], return_exceptions=True)
    changed = await world.put("address", address(1, CRABTREE, "After"))
    answer = await world.ask(BY_POSTCODE, CRABTREE, min_as_of=changed)
    assert (rows(answer)[0]["address"], answer.as_of.seq) == ("After", changed.seq)
    assert _queries(world) == 2


async def test_without_redis_each_asks_for_itself(world: World) -> None:
    """Nothing says then what an answer in hand may have missed."""
    await world.ask(BY_POSTCODE, CRABTREE)
    await world.put("address", address(1, CRABTREE, "After"))
    world.link._skip_until = float("inf")
    assert rows(await world.ask(BY_POSTCODE, CRABTREE))[0]["address"] == "After"
    assert _queries(world) == 2
