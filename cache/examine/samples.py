"""Keys to try a lookup with: values that rows hold, values that none holds, absent optional ones, and a double."""
# ruff: noqa: S608 - table and column names come from the silo's declaration and are quoted

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from cache.definition import CircleTag, IndexTag, LookupDefinition, quoted
from cache.examine.plan import Plan
from cache.values import Malformed, Tagger, ValueType

# Well formed, and in no register.
_ABSENT: Mapping[str, object] = {
    "postcode": "XX99 9ZZ",
    "vehicle_mark": "ZZ99 ZZZ",
    "latitude": 49.9,
    "longitude": -6.3,
    "uprn": 999_999_999_999,
    "usrn": 99_999_999,
    "easting": 1.0,
    "northing": 1.0,
    "metres": 1.0,
    "text": "zq no such value",
    "name": "zq no such name",
    "prefix": "zq no such name",
    "nino": "ZZ999999D",
    "date": "1066-10-14",
    "integer": 2**62,
    "number": 1e15,
    "reference": "ZQ-NO-SUCH-REFERENCE",
}
# What a search box sends first.
_BEGINNING = 3
_PAGES = 20
_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Key:
    """Values for the SQL in the declared order. `absent` tells that no row holds any of them."""

    values: tuple[Any, ...]
    absent: bool = False


async def sampled(
    connection: asyncpg.Connection,
    definition: LookupDefinition,
    tagger: Tagger | None,
    plan: Plan,
    *,
    examples: Mapping[str, object],
    optional: frozenset[str],
    samples: int,
) -> list[Key]:
    """At most about `samples` keys, those of rows first. Personal values among them stay in memory."""
    placed = _placed(definition, tagger, plan)
    plain = {name: _plain(kind, examples.get(name)) for name, kind in definition.parameters.items()}
    found: list[Key] = []
    if placed is not None:
        table, columns = placed
        for row in await _rows(connection, table, list(dict.fromkeys(columns.values())), samples):
            found += _of_row(definition, columns, row, plain)
    example = Key(tuple(plain.values()))
    found = list(dict.fromkeys([*found, example]))[: max(samples - 4, 1)]
    first = found[0].values
    absent = {name: _absent(kind, plain[name]) for name, kind in definition.parameters.items()}
    found.append(Key(tuple(absent.values()), absent=True))
    tied = set() if placed is None else set(placed[1])
    found.append(Key(tuple(_mixed(definition, first, absent, tied))))
    for place, name in enumerate(definition.parameters):
        if name in optional:
            found.append(Key((*first[:place], None, *first[place + 1 :])))
    return [*found, found[0]]


def _mixed(
    definition: LookupDefinition, first: tuple[Any, ...], absent: Mapping[str, Any], tied: set[str]
) -> list[Any]:
    """The first key with what is not compared with a column (or else all but the first) taken from no row."""
    names = list(definition.parameters)
    other = [name for name in names if name not in tied] or names[1:]
    return [absent[name] if name in other else first[place] for place, name in enumerate(names)]


def _placed(definition: LookupDefinition, tagger: Tagger | None, plan: Plan) -> tuple[str, dict[str, str]] | None:
    """The table whose rows give keys, and which column stands for which parameter."""
    best: tuple[str, dict[str, str]] | None = None
    for table, rule in definition.tags.items():
        columns: dict[str, str] = {}
        if tagger is not None and isinstance(rule, IndexTag):
            columns |= dict(zip(rule.parameters, tagger.indexes[table][rule.index].columns, strict=True))
        elif tagger is not None and isinstance(rule, CircleTag):
            index = tagger.indexes[table][rule.index]
            columns |= dict(zip((rule.easting, rule.northing), index.columns, strict=True))
        for scan in plan.of(table):
            for number, name in enumerate(definition.parameters, 1):
                if name not in columns and (column := scan.column_of(number)) is not None:
                    columns[name] = column
        if columns and (best is None or len(columns) > len(best[1])):
            best = table, columns
    return best


async def _rows(connection: asyncpg.Connection, table: str, columns: list[str], samples: int) -> list[tuple[Any, ...]]:
    """Both ends of the first column, and rows from pages in between."""
    names, name = ", ".join(quoted(column) for column in columns), quoted(table)
    first = quoted(columns[0])
    share = await connection.fetchval(
        "select least(100, 100.0 * $2 / greatest(relpages, 1))::float4 from pg_catalog.pg_class"
        " where oid = to_regclass($1)",
        name,
        _PAGES,
    )
    held = f"from {name} where {first} is not null"
    some = f"select {names} from {name} tablesample system ($1) repeatable (1) where {first} is not null limit {_ROWS}"
    rows: list[tuple[Any, ...]] = []
    for sql, values in (
        (f"select distinct {names} from ({some}) as some_rows", [share]),
        (f"select {names} {held} order by {first} limit 2", []),
        (f"select {names} {held} order by {first} desc limit 2", []),
    ):
        try:
            async with connection.transaction():
                found = [tuple(row) for row in await connection.fetch(sql, *values)]
        except asyncpg.QueryCanceledError:
            # Sorting a table without that index takes too long: one end less.
            continue
        rows += found[:: max(1, -(-len(found) // max(2, samples // 2)))]
    return rows


def _of_row(
    definition: LookupDefinition, columns: Mapping[str, str], row: tuple[Any, ...], plain: Mapping[str, Any]
) -> list[Key]:
    """The key that finds the row, and for a search by a text also one by how it begins."""
    held = dict(zip(dict.fromkeys(columns.values()), row, strict=True))
    values: dict[str, Any] = {}
    searched = [name for name, kind in definition.parameters.items() if kind.name in ("name", "prefix")]
    for name, kind in definition.parameters.items():
        value = _held(kind, held[columns[name]]) if name in columns else plain[name]
        if name in columns and value is None:
            return []
        values[name] = value
    keys = [Key(tuple(values.values()))]
    if searched and searched[0] in columns:
        begins = values | {searched[0]: _plain(definition.parameters[searched[0]], values[searched[0]][:_BEGINNING])}
        keys.append(Key(tuple(begins.values())))
    return keys


def _held(kind: ValueType, value: object) -> Any:
    """What a caller would send to mean this value of a row; a number may be asked for as text."""
    for sent in (value, str(value)):
        try:
            return None if value is None else kind.normalise(sent)
        except Malformed:
            continue
    return None


def _plain(kind: ValueType, example: object) -> Any:
    for value in (example, _ABSENT.get(kind.name)):
        try:
            if value is not None:
                return kind.normalise(value)
        except Malformed:
            continue
    return None


def _absent(kind: ValueType, example: Any) -> Any:
    found = _plain(kind, _ABSENT.get(kind.name))
    return example if found is None else found


def arrays(keys: Sequence[Key]) -> list[list[Any]]:
    """The keys as the batch takes them: one array a parameter."""
    return [list(column) for column in zip(*(key.values for key in keys), strict=True)]
