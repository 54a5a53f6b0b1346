"""The figures of the overview: cases, what waits, what failed, and how old each silo is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from gateway.admin.queries import QUERIES

Row = Mapping[str, Any]
_SCHEMA_PREFIX = "silo_"


@dataclass(frozen=True, slots=True)
class SiloFigures:
    """One silo; `row` is None when its tables are there and its first load is not."""

    name: str
    row: Row | None


@dataclass(frozen=True, slots=True)
class Overview:
    cases: tuple[Row, ...]
    outbox: Row
    parked: tuple[Row, ...]
    strays: int
    effects: tuple[Row, ...]
    recipients: tuple[Row, ...]
    silos: tuple[SiloFigures, ...]

    @property
    def parked_cases(self) -> int:
        return sum(row["cases"] for row in self.parked)


@dataclass(frozen=True, slots=True)
class SiloRejects:
    name: str
    rows: tuple[Row, ...]


async def read_overview(pool: asyncpg.Pool, *, timeout_s: float) -> Overview:
    """All figures as of one moment."""
    async with (
        pool.acquire(timeout=timeout_s) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        cases = await connection.fetch(QUERIES["cases_by_status"], timeout=timeout_s)
        outbox = await connection.fetchrow(QUERIES["outbox"], timeout=timeout_s)
        parked = await connection.fetch(QUERIES["parked_by_group"], timeout=timeout_s)
        strays = await connection.fetchval(QUERIES["strays_count"], timeout=timeout_s)
        effects = await connection.fetch(QUERIES["effects_by_state"], timeout=timeout_s)
        recipients = await connection.fetch(QUERIES["recipients"], timeout=timeout_s)
        silos = [
            SiloFigures(name, rows[0] if rows else None)
            for name, rows in await _in_each_silo(connection, "silo", timeout_s=timeout_s)
        ]
    return Overview(tuple(cases), outbox, tuple(parked), strays, tuple(effects), tuple(recipients), tuple(silos))


async def read_rejects(pool: asyncpg.Pool, *, limit: int, timeout_s: float) -> list[SiloRejects]:
    """The rejected rows of each silo's newest complete load; personal values were masked when they were written."""
    async with pool.acquire(timeout=timeout_s) as connection, connection.transaction(readonly=True):
        found = await _in_each_silo(connection, "rejects", limit, timeout_s=timeout_s)
    return [SiloRejects(name, tuple(rows)) for name, rows in found]


async def _in_each_silo(
    connection: asyncpg.Connection, query: str, *parameters: object, timeout_s: float
) -> list[tuple[str, list[Row]]]:
    """The rows of one query in each silo's schema; the schema is chosen for this transaction only."""
    found = []
    for silo in await connection.fetch(QUERIES["silo_schemas"], timeout=timeout_s):
        await connection.execute(QUERIES["use_schema"], silo["schema"], timeout=timeout_s)
        rows = await connection.fetch(QUERIES[query], *parameters, timeout=timeout_s)
        found.append((silo["schema"].removeprefix(_SCHEMA_PREFIX), rows))
    return found
