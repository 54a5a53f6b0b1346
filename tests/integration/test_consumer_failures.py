"""The consumer when a handler fails: who is blamed, who waits, and who flows on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from streams.consumer.limits import Retry
from streams.consumer.replay import parked_cases
from streams.errors import Misconfigured, Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import (
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


async def test_a_failing_case_holds_up_nobody_else(bench: Bench) -> None:
    """While one case is tried again, all others flow; then it catches up, in order."""
    events = history(cases=20, versions=3)
    sick = events[0].case_id
    is_well = asyncio.Event()
    tries = Counter[int]()

    def behave(event: CaseEvent) -> None:
        if event.case_id == sick and not is_well.is_set():
            tries[event.version] += 1
            raise Retryable("locked by another user")

    handler = Recorder(behave)
    await bench.write(*events)
    patient = replace(QUICK, retry=Retry(attempts=10_000, first_delay_s=0.01, longest_delay_s=0.05))
    async with bench.consuming(handler, patient):
        await until(lambda: len(handler.applied) == 57 and tries[1] > 3)
        assert await bench.committed() < 60
        is_well.set()
        await until(lambda: len(handler.applied) == 60)
    assert set(tries) == {1}
    assert handler.versions(sick) == [1, 2, 3]
    assert await bench.committed() == 60


async def test_retry_after_is_obeyed(bench: Bench) -> None:
    """A recipient that asks for time gets it."""
    times: list[float] = []

    def behave(_: CaseEvent) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Retryable("busy", retry_after=0.6)

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1)
    assert times[1] - times[0] >= 0.6


async def test_one_bad_event_does_not_spoil_its_batch(bench: Bench) -> None:
    """A batch that is refused is halved until the bad case is alone; named, it is taken out at once."""
    events = history(cases=64, versions=1)
    sick, named = events[7].case_id, events[40].case_id

    def behave(batch: Sequence[CaseEvent]) -> None:
        if any(event.case_id == named for event in batch):
            raise Rejected("too long", "description", case_id=named)
        if any(event.case_id == sick for event in batch):
            raise Rejected("too long", "description")

    handler = BatchRecorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 62 and bench.counted("parked") == 2)
    assert {case.case_id for case in await parked_cases(bench.pool)} == {sick, named}
    assert await bench.committed() == 64


async def test_in_a_batch_that_is_tried_again_the_guilty_case_is_found(bench: Bench) -> None:
    """After a failure that blames nobody each case is tried by itself: only the sick one reaches the limit."""
    events = history(cases=30, versions=1)
    sick = events[7].case_id

    def behave(batch: Sequence[CaseEvent]) -> None:
        if any(event.case_id == sick for event in batch):
            raise Retryable("deadlock")

    handler = BatchRecorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 29 and bench.counted("parked") == 1)
    assert [case.case_id for case in await parked_cases(bench.pool)] == [sick]


@pytest.mark.parametrize("away", [Unavailable("starting up"), ConnectionRefusedError()])
async def test_a_recipient_that_is_away_parks_nobody(bench: Bench, away: Exception) -> None:
    """However long a recipient is down, no case is blamed: everything waits, and then flows."""
    calls = 0

    def behave(_: Sequence[CaseEvent]) -> None:
        nonlocal calls
        calls += 1
        if calls < 8:
            raise away

    handler = BatchRecorder(behave)
    await bench.write(*history(10, 2))
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 20)
    assert await parked_cases(bench.pool) == []
    assert_in_order(handler.applied)


async def test_a_misconfigured_connector_stops_and_parks_nothing(bench: Bench) -> None:
    """What only a person can mend stops the consumer with its reason; the events stay where they are."""

    def behave(_: CaseEvent) -> None:
        raise Misconfigured("the table street_jobs does not exist")

    await bench.write(*history(5, 1))
    with pytest.raises(Misconfigured, match="street_jobs"):
        await bench.consumer(Recorder(behave)).run(asyncio.Event())
    assert await parked_cases(bench.pool) == []
    assert await bench.committed() == 0
    assert bench.metrics.up.labels(bench.group)._value.get() == 0


async def test_a_handler_that_hangs_counts_as_an_attempt(bench: Bench) -> None:
    """No await of a handler lasts longer than its limit."""
    event = case_event()
    await bench.write(event)
    limits = replace(QUICK, handler_timeout_s=0.1, retry=Retry(attempts=2, first_delay_s=0.01))
    async with bench.consuming(Recorder(lambda _: asyncio.sleep(3600)), limits):
        await until(lambda: bench.counted("parked") == 1)
    assert (await parked_cases(bench.pool))[0].reason == "the handler did not end in time"
