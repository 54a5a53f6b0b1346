"""What follows an effect: a change, a note or another effect, once, whatever happens to the worker in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.audit import Audit
from gateway.dev.addresses import Database
from streams.cases.cases import Cases
from streams.cases.casetype import CaseType
from streams.events import HOP_LIMIT, CaseEvent
from streams.flow import Flow
from streams.flows.following import Follower
from tests.effects import (
    SCHEMA,
    auditing,
    case_keys,
    effects,
    ledger,
    open_pool,
    plan,
    running,
    settled,
)
from tests.providers import NoneSink

TYPE = "public-toilet-problem"
RESIDENT = "alex@example.org"
FLOW = """flow: report-a-problem
case_type: public-toilet-problem
effects:
  - purpose: confirmation
    on: [case.created, case.updated]
    sink: email
    template: confirmation
    to: submitter.email
    occurrence: version
    then:
      done: {done}
      failed: {{end: true}}
      unknown: {{note: Nobody knows whether the confirmation was sent.}}
  - purpose: apology
    when:
      submitter.email: {{present: true}}
    sink: email
    template: confirmation
    to: submitter.email
    occurrence: version
    then: {{done: {{end: true}}, failed: {{end: true}}, unknown: {{end: true}}}}
"""


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(gateway_database.url) as opened:
        yield opened


@pytest.fixture
async def audit(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    async with auditing(pool) as trail:
        yield trail


def flow(done: str) -> Flow:
    return Flow.parse(FLOW.format(done=done), Path("flow.yaml"))


def cases(pool: asyncpg.Pool) -> Cases:
    return Cases(pool, case_keys(), {TYPE: CaseType(TYPE, SCHEMA)}, topic="cases.changes.v1")


async def report(pool: asyncpg.Pool) -> CaseEvent:
    """Take a whole case, as the edge does, and return its event."""
    who: dict[str, Any] = {"actor": "form", "origin": "api", "correlation_id": str(uuid4())}
    created = await cases(pool).create(TYPE, SCHEMA["examples"][0], **who)
    (event,) = await cases(pool).history(created.case.id)
    return event


def follower(pool: asyncpg.Pool, done: str) -> Follower:
    return Follower(pool, case_keys(), cases(pool), [flow(done)], poll_s=0.02)


async def ended(pool: asyncpg.Pool, audit: Audit, done: str, state: str = "done", *trouble: str) -> CaseEvent:
    """Let one confirmation of a new case end, and return the case's event."""
    event = await report(pool)
    await plan(pool, event, by=flow(done))
    async with running(ledger(pool, NoneSink(*trouble), audit)):
        await settled(pool, state)
    return event


async def history(pool: asyncpg.Pool) -> list[Mapping[str, Any]]:
    return [dict(row) for row in await pool.fetch("select * from case_event where version > 1 order by version")]


async def test_a_change_follows_once(pool: asyncpg.Pool, audit: Audit) -> None:
    """Done sets a field: one new version with the effect's correlation and one hop, also when it is followed again."""
    done = "{set: {status: in_progress}}"
    event = await ended(pool, audit, done)
    assert await follower(pool, done).follow_one()
    assert not await follower(pool, done).follow_one()
    await pool.execute("update effect set follow = 'done'")  # as a worker leaves it that died before its commit
    await cases(pool).change(event.case_id, {"status": "open"}, actor="a", origin="api", correlation_id="later")
    assert await follower(pool, done).follow_one()
    changed = [row for row in await history(pool) if row["origin"] == "flow:report-a-problem"]
    assert [(row["correlation_id"], row["hops"], row["type"]) for row in changed] == [
        (event.correlation_id, 1, "case.updated")
    ]
    assert await pool.fetchval("select status from cases") == "open"


async def test_an_unknown_effect_leaves_a_note(pool: asyncpg.Pool, audit: Audit) -> None:
    """Each way in which an effect ends has a branch of its own; the note is sealed with the case."""
    event = await ended(pool, audit, "{end: true}", "unknown", "lost")
    assert await follower(pool, "{end: true}").follow_one()
    case = await cases(pool).read(event.case_id)
    notes = cases(pool).whole(case)["notes"]
    assert notes[-1]["text"] == "Nobody knows whether the confirmation was sent."


async def test_another_effect_follows(pool: asyncpg.Pool, audit: Audit) -> None:
    """Done plans another effect about the same version, with its own id, template and address, once."""
    done = "{plan: apology}"
    await ended(pool, audit, done)
    assert await follower(pool, done).follow_one()
    await pool.execute("update effect set follow = 'done' where purpose = 'confirmation'")
    assert await follower(pool, done).follow_one()
    first, second = await effects(pool)
    assert (second["purpose"], second["state"]) == ("apology", "planned")
    assert (second["occurrence"], second["case_version"]) == (first["occurrence"], first["case_version"])
    sink = NoneSink()
    async with running(ledger(pool, sink, audit)):
        await settled(pool, "done", "done")
    assert f"{second['effect_id']} {RESIDENT}".encode() in sink.acts[0]


async def test_nothing_follows_where_the_flow_says_so(pool: asyncpg.Pool, audit: Audit) -> None:
    """An end is an end, and so is an outcome of an effect that no flow knows any more."""
    await ended(pool, audit, "{end: true}")
    assert await follower(pool, "{end: true}").follow_one()
    await pool.execute("update effect set follow = 'done', purpose = 'forgotten'")
    assert await follower(pool, "{plan: apology}").follow_one()
    assert (len(await effects(pool)), await history(pool)) == (1, [])


async def test_an_erased_case_is_left_alone(pool: asyncpg.Pool, audit: Audit) -> None:
    """Of a case that was erased nothing is changed or planned, and nobody asks for it again."""
    for done in ("{set: {status: closed}}", "{plan: apology}"):
        await ended(pool, audit, done)
        await pool.execute("update case_key set wrapped = null, erased_at = now()")
        assert await follower(pool, done).follow_one()
        assert not await follower(pool, done).follow_one()
        assert (len(await effects(pool)), await history(pool)) == (1, [])
        await pool.execute("truncate effect, effect_attempt, effect_check")


async def test_a_circle_ends_at_the_limit_of_hops(pool: asyncpg.Pool, audit: Audit) -> None:
    """A flow that goes round for ever, against its check, stops after a few changes and says so."""
    done = "{note: And again.}"
    circle = FLOW.replace("[case.created, case.updated]", "[case.created, case.noted]").format(done=done)
    endless = Flow.parse(circle, Path("flow.yaml"))
    event = await report(pool)
    await plan(pool, event, by=endless)
    follows = Follower(pool, case_keys(), cases(pool), [endless], poll_s=0.02)
    async with running(ledger(pool, NoneSink(), audit)):
        for round_ in range(HOP_LIMIT + 2):
            await settled(pool, *["done"] * min(round_ + 1, HOP_LIMIT + 1))
            await follows.follow_one()
            await plan(pool, *await cases(pool).history(event.case_id, 1), by=endless)
    assert [row["hops"] for row in await history(pool)] == [1, 2, 3]


async def test_two_workers_follow_each_effect_once(pool: asyncpg.Pool, audit: Audit) -> None:
    """Any number of workers share what follows; a stop ends them."""
    done = "{note: Sent.}"
    for _ in range(8):
        event = await report(pool)
        await plan(pool, event, by=flow(done))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(follower(pool, done).run(stop))
        async with running(ledger(pool, NoneSink(), audit)):
            await settled(pool, *["done"] * 8)
            while await pool.fetchval("select exists (select from effect where follow is not null)"):
                await asyncio.sleep(0.02)
        stop.set()
    assert [row["version"] for row in await history(pool)] == [2] * 8
