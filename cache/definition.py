"""A declared lookup, and its SQL compiled to the forms in which it runs."""
# ruff: noqa: S608 - what is put into SQL here is the lookup's own text, its type names and quoted column names

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cache.gathered import gathered_sql
from cache.values import Tagger, ValueType

# The longest that any entry lives, ttl and stale_for together. Tags are kept for twice as long, by every process alike,
# so a lookup may not ask for more: a tag must never be forgotten while it still guards an entry.
LONGEST_LIFE_S = 8 * 24 * 3600.0
# An answer with more rows is refused, not cut: a form that needs it wants a narrower question.
MOST_ROWS = 1000
# A parameter :street of type `prefix` has :street_below beside it, the end of what begins with it.
BELOW = "_below"


class InvalidLookup(ValueError):
    """A lookup that cannot be run; the message says what to mend."""


@dataclass(frozen=True, slots=True)
class TableTag:
    """Any change to the table may change the answer."""


@dataclass(frozen=True, slots=True)
class IndexTag:
    """Only rows whose index holds the values of these parameters can change the answer."""

    index: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CircleTag:
    """Only rows within `metres` of the point can change the answer; each field but `index` names a parameter."""

    index: str
    easting: str
    northing: str
    metres: str


TagRule = TableTag | IndexTag | CircleTag


@dataclass(frozen=True)
class LookupDefinition:
    """One declared question: what is asked, in which shape it is answered, and for how long an answer may be kept.

    `sql` names its parameters `:like_this`. One of type `prefix` is asked as a range of the code points in which `name`
    columns are kept: `street collate "C" >= :street and street collate "C" < :street_below`. `tags` says for each table
    that it reads which changes touch the answer. Past `soft_ttl_s` an entry is renewed in the background, past `ttl_s`
    it is served only, for `stale_for_s` more, while the silo cannot be asked. `max_age_s` None means the silo's.
    """

    name: str
    silo: str
    parameters: Mapping[str, ValueType]
    sql: str
    shape: Literal["one", "many", "exists"]
    columns: tuple[str, ...]
    tags: Mapping[str, TagRule]
    ttl_s: float
    soft_ttl_s: float
    negative_ttl_s: float
    stale_for_s: float
    max_age_s: float | None
    personal: bool

    @cached_property
    def hash(self) -> str:
        """Changes whenever the answer to the same parameters could: part of every entry's key."""
        made = [
            self.name,
            self.silo,
            {name: [kind.name, kind.postgres_type] for name, kind in self.parameters.items()},
            self.sql,
            self.shape,
            self.columns,
            {table: [type(rule).__name__, repr(rule)] for table, rule in self.tags.items()},
        ]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]


def compile_sql(definition: LookupDefinition) -> tuple[str, str]:
    """The lookup's SQL with `$n` for one question, and the statement that answers many in one snapshot.

    The second takes one array a parameter, in the declared order, and returns one row (`cache.gathered`), with a JSON
    array a question and the position of the silo that all of them were read at.
    """
    plain, batched = _compiled(definition)
    # `progress` is joined outside: what stands before a lateral query could be taken for a column of the lookup's own.
    answers = f"""select sg_key.sg_ord as ord, sg_answer.body, sg_answer.n
from {_keys(definition)}
cross join lateral ({_answer(definition, batched)}) as sg_answer"""
    return plain, gathered_sql(answers)


def compile_one(definition: LookupDefinition) -> str:
    """The statement that answers one question at a silo, for a lookup that is slow or wrong in a batch. Its columns are
    `body`, `n` and the position; its parameters are `$1`, `$2`, … in the declared order.
    """
    plain, _ = _compiled(definition)
    return f"""select convert_to(sg_answer.body, 'UTF8') as body, sg_answer.n,
    sg_progress.epoch, sg_progress.seq, sg_progress.id, sg_progress.definition, sg_progress.applied_at,
    statement_timestamp() as now
from ({_answer(definition, plain)}) as sg_answer
cross join progress as sg_progress"""


def compile_many(definition: LookupDefinition) -> str:
    """The statement that answers many questions outside any silo: a row each, `ord`, `body`, `n` and `now`.

    It takes one array a parameter, in the declared order.
    """
    _, batched = _compiled(definition)
    return f"""select sg_key.sg_ord as ord, sg_answer.body, sg_answer.n, statement_timestamp() as now
from {_keys(definition)}
cross join lateral ({_answer(definition, batched)}) as sg_answer"""


def check_tags(definition: LookupDefinition, tagger: Tagger) -> None:
    """Raise InvalidLookup unless each tag rule names an index of the silo and parameters of that index's types."""
    if definition.silo != tagger.silo:
        raise InvalidLookup(f"{definition.name} asks the silo {definition.silo}, not {tagger.silo}")
    if not definition.tags:
        raise InvalidLookup(f"{definition.name} does not say which changes touch its answers")
    for table, rule in definition.tags.items():
        if wrong := _fault(definition, tagger, table, rule):
            raise InvalidLookup(f"{definition.name}: {wrong}")


def _fault(definition: LookupDefinition, tagger: Tagger, table: str, rule: TagRule) -> str | None:
    if table not in tagger.indexes:
        return f"{table} is not a table of the silo {tagger.silo}"
    if isinstance(rule, TableTag):
        return None
    index = tagger.indexes[table].get(rule.index)
    if index is None:
        return f"{table} has no index {rule.index}"
    if (index.kind == "tile") != isinstance(rule, CircleTag):
        return f"the index {rule.index} is of kind {index.kind}"
    used, wanted = rule_parameters(rule), index.types
    if isinstance(rule, CircleTag):
        wanted = ("easting", "northing", "metres")
    if unknown := [name for name in used if name not in definition.parameters]:
        return f"{unknown[0]} is not a parameter"
    # A value normalised in two ways gives two tags, and a change would then not be seen.
    given = tuple(definition.parameters[name].name for name in used)
    if given != wanted and not (index.kind == "name" and wanted == ("name",) and given == ("prefix",)):
        return f"the index {rule.index} takes parameters of type {', '.join(wanted)}"
    return None


def rule_parameters(rule: IndexTag | CircleTag) -> tuple[str, ...]:
    """The parameters that the rule makes its tags from."""
    return (rule.easting, rule.northing, rule.metres) if isinstance(rule, CircleTag) else rule.parameters


def _keys(definition: LookupDefinition) -> str:
    """The questions of a batch as a table, out of one array a parameter."""
    arrays = ", ".join(f"${n}::{kind.postgres_type}[]" for n, kind in enumerate(definition.parameters.values(), 1))
    columns = ", ".join(f"sg{n}" for n in range(1, len(definition.parameters) + 1))
    return f"unnest({arrays}) with ordinality as sg_key({columns}, sg_ord)"


def _answer(definition: LookupDefinition, sql: str) -> str:
    if definition.shape == "exists":
        return f"""
    select case when exists (\n{sql}\n) then '[{{"exists":true}}]' else '[]' end as body, 1 as n
"""
    columns = ", ".join(quoted(name) for name in definition.columns) or "*"
    most = 1 if definition.shape == "one" else MOST_ROWS + 1
    return f"""
    select coalesce(json_agg(row_to_json(sg_row)), '[]')::text as body, count(*) as n
    from (select {columns} from (\n{sql}\n) as sg_plain limit {most}) as sg_row
"""


def quoted(name: str) -> str:
    """The name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _compiled(definition: LookupDefinition) -> tuple[str, str]:
    """The SQL twice: with `$n` for its parameters, and with the columns of the batch's key."""
    if not definition.parameters:
        raise InvalidLookup("a lookup has at least one parameter")
    if definition.ttl_s + definition.stale_for_s > LONGEST_LIFE_S:
        raise InvalidLookup(f"ttl and stale_for are together longer than {LONGEST_LIFE_S / 86400:g} days")
    numbers = {name: n for n, name in enumerate(definition.parameters, 1)}
    kinds = definition.parameters
    ends = {name + BELOW: name for name, kind in kinds.items() if kind.name == "prefix"}
    used: set[str] = set()

    def put(name: str, value: Callable[[int, str], str]) -> str:
        own = ends.get(name, name) if name not in numbers else name
        if own not in numbers:
            raise InvalidLookup(f":{name} is not a parameter; there are {', '.join((*numbers, *ends))}")
        used.add(name)
        said = value(numbers[own], kinds[own].postgres_type)
        # No value has the last code point, so exactly what begins with this one sorts before it with that one added.
        return said if own == name else f"({said} || U&'\\+10FFFF')"

    pieces = list(_pieces(definition.sql))
    _refuse_other_statements(pieces)
    plain = _filled(pieces, lambda name: put(name, lambda n, kind: f"(${n}::{kind})"))
    batched = _filled(pieces, lambda name: put(name, lambda n, _: f"sg_key.sg{n}"))
    if unused := sorted(set(numbers) - used):
        raise InvalidLookup(f"the SQL does not use the parameter {', '.join(unused)}")
    return plain, batched


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: str
    text: str


def _filled(pieces: list[_Piece], put: Callable[[str], str]) -> str:
    return "".join(put(piece.text[1:]) if piece.kind == "parameter" else piece.text for piece in pieces)


_PIECE = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<block>/\*)
  | (?P<literal>[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*")
  | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
  | (?P<position>\$\d+)
  | (?P<cast>::)
  | (?P<parameter>:[^\W\d]\w*)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<semicolon>;)
  | (?P<open>[(\[])
  | (?P<close>[)\]])
  | (?P<other>[^'"])
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/\*|\*/")
_WRITES = frozenset({"insert", "update", "delete", "merge", "truncate", "into"})


def _pieces(sql: str) -> Iterator[_Piece]:
    """The SQL in pieces, told apart as Postgres does: what is quoted or a comment is never looked into."""
    at = 0
    while at < len(sql):
        found = _PIECE.match(sql, at)
        if found is None or found.lastgroup is None:
            raise InvalidLookup("a quotation mark is not closed")
        kind, end = found.lastgroup, found.end()
        if kind == "block":
            kind, end = "space", _block_end(sql, at)
        elif kind == "dollar":
            end = sql.find(found[0], end) + len(found[0])
            if end < found.end():
                raise InvalidLookup(f"{found[0]} is not closed")
            kind = "literal"
        yield _Piece(kind, sql[at:end])
        at = end


def _block_end(sql: str, at: int) -> int:
    depth = 0
    for mark in _BLOCK.finditer(sql, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise InvalidLookup("a comment is not closed")


def _refuse_other_statements(pieces: list[_Piece]) -> None:
    """One SELECT or WITH, whole in itself; a final semicolon is taken away."""
    said = [piece for piece in pieces if piece.kind != "space"]
    if not said or said[0].text.lower() not in {"select", "with"}:
        raise InvalidLookup("a lookup is one SELECT or WITH")
    depth = 0
    for place, piece in enumerate(said):
        match piece.kind:
            case "open":
                depth += 1
            case "close":
                depth -= 1
            case "semicolon" if place + 1 < len(said):
                raise InvalidLookup("a lookup is one statement; there is something after the semicolon")
            case "position":
                raise InvalidLookup("parameters are named :like_this, not numbered")
            case "word" if piece.text.lower() in _WRITES:
                raise InvalidLookup(f"a lookup only reads; {piece.text} is refused (quote it if it is a column's name)")
            case _:
                pass
        if depth < 0:
            raise InvalidLookup("a bracket is closed that was never opened")
    if depth:
        raise InvalidLookup("a bracket is not closed")
    pieces[:] = [piece for piece in pieces if piece.kind != "semicolon"]
