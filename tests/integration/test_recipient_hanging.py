"""A recipient at which some rows hang: each call ends in its time, the others are written, and the guilty are named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest_asyncio
from prometheus_client import CollectorRegistry

from gateway.dev.addresses import Servers
from streams.consumer.consumer import Consumer
from streams.consumer.limits import Retry
from streams.consumer.replay import parked_cases
from streams.errors import Retryable, Untried
from streams.events import CaseEvent, encode
from streams.metrics import StreamMetrics
from streams.outbox import producer
from streams.topics import ensure_topics
from tests.integration.consumer_bench import QUICK
from tests.integration.recipient_world import Remote, World, fence, jobs, world

TEAM = "street-team"
HANGS = (
    "create function street.odd() returns trigger language plpgsql as $$ begin"
    " if new.where_exactly = 'on the roof' then perform pg_sleep(60); end if; return new; end $$;"
    "create trigger odd before insert or update on street.job for each row execute function street.odd();"
)


@pytest_asyncio.fixture(scope="module")
async def gateway(servers: Servers) -> AsyncIterator[World]:
    async with world(servers) as here:
        yield here


async def reported(gateway: World, number: int, hanging: set[int]) -> tuple[set[UUID], list[CaseEvent]]:
    """The cases that the recipient hangs at, and the events of all."""
    roof = {"easting": 518225, "northing": 104730, "description": "on the roof"}
    cases = [await (gateway.report(location=roof) if n in hanging else gateway.report()) for n in range(number)]
    return {cases[n].id for n in hanging}, await gateway.events(*(case.id for case in cases))


async def test_hanging_rows_cost_one_budget_a_round(gateway: World) -> None:
    """Six of 120 rows hang: no call outlasts its deadline or blames the recipient, each writes some, six are left."""
    async with gateway.remote(TEAM, statement_s=0.5, deadline_s=4.0, extra_sql=HANGS) as team:
        sick, events = await reported(gateway, 120, {3, 4, 50, 77, 78, 119})
        rounds = 0
        named: set[UUID] = set()
        while len(events) > 6:
            rounds += 1
            assert rounds < 12
            begun = time.monotonic()
            errors = await team.recipient.apply_each(events, fence(TEAM))
            assert time.monotonic() - begun < 3
            tried = {event.case_id for event in events if type(errors.get(event.event_id)) is Retryable}
            assert all(isinstance(error, Retryable) for error in errors.values())
            assert tried
            assert tried <= sick
            assert {error.case_id for error in errors.values() if isinstance(error, Retryable)} <= {
                event.case_id for event in events
            }
            named |= tried
            events = [event for event in events if event.event_id in errors]
        assert named == {event.case_id for event in events} == sick
        assert len(await jobs(team)) == 114


async def test_rows_that_others_hold_end_in_time_too(gateway: World) -> None:
    """A clerk's open transaction holds half of 40 jobs: the call ends, what it could try is named, the rest Untried."""
    async with gateway.remote(TEAM, lock_s=0.2, deadline_s=4.0) as team:
        _, events = await reported(gateway, 40, set())
        assert await team.recipient.apply_each(events, fence(TEAM)) == {}
        changed = [(await gateway.note(event.case_id, "More.")).id for event in events]
        again = [event for event in await gateway.events(*changed) if event.version == 2]
        async with team.session.transaction():
            await team.session.execute("select from street.job where job_no % 2 = 0 for update")
            begun = time.monotonic()
            errors = await team.recipient.apply_each(again, fence(TEAM))
            assert time.monotonic() - begun < 3
        kinds = {type(error) for error in errors.values()}
        assert kinds <= {Retryable, Untried}
        assert Retryable in kinds
        left = [event for event in again if event.event_id in errors]
        assert await team.recipient.apply_each(left, fence(TEAM)) == {}
        assert {job["gateway_version"] for job in await jobs(team)} == {2}


async def test_a_slow_row_is_written_when_it_is_tried_alone(gateway: World) -> None:
    """A row that needs most of a statement's time is named among others, and written by itself."""
    async with gateway.remote(TEAM, statement_s=1.0, extra_sql=HANGS.replace("60", "0.6")) as team:
        slow, events = await reported(gateway, 8, {2, 5})
        errors = await team.recipient.apply_each(events, fence(TEAM))
        assert {error.case_id for error in errors.values() if isinstance(error, Retryable)} == slow
        for event in events:
            if event.event_id in errors:
                assert await team.recipient.apply_each([event], fence(TEAM)) == {}
        assert len(await jobs(team)) == 8


async def test_the_consumer_parks_what_hangs_and_writes_the_rest(
    gateway: World, servers: Servers, topic_prefix: str
) -> None:
    """Hanging rows reach their limit beside everybody else: later cases are written while they are tried again."""
    topic = f"{topic_prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], 2, 1)
    limits = replace(QUICK, retry=Retry(attempts=3, first_delay_s=0.05, longest_delay_s=0.2))
    async with gateway.remote(TEAM, statement_s=1.0, deadline_s=8.0, extra_sql=HANGS) as team:
        sick, events = await reported(gateway, 60, {1, 20, 40})
        await _write(servers, topic, events)
        consumer = Consumer(
            servers.kafka_bootstrap,
            f"{topic_prefix}{TEAM}",
            topic,
            team.recipient,
            pool=gateway.pool,
            metrics=StreamMetrics(CollectorRegistry()),
            limits=limits,
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
            tasks.create_task(consumer.run(stop))
            await _until_written(team, 57)
            _, later = await reported(gateway, 20, set())
            await _write(servers, topic, later)
            await _until_written(team, 77)
            while len(await parked_cases(gateway.pool)) < 3:
                await asyncio.sleep(0.05)
            stop.set()
        parked = await parked_cases(gateway.pool)
        assert {case.case_id for case in parked} == sick
        assert {case.attempts for case in parked} == {3}


async def _write(servers: Servers, topic: str, events: list[CaseEvent]) -> None:
    writer = producer(servers.kafka_bootstrap, "test")
    await writer.start()
    for event in events:
        key, value, headers = encode(event)
        await writer.send(topic, value, key=key, headers=headers)
    await writer.flush()
    await writer.stop()


async def _until_written(team: Remote, number: int) -> None:
    while await team.session.fetchval("select count(*) from street.job") < number:
        await asyncio.sleep(0.05)
