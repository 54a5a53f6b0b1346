"""Fence epochs: a process that lost a partition without noticing cannot write any more.

How it is used, in this order:

1. At assignment the consumer raises the partition's epoch in the gateway's table `partition_fence` (`bump`) and gets a
   Fence: the group, the topic and the epoch of each partition.
2. Only then, and before any event of those partitions, it calls `on_assigned(fence)` on a handler that has it. A
   handler that writes to a database of its own makes the new epochs known there: `await register(connection, fence)`,
   which needs the table `silogate_fence` (RECIPIENT_TABLE_SQL makes it). If the hook raises, no event is handed out and
   the hook is called again after a delay; so it must be safe to repeat.
3. With every event or batch the handler gets a Fence that holds exactly the partitions of those events. Inside the
   transaction that writes, it calls `await hold(connection, fence)` (recipient's database) or
   `await hold(connection, fence, table=GATEWAY)` (gateway's database). Fenced means that another process owns the
   partition now: let it propagate, which rolls back; the consumer then lets go of its partitions and joins afresh.

`hold` keeps a shared lock on the rows until the transaction ends, and `register` must change them. So the new owner
either waits for the old one's transaction to end, or makes it fail: never both write.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import asyncpg

from streams.errors import Fenced

Table = Literal["partition_fence", "silogate_fence"]

GATEWAY: Table = "partition_fence"
RECIPIENT: Table = "silogate_fence"

RECIPIENT_TABLE_SQL = """
create table if not exists silogate_fence (
    consumer_group text not null,
    topic text not null,
    partition integer not null,
    epoch bigint not null,
    primary key (consumer_group, topic, partition)
)
"""

# Ordered by partition, so that two owners of several partitions take the locks in the same order.
_BUMP = """
insert into partition_fence as held (consumer_group, topic, partition, epoch)
select $1, $2, wanted, 1 from unnest($3::int[]) as wanted order by wanted
on conflict (consumer_group, topic, partition) do update set epoch = held.epoch + 1
returning partition, epoch
"""
_REGISTER = """
insert into silogate_fence as held (consumer_group, topic, partition, epoch)
select $1, $2, t.partition, t.epoch from unnest($3::int[], $4::bigint[]) as t(partition, epoch) order by t.partition
on conflict (consumer_group, topic, partition) do update set epoch = excluded.epoch
where held.epoch <= excluded.epoch
returning partition
"""
_HOLD: Mapping[Table, str] = {
    GATEWAY: """
select partition, epoch from partition_fence
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) order by partition for share
""",
    RECIPIENT: """
select partition, epoch from silogate_fence
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) order by partition for share
""",
}


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write for some partitions of a topic: valid until another process takes them over."""

    group: str
    topic: str
    epochs: Mapping[int, int]

    def only(self, partitions: Iterable[int]) -> "Fence":
        """The same fence for fewer partitions."""
        wanted = set(partitions)
        return Fence(
            self.group, self.topic, {number: epoch for number, epoch in self.epochs.items() if number in wanted}
        )


async def bump(pool: asyncpg.Pool, group: str, topic: str, partitions: Iterable[int], *, timeout_s: float) -> Fence:
    """Takes the partitions over in the gateway's database: whoever held them before is fenced from now on."""
    async with asyncio.timeout(timeout_s):
        rows = await pool.fetch(_BUMP, group, topic, sorted(partitions))
    return Fence(group, topic, {row["partition"]: row["epoch"] for row in rows})


async def register(connection: asyncpg.Connection | asyncpg.Pool, fence: Fence) -> None:
    """Makes the epochs known in a recipient's database; raises Fenced when a newer owner was there first."""
    partitions = sorted(fence.epochs)
    rows = await connection.fetch(
        _REGISTER, fence.group, fence.topic, partitions, [fence.epochs[number] for number in partitions]
    )
    if len(rows) != len(partitions):
        raise Fenced


async def hold(connection: asyncpg.Connection, fence: Fence, *, table: Table = RECIPIENT) -> None:
    """Raises Fenced unless every epoch is still the newest one, and keeps it so until the transaction ends."""
    rows = await connection.fetch(_HOLD[table], fence.group, fence.topic, sorted(fence.epochs))
    if {row["partition"]: row["epoch"] for row in rows} != dict(fence.epochs):
        raise Fenced
