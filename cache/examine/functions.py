"""Refuses what may answer differently at another moment or hides the tables that it reads: an answer is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import asyncpg

from cache.examine.finding import Finding
from cache.examine.tree import Node

# Only STABLE because output functions of other types, or a locale, could in theory differ between sessions.
_STEADY = frozenset({
    "concat", "concat_ws", "format", "array_to_string", "textanycat", "anytextcat", "to_char", "to_date", "to_number",
    "array_out", "record_out", "enum_out", "enum_in", "date_out", "timestamp_out", "time_out", "to_json", "to_jsonb",
    "row_to_json", "array_to_json",
})  # fmt: skip
_STEADY_JSON = ("json_", "jsonb_")
_CLOCKS = frozenset({"now", "transaction_timestamp", "statement_timestamp", "clock_timestamp", "timeofday", "age"})
# In the order of the server's enum SQLValueFunctionOp.
_KEYWORDS = (
    "CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIME", "CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIME",
    "LOCALTIMESTAMP", "LOCALTIMESTAMP", "CURRENT_ROLE", "CURRENT_USER", "USER", "SESSION_USER", "CURRENT_CATALOG",
    "CURRENT_SCHEMA",
)  # fmt: skip
_KEYWORD_CLOCKS = 9
_MOMENTS = re.compile(r"'\s*(now|today|tomorrow|yesterday|allballs)\s*'", re.IGNORECASE)
_TIME_TYPES = (1082, 1083, 1114, 1184, 1266)
_BY_TIME_ZONE = frozenset({"timestamptz_out", "timestamptz_in", "timetz_out", "timetz_in"})

_USE_TODAY = (
    "differs from one day to the next while an answer is kept: declare a parameter"
    " `today: {type: date, required: false, default: today, ...}` and write :today"
)
_USE_LONDON = (
    "depends on the session's time zone: make it a local time first, as in"
    " `(column at time zone 'Europe/London')::date`; for a date, `column::timestamp`"
)

_FUNCTIONS_SQL = """
select p.oid::int8 as id, p.proname as name, n.nspname as schema, l.lanname as language,
    p.provolatile::text as volatility, p.prosecdef as as_owner,
    pg_catalog.pg_get_function_identity_arguments(p.oid) as arguments,
    exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_proc'::regclass
        and d.objid = p.oid and d.deptype = 'e') as of_extension
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_language l on l.oid = p.prolang
where p.oid = any ($1::oid[])
"""
_OPERATORS_SQL = """
select o.oid::int8 as id, o.oprname as name, o.oprcode::oid::int8 as function
from pg_catalog.pg_operator o where o.oid = any ($1::oid[])
"""
_TYPES_SQL = """
select t.oid::int8 as id, pg_catalog.format_type(t.oid, null) as name,
    t.typinput::oid::int8 as input, t.typoutput::oid::int8 as output
from pg_catalog.pg_type t where t.oid = any ($1::oid[])
"""
_TYPE_FIELDS = (
    "vartype", "consttype", "paramtype", "funcresulttype", "opresulttype", "aggtype", "wintype", "resulttype",
    "casetype", "coalescetype", "type",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Call:
    """A function that the statement calls, under the words in which its author wrote it."""

    function: int
    shown: str
    place: int


async def check_functions(connection: asyncpg.Connection, tree: Node, sql: str) -> list[Finding]:
    """One error for each function that is refused, at its line; `sql` is the statement that the tree was made of."""
    nodes = list(tree.nodes())
    calls = [*_direct(nodes), *await _behind_operators(connection, nodes), *await _behind_casts(connection, nodes)]
    rows = await connection.fetch(_FUNCTIONS_SQL, sorted({call.function for call in calls}))
    known = {row["id"]: row for row in rows}
    findings: dict[str, Finding] = {}
    for call in calls:
        row = known.get(call.function)
        if row is not None and (why := _objection(row)):
            code, message = why
            name = call.shown or f"{row['name']}({row['arguments']})"
            said = f"`{name}` {message}"
            findings.setdefault(said, Finding("error", code, said, line=_line(sql, call.place)))
    for finding in _special(nodes, sql):
        findings.setdefault(finding.message, finding)
    return list(findings.values())


def _direct(nodes: Iterable[Node]) -> Iterator[_Call]:
    for node in nodes:
        for name in ("funcid", "aggfnoid", "winfnoid"):
            if node.number(name):
                yield _Call(node.number(name), "", node.number("location"))


async def _behind_operators(connection: asyncpg.Connection, nodes: Iterable[Node]) -> list[_Call]:
    used = [(node.number("opno"), node.number("location")) for node in nodes if node.number("opno")]
    rows = await connection.fetch(_OPERATORS_SQL, sorted({number for number, _ in used}))
    known = {row["id"]: row for row in rows}
    return [_Call(known[one]["function"], f"operator {known[one]['name']}", at) for one, at in used if one in known]


async def _behind_casts(connection: asyncpg.Connection, nodes: Iterable[Node]) -> list[_Call]:
    """Casts that go by way of text: the one type's output function, then the other's input function."""
    casts = [
        (_type_of(node.fields.get("arg", [])), node.number("resulttype"), node.number("location"))
        for node in nodes
        if node.kind == "COERCEVIAIO"
    ]
    rows = await connection.fetch(_TYPES_SQL, sorted({number for cast in casts for number in cast[:2]}))
    known = {row["id"]: row for row in rows}
    found = []
    for source, target, place in casts:
        if source in known and target in known:
            shown = f"{known[source]['name']} to {known[target]['name']}"
            found.append(_Call(known[source]["output"], shown, place))
            found.append(_Call(known[target]["input"], shown, place))
    return found


def _type_of(argument: list[object]) -> int:
    node = argument[0] if argument and isinstance(argument[0], Node) else None
    return next((node.number(name) for name in _TYPE_FIELDS if node is not None and node.number(name)), 0)


def _objection(row: Mapping[str, object]) -> tuple[str, str] | None:
    """Why this function is refused: a code and what follows its name."""
    name, arguments = str(row["name"]), str(row["arguments"])
    built_in = row["schema"] == "pg_catalog"
    if not built_in and not (row["of_extension"] and row["language"] in ("c", "internal")):
        owner = " with its owner's rights" if row["as_owner"] else ""
        return "hidden_tables", (
            f"is a function of the schema {row['schema']}, written in {row['language']} and run{owner} out of sight of"
            " the plan: nobody can say which tables it reads. Write its query in the lookup, or as a view"
        )
    if row["volatility"] == "i":
        return None
    by_zone = "with time zone" in arguments or name in _BY_TIME_ZONE
    steady = name in _STEADY or (name.startswith(_STEADY_JSON) and not name.endswith("_tz"))
    if built_in and steady and not by_zone:
        return None
    if name in _CLOCKS:
        return "volatile", _USE_TODAY
    if by_zone or (name == "timestamptz" and built_in):
        return "volatile", _USE_LONDON
    if name in ("date_in", "timestamp_in", "time_in"):
        return "volatile", (
            "reads a text as a date, which depends on the session and takes words such as 'today': declare the"
            " parameter as `type: date`, or name the pattern with to_date"
        )
    if row["volatility"] == "v":
        return "volatile", "is VOLATILE: it may answer differently each time, while an answer is kept. Take it out"
    return "volatile", (
        "is only STABLE: it may answer differently at another time or in another session, while an answer is kept."
        " Use an IMMUTABLE form of it, or a parameter"
    )


def _special(nodes: Iterable[Node], sql: str) -> Iterator[Finding]:
    """What looks like a function and is none in the catalogue."""
    for node in nodes:
        place = node.number("location")
        if node.kind == "SQLVALUEFUNCTION":
            number = node.number("op")
            name = _KEYWORDS[number] if number < len(_KEYWORDS) else "a keyword function"
            why = _USE_TODAY if number < _KEYWORD_CLOCKS else "is the same for every caller: lookups run as one role"
            yield Finding("error", "volatile", f"`{name}` {why}", line=_line(sql, place))
        elif node.kind == "TABLESAMPLECLAUSE":
            yield Finding("error", "volatile", "`TABLESAMPLE` picks other rows each time. Take it out")
        elif node.kind == "CONST" and node.number("consttype") in _TIME_TYPES and place > 0:
            word = _MOMENTS.match(sql.encode()[place:].decode(errors="replace"))
            if word is not None:
                said = f"`{word[0]}` {_USE_TODAY}"
                yield Finding("error", "volatile", said, line=_line(sql, place))
        elif node.kind == "QUERY" and node.word("hasRowSecurity") == "true":
            yield Finding(
                "warning",
                "row_security",
                "a table is read under row-level security: what the role may see is part of no tag, so a change of a"
                " policy needs a new epoch (`silogate load`)",
            )


def _line(sql: str, place: int) -> int | None:
    """The line of a place in the statement; what stands in a view has none."""
    return sql.encode()[:place].count(b"\n") + 1 if place > 0 else None
