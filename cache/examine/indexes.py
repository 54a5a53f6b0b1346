"""Tables that a lookup reads from end to end, why, and what to write instead."""
# ruff: noqa: S608 - table names come from the plan and are quoted

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from cache.definition import CircleTag, LookupDefinition, compile_sql, quoted
from cache.examine.conditions import bare, split
from cache.examine.finding import Finding
from cache.examine.plan import Plan, Scan, explained
from cache.examine.samples import Key, arrays
from cache.examine.trial import Trial, slower

# Below this a scan costs less than a round trip.
_LARGE = 1000
_CAST_COLUMN = r"\(\(?{alias}\.(\w+)\)?\)?::([a-z ]+(?:\(\d+\))?)"
_COLUMN_SQL = """
select pg_catalog.format_type(a.atttypid, a.atttypmod) from pg_catalog.pg_attribute a
where a.attrelid = to_regclass($1) and a.attname = $2
"""
_INDEXED_SQL = """
select exists (select from pg_catalog.pg_index i join pg_catalog.pg_attribute a
    on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
where i.indrelid = to_regclass($1) and a.attname = $2)
"""


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why no index serves; `certain` where it is wrong at any size of the table."""

    code: str
    message: str
    certain: bool = False


async def plan_with_indexes(connection: asyncpg.Connection, sql: str, values: Sequence[Any]) -> Plan:
    """The plan when scanning a whole table is the last resort: what is then still scanned, no index can find."""
    async with connection.transaction():
        await connection.execute("set local enable_seqscan = off")
        plan = await explained(connection, sql, values)
        await connection.execute("set local enable_seqscan = on")
    return plan


async def check_indexes(
    connection: asyncpg.Connection, definition: LookupDefinition, general: Plan, keys: Sequence[Key]
) -> tuple[list[Finding], Plan]:
    """Warn of each large table that every question reads whole; also the plan of one question, for `judge_batch`."""
    plain, _ = compile_sql(definition)
    plan = await plan_with_indexes(connection, plain, keys[0].values)
    findings = await _spelling(connection, definition, general)
    named = {finding.code for finding in findings}
    for table in plan.whole():
        why = await _reason(connection, definition, table, general, plan)
        if why.code not in named and (why.certain or await is_large(connection, table)):
            findings.append(Finding("warning", why.code, why.message))
    return findings, plan


async def judge_batch(
    connection: asyncpg.Connection, definition: LookupDefinition, single: Plan, trial: Trial
) -> list[Finding]:
    """Fall back where the batch loses an index that one question alone uses, or takes longer than its questions do."""
    _, batch = compile_sql(definition)
    plan = await plan_with_indexes(connection, batch, arrays(trial.keys))
    lost = [table for table in plan.whole() if table not in (*single.whole(), "progress")]
    large = [table for table in lost if await is_large(connection, table)]
    measured, before = slower(trial), len(trial.findings)
    if lost and (large or measured):
        table = (large or lost)[0]
        how = _of_batch(definition, plan.of(table)) or "the plan of the batch has no use for it"
        measured = f" ({measured})" if measured else ""
        trial.fall_back(
            "warning", "index_lost_in_batch", f"a batch reads all of {table} for each question{measured}: {how}"
        )
    elif measured:
        trial.fall_back("warning", "slow_in_batch", f"{measured}, with the plan: {plan.shown}")
    return trial.findings[before:]


async def is_large(connection: asyncpg.Connection, table: str) -> bool:
    """True if the table has more rows than may be read for each question."""
    count = await connection.fetchval(f"select count(*) from (select from {quoted(table)} limit {_LARGE + 1}) as begun")
    return bool(count > _LARGE)


def _of_batch(definition: LookupDefinition, scans: Sequence[Scan]) -> str | None:
    said = " ".join(condition for scan in scans for condition in scan.conditions)
    if "~~" in said:
        return _no_like(definition, scans)
    if " IS NULL" in said:
        return (
            "`or :parameter is null` is decided for each row there; a lookup of its own for each way of asking is not"
        )
    return None


def _no_like(definition: LookupDefinition, scans: Sequence[Scan]) -> str:
    said = " ".join(condition for scan in scans for condition in scan.conditions)
    found = re.search(r"\.(\w+)\)?(?:::text)? (?:!?~~\*?) ", said)
    column = found[1] if found else "column"
    name = next((name for name, kind in definition.parameters.items() if kind.name in ("prefix", "name", "text")), "p")
    return (
        f"`LIKE :{name} || '%'` finds no index there. Give {name} `type: prefix` and write the range"
        f' `{column} collate "C" >= :{name} and {column} collate "C" < :{name}_below`'
    )


async def _spelling(connection: asyncpg.Connection, definition: LookupDefinition, general: Plan) -> list[Finding]:
    """A `citext` column compared as text: only the exact spelling is found, and nothing says so."""
    found: dict[str, Finding] = {}
    for scan in general.scans:
        for column, _, number in _casts(scan):
            kind = await connection.fetchval(_COLUMN_SQL, quoted(scan.table), column)
            if _is_citext(kind):
                name = _parameter(definition, number)
                message = (
                    f"compares {scan.table}.{column} (citext) as plain text, which finds the exact spelling only and"
                    f" says nothing of the others: write {_as_itself(column, name, str(kind))}"
                )
                found.setdefault(message, Finding("error", "citext", message))
    return list(found.values())


async def _reason(
    connection: asyncpg.Connection, definition: LookupDefinition, table: str, general: Plan, plan: Plan
) -> _Reason:
    scans = general.of(table)
    for scan in scans:
        for column, shown, number in _casts(scan):
            kind = await connection.fetchval(_COLUMN_SQL, quoted(table), column)
            if _is_citext(kind):
                return _Reason("citext", "")
            if await connection.fetchval(_INDEXED_SQL, quoted(table), column):
                return _Reason(
                    "cast",
                    f"compares {table}.{column} ({kind}) as {shown}, which its index does not hold, so all of {table}"
                    f" is read: compare in the column's own type, (:{_parameter(definition, number)})::{kind}",
                    certain=True,
                )
    if any("~~" in condition for scan in scans for condition in scan.conditions):
        return _Reason("like", f"reads all of {table} for each question: {_no_like(definition, scans)}")
    columns = tuple(dict.fromkeys(column for scan in scans for column in _tied(definition, scan)))
    if "WindowAgg" in plan.kinds and not columns:
        return _Reason(
            "window",
            f"computes a window over all of {table} before the question narrows it down: put the condition inside the"
            " window's own query or view, or `partition by` the column that is asked for",
        )
    return await _without_index(connection, definition, table, scans, columns)


async def _without_index(
    connection: asyncpg.Connection,
    definition: LookupDefinition,
    table: str,
    scans: Sequence[Scan],
    columns: Sequence[str],
) -> _Reason:
    whole = f"reads all of {table} for each question"
    if not columns:
        return _Reason("whole_table_read", f"{whole}: no condition of the SQL compares its columns with a parameter")
    if isinstance(definition.tags.get(table), CircleTag):
        box = f"{columns[0]} between :{columns[0]} - :metres and :{columns[0]} + :metres"
        return _Reason("no_index", f"{whole}: ask for a box first, which an index finds, as in `{box}`")
    plain = [column for column in columns if any(_is_plain(scan, column) for scan in scans)]
    for column in plain:
        if not await connection.fetchval(_INDEXED_SQL, quoted(table), column):
            mend = (
                f"`create index on {table} ({', '.join(plain)})`"
                if not definition.tags
                else f"declare one under tables.{table}.indexes of silo.yaml:"
                f"  {column}: {{columns: [{', '.join(plain)}], kind: value}}"
            )
            return _Reason("no_index", f"{whole}: no index begins with {column}; {mend}")
    return _Reason(
        "no_index",
        f"{whole}: no index serves the way in which {', '.join(columns)} is compared; it needs the column alone on"
        " one side of =, < or >, and conditions joined by `and`",
    )


def _as_itself(column: str, name: str, kind: str) -> str:
    # Out of the search path the type's own `=` is not found, and that of text is taken without a word.
    schema = kind.rpartition(".")[0]
    equals = f"operator({schema}.=)" if schema else "="
    return f"{column} {equals} (:{name})::{kind}"


def _is_plain(scan: Scan, column: str) -> bool:
    """True if the column stands alone on one side of a comparison that must hold."""
    name = re.escape(f"{scan.alias}.{column}")
    plain = re.compile(rf"{name} (=|<|>|<=|>=) .*|.* (=|<|>|<=|>=) {name}")
    return any(len(split(part, " OR ")) == 1 and plain.fullmatch(bare(part)) for part in scan.conditions)


def _is_citext(kind: object) -> bool:
    # With its schema in front, where that is not in the search path.
    return str(kind).rpartition(".")[2] == "citext"


def _tied(definition: LookupDefinition, scan: Scan) -> list[str]:
    found = (scan.column_of(number) for number in range(1, len(definition.parameters) + 1))
    return [column for column in dict.fromkeys(found) if column is not None]


def _casts(scan: Scan) -> list[tuple[str, str, int]]:
    """Columns that are cast to be compared with a parameter: column, to which type, the parameter's number."""
    pattern = re.compile(_CAST_COLUMN.format(alias=re.escape(scan.alias)))
    found = []
    for condition in scan.conditions:
        plain = condition.replace('"', "")
        number = re.search(r"\$(\d+)", plain)
        if number is not None:
            found += [(match[1], match[2].strip(), int(number[1])) for match in pattern.finditer(plain)]
    return found


def _parameter(definition: LookupDefinition, number: int) -> str:
    return list(definition.parameters)[number - 1]
