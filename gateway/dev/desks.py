"""The recipients' own screens, for the demo: what the people there see of their own database, and change in it.

Nothing here is part of Silogate. It stands in for two products of other firms, so each knows its own tables only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Desk:
    """One recipient's screen: how it lists its rows and sets a status, in its own words."""

    name: str
    title: str
    database: str
    rows: str
    set_status: str
    statuses: tuple[str, ...]


STREET_TEAM = Desk(
    name="street-team",
    title="Street team: jobs",
    database="street_team",
    rows="""
        select job_no::text as id, gateway_ref as reference, job_type as kind, state as status, site_name as site,
               details as words, crew as who, modified_at
        from street.job order by modified_at desc, job_no desc limit 50
    """,
    set_status="update street.job set state = $2, crew = coalesce(crew, 'Crew 4') where job_no::text = $1",
    statuses=("new", "doing", "done", "no action"),
)
CONTRACTOR = Desk(
    name="contractor",
    title="Repairs contractor: faults",
    database="contractor",
    rows="""
        select "FaultID"::text as id, client_ref as reference, fault_code as kind, status_code as status, site,
               fault_text as words, assigned_to as who, modified_at
        from fault_log order by modified_at desc, "FaultID" desc limit 50
    """,
    set_status="""
        update fault_log set status_code = $2, assigned_to = coalesce(assigned_to, 'Van 12') where "FaultID"::text = $1
    """,
    statuses=("LOGGED", "ASSIGNED", "COMPLETE", "REJECTED"),
)
DESKS = (STREET_TEAM, CONTRACTOR)


class Screens:
    """The screens of both recipients over their databases."""

    def __init__(self, pools: Mapping[str, asyncpg.Pool]) -> None:
        self._pools = pools

    async def rows(self, desk: Desk) -> list[asyncpg.Record]:
        """What the desk sees, newest change first."""
        found: list[asyncpg.Record] = await self._pools[desk.name].fetch(desk.rows, timeout=_LIMIT_S)
        return found

    async def find(self, desk: Desk, reference: str) -> Mapping[str, Any] | None:
        """The desk's row for one of our references."""
        return next((dict(row) for row in await self.rows(desk) if row["reference"] == reference), None)

    async def set_status(self, desk: Desk, row_id: str, status: str) -> bool:
        """What a person at the desk does; false when there is no such row or status."""
        if status not in desk.statuses:
            return False
        tag = await self._pools[desk.name].execute(desk.set_status, row_id, status, timeout=_LIMIT_S)
        return str(tag) == "UPDATE 1"
