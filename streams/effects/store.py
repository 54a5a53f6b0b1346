"""The rows behind the ledger: every statement that decides an effect, each of them one transaction.

Two things make a worker that was paused past its lease harmless. The number of the attempt fences: beginning a later
one makes an earlier one stale. And the step to `committing` locks the effect's row, so it and another worker's claim
happen one after the other: the claim comes first and the step finds no row, or it comes second and finds `committing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from streams.effects.effect import Attempt, HeldEffect, Outcome, UnknownEffect, Verdict
from streams.effects.resolution import Next
from streams.effects.settled import settle
from streams.sinks import LeaseLost

_HELD = """
returning e.effect_id, e.sink, e.case_id, e.case_version, e.purpose, e.state, e.payload, e.request, e.request_sha256,
    e.attempt, due.previous is not null as adopted, e.correlation_id, e.created_at,
    exists (select from effect_attempt a where a.effect_id = e.effect_id and a.outcome = 'unknown') as doubted,
    extract(epoch from e.idem_expires_at - clock_timestamp())::float8 as key_left_s
"""
_CLAIM = """
with due as (
    select effect_id, owner as previous from effect
    where state in ('planned', 'intent') and (held is null or held = 'rate') and due_at <= now()
      and (lease_until is null or lease_until <= now())
      and sink = any($2) and effect_id <> all($3) and not exists (select from shut)
    order by due_at limit $4 for update skip locked)
update effect e set owner = $1, lease_until = clock_timestamp() + make_interval(secs => $5), held = null,
    updated_at = clock_timestamp()
from due where e.effect_id = due.effect_id
"""
_CLAIM_UNKNOWN = """
with due as (
    select effect_id, owner as previous from effect
    where state = 'unknown' and check_at <= now() and (lease_until is null or lease_until <= now())
      and sink = any($2) and effect_id <> all($3) and not exists (select from shut)
    order by check_at limit $4 for update skip locked)
update effect e set owner = $1, lease_until = clock_timestamp() + make_interval(secs => $5)
from due where e.effect_id = due.effect_id
"""
_KEEP = """
update effect set lease_until = clock_timestamp() + make_interval(secs => $3)
where owner = $1 and effect_id = any($2) and state in ('planned', 'intent', 'unknown')
"""
_INTEND = """
update effect set state = 'intent', request = $4, request_sha256 = $5, updated_at = clock_timestamp()
where effect_id = $1 and owner = $2 and attempt = $3 and state = 'planned' returning effect_id
"""
_BEGIN = """
with held as (
    update effect set attempt = attempt + 1, updated_at = clock_timestamp()
    where effect_id = $1 and owner = $2 and attempt = $3 and state in ('planned', 'intent')
      and lease_until > clock_timestamp()
    returning attempt)
insert into effect_attempt (effect_id, attempt, owner, phase) select $1, attempt, $2, 'sending' from held
returning attempt
"""
_COMMIT_POINT = """
with held as (
    select effect_id from effect
    where effect_id = $1 and owner = $2 and attempt = $3 and state = 'intent' and lease_until > clock_timestamp()
    for update),
committing as (
    update effect_attempt a set phase = 'committing' from held
    where a.effect_id = held.effect_id and a.attempt = $3 and a.owner = $2 and a.phase = 'sending' and a.outcome is null
    returning a.attempt),
-- the key's life begins with its first use
keyed as (
    update effect set idem_expires_at = clock_timestamp() + make_interval(secs => $4)
    where effect_id = $1 and $4::float8 is not null and idem_expires_at is null and exists (select from committing))
select attempt from committing
"""
_ATTEMPT = """
select attempt, phase, outcome, detail from effect_attempt where effect_id = $1 and attempt = $2
"""
# Whoever holds the effect may end its attempt. So may the worker that passed the commit point, even when it came back
# late: only it knows the provider's answer. It brings it even where the provider said that it had not happened.
_CONCLUDE = """
with before as (select outcome from effect_attempt where effect_id = $1 and attempt = $3 for update)
update effect_attempt a set outcome = $4, detail = $5, ended_at = clock_timestamp() from before
where a.effect_id = $1 and a.attempt = $3 and (
    (a.outcome is null and exists (select from effect e where e.effect_id = $1 and e.owner = $2 and e.attempt = $3))
    or (a.owner = $2 and a.phase = 'committing' and (a.outcome is null
        or (a.outcome = 'unknown' and $4 <> 'unknown') or (a.outcome = 'not_sent' and $4 = 'done'))))
returning before.outcome
"""
_ATTEMPTS = """
select attempt, phase, outcome, detail from effect_attempt where effect_id = $1 order by attempt desc
"""
_RESOLVE = """
update effect_attempt a set outcome = $5, detail = $6
from effect e
where e.effect_id = $1 and e.owner = $2 and e.attempt = $3 and e.state = 'unknown' and a.effect_id = $1
  and a.outcome = 'unknown' and (a.attempt = $4 or $5 = 'not_sent')
returning a.attempt
"""
# What was asked counts from the end of the last attempt: an answer about the one before says nothing of this one.
_ASKED = """
with asked as (
    insert into effect_check (effect_id, n, how, answer, detail)
    select $1, coalesce(max(n), 0) + 1, 'find', $3, $4 from effect_check where effect_id = $1
    on conflict do nothing returning answer)
select count(*) + (select count(*) from asked where answer = 'not_found')
from effect_check c join effect_attempt a on a.effect_id = c.effect_id and a.attempt = $2
where c.effect_id = $1 and c.answer = 'not_found' and c.at >= a.ended_at
"""
_ASK_AGAIN = """
update effect set checks = checks + 1, check_at = clock_timestamp() + make_interval(secs => $4),
    owner = null, lease_until = null
where effect_id = $1 and owner = $2 and attempt = $3 and state = 'unknown'
"""
_AUDITED = """
select outcome from audit
where action = $1 and subject = $2 and detail @> jsonb_build_object('effect_id', $3::text, 'attempt', $4::integer)
order by at desc limit 1
"""
_UNKNOWN = """
select effect_id, case_id, sink, purpose, attempt, reason, correlation_id, updated_at as since
from effect where state = 'unknown' order by updated_at limit $1
"""
_CENSUS = """
select sink, state, count(*) as effects, extract(epoch from clock_timestamp() - min(updated_at))::float8 as oldest_s
from effect where state in ('planned', 'intent') group by sink, state
union all
select sink, state, count(*), extract(epoch from clock_timestamp() - min(updated_at))::float8
from effect where state = 'unknown' group by sink, state
"""


class EffectStore:
    """The ledger's tables, as one worker (`owner`) reads and writes them. Every call has a deadline."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        owner: UUID,
        lease_s: float,
        *,
        timeout_s: float = 10.0,
        outcomes_topic: str | None = None,
    ) -> None:
        self._pool = pool
        self._owner = owner
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._outcomes_topic = outcomes_topic

    async def claim(self, sinks: Sequence[str], held: Sequence[UUID], limit: int) -> list[HeldEffect]:
        """Take up to `limit` due effects of these sinks that nobody holds. What this worker holds is left alone."""
        rows = await self._fetch(_CLAIM + _HELD, self._owner, list(sinks), list(held), limit, self._lease_s)
        return [HeldEffect(**dict(row)) for row in rows]

    async def claim_on(
        self, connection: asyncpg.pool.PoolConnectionProxy, sinks: Sequence[str], held: Sequence[UUID], limit: int
    ) -> list[HeldEffect]:
        """Claim as `claim` does, in the caller's transaction."""
        rows = await connection.fetch(_CLAIM + _HELD, self._owner, list(sinks), list(held), limit, self._lease_s)
        return [HeldEffect(**dict(row)) for row in rows]

    async def claim_unknown(self, sinks: Sequence[str], held: Sequence[UUID], limit: int) -> list[HeldEffect]:
        """Take up to `limit` unknown effects of these sinks whose provider is to be asked now."""
        rows = await self._fetch(_CLAIM_UNKNOWN + _HELD, self._owner, list(sinks), list(held), limit, self._lease_s)
        return [HeldEffect(**dict(row)) for row in rows]

    async def keep(self, held: Sequence[UUID]) -> None:
        """Prolong the leases of effects that are still this worker's."""
        await self._fetch(_KEEP, self._owner, list(held), self._lease_s)

    async def intend(self, effect: HeldEffect, request: bytes, sha256: bytes) -> None:
        """Store the sealed bytes that every attempt will use; raises LeaseLost."""
        await self._one(_INTEND, effect.effect_id, self._owner, effect.attempt, request, sha256)

    async def begin(self, effect: HeldEffect) -> int:
        """Open the next attempt and return its number; raises LeaseLost."""
        number: int = await self._one(_BEGIN, effect.effect_id, self._owner, effect.attempt)
        return number

    async def commit_point(self, effect_id: UUID, attempt: int, key_life_s: float | None = None) -> None:
        """Write down that the act is about to happen; raises LeaseLost when it must not."""
        await self._one(_COMMIT_POINT, effect_id, self._owner, attempt, key_life_s)

    async def attempt(self, effect_id: UUID, number: int) -> Attempt | None:
        """Return one attempt as it stands, or None if it never began."""
        rows = await self._fetch(_ATTEMPT, effect_id, number)
        if not rows:
            return None
        row = rows[0]
        return Attempt(row["attempt"], row["phase"], row["outcome"], row["detail"])

    async def conclude(self, effect_id: UUID, attempt: int, verdict: Verdict) -> Outcome | None:
        """Write the outcome of an attempt; raises LeaseLost when another worker has written a better one.

        Return what stood there: None, or `unknown` when this worker was taken for lost and now brings the answer.
        """
        before: Outcome | None = await self._one(
            _CONCLUDE, effect_id, self._owner, attempt, verdict.outcome, verdict.detail
        )
        return before

    async def settle(self, effect_id: UUID, attempt: int, then: Next) -> bool:
        """Give the effect the state its last attempt leads to, unless a later attempt has begun.

        Return whether its outcome was written for the topic of outcomes.
        """
        topic = self._outcomes_topic
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            changed = await settle(connection, effect_id, attempt, then, topic=topic)
        return changed and topic is not None and then.state != "again"

    async def attempts(self, effect_id: UUID) -> list[Attempt]:
        """Return all attempts at an effect, the last first."""
        rows = await self._fetch(_ATTEMPTS, effect_id)
        return [Attempt(row["attempt"], row["phase"], row["outcome"], row["detail"]) for row in rows]

    async def resolve(self, effect: HeldEffect, attempt: int, verdict: Verdict) -> None:
        """Replace `unknown` by what its provider said of an attempt; raises LeaseLost when it is no longer unknown.

        `not_sent` is said of every attempt that was unknown.
        """
        names = (effect.effect_id, self._owner, effect.attempt)
        await self._one(_RESOLVE, *names, attempt, verdict.outcome, verdict.detail)

    async def asked(self, effect_id: UUID, attempt: int, answer: str, detail: str | None) -> int:
        """Write an answer down; return how often the provider has said `not_found` of this attempt."""
        times: int = await self._one(_ASKED, effect_id, attempt, answer, detail)
        return times

    async def ask_again(self, effect_id: UUID, attempt: int, in_s: float | None) -> None:
        """Let go of an unknown effect until the next question; None: there is none."""
        await self._fetch(_ASK_AGAIN, effect_id, self._owner, attempt, in_s)

    async def audited(self, action: str, effect: HeldEffect, attempt: int) -> Outcome | None:
        """Return what an attempt's audit row says. Asked only after something failed: it may read many rows."""
        rows = await self._fetch(_AUDITED, action, str(effect.case_id), str(effect.effect_id), attempt)
        return rows[0][0] if rows else None

    async def census(self) -> list[asyncpg.Record]:
        """Count the effects that are not settled, by sink and state, with the age of the oldest."""
        return await self._fetch(_CENSUS)

    async def _one(self, statement: str, *arguments: Any) -> Any:
        rows = await self._fetch(statement, *arguments)
        if not rows:
            raise LeaseLost
        return rows[0][0]

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        # the deadline covers the wait for a connection too, which asyncpg's own time-out does not
        async with asyncio.timeout(self._timeout_s):
            rows: list[asyncpg.Record] = await self._pool.fetch(statement, *arguments)
        return rows


async def unknown(pool: asyncpg.Pool, *, limit: int = 1000, timeout_s: float = 10.0) -> list[UnknownEffect]:
    """Return the effects of which nobody knows whether they happened, the longest waiting first."""
    async with asyncio.timeout(timeout_s):
        rows = await pool.fetch(_UNKNOWN, limit)
    return [UnknownEffect(**dict(row)) for row in rows]
