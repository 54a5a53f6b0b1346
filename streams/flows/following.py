"""Does what a flow says follows an effect that is done, has failed or is unknown.

The effect's row asks for it from the moment it has its state (`follow`), and stops asking when it is done, so a worker
that dies in between leaves it to another. Doing it twice is doing it once: a change of the case is remembered by
effect, attempt and outcome, and an effect that follows has the id of its intent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from streams.cases.cases import Cases, ImmutableField, Invalid, UnknownCase
from streams.cases.keys import CaseKeys, Erased, KeyMissing
from streams.effects.effect import bound_payload
from streams.events import HopLimit
from streams.failpoints import reach
from streams.flow import Branch, Flow
from streams.outages import DATABASE_AWAY

_NEXT = """
select e.effect_id, e.case_id, e.case_version, e.sink, e.purpose, e.occurrence, e.attempt, e.follow, e.payload,
    e.correlation_id, c.type as case_type, coalesce(v.hops, 0) as hops
from effect e join cases c on c.id = e.case_id
left join case_event v on v.case_id = e.case_id and v.version = e.case_version
where e.follow is not null and not exists (select from shut)
order by e.updated_at limit 1 for update of e skip locked
"""
_PLAN = """
insert into effect (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, correlation_id)
values ($1, $2, $3, $4, $5, $6, 'planned', $7, $8) on conflict (effect_id) do nothing
"""
_FOLLOWED = "update effect set follow = null where effect_id = $1"
_ACTOR = "flow"
_log = logging.getLogger(__name__)


class Follower:
    """One worker's share of what follows. Any number of workers may run."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        keys: CaseKeys,
        cases: Cases,
        flows: Iterable[Flow],
        *,
        poll_s: float = 0.5,
        timeout_s: float = 20.0,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._cases = cases
        self._flows = list(flows)
        self._poll_s = poll_s
        self._timeout_s = timeout_s

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set."""
        while not stop.is_set():
            try:
                found = await self.follow_one()
            except DATABASE_AWAY as error:
                _log.warning("follower.database_away", extra={"error": type(error).__name__})
                found = False
            if not found:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await stop.wait()

    async def follow_one(self) -> bool:
        """Do what follows one effect; False when none asks for it."""
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(_NEXT)
            if row is None:
                return False
            flow, branch = self._branch(row)
            if flow is not None and branch is not None and not branch.end:
                await self._do(connection, flow, branch, row)
            reach("effect.before_followed")
            await connection.execute(_FOLLOWED, row["effect_id"])
        return True

    def _branch(self, row: Mapping[str, Any]) -> tuple[Flow | None, Branch | None]:
        for flow in self._flows:
            rule = flow.rule(row["sink"], row["purpose"]) if flow.case_type == row["case_type"] else None
            if rule is not None:
                return flow, None if rule.then is None else rule.then.branches[row["follow"]]
        return None, None

    async def _do(
        self, connection: asyncpg.pool.PoolConnectionProxy, flow: Flow, branch: Branch, row: Mapping[str, Any]
    ) -> None:
        try:
            if branch.plan is not None:
                await self._plan(connection, flow, branch.plan, row)
            else:
                await self._change(flow, branch, row)
        except (Erased, UnknownCase):
            # Nothing is left of the case that could be changed or written to.
            return
        except (KeyMissing, HopLimit, Invalid, ImmutableField) as error:
            # It will never be possible: said to operators, and not tried again.
            cause = type(error).__name__
            _log.error("follower.impossible", extra={"effect_id": str(row["effect_id"]), "error": cause})

    async def _change(self, flow: Flow, branch: Branch, row: Mapping[str, Any]) -> None:
        """Change the case or note on it, in a transaction of its own that remembers it."""
        common: dict[str, Any] = {
            "actor": _ACTOR,
            "origin": f"flow:{flow.name}",
            "correlation_id": row["correlation_id"],
            "hops": row["hops"] + 1,
            "message": ("effect", f"{row['effect_id']}:{row['attempt']}:{row['follow']}"),
        }
        if branch.note is not None:
            await self._cases.note(row["case_id"], branch.note, by=_ACTOR, **common)
        else:
            await self._cases.change(row["case_id"], branch.patch, **common)

    async def _plan(
        self, connection: asyncpg.pool.PoolConnectionProxy, flow: Flow, purpose: str, row: Mapping[str, Any]
    ) -> None:
        rule = flow.planned_by(purpose)
        effect_id: UUID = row["effect_id"]
        if rule is None:
            return
        sealer = await self._keys.of(connection, row["case_id"])
        payload = orjson.loads(sealer.open(row["payload"], bound_to=bound_payload(effect_id)))
        planned = flow.follow_up(rule, row["case_id"], row["occurrence"], payload)
        if planned is None:
            return
        await connection.execute(
            _PLAN,
            planned.effect_id,
            planned.sink,
            row["case_id"],
            row["case_version"],
            planned.purpose,
            planned.occurrence,
            sealer.seal(orjson.dumps(planned.payload), bound_to=bound_payload(planned.effect_id)),
            row["correlation_id"],
        )
