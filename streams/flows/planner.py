"""Writes down what a flow plans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import orjson

from streams.cases.keys import CaseKeys, Erased, KeyMissing, open_personal
from streams.consumer.fence import Fence
from streams.effects.effect import PlannedEffect, bound_payload
from streams.errors import Rejected, Unavailable
from streams.events import CaseEvent
from streams.failpoints import reach
from streams.flow import Flow
from streams.outages import DATABASE_AWAY

_PLAN = """
insert into effect (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, correlation_id)
select p.effect_id, p.sink, $1, $2, p.purpose, p.occurrence, 'planned', p.payload, $3
from unnest($4::uuid[], $5::text[], $6::text[], $7::text[], $8::bytea[])
    as p(effect_id, sink, purpose, occurrence, payload)
on conflict (effect_id) do nothing
"""


class FlowPlanner:
    """Writes down the effects that a flow plans; a CaseHandler. Reading an event again, ever, plans nothing new."""

    def __init__(self, flow: Flow, pool: asyncpg.Pool, keys: CaseKeys, *, timeout_s: float = 10.0) -> None:
        self._flow = flow
        self._pool = pool
        self._keys = keys
        self._timeout_s = timeout_s

    async def handle(self, event: CaseEvent, fence: Fence) -> None:  # noqa: ARG002 - a zombie's rows are the same rows
        """Plan the event's effects in the ledger. Raises Unavailable and Rejected (see streams.errors)."""
        if not self._flow.plans_on(event):
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._plan(event)
        except Erased:
            # Whoever asked to be forgotten is not written to.
            return
        except KeyMissing:
            raise Rejected("the case has no key: was the database restored without its key table?") from None
        except asyncpg.ForeignKeyViolationError:
            raise Rejected("the case is not in the gateway's database: was it restored to an earlier time?") from None
        except DATABASE_AWAY as error:
            raise Unavailable(f"the gateway's database cannot be used: {type(error).__name__}") from error

    async def _plan(self, event: CaseEvent) -> None:
        sealer = await self._keys.of(self._pool, event.case_id)
        planned = self._flow.effects(event, open_personal(sealer, event.case_id, event.sealed))
        if not planned:
            return
        payloads = [
            sealer.seal(orjson.dumps(effect.payload), bound_to=bound_payload(effect.effect_id)) for effect in planned
        ]
        await self._pool.execute(
            _PLAN, event.case_id, event.version, event.correlation_id, *_columns(planned, payloads)
        )
        reach("effect.planned")


def _columns(planned: Sequence[PlannedEffect], payloads: list[bytes]) -> tuple[list[Any], ...]:
    return (
        [effect.effect_id for effect in planned],
        [effect.sink for effect in planned],
        [effect.purpose for effect in planned],
        [effect.occurrence for effect in planned],
        payloads,
    )
