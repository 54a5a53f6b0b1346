"""The inbox of a group: the last version of each case that it has settled, noted together with its positions."""

import asyncio
from collections.abc import Collection, Mapping
from typing import NamedTuple
from uuid import UUID

import asyncpg

from streams.cases import rows
from streams.consumer.fence import Fence
from streams.consumer.position import Position
from streams.errors import Fenced
from streams.events import CaseEvent

_MOST_MISSING = 1000

_KNOWN = """
select wanted.case_id, seen.version as last, cases.version as in_gateway
from unnest($2::uuid[]) as wanted(case_id)
left join case_seen seen on seen.consumer_group = $1 and seen.case_id = wanted.case_id
left join cases on cases.id = wanted.case_id
"""
# Locked in the order of partitions, as a new owner locks them; not shared: two shared locks that both want to write
# wait for each other.
_OWNED = """
select partition, epoch from partition_fence
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) order by partition for no key update
"""
_MOVE = """
update partition_fence as held set next_offset = t.next_offset, last_offset = t.last_offset, last_sha256 = t.sha256
from unnest($3::int[], $4::bigint[], $5::bigint[], $6::bytea[]) as t(partition, next_offset, last_offset, sha256)
where held.consumer_group = $1 and held.topic = $2 and held.partition = t.partition
  and (held.next_offset is null or held.next_offset < t.next_offset)
"""
_SEE = """
insert into case_seen as held (consumer_group, case_id, version)
select $1, t.case_id, t.version from unnest($2::uuid[], $3::bigint[]) as t(case_id, version) order by t.case_id
on conflict (consumer_group, case_id) do update set version = excluded.version, seen_at = now()
where held.version < excluded.version
"""


class Known(NamedTuple):
    """What is known of a case: the last version the group has settled, and the newest one in the gateway's database."""

    last: int | None
    in_gateway: int | None


class Inbox:
    """The inbox of one group and topic. Every call ends within `timeout_s` and raises what its database raises."""

    def __init__(self, pool: asyncpg.Pool, group: str, topic: str, *, timeout_s: float) -> None:
        self._pool = pool
        self._group = group
        self._topic = topic
        self._timeout_s = timeout_s

    async def known(self, case_ids: Collection[UUID]) -> Mapping[UUID, Known]:
        """What is known of each of these cases, in one question."""
        async with asyncio.timeout(self._timeout_s):
            found = await self._pool.fetch(_KNOWN, self._group, list(case_ids))
        return {row["case_id"]: Known(row["last"], row["in_gateway"]) for row in found}

    async def missing(self, case_id: UUID, after: int, before: int) -> list[CaseEvent]:
        """The events of a case between two versions, in order, from the gateway's database: at most the newest 1,000.

        An event is committed there before the relay can see it: what was ever published, it has.
        """
        after = max(after, before - 1 - _MOST_MISSING)
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection:
            found = await rows.select_events(connection, case_id, after, before - 1 - after)
        return [event for event in found if event.version < before]

    async def advance(self, seen: Mapping[UUID, int], positions: Mapping[int, Position], held: Fence) -> None:
        """Notes settled versions and positions together; raises Fenced when another process owns a partition now."""
        partitions = sorted(held.epochs)
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            owned = await connection.fetch(_OWNED, self._group, self._topic, partitions)
            if {row["partition"]: row["epoch"] for row in owned} != dict(held.epochs):
                raise Fenced
            if positions:
                numbers = sorted(positions)
                moved = [positions[number] for number in numbers]
                columns = ([each[index] for each in moved] for index in range(3))
                await connection.execute(_MOVE, self._group, self._topic, numbers, *columns)
            if seen:
                await connection.execute(_SEE, self._group, list(seen), list(seen.values()))
