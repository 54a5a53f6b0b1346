"""The inbox of case events: what was seen is dropped, what is missing is fetched, whatever order Kafka has."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest_asyncio

from streams.cases import rows
from streams.consumer.replay import parked_cases, resume
from streams.errors import Rejected
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import QUICK, BatchRecorder, Bench, Recorder, history, open_bench, until


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


def versions(case_id: UUID, *numbers: int) -> list[CaseEvent]:
    return [case_event(number, case_id=case_id) for number in numbers]


async def store(bench: Bench, *events: CaseEvent) -> None:
    """Writes the events as the gateway would have, but for the outbox."""
    newest = events[-1]
    async with bench.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            """insert into cases (id, reference, type, version, status, document, sealed, submitted_by)
               values ($1, $2, $3, $4, 'open', $5, $6, 'form')""",
            newest.case_id,
            newest.reference,
            newest.case_type,
            newest.version,
            rows.dumps(newest.document),
            newest.sealed,
        )
        for event in events:
            await rows.append_event(connection, event, actor="form", topic=bench.topic)


async def seen(bench: Bench, case_id: UUID) -> int | None:
    version: int | None = await bench.pool.fetchval(
        "select version from case_seen where consumer_group = $1 and case_id = $2", bench.group, case_id
    )
    return version


def gaps(bench: Bench, outcome: str) -> float:
    count: float = bench.metrics.gaps.labels(bench.group, outcome)._value.get()
    return count


async def test_what_was_seen_is_dropped_wherever_it_lies(bench: Bench) -> None:
    """A relay that wakes up late publishes old versions after new ones: the handler never sees them."""
    case_id = uuid4()
    await bench.write(*versions(case_id, 1, 2, 3), *versions(case_id, 2, 3), *versions(case_id, 4))
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: handler.versions(case_id) == [1, 2, 3, 4])
        async with asyncio.timeout(10):
            while await seen(bench, case_id) != 4:
                await asyncio.sleep(0.05)
    assert await bench.committed() == 6
    assert bench.counted("duplicate") == 2
    again = Recorder()
    await bench.write(*versions(case_id, 3, 4, 5))
    async with bench.consuming(again):
        await until(lambda: again.versions(case_id) == [5])
    assert bench.metrics.duplicates.labels(bench.group)._value.get() == 4


async def test_a_gap_is_filled_from_the_gateways_database(bench: Bench) -> None:
    """A version that Kafka shows before the one before it waits for that one; the late copy is dropped."""
    case_id = uuid4()
    events = versions(case_id, 1, 2, 3, 4)
    await store(bench, *events)
    await bench.write(events[0], events[3], events[1], events[2])
    handler = BatchRecorder()
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 4)
        await until(lambda: bench.counted("duplicate") == 2)
    assert handler.applied == events
    assert gaps(bench, "filled") == 2
    assert gaps(bench, "unfilled") == 0
    assert await bench.committed() == 4


async def test_a_gap_that_nobody_can_fill_holds_nothing_up(bench: Bench) -> None:
    """An event whose predecessor exists nowhere is handled, and counted: the event carries the whole case."""
    case_id = uuid4()
    await bench.write(*versions(case_id, 1, 4))
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: handler.versions(case_id) == [1, 4])
    assert gaps(bench, "unfilled") == 2


async def test_the_first_sight_of_a_case_may_be_any_version(bench: Bench) -> None:
    """A group that is new to a case misses nothing that it was ever promised."""
    case_id = uuid4()
    await bench.write(*versions(case_id, 7, 8))
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: handler.versions(case_id) == [7, 8])
    assert gaps(bench, "unfilled") == 0


async def test_a_filled_event_is_parked_with_what_follows(bench: Bench) -> None:
    """A case that fails at a version taken from the database is parked from there, in order, and comes back whole."""
    case_id = uuid4()
    events = versions(case_id, 1, 2, 3, 4)
    await store(bench, *events)
    refuses = True

    def behave(event: CaseEvent) -> None:
        if refuses and event.version >= 2:
            raise Rejected("no such street")

    handler = Recorder(behave)
    await bench.write(events[0], events[3])
    async with bench.consuming(handler):
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 3)
        assert [case.events for case in await parked_cases(bench.pool)] == [3]
        refuses = False
        await resume(bench.pool, bench.group, [case_id])
        await until(lambda: handler.versions(case_id) == [1, 2, 3, 4])
    assert await seen(bench, case_id) == 4


async def test_parked_events_count_as_seen(bench: Bench) -> None:
    """What waits for a person is not handed out a second time when Kafka delivers it again."""
    case_id = uuid4()

    def behave(_: CaseEvent) -> None:
        raise Rejected("no such street")

    events = versions(case_id, 1, 2)
    await bench.write(*events)
    async with bench.consuming(Recorder(behave)):
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 2)
    assert await seen(bench, case_id) == 2
    await bench.write(*events)
    async with bench.consuming(Recorder(behave)):
        await until(lambda: bench.counted("duplicate") == 2)
    assert [case.events for case in await parked_cases(bench.pool)] == [2]


async def test_cases_are_forgotten_only_when_the_inbox_knows_them(bench: Bench) -> None:
    """With room for few cases in memory, the versions of many are still told apart."""
    events = history(cases=60, versions=3)
    doubled = [event for event in events for _ in range(2)]
    await bench.write(*doubled)
    handler = Recorder()
    async with bench.consuming(handler, replace(QUICK, known_cases=10, events=40)):
        await until(lambda: len(handler.applied) == 180 and bench.counted("duplicate") == 180)
    assert sorted(event.event_id for event in handler.applied) == sorted(event.event_id for event in events)
    assert await bench.committed() == 360


async def test_while_the_inbox_is_away_nothing_is_handled(bench: Bench) -> None:
    """Without its inbox the consumer cannot tell old from new: it waits, stays in the group, and goes on."""
    first = case_event()
    await bench.write(first)
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1)
        await bench.pool.execute("alter table case_seen rename to case_seen_elsewhere")
        await bench.write(case_event())
        await asyncio.sleep(0.5)
        assert len(handler.applied) == 1
        await bench.pool.execute("alter table case_seen_elsewhere rename to case_seen")
        await until(lambda: len(handler.applied) == 2)
    assert bench.metrics.rebalances.labels(bench.group)._value.get() == 1
    assert await bench.committed() == 2
