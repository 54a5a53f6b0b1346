"""What holds a sink back: too many acts in an hour, or too many at once where it has never acted before.

A mistake in a flow, a topic read again or a first start against old cases plans thousands of effects in a moment. The
governor makes that thousands of rows that a person can look at, instead of thousands of letters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

import asyncpg

from streams.audit import AuditLog
from streams.effects.effect import HeldEffect

RELEASED = "effect.released"

_LOCK = "select pg_advisory_xact_lock(hashtextextended('silogate.sink.' || $1, 0))"
_MAY_ACT = "select sink from sink_governor where sink = any($1)"
_WAITING = "select count(*) from effect where sink = $1 and state in ('planned', 'intent')"
_HOLD = "update effect set held = 'first_run' where sink = $1 and state in ('planned', 'intent') and held is null"
_ADMIT = "insert into sink_governor (sink, released_at, released_by) values ($1, now(), $2) on conflict do nothing"
_RELEASE = """
update effect set held = null, due_at = least(due_at, now())
where sink = $1 and held is not null and state in ('planned', 'intent') returning effect_id
"""
# What is in somebody's hands counts as done: it is about to be.
_USED = """
with recent as (
    select a.started_at from effect_attempt a join effect e using (effect_id)
    where a.started_at > now() - interval '1 hour' and a.phase = 'committing' and e.sink = $1)
select (select count(*) from recent) + (
        select count(*) from effect where sink = $1 and state in ('planned', 'intent') and lease_until > now()) as used,
    coalesce(extract(epoch from (select min(started_at) from recent) + interval '1 hour' - now()), 3600)::float8
        as frees_in_s
"""
# Each of those that wait gets a time of its own, so that it is looked at again once and not at every turn.
_PACE = """
with waiting as (
    select effect_id, row_number() over (order by due_at, effect_id) as place from effect
    where sink = $1 and state in ('planned', 'intent') and due_at <= now() and (held is null or held = 'rate')
      and (lease_until is null or lease_until <= now())),
start as (
    select greatest(now() + make_interval(secs => $2), max(due_at)) as at from effect
    where sink = $1 and held = 'rate' and state in ('planned', 'intent'))
update effect e set held = 'rate', due_at = start.at + make_interval(secs => waiting.place * $3)
from waiting, start where e.effect_id = waiting.effect_id
"""
_HELD = """
select sink, count(*) as effects from effect
where held is not null and state in ('planned', 'intent') group by sink
"""

Claim = Callable[[asyncpg.pool.PoolConnectionProxy, list[str], int], Awaitable[list[HeldEffect]]]


@dataclass(frozen=True, slots=True)
class Governor:
    """How much is too much. `per_hour`: acts of a sink in any hour, over all workers; a sink without it has no limit.

    `first_run`: `hold` keeps more than `many` effects of a sink that has never acted here until they are released.
    """

    per_hour: Mapping[str, int] = field(default_factory=dict)
    first_run: Literal["hold", "go"] = "hold"
    many: int = 50


class Governing:
    """Asks the governor for one worker. The database decides, under a lock for each sink, so all workers agree."""

    def __init__(self, pool: asyncpg.Pool, governor: Governor, *, timeout_s: float = 10.0) -> None:
        self._pool = pool
        self._governor = governor
        self._timeout_s = timeout_s
        self._may_act: set[str] = set()

    async def admitted(self, sinks: list[str]) -> list[str]:
        """Return the sinks that may act; what another has waiting is held where it is too much for a first run."""
        asked = [sink for sink in sinks if sink not in self._may_act]
        if asked:
            async with asyncio.timeout(self._timeout_s):
                self._may_act.update(row["sink"] for row in await self._pool.fetch(_MAY_ACT, asked))
                for sink in asked:
                    if sink not in self._may_act and await self._admit(sink):
                        self._may_act.add(sink)
        return [sink for sink in sinks if sink in self._may_act]

    async def _admit(self, sink: str) -> bool:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK, sink)
            if await connection.fetchval(_MAY_ACT, [sink]):
                return True
            waiting = await connection.fetchval(_WAITING, sink)
            if waiting > self._governor.many and self._governor.first_run == "hold":
                await connection.execute(_HOLD, sink)
                return False
            if waiting == 0:
                # Nothing is known yet of how much there will be.
                return False
            await connection.execute(_ADMIT, sink, "ledger")
            return True

    async def claim(self, claim: Claim, sinks: list[str], limit: int) -> list[HeldEffect]:
        """Claim up to `limit` effects of these sinks, and of each no more than its hour has room for."""
        limited = [sink for sink in sinks if sink in self._governor.per_hour]
        claimed: list[HeldEffect] = []
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection:
            for sink in limited:
                async with connection.transaction():
                    await connection.execute(_LOCK, sink)
                    claimed += await self._within(connection, claim, sink, limit - len(claimed))
            free = [sink for sink in sinks if sink not in self._governor.per_hour]
            if free and len(claimed) < limit:
                claimed += await claim(connection, free, limit - len(claimed))
        return claimed

    async def _within(
        self, connection: asyncpg.pool.PoolConnectionProxy, claim: Claim, sink: str, limit: int
    ) -> list[HeldEffect]:
        most = self._governor.per_hour[sink]
        row = await connection.fetchrow(_USED, sink)
        room = min(limit, most - row["used"])
        if room > 0:
            return await claim(connection, [sink], room)
        if row["used"] >= most:
            await connection.execute(_PACE, sink, max(0.0, row["frees_in_s"]), 3600.0 / max(1, most))
        return []

    async def held(self) -> dict[str, int]:
        """Count what is held back, by sink."""
        async with asyncio.timeout(self._timeout_s):
            return {row["sink"]: row["effects"] for row in await self._pool.fetch(_HELD)}


async def release(pool: asyncpg.Pool, sink: str, *, actor: str, audit: AuditLog, timeout_s: float = 10.0) -> int:
    """Let a sink act, and everything of it that is held go now; return how much that was. Audited first.

    A limit by the hour still holds: what has no room is given a new time.
    """
    await audit.record(
        actor=actor, action=RELEASED, subject=sink, outcome="done", correlation_id=str(uuid4()), detail={"sink": sink}
    )
    async with asyncio.timeout(timeout_s), pool.acquire() as connection, connection.transaction():
        await connection.execute(_LOCK, sink)
        await connection.execute(_ADMIT, sink, actor)
        return len(await connection.fetch(_RELEASE, sink))
