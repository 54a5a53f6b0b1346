"""The moment an effect gets its state: one transaction, whoever found out what became of it."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from streams.effects.outcomes import publish
from streams.effects.resolution import Next

# `follow` asks the flow what is to happen now, in the same step: streams.flows.following does it and clears it.
# `unknown` follows `unknown` only where nothing new was found out.
_SETTLE = """
update effect set state = $3, provider_ref = $4, reason = $5, owner = null, lease_until = null, checks = 0,
    check_at = clock_timestamp() + make_interval(secs => $6), follow = $3, updated_at = clock_timestamp()
where effect_id = $1 and attempt = $2
  and (state in ('planned', 'intent') or (state = 'unknown' and $3 <> 'unknown'))
returning effect_id, case_id, case_version, sink, purpose, occurrence, attempt, state, reason, provider_ref,
    correlation_id, updated_at, (select c.reference from cases c where c.id = case_id) as reference
"""
# A key that was surely never used has its whole life before it.
_AGAIN = """
update effect e set state = case when request is null then 'planned' else 'intent' end, reason = $3, owner = null,
    lease_until = null, check_at = null, checks = 0, follow = null,
    due_at = clock_timestamp() + make_interval(secs => $4),
    idem_expires_at = case
        when exists (select from effect_attempt a where a.effect_id = e.effect_id and a.outcome = 'unknown')
        then idem_expires_at end,
    updated_at = clock_timestamp()
where effect_id = $1 and attempt = $2 and state in ('planned', 'intent', 'unknown')
returning effect_id
"""


async def settle(
    connection: asyncpg.pool.PoolConnectionProxy, effect_id: UUID, attempt: int, then: Next, *, topic: str | None
) -> bool:
    """Give an effect the state that its last attempt leads to; False when a later attempt has begun, or it has it.

    Its outcome is written for `topic`. The caller's transaction is what makes it one step.
    """
    if then.state == "again":
        return bool(await connection.fetchrow(_AGAIN, effect_id, attempt, then.detail, then.delay_s))
    reference, reason = (then.detail, None) if then.state == "done" else (None, then.detail)
    row = await connection.fetchrow(_SETTLE, effect_id, attempt, then.state, reference, reason, then.ask_in_s)
    if row is not None and topic is not None:
        await publish(connection, topic, row)
    return row is not None
