"""The dead letter topic: a copy of what is parked, with the reason in its headers; never in anybody's way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from streams.consumer.mirror import Mirror
from streams.consumer.replay import parked_cases
from streams.errors import Rejected, Retryable
from streams.events import CaseEvent, encode, read_record
from streams.testing import case_event
from streams.topics import ensure_topics
from tests.integration.consumer_bench import PARTITIONS, QUICK, Bench, Recorder, open_bench, until


@pytest_asyncio.fixture
async def bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    async with open_bench(servers, gateway_database, topic_prefix) as opened:
        yield opened


@asynccontextmanager
async def mirrored(bench: Bench, handler: Recorder, bootstrap: str | None = None) -> AsyncIterator[Mirror]:
    """The bench's consumer and its mirror, both running; on leaving both end what they have."""
    mirror = Mirror(
        bootstrap or bench.bootstrap, bench.topic, bench.group, metrics=bench.metrics, mapping_version="abc123"
    )
    consumer = bench.consumer(handler, QUICK, mirror=mirror)
    stop, late = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        copying = tasks.create_task(mirror.run(late))
        async with asyncio.TaskGroup() as work:
            work.create_task(consumer.run(stop))
            try:
                yield mirror
            finally:
                stop.set()
        late.set()
        await copying


async def copies(bench: Bench, topic: str, number: int) -> list[ConsumerRecord]:
    reader = AIOKafkaConsumer(topic, bootstrap_servers=bench.bootstrap, auto_offset_reset="earliest")
    await reader.start()
    try:
        async with asyncio.timeout(20):
            return [await reader.getone() for _ in range(number)]
    finally:
        await reader.stop()


async def test_parked_events_are_copied_with_the_reason(bench: Bench) -> None:
    """Refused, out of attempts, unreadable, and what waits behind: each as it was, in order, saying where and why."""
    refused, stuck, broken = (case_event() for _ in range(3))

    def behave(event: CaseEvent) -> None:
        if event.case_id == refused.case_id:
            raise Rejected("no such street", "usrn")
        if event.case_id == stuck.case_id:
            raise Retryable("locked by another user")

    key, _, headers = encode(broken)
    async with mirrored(bench, Recorder(behave)) as mirror:
        await ensure_topics(bench.bootstrap, [mirror.topic], PARTITIONS, 1)
        await bench.write(refused, stuck, case_event())
        await bench.write_raw(key, b"{", headers)
        await until(lambda: bench.counted("parked") == 2 and bench.counted("undecodable") == 1)
        await bench.write(case_event(2, case_id=refused.case_id))
        await until(lambda: bench.counted("appended") == 1)
    found = await copies(bench, mirror.topic, 4)
    said = {(record.key, record.value): dict(record.headers) for record in found}
    first, second = (each for each in found if each.key == str(refused.case_id).encode())
    later = read_record(second.key, second.value, second.headers)[0]
    assert read_record(first.key, first.value, first.headers)[0] == refused
    assert later is not None
    assert later.version == 2
    headers_of = dict(first.headers)
    assert headers_of["ce_id"] == str(refused.event_id).encode()
    expected = {
        "dlq.original.topic": bench.topic,
        "dlq.stage": "handler",
        "dlq.field": "usrn",
        "dlq.class": "permanent",
        "dlq.message": "no such street",
        "dlq.mapping_version": "abc123",
        "__connect.errors.topic": bench.topic,
        "__connect.errors.stage": "handler",
        "__connect.errors.connector.name": bench.group,
        "__connect.errors.exception.message": "no such street",
        "__connect.errors.exception.stacktrace": "",
    }
    assert expected.items() <= {name: value.decode() for name, value in headers_of.items()}.items()
    assert int(headers_of["dlq.original.offset"]) >= 0
    assert int(headers_of["dlq.original.timestamp"]) > 0
    assert dict(second.headers)["dlq.stage"] == b"appended"
    kinds = {key: each["dlq.class"] for (key, _), each in said.items()}
    assert kinds[str(stuck.case_id).encode()] == b"retryable"
    assert kinds[str(broken.case_id).encode()] == b"poison"
    assert bench.metrics.dlq_mirrored.labels(bench.group, "done")._value.get() == 4


async def test_a_mirror_that_cannot_be_reached_holds_nobody_up(
    bench: Bench, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case is parked and its offset committed; the copy that did not arrive is counted."""
    monkeypatch.setattr("streams.consumer.mirror._TIMEOUT_S", 0.5)

    def behave(_: CaseEvent) -> None:
        raise Rejected("no such street")

    await bench.write(case_event())
    async with mirrored(bench, Recorder(behave), f"127.0.0.1:{unused_tcp_port}"):
        await until(lambda: bench.counted("parked") == 1)
    assert len(await parked_cases(bench.pool)) == 1
    assert await bench.committed() == 1
    assert bench.metrics.dlq_mirrored.labels(bench.group, "failed")._value.get() == 1
