"""Notices a member that has work to do and does not move, which Kafka cannot tell from one that is idle."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.consumer.assigned import Assigned
from streams.consumer.limits import ConsumerLimits
from streams.metrics import StreamMetrics

log = logging.getLogger(__name__)


class Stalled(Exception):
    """Events wait in Kafka and none is fetched, or the client does not answer: another membership may mend it."""


class Watchdog:
    """Told of what the session does, it compares with what there would be to do.

    A recipient that is away, or a full buffer, is no stall: then nothing is wanted. Neither is a Kafka that is away:
    then nobody can say that something waits.
    """

    def __init__(
        self,
        kafka: AIOKafkaConsumer,
        topic: str,
        *,
        group: str,
        limits: ConsumerLimits,
        metrics: StreamMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._group = group
        self._limits = limits
        self._lag = metrics.lag_events.labels(group)
        self._clock = clock
        self._polled_at = self._turned_at = clock()
        self._wanted_at: float | None = None
        self.has_moved = False

    def polled(self, *, wanted: bool) -> None:
        """The client was asked, or is about to be: for events, or only for signs of life."""
        self._polled_at = self._clock()
        if not wanted:
            self._wanted_at = None
        elif self._wanted_at is None:
            self._wanted_at = self._polled_at

    def fetched(self) -> None:
        """Events came."""
        self.has_moved = True
        self._wanted_at = None

    def turned(self) -> None:
        """The assignment changed, opened, or was tried to be opened and somebody else was in the way."""
        self._polled_at = self._turned_at = self._clock()
        self._wanted_at = None

    async def run(self, assigned: Mapping[int, Assigned], is_open: Callable[[], bool]) -> None:
        """Watches until cancelled; raises Stalled."""
        closed_s = self._limits.sessions.rebalance_ms / 1000 * 2
        while True:
            await asyncio.sleep(self._limits.watch_every_s)
            if not assigned:
                self._lag.set(0)
                continue
            now = self._clock()
            if now - self._polled_at > self._limits.stall_s:
                raise Stalled("the client does not return")
            if not is_open():
                if now - self._turned_at > closed_s:
                    raise Stalled("partitions are assigned and not opened")
                continue
            behind = await self._behind(dict(assigned))
            if behind and self._wanted_at is not None and now - self._wanted_at > self._limits.stall_s:
                raise Stalled("events wait and none is fetched")

    async def _behind(self, assigned: Mapping[int, Assigned]) -> bool:
        """Whether Kafka holds events that were not fetched; False when it does not say."""
        try:
            async with asyncio.timeout(self._limits.call_timeout_s):
                ends = await self._kafka.end_offsets([TopicPartition(self._topic, number) for number in assigned])
        except (KafkaError, OSError) as error:
            log.warning("consumer.not_watched", extra={"group": self._group, "error": type(error).__name__})
            return False
        settled = {number: each.settled_to for number, each in assigned.items()}
        ends_of = {partition.partition: end for partition, end in ends.items()}
        self._lag.set(sum(max(0, ends_of[number] - at) for number, at in settled.items() if at is not None))
        return any((at := each.fetched_to) is not None and at < ends_of[number] for number, each in assigned.items())
