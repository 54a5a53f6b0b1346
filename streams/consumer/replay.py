"""Parked cases as people see them, and what people ask for: `parking` is what the owner of the partition does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from streams.errors import Undecodable
from streams.events import CaseEvent

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
