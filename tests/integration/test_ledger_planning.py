"""From an event to planned effects: the flow's planner on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest

from gateway.dev.addresses import Database
from streams.errors import Fenced, Rejected, Retryable, Unavailable
from streams.flows.planner import FlowPlanner
from streams.testing import case_event
from tests.effects import FENCE, RESIDENT, case_keys, effects, flow, open_pool, own, plan, report


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


async def test_a_new_case_plans_its_confirmation(pool: asyncpg.Pool) -> None:
    """The row names case, version, purpose and correlation id in clear, and what it needs to be sent is sealed."""
    event = await report(pool)
    await plan(pool, event)
    (effect,) = await effects(pool)
    assert (effect["state"], effect["sink"], effect["purpose"]) == ("planned", "email", "confirmation")
    assert (effect["case_id"], effect["case_version"], effect["occurrence"]) == (event.case_id, 1, "once")
    assert effect["correlation_id"] == event.correlation_id
    assert RESIDENT.encode() not in effect["payload"]


async def test_without_an_address_and_after_erasure_nothing_is_planned(pool: asyncpg.Pool) -> None:
    """A case without an e-mail address, and one whose key was destroyed, plan no mail and are no fault."""
    await plan(pool, await report(pool, email=None))
    erased = await report(pool)
    await pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", erased.case_id)
    await plan(pool, erased)
    assert await effects(pool) == []


async def test_an_event_that_plans_nothing_opens_nothing(pool: asyncpg.Pool) -> None:
    """An update is settled without reading a key: this one has none at all."""
    await plan(pool, case_event(2, case_id=uuid4()))
    assert await effects(pool) == []


async def test_a_case_without_a_key_is_parked(pool: asyncpg.Pool) -> None:
    """A missing key is neither erasure nor an outage: the case is rejected for a person to look at."""
    event = await report(pool)
    await pool.execute("delete from case_key")
    with pytest.raises(Rejected, match="has no key"):
        await plan(pool, event)


async def test_a_case_that_the_database_does_not_know_is_parked(pool: asyncpg.Pool) -> None:
    """An event of a case that a restore has forgotten plans nothing, and says why."""
    event = await report(pool)
    await pool.execute("delete from cases")
    with pytest.raises(Rejected, match="restored to an earlier time"):
        await plan(pool, event)


async def test_a_batch_is_planned_but_for_the_cases_that_cannot(pool: asyncpg.Pool) -> None:
    """One transaction for the batch: each event that cannot be planned is named with its case, and its later ones."""
    await own(pool)
    good, erased, keyless, unreadable = [await report(pool) for _ in range(4)]
    gone = case_event(case_id=uuid4())
    await pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", erased.case_id)
    await pool.execute("delete from case_key where case_id = $1", keyless.case_id)
    unreadable = replace(unreadable, sealed=b"no such thing")
    later = case_event(2, case_id=keyless.case_id)
    batch = [keyless, good, gone, erased, unreadable, later, case_event(2, case_id=uuid4()), good]
    errors = await FlowPlanner(flow(), pool, case_keys()).apply_each(batch, FENCE)
    assert {event_id: type(error) for event_id, error in errors.items()} == {
        keyless.event_id: Rejected,
        gone.event_id: Rejected,
        unreadable.event_id: Retryable,
        later.event_id: Rejected,
    }
    assert [errors[event.event_id].case_id for event in (keyless, gone, unreadable)] == [
        keyless.case_id,
        gone.case_id,
        unreadable.case_id,
    ]
    assert [effect["case_id"] for effect in await effects(pool)] == [good.case_id]


async def test_whoever_lost_the_partition_plans_nothing(pool: asyncpg.Pool) -> None:
    """A planner whose partition has a newer owner is fenced, and its rows are rolled back."""
    event = await report(pool)
    await own(pool)
    await pool.execute("update partition_fence set epoch = 2")
    with pytest.raises(Fenced):
        await plan(pool, event)
    assert await effects(pool) == []


async def test_an_outage_blames_no_case() -> None:
    """When the database is away, no case is to blame: all wait, none is parked."""
    async with asyncpg.create_pool("postgresql://silogate@127.0.0.1:9/none", min_size=0) as away:
        with pytest.raises(Unavailable, match="database cannot be used"):
            await FlowPlanner(flow(), away, case_keys()).apply([case_event()], FENCE)
