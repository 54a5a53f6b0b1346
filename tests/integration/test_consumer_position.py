"""Where a group goes on: after its last record if that still lies there, else from the earliest, and it says so."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import OffsetAndMetadata

from streams.consumer import fence, position
from streams.consumer.position import Position, Start
from streams.errors import Fenced
from streams.testing import case_event
from streams.topics import ensure_topics
from tests.integration.consumer_bench import PARTITIONS, Bench, Recorder, history, open_bench, until


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


def found(bench: Bench, outcome: str) -> float:
    count: float = bench.metrics.positions.labels(bench.group, outcome)._value.get()
    return count


async def consume(bench: Bench, events: int) -> Recorder:
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: len(handler.applied) == events)
    return handler


async def remake_topic(bench: Bench) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([bench.topic])
    finally:
        await admin.close()
    async with asyncio.timeout(30):
        while not await ensure_topics(bench.bootstrap, [bench.topic], PARTITIONS, 1):
            await asyncio.sleep(0.2)


async def commit_in_kafka(bench: Bench, offset: int) -> None:
    client = AIOKafkaConsumer(bootstrap_servers=bench.bootstrap, group_id=bench.group, enable_auto_commit=False)
    await client.start()
    partitions = [TopicPartition(bench.topic, number) for number in range(PARTITIONS)]
    client.assign(partitions)
    await client.commit({each: OffsetAndMetadata(offset, "") for each in partitions})
    await client.stop()


async def test_the_gateways_position_counts_and_not_kafkas(bench: Bench) -> None:
    """Kafka forgets a group's offsets after a week, or somebody resets them: nothing is handled twice, or left out."""
    await bench.write(*history(cases=20, versions=1))
    await consume(bench, 20)
    await commit_in_kafka(bench, 0)
    later = case_event()
    await bench.write(later)
    handler = await consume(bench, 1)
    assert handler.applied == [later]
    assert bench.counted("duplicate") == 0
    assert found(bench, "new") == PARTITIONS
    assert found(bench, "same") >= 1


async def test_without_a_position_kafkas_offset_counts(bench: Bench) -> None:
    """A group of the release before goes on where it was."""
    await bench.write(*history(cases=20, versions=1))
    await consume(bench, 20)
    await bench.pool.execute("update partition_fence set next_offset = null, last_offset = null, last_sha256 = null")
    await bench.pool.execute("delete from case_seen")
    later = case_event()
    await bench.write(later)
    handler = await consume(bench, 1)
    assert handler.applied == [later]


@pytest.mark.parametrize("records", [3, 60])
async def test_a_topic_made_anew_is_read_from_its_beginning(bench: Bench, records: int) -> None:
    """Fewer records than before, or more: none of the new topic is left out, none of the old is handled again."""
    before = history(cases=20, versions=1)
    await bench.write(*before)
    await consume(bench, 20)
    await remake_topic(bench)
    after = history(cases=records, versions=1)
    await bench.write(*before[:5], *after)
    handler = await consume(bench, records)
    assert {event.event_id for event in handler.applied} == {event.event_id for event in after}
    assert found(bench, "recreated") >= 1
    assert "recreated" in {row["restarted"] for row in await position.positions(bench.pool)}


async def test_records_gone_with_their_age_are_told(bench: Bench) -> None:
    """A group that was away for longer than Kafka keeps records starts at the oldest one and says so."""
    case_id = uuid4()
    await bench.write(case_event(1, case_id=case_id))
    await consume(bench, 1)
    await bench.write(*[case_event(number, case_id=case_id) for number in (2, 3, 4, 5)])
    number = await bench.pool.fetchval("select partition from partition_fence where next_offset = 1")
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(bench.topic, number): RecordsToDelete(before_offset=3)})
    finally:
        await admin.close()
    handler = await consume(bench, 2)
    assert handler.versions(case_id) == [4, 5]
    assert found(bench, "expired") == 1
    assert bench.metrics.gaps.labels(bench.group, "unfilled")._value.get() == 2


async def test_only_the_owner_moves_a_position(bench: Bench) -> None:
    """Who lost the partition neither moves its position nor gives it up."""
    old = await fence.bump(bench.pool, bench.group, bench.topic, [0], timeout_s=5)
    await fence.bump(bench.pool, bench.group, bench.topic, [0], timeout_s=5)
    with pytest.raises(Fenced):
        await position.restart(bench.pool, old, {0: Start(0, "recreated")}, timeout_s=5)
    assert await position.stored(bench.pool, old, timeout_s=5) == {}


async def test_a_record_that_cannot_be_read_marks_a_position_too(bench: Bench) -> None:
    """The last record may be broken: its digest tells it from another."""
    await bench.write_raw(b"no case", b"no event", [])
    handler = Recorder()
    async with bench.consuming(handler):
        await until(lambda: bench.counted("stray") == 1)
    held = await fence.bump(bench.pool, bench.group, bench.topic, range(PARTITIONS), timeout_s=5)
    noted = await position.stored(bench.pool, held, timeout_s=5)
    starts = await position.find_starts(bench.bootstrap, bench.topic, noted, {}, timeout_s=10)
    assert list(starts.values()) == [Start(1, "same")]
    other = {number: Position(1, 0, b"another") for number in noted}
    starts = await position.find_starts(bench.bootstrap, bench.topic, other, {}, timeout_s=10)
    assert list(starts.values()) == [Start(0, "recreated")]
