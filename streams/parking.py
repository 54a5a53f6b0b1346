"""Parked cases: a case whose head event failed waits in Postgres with everything after it, in order.

Only the owner of the partition parks, appends and un-parks, and each of these transactions holds its fence. Whoever
adds an event or takes the last one away locks the row in `parked_key` first: either the event is in the list before the
case is un-parked, or its owner learns that the case is not parked any more. So no event slips past.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from streams import fence
from streams.errors import Undecodable
from streams.events import CaseEvent, read_record
from streams.fence import Fence
from streams.lanes import Item, Verdict

_PARK_KEY = """
insert into parked_key (consumer_group, case_id, topic, partition, stage, field, reason, attempts)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (consumer_group, case_id) do update set attempts = parked_key.attempts + excluded.attempts
"""
_LOCK_KEY = "select 1 from parked_key where consumer_group = $1 and case_id = $2 for update"
_ADD_EVENTS = """
insert into parked_event
    (consumer_group, case_id, version, topic, partition, record_offset, record_sha256, headers, value)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing
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
select case_id, partition from parked_key
where consumer_group = $1 and topic = $2 and partition = any($3::int[]) and resume_requested is not null
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
update parked_key set stage = $3, field = $4, reason = $5, attempts = attempts + 1, resume_requested = null
where consumer_group = $1 and case_id = $2
"""
_RESUME = """
update parked_key set resume_requested = now()
where consumer_group = $1 and ($2::uuid[] is null or case_id = any($2)) and resume_requested is null
"""
_LIST = """
select consumer_group as group, case_id, topic, partition, stage, field, reason, attempts, parked_at,
       resume_requested is not null as resuming,
       (select count(*) from parked_event e
        where e.consumer_group = k.consumer_group and e.case_id = k.case_id) as events
from parked_key k where $1::text is null or consumer_group = $1 order by parked_at desc limit $2
"""


@dataclass(frozen=True, slots=True)
class ParkedCase:
    """One parked case as operators see it."""

    group: str
    case_id: UUID
    topic: str
    partition: int
    stage: str
    field: str | None
    reason: str
    attempts: int
    parked_at: datetime
    resuming: bool
    events: int


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """The oldest event of a parked case, read again; or why it still cannot be read."""

    position: int
    event: CaseEvent | None
    problem: Undecodable | None


async def resume(pool: asyncpg.Pool, group: str, case_ids: Iterable[UUID] | None = None) -> int:
    """Asks that parked cases be tried again, all of the group's without `case_ids`; returns how many were asked for.

    The consumer that owns the partition does it, in the order of each case. A case that fails again stays parked, with
    its new reason and the request withdrawn.
    """
    wanted = None if case_ids is None else list(case_ids)
    status: str = await pool.execute(_RESUME, group, wanted)
    return int(status.rsplit(" ", 1)[1])


async def parked_cases(pool: asyncpg.Pool, group: str | None = None, *, limit: int = 200) -> list[ParkedCase]:
    """The parked cases of a group, or of all groups, newest first."""
    return [ParkedCase(**dict(row)) for row in await pool.fetch(_LIST, group, limit)]


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

    async def park(self, case_id: UUID, items: Sequence[Item], verdict: Verdict, attempts: int, held: Fence) -> None:
        """Parks the case with these events; to do it again with the same events changes nothing more."""
        async with self._transaction(held) as connection:
            await connection.execute(
                _PARK_KEY,
                self._group,
                case_id,
                self._topic,
                items[0].partition,
                verdict.stage,
                verdict.field,
                _storable(verdict.reason),
                attempts,
            )
            await self._add(connection, case_id, items)

    async def append(self, case_id: UUID, items: Sequence[Item], held: Fence) -> bool:
        """Adds later events to a parked case; False if it is not parked any more, and nothing was added."""
        async with self._transaction(held) as connection:
            if await connection.fetchval(_LOCK_KEY, self._group, case_id) is None:
                return False
            await self._add(connection, case_id, items)
        return True

    async def keep_stray(self, item: Item, verdict: Verdict, held: Fence) -> None:
        """Keeps a record that belongs to no case, as it came."""
        async with self._transaction(held) as connection:
            await connection.execute(
                _ADD_STRAY,
                self._group,
                self._topic,
                item.partition,
                item.offset,
                _digest(item),
                item.key,
                _headers(item),
                item.value,
                verdict.stage,
                verdict.field,
                _storable(verdict.reason),
            )

    async def requested(self, partitions: Iterable[int], *, limit: int = 20) -> list[tuple[UUID, int]]:
        """The parked cases somebody wants to be tried again, and their partitions."""
        async with asyncio.timeout(self._timeout_s):
            rows = await self._pool.fetch(_REQUESTED, self._group, self._topic, list(partitions), limit)
        return [(row["case_id"], row["partition"]) for row in rows]

    async def head(self, case_id: UUID) -> ParkedEvent | None:
        """The oldest event of a parked case; None when there is none left."""
        async with asyncio.timeout(self._timeout_s):
            row = await self._pool.fetchrow(_HEAD, self._group, case_id)
        if row is None:
            return None
        headers = [(name, base64.b64decode(text)) for name, text in orjson.loads(row["headers"])]
        return ParkedEvent(row["position"], *read_record(str(case_id).encode(), row["value"], headers))

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
                _REFUSE, self._group, case_id, verdict.stage, verdict.field, _storable(verdict.reason)
            )

    async def _add(self, connection: asyncpg.Connection, case_id: UUID, items: Sequence[Item]) -> None:
        await connection.executemany(
            _ADD_EVENTS,
            [
                (
                    self._group,
                    case_id,
                    item.event.version if item.event is not None else None,
                    self._topic,
                    item.partition,
                    item.offset,
                    _digest(item),
                    _headers(item),
                    item.value or b"",
                )
                for item in items
            ],
        )

    @asynccontextmanager
    async def _transaction(self, held: Fence) -> AsyncIterator[asyncpg.Connection]:
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            await fence.hold(connection, held, table=fence.GATEWAY)
            yield connection


def _headers(item: Item) -> str:
    """As JSON: values in base64, because a broken record may hold any bytes."""
    return orjson.dumps(
        [[_storable(name), base64.b64encode(raw or b"").decode()] for name, raw in item.headers]
    ).decode()


def _digest(item: Item) -> bytes:
    """Tells one record at an offset from another: a topic that was made anew begins at offset 0 again.

    Every part is preceded by its length, and one that is absent by none, so that no two records are written alike.
    """
    digest = hashlib.sha256()
    for part in (item.key, item.value, *(part for name, raw in item.headers for part in (name.encode(), raw))):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.digest()


def _storable(text: str) -> str:
    return text.replace("\x00", "�")
