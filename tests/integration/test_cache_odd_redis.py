"""Redis holds what it never should: a miss that is counted, and a process that goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.dev.addresses import Database
from tests.integration.cache_world import BY_POSTCODE, STATE_KEY, World, address, rows, until

CRABTREE, ELM = "BN15 9JB", "BN43 5TE"
TAGS_KEY = STATE_KEY.replace("state", "tags")


@pytest.fixture
async def world(database: Database, redis_url: str) -> AsyncIterator[World]:
    made = World(database, redis_url, skip_s=0.05)
    await made.prepare()
    await made.put("address", address(1, CRABTREE, "One"), address(2, ELM, "Two"))
    made.start()
    await made.settled()
    yield made
    ended = [task for task in made._tasks if task.done()]
    await made.stop()
    assert ended == [], "a part of the process has ended"


def _refusals(world: World) -> float:
    return world.counted("silogate_redis_errors_total", kind="response")


@pytest.mark.parametrize("key", [STATE_KEY, TAGS_KEY], ids=["state", "tags"])
async def test_a_key_of_another_type_is_a_miss_until_it_is_gone(world: World, key: str) -> None:
    """The silo answers, rightly, also after a change; without that key the silo gets an epoch and hits again."""
    before = (await world.stored(BY_POSTCODE, CRABTREE)).as_of
    await world.redis.delete(key)
    await world.redis.rpush(key, "not what belongs here")

    async def refused() -> bool:
        answer = await world.ask(BY_POSTCODE, CRABTREE)
        assert (answer.source, answer.verdict, rows(answer)[0]["address"]) == ("bypass", "found", "One")
        return _refusals(world) > 1

    await until(refused)
    await world.put("address", address(1, CRABTREE, "One, renamed"))
    answer = await world.ask(BY_POSTCODE, CRABTREE)
    assert (answer.source, rows(answer)[0]["address"]) == ("bypass", "One, renamed")
    await world.redis.delete(key)
    hit = await world.stored(BY_POSTCODE, CRABTREE)
    assert rows(hit)[0]["address"] == "One, renamed"
    assert hit.as_of.epoch != before.epoch


async def test_an_entry_of_another_type_is_a_miss(world: World) -> None:
    """Nobody takes it for an answer; it gives way to one, or that Redis refuses to is counted."""
    await world.stored(BY_POSTCODE, CRABTREE)
    [key] = await world.entries()
    await world.redis.delete(key)
    await world.redis.rpush(key, "not an entry")
    answer = await world.ask(BY_POSTCODE, CRABTREE)
    assert (answer.source, rows(answer)[0]["address"]) == ("miss", "One")

    async def noticed() -> bool:
        answer = await world.ask(BY_POSTCODE, CRABTREE)
        assert rows(answer)[0]["address"] == "One"
        return answer.source == "hit" or _refusals(world) > 0

    await until(noticed)
    await world.redis.delete(key)
    assert rows(await world.stored(BY_POSTCODE, CRABTREE))[0]["address"] == "One"


async def test_a_user_who_may_not_read_is_a_miss(world: World) -> None:
    """An ACL that lacks a command is a Redis that is no help, and no more than that."""
    await world.stored(BY_POSTCODE, CRABTREE)
    await world.redis.execute_command("ACL", "SETUSER", "default", "-zmscore")  # type: ignore[no-untyped-call]
    try:

        async def refused() -> bool:
            answer = await world.ask(BY_POSTCODE, CRABTREE)
            assert answer.verdict == "found"
            return answer.source == "bypass" and _refusals(world) > 0

        await until(refused)
    finally:
        await world.redis.execute_command("ACL", "SETUSER", "default", "+@all")  # type: ignore[no-untyped-call]
    assert (await world.stored(BY_POSTCODE, CRABTREE)).source == "hit"
