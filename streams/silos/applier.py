"""From staging to a new image: rows, change log and progress in one transaction, or none of them."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from streams.silos.declaration import SiloDeclaration
from streams.silos.errors import AnotherApplier, DeletionGuard, SchemaDrift
from streams.silos.rejects import COLUMNS, Reject, shown
from streams.silos.staging import add_rejects
from streams.silos.statements import TableSql
from streams.silos.values import Tagger

# One change-log row is one message to the cache; above the threshold a new epoch says "all of it" in a word.
TAGS_A_ROW = 500
TAGS_A_LOAD = 20_000

# What followed the change log more than this ago starts from a new epoch anyway.
_LOG_KEPT = dt.timedelta(days=30)
_LOADS_WITH_REJECTS = 10
_REJECTS_DIFFER = """
with before as (
    select table_name, tags from reject
    where load_id = (select id from load where completed is not null order by id desc limit 1)
), now as (select table_name, tags from pg_temp._rejects)
select exists ((table before except table now) union all (table now except table before))
"""
_PREFETCH = 1_000


# Who this primary is: its cluster, and its timeline, which is another one after each promotion.
_SERVER = """
(select system_identifier from pg_control_system())::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
"""

_MOVE = f"""
update progress set epoch = $1, seq = $2, id = $3, definition = $4, source_position = $5::jsonb, server = ({_SERVER}),
    applied_at = clock_timestamp()
where epoch = $6 and seq = $7 returning true
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class Position:
    """Where the change log stands. `moved` when another server wrote it than the one that is asked now."""

    epoch: str
    seq: int
    definition: str
    moved: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """How many rows of a silo an apply touched."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0

    def __add__(self, other: Changes) -> Changes:
        return Changes(
            self.added + other.added,
            self.changed + other.changed,
            self.removed + other.removed,
            self.unchanged + other.unchanged,
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


async def read_position(connection: asyncpg.Connection) -> Position:
    row = await connection.fetchrow(
        f"select epoch, seq, definition, server is distinct from ({_SERVER}) as moved from progress"  # noqa: S608 - a constant
    )
    return Position(row["epoch"], row["seq"], row["definition"], row["moved"])


async def refuse_duplicates(
    connection: asyncpg.Connection, sql: TableSql, declaration: SiloDeclaration, tagger: Tagger, file: str
) -> None:
    """Refuse every row whose key stands in another row too: nobody knows which of them is right."""
    table = declaration.tables[sql.name]
    headings = [heading for name in sql.key for heading in table.columns[name].headings]
    personal = not table.personal_headings.isdisjoint(headings)
    await connection.execute(sql.mark_twice())
    refused: list[Reject] = []
    async for row in connection.cursor(sql.rows_twice(), prefetch=_PREFETCH):
        value = shown(" ".join(str(row[name]) for name in sql.key), personal=personal)
        tags = tuple(sorted(tagger.row_tags(sql.name, {name: row[name] for name in sql.columns})))
        reason = _same_key(row["_rows"])
        refused.append(Reject(file, row["_row"], " + ".join(headings), value, reason, tags, sql.name))
        if len(refused) == _PREFETCH:
            await add_rejects(connection, refused)
            refused = []
    await add_rejects(connection, refused)
    for statement in sql.keep_good():
        await connection.execute(statement)


async def compare(
    connection: asyncpg.Connection, sql: TableSql, rows: int, guard_percent: float, *, allow_deletions: bool
) -> Changes:
    """Find out what has to happen to each row of a source that had `rows`.

    Raises SchemaDrift if none of them can be used, which is a mistake in the source or in silo.yaml and not an empty
    silo, and DeletionGuard if too many rows would go.
    """
    counts = await connection.fetchrow(sql.counts())
    if rows and not counts["after"]:
        raise SchemaDrift(f"every one of {rows:,} rows for {sql.name} was refused: {await _reasons(connection, sql)}")
    await connection.execute(sql.diff())
    found = {row["_change"]: row["count"] for row in await connection.fetch(sql.changes())}
    before, removed, changed = counts["before"], found.get("removed", 0), found.get("changed", 0)
    if not allow_deletions:
        _guard(sql.name, rows, before, removed, guard_percent)
    return Changes(found.get("added", 0), changed, removed, before - removed - changed)


def _guard(table: str, rows: int, before: int, removed: int, guard_percent: float) -> None:
    remedy = "if the source is right, load it again with --allow-deletions"
    if not rows:
        raise DeletionGuard(f"the source of {table} has headings and no rows; {remedy}")
    if removed * 100 > before * guard_percent:
        raise DeletionGuard(
            f"{removed:,} of {before:,} rows of {table} would be removed, more than the {guard_percent:g} % that "
            f"silo.yaml allows; {remedy}"
        )


async def _reasons(connection: asyncpg.Connection, sql: TableSql) -> str:
    rows = await connection.fetch(
        "select column_name, reason from _rejects where table_name = $1 "
        "group by 1, 2 order by count(*) desc, 1 limit 3",
        sql.name,
    )
    return "; ".join(f"{row['column_name']} {row['reason']}".strip() for row in rows)


async def touched_tags(
    connection: asyncpg.Connection, tables: Iterable[TableSql], declaration: SiloDeclaration, tagger: Tagger
) -> set[str] | None:
    """The tags of every image before and after; None when there are more than a change log should list."""
    tags: set[str] = set()
    for sql in tables:
        indexes = declaration.indexes()[sql.name]
        columns = tuple(dict.fromkeys(column for index in indexes for column in index.columns))
        for query in (sql.before_images(columns), sql.after_images(columns)):
            async for row in connection.cursor(query, prefetch=_PREFETCH):
                tags |= tagger.row_tags(sql.name, {column: row[column] for column in columns})
                if len(tags) > TAGS_A_LOAD:
                    return None
    return tags


async def rejects_differ(connection: asyncpg.Connection) -> bool:
    """Tell whether this load puts other rows in doubt than the last complete one did."""
    return bool(await connection.fetchval(_REJECTS_DIFFER))


async def record_load(
    connection: asyncpg.Connection, source_time: dt.datetime, started: dt.datetime, changes: Changes, rejected: int
) -> int:
    """Write down that this load is complete, how old its source was, and what it refused."""
    load_id: int = await connection.fetchval(
        "insert into load (source_time, started, completed, added, changed, removed, rejected) "
        "values ($1, $2, clock_timestamp(), $3, $4, $5, $6) returning id",
        source_time, started, changes.added, changes.changed, changes.removed, rejected,
    )  # fmt: skip
    names = ", ".join(COLUMNS)
    await connection.execute(
        f"insert into reject (load_id, {names}) select $1, {names} from pg_temp._rejects order by n",  # noqa: S608 - a constant of this package
        load_id,
    )
    await connection.execute(
        "delete from reject where load_id < (select min(id) from (select id from load order by id desc limit $1) kept)",
        _LOADS_WITH_REJECTS,
    )
    return load_id


async def reject_lines(connection: asyncpg.Connection) -> AsyncIterator[Sequence[Sequence[Any]]]:
    """The rejects of this load as lines of the report, some at a time."""
    query = "select file, sheet, row_number, column_name, value_shown, reason from _rejects order by n"
    lines: list[Sequence[Any]] = []
    async for row in connection.cursor(query, prefetch=_PREFETCH):
        lines.append(tuple(row))
        if len(lines) == _PREFETCH:
            yield lines
            lines = []
    if lines:
        yield lines


async def advance(
    connection: asyncpg.Connection,
    seen: Position,
    tags: set[str] | None,
    *,
    definition: str,
    source_position: dict[str, Any],
) -> Position:
    """Append to the change log and move `progress` on; the last statement of the transaction.

    `tags` None, or a definition that is not the one before, gives the silo a new epoch instead of a list. So does a
    primary that was promoted since: commits that were lost with the one before it had the numbers that are given now.
    Raises AnotherApplier if the log moved since `seen`.
    """
    mint = tags is None or definition != seen.definition or seen.moved
    batches = _batches([] if mint else sorted(tags or ()))
    entries = [(seen.seq + n, secrets.token_hex(16), batch) for n, batch in enumerate(batches, 1)]
    try:
        await connection.executemany("insert into change_log (seq, id, tags) values ($1, $2, $3)", entries)
    except asyncpg.UniqueViolationError:
        raise AnotherApplier("another load of this silo wrote to it meanwhile; run this one again") from None
    await connection.execute(
        "delete from change_log where at < now() - $1::interval and seq <= $2", _LOG_KEPT, seen.seq
    )
    seq, entry_id, _ = entries[-1]
    epoch = secrets.token_hex(16) if mint else seen.epoch
    expected = seen.epoch
    while True:
        moved = await connection.fetchval(
            _MOVE,
            epoch, seq, entry_id, definition, json.dumps(source_position), expected, seen.seq,
        )  # fmt: skip
        if moved:
            return Position(epoch, seq, definition, moved=False)
        now = await read_position(connection)
        if now.seq != seen.seq:
            raise AnotherApplier("another load of this silo wrote to it meanwhile; run this one again")
        # An invalidator gave the silo a new epoch while this load ran; a cache may live by it, so it stands.
        expected = now.epoch
        epoch = epoch if mint else now.epoch


def _batches(tags: Sequence[str]) -> list[list[str]]:
    return [list(tags[start : start + TAGS_A_ROW]) for start in range(0, len(tags), TAGS_A_ROW)] or [[]]


def _same_key(rows: Sequence[int]) -> str:
    listed = ", ".join(str(row) for row in rows[:10]) + (", …" if len(rows) > 10 else "")
    return f"is the key of {len(rows)} rows: {listed}"
