"""Parked cases: a case whose head event failed waits in Postgres with everything after it, in order.

Only the owner of the partition parks, appends and un-parks, and each of these transactions holds its fence. Whoever
adds an event or takes the last one away locks the row in `parked_key` first: either the event is in the list before the
case is un-parked, or its owner learns that the case is not parked any more. So no event slips past.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

import asyncpg

from streams.consumer import fence
from streams.consumer.fence import Fence
from streams.consumer.lanes import Item, Verdict
from streams.consumer.records import digest, headers_json, storable
from streams.consumer.replay import ParkedEvent, read_parked

# One that was only in the way is to be tried again at once: nobody has to ask for it.
# In the order of the cases, here and below: two transactions that meet wait for each other instead of deadlocking.
_PARK_KEYS = """
insert into parked_key (consumer_group, case_id, topic, partition, stage, field, reason, attempts, resume_requested)
select $1, p.case_id, $2, p.partition, p.stage, p.field, p.reason, p.attempts,
       case when p.stage = 'pressure' then now() end
from unnest($3::uuid[], $4::int[], $5::text[], $6::text[], $7::text[], $8::int[])
     as p(case_id, partition, stage, field, reason, attempts)
order by p.case_id
on conflict (consumer_group, case_id) do update set attempts = parked_key.attempts + excluded.attempts
"""
_LOCK_KEYS = """
select case_id from parked_key where consumer_group = $1 and case_id = any($2::uuid[]) order by case_id for update
"""
_LOCK_KEY = "select 1 from parked_key where consumer_group = $1 and case_id = $2 for update"
# `position` is drawn in the order of the rows, so the events of a case stay in theirs.
_ADD_EVENTS = """
insert into parked_event (consumer_group, case_id, version, topic, partition, record_offset, record_sha256, headers,
                          value, event_id, event_type)
select $1, e.case_id, e.version, $2, e.partition, e.record_offset, e.record_sha256, e.headers::jsonb, e.value,
       e.event_id, e.event_type
from unnest($3::uuid[], $4::bigint[], $5::int[], $6::bigint[], $7::bytea[], $8::text[], $9::bytea[], $10::uuid[],
            $11::text[]) with ordinality
     as e(case_id, version, partition, record_offset, record_sha256, headers, value, event_id, event_type, n)
order by e.n
on conflict do nothing
"""
_ADD_STRAY = """
insert into stray_record
    (consumer_group, topic, partition, record_offset, record_sha256, key, headers, value, stage, field, reason)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing
"""
_PARKED = """
select case_id from parked_key where consumer_group = $1 and topic = $2 and partition = any($3::int[])
"""
_REQUESTED = """
select case_id, partition, resume_until, case when stage = 'pressure' then attempts end as spilled
from parked_key
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) and resume_requested <= now()
order by resume_requested limit $4
"""
_HEAD = """
select position, version, headers, value from parked_event
where consumer_group = $1 and case_id = $2 order by position limit 1
"""
_TAKE_EVENT = "delete from parked_event where position = $1"
_UNPARK = """
delete from parked_key where consumer_group = $1 and case_id = $2
   and not exists (select from parked_event where consumer_group = $1 and case_id = $2)
"""
_REFUSE = """
update parked_key set stage = $3, field = $4, reason = $5, attempts = attempts + 1,
       resume_requested = null, resume_until = null, requested_by = null
where consumer_group = $1 and case_id = $2
"""
_POSTPONE = """
update parked_key set attempts = attempts + 1, resume_requested = now() + make_interval(secs => $3)
where consumer_group = $1 and case_id = $2
"""
_REST = """
update parked_key set resume_requested = null, resume_until = null, requested_by = null
where consumer_group = $1 and case_id = $2
"""


class Parked(NamedTuple):
    """One case to be parked: its events, oldest first, why, and after how many attempts."""

    case_id: UUID
    items: Sequence[Item]
    verdict: Verdict
    attempts: int


class Requested(NamedTuple):
    """A parked case that is to be tried again; only up to the event at `until`, if there is one.

    `spilled`: it was parked to make room, after so many attempts.
    """

    case_id: UUID
    partition: int
    until: int | None
    spilled: int | None


class Parking:
    """The parked cases of one group and topic. Every call is one transaction and ends within `timeout_s`."""

    def __init__(self, pool: asyncpg.Pool, group: str, topic: str, *, timeout_s: float = 10.0) -> None:
        self._pool = pool
        self._group = group
        self._topic = topic
        self._timeout_s = timeout_s

    async def parked(self, partitions: Iterable[int]) -> set[UUID]:
        """The cases of these partitions that are parked."""
        async with asyncio.timeout(self._timeout_s):
            rows = await self._pool.fetch(_PARKED, self._group, self._topic, list(partitions))
        return {row["case_id"] for row in rows}

    async def park_many(self, cases: Sequence[Parked], held: Fence) -> None:
        """Parks each case with its events; to do it again with the same events changes nothing more."""
        async with self._transaction(held) as connection:
            await connection.execute(
                _PARK_KEYS,
                self._group,
                self._topic,
                [one.case_id for one in cases],
                [one.items[0].partition for one in cases],
                [one.verdict.stage for one in cases],
                [one.verdict.field for one in cases],
                [storable(one.verdict.reason) for one in cases],
                [one.attempts for one in cases],
            )
            await self._add(connection, [(one.case_id, item) for one in cases for item in one.items])

    async def append_many(self, items: Mapping[UUID, Sequence[Item]], held: Fence) -> set[UUID]:
        """Adds later events to parked cases; the cases that are not parked any more got nothing and are returned."""
        async with self._transaction(held) as connection:
            rows = await connection.fetch(_LOCK_KEYS, self._group, list(items))
            parked = {row["case_id"] for row in rows}
            await self._add(connection, [(one, item) for one in parked for item in items[one]])
        return set(items) - parked

    async def keep_stray(self, item: Item, verdict: Verdict, held: Fence) -> None:
        """Keeps a record that belongs to no case, as it came."""
        async with self._transaction(held) as connection:
            await connection.execute(
                _ADD_STRAY,
                self._group,
                self._topic,
                item.partition,
                item.offset,
                digest(item.key, item.value, item.headers),
                item.key,
                headers_json(item.headers),
                item.value,
                verdict.stage,
                verdict.field,
                storable(verdict.reason),
            )

    async def requested(self, partitions: Iterable[int], *, limit: int = 20) -> list[Requested]:
        """The parked cases somebody wants to be tried again, oldest request first."""
        async with asyncio.timeout(self._timeout_s):
            rows = await self._pool.fetch(_REQUESTED, self._group, self._topic, list(partitions), limit)
        return [Requested(*row) for row in rows]

    async def head(self, case_id: UUID) -> ParkedEvent | None:
        """The oldest event of a parked case; None when there is none left."""
        async with asyncio.timeout(self._timeout_s):
            row = await self._pool.fetchrow(_HEAD, self._group, case_id)
        return None if row is None else read_parked(case_id, row)

    async def handled(self, position: int, held: Fence) -> None:
        """Takes an event away that its handler has finished."""
        async with self._transaction(held) as connection:
            await connection.execute(_TAKE_EVENT, position)

    async def unpark(self, case_id: UUID, held: Fence) -> bool:
        """Un-parks the case if no event of it is left; False when one came in meanwhile."""
        async with self._transaction(held) as connection:
            if await connection.fetchval(_LOCK_KEY, self._group, case_id) is None:
                return True
            status: str = await connection.execute(_UNPARK, self._group, case_id)
        return status.endswith(" 1")

    async def refuse(self, case_id: UUID, verdict: Verdict, held: Fence) -> None:
        """Notes that the case failed again: it stays parked until the next request."""
        async with self._transaction(held) as connection:
            await connection.execute(
                _REFUSE, self._group, case_id, verdict.stage, verdict.field, storable(verdict.reason)
            )

    async def postpone(self, case_id: UUID, delay_s: float, held: Fence) -> None:
        """Notes one more attempt: the case is tried again after the delay."""
        async with self._transaction(held) as connection:
            await connection.execute(_POSTPONE, self._group, case_id, delay_s)

    async def rest(self, case_id: UUID, held: Fence) -> None:
        """Notes that what was asked for is done: the rest of the case stays parked."""
        async with self._transaction(held) as connection:
            await connection.execute(_REST, self._group, case_id)

    async def _add(self, connection: asyncpg.Connection, events: Sequence[tuple[UUID, Item]]) -> None:
        if not events:
            return
        read = [item.event for _, item in events]
        await connection.execute(
            _ADD_EVENTS,
            self._group,
            self._topic,
            [case_id for case_id, _ in events],
            [None if event is None else event.version for event in read],
            [item.partition for _, item in events],
            [item.offset for _, item in events],
            [digest(item.key, item.value, item.headers) for _, item in events],
            [headers_json(item.headers) for _, item in events],
            [item.value or b"" for _, item in events],
            [None if event is None else event.event_id for event in read],
            [None if event is None else event.type for event in read],
        )

    @asynccontextmanager
    async def _transaction(self, held: Fence) -> AsyncIterator[asyncpg.Connection]:
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            await fence.hold(connection, held, table=fence.GATEWAY)
            yield connection
