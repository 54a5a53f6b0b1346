"""The plan of a statement: which tables it reads, and by which conditions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from cache.examine.collations import Collations
from cache.examine.conditions import beginning, distance, equality, split, tied

_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond", "TID Cond")


@dataclass(frozen=True, slots=True)
class Scan:
    """One place at which the plan reads a table. `conditions` all hold for each row that it gives.

    `narrowed` tells that an index finds the rows, so that not all of them are looked at.
    """

    schema: str
    table: str
    alias: str
    conditions: tuple[str, ...]
    narrowed: bool
    shown: str

    def equals(self, column: str, number: int, postgres_type: str, absent: frozenset[int]) -> bool:
        """True if only rows count whose column equals the parameter `$number`, or one of `absent` is null."""
        return tied(self.conditions, equality(self.alias, column, number, postgres_type), absent)

    def begins(self, column: str, number: int, absent: frozenset[int]) -> bool:
        """True if only rows count whose column begins with the text `$number`, by code points."""
        return tied(self.conditions, beginning(self.alias, column, number), absent)

    def is_near(self, columns: Sequence[str], numbers: Sequence[int], absent: frozenset[int]) -> bool:
        """True if only rows count whose easting and northing are within a circle of easting, northing and metres."""
        return tied(self.conditions, distance(self.alias, columns, numbers), absent)

    def column_of(self, number: int) -> str | None:
        """The column that the parameter `$number` is compared with, if there is one."""
        for condition in self.conditions:
            if re.search(rf"\${number}\b", condition):
                found = re.search(rf"\b{re.escape(self.alias)}\.(\w+)", condition.replace('"', ""))
                if found is not None:
                    return found[1]
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """All scans of a statement, with those of its sub-plans, and the kinds of its nodes.

    A plan does not show by which collation texts are compared; `collations` are those of the statement, if known.
    """

    scans: tuple[Scan, ...]
    kinds: frozenset[str]
    collations: Collations = field(default_factory=Collations)

    @property
    def shown(self) -> str:
        """The scans in a few words; bookkeeping of Silogate's own is left out."""
        return "; ".join(dict.fromkeys(scan.shown for scan in self.scans if scan.table != "progress")) or "no table"

    def of(self, table: str) -> tuple[Scan, ...]:
        return tuple(scan for scan in self.scans if scan.table == table)

    def whole(self) -> tuple[str, ...]:
        """Tables that are read from end to end."""
        return tuple(dict.fromkeys(scan.table for scan in self.scans if not scan.narrowed))


async def explained(connection: asyncpg.Connection, sql: str, values: Sequence[Any]) -> Plan:
    """The plan for these values."""
    return _plan(await connection.fetchval(f"explain (format json, verbose) {sql}", *values))


async def explained_for_any(connection: asyncpg.Connection, sql: str, parameters: int) -> Plan:
    """The plan that serves every value: its conditions name the parameters `$1`, `$2`, …"""
    nulls = ", ".join(["null"] * parameters)
    # Its own name: a statement that cannot be planned outlives the transaction that made it.
    name = f"silogate_{hashlib.sha256(sql.encode()).hexdigest()[:16]}"
    async with connection.transaction():
        await connection.execute(f"set local plan_cache_mode = force_generic_plan; prepare {name} as {sql}")
        text = await connection.fetchval(f"explain (format json, verbose) execute {name}({nulls})")
        await connection.execute(f"deallocate {name}; set local plan_cache_mode = auto")
    return _plan(text)


def _plan(text: str) -> Plan:
    nodes = list(_nodes(json.loads(text)[0]["Plan"]))
    return Plan(
        tuple(_scan(node) for node in nodes if "Relation Name" in node),
        frozenset(str(node["Node Type"]) for node in nodes),
    )


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


def _scan(node: Mapping[str, Any]) -> Scan:
    # A bitmap's index scans stand below it; the sub-plans of a filter do as well, and are other scans.
    nodes = [node, *(inner for inner in _nodes(node) if inner["Node Type"] == "Bitmap Index Scan")]
    narrowed = any("Index Cond" in one or "TID Cond" in one for one in nodes)
    conditions = [split(part, " AND ") for one in nodes[:1] for name in _CONDITIONS if (part := one.get(name))]
    index = next((str(one["Index Name"]) for one in nodes if "Index Name" in one), None)
    table = str(node["Relation Name"])
    how = f"{table} by {index}" if narrowed and index is not None else f"all of {table}"
    return Scan(
        schema=str(node.get("Schema", "")),
        table=table,
        alias=str(node.get("Alias", table)),
        conditions=tuple(part for parts in conditions for part in parts),
        narrowed=narrowed,
        shown=how,
    )
