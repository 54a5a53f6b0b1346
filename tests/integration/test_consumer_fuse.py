"""The consumer when most cases fail: it stops instead of emptying its topic into the parked cases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from streams.consumer.consumer import Consumer
from streams.consumer.fuse import FuseBlown
from streams.consumer.limits import FuseLimits
from streams.consumer.replay import parked_cases, resume, until_requested
from streams.errors import Rejected
from streams.events import CaseEvent
from tests.integration.consumer_bench import QUICK, Bench, Recorder, history, open_bench, until

FUSED = replace(QUICK, fuse=FuseLimits(least=20, probe=5), partition_events=10, parallel=4)


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


async def test_it_stops_before_the_topic_is_empty(bench: Bench) -> None:
    """All of 300 cases fail: few are parked, the rest is not acknowledged, and the reason is said."""
    handler = Recorder(_refuse)
    await bench.write(*history(300, 1))
    with pytest.raises(FuseBlown, match="fuse: "):
        await bench.consumer(handler, FUSED).run(asyncio.Event())
    parked = len(await parked_cases(bench.pool))
    assert 10 <= parked < 60
    assert await bench.committed() <= parked
    assert bench.metrics.fuse_blown.labels(bench.group)._value.get() == 1
    assert handler.applied == []


async def test_records_that_nobody_can_read_blow_it_too(bench: Bench) -> None:
    """A topic of something else is no reason to keep all of it as stray records."""
    for number in range(100):
        await bench.write_raw(None, b"%d" % number, [])
    with pytest.raises(FuseBlown):
        await bench.consumer(Recorder(), FUSED).run(asyncio.Event())
    assert await bench.pool.fetchval("select count(*) from stray_record") < 60


async def test_some_cases_that_fail_blow_nothing(bench: Bench) -> None:
    """A tenth of the cases fails, each version of theirs: they are parked, and the rest flows."""
    events = history(90, 3)
    sick = {event.case_id for event in events[:90:10]}

    def behave(event: CaseEvent) -> None:
        if event.case_id in sick:
            _refuse(event)

    handler = Recorder(behave)
    await bench.write(*events)
    async with bench.consuming(handler, FUSED):
        await until(lambda: len(handler.applied) == 243)
        await until(lambda: bench.counted("parked") + bench.counted("appended") == 27)
    assert {case.case_id for case in await parked_cases(bench.pool)} == sick


async def test_it_is_resumed_when_somebody_asks(bench: Bench) -> None:
    """What was asked for before is withdrawn; the same consumer then goes on, and everything arrives in order."""
    is_well = False

    def behave(event: CaseEvent) -> None:
        if not is_well:
            _refuse(event)

    handler = Recorder(behave)
    consumer: Consumer = bench.consumer(handler, FUSED)
    events = history(100, 2)
    await bench.write(*events)
    with pytest.raises(FuseBlown):
        await consumer.run(asyncio.Event())
    await resume(bench.pool, bench.group)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(until_requested(bench.pool, bench.group, stop, every_s=0.05))
        async with asyncio.timeout(20):
            while any(case.resuming for case in await parked_cases(bench.pool)):
                await asyncio.sleep(0.02)
        assert not waiting.done()
        is_well = True
        await resume(bench.pool, bench.group)
        assert await waiting
        tasks.create_task(consumer.run(stop))
        await until(lambda: len({event.event_id for event in handler.applied}) == 200)
        stop.set()
    for event in events[:100]:
        # what was parked when it stopped, and not yet acknowledged, may come twice
        assert list(dict.fromkeys(handler.versions(event.case_id))) == [1, 2]
    assert await until_requested(bench.pool, bench.group, stop) is False


def _refuse(_: CaseEvent) -> None:
    raise Rejected("no such street", "usrn")
