"""Many workers and one effect: lost, paused and overtaken workers never make it happen twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.metrics import EffectMetrics
from streams.effects.store import EffectStore
from streams.sinks import LeaseLost
from tests.effects import (
    ControlledSink,
    Held,
    attempts,
    audit_rows,
    auditing,
    expire,
    ledger,
    lose,
    open_pool,
    plan_confirmation,
    running,
    sample,
    settled,
    states,
    until,
)

ONE = ("effect.attempt", "done", 1)


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def test_a_worker_lost_before_the_act_leaves_it_to_another(pool: asyncpg.Pool, audit: Audit) -> None:
    """A worker that dies before the commit point did nothing: another performs the stored bytes after the lease."""
    sink = ControlledSink()
    held = Held(sink.done, past_commit_point=False)
    first = ControlledSink(held)
    await plan_confirmation(pool)
    async with running(ledger(pool, first, audit)) as task:
        await held.there.wait()
        await lose(task)
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done")
    assert sink.done == first.tried
    assert (first.rendered, sink.rendered) == (1, 0)
    assert await attempts(pool) == [(1, "sending", "not_sent"), (2, "committing", "done")]
    assert await audit_rows(pool) == [("effect.attempt", "not_sent", 1), ("effect.attempt", "done", 2)]


async def test_a_worker_lost_at_the_act_leaves_it_unknown(pool: asyncpg.Pool, audit: Audit) -> None:
    """A worker that dies after the commit point may have acted: nobody acts again."""
    sink = ControlledSink()
    held = Held(sink.done, past_commit_point=True)
    await plan_confirmation(pool)
    async with running(ledger(pool, ControlledSink(held), audit)) as task:
        await held.there.wait()
        await lose(task)
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "unknown")
    assert effect["reason"] == "worker_lost_at_the_act"
    assert sink.tried == []
    assert await audit_rows(pool) == [("effect.attempt", "unknown", 1)]


async def test_a_worker_paused_before_the_act_is_stopped_at_the_commit_point(pool: asyncpg.Pool, audit: Audit) -> None:
    """A worker that wakes after its lease, when another has sent the mail, does not send it again."""
    sink = ControlledSink()
    held = Held(sink.done, past_commit_point=False)
    paused = ControlledSink(held)
    registry = CollectorRegistry()
    await plan_confirmation(pool)
    async with running(ledger(pool, paused, audit, lease_s=60.0, metrics=EffectMetrics(registry))):
        await held.there.wait()
        await expire(pool)
        async with running(ledger(pool, sink, audit)):
            await settled(pool, "done")
        held.go.set()
        await until(lambda: sample(registry, "silogate_effect_leases_lost_total"))
    assert len(sink.done) == 1
    assert await states(pool) == ["done"]
    assert await audit_rows(pool) == [("effect.attempt", "not_sent", 1), ("effect.attempt", "done", 2)]


async def test_a_worker_paused_at_the_act_brings_the_answer_late(pool: asyncpg.Pool, audit: Audit) -> None:
    """What was taken for lost is unknown until its worker wakes and knows the provider's answer; it is sent once."""
    sink = ControlledSink()
    held = Held(sink.done, past_commit_point=True)
    await plan_confirmation(pool)
    async with running(ledger(pool, ControlledSink(held), audit, lease_s=60.0)):
        await held.there.wait()
        await expire(pool)
        async with running(ledger(pool, sink, audit)):
            await settled(pool, "unknown")
        held.go.set()
        effect = await settled(pool, "done")
    assert (len(sink.done), effect["provider_ref"]) == (1, "250 late")
    assert await audit_rows(pool) == [("effect.attempt", "unknown", 1), ("effect.resolved", "done", 1)]


async def test_commit_point_and_adoption_never_both_win(pool: asyncpg.Pool) -> None:
    """In a race at the end of a lease, an adopter that finds `sending` has surely stopped the worker before it."""
    dice = random.Random(22)
    outcomes: set[tuple[bool, str]] = set()
    # two that are decided, so that both ends are seen on any machine, and then the race
    races = [(0.5, 0.0), (0.0, 0.01), *((dice.uniform(0.0, 0.012), dice.uniform(0.0, 0.012)) for _ in range(60))]
    for span, wait_s in races:
        await plan_confirmation(pool)
        first, second = EffectStore(pool, uuid4(), 30.0), EffectStore(pool, uuid4(), 30.0)
        (effect,) = await first.claim(["email"], [], 1)
        await first.intend(effect, b"sealed", b"hash")
        number = await first.begin(effect)
        await pool.execute(
            "update effect set lease_until = clock_timestamp() + make_interval(secs => $1) where effect_id = $2",
            span,
            effect.effect_id,
        )
        acted, found = await asyncio.gather(_tries(first, effect.effect_id, number, wait_s), _adopts(second))
        assert not (acted and found == "sending")
        outcomes.add((acted, found))
        await pool.execute("truncate effect, effect_attempt, effect_check")
    assert outcomes == {(True, "committing"), (False, "sending")}


async def test_an_adopter_waits_for_a_commit_point_under_way(pool: asyncpg.Pool) -> None:
    """A commit point that began within the lease and ends after it is not overtaken: the adopter finds `committing`."""
    await plan_confirmation(pool)
    first, second = EffectStore(pool, uuid4(), 1.5), EffectStore(pool, uuid4(), 1.5)
    (effect,) = await first.claim(["email"], [], 1)
    await first.intend(effect, b"sealed", b"hash")
    number = await first.begin(effect)
    async with asyncio.TaskGroup() as group, pool.acquire() as slow, slow.transaction():
        await slow.execute("select from effect_attempt for update")
        passing = group.create_task(first.commit_point(effect.effect_id, number))
        await until(lambda: pool.fetchval("select lease_until < now() from effect"))
        assert not passing.done()
        assert await second.claim(["email"], [], 1) == []
    assert await _adopts(second) == "committing"


async def _tries(store: EffectStore, effect_id: UUID, number: int, wait_s: float) -> bool:
    await asyncio.sleep(wait_s)
    try:
        await store.commit_point(effect_id, number)
    except LeaseLost:
        return False
    return True


async def _adopts(store: EffectStore) -> str:
    (adopted,) = await until(lambda: store.claim(["email"], [], 1))
    left = await store.attempt(adopted.effect_id, adopted.attempt)
    assert adopted.adopted
    assert left is not None
    return left.phase


async def test_workers_share_the_work(pool: asyncpg.Pool, audit: Audit) -> None:
    """Three workers at once perform every effect exactly once between them."""
    for _ in range(30):
        await plan_confirmation(pool)
    sinks = [ControlledSink() for _ in range(3)]
    first, second, third = (running(ledger(pool, sink, audit)) for sink in sinks)
    async with first, second, third:
        await settled(pool, *["done"] * 30)
    done = [request for sink in sinks for request in sink.done]
    assert (len(done), len(set(done))) == (30, 30)
    assert await audit_rows(pool) == [ONE] * 30
