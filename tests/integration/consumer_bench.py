"""What the tests of the consumer share: recording handlers, and a topic of their own to fill, consume and look at."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from streams.consumer.consumer import Consumer
from streams.consumer.fence import Fence
from streams.consumer.handlers import BatchHandler, CaseHandler
from streams.consumer.limits import ConsumerLimits, Retry, SessionTimeouts
from streams.consumer.mirror import Mirror
from streams.consumer.session import Session
from streams.events import CaseEvent, encode
from streams.metrics import StreamMetrics
from streams.outbox import producer
from streams.testing import case_event
from streams.topics import ensure_topics

PARTITIONS = 4


QUICK = ConsumerLimits(
    commit_every_s=0.1,
    resume_every_s=0.1,
    drain_s=5,
    retry=Retry(attempts=3, first_delay_s=0.05, longest_delay_s=0.2),
    sessions=SessionTimeouts(session_ms=6000, heartbeat_ms=200, rebalance_ms=6000),
)


Behaviour = Callable[[CaseEvent], Awaitable[None] | None]


@dataclass
class Recorder:
    """A case handler that notes what it did, and does what the test says first."""

    behaviour: Behaviour = lambda _: None
    applied: list[CaseEvent] = field(default_factory=list)
    fences: list[Fence] = field(default_factory=list)
    at_work: set[UUID] = field(default_factory=set)
    widest: int = 0

    async def handle(self, event: CaseEvent, fence: Fence) -> None:
        assert event.case_id not in self.at_work, "two events of one case at once"
        self.at_work.add(event.case_id)
        self.widest = max(self.widest, len(self.at_work))
        try:
            wait = self.behaviour(event)
            if wait is not None:
                await wait
            self.applied.append(event)
            self.fences.append(fence)
        finally:
            self.at_work.discard(event.case_id)

    def versions(self, case_id: UUID) -> list[int]:
        return [event.version for event in self.applied if event.case_id == case_id]


@dataclass
class BatchRecorder:
    """A batch handler that notes its batches."""

    behaviour: Callable[[Sequence[CaseEvent]], None] = lambda _: None
    batches: list[list[CaseEvent]] = field(default_factory=list)
    calls: int = 0

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        self.calls += 1
        self.behaviour(events)
        self.batches.append(list(events))

    @property
    def applied(self) -> list[CaseEvent]:
        return [event for batch in self.batches for event in batch]


@dataclass
class Bench:
    """A topic of its own with what is needed to fill it, consume it and look at the group."""

    bootstrap: str
    topic: str
    group: str
    pool: asyncpg.Pool
    writer: AIOKafkaProducer
    metrics: StreamMetrics = field(default_factory=lambda: StreamMetrics(CollectorRegistry()))

    async def write(self, *events: CaseEvent) -> None:
        for event in events:
            key, value, headers = encode(event)
            await self.writer.send(self.topic, value, key=key, headers=headers)
        await self.writer.flush()

    async def write_raw(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        await self.writer.send_and_wait(self.topic, value, key=key, headers=headers)

    def consumer(
        self, handler: BatchHandler | CaseHandler, limits: ConsumerLimits = QUICK, mirror: Mirror | None = None
    ) -> Consumer:
        return Consumer(
            self.bootstrap,
            self.group,
            self.topic,
            handler,
            pool=self.pool,
            metrics=self.metrics,
            limits=limits,
            mirror=mirror,
        )

    def session(self, handler: BatchHandler | CaseHandler, limits: ConsumerLimits = QUICK) -> Session:
        """One membership by itself, so that a test can play the group's part."""
        return Session(
            self.bootstrap,
            self.group,
            self.topic,
            handler,
            pool=self.pool,
            metrics=self.metrics,
            limits=limits,
            client_id="test",
        )

    @asynccontextmanager
    async def consuming(
        self, handler: BatchHandler | CaseHandler, limits: ConsumerLimits = QUICK
    ) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.consumer(handler, limits).run(stop))
            try:
                yield
            finally:
                stop.set()

    async def committed(self) -> int:
        """The sum of the group's committed offsets: how many records it need never see again."""
        reader = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=self.group, enable_auto_commit=False)
        await reader.start()
        try:
            return sum(
                [await reader.committed(TopicPartition(self.topic, number)) or 0 for number in range(PARTITIONS)]
            )
        finally:
            await reader.stop()

    def counted(self, outcome: str) -> float:
        count: float = self.metrics.events.labels(self.group, outcome)._value.get()
        return count


@asynccontextmanager
async def open_bench(servers: Any, gateway_database: Any, topic_prefix: str) -> AsyncIterator[Bench]:
    topic = f"{topic_prefix}cases.changes.v1"
    await ensure_topics(servers.kafka_bootstrap, [topic], PARTITIONS, 1)
    writer = producer(servers.kafka_bootstrap, "test")
    await writer.start()
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=10, server_settings={"search_path": "gateway"}
    ) as pool:
        yield Bench(servers.kafka_bootstrap, topic, f"{topic_prefix}street-team", pool, writer)
    await writer.stop()


async def until(condition: Callable[[], bool], bound_s: float = 30) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.02)


def history(cases: int, versions: int) -> list[CaseEvent]:
    ids = [uuid4() for _ in range(cases)]
    return [case_event(version, case_id=case_id) for version in range(1, versions + 1) for case_id in ids]


def assert_in_order(applied: Sequence[CaseEvent]) -> None:
    last: dict[UUID, int] = {}
    for event in applied:
        assert event.version > last.get(event.case_id, 0)
        last[event.case_id] = event.version
