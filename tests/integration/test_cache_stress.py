"""Random changes, questions and mishaps for some seconds, and not one answer that is older than its own as-of."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cache.coherence import Invalidator
from cache.group import Answer
from cache.silo import SiloUnavailable
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from tests.integration.cache_world import BY_POSTCODE, BY_UPRN, NEAR, World, address, rows, until

POSTCODES = [f"BN{n} 9JB" for n in range(1, 7)]
UPRNS = range(1, 9)
WRITES = 400


class Stress:
    """Writers, readers and mishaps over one silo, and every image that its table has had, by the seq that made it."""

    def __init__(self, worlds: list[World], stack: Stack) -> None:
        self.worlds = worlds
        self.stack = stack
        self.chance = random.Random(20261122)
        self.images: list[dict[int, dict[str, object]]] = [{}, {}]  # at seq 0 and, after the first load, 1
        self.done = False
        self.violations: list[str] = []
        self.sources: Counter[str] = Counter()

    def right(self, lookup: str, value: object, seq: int) -> set[str]:
        """What a lookup answers at that position."""
        rows = self.images[seq].values()
        if lookup == BY_POSTCODE.name:
            return {str(row["address"]) for row in rows if row["postcode"] == value}
        if lookup == BY_UPRN.name:
            return {str(row["address"]) for row in rows if row["uprn"] == value}
        return {str(row["address"]) for row in rows if abs(float(str(row["easting"])) - float(str(value))) <= 700}

    async def write(self) -> None:
        async with self.worlds[0].connect() as connection:
            for n in range(WRITES):
                uprn, postcode = self.chance.choice(UPRNS), self.chance.choice(POSTCODES)
                row = address(uprn, postcode, f"{uprn} as of {n}", 500_000 + 500 * self.chance.randrange(8))
                image = {key: value for key, value in self.images[-1].items() if key != uprn}
                gone = self.chance.random() < 0.2
                # Noted before it is committed: an answer may show it as soon as it is.
                self.images.append(image if gone else image | {uprn: row})
                token = await self.worlds[0].apply_on(connection, "address", {uprn: None if gone else row})
                assert token.seq == len(self.images) - 1
        self.done = True

    async def ask(self, world: World) -> None:
        while not self.done:
            place = 500_000 + 500 * self.chance.randrange(8)
            definition, value = self.chance.choice(
                [(BY_POSTCODE, self.chance.choice(POSTCODES)), (BY_UPRN, self.chance.choice(UPRNS)), (NEAR, place)]
            )
            values = (value, 104_000, 700) if definition is NEAR else (value,)
            try:
                answer = await world.ask(replace(definition, soft_ttl_s=0.2), *values)
            except SiloUnavailable:
                continue
            self.judge(definition.name, value, answer)

    def judge(self, lookup: str, value: object, answer: Answer) -> None:
        """An answer may be newer than its as-of: it is right if it was right at any time from there on."""
        self.sources[answer.source] += 1
        shown = {row["address"] for row in rows(answer)}
        if not any(shown == self.right(lookup, value, seq) for seq in range(answer.as_of.seq, len(self.images))):
            self.violations.append(f"{lookup} {value} at {answer.as_of.token} ({answer.source}): {shown}")

    async def mishaps(self) -> None:
        happen = [self.flush, self.lag, self.begin_epoch, self.evict, self.freeze]
        while not self.done:
            await asyncio.sleep(self.chance.uniform(0.1, 0.4))
            await self.chance.choice(happen)()

    async def flush(self) -> None:
        await self.worlds[0].redis.flushdb()

    async def lag(self) -> None:
        await self.stack.control("replica", "pause")
        try:
            await asyncio.sleep(0.2)
        finally:
            await self.stack.control("replica", "resume")

    async def begin_epoch(self) -> None:
        async with self.worlds[0].connect() as connection:
            await connection.execute("update progress set epoch = md5(random()::text)")

    async def evict(self) -> None:
        for key in list(await self.worlds[0].entries())[::2]:
            await self.worlds[0].redis.delete(key)

    async def freeze(self) -> None:
        await self.stack.control("valkey", "freeze")
        try:
            await asyncio.sleep(0.15)
        finally:
            await self.stack.control("valkey", "thaw")


@pytest.fixture
async def worlds(database: Database, redis_url: str) -> AsyncIterator[list[World]]:
    """Two processes' worth of parts over one silo with a replica, and one Redis."""
    made = [World(database, redis_url, replica_urls=[database.replica_url]) for _ in range(2)]
    await made[0].prepare()
    for world in made:
        world.start()
        world.run(Invalidator("town", database.url, world.make_store(), world.metrics, poll_s=0.005).run())
    yield made
    for world in made:
        await world.stop()


@pytest.mark.timeout(180)
async def test_no_answer_is_older_than_its_as_of(worlds: list[World], stack: Stack) -> None:
    """Rows move, a replica lags, Redis is flushed, the silo begins epochs, two invalidators race: 0 stale answers."""
    stress = Stress(worlds, stack)
    await worlds[0].settled()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stress.write())
        tasks.create_task(stress.mishaps())
        for world in worlds * 6:
            tasks.create_task(stress.ask(world))
    assert stress.violations == []
    assert stress.sources["hit"] > 100, stress.sources
    assert stress.sources["miss"] > 100, stress.sources

    await worlds[0].settled()

    async def all_right() -> bool:
        """At rest every key is answered by the newest image: nothing stays stale for ever."""
        answers = [await worlds[1].ask(BY_POSTCODE, postcode) for postcode in POSTCODES]
        newest = len(stress.images) - 1
        shown = [{row["address"] for row in rows(answer)} for answer in answers]
        return shown == [stress.right(BY_POSTCODE.name, postcode, newest) for postcode in POSTCODES]

    await until(all_right)
