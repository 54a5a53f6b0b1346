"""What a lookup's SQL does on its silo: its tables, the tags that follow, and whether a batch is right and quick.

The work of `silogate check --database`, and of `serve` in the background: it decides `Group.batched`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from cache.definition import LookupDefinition, compile_sql, quoted
from cache.examine.collations import Collations, collations
from cache.examine.finding import Finding
from cache.examine.functions import check_functions
from cache.examine.indexes import check_indexes, judge_batch
from cache.examine.plan import Plan, explained, explained_for_any
from cache.examine.samples import Key, sampled
from cache.examine.tags import check_tags_of, explained_tags
from cache.examine.tree import Node, relations, rewritten
from cache.examine.trial import Trial, compared
from cache.values import Tagger

__all__ = ["Examined", "Finding", "examine"]

_BOOKKEEPING = frozenset({"progress", "change_log", "load", "reject"})
_RELATIONS_SQL = """
select c.oid::int8 as id, n.nspname as schema, c.relname as name, c.relkind::text as kind
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = any ($1::oid[])
"""
_PREPARED_SQL = "select to_regclass('progress') is not null"
# SQLSTATE classes whose messages name what is in the SQL and never a value: syntax and access rules, schema names.
_ABOUT_SQL = ("42", "3F")


@dataclass(frozen=True, slots=True)
class Examined:
    """The outcome. `tags` says, a sentence a table, which change touches an answer; `plan` is short.

    `batched` is whether many questions may go in one query; `sampled` how many were tried both ways.
    """

    tables: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    batched: bool = True
    plan: str = ""
    findings: tuple[Finding, ...] = ()
    sampled: int = 0

    @property
    def refused(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


async def examine(
    connection: asyncpg.Connection,
    definition: LookupDefinition,
    tagger: Tagger | None,
    *,
    samples: int = 20,
    examples: Mapping[str, object] | None = None,
    optional: frozenset[str] = frozenset(),
    functions: bool = True,
) -> Examined:
    """Examine one lookup; `tagger` None means that it reads the gateway's cases, which are not cached.

    `connection` has the silo's schema as its search path, the lookups' role and a statement time-out; nothing is
    written. `examples` are well-formed values by parameter, `optional` the parameters that may be null. `functions`
    False spares the server's log the statement's tree, and leaves the functions unchecked.

    Raises what the driver does when the connection fails.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _Examination(connection, definition, tagger, examples or {}, optional).run(samples, functions)


class _Examination:
    def __init__(
        self,
        connection: asyncpg.Connection,
        definition: LookupDefinition,
        tagger: Tagger | None,
        examples: Mapping[str, object],
        optional: frozenset[str],
    ) -> None:
        self._connection = connection
        self._definition = definition
        self._tagger = tagger
        self._examples = examples
        self._optional = optional
        self._sql = compile_sql(definition)[0]
        self._findings: list[Finding] = []

    async def run(self, samples: int, functions: bool) -> Examined:
        tags = () if self._tagger is None else tuple(explained_tags(self._definition, self._tagger, self._optional))
        if self._tagger is not None and not await self._connection.fetchval(_PREPARED_SQL):
            self._not_loaded("its tables are not there yet, so the SQL could not even be prepared")
            return self._examined(tags=tags)
        tree = await self._prepared(functions)
        if tree is None:
            return self._examined(tags=tags)
        try:
            general = await explained_for_any(self._connection, self._sql, len(self._definition.parameters))
        except asyncpg.DataError as error:
            # A constant of the SQL itself, as in `1 / 0`.
            self._refused(error)
            return self._examined(tags=tags)
        await self._check_tables(general, tree)
        if self._tagger is not None:
            own = self._own(general, await collations(self._connection, tree))
            self._findings += check_tags_of(self._definition, self._tagger, own)
        tables = tuple(dict.fromkeys(scan.table for scan in general.scans))
        if any(finding.code in ("two_silos", "system_table", "bookkeeping") for finding in self._findings):
            return self._examined(tables=tables, tags=tags, plan=general.shown)
        return await self._tried(general, samples, tables, tags)

    def _examined(self, **found: Any) -> Examined:
        order = {"error": 0, "warning": 1, "note": 2}
        ordered = sorted(self._findings, key=lambda one: (order[one.level], one.line or 0))
        return Examined(findings=tuple(ordered), **found)

    def _say(self, level: Any, code: str, message: str, **where: Any) -> None:
        self._findings.append(Finding(level, code, message, **where))

    def _not_loaded(self, why: str) -> None:
        silo = self._definition.silo
        mend = f"`silogate load {silo}`, then check again"
        self._say("warning", "not_loaded", f"the silo {silo} is not loaded: {why}; {mend}", about="silo")

    # The statement itself

    async def _prepared(self, functions: bool) -> Node | None:
        """The statement's tree (an empty one if it is not wanted); None if Postgres refuses the statement."""
        tree: Node | None = Node()
        try:
            async with self._connection.transaction():
                if functions:
                    tree = await rewritten(self._connection, self._sql)
                statement = await self._connection.prepare(self._sql)
        except asyncpg.PostgresError as error:
            self._refused(error)
            return None
        self._check_columns([attribute.name for attribute in statement.get_attributes()])
        if tree is None:
            self._say(
                "warning",
                "functions_unknown",
                "the server did not send the statement's tree (is there a pooler between?): functions and collations"
                " were not checked",
            )
            return Node()
        if functions:
            self._findings += _of_aggregates(tree)
            # What is never kept may look at the clock.
            if self._tagger is not None:
                self._findings += await check_functions(self._connection, tree, self._sql)
        return tree

    def _refused(self, error: asyncpg.PostgresError) -> None:
        """Postgres' own words, at their line: they name tables, columns and types."""
        place = str(getattr(error, "position", None) or "")
        line = self._sql[: int(place) - 1].count("\n") + 1 if place.isdigit() else None
        state = error.sqlstate or ""
        words = str(error.args[0]) if error.args and state.startswith(_ABOUT_SQL) else type(error).__name__
        for number, (name, kind) in enumerate(self._definition.parameters.items(), 1):
            words = words.replace(f"${number}", f":{name} ({kind.name}, {kind.postgres_type})")
        hint = f" ({error.hint})" if getattr(error, "hint", None) and state.startswith(_ABOUT_SQL) else ""
        self._say("error", "sql", f"Postgres refuses the SQL: {words} (SQLSTATE {state}){hint}", line=line)

    def _check_columns(self, given: list[str]) -> None:
        if self._definition.shape == "exists":
            return
        for name, count in Counter(given).items():
            if count > 1:
                self._say("error", "column_twice", f"the SQL selects two columns named {name}: rename one with `as`")
        for name in self._definition.columns:
            if name not in given:
                near = difflib.get_close_matches(name, given, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(given)}"
                message = f"names {name}, which the SQL does not select{hint}"
                self._say("error", "unknown_column", message, about="columns")

    # Its tables

    def _own(self, plan: Plan, compared_by: Collations) -> Plan:
        schema = f"silo_{self._definition.silo}"
        scans = tuple(scan for scan in plan.scans if scan.schema == schema and scan.table not in _BOOKKEEPING)
        return Plan(scans, plan.kinds, compared_by)

    async def _check_tables(self, plan: Plan, tree: Node) -> None:
        """Every relation is the silo's own: those of the plan, and those the planner found to be without effect."""
        read = {(scan.schema, scan.table) for scan in plan.scans}
        rows = await self._connection.fetch(_RELATIONS_SQL, sorted(relations(tree)))
        read |= {(row["schema"], row["name"]) for row in rows if row["kind"] != "v"}
        silo = self._definition.silo
        own = "gateway" if self._tagger is None else f"silo_{silo}"
        for schema, table in sorted(read):
            if schema == own and not (self._tagger is not None and table in _BOOKKEEPING):
                continue
            if schema == own:
                self._say(
                    "error",
                    "bookkeeping",
                    f"reads {table}, Silogate's own record of the silo, which changes without any tag",
                )
            elif schema.startswith("silo_") and own.startswith("silo_"):
                message = f"reads two silos: {own}, and {schema}.{table}. A change to the other would not be seen"
                self._say("error", "two_silos", f"{message}: ask each silo by a lookup of its own")
            else:
                self._say("error", "system_table", f"reads {schema}.{table}, which is no part of {own}")

    # Its answers

    async def _tried(self, general: Plan, samples: int, tables: tuple[str, ...], tags: tuple[str, ...]) -> Examined:
        connection, definition = self._connection, self._definition
        nothing_to_try = any(finding.code in ("column_twice", "unknown_column") for finding in self._findings)
        if not nothing_to_try and self._tagger is not None and not await self._any_rows(tables):
            self._not_loaded(f"{', '.join(tables)} holds no row; the SQL was prepared but nothing could be compared")
            nothing_to_try = True
        if nothing_to_try:
            return self._examined(tables=tables, tags=tags, plan=general.shown)
        keys = await sampled(
            connection,
            definition,
            self._tagger,
            general,
            examples=self._examples,
            optional=self._optional,
            samples=samples,
        )
        trial = Trial(keys=keys) if self._tagger is None else await compared(connection, definition, keys)
        self._findings += trial.findings
        shown = await self._indexed(general, keys, trial)
        count = 0 if self._tagger is None else len(trial.keys)
        return self._examined(tables=tables, tags=tags, plan=shown, batched=trial.batched, sampled=count)

    async def _indexed(self, general: Plan, keys: Sequence[Key], trial: Trial) -> str:
        """What is read whole, alone and in a batch; returns the plan in words."""
        connection, definition = self._connection, self._definition
        # A plan is also made for what takes too long to be run.
        tried = trial.keys or keys
        try:
            async with connection.transaction():
                findings, single = await check_indexes(connection, definition, general, tried)
                plan = await explained(connection, self._sql, tried[0].values)
        except asyncpg.DataError:
            # Not even planned: said already, as every question failed.
            return general.shown
        self._findings += findings
        if trial.batched and trial.keys and self._tagger is not None:
            self._findings += await judge_batch(connection, definition, single, trial)
        return plan.shown

    async def _any_rows(self, tables: tuple[str, ...]) -> bool:
        for table in tables:
            if await self._connection.fetchval(f"select exists (select from {quoted(table)})"):  # noqa: S608 - quoted
                return True
        return not tables


def _of_aggregates(tree: Node) -> Iterator[Finding]:
    """An aggregate over all rows answers one row also when there is none."""
    grouped = tree.has("groupClause") or tree.has("groupingSets") or tree.has("havingQual")
    if tree.word("hasAggs") == "true" and not grouped:
        yield Finding(
            "error",
            "aggregate",
            "an aggregate without GROUP BY answers a row for every key, also one that is not there, so this lookup can"
            " never say not_found: add `group by` the key, or `having count(*) > 0`",
        )
