"""A copy of what is parked in a Kafka topic, for people and tools that look there. Postgres is what counts.

A record keeps its key, value and headers, and gets the headers that say where it was and why it is here. Copies leave
after the parking was committed and are not tried twice: what does not fit or does not arrive is counted, and is in
Postgres all the same.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from streams.consumer.lanes import Item, Verdict
from streams.discarding import discard
from streams.metrics import StreamMetrics
from streams.outbox import producer
from streams.topics import dead_letter_topic
from streams.waiting import first_of

log = logging.getLogger(__name__)

_EVENTS = 5_000
_BYTES = 16 * 1024 * 1024
_BATCH = 200
_TIMEOUT_S = 20.0

Headers = list[tuple[str, bytes]]


class _Copy(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: Headers
    size: int


class Mirror:
    """Copies what one group parks to its dead letter topic. `put` never waits; `run` sends, until it is stopped."""

    def __init__(
        self,
        bootstrap: str,
        source: str,
        group: str,
        *,
        metrics: StreamMetrics,
        mapping_version: str | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._source = source
        self._group = group
        self.topic = dead_letter_topic(source, group)
        self._sent = metrics.dlq_mirrored.labels(group, "done")
        self._failed = metrics.dlq_mirrored.labels(group, "failed")
        self._mapping_version = mapping_version
        self._waiting: deque[_Copy] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def put(self, items: Iterable[Item], verdict: Verdict, *, attempts: int, failed_at: datetime | None = None) -> None:
        """Has these events copied. What is beyond the bound is counted as failed."""
        added = self._why(verdict, attempts, failed_at or datetime.now(UTC))
        for item in items:
            headers = [*item.headers, *self._where(item), *added]
            size = item.size + 2048
            if len(self._waiting) >= _EVENTS or self._bytes + size > _BYTES:
                self._failed.inc()
                continue
            # The key is the case's id, so a case's copies lie in its own partition, in order.
            self._waiting.append(_Copy(item.key, item.value, headers, size))
            self._bytes += size
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Sends what is put here. Once `stop` is set it sends what still waits, and ends."""
        kafka: AIOKafkaProducer | None = None
        try:
            while True:
                await first_of(self._wake, stop)
                self._wake.clear()
                while self._waiting:
                    kafka = await self._send(kafka)
                    if kafka is None and stop.is_set():
                        # Kafka is away and the process is ending: Postgres has it all
                        self._failed.inc(len(self._waiting))
                        self._waiting.clear()
                if stop.is_set():
                    return
        finally:
            if kafka is not None:
                await discard(kafka)

    async def _send(self, kafka: AIOKafkaProducer | None) -> AIOKafkaProducer | None:
        batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        self._bytes -= sum(copy.size for copy in batch)
        sent = 0
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if kafka is None:
                    kafka = producer(self._bootstrap, "silogate-dlq")
                    await kafka.start()
                on_their_way = [await self._begin(kafka, copy) for copy in batch]
                for acknowledged in on_their_way:
                    if acknowledged is not None:
                        await acknowledged
                        sent += 1
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("consumer.not_mirrored", extra={"group": self._group, "error": type(error).__name__})
            if kafka is not None:
                await discard(kafka)
            kafka = None
        self._sent.inc(sent)
        self._failed.inc(len(batch) - sent)
        return kafka

    async def _begin(self, kafka: AIOKafkaProducer, copy: _Copy) -> asyncio.Future[object] | None:
        try:
            sending: asyncio.Future[object] = await kafka.send(
                self.topic, copy.value, key=copy.key, headers=copy.headers
            )
        except MessageSizeTooLargeError:
            # its own headers fitted, with ours it does not: the others need not wait for that
            return None
        return sending

    def _where(self, item: Item) -> Headers:
        place = [("topic", self._source), ("partition", str(item.partition)), ("offset", str(item.offset))]
        headers = [(f"{prefix}{name}", text.encode()) for prefix in _PREFIXES for name, text in place]
        headers.append(("dlq.original.key", item.key or b""))
        if item.timestamp is not None:
            headers.append(("dlq.original.timestamp", str(item.timestamp).encode()))
        return headers

    def _why(self, verdict: Verdict, attempts: int, failed_at: datetime) -> Headers:
        """The same in our words and in those of Kafka Connect. A stack trace could quote the event: there is none."""
        named = {
            "dlq.stage": verdict.stage,
            "dlq.field": verdict.field,
            "dlq.class": verdict.kind,
            "dlq.message": verdict.reason,
            "dlq.attempts": str(attempts),
            "dlq.first_failed_at": failed_at.isoformat(timespec="milliseconds"),
            "dlq.mapping_version": self._mapping_version,
            f"{_CONNECT}connector.name": self._group,
            f"{_CONNECT}task.id": "0",
            f"{_CONNECT}stage": verdict.stage,
            f"{_CONNECT}class.name": "silogate",
            f"{_CONNECT}exception.class.name": verdict.kind,
            f"{_CONNECT}exception.message": verdict.reason,
            f"{_CONNECT}exception.stacktrace": "",
        }
        return [(name, text.encode()) for name, text in named.items() if text is not None]


_CONNECT = "__connect.errors."
_PREFIXES = ("dlq.original.", _CONNECT)
