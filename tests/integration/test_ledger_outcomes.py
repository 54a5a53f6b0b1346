"""The outcomes of effects for their topic: written with the state, once each, and without a personal value."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.metrics import EffectMetrics
from streams.effects.resolving import resolve
from tests.effects import RESIDENT, auditing, effects, ledger, open_pool, plan_confirmation, running, settled
from tests.providers import NaturalSink, NoneSink, Provider, SearchableSink

TOPIC = "cases.effects.v1"


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


async def outcomes(pool: asyncpg.Pool) -> list[dict[str, Any]]:
    """The outbox rows of the topic, with headers and value read."""
    rows = await pool.fetch("select * from outbox where topic = $1 order by id", TOPIC)
    return [
        {**dict(row), "headers": dict(json.loads(row["headers"])), "value": json.loads(row["value"])} for row in rows
    ]


@pytest.mark.parametrize(
    ("sink", "states"),
    [
        (NoneSink("later"), ["done"]),
        (NoneSink("refused"), ["failed"]),
        (NoneSink("lost"), ["unknown"]),
        (NaturalSink("lost"), ["done"]),
        (SearchableSink("lost"), ["unknown", "done"]),
        (SearchableSink("vanished"), ["unknown", "done"]),
    ],
    ids=["done", "failed", "unknown", "done-again", "found", "not-found"],
)
async def test_each_outcome_is_told_once(pool: asyncpg.Pool, audit: Audit, sink: Provider, states: list[str]) -> None:
    """Every state an effect comes to is one event on its case's key; an attempt that is repeated tells nothing."""
    registry = CollectorRegistry()
    event = await plan_confirmation(pool)
    metrics = EffectMetrics(registry, ["email"])
    async with running(ledger(pool, sink, audit, outcomes_topic=TOPIC, metrics=metrics)):
        await settled(pool, states[-1])
    rows = await outcomes(pool)
    assert [row["value"]["outcome"] for row in rows] == states
    assert [row["headers"]["ce_type"] for row in rows] == [f"uk.silogate.effect.{state}.v1" for state in states]
    assert {row["key"] for row in rows} == {str(event.case_id)}
    assert len({row["headers"]["ce_id"] for row in rows}) == len(states)
    assert RESIDENT not in str(rows)
    assert registry.get_sample_value("silogate_effect_outcomes_published_total") == len(states)
    # in one step with the state: the same transaction wrote both
    assert await pool.fetchval("select e.xmin = o.xmin from effect e, outbox o order by o.id desc limit 1")


async def test_what_an_outcome_says(pool: asyncpg.Pool, audit: Audit) -> None:
    """Ids, names, the attempt and the provider's reference; the correlation of the case's event travels along."""
    event = await plan_confirmation(pool)
    async with running(ledger(pool, NoneSink(), audit, outcomes_topic=TOPIC)):
        await settled(pool, "done")
    (row,) = await outcomes(pool)
    (effect,) = await effects(pool)
    assert row["value"] == {
        "effect_id": str(effect["effect_id"]),
        "case_id": str(event.case_id),
        "case_version": 1,
        "reference": event.reference,
        "sink": "email",
        "purpose": "confirmation",
        "occurrence": "once",
        "attempt": 1,
        "outcome": "done",
        "reason": None,
        "provider_reference": "ref-1",
    }
    assert row["headers"]["ce_specversion"] == "1.0"
    assert row["headers"]["ce_source"] == "urn:silogate:effects"
    assert row["headers"]["ce_subject"] == event.reference
    assert row["headers"]["ce_correlationid"] == event.correlation_id


async def test_a_persons_word_is_told_without_the_words(pool: asyncpg.Pool, audit: Audit) -> None:
    """An effect that a person resolves is told as done; what the person wrote about it is not."""
    await plan_confirmation(pool)
    async with running(ledger(pool, NoneSink("lost"), audit, outcomes_topic=TOPIC)):
        effect_id = (await settled(pool, "unknown"))["effect_id"]
    words = "Ada Whitfield rang and has it"
    await resolve(pool, effect_id, "done", reason=words, actor="ann", audit=audit, outcomes_topic=TOPIC)
    unknown, done = await outcomes(pool)
    assert (unknown["value"]["reason"], done["value"]["outcome"]) == ("http:reset", "done")
    assert "Whitfield" not in str(done)


async def test_without_a_topic_nothing_is_told(pool: asyncpg.Pool, audit: Audit) -> None:
    """A ledger that was given no topic writes no event."""
    await plan_confirmation(pool)
    async with running(ledger(pool, NoneSink(), audit)):
        await settled(pool, "done")
    assert await outcomes(pool) == []
