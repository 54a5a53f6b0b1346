"""What a stream over a type of case has missed, read from Kafka by a consumer of its own, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway.live_token import Spot, Spots, mark, written
from gateway.live_types import Reason, Record, type_of

_POLL_MS = 1000
_SILENT_S = 10.0
_OPEN_S = 15.0
_MOST_RECORDS = 500
_START = Spot(0, 0)

Told = Callable[[Any, str], bytes | None]


class Full(Exception):
    """As many streams as may are reading what they missed."""


class Gone(Exception):
    """What the stream missed cannot be told: Kafka no longer has it, or the topic is not the one it was."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Interrupted(Exception):
    """Kafka does not answer; the client may come back with what it has."""


class Replays:
    """Hands out at most `most` replays at a time."""

    def __init__(self, bootstrap: str, topic: str, *, most: int = 8) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._free = most

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place to read in, for as long as the block runs; raises Full."""
        if self._free == 0:
            raise Full
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Replay]:
        """A consumer without a group, which commits nothing."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            request_timeout_ms=10_000,
            fetch_max_bytes=1024 * 1024,
            max_partition_fetch_bytes=256 * 1024,
        )
        try:
            with _answering():
                await consumer.start()
            yield Replay(consumer, self._topic)
        finally:
            async with asyncio.timeout(_OPEN_S):
                await consumer.stop()


class Replay:
    """Reads from one position to another."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    async def read(self, begin: Spots, until: Spots, case_type: str, told: Told) -> AsyncGenerator[bytes, None]:
        """What happened to cases of the type between the two, in pieces; each ends with the place it leads to.

        Raises Gone where `begin` is no place in this topic any more, and Interrupted.
        """
        at, left = await self._place(begin, until)
        wanted = case_type.encode()
        while left:
            fetched = await self._fetch(left)
            text = bytearray()
            for partition, records in fetched.items():
                for record in records:
                    if not _pass(record, at, until):
                        continue
                    if type_of(record.headers) == wanted:
                        text += told(record, written(self._topic, at)) or b""
                if at[partition.partition].offset >= until[partition.partition].offset:
                    left.discard(partition)
            yield bytes(text) + b"id: %s\n\n" % written(self._topic, at).encode()

    async def _place(self, begin: Spots, until: Spots) -> tuple[dict[int, Spot], set[TopicPartition]]:
        if begin and set(begin) - set(until):
            raise Gone("recreated")
        partitions = {number: TopicPartition(self._topic, number) for number in until}
        with _answering():
            async with asyncio.timeout(_OPEN_S):
                self._consumer.assign(list(partitions.values()))
                beginnings = await self._consumer.beginning_offsets(list(partitions.values()))
                ends = await self._consumer.end_offsets(list(partitions.values()))
        at: dict[int, Spot] = {}
        left = set()
        for number, partition in partitions.items():
            at[number] = spot = begin.get(number, Spot(beginnings[partition], 0))
            if spot.offset < beginnings[partition]:
                raise Gone("expired")
            if spot.offset > ends[partition]:
                raise Gone("recreated")
            if spot.offset > until[number].offset:
                # the tail is behind what this client has seen already: telling it from there would tell it twice
                raise Interrupted
            first = max(beginnings[partition], spot.offset - 1) if spot.mark else spot.offset
            if first < until[number].offset:
                self._consumer.seek(partition, first)
                left.add(partition)
        return at, left

    async def _fetch(self, left: set[TopicPartition]) -> dict[TopicPartition, list[Any]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SILENT_S
        with _answering():
            while loop.time() < deadline:
                fetched: dict[TopicPartition, list[Any]] = await self._consumer.getmany(
                    *left, timeout_ms=_POLL_MS, max_records=_MOST_RECORDS
                )
                if fetched:
                    return fetched
        raise Interrupted


def distance(begin: Spots, until: Spots) -> int:
    """How many records lie between, at most."""
    return sum(max(0, spot.offset - begin.get(number, _START).offset) for number, spot in until.items())


def _pass(record: Record, at: dict[int, Spot], until: Spots) -> bool:
    """Moves over a record; whether it is one to tell. Raises Gone when it is another than the one that was read."""
    spot, marked = at[record.partition], mark(record.key, record.value)
    if record.offset < spot.offset:
        if spot.mark not in (0, marked):
            raise Gone("recreated")
        return False
    if record.offset >= until[record.partition].offset:
        return False
    at[record.partition] = Spot(record.offset + 1, marked)
    return True


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise Interrupted from error
