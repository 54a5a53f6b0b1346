"""silo.yaml: what a silo is, where it comes from, and the rules its rows must keep."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr

from streams import declared
from streams.declared import Document, InvalidDeclaration, Location, Problem
from streams.durations import seconds
from streams.silos import names
from streams.silos.values import ValueTypes


class InvalidSilo(InvalidDeclaration):
    """A silo.yaml that cannot be used; `problems` has file, line and field of every mistake."""


@dataclass(frozen=True, slots=True)
class IndexDeclaration:
    """An index as the tag maker wants it: the columns and their value types."""

    name: str
    columns: tuple[str, ...]
    kind: Literal["value", "tile", "name"]
    types: tuple[str, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _encoding(value: object) -> object:
    try:
        # a byte order mark is looked for in any case
        return codecs.lookup(value.removesuffix("-sig")).name if isinstance(value, str) else value
    except LookupError:
        return value


class Rule(_Model):
    """What a value of the source must be.

    In this order: an empty value takes `default`, or is refused if `required`; `pattern` must match all of it, and if
    it has a group named `value` only that part goes on; `one_of` is compared without regard to letter case and stores
    the spelling declared here; `type` reads it. `must` says what the pattern wants, as in "must be a date".
    """

    type: str = "text"
    required: bool = False
    default: StrictStr | None = None
    pattern: StrictStr | None = None
    must: StrictStr | None = None
    one_of: Annotated[tuple[StrictStr, ...], Field(min_length=1)] | None = None


class Join(_Model):
    """Several parts of the source in one value: what is not empty, joined by `by`."""

    join: Annotated[tuple[StrictStr | Join, ...], Field(min_length=1)]
    by: StrictStr = " "

    def headings(self) -> Iterator[str]:
        for part in self.join:
            yield from (part,) if isinstance(part, str) else part.headings()


class Column(Rule):
    """A column of the replica, read from one heading of the source or joined from several."""

    source: StrictStr | Join = Field(alias="from")

    @property
    def headings(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else tuple(self.source.headings())


class Grid(_Model):
    """Two columns that hold a point, whose reference system is said by each row.

    The columns are always stored as OSGB36 easting and northing; a row in WGS84 (longitude, latitude) is converted.
    """

    easting: StrictStr
    northing: StrictStr
    system: StrictStr
    default: Literal["WGS84", "OSGB36"]


class Index(_Model):
    """What lookups may ask by: `value`, `tile` of an easting and a northing, or `name`."""

    columns: Annotated[tuple[StrictStr, ...], Field(min_length=1)]
    kind: Literal["value", "tile", "name"]


class Table(_Model):
    """One table of the replica. `checks` are headings that must be there and keep a rule, but are not stored."""

    path: StrictStr | None = None
    key: Annotated[tuple[StrictStr, ...], Field(min_length=1)]
    columns: Annotated[dict[StrictStr, Column], Field(min_length=1)]
    checks: dict[StrictStr, Rule] = {}
    grid: Grid | None = None
    indexes: dict[StrictStr, Index] = {}
    personal: tuple[StrictStr, ...] = ()

    def types(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.columns[column].type for column in columns)

    @property
    def personal_headings(self) -> frozenset[str]:
        """Headings whose values are never shown: those of personal columns, and personal ones that are not stored."""
        found = {heading for name in self.personal if name in self.columns for heading in self.columns[name].headings}
        return frozenset(found | {name for name in self.personal if name in self.checks})


class CsvSource(_Model):
    """A delimited text file with one row of headings. `path` is relative to the silo's folder of source files."""

    kind: Literal["csv"]
    path: StrictStr
    encoding: Annotated[Literal["utf-8", "utf-16", "cp1252", "iso8859-1"], BeforeValidator(_encoding)] = "utf-8"
    delimiter: Literal[",", ";", "\t", "|"] = ","


class Deletions(_Model):
    """How much of a table one load may remove before it stops and asks."""

    guard_percent: Annotated[float, Field(ge=0, le=100)] = 10.0


class SiloDeclaration(_Model):
    """One silo.yaml, checked in itself (`silogate check` compares it with the source)."""

    silo: StrictStr
    title: StrictStr
    owner: StrictStr
    attribution: StrictStr | None = None
    max_age_s: Annotated[float, BeforeValidator(seconds), Field(gt=0, alias="max_age")]
    source: CsvSource
    tables: Annotated[dict[StrictStr, Table], Field(min_length=1)]
    deletions: Deletions = Deletions()
    rejects: Literal["doubtful", "tolerate"] = "doubtful"

    @classmethod
    def parse(cls, text: str, path: Path, types: ValueTypes | None = None) -> SiloDeclaration:
        """Read a silo.yaml; raises InvalidSilo with every mistake. With `types`, unknown value types are mistakes."""
        try:
            document = declared.read(path, text)
            found = document.parse(cls)
        except InvalidDeclaration as error:
            raise InvalidSilo(error.problems) from None
        if problems := list(_problems(found, document, types)):
            raise InvalidSilo(sorted(problems, key=lambda problem: problem.line))
        return found

    @property
    def schema_name(self) -> str:
        return names.schema_of(self.silo)

    @property
    def rejects_tolerated(self) -> bool:
        return self.rejects == "tolerate"

    def path_of(self, table: str) -> str:
        return self.tables[table].path or self.source.path

    def indexes(self) -> dict[str, tuple[IndexDeclaration, ...]]:
        """The index columns of each table, from which tags are made."""
        return {
            name: tuple(
                IndexDeclaration(index, entry.columns, entry.kind, table.types(entry.columns))
                for index, entry in table.indexes.items()
            )
            for name, table in self.tables.items()
        }


def _problems(silo: SiloDeclaration, document: Document, types: ValueTypes | None) -> Iterator[Problem]:
    if wrong := names.fault(silo.silo, names.LONGEST_TABLE):
        yield document.problem(("silo",), wrong)
    for name, table in silo.tables.items():
        at: Location = ("tables", name)
        if wrong := names.fault(name, names.LONGEST_TABLE):
            yield document.problem(at, wrong)
        if name in names.BOOKKEEPING:
            yield document.problem(at, "is the name of a table that every silo has; choose another")
        for where, message in (*_names(table), *_rules(table, types), *_indexes(table)):
            yield document.problem(at + where, message)


def _names(table: Table) -> Iterator[tuple[Location, str]]:
    for column in table.columns:
        if wrong := names.fault(column):
            yield ("columns", column), wrong
    for place, column in enumerate(table.key):
        if column not in table.columns:
            yield ("key", place), f"{column} is not one of this table's columns"
    for place, column in enumerate(table.personal):
        if column not in table.columns and column not in table.checks:
            yield ("personal", place), f"{column} is not one of this table's columns or checks"
    if table.grid is not None:
        for end, column in (("easting", table.grid.easting), ("northing", table.grid.northing)):
            if column not in table.columns or not isinstance(table.columns[column].source, str):
                yield ("grid", end), f"{column} is not a column read from one heading"


def _rules(table: Table, types: ValueTypes | None) -> Iterator[tuple[Location, str]]:
    named: list[tuple[Location, Rule]] = [(("columns", name), column) for name, column in table.columns.items()]
    named += [(("checks", name), rule) for name, rule in table.checks.items()]
    for at, rule in named:
        if types is not None and rule.type not in types:
            yield (*at, "type"), f"{rule.type!r} is not a value type; there are {', '.join(types.names)}"
        if rule.must is not None and rule.pattern is None:
            yield (*at, "must"), "says what a pattern wants, and there is no pattern"
        try:
            re.compile(rule.pattern or "")
        except re.error as error:
            yield (*at, "pattern"), f"is not a regular expression: {error}"


def _indexes(table: Table) -> Iterator[tuple[Location, str]]:
    for name, index in table.indexes.items():
        at: Location = ("indexes", name)
        if wrong := names.fault(name, names.LONGEST_TABLE):
            yield at, wrong
        unknown = [column for column in index.columns if column not in table.columns]
        for column in unknown:
            yield (*at, "columns"), f"{column} is not one of this table's columns"
        if unknown:
            continue
        kinds = table.types(index.columns)
        if index.kind == "tile" and kinds != ("easting", "northing"):
            yield (*at, "columns"), "a tile is made of one column of type easting and one of type northing"
        if index.kind == "name" and len(index.columns) != 1:
            yield (*at, "columns"), "a name index has one column"
        if "long_text" in kinds:
            yield (*at, "columns"), "a column of type long_text cannot be asked by"
