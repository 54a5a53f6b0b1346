"""Reading a source into staging tables, chunk by chunk; what breaks a rule goes to the rejects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from streams.failpoints import reach
from streams.silos import rejects
from streams.silos.declaration import IndexDeclaration
from streams.silos.errors import SourceUnreadable
from streams.silos.rejects import Reject
from streams.silos.rules import Fault, Reading, TableRules, index_readable
from streams.silos.source_csv import CsvFile
from streams.silos.statements import GOOD, ROW, TableSql
from streams.silos.values import Tagger

# Enough rows to make COPY worth its round trip, few enough that memory does not grow with the file.
CHUNK_ROWS = 2_000

# How long a shared folder may take to give one chunk.
_READ_S = 60.0

CREATE_REJECTS = """
create temp table _rejects (
    n bigint generated always as identity, file text, sheet text, row_number bigint, column_name text, value_shown text,
    reason text, tags text[], table_name text
)"""
DROP_REJECTS = "drop table if exists pg_temp._rejects"


@dataclass(slots=True)
class Counts:
    """What has been read of one table so far."""

    rows: int = 0
    blank: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class TableReader:
    """One table on its way in: its file, its rules, and the tags of what it must refuse."""

    sql: TableSql
    rules: TableRules
    source: CsvFile
    tagger: Tagger
    indexes: tuple[IndexDeclaration, ...]

    def read_chunk(self) -> tuple[int, list[tuple[Any, ...]], list[Reject]]:
        """How many rows come next, their staged records and the rejects among them; for a thread."""
        rows = self.source.rows(CHUNK_ROWS)
        records: list[tuple[Any, ...]] = []
        refused: list[Reject] = []
        for row in rows:
            if row.fault is not None:
                # Which value belongs to which heading is unknown, so nothing of the row may be shown.
                refused.append(self._reject(row.number, Fault("", "", row.fault, personal=True), ()))
                continue
            reading = self.rules.read(row.cells)
            tags = self.doubtful(reading) if reading.faults else ()
            refused.extend(self._reject(row.number, fault, tags) for fault in reading.faults)
            if not reading.faults or index_readable(self.sql.key, reading):
                records.append(self._record(row.number, reading))
        return len(rows), records, refused

    def doubtful(self, reading: Reading) -> tuple[str, ...]:
        """The tags of what a refused row would have answered; none when one of its index values cannot be read."""
        if not all(index_readable(index.columns, reading) for index in self.indexes):
            return ()
        return tuple(sorted(self.tagger.row_tags(self.sql.name, reading.values)))

    def _record(self, number: int, reading: Reading) -> tuple[Any, ...]:
        # Of a refused row only the key is staged: it shows whether another row claims the same key.
        good = not reading.faults
        values = (reading.values[name] if good or name in self.sql.key else None for name in self.sql.columns)
        return (number, good, *values)

    def _reject(self, number: int, fault: Fault, tags: tuple[str, ...]) -> Reject:
        value = rejects.shown(fault.value, personal=fault.personal)
        return Reject(self.source.path.name, number, fault.heading, value, fault.reason, tags, self.sql.name)


async def stage(
    connection: asyncpg.Connection, reader: TableReader, counts: Counts, on_chunk: Callable[[], None]
) -> None:
    """Copy every row of the source into the session's staging table and its refusals into `_rejects`."""
    await connection.execute(reader.sql.stage())
    columns = [ROW, GOOD, *reader.sql.columns]
    while True:
        try:
            async with asyncio.timeout(_READ_S):
                count, records, refused = await asyncio.to_thread(reader.read_chunk)
        except TimeoutError:
            raise SourceUnreadable(f"{reader.source.path} did not answer within {_READ_S:.0f} s") from None
        if not count:
            break
        await connection.copy_records_to_table(
            reader.sql.staged, records=records, columns=columns, schema_name="pg_temp"
        )
        await add_rejects(connection, refused)
        counts.rows += count
        counts.rejected += len({each.row_number for each in refused})
        on_chunk()
        reach("silo.staged")
    counts.blank = reader.source.blank
    await connection.execute(reader.sql.analyze())


async def add_rejects(connection: asyncpg.Connection, refused: list[Reject]) -> None:
    if refused:
        await connection.copy_records_to_table(
            "_rejects", records=[each.record() for each in refused], columns=rejects.COLUMNS, schema_name="pg_temp"
        )
