"""Live changes of cases: one Kafka tail per process, fanned out to bounded subscriptions.

Kafka is the fast way, `case_event` the truth. A sweep compares each watched case's version in Postgres with what its
subscriptions were told, when the tail comes up and then at every heartbeat: a stream advances without Kafka, and an
event that Kafka lost, or that passed while the tail was being placed, is found. The streams over a type of case have
only Kafka: for them the tail goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from gateway.live_replay import Replays
from gateway.live_types import TypeStreams
from gateway.telemetry import EdgeMetrics
from streams.errors import Undecodable
from streams.events import CaseEvent, decode
from streams.outages import DATABASE_ERRORS

log = logging.getLogger(__name__)

_VERSIONS = "select id, version from cases where id = any($1)"
_POLL_MS = 500
_RETRY_S = 2.0
_SILENT_S = 5.0
_PLACE_S = 30.0


class Subscription:
    """What one stream is still to be told. `cut` is set when its reader is too slow: nothing more comes then."""

    def __init__(self, case_id: UUID, limit: int, on_cut: Callable[[], None]) -> None:
        self.case_id = case_id
        self.told = 0
        self.cut = False
        self.closed = False
        self._limit = limit
        self._on_cut = on_cut
        self._events: deque[CaseEvent] = deque()
        self._behind = 0
        self._news = asyncio.Event()

    def offer(self, event: CaseEvent) -> bool:
        """Queues an event; false, and cut, when the queue is full."""
        if self.cut or self.closed or event.version <= self.told:
            return True
        if len(self._events) >= self._limit:
            self.cut = True
            self._events.clear()
            self._news.set()
            self._on_cut()
            return False
        self._events.append(event)
        self._news.set()
        return True

    def nudge(self, version: int) -> None:
        """Says that the case has reached a version; the stream reads what it lacks from the history."""
        if version > self.told and not self._events:
            self._behind = version
            self._news.set()

    def close(self) -> None:
        """Ends the stream after what is queued; its client comes back with Last-Event-ID, to another process."""
        self.closed = True
        self._news.set()

    async def wait(self, timeout_s: float) -> bool:
        """True when there is news, false when the time passed without any."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> tuple[list[CaseEvent], int]:
        """What came since the last call: events, and the version the history is known to have reached."""
        events, behind = list(self._events), self._behind
        self._events.clear()
        self._behind = 0
        if not (self.cut or self.closed):
            self._news.clear()
        return events, behind


class Live:
    """The subscriptions of this process. `run` feeds them from Kafka and, at every heartbeat, from Postgres."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        bootstrap: str,
        topic: str,
        *,
        metrics: EdgeMetrics,
        heartbeat_s: float = 15.0,
        queue_limit: int = 100,
    ) -> None:
        self._pool = pool
        self._bootstrap = bootstrap
        self._topic = topic
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._queue_limit = queue_limit
        self._watched: dict[UUID, set[Subscription]] = defaultdict(set)
        self._closed = False
        self._tailing = False
        self.types = TypeStreams(topic, metrics)
        self.replays = Replays(bootstrap, topic)

    @contextmanager
    def subscribe(self, case_id: UUID, on_cut: Callable[[], None]) -> Iterator[Subscription]:
        """A subscription for as long as the block runs. Read the history inside it: nothing is missed in between."""
        subscription = Subscription(case_id, self._queue_limit, on_cut)
        if self._closed:
            subscription.close()
        self._watched[case_id].add(subscription)
        try:
            yield subscription
        finally:
            watchers = self._watched[case_id]
            watchers.discard(subscription)
            if not watchers:
                del self._watched[case_id]

    @property
    def tailing(self) -> bool:
        """Whether the topic is being read now."""
        return self._tailing

    async def probe(self) -> None:
        """For /readyz: raises ConnectionError while the tail of the topic is not being read."""
        if not self._tailing:
            raise ConnectionError("the case topic is not being read")

    def close(self) -> None:
        """Ends every stream, and each that is opened from now on; called when the process drains."""
        self._closed = True
        for watchers in self._watched.values():
            for subscription in watchers:
                subscription.close()
        self.types.close()

    async def run(self) -> None:
        """Feeds the subscriptions until cancelled; outlives outages of Kafka and of Postgres."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tail(), name="live tail")
            tasks.create_task(self._sweep_for_ever(), name="live sweep")

    def publish(self, event: CaseEvent) -> None:
        """Hands one event to the streams of its case."""
        for subscription in tuple(self._watched.get(event.case_id, ())):
            if subscription.offer(event):
                self._metrics.live_events.inc()
            else:
                self._metrics.live_cut.labels("slow").inc()

    async def sweep(self) -> None:
        """Nudges each stream whose case is further than what the stream was told."""
        if not self._watched:
            return
        async with asyncio.timeout(self._heartbeat_s):
            rows = await self._pool.fetch(_VERSIONS, list(self._watched))
        for row in rows:
            for subscription in tuple(self._watched.get(row["id"], ())):
                subscription.nudge(row["version"])

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await self._try_sweep()

    async def _try_sweep(self) -> None:
        try:
            await self.sweep()
        except DATABASE_ERRORS as error:
            log.warning("live.sweep_failed", extra={"error_class": type(error).__name__})

    async def _tail(self) -> None:
        while True:
            try:
                await self._read_topic()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("live.tail_lost", extra={"error_class": type(error).__name__})
            finally:
                self._say_tailing(False)
            await asyncio.sleep(_RETRY_S)

    async def _read_topic(self) -> None:
        """Reads all partitions, new ones too, from where they were left; raises when Kafka is away at the start."""
        consumer = AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            request_timeout_ms=10_000,
            retry_backoff_ms=250,
        )
        try:
            async with asyncio.timeout(_PLACE_S):
                await consumer.start()
                await self._place(consumer)
            self._say_tailing(True)
            # what was committed while the positions were being found is in Postgres
            await self._try_sweep()
            await self._follow(consumer)
        finally:
            async with asyncio.timeout(_PLACE_S):
                await consumer.stop()

    async def _place(self, consumer: AIOKafkaConsumer) -> None:
        partitions = consumer.assignment()
        beginnings = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, self.types.place(partition.partition, beginnings[partition], ends[partition]))

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        heard = time.monotonic()
        while True:
            batch = await consumer.getmany(timeout_ms=_POLL_MS, max_records=500)
            for records in batch.values():
                for record in records:
                    self._take(record.key, record.value, record.headers)
                    self.types.take(record)
            # what is fetched ahead is handed out without waiting: the streams must come to their turn as well
            await asyncio.sleep(0)
            now = time.monotonic()
            heard = max(heard, _last_answer(consumer, now))
            # the client waits for a lost broker without a word: only its fetches tell
            self._say_tailing(now - heard < _SILENT_S)

    def _say_tailing(self, tailing: bool) -> None:
        if tailing != self._tailing:
            log.log(logging.INFO if tailing else logging.WARNING, "live.tail_%s", "up" if tailing else "down")
        self._tailing = tailing
        self._metrics.live_tail_up.set(tailing)

    def _take(self, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> None:
        try:
            # most records are about cases that nobody watches: they are not decoded
            if key is None or UUID(key.decode("ascii")) not in self._watched:
                return
            event = decode(key, value, headers)
        except (Undecodable, ValueError):
            self._metrics.live_undecodable.inc()
            return
        self.publish(event)


def _last_answer(consumer: AIOKafkaConsumer, now: float) -> float:
    """When a broker last answered a fetch, in the monotonic clock. aiokafka keeps wall-clock milliseconds."""
    stamps = [stamp for partition in consumer.assignment() if (stamp := consumer.last_poll_timestamp(partition))]
    return now - max(0.0, time.time() - max(stamps) / 1000) if stamps else float("-inf")
