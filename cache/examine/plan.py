"""The plan of a statement: which tables it reads, and by which conditions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

_CONDITIONS = ("Filter", "Index Cond", "Recheck Cond", "TID Cond")
_CAST = re.compile(
    r'::(?:"[^"]+"|[a-z_][\w.]*(?: varying| precision| with(?:out)? time zone)?)'
    r"(?:\(\d+(?:,\d+)?\))?(?:\[\])*"
)


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

    def equals(self, column: str, number: int, others: frozenset[int]) -> bool:
        """True if only rows count whose column equals the parameter `$number`, or one of `others` is null."""
        return any(self._holds(condition, column, number, others) for condition in self.conditions)

    def _holds(self, condition: str, column: str, number: int, others: frozenset[int]) -> bool:
        free = {f"${other} IS NULL" for other in others}
        branches = [branch for branch in split(condition, " OR ") if bare(branch) not in free]
        return bool(branches) and all(self._is_equal(branch, column, number) for branch in branches)

    def _is_equal(self, branch: str, column: str, number: int) -> bool:
        # A cast that makes two values one, such as to a whole number, `citext` or `char(8)`, would give a row that the
        # parameter's tag does not stand for. Those of a parameter fail or change nothing.
        name = rf'\(*"?{re.escape(self.alias)}"?\."?{re.escape(column)}"?\)*(?:::(?:text|character varying))?\)*'
        value = rf"\(*\${number}\)*(?:::(?!\S*citext)[a-z][a-z ]*)?\)*"
        return re.fullmatch(rf"{name} = {value}|{value} = {name}", branch.strip()) is not None

    def column_of(self, number: int) -> str | None:
        """The column that the parameter `$number` is compared with, if there is one."""
        for condition in self.conditions:
            if re.search(rf"\${number}\b", condition):
                found = re.search(rf"\b{re.escape(self.alias)}\.(\w+)", condition.replace('"', ""))
                if found is not None:
                    return found[1]
        return None

    def mentions(self, columns: Sequence[str], numbers: Sequence[int]) -> bool:
        """True if the conditions speak of all of these columns and parameters, in whatever way."""
        said = " ".join(condition for condition in self.conditions).replace('"', "")
        words = [*(rf"\b{self.alias}\.{column}\b" for column in columns), *(rf"\${number}\b" for number in numbers)]
        return all(re.search(word, said) for word in words)


@dataclass(frozen=True, slots=True)
class Plan:
    """All scans of a statement, with those of its sub-plans, and the kinds of its nodes."""

    scans: tuple[Scan, ...]
    kinds: frozenset[str]

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


def split(condition: str, word: str) -> list[str]:
    """The parts that the word joins at the outermost level."""
    text = condition.strip()
    while text.startswith("(") and _closes_at(text) == len(text) - 1:
        text = text[1:-1].strip()
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        letter = text[at]
        if letter in "'\"":
            at = text.find(letter, at + 1)
            if at < 0:
                break
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and text.startswith(word, at):
            parts.append(text[start:at])
            start = at + len(word)
            at = start - 1
        at += 1
    return [*parts, text[start:]]


def _closes_at(text: str) -> int:
    """Where the bracket that opens the text is closed."""
    depth, quote = 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return at
    return -1


def bare(condition: str) -> str:
    """The condition without casts, brackets and quotation marks, for comparing it with a simple form."""
    return re.sub(r"[()\"]", "", _CAST.sub("", condition)).strip()
