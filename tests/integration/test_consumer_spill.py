"""A consumer whose room is taken by waiting cases: they make way, keep their order, and come back by themselves."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from streams.consumer.lanes import Item, LaneKey, Lanes
from streams.consumer.limits import Retry
from streams.consumer.replay import parked_cases
from streams.errors import Retryable, Unavailable
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import QUICK, Bench, Recorder, history, open_bench, until

PATIENT = Retry(attempts=1000, first_delay_s=5, longest_delay_s=5)


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


async def test_a_deep_waiting_case_makes_room(bench: Bench) -> None:
    """One case with more events than there is room waits: it is parked, the others flow, and it comes back in order."""
    sick = case_event().case_id
    is_well = asyncio.Event()

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick and not is_well.is_set():
            raise Retryable("locked by another user", retry_after=2)

    handler = Recorder(behave)
    await bench.write(*(case_event(version, case_id=sick) for version in range(1, 201)))
    await bench.write(*history(50, 2))
    limits = replace(QUICK, events=100, retry=PATIENT)
    async with bench.consuming(handler, limits):
        await until(lambda: len(handler.applied) == 100)
        (parked,) = await parked_cases(bench.pool)
        assert (parked.case_id, parked.stage, parked.resuming) == (sick, "pressure", True)
        assert bench.metrics.spilled.labels(bench.group)._value.get() == 1
        is_well.set()
        await until(lambda: len(handler.applied) == 300)
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 200 or not handler.at_work)
    assert handler.versions(sick) == list(range(1, 201))
    assert await bench.committed() == 300


async def test_a_head_that_blocks_its_partition_makes_way(bench: Bench) -> None:
    """One waiting event holds the watermark while a partition's worth of others is settled: it is parked."""
    sick = case_event().case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Retryable("locked by another user", retry_after=60)

    handler = Recorder(behave)
    await bench.write(case_event(case_id=sick), *history(400, 1))
    async with bench.consuming(handler, replace(QUICK, partition_events=40, retry=PATIENT)):
        await until(lambda: len(handler.applied) == 400)
    assert [case.case_id for case in await parked_cases(bench.pool)] == [sick]


async def test_waiting_cases_that_are_in_nobodys_way_stay(bench: Bench) -> None:
    """A buffer full of work is no pressure: cases that wait beside it keep their attempts."""
    sick = {event.case_id for event in history(5, 1)}
    tries = Counter[bool]()

    async def behave(event: CaseEvent) -> None:
        if event.case_id in sick and tries[True] < 5:
            tries[True] += 1
            raise Retryable("locked by another user", retry_after=0.3)
        await asyncio.sleep(0.002)

    handler = Recorder(behave)
    await bench.write(*(case_event(case_id=each) for each in sick), *history(600, 1))
    async with bench.consuming(handler, replace(QUICK, events=60, parallel=4, retry=PATIENT)):
        await until(lambda: len(handler.applied) == 605)
    assert bench.metrics.spilled.labels(bench.group)._value.get() == 0
    assert await parked_cases(bench.pool) == []


async def test_nobody_makes_way_while_the_recipient_is_away(bench: Bench) -> None:
    """A full buffer because everybody waits is no case's fault."""
    calls = 0

    def behave(_: CaseEvent) -> None:
        nonlocal calls
        calls += 1
        if calls < 60:
            raise Unavailable("starting up")

    handler = Recorder(behave)
    await bench.write(*history(100, 3))
    async with bench.consuming(handler, replace(QUICK, events=50)):
        await until(lambda: len(handler.applied) == 300)
    assert bench.metrics.spilled.labels(bench.group)._value.get() == 0


async def test_a_spilled_case_that_keeps_failing_waits_for_a_person(bench: Bench) -> None:
    """Its attempts go on where they were; at the limit it stays parked under what really failed."""
    sick = case_event().case_id

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick:
            raise Retryable("locked by another user")

    await bench.write(*(case_event(version, case_id=sick) for version in range(1, 101)))
    limits = replace(QUICK, events=40, retry=Retry(attempts=4, first_delay_s=0.6, longest_delay_s=0.6))
    async with bench.consuming(Recorder(behave), limits):
        async with asyncio.timeout(30):
            while [(case.stage, case.resuming, case.events) for case in await parked_cases(bench.pool)] != [
                ("handler", False, 100)
            ]:
                await asyncio.sleep(0.05)
    (parked,) = await parked_cases(bench.pool)
    assert (parked.reason, parked.attempts) == ("locked by another user", 4)


async def test_memory_is_bounded_in_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of nearly a mebibyte: never more of them are held than the limit and one record."""
    peak = 0
    add = Lanes.add

    def noted(self: Lanes, key: LaneKey, item: Item) -> None:
        nonlocal peak
        add(self, key, item)
        peak = max(peak, self.bytes)

    monkeypatch.setattr(Lanes, "add", noted)
    events = history(24, 1)
    for event in events:
        await bench.write(case_event(case_id=event.case_id, document={"category": "x" * 900_000}))
    handler = Recorder(lambda _: asyncio.sleep(0.05))
    limit = 4 * 1024 * 1024
    async with bench.consuming(handler, replace(QUICK, bytes=limit, parallel=2)):
        await until(lambda: len(handler.applied) == 24, 60)
    assert peak <= limit + 1_000_000
