"""The relay on a real Postgres and a real Kafka: nothing lost, per-case order, whatever is away or dies."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import aiokafka.client
import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from streams import failpoints
from streams.cases import rows as caserows
from streams.events import CaseEvent, decode
from streams.failpoints import Injected
from streams.metrics import StreamMetrics
from streams.outbox import Relay, RelayLimits, producer
from streams.testing import case_event
from streams.topics import ensure_topics
from tests.integration.tcp_gate import Gate

QUICK = RelayLimits(poll_s=0.1, balance_s=0.2, census_s=0.2)
AROUND: contextvars.ContextVar[bool] = contextvars.ContextVar("AROUND", default=False)


@pytest_asyncio.fixture
async def pool(gateway_database: Any) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=10, server_settings={"search_path": "gateway"}
    ) as pool:
        yield pool


@pytest_asyncio.fixture
async def topic(servers: Any, topic_prefix: str) -> str:
    name = f"{topic_prefix}cases.changes.v1"
    assert await ensure_topics(servers.kafka_bootstrap, [name], 3, 1) == [name]
    return name


@pytest.fixture
def metrics() -> StreamMetrics:
    return StreamMetrics(CollectorRegistry())


async def enqueue(pool: asyncpg.Pool, topic: str, event: CaseEvent) -> None:
    async with pool.acquire() as connection, connection.transaction():
        if event.version == 1:
            row = caserows.CaseRow(event.case_id, "", "t", 1, "open", event.document, event.sealed, event.at, event.at)
            await caserows.insert_case(connection, row, prefix="RAP", submitted_by="key-form")
        await caserows.append_event(connection, event, actor="key-form", topic=topic)


async def enqueue_cases(pool: asyncpg.Pool, topic: str, cases: int, versions: int) -> set[tuple[UUID, int]]:
    ids = [uuid4() for _ in range(cases)]
    for version in range(1, versions + 1):
        await asyncio.gather(*(enqueue(pool, topic, case_event(version, case_id=case_id)) for case_id in ids))
    return {(case_id, version) for case_id in ids for version in range(1, versions + 1)}


@asynccontextmanager
async def relaying(*relays: Relay) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for relay in relays:
            group.create_task(relay.run(stop))
        try:
            yield stop
        finally:
            stop.set()


async def until(condition: Callable[[], Any], bound_s: float = 30) -> None:
    async with asyncio.timeout(bound_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def unpublished(pool: asyncpg.Pool) -> int:
    found: int = await pool.fetchval("select count(*) from outbox where published_at is null")
    return found


async def everything_published(pool: asyncpg.Pool) -> bool:
    return await unpublished(pool) == 0


def value(metric: Any) -> float:
    found: float = metric._value.get()
    return found


async def topic_events(bootstrap: str, topic: str) -> list[CaseEvent]:
    """Every event in the topic now, in the order of each partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(3)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        events: list[CaseEvent] = []
        async with asyncio.timeout(30):
            for partition in partitions:
                while await consumer.position(partition) < ends[partition]:
                    records = (await consumer.getmany(partition, timeout_ms=500)).get(partition, [])
                    events.extend(decode(record.key, record.value, record.headers) for record in records)
        return events
    finally:
        await consumer.stop()


def versions(events: list[CaseEvent]) -> dict[UUID, list[int]]:
    seen: dict[UUID, list[int]] = {}
    for event in events:
        seen.setdefault(event.case_id, []).append(event.version)
    return seen


def assert_nothing_lost_and_in_order(events: list[CaseEvent], wanted: set[tuple[UUID, int]]) -> None:
    assert {(event.case_id, event.version) for event in events} == wanted
    for numbers in versions(events).values():
        # A repeat is allowed (the mark was lost); a gap or an older version seen for the first time late is not.
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts)
        assert all(later <= earlier + 1 for earlier, later in pairwise(numbers))


async def test_events_arrive_once_and_in_order(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """One relay moves every event to Kafka, each once, each case in the order of its versions."""
    wanted = await enqueue_cases(pool, topic, cases=40, versions=5)
    relay = Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=QUICK)
    async with relaying(relay):
        await until(lambda: everything_published(pool))
    events = await topic_events(servers.kafka_bootstrap, topic)
    assert len(events) == 200
    assert_nothing_lost_and_in_order(events, wanted)
    assert value(metrics.outbox_published) == 200


async def test_a_commit_wakes_the_relay(servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics) -> None:
    """A new event does not wait for the next poll."""
    limits = RelayLimits(poll_s=60)
    relay = Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=limits)
    async with relaying(relay) as stop:
        await enqueue_cases(pool, topic, 1, 1)
        await until(lambda: everything_published(pool))
        await enqueue_cases(pool, topic, 1, 1)
        await until(lambda: everything_published(pool), bound_s=20)
        stop.set()


async def test_relays_share_the_buckets(servers: Any, pool: asyncpg.Pool, topic: str) -> None:
    """Three relays at once divide the work, lose nothing, duplicate nothing; when one stops, the others take over."""
    all_metrics = [StreamMetrics(CollectorRegistry()) for _ in range(3)]
    relays = [
        Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=QUICK)
        for metrics in all_metrics
    ]

    async def shared(count: int) -> bool:
        owned = [value(metrics.outbox_buckets) for metrics in all_metrics]
        return sum(owned) == 64 and sum(number > 0 for number in owned) == count

    async with relaying(*relays[:2]):
        async with relaying(relays[2]):
            await until(lambda: shared(3))
            wanted = await enqueue_cases(pool, topic, 30, 4)
            await until(lambda: everything_published(pool))
        await until(lambda: shared(2))
        wanted |= await enqueue_cases(pool, topic, 30, 2)
        await until(lambda: everything_published(pool))
    events = await topic_events(servers.kafka_bootstrap, topic)
    assert len(events) == len(wanted)
    assert_nothing_lost_and_in_order(events, wanted)


@pytest.mark.parametrize("place", ["outbox.after_select", "outbox.after_send", "outbox.after_mark"])
async def test_a_relay_that_dies_anywhere_loses_nothing(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics, place: str
) -> None:
    """After a death before, between and after acknowledgement and mark, the next relay completes the work in order."""
    wanted = await enqueue_cases(pool, topic, 10, 4)
    failpoints.arm(f"{place}:hit=2:raise" if place != "outbox.after_select" else f"{place}:raise")
    try:
        with pytest.raises(Injected):
            await Relay(pool, lambda: producer(servers.kafka_bootstrap, "first"), metrics, limits=QUICK).run()
    finally:
        failpoints.disarm()
    relay = Relay(pool, lambda: producer(servers.kafka_bootstrap, "second"), metrics, limits=QUICK)
    async with relaying(relay):
        await until(lambda: everything_published(pool))
    assert_nothing_lost_and_in_order(await topic_events(servers.kafka_bootstrap, topic), wanted)


async def test_posts_go_on_while_kafka_is_away(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """With no broker the events wait, their number and age are shown, and they go as soon as it answers."""
    bootstrap = "127.0.0.1:1"

    def make() -> AIOKafkaProducer:
        return producer(bootstrap, "relay", request_timeout_ms=1000)

    async def tried() -> bool:
        return value(metrics.outbox_failures.labels("kafka")) >= 2 and value(metrics.outbox_age) > 0

    async with relaying(Relay(pool, make, metrics, limits=QUICK)):
        wanted = await enqueue_cases(pool, topic, 5, 2)
        await until(tried)
        await until(_gauge_is(metrics, 10))
        bootstrap = servers.kafka_bootstrap
        await until(lambda: everything_published(pool))
        await until(_gauge_is(metrics, 0))
    assert_nothing_lost_and_in_order(await topic_events(servers.kafka_bootstrap, topic), wanted)


def _gauge_is(metrics: StreamMetrics, pending: float) -> Callable[[], Any]:
    async def check() -> bool:
        return value(metrics.outbox_pending) == pending

    return check


async def test_a_record_too_large_stops_only_its_own_case(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """An event that Kafka will not take is counted and waits with its case; all others flow."""
    big = case_event(1, sealed=b"x" * 2_000_000)
    await enqueue(pool, topic, big)
    await enqueue(pool, topic, case_event(2, case_id=big.case_id))
    wanted = await enqueue_cases(pool, topic, 5, 2)

    async def only_two_left() -> bool:
        return await unpublished(pool) == 2

    relay = Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=QUICK)
    async with relaying(relay):
        await until(only_two_left)
    assert value(metrics.outbox_failures.labels("record")) == 1
    assert_nothing_lost_and_in_order(await topic_events(servers.kafka_bootstrap, topic), wanted)


async def test_a_lost_database_connection_is_taken_up_again(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """When Postgres ends the relay's connection, its locks are gone; the relay takes them again and goes on."""

    async def owns() -> bool:
        return value(metrics.outbox_buckets) == 64

    relay = Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=QUICK)
    async with relaying(relay):
        await until(owns)
        await pool.execute(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        wanted = await enqueue_cases(pool, topic, 5, 2)
        await until(lambda: everything_published(pool))
    assert value(metrics.outbox_failures.labels("database")) >= 1
    assert_nothing_lost_and_in_order(await topic_events(servers.kafka_bootstrap, topic), wanted)


@pytest.mark.parametrize("patience", ["the producer waits for it", "the relay gives the producer up"])
async def test_an_acknowledgement_that_is_lost_loses_no_event_and_no_order(
    servers: Any, pool: asyncpg.Pool, topic: str, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    """Kafka keeps what it acknowledges into nothing; whoever sends it again, nothing is lost or out of order."""
    metrics = StreamMetrics(CollectorRegistry())
    async with gate_to(servers.kafka_bootstrap, monkeypatch) as gate:
        request_timeout_ms, ack_timeout_s = (1000, 10.0) if patience.startswith("the producer") else (10_000, 2.0)
        limits = replace(QUICK, ack_timeout_s=ack_timeout_s)

        def make() -> AIOKafkaProducer:
            return producer(servers.kafka_bootstrap, "relay", request_timeout_ms=request_timeout_ms)

        async with relaying(Relay(pool, make, metrics, limits=limits)):
            wanted = await enqueue_cases(pool, topic, 3, 1)
            await until(lambda: everything_published(pool))
            gate.loses_answers = True
            wanted |= await enqueue_cases(pool, topic, 3, 3)

            async def acted() -> bool:
                return await end_offsets(servers.kafka_bootstrap, topic) > 3 and gate.lost_answers > 0

            await until(acted)
            gate.loses_answers = False
            assert await unpublished(pool) > 0
            await until(lambda: everything_published(pool))
        events = await topic_events(servers.kafka_bootstrap, topic)
    assert_nothing_lost_and_in_order(events, wanted)
    if patience.startswith("the producer"):
        assert len(events) == len(wanted), "an idempotent producer's second try is a second event"


@asynccontextmanager
async def gate_to(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    """A gate that every Kafka client of this process goes through, whatever address the broker tells it."""
    gate = Gate(f"kafka://{bootstrap}")
    await gate.open()
    connect, broker = aiokafka.client.create_conn, int(bootstrap.rpartition(":")[2])

    async def through(host: str, port: int, **options: Any) -> Any:
        return await connect(host, gate.port if port == broker and not AROUND.get() else port, **options)

    monkeypatch.setattr(aiokafka.client, "create_conn", through)
    try:
        yield gate
    finally:
        await gate.shut()


async def end_offsets(bootstrap: str, topic: str) -> int:
    """How many records the broker has by now, asked around the gate."""
    token = AROUND.set(True)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        await consumer.start()
        ends = await consumer.end_offsets([TopicPartition(topic, number) for number in range(3)])
        return sum(ends.values())
    finally:
        await consumer.stop()
        AROUND.reset(token)


async def test_a_case_with_many_events_does_not_hold_the_others(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """However many events one case has waiting, another's goes after a bounded number of them, and none is lost."""
    hot = uuid4()
    for version in range(1, 121):
        await enqueue(pool, topic, case_event(version, case_id=hot))
    wanted = {(hot, version) for version in range(1, 121)} | await enqueue_cases(pool, topic, 5, 2)
    limits = replace(QUICK, batch_events=50)
    async with relaying(Relay(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=limits)):
        await until(lambda: everything_published(pool))
    assert_nothing_lost_and_in_order(await topic_events(servers.kafka_bootstrap, topic), wanted)
    last_cold = await pool.fetchval("select max(published_at) from outbox where key <> $1", str(hot))
    before = await pool.fetchval(
        "select count(*) from outbox where key = $1 and published_at <= $2", str(hot), last_cold
    )
    assert before < 70


async def test_one_relay_counts_and_removes_for_all(servers: Any, pool: asyncpg.Pool, topic: str) -> None:
    """The backlog is told by one relay, and what was published long ago goes, however many rows it is."""
    await enqueue_cases(pool, topic, 1, 1)
    await pool.execute(
        "insert into outbox (bucket, topic, key, version, headers, value, created_at, published_at)"
        " select 0, $1, gen_random_uuid()::text, 1, '[]', '', now() - interval '9 days', now() - interval '8 days'"
        " from generate_series(1, 2500)",
        topic,
    )
    all_metrics = [StreamMetrics(CollectorRegistry()) for _ in range(2)]

    async def told() -> bool:
        return sorted(value(metrics.outbox_pending) for metrics in all_metrics) == [0, 1]

    async def purged() -> bool:
        return bool(await pool.fetchval("select count(*) from outbox") == 1)

    limits = replace(QUICK, balance_s=0.4)
    nowhere = [
        Relay(pool, lambda: producer("127.0.0.1:1", "relay", request_timeout_ms=500), metrics, limits=limits)
        for metrics in all_metrics
    ]
    async with relaying(*nowhere):
        await until(told)
        await until(purged)


async def test_one_round_holds_a_bounded_number_of_bytes(
    servers: Any, pool: asyncpg.Pool, topic: str, metrics: StreamMetrics
) -> None:
    """However long the backlog, a relay reads no more at once than it is allowed to; one event always passes."""
    for _ in range(6):
        await enqueue(pool, topic, case_event(1, sealed=b"x" * 100_000))
    rounds = []

    class Watched(Relay):
        async def _publish(self, connection: asyncpg.Connection, rows: Any, stop: asyncio.Event) -> None:
            rounds.append(len(rows))
            await super()._publish(connection, rows, stop)

    limits = RelayLimits(poll_s=0.1, balance_s=0.2, batch_bytes=150_000)
    relay = Watched(pool, lambda: producer(servers.kafka_bootstrap, "relay"), metrics, limits=limits)
    async with relaying(relay):
        await until(lambda: everything_published(pool))
    assert rounds == [2, 2, 2]


async def test_topics_are_made_once(servers: Any, topic: str) -> None:
    """A topic that exists is left alone, also when several processes start at once."""
    answers = await asyncio.gather(*(ensure_topics(servers.kafka_bootstrap, [topic], 3, 1) for _ in range(3)))
    assert answers == [[], [], []]
