"""The ledger on a real database: an effect happens once, or is said to be unknown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.effects.metrics import CATALOGUE, EffectMetrics
from streams.ledger import unknown
from streams.sinks import Ambiguous, CommitPoint, NotSent
from tests.effects import (
    QUICK,
    RESIDENT,
    ControlledSink,
    Held,
    attempts,
    audit_rows,
    auditing,
    ledger,
    open_pool,
    plan,
    plan_confirmation,
    refused,
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


async def test_a_planned_effect_is_done_once(pool: asyncpg.Pool, audit: Audit) -> None:
    """An effect is performed once, with one attempt, one audit row and the provider's reference."""
    sink = ControlledSink()
    event = await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "done")
    assert (effect["provider_ref"], effect["reason"], effect["owner"]) == ("250 OK", None, None)
    assert (effect["case_id"], effect["correlation_id"]) == (event.case_id, event.correlation_id)
    assert await attempts(pool) == [(1, "committing", "done")]
    assert await audit_rows(pool) == [ONE]
    assert len(sink.done) == 1


async def test_an_event_read_again_plans_nothing_new(pool: asyncpg.Pool, audit: Audit) -> None:
    """Kafka may deliver an event any number of times, before and after the mail was sent: one effect, one act."""
    sink = ControlledSink()
    event = await plan_confirmation(pool)
    await plan(pool, event)
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done")
        await plan(pool, event)
        assert await states(pool) == ["done"]
    assert len(sink.done) == 1


async def test_a_refusal_is_tried_again_with_the_same_bytes(pool: asyncpg.Pool, audit: Audit) -> None:
    """What was surely not sent is sent later: rendered once, the same stored bytes each time, one audit row a try."""
    sink = ControlledSink(refused, refused)
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done")
    assert sink.rendered == 1
    assert len(sink.tried) == 3
    assert len(set(sink.tried)) == 1
    assert [outcome for _, _, outcome in await attempts(pool)] == ["not_sent", "not_sent", "done"]
    assert await audit_rows(pool) == [("effect.attempt", "not_sent", n) for n in (1, 2)] + [
        ("effect.attempt", "done", 3)
    ]


async def test_a_permanent_refusal_ends_it(pool: asyncpg.Pool, audit: Audit) -> None:
    """What will never be accepted fails with its reason and is not tried again."""

    async def never(_request: bytes, _commit_point: CommitPoint) -> str:
        raise NotSent("smtp_recipient:550", permanent=True)

    sink = ControlledSink(never)
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "failed")
    assert effect["reason"] == "smtp_recipient:550"
    assert (len(sink.tried), await audit_rows(pool)) == (1, [("effect.attempt", "failed", 1)])


async def test_patience_ends(pool: asyncpg.Pool, audit: Audit) -> None:
    """An effect that nobody accepts for days fails, and says what the last reason was."""
    patience = type(QUICK)(poll_s=0.02, backoff_s=0.02, give_up_after_s=0.0)
    await plan_confirmation(pool)
    async with running(ledger(pool, ControlledSink(refused), audit, patience=patience)):
        effect = await settled(pool, "failed")
    assert effect["reason"] == "gave_up:smtp_recipient:450"


async def test_an_ambiguous_end_is_unknown_and_shown(pool: asyncpg.Pool, audit: Audit) -> None:
    """A lost answer leaves the effect unknown: listed with its age, counted, and never performed again by itself."""

    async def lost(request: bytes, commit_point: CommitPoint) -> str:
        await sink.act(request, commit_point)
        raise Ambiguous("smtp_answer_lost")

    sink = ControlledSink(lost)
    event = await plan_confirmation(pool)
    registry = CollectorRegistry()
    async with running(ledger(pool, sink, audit, metrics=EffectMetrics(registry))):
        await settled(pool, "unknown")
        await until(lambda: sample(registry, "silogate_effect_state", state="unknown"))
    async with running(ledger(pool, sink, audit)):
        await asyncio.sleep(0.3)  # time for a worker that would resend to do so
    assert len(sink.done) == 1
    (shown,) = await unknown(pool)
    assert (shown.case_id, shown.sink, shown.purpose) == (event.case_id, "email", "confirmation")
    assert (shown.reason, shown.attempt) == ("smtp_answer_lost", 1)
    assert await audit_rows(pool) == [("effect.attempt", "unknown", 1)]


async def test_erasure_stops_what_was_planned(pool: asyncpg.Pool, audit: Audit) -> None:
    """When the case's key is destroyed before the mail went out, the effect fails as erased and nothing is sent."""
    event = await plan_confirmation(pool)
    await pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", event.case_id)
    sink = ControlledSink()
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "failed")
    assert (effect["reason"], sink.tried) == ("erased", [])
    assert await audit_rows(pool) == [("effect.attempt", "failed", 1)]


async def test_a_defect_before_the_act_is_tried_again_and_after_it_is_unknown(pool: asyncpg.Pool, audit: Audit) -> None:
    """A sink that breaks stops no other effect; what its own becomes depends on where it broke."""

    async def breaks(_request: bytes, _commit_point: CommitPoint) -> str:
        raise KeyError(RESIDENT)

    async def breaks_late(request: bytes, commit_point: CommitPoint) -> str:
        await sink.act(request, commit_point)
        raise KeyError(RESIDENT)

    sink = ControlledSink(breaks, breaks_late)
    await plan_confirmation(pool)
    async with running(ledger(pool, sink, audit)):
        effect = await settled(pool, "unknown")
    assert effect["reason"] == "defect:KeyError"
    assert [outcome for _, _, outcome in await attempts(pool)] == ["not_sent", "unknown"]


async def test_time_running_out_is_judged_by_the_commit_point(pool: asyncpg.Pool, audit: Audit) -> None:
    """A sink that hangs is cut off: before the commit point the effect is tried again, after it it is unknown."""
    sink = ControlledSink()
    hung = [Held(sink.done, past_commit_point=past) for past in (False, True)]
    stuck = ControlledSink(*hung)
    stuck.timeout_s = 0.3
    await plan_confirmation(pool)
    async with running(ledger(pool, stuck, audit)):
        effect = await settled(pool, "unknown")
    assert (effect["reason"], effect["attempt"]) == ("timed_out", 2)


async def test_a_stop_finishes_what_is_in_hand(pool: asyncpg.Pool, audit: Audit) -> None:
    """Asked to stop, a worker takes nothing new but waits for the act under way, and writes its outcome down."""
    sink = ControlledSink()
    held = Held(sink.done, past_commit_point=True)
    await plan_confirmation(pool)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger(pool, ControlledSink(held), audit, width=1).run(stop))
        await held.there.wait()
        stop.set()
        await plan_confirmation(pool)
        await asyncio.sleep(0.2)
        assert not task.done()
        held.go.set()
    assert await states(pool) == ["done", "planned"]


async def test_what_is_stored_and_logged_shows_no_person(
    pool: asyncpg.Pool, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    """The address lies sealed in the ledger, and appears in no log line, reason or audit row."""
    caplog.set_level(logging.DEBUG)

    async def breaks(_request: bytes, _commit_point: CommitPoint) -> str:
        raise ValueError(f"no such user {RESIDENT}")

    await plan_confirmation(pool)
    async with running(ledger(pool, ControlledSink(breaks), audit)):
        await settled(pool, "done")
    stored = str([dict(row) for row in await pool.fetch("select * from effect, effect_attempt, audit")])
    assert RESIDENT not in stored
    assert "Whitfield" not in stored
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "ledger.defect" in logged
    assert RESIDENT not in logged


async def test_the_metrics_are_the_catalogue(pool: asyncpg.Pool, audit: Audit) -> None:
    """Every metric of the catalogue is served, with its labels, and nothing else."""
    registry = CollectorRegistry()
    await plan_confirmation(pool)
    async with running(ledger(pool, ControlledSink(), audit, metrics=EffectMetrics(registry, ["email"]))):
        await settled(pool, "done")
        await until(lambda: sample(registry, "silogate_effect_attempts_total", outcome="done"))
    served = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in registry.collect()
    }
    assert served == {metric.name: (metric.kind, metric.help) for metric in CATALOGUE}
    assert await sample(registry, "silogate_effect_seconds_count") == 1
