"""A gateway database that was restored to an earlier moment: noticed by what Kafka holds, and shut."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from streams import recovery
from streams.cases import rows
from streams.consumer.consumer import Consumer
from streams.events import CaseEvent
from streams.testing import case_event
from tests.integration.consumer_bench import QUICK, Bench, Recorder, open_bench, until

_CASE = """
insert into cases (id, reference, type, version, status, document, sealed, submitted_by)
values ($1, $2, $3, $4, 'open', $5, $6, 'form')
"""


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


async def store(bench: Bench, event: CaseEvent) -> None:
    document = rows.dumps(event.document)
    await bench.pool.execute(
        _CASE, event.case_id, event.reference, event.case_type, event.version, document, event.sealed
    )


async def test_a_version_that_only_kafka_knows_shuts_the_gateway(bench: Bench) -> None:
    """The event is not handled, and cases cannot be written."""
    known, lost = case_event(), case_event(reference="RAP-93XD-7KQ2")
    await store(bench, known)
    await bench.write(known)
    handler, stop = Recorder(), asyncio.Event()
    consumer = Consumer(
        bench.bootstrap,
        bench.group,
        bench.topic,
        handler,
        pool=bench.pool,
        metrics=bench.metrics,
        limits=replace(QUICK, shut_poll_s=0.1),
        detects_restore=True,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(consumer.run(stop))
        await until(lambda: handler.applied == [known])
        await bench.write(lost)
        async with asyncio.timeout(30):
            while (row := await recovery.is_shut(bench.pool)) is None:
                await asyncio.sleep(0.05)
        assert row.detail == {"case_id": str(lost.case_id), "in_kafka": 1, "in_gateway": None}
        with pytest.raises(asyncpg.PostgresError, match="shut until it is recovered") as refused:
            await store(bench, lost)
        assert refused.value.sqlstate == "SG001"
        assert handler.applied == [known]
        stop.set()


async def test_the_first_reason_stays(bench: Bench) -> None:
    """What shuts the gateway a second time does not hide why it was shut first."""
    await recovery.shut(bench.pool, "the first", {"n": 1})
    await recovery.shut(bench.pool, "the second", {"n": 2})
    row = await recovery.is_shut(bench.pool)
    assert row is not None
    assert (row.reason, row.detail) == ("the first", {"n": 1})
