"""Parked cases as people see them, and what people ask for: `parking` is what the owner of the partition does.

Whatever changes something here locks the case's row first, as the owner does, and leaves one audit row a case before
it is committed.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import UUID, uuid4

import asyncpg
import orjson

from streams.audit import AuditLog
from streams.consumer.records import storable
from streams.errors import Undecodable
from streams.events import CaseEvent, read_record
from streams.outages import DATABASE_ERRORS
from streams.waiting import set_within

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
# One transaction changes so many cases: their rows are locked until all of their audit rows are there.
_PORTION = 500

_WHERE = """
where ($1::text is null or k.consumer_group = $1) and ($2::uuid is null or k.case_id = $2)
  and ($3::bigint is null or exists (select from parked_event e where e.position = $3
                                     and e.consumer_group = k.consumer_group and e.case_id = k.case_id))
  and ($4::text is null or k.stage = $4) and ($5::text is null or k.field = $5)
  and ($6::text is null or position($6 in k.reason) > 0)
"""
_LIST = f"""
select consumer_group as group, case_id, topic, partition, stage, field, reason, attempts, parked_at,
       resume_requested is not null as resuming,
       (select count(*) from parked_event e
        where e.consumer_group = k.consumer_group and e.case_id = k.case_id) as events
from parked_key k {_WHERE} order by parked_at desc, case_id limit $7
"""  # noqa: S608 - made of constants, here and below
_LOCK = f"""
select case_id, (select min(e.position) from parked_event e
                 where e.consumer_group = k.consumer_group and e.case_id = k.case_id) as head
from parked_key k {_WHERE} and resume_requested is null order by case_id limit $7 for update
"""  # noqa: S608
_EVENTS = """
select position, version, headers, value from parked_event
where consumer_group = $1 and case_id = $2 order by position limit $3
"""
_RESUME = """
update parked_key set resume_requested = now(), resume_until = null
where consumer_group = $1 and ($2::uuid[] is null or case_id = any($2)) and resume_requested is null
"""
_REQUEST = """
update parked_key set resume_requested = now(), resume_until = $3, requested_by = $4
where consumer_group = $1 and case_id = any($2::uuid[])
"""
_WITHDRAW = """
update parked_key set resume_requested = null, resume_until = null, requested_by = null
where consumer_group = $1 and resume_requested is not null
"""
# What was parked to make room asks for itself.
_IS_REQUESTED = """
select exists (
    select from parked_key where consumer_group = $1 and resume_requested is not null and stage <> 'pressure')
"""
_DROP = """
with gone as (
    delete from parked_event where consumer_group = $1 and case_id = any($2::uuid[])
       and ($3::bigint is null or position = $3) returning *
), kept as (
    insert into dropped_event (position, consumer_group, case_id, version, topic, partition, record_offset,
                               record_sha256, headers, value, parked_at, event_id, event_type, actor, reason)
    select position, consumer_group, case_id, version, topic, partition, record_offset, record_sha256, headers, value,
           parked_at, event_id, event_type, $4, $5 from gone
), seen as (
    insert into case_seen (consumer_group, case_id, version)
    select $1, case_id, max(version) from gone where version is not null group by case_id order by case_id
    on conflict (consumer_group, case_id) do update set version = excluded.version, seen_at = now()
    where case_seen.version < excluded.version
)
select case_id, count(*) as events from gone group by case_id
"""
_UNPARK = """
delete from parked_key k where consumer_group = $1 and case_id = any($2::uuid[])
   and not exists (select from parked_event e where e.consumer_group = k.consumer_group and e.case_id = k.case_id)
"""


class NotTheHead(Exception):
    """The event is not the oldest one of its case: nothing may be done with it before those ahead of it."""


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
    """One event of a parked case, read again; or why it still cannot be read."""

    position: int
    event: CaseEvent | None
    problem: Undecodable | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which parked cases are meant: those that fit everything that is given. `reason` is a part of what was said.

    `position` is that of one event, which must be the oldest one of its case.
    """

    group: str | None = None
    case_id: UUID | None = None
    position: int | None = None
    stage: str | None = None
    field: str | None = None
    reason: str | None = None

    def parameters(self, limit: int) -> tuple[object, ...]:
        """For the statements of this module."""
        return (self.group, self.case_id, self.position, self.stage, self.field, self.reason, limit)


@dataclass(frozen=True, slots=True)
class Change:
    """One column that a replay would change. The values of personal columns are never shown: both are None."""

    column: str
    there: str | None
    would_be: str | None
    is_personal: bool


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would become of one event."""

    outcome: Literal["writes", "changes nothing", "refused", "unreadable", "elsewhere"]
    field: str | None = None
    reason: str | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One parked event and what would become of it. `version` is empty for one that cannot be read."""

    case_id: UUID
    position: int
    version: int | None
    rehearsal: Rehearsal


@runtime_checkable
class Rehearses(Protocol):
    """A handler that can say what it would do, and writes nothing."""

    async def rehearse(self, events: Sequence[CaseEvent]) -> Mapping[UUID, Rehearsal]:
        """By event id, what handling these events one after the other would do; raises as `apply_each` does."""
        ...


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
    return await show(pool, Selection(group), limit=limit)


async def show(pool: asyncpg.Pool, selection: Selection, *, limit: int = 200) -> list[ParkedCase]:
    """The parked cases that are meant, newest first."""
    async with asyncio.timeout(_TIMEOUT_S):
        rows = await pool.fetch(_LIST, *selection.parameters(limit))
    return [ParkedCase(**dict(row)) for row in rows]


async def events(pool: asyncpg.Pool, group: str, case_id: UUID, *, limit: int = 200) -> list[ParkedEvent]:
    """The events of a parked case, oldest first."""
    async with asyncio.timeout(_TIMEOUT_S):
        rows = await pool.fetch(_EVENTS, group, case_id, limit)
    return [read_parked(case_id, row) for row in rows]


def read_parked(case_id: UUID, row: Mapping[str, Any]) -> ParkedEvent:
    """A row of `parked_event`, read as its record was: under its original event id."""
    headers = [(name, base64.b64decode(text)) for name, text in orjson.loads(row["headers"])]
    return ParkedEvent(row["position"], *read_record(str(case_id).encode(), row["value"], headers))


async def request(pool: asyncpg.Pool, selection: Selection, *, actor: str, audit: AuditLog) -> int:
    """Asks that these cases be tried again; returns how many were asked for. Raises NotTheHead.

    With `position` only that event is tried, and the rest of its case stays parked. Cases that somebody asked for
    already are left as they are.
    """
    group, asked = _one_group(selection), 0
    while True:
        async with _locked(pool, selection) as (connection, case_ids):
            if not case_ids:
                return asked
            await connection.execute(_REQUEST, group, case_ids, selection.position, storable(actor))
            await _note(audit, actor, "parked.replay", case_ids, {"group": group, "position": selection.position})
        asked += len(case_ids)


async def until_requested(pool: asyncpg.Pool, group: str, stop: asyncio.Event, *, every_s: float = 2.0) -> bool:
    """Waits until somebody asks for parked cases of a group that has stopped; False when `stop` is set first.

    What was asked for before it stopped is withdrawn: nobody could have known.
    """
    statement = _WITHDRAW
    while not stop.is_set():
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if statement == _WITHDRAW:
                    await pool.execute(_WITHDRAW, group)
                    statement = _IS_REQUESTED
                elif await pool.fetchval(_IS_REQUESTED, group):
                    return True
        except DATABASE_ERRORS as error:
            log.warning("consumer.resume_failed", extra={"group": group, "error": type(error).__name__})
        await set_within(stop, every_s)
    return False


async def rehearse(
    handler: Rehearses, pool: asyncpg.Pool, selection: Selection, *, limit: int = 50, events_each: int = 20
) -> list[Rehearsed]:
    """What trying these cases again would do, event by event, written nowhere. At most so many cases and events."""
    group, found = _one_group(selection), []
    for case in await show(pool, selection, limit=limit):
        parked = await events(pool, group, case.case_id, limit=events_each)
        if selection.position is not None:
            parked = [one for one in parked if one.position == selection.position]
        answers = await handler.rehearse([one.event for one in parked if one.event is not None])
        found += [_rehearsed(case.case_id, one, answers) for one in parked]
    return found


def _rehearsed(case_id: UUID, parked: ParkedEvent, answers: Mapping[UUID, Rehearsal]) -> Rehearsed:
    if parked.event is None:
        problem = parked.problem
        said = Rehearsal("unreadable", problem.field if problem else None, problem.reason if problem else None)
        return Rehearsed(case_id, parked.position, None, said)
    return Rehearsed(case_id, parked.position, parked.event.version, answers[parked.event.event_id])


async def drop(pool: asyncpg.Pool, selection: Selection, *, reason: str, actor: str, audit: AuditLog) -> int:
    """Gives these cases' events up, or the one at `position`; returns how many events. Raises NotTheHead.

    They are kept in `dropped_event` with the reason, which holds nothing personal. A case with no event left is parked
    no more, and its next event is handled like any other. Cases that are just being tried again are left alone.
    """
    group = _one_group(selection)
    dropped = 0
    while True:
        async with _locked(pool, selection) as (connection, case_ids):
            if not case_ids:
                return dropped
            rows = await connection.fetch(_DROP, group, case_ids, selection.position, storable(actor), storable(reason))
            await connection.execute(_UNPARK, group, case_ids)
            detail = {"group": group, "position": selection.position, "reason": reason}
            await _note(audit, actor, "parked.drop", case_ids, detail)
        dropped += sum(int(row["events"]) for row in rows)
        if selection.position is not None:
            return dropped


@asynccontextmanager
async def _locked(pool: asyncpg.Pool, selection: Selection) -> AsyncIterator[tuple[asyncpg.Connection, Sequence[UUID]]]:
    async with asyncio.timeout(_TIMEOUT_S), pool.acquire() as connection, connection.transaction():
        rows = await connection.fetch(_LOCK, *selection.parameters(_PORTION))
        if selection.position is not None and any(row["head"] != selection.position for row in rows):
            raise NotTheHead(f"event {selection.position} is not the oldest one of its case")
        yield connection, [row["case_id"] for row in rows]


async def _note(
    audit: AuditLog, actor: str, action: str, case_ids: Sequence[UUID], detail: Mapping[str, str | int | None]
) -> None:
    """One row a case, all on their way at once; raises what the first one raised that failed."""
    correlation_id = str(uuid4())
    try:
        async with asyncio.TaskGroup() as tasks:
            for case_id in case_ids:
                tasks.create_task(
                    audit.record(
                        actor=actor,
                        action=action,
                        subject=str(case_id),
                        outcome="done",
                        correlation_id=correlation_id,
                        detail=detail,
                    )
                )
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _one_group(selection: Selection) -> str:
    if selection.group is None:
        raise ValueError("what changes parked cases names their group")
    return selection.group
