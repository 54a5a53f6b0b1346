"""One load of a silo: read, compare, apply; the whole new image or the old one."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncpg

from streams.failpoints import reach
from streams.silos import applier
from streams.silos.applier import Changes, Position
from streams.silos.declaration import SiloDeclaration
from streams.silos.errors import AnotherApplier, TooSlow
from streams.silos.names import quoted
from streams.silos.progress import LoadProgress, OnProgress, silent
from streams.silos.rejects import RejectsReport
from streams.silos.rules import TableRules
from streams.silos.schema import prepare
from streams.silos.source_csv import FilePosition, open_csv
from streams.silos.staging import CREATE_REJECTS, DROP_REJECTS, Counts, TableReader, stage
from streams.silos.statements import TableSql
from streams.silos.values import Tagger, ValueTypes
from streams.sql.migrate import LOOKUP_ROLE

_LOCK_S = 2.0
_LOCK_LOOK_S = 0.05
_CLEAN_UP_S = 10.0


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What a load did. `total` rows make the image; `rejected` rows of the source are not in it."""

    added: int
    changed: int
    removed: int
    unchanged: int
    rejected: int
    blank: int
    total: int
    epoch: str
    seq: int
    source_time: dt.datetime
    seconds: float
    rejects_csv: Path | None
    dry_run: bool


async def load(
    declaration: SiloDeclaration,
    *,
    types: ValueTypes,
    pool: asyncpg.Pool,
    tagger: Tagger,
    folder: Path,
    reports: Path | None = None,
    dry_run: bool = False,
    allow_deletions: bool = False,
    on_progress: OnProgress = silent,
    role: str = LOOKUP_ROLE,
    deadline_s: float = 3600.0,
) -> LoadSummary:
    """Make the silo's replica what its source says now.

    Source files lie in `folder`, under the paths that silo.yaml gives. Rows that break a rule are refused and written
    to the silo's `reject` table and, if `reports` is given, to `<reports>/<silo>-rejects.csv`. A `dry_run` does all of
    it, writes the report, and rolls back.

    Rows, tags, progress, rejects and the note that the load is complete commit in one transaction: a load that fails,
    or whose process dies, leaves the image before it. Raises a SiloError that says why.
    """
    run = _Load(declaration, types, tagger, folder, reports, dry_run, allow_deletions, on_progress, role)
    try:
        async with (
            asyncio.timeout(deadline_s) as deadline,
            pool.acquire() as connection,
            _alone(connection, declaration.silo),
            _session_tables(connection, run.tables),
        ):
            return await run.perform(connection)
    except TimeoutError:
        what = f"end within {deadline_s:.0f} s" if deadline.expired() else "get an answer from the database in time"
        raise TooSlow(f"the load of {declaration.silo} did not {what}") from None


@asynccontextmanager
async def _alone(connection: asyncpg.Connection, silo: str) -> AsyncIterator[None]:
    """One load of a silo at a time, on any machine. The lock goes with the session, so a dead loader holds nothing."""
    name = f"silogate load {silo}"
    if not await _locked(connection, name):
        raise AnotherApplier(f"another load of {silo} is running; wait for it to end")
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("select pg_advisory_unlock(hashtextextended($1, 0))", name, timeout=_CLEAN_UP_S)


async def _locked(connection: asyncpg.Connection, name: str) -> bool:
    """Try for some seconds: the canary holds the lock for as long as its one row takes."""
    deadline = asyncio.get_running_loop().time() + _LOCK_S
    while not await connection.fetchval("select pg_try_advisory_lock(hashtextextended($1, 0))", name):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_LOCK_LOOK_S)
    return True


@asynccontextmanager
async def _session_tables(connection: asyncpg.Connection, tables: Sequence[TableSql]) -> AsyncIterator[None]:
    try:
        await connection.execute(CREATE_REJECTS)
        yield
    finally:
        if not connection.is_closed():
            drops = (DROP_REJECTS, *(sql.unstage() for sql in tables))
            await connection.execute("; ".join(drops), timeout=_CLEAN_UP_S)


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection, *, commit: bool) -> AsyncIterator[None]:
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        yield
    except BaseException:
        # Nothing to undo on a connection that is gone: the server rolls back what never committed.
        if not connection.is_closed():
            await transaction.rollback()
        raise
    await (transaction.commit() if commit else transaction.rollback())


@dataclass(frozen=True, slots=True)
class _Outcome:
    changes: Changes
    rejected: int
    position: Position
    source_time: dt.datetime


class _Load:
    """The steps of one load, in the order in which they happen."""

    def __init__(  # noqa: PLR0917 - the arguments of `load`, in their order
        self,
        declaration: SiloDeclaration,
        types: ValueTypes,
        tagger: Tagger,
        folder: Path,
        reports: Path | None,
        dry_run: bool,
        allow_deletions: bool,
        on_progress: OnProgress,
        role: str,
    ) -> None:
        self.tables = [TableSql(name, table, types) for name, table in declaration.tables.items()]
        self._silo = declaration
        self._types = types
        self._tagger = tagger
        self._folder = folder
        self._reports = reports
        self._dry_run = dry_run
        self._allow_deletions = allow_deletions
        self._on_progress = on_progress
        self._role = role
        self._counts = {name: Counts() for name in declaration.tables}
        self._files: dict[str, FilePosition] = {}
        self._bytes = (0, 0)

    async def perform(self, connection: asyncpg.Connection) -> LoadSummary:
        began = time.monotonic()
        started = await connection.fetchval("select clock_timestamp()")
        for sql in self.tables:
            await self._stage(connection, sql)
        async with AsyncExitStack() as stack:
            report = await stack.enter_async_context(RejectsReport(path)) if (path := self._report()) else None
            async with _transaction(connection, commit=not self._dry_run):
                outcome = await self._apply(connection, started)
                if report is not None:
                    await report.write(applier.reject_lines(connection))
                reach("silo.before_commit")
            reach("silo.after_commit")
            published = report.publish() if report is not None else None
        return self._summary(outcome, time.monotonic() - began, published)

    async def _stage(self, connection: asyncpg.Connection, sql: TableSql) -> None:
        source, table = self._silo.source, self._silo.tables[sql.name]
        path = self._folder / self._silo.path_of(sql.name)
        done = self._bytes
        with open_csv(path, source.encoding, source.delimiter) as file:
            rules = TableRules(table, file.header, self._types, encoding=source.encoding, where=str(path))

            def chunk_done() -> None:
                self._bytes = (done[0] + file.bytes_read, done[1] + file.bytes_total)
                self._tell("reading")

            reader = TableReader(sql, rules, file, self._tagger, self._silo.indexes()[sql.name])
            await stage(connection, reader, self._counts[sql.name], chunk_done)
            self._files[sql.name] = file.position()

    async def _apply(self, connection: asyncpg.Connection, started: dt.datetime) -> _Outcome:
        # The load has its own deadline; a pool made for short queries must not end its longer ones.
        await connection.execute("set local lock_timeout = '30s'; set local statement_timeout = 0")
        await prepare(connection, self._silo, self._types, role=self._role)
        await connection.execute(f"set local search_path = {quoted(self._silo.schema_name)}")
        self._tell("comparing")
        seen = await applier.read_position(connection)
        changes = Changes()
        for sql in self.tables:
            file = self._files[sql.name].path
            await applier.refuse_duplicates(connection, sql, self._silo, self._tagger, file)
            rows, guard = self._counts[sql.name].rows, self._silo.deletions.guard_percent
            changes += await applier.compare(connection, sql, rows, guard, allow_deletions=self._allow_deletions)
        rejected = await connection.fetchval("select count(distinct (table_name, row_number)) from _rejects")
        tags = await applier.touched_tags(connection, self.tables, self._silo, self._tagger)
        self._tell("applying")
        for sql in self.tables:
            for statement in sql.apply():
                await connection.execute(statement)
                reach("silo.applied")
        # Before they are recorded: answers of this position were judged by the last load's rejects.
        other_rejects = await applier.rejects_differ(connection)
        await applier.record_load(connection, self._source_time(started), started, changes, rejected)
        position = seen
        if changes or other_rejects or seen.definition != self._tagger.definition:
            position = await applier.advance(
                connection, seen, tags, definition=self._tagger.definition, source_position=self._source_position()
            )
        return _Outcome(changes, rejected, position, self._source_time(started))

    def _source_time(self, started: dt.datetime) -> dt.datetime:
        # The oldest file: the image is no fresher. A time stamp ahead of our clock must not make it look fresh later.
        return min(started, *(file.modified for file in self._files.values()))

    def _source_position(self) -> dict[str, Any]:
        return {
            table: {
                "path": file.path,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "modified": file.modified.isoformat(),
            }
            for table, file in self._files.items()
        }

    def _report(self) -> Path | None:
        name = f"{self._silo.silo}-rejects{'-dry-run' if self._dry_run else ''}.csv"
        return self._reports / name if self._reports is not None else None

    def _tell(self, phase: Literal["reading", "comparing", "applying"]) -> None:
        rows = sum(counts.rows for counts in self._counts.values())
        rejected = sum(counts.rejected for counts in self._counts.values())
        self._on_progress(LoadProgress(phase, rows, rejected, *self._bytes))

    def _summary(self, outcome: _Outcome, seconds: float, report: Path | None) -> LoadSummary:
        changes = outcome.changes
        return LoadSummary(
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            unchanged=changes.unchanged,
            rejected=outcome.rejected,
            blank=sum(counts.blank for counts in self._counts.values()),
            total=changes.added + changes.changed + changes.unchanged,
            epoch=outcome.position.epoch,
            seq=outcome.position.seq,
            source_time=outcome.source_time,
            seconds=seconds,
            rejects_csv=report,
            dry_run=self._dry_run,
        )
