"""Valkey dies, hangs or forgets everything while many ask and rows change: right answers in time, and soon hits again.

What one caller sees of each is in tests/integration/test_cache_faults.py; here it is the many, and how long it lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from gateway.dev.addresses import Database
from gateway.dev.stack import Action, Stack
from tests.faults.cache_stress import ASK_TIMEOUT_S, Stress, running
from tests.integration.cache_world import World, until

SEED = 20261122
DOWN_S = 1.5  # long enough for Redis to be tried again, and left alone again
BACK_WITHIN_S = 5.0
# What a test with two cores may add to a deadline that is kept.
SLACK_S = 0.5

pytestmark = pytest.mark.faults


@dataclass(frozen=True, slots=True)
class Cause:
    """What happens to Valkey and how it ends."""

    begins: Action | None
    ends: Action | None


CAUSES = {
    "killed": Cause("kill", "start"),
    "hung": Cause("freeze", "thaw"),
    "emptied": Cause(None, None),
    "killed and at once there again": Cause("crash", None),
}


@pytest.fixture
async def stress(database: Database, redis_url: str) -> AsyncIterator[Stress]:
    worlds = [World(database, redis_url, replica_urls=[database.replica_url]) for _ in range(2)]
    await worlds[0].prepare()
    made = Stress(worlds, SEED, writes=0, pace_s=0.05)  # so few changes that most answers are hits
    await made.prepare()
    async with running(worlds):
        await worlds[0].settled()
        yield made


@pytest.mark.parametrize("name", CAUSES)
async def test_many_are_answered_in_time_whatever_valkey_does(name: str, stress: Stress, stack: Stack) -> None:
    """Each answer is right and in time, with Redis and without, and hits are back 5 s after the cause is gone."""
    stress.holds.add(name)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stress.run())
        await until(_has_risen(stress, "hit", 100))
        for _ in range(2):
            await _suffer(CAUSES[name], stress, stack)
            await until(_has_risen(stress, "hit", 10), within_s=BACK_WITHIN_S)
        stress.holds.clear()
    assert stress.history.violations == [], stress.summary()
    assert stress.too_old == []
    assert stress.slowest_s < ASK_TIMEOUT_S + SLACK_S
    answered = sum(stress.history.sources.values())
    assert stress.unanswered < answered / 100, stress.summary()  # the silo was there all the time
    await stress.worlds[0].redis.connection_pool.disconnect()
    await stress.worlds[0].settled()
    await stress.rests()


async def _suffer(cause: Cause, stress: Stress, stack: Stack) -> None:
    async def asked() -> bool:
        return stress.asking > 0

    await until(asked)
    if cause.begins is None:
        async with Redis.from_url(stack.servers.redis_url) as redis:
            assert await redis.dbsize() + await _keys_of(stress) > 0
            await redis.flushall()
        return
    before = stress.history.sources.copy()
    await stack.control("valkey", cause.begins)
    if cause.ends is None:
        return
    try:
        await asyncio.sleep(DOWN_S)
        since = stress.history.sources - before
        assert since["bypass"] + since["miss"] > 50, since
    finally:
        await stack.control("valkey", cause.ends)


async def _keys_of(stress: Stress) -> int:
    async with Redis.from_url(stress.worlds[0].redis_url) as redis:
        return int(await redis.dbsize())


def _has_risen(stress: Stress, source: str, by: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many more answers have come from there than when this was called."""
    before = stress.history.sources[source]

    async def risen() -> bool:
        return stress.history.sources[source] >= before + by

    return risen
