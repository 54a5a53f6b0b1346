"""What people do with effects: list them, look into one, and say what became of one that nobody else can tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg
import orjson

from streams.audit import AuditLog
from streams.cases.keys import CaseKeys, Erased, KeyMissing
from streams.effects.effect import bound_request
from streams.effects.resolution import Next
from streams.effects.settled import settle
from streams.effects.settlement import RESOLVED, once

Told = Literal["done", "failed", "resend"]

_LIST = """
select e.effect_id, e.case_id, c.reference, e.sink, e.purpose, e.occurrence, e.state, e.held, e.attempt, e.reason,
    e.provider_ref, e.correlation_id, e.created_at, e.updated_at, e.due_at, e.check_at, e.checks
from effect e join cases c on c.id = e.case_id
where (cardinality($1::text[]) = 0 or e.state = any($1)) and ($2::text is null or e.sink = $2)
  and ($3::text is null or c.reference = $3) and ($4::uuid is null or e.effect_id = $4)
order by e.updated_at limit $5
"""
_ATTEMPTS = """
select attempt, phase, started_at, ended_at, outcome, detail from effect_attempt where effect_id = $1 order by attempt
"""
_CHECKS = "select n, at, how, answer, detail from effect_check where effect_id = $1 order by n"
_REQUEST = "select request, request_sha256 from effect where effect_id = $1"
_LOCKED = """
select e.state, e.attempt, e.case_id, e.sink, e.purpose, e.correlation_id, coalesce((
        select max(a.attempt) from effect_attempt a where a.effect_id = e.effect_id and a.outcome = 'unknown'
    ), e.attempt) as doubtful
from effect e where e.effect_id = $1 for update
"""
_TELL = """
update effect_attempt set outcome = $3, detail = $4
where effect_id = $1 and outcome = 'unknown' and (attempt = $2 or $3 = 'not_sent')
"""
_WORD = re.compile(r"[^\W_]{2,}")


class NoSuchEffect(Exception):
    """There is no effect of this id."""


class NotUnknown(Exception):
    """The effect has an outcome, or is still under way: there is nothing to find out."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the effect is {state}, not unknown")
        self.state = state


@dataclass(frozen=True, slots=True)
class Listed:
    """One effect as people see it. Nothing of it is personal."""

    effect_id: UUID
    case_id: UUID
    reference: str
    sink: str
    purpose: str
    occurrence: str
    state: str
    held: str | None
    attempt: int
    reason: str | None
    provider_ref: str | None
    correlation_id: str
    created_at: datetime
    updated_at: datetime
    due_at: datetime
    check_at: datetime | None
    checks: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One effect with its attempts and questions. `request` has every word masked; `missing` says why it is None."""

    effect: Listed
    attempts: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    request: str | None = field(repr=False)
    missing: str | None
    request_bytes: int
    request_sha256: str | None


async def listed(
    pool: asyncpg.Pool,
    *,
    states: Collection[str] = (),
    sink: str | None = None,
    reference: str | None = None,
    limit: int = 100,
    timeout_s: float = 10.0,
) -> list[Listed]:
    """Return effects, those that have not moved for longest first. `reference` is a case's."""
    async with asyncio.timeout(timeout_s):
        rows = await pool.fetch(_LIST, list(states), sink, reference, None, limit)
    return [Listed(**dict(row)) for row in rows]


async def show(pool: asyncpg.Pool, effect_id: UUID, keys: CaseKeys, *, timeout_s: float = 10.0) -> Shown:
    """Return all that is known of one effect; raises NoSuchEffect."""
    async with asyncio.timeout(timeout_s), pool.acquire() as connection:
        row = await connection.fetchrow(_LIST, [], None, None, effect_id, 1)
        if row is None:
            raise NoSuchEffect
        attempts = await connection.fetch(_ATTEMPTS, effect_id)
        checks = await connection.fetch(_CHECKS, effect_id)
        stored = await connection.fetchrow(_REQUEST, effect_id)
        request, missing = await _opened(connection, keys, row["case_id"], effect_id, stored["request"])
    return Shown(
        effect=Listed(**dict(row)),
        attempts=[dict(attempt) for attempt in attempts],
        checks=[dict(check) for check in checks],
        request=None if request is None else masked(request),
        missing=missing,
        request_bytes=0 if request is None else len(request),
        request_sha256=None if stored["request_sha256"] is None else stored["request_sha256"].hex(),
    )


async def _opened(
    connection: asyncpg.pool.PoolConnectionProxy, keys: CaseKeys, case_id: UUID, effect_id: UUID, request: bytes | None
) -> tuple[bytes | None, str | None]:
    if request is None:
        return None, "nothing is rendered yet"
    try:
        sealer = await keys.of(connection, case_id)
    except Erased:
        return None, "the case is erased"
    except KeyMissing:
        return None, "the case has no key here"
    return sealer.open(request, bound_to=bound_request(effect_id)), None


def masked(request: bytes) -> str:
    """Return stored bytes with their shape and no word of them: each has its first letter, and dots for the rest.

    Of a JSON document the names of fields stay readable.
    """
    try:
        document = orjson.loads(request)
    except orjson.JSONDecodeError:
        return _dotted(request.decode("utf-8", errors="replace"))
    if not isinstance(document, dict | list):
        return _dotted(request.decode())
    return orjson.dumps(_masked(document), option=orjson.OPT_INDENT_2).decode()


def _masked(value: object) -> object:
    if isinstance(value, dict):
        return {name: _masked(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_masked(below) for below in value]
    return value if value is None or isinstance(value, bool) else _dotted(str(value))


def _dotted(text: str) -> str:
    # three dots whatever was there: a word's length says something too
    return _WORD.sub(lambda word: word[0][0] + "···", text)


async def resolve(
    pool: asyncpg.Pool,
    effect_id: UUID,
    outcome: Told,
    *,
    reason: str,
    actor: str,
    audit: AuditLog,
    reference: str | None = None,
    outcomes_topic: str | None = None,
    timeout_s: float = 20.0,
) -> None:
    """Say what became of an unknown effect: it happened (with the provider's reference), it failed, or send it again.

    `resend` says that it surely did not happen: the stored bytes are performed again, as a new attempt. `reason` is
    how that is known, in words without personal data. Audited before it counts, once. Raises NoSuchEffect, NotUnknown.
    """
    async with asyncio.timeout(timeout_s), pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_LOCKED, effect_id)
        if row is None:
            raise NoSuchEffect
        if row["state"] != "unknown":
            raise NotUnknown(row["state"])
        ended = "not_sent" if outcome == "resend" else outcome
        detail = (reference or reason) if outcome == "done" else reason
        await audit.record(
            actor=actor,
            action=RESOLVED,
            subject=str(row["case_id"]),
            outcome=ended,
            correlation_id=row["correlation_id"],
            detail={
                "effect_id": str(effect_id),
                "sink": row["sink"],
                "purpose": row["purpose"],
                "attempt": row["doubtful"],
                "told": outcome,
                "detail": detail,
                "reason": reason,
            },
            once=once(RESOLVED, effect_id, row["doubtful"], ended),
        )
        await connection.execute(_TELL, effect_id, row["doubtful"], ended, detail)
        then = Next("again" if outcome == "resend" else outcome, detail)
        await settle(connection, effect_id, row["attempt"], then, topic=outcomes_topic)
