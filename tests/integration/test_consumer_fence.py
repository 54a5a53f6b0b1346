"""The fence: who lost a partition writes nothing more."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from streams.consumer import fence as fences
from streams.consumer.fence import Fence
from streams.consumer.replay import parked_cases
from streams.errors import Fenced, Rejected
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import Bench, Recorder, open_bench, until


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


async def test_every_assignment_raises_the_fence(bench: Bench) -> None:
    """Whoever held a partition before cannot write after the next owner took it over."""
    event = case_event()
    first, second = Recorder(), Recorder()
    await bench.write(event)
    async with bench.consuming(first):
        await until(lambda: len(first.fences) == 1)
    await bench.write(case_event(2, case_id=event.case_id))
    async with bench.consuming(second):
        await until(lambda: len(second.fences) == 1)
    old, new = first.fences[0], second.fences[0]
    assert old.epochs.keys() == new.epochs.keys()
    async with bench.pool.acquire() as connection, connection.transaction():
        await fences.hold(connection, new, table=fences.GATEWAY)
        with pytest.raises(Fenced):
            await fences.hold(connection, old, table=fences.GATEWAY)


async def test_a_recipients_own_fence_stops_a_zombie(bench: Bench, database: Any) -> None:
    """A handler makes its epochs known in its database before the first event; an older owner can neither go on nor
    come back there."""
    async with asyncpg.create_pool(database.url, min_size=1, max_size=3) as recipient:
        await recipient.execute(fences.RECIPIENT_TABLE_SQL)

        class Fencing(Recorder):
            hooks = 0

            async def on_assigned(self, fence: Fence) -> None:
                self.hooks += 1
                if self.hooks == 1:
                    raise ConnectionRefusedError
                await fences.register(recipient, fence)

            async def handle(self, event: CaseEvent, fence: Fence) -> None:
                async with recipient.acquire() as connection, connection.transaction():
                    await fences.hold(connection, fence)
                    await super().handle(event, fence)

        handler = Fencing()
        await bench.write(case_event())
        async with bench.consuming(handler):
            await until(lambda: len(handler.applied) == 1)
        assert handler.hooks == 2
        old = handler.fences[0]
        newer = Fence(old.group, old.topic, {number: epoch + 1 for number, epoch in old.epochs.items()})
        await fences.register(recipient, newer)
        with pytest.raises(Fenced):
            await fences.register(recipient, old)
        async with recipient.acquire() as connection:
            with pytest.raises(Fenced):
                await fences.hold(connection, old)


async def test_a_fenced_consumer_joins_afresh(bench: Bench) -> None:
    """One rejected write makes it let go and come back with a new epoch; the event is not lost."""
    fenced_once = False

    def behave(_: CaseEvent) -> None:
        nonlocal fenced_once
        if not fenced_once:
            fenced_once = True
            raise Fenced

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == 1)
    assert bench.metrics.fenced.labels(bench.group)._value.get() == 1


async def test_a_zombie_cannot_park(bench: Bench) -> None:
    """Parking holds the fence: who lost the partition parks nothing and commits nothing over the new owner's head."""

    async def behave(event: CaseEvent) -> None:
        await bench.pool.execute("update partition_fence set epoch = epoch + 1 where epoch = 1")
        raise Rejected("no such street")

    handler = Recorder(behave)
    await bench.write(case_event())
    async with bench.consuming(handler):
        await until(lambda: bench.metrics.fenced.labels(bench.group)._value.get() == 1)
        await until(lambda: bench.counted("parked") == 1)
    assert len(await parked_cases(bench.pool)) == 1
