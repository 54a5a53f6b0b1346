"""Writes down what a flow plans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from streams.cases.keys import CaseKeys, open_personal
from streams.consumer.fence import GATEWAY, Fence, hold
from streams.effects.effect import bound_payload
from streams.errors import Rejected, Retryable, Unavailable
from streams.events import CaseEvent
from streams.failpoints import reach
from streams.flow import Flow
from streams.outages import DATABASE_AWAY
from streams.sealing import Sealer

_CASES = "select id from cases where id = any($1) for key share"
_PLAN = """
insert into effect (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, correlation_id)
select p.effect_id, p.sink, p.case_id, p.case_version, p.purpose, p.occurrence, 'planned', p.payload, p.correlation_id
from unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::text[], $6::text[], $7::bytea[], $8::text[])
    as p(effect_id, sink, case_id, case_version, purpose, occurrence, payload, correlation_id)
on conflict (effect_id) do nothing
"""
_log = logging.getLogger(__name__)

_Row = tuple[UUID, str, UUID, int, str, str, bytes, str]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database holds of a batch's cases. A key is None where the case was erased."""

    cases: frozenset[UUID]
    keys: Mapping[UUID, Sealer | None]


class FlowPlanner:
    """Writes down the effects that a flow plans; a handler of batches that names each event it cannot plan for.

    Reading an event again, ever, plans nothing new.
    """

    def __init__(self, flow: Flow, pool: asyncpg.Pool, keys: CaseKeys, *, timeout_s: float = 10.0) -> None:
        self._flow = flow
        self._pool = pool
        self._keys = keys
        self._timeout_s = timeout_s

    @property
    def deadline_s(self) -> float:
        """The longest that one batch takes, in seconds."""
        return self._timeout_s

    async def apply(self, events: Sequence[CaseEvent], fence: Fence) -> None:
        """Plan the effects of all events, or of none of the first case that fails; raises what `apply_each` names."""
        for error in (await self.apply_each(events, fence)).values():
            raise error

    async def apply_each(self, events: Sequence[CaseEvent], fence: Fence) -> Mapping[UUID, Rejected | Retryable]:
        """Plan the effects of the events in one transaction; return event id → error for what could not be planned.

        Raises Unavailable and Fenced.
        """
        # An event that plans nothing is settled without a question, whoever owns the partition.
        planning = {event.case_id for event in events if self._flow.plans_on(event)}
        if not planning:
            return {}
        try:
            async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
                await hold(connection, fence, table=GATEWAY)
                known = await self._known(connection, planning)
                rows, errors = self._decide(events, known)
                if rows:
                    await connection.execute(_PLAN, *(list(column) for column in zip(*rows, strict=True)))
        except DATABASE_AWAY as error:
            raise Unavailable(f"the gateway's database cannot be used: {type(error).__name__}") from error
        if rows:
            reach("effect.planned")
        return errors

    async def _known(self, connection: asyncpg.pool.PoolConnectionProxy, case_ids: set[UUID]) -> _Known:
        # in one order, so that two batches never wait for each other
        found = await connection.fetch(_CASES, sorted(case_ids))
        return _Known(frozenset(row["id"] for row in found), await self._keys.many(connection, case_ids))

    def _decide(
        self, events: Sequence[CaseEvent], known: _Known
    ) -> tuple[list[_Row], dict[UUID, Rejected | Retryable]]:
        rows: list[_Row] = []
        errors: dict[UUID, Rejected | Retryable] = {}
        failed: dict[UUID, Rejected | Retryable] = {}
        for event in events:
            error = failed.get(event.case_id)
            if error is None and self._flow.plans_on(event):
                try:
                    rows += self._planned(event, known)
                except (Rejected, Retryable) as problem:
                    error = failed[event.case_id] = problem
            if error is not None:
                errors[event.event_id] = error
        return rows, errors

    def _planned(self, event: CaseEvent, known: _Known) -> list[_Row]:
        case_id = event.case_id
        if case_id not in known.cases:
            reason = "the case is not in the gateway's database: was it restored to an earlier time?"
            raise Rejected(reason, case_id=case_id)
        if case_id not in known.keys:
            reason = "the case has no key: was the database restored without its key table?"
            raise Rejected(reason, case_id=case_id)
        sealer = known.keys[case_id]
        if sealer is None:
            # Whoever asked to be forgotten is not written to.
            return []
        try:
            return self._sealed(event, sealer)
        except Exception as error:
            # One case whose personal part does not open must not hold up the others of its batch.
            cause = type(error).__name__
            _log.error("planner.failed", extra={"flow": self._flow.name, "error": cause})
            raise Retryable(f"unexpected {cause} while planning", case_id=case_id) from error

    def _sealed(self, event: CaseEvent, sealer: Sealer) -> list[_Row]:
        personal: dict[str, Any] = open_personal(sealer, event.case_id, event.sealed)
        return [
            (
                effect.effect_id,
                effect.sink,
                event.case_id,
                event.version,
                effect.purpose,
                effect.occurrence,
                sealer.seal(orjson.dumps(effect.payload), bound_to=bound_payload(effect.effect_id)),
                event.correlation_id,
            )
            for effect in self._flow.effects(event, personal)
        ]
