"""What holds sinks back: an hour's limit over all workers, and a first run that is more than anybody meant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.governor import Governor, release
from streams.effects.metrics import EffectMetrics
from tests.effects import auditing, ledger, open_pool, plan_confirmation, running, sample, settled, until
from tests.providers import NoneSink


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def planned(pool: asyncpg.Pool, number: int) -> None:
    for _ in range(number):
        await plan_confirmation(pool)


async def counted(pool: asyncpg.Pool, what: str, number: int) -> bool:
    found: int = await pool.fetchval(f"select count(*) from effect where {what}")
    return found == number


async def test_an_hour_has_room_for_so_many(pool: asyncpg.Pool, audit: Audit) -> None:
    """Two workers together perform an hour's worth and no more; the rest is held, counted, each due at its own time."""
    governor = Governor({"email": 5}, first_run="go")
    await planned(pool, 12)
    sinks = [NoneSink(), NoneSink()]
    registry = CollectorRegistry()
    first = ledger(pool, sinks[0], audit, governor=governor, metrics=EffectMetrics(registry, ["email"]))
    async with running(first), running(ledger(pool, sinks[1], audit, governor=governor)):
        await until(lambda: counted(pool, "state = 'done'", 5))
        await until(lambda: counted(pool, "held = 'rate' and due_at > now() + interval '30 minutes'", 7))
        assert await pool.fetchval("select count(distinct due_at) from effect where held = 'rate'") == 7
        await until(lambda: sample(registry, "silogate_effect_held"))
        assert await sample(registry, "silogate_effect_held") == 7
        # an hour passes
        await pool.execute("update effect_attempt set started_at = started_at - interval '1 hour'")
        await pool.execute("update effect set due_at = now() where held = 'rate'")
        await until(lambda: counted(pool, "state = 'done'", 10))
        await until(lambda: counted(pool, "held = 'rate' and due_at > now() + interval '30 minutes'", 2))
    assert sum(len(sink.acts) for sink in sinks) == 10


async def test_another_sink_is_not_held_up(pool: asyncpg.Pool, audit: Audit) -> None:
    """A limit is one sink's: what has none is performed at once."""
    await planned(pool, 3)
    sink = NoneSink()
    async with running(ledger(pool, sink, audit, governor=Governor({"letters": 0}, first_run="go"))):
        await settled(pool, *["done"] * 3)


async def test_a_first_run_of_many_is_held_until_it_is_released(pool: asyncpg.Pool, audit: Audit) -> None:
    """More than a handful for a sink that never acted: nothing goes out, nor what comes later, until a person says."""
    governor = Governor(many=3)
    await planned(pool, 4)
    sink = NoneSink()
    async with running(ledger(pool, sink, audit, governor=governor)):
        await until(lambda: counted(pool, "held = 'first_run'", 4))
        await planned(pool, 1)
        await until(lambda: counted(pool, "held = 'first_run'", 5))
        assert sink.acts == []
        assert await release(pool, "email", actor="ann", audit=audit) == 5
        await settled(pool, *["done"] * 5)
        await planned(pool, 4)
        await settled(pool, *["done"] * 9)
    assert await pool.fetchval("select released_by from sink_governor where sink = 'email'") == "ann"
    row = await pool.fetchrow("select actor, subject from audit where action = 'effect.released'")
    assert tuple(row) == ("ann", "email")


async def test_a_first_run_of_few_goes(pool: asyncpg.Pool, audit: Audit) -> None:
    """A sink that begins with a few effects acts, and is no new one from then on, whatever comes."""
    governor = Governor(many=3)
    sink = NoneSink()
    async with running(ledger(pool, sink, audit, governor=governor)):
        await asyncio.sleep(0.1)  # polled with nothing to do, before anything is known of it
        await planned(pool, 3)
        await settled(pool, *["done"] * 3)
    await planned(pool, 5)
    async with running(ledger(pool, sink, audit, governor=governor, owner=uuid4())):
        await settled(pool, *["done"] * 8)


async def test_a_release_before_the_first_run_lets_it_go(pool: asyncpg.Pool, audit: Audit) -> None:
    """Released in advance, a sink is never held; released twice, nothing changes."""
    for _ in range(2):
        assert await release(pool, "email", actor="ann", audit=audit) == 0
    await planned(pool, 4)
    async with running(ledger(pool, NoneSink(), audit, governor=Governor(many=3))):
        await settled(pool, *["done"] * 4)
