"""The consumer on a real Kafka and a real Postgres: nothing lost, order within a case, whatever stops it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from aiokafka import TopicPartition

from streams import failpoints
from streams.consumer.consumer import Consumer
from streams.consumer.replay import parked_cases
from streams.errors import Rejected
from streams.events import CaseEvent
from streams.failpoints import Injected
from streams.testing import case_event
from tests.integration.consumer_bench import (
    PARTITIONS,
    QUICK,
    BatchRecorder,
    Bench,
    Recorder,
    assert_in_order,
    history,
    open_bench,
    until,
)


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


async def test_every_event_reaches_its_handler_in_order(bench: Bench) -> None:
    """Many cases at once, one event of a case at a time, each once, and everything is committed at the stop."""
    events = history(cases=50, versions=6)
    await bench.write(*events)
    handler = Recorder(lambda _: asyncio.sleep(0.001))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 300)
    assert {event.event_id for event in handler.applied} == {event.event_id for event in events}
    assert_in_order(handler.applied)
    assert handler.widest > 8
    assert await bench.committed() == 300
    assert bench.counted("done") == 300


async def test_a_batch_handler_gets_many_events_at_once(bench: Bench) -> None:
    """A recipient with its own database is given batches, cases in order, with a fence for exactly their partitions."""
    await bench.write(*history(cases=100, versions=5))
    handler = BatchRecorder()
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 500)
    assert_in_order(handler.applied)
    assert max(len(batch) for batch in handler.batches) > 50
    assert await bench.committed() == 500


async def test_a_stopped_consumer_continues_where_it_was(bench: Bench) -> None:
    """A restart repeats nothing that was committed and leaves nothing out."""
    first, second = Recorder(), Recorder()
    await bench.write(*history(10, 2))
    async with bench.consuming(first):
        await until(lambda: len(first.applied) == 20)
    await bench.write(*history(10, 2))
    async with bench.consuming(second):
        await until(lambda: len(second.applied) == 20)
    assert not {event.event_id for event in first.applied} & {event.event_id for event in second.applied}


async def test_two_consumers_share_the_partitions(bench: Bench) -> None:
    """A second process takes over part of the cases and gives them back under load; nothing is lost or repeated."""
    first, second = (Recorder(lambda _: asyncio.sleep(0.002)) for _ in range(2))
    ids = [uuid4() for _ in range(40)]
    written: set[tuple[UUID, int]] = set()
    is_enough = asyncio.Event()

    async def write() -> None:
        version = 0
        while not is_enough.is_set():
            version += 1
            await bench.write(*(case_event(version, case_id=case_id) for case_id in ids))
            written.update((case_id, version) for case_id in ids)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group, bench.consuming(first):
        writing = group.create_task(write())
        await until(lambda: len(first.applied) > 50)
        async with bench.consuming(second):
            await until(lambda: len(second.applied) > 200)
        now = len(first.applied)
        await until(lambda: len(first.applied) > now + 200)
        is_enough.set()
        await writing
        await until(lambda: {_position(event) for event in first.applied + second.applied} == written)
    assert len(first.applied) + len(second.applied) == len(written)
    assert_in_order(first.applied)
    assert_in_order(second.applied)
    assert await bench.committed() == len(written)


def _position(event: CaseEvent) -> tuple[UUID, int]:
    return event.case_id, event.version


async def test_memory_is_bounded_by_choosing_partitions(bench: Bench) -> None:
    """With a recipient that does not answer, no more is taken in than allowed, and the member stays in its group."""
    gate = asyncio.Event()
    handler = Recorder(lambda _: gate.wait())  # type: ignore[arg-type,return-value]
    limits = replace(QUICK, events=100, parallel=8)
    peak = 0.0
    async with bench.consuming(handler, limits):
        await bench.write(*history(cases=100, versions=10))
        await until(lambda: bench.metrics.buffered_events.labels(bench.group)._value.get() == 100)
        for _ in range(20):
            await asyncio.sleep(0.05)
            peak = max(peak, bench.metrics.buffered_events.labels(bench.group)._value.get())
        gate.set()
        await until(lambda: len(handler.applied) == 1000)
    assert peak == 100
    assert handler.widest <= 8
    assert bench.metrics.rebalances.labels(bench.group)._value.get() == 1


async def test_a_stop_waits_for_what_was_begun(bench: Bench) -> None:
    """What the handler is doing when the stop comes is finished and committed; nothing more is begun."""
    begun = asyncio.Event()

    async def behave(_: CaseEvent) -> None:
        begun.set()
        await asyncio.sleep(0.5)

    handler = Recorder(behave)
    await bench.write(*history(cases=1, versions=5))
    async with bench.consuming(handler):
        await begun.wait()
    assert [event.version for event in handler.applied] == [1]
    assert await bench.committed() == 1


async def test_a_handler_that_does_not_end_is_given_up_at_the_stop(bench: Bench) -> None:
    """A stop takes no longer than its budget; the unfinished event is delivered again."""
    begun = asyncio.Event()

    async def behave(_: CaseEvent) -> None:
        begun.set()
        await asyncio.sleep(3600)

    event = case_event()
    await bench.write(event)
    async with asyncio.timeout(15), bench.consuming(Recorder(behave), replace(QUICK, drain_s=0.2)):
        await begun.wait()
    again = Recorder()
    async with bench.consuming(again):
        await until(lambda: again.applied == [event])


async def test_nothing_is_begun_while_it_stops(bench: Bench) -> None:
    """A rebalance that falls into a stop, as in a rolling restart, begins no new work."""
    begun: list[CaseEvent] = []
    gate = asyncio.Event()

    async def behave(event: CaseEvent) -> None:
        begun.append(event)
        await gate.wait()

    await bench.write(*history(cases=12, versions=1))
    session = bench.session(Recorder(behave), replace(QUICK, parallel=4))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(session.run(stop))
        await until(lambda: len(begun) == 4)
        stop.set()
        await asyncio.sleep(0.05)
        await session.on_partitions_assigned([TopicPartition(bench.topic, number) for number in range(PARTITIONS)])
        await asyncio.sleep(0.3)
        gate.set()
    assert len(begun) == 4
    assert await bench.pool.fetchval("select min(epoch) from partition_fence") == 1


async def test_what_is_parked_during_a_stop_is_committed(bench: Bench) -> None:
    """An event that ends in the parking lot while the consumer stops is not delivered again."""
    begun = asyncio.Event()

    async def behave(_: CaseEvent) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        raise Rejected("no such street")

    await bench.write(case_event())
    async with bench.consuming(Recorder(behave)):
        await begun.wait()
    assert [case.events for case in await parked_cases(bench.pool)] == [1]
    assert await bench.committed() == 1


@pytest.mark.parametrize(
    "place",
    [
        "consumer.after_fetch",
        "consumer.before_handler",
        "consumer.after_handler",
        "consumer.before_park",
        "consumer.after_park",
        "consumer.before_commit",
        "consumer.after_inbox",
        "consumer.after_commit",
    ],
)
async def test_a_consumer_that_breaks_anywhere_loses_nothing(bench: Bench, place: str) -> None:
    """Wherever the first one breaks off, the next one completes the work: each event applied, or parked once."""
    events = history(cases=10, versions=3)
    sick = events[0].case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Rejected("no such street")

    first, second = Recorder(behave), Recorder(behave)
    await bench.write(*events)
    failpoints.arm(f"{place}:raise")
    try:
        with pytest.raises(Injected):
            await bench.consumer(first).run(asyncio.Event())
    finally:
        failpoints.disarm()
    async with bench.consuming(second):
        await until(lambda: len({event.event_id for event in first.applied + second.applied}) == 27)
        async with asyncio.timeout(30):
            while await bench.committed() < 30:
                await asyncio.sleep(0.05)
    assert await bench.committed() == 30
    assert [case.events for case in await parked_cases(bench.pool)] == [3]
    for event in events:
        assert first.versions(event.case_id) in ([], [1], [1, 2], [1, 2, 3])


async def test_without_a_broker_it_waits_and_stops_when_told(bench: Bench) -> None:
    """A consumer outlives a Kafka that is not there, and a stop ends it at once."""
    stop = asyncio.Event()
    lonely = Consumer(
        "127.0.0.1:1", bench.group, bench.topic, Recorder(), pool=bench.pool, metrics=bench.metrics, limits=QUICK
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(lonely.run(stop))
        rebuilds = bench.metrics.rebuilds.labels(bench.group, "KafkaConnectionError")._value
        await until(lambda: rebuilds.get() >= 2)
        stop.set()
