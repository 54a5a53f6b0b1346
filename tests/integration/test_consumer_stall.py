"""The watchdog: a consumer that has work and does not move is built anew, and given up when that does not help."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer

from streams.consumer.watchdog import Stalled
from streams.errors import Unavailable
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import QUICK, Bench, Recorder, history, open_bench, until

WATCHED = replace(QUICK, stall_s=1.0, watch_every_s=0.1)


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


class Deaf:
    """Clients of the group that fetch nothing, or do not even return, until they are healed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: Bench, *, hangs: bool) -> None:
        self.is_deaf = True
        genuine = AIOKafkaConsumer.getmany

        async def getmany(client: AIOKafkaConsumer, *partitions: Any, **options: Any) -> Any:
            if not self.is_deaf or not any(each.topic == bench.topic for each in partitions):
                return await genuine(client, *partitions, **options)
            await asyncio.sleep(3600 if hangs else 0.05)
            return {}

        monkeypatch.setattr(AIOKafkaConsumer, "getmany", getmany)


def stalls(bench: Bench) -> float:
    count: float = bench.metrics.stalls.labels(bench.group)._value.get()
    return count


@pytest.mark.parametrize("hangs", [False, True], ids=["fetches nothing", "does not return"])
async def test_a_stalled_consumer_is_built_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """Events wait and none is fetched: the next membership fetches them."""
    deaf = Deaf(monkeypatch, bench, hangs=hangs)
    await bench.write(case_event())
    handler = Recorder()
    async with bench.consuming(handler, WATCHED):
        await until(lambda: stalls(bench) == 1)
        deaf.is_deaf = False
        await until(lambda: len(handler.applied) == 1)
    assert stalls(bench) == 1


async def test_a_consumer_that_stalls_for_good_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third stall in a row ends it with an error, so that the process is started anew."""
    Deaf(monkeypatch, bench, hangs=False)
    await bench.write(case_event())
    async with asyncio.timeout(60):
        with pytest.raises(Stalled):
            await bench.consumer(Recorder(), WATCHED).run(asyncio.Event())
    assert stalls(bench) == 3


async def test_waiting_is_no_stall(bench: Bench) -> None:
    """A recipient that is away with a full buffer, and then nothing to do: neither is mistaken for a stall."""
    is_away = True

    def behave(_: CaseEvent) -> None:
        if is_away:
            raise Unavailable("closed for lunch")

    handler = Recorder(behave)
    await bench.write(*history(cases=30, versions=1))
    async with bench.consuming(handler, replace(WATCHED, events=10)):
        await until(lambda: bench.metrics.lag_events.labels(bench.group)._value.get() == 30)
        await asyncio.sleep(2.5)
        is_away = False
        await until(lambda: len(handler.applied) == 30)
        await until(lambda: bench.metrics.lag_events.labels(bench.group)._value.get() == 0)
        await asyncio.sleep(1.5)
    assert stalls(bench) == 0
    assert bench.metrics.rebalances.labels(bench.group)._value.get() == 1
