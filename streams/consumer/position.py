"""Where a group goes on reading: after its last settled record, if that record is still what lies there.

aiokafka does not show a topic's id. So the record before the next offset is read again, without a group, and compared
with what was noted of it: another one means that the topic was made anew, or that the broker was restored. Then the
group starts from the earliest record; its inbox drops what it has seen.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.consumer.fence import Fence
from streams.consumer.lanes import Item
from streams.consumer.offsets import Mark
from streams.consumer.records import digest
from streams.errors import Fenced
from streams.events import read_record

log = logging.getLogger(__name__)

Outcome = Literal["same", "recreated", "expired", "new"]

_END_SETTLES_S = 1.0
_CLOSE_S = 5.0

_STORED = """
select partition, next_offset, last_offset, last_sha256 from partition_fence
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) and next_offset is not null
"""
_RESTART = """
update partition_fence as held
set next_offset = null, last_offset = null, last_sha256 = null, restarted = t.outcome, restarted_at = now()
from unnest($3::int[], $4::bigint[], $5::text[]) as t(partition, epoch, outcome)
where held.consumer_group = $1 and held.topic = $2 and held.partition = t.partition and held.epoch = t.epoch
"""
_ALL = """
select consumer_group, topic, partition, next_offset, restarted, restarted_at from partition_fence
order by consumer_group, topic, partition
"""


class Position(NamedTuple):
    """Where a group goes on in a partition, and what tells the record before it from another."""

    next_offset: int
    offset: int
    sha256: bytes


class Start(NamedTuple):
    """Where reading begins after an assignment, and what was found at the position noted before."""

    offset: int
    outcome: Outcome


def mark_of(item: Item) -> UUID | bytes:
    """What tells a record from another at its offset: its event's id, or the digest of one that cannot be read."""
    return item.event.event_id if item.event is not None else digest(item.key, item.value, item.headers)


def sha256_of(mark: Mark) -> bytes:
    """The mark as it is stored."""
    return hashlib.sha256(mark.bytes).digest() if isinstance(mark, UUID) else mark or b""


async def stored(pool: asyncpg.Pool, held: Fence, *, timeout_s: float) -> dict[int, Position]:
    """The positions noted for these partitions; none for one that the group never committed here."""
    async with asyncio.timeout(timeout_s):
        rows = await pool.fetch(_STORED, held.group, held.topic, sorted(held.epochs))
    return {row["partition"]: Position(row["next_offset"], row["last_offset"], row["last_sha256"]) for row in rows}


async def restart(pool: asyncpg.Pool, held: Fence, starts: Mapping[int, Start], *, timeout_s: float) -> None:
    """Gives up the positions that lead nowhere, and says so in their rows; raises Fenced when they are not ours."""
    given_up = {number: each.outcome for number, each in starts.items() if each.outcome in ("recreated", "expired")}
    if not given_up:
        return
    async with asyncio.timeout(timeout_s):
        status: str = await pool.execute(
            _RESTART,
            held.group,
            held.topic,
            list(given_up),
            [held.epochs[number] for number in given_up],
            list(given_up.values()),
        )
    if status != f"UPDATE {len(given_up)}":
        raise Fenced
    log.warning("consumer.restarted", extra={"group": held.group, "partitions": given_up})


async def positions(pool: asyncpg.Pool, *, timeout_s: float = 10.0) -> list[asyncpg.Record]:
    """Every group's position, and when and why it last started anew: what an operator is shown."""
    async with asyncio.timeout(timeout_s):
        rows: list[asyncpg.Record] = await pool.fetch(_ALL)
    return rows


async def find_starts(
    bootstrap: str,
    topic: str,
    noted: Mapping[int, Position],
    committed: Mapping[int, int | None],
    *,
    timeout_s: float,
) -> dict[int, Start]:
    """Where to begin in each partition: after the noted record, else at the offset Kafka has, else at the beginning.

    Never beyond what is there: an offset out of range leads to the earliest record, not to the newest.
    """
    partitions = [TopicPartition(topic, number) for number in sorted({*noted, *committed})]
    async with asyncio.timeout(timeout_s):
        consumer = _reader(bootstrap, topic)
        try:
            await consumer.start()
            first, end = await _bounds(consumer, partitions)
            if any(each.offset >= end[number] for number, each in noted.items()):
                # After a change of leader the end may lag for a moment behind what was read before.
                await asyncio.sleep(_END_SETTLES_S)
                first, end = await _bounds(consumer, partitions)
            there = {n: each for n, each in noted.items() if first[n] <= each.offset < end[n]}
            found = await _marks(consumer, topic, {number: each.offset for number, each in there.items()})
        finally:
            async with asyncio.timeout(_CLOSE_S):
                await consumer.stop()
    starts = {n: _of_kafka(offset, first[n], end[n]) for n, offset in committed.items()}
    for number, each in noted.items():
        same = number in found and found[number] == each.sha256
        starts[number] = _of_noted(each, first[number], end[number], same=same)
    return starts


def _of_noted(noted: Position, first: int, end: int, *, same: bool) -> Start:
    if same:
        return Start(noted.next_offset, "same")
    if noted.offset >= first or noted.next_offset > end:
        return Start(first, "recreated")
    # The record is gone with its age; whether others went with it that were not settled is told by the next offset.
    return Start(first, "same" if noted.next_offset == first else "expired")


def _of_kafka(offset: int | None, first: int, end: int) -> Start:
    if offset is None or first <= offset <= end:
        return Start(first if offset is None else offset, "new")
    return Start(first, "expired" if offset < first else "recreated")


def _reader(bootstrap: str, topic: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        client_id=f"silogate-position-{topic}",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=16 * 1024,
    )


async def _bounds(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> tuple[dict[int, int], dict[int, int]]:
    first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    return {each.partition: first[each] for each in partitions}, {each.partition: end[each] for each in partitions}


async def _marks(consumer: AIOKafkaConsumer, topic: str, offsets: Mapping[int, int]) -> dict[int, bytes]:
    """The marks of the records at these offsets, as they are stored; empty where another offset comes first."""
    if not offsets:
        return {}
    waiting = {TopicPartition(topic, number): offset for number, offset in offsets.items()}
    found: dict[int, bytes] = {}
    consumer.assign(list(waiting))
    for partition, offset in waiting.items():
        consumer.seek(partition, offset)
    while waiting:
        for partition, records in (await consumer.getmany(*waiting, timeout_ms=200, max_records=1)).items():
            record, wanted = records[0], waiting.pop(partition)
            event, _ = read_record(record.key, record.value, record.headers)
            mark = event.event_id if event is not None else digest(record.key, record.value, record.headers)
            found[partition.partition] = sha256_of(mark) if record.offset == wanted else b""
    return found
