"""The rules of a table, compiled for one header: a row of text in, a row of values or the reasons against it out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.silos.declaration import Grid, Join, Rule, Table
from streams.silos.errors import SchemaDrift
from streams.silos.grid import read_point
from streams.silos.values import ValueTypes

_BROKEN = re.compile("[\ud800-\udfff]")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a row is refused; `value` is what stands in the source, which is not shown if it is personal."""

    heading: str
    value: str
    reason: str
    personal: bool


@dataclass(slots=True)
class Reading:
    """A row as its rules read it.

    `values` has every column that could be read, also when the row is refused: they say what the row puts in doubt.
    `unread` names the columns that could not.
    """

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    def take(self, column: str, outcome: _Outcome) -> None:
        if outcome.fault is not None:
            self.faults.append(outcome.fault)
        if outcome.readable:
            self.values[column] = outcome.value
        else:
            self.unread.add(column)


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    fault: Fault | None = None
    readable: bool = True


class TableRules:
    """The rules of one table over one header; raises SchemaDrift when the header lacks what the rules read."""

    def __init__(self, table: Table, header: Sequence[str], types: ValueTypes, *, encoding: str, where: str) -> None:
        self._table = table
        self._places = {heading: place for place, heading in enumerate(header) if heading}
        self._require(table, where)
        self._columns = [
            (name, column.source, self._rule(column.headings, column, types, encoding, is_key=name in table.key))
            for name, column in table.columns.items()
        ]
        self._checks = [
            (name, self._rule((name,), rule, types, encoding, is_key=False)) for name, rule in table.checks.items()
        ]

    def read(self, cells: Sequence[str]) -> Reading:
        """Read one row that is as wide as the header."""
        reading = Reading()
        points = self._point(self._table.grid, cells, reading) if self._table.grid is not None else {}
        for name, source, rule in self._columns:
            raw = self._raw(source, cells)
            reading.take(name, rule.read(raw, points.get(name, raw)))
        for heading, rule in self._checks:
            raw = self._raw(heading, cells)
            if (fault := rule.read(raw, raw).fault) is not None:
                reading.faults.append(fault)
        return reading

    def _rule(
        self, headings: Sequence[str], rule: Rule, types: ValueTypes, encoding: str, *, is_key: bool
    ) -> _ValueRule:
        shown = " + ".join(dict.fromkeys(headings))
        personal = self._is_personal(*headings)
        return _ValueRule(rule, types, encoding, heading=shown, personal=personal, required=rule.required or is_key)

    def _is_personal(self, *headings: str) -> bool:
        return not self._table.personal_headings.isdisjoint(headings)

    def _require(self, table: Table, where: str) -> None:
        wanted = {heading for column in table.columns.values() for heading in column.headings} | set(table.checks)
        if table.grid is not None:
            wanted.add(table.grid.system)
        if missing := sorted(wanted - set(self._places)):
            unknown = sorted(set(self._places) - wanted)
            others = f"; it has {', '.join(unknown)}, which silo.yaml does not name" if unknown else ""
            raise SchemaDrift(f"{where} has no column {', '.join(missing)}{others}")

    def _raw(self, source: str | Join, cells: Sequence[str]) -> str:
        if isinstance(source, str):
            return cells[self._places[source]].strip()
        return source.by.join(part for each in source.join if (part := self._raw(each, cells)))

    def _point(self, grid: Grid, cells: Sequence[str], reading: Reading) -> dict[str, object]:
        x_heading, y_heading = (self._table.columns[name].headings[0] for name in (grid.easting, grid.northing))
        x, y, system = (self._raw(heading, cells) for heading in (x_heading, y_heading, grid.system))
        wrong = [(heading, text) for heading, text in ((x_heading, x), (y_heading, y)) if not _DECIMAL.fullmatch(text)]
        if wrong:
            # an empty one is judged by the rule of its column, but for one that stands beside a number
            if len(wrong) == 1 and not wrong[0][1]:
                reading.faults += self._half_a_point(grid, wrong[0][0])
            reading.faults += [
                Fault(heading, text, "is not a number", self._is_personal(heading)) for heading, text in wrong if text
            ]
            return {grid.easting: None, grid.northing: None}
        point = read_point(float(x), float(y), system, grid.default)
        if point.wrong is not None:
            heading, value = (grid.system, system) if point.wrong_at == "system" else (x_heading, x)
            reading.faults.append(Fault(heading, value, point.wrong, self._is_personal(heading)))
        return {grid.easting: point.easting, grid.northing: point.northing}

    def _half_a_point(self, grid: Grid, empty: str) -> list[Fault]:
        columns = [self._table.columns[name] for name in (grid.easting, grid.northing)]
        if any(column.required for column in columns if column.headings[0] == empty):
            return []  # its own rule says so already
        return [Fault(empty, "", "is empty, though the other coordinate is there", self._is_personal(empty))]


class _ValueRule:
    """One column's rule. What it refuses it still tries to read, for the tags of what the row puts in doubt."""

    def __init__(
        self, rule: Rule, types: ValueTypes, encoding: str, *, heading: str, personal: bool, required: bool
    ) -> None:
        self._rule = rule
        self._types = types
        self._encoding = encoding
        self._heading = heading
        self._personal = personal
        self._required = required
        self._pattern = re.compile(rule.pattern) if rule.pattern is not None else None
        self._mismatch = f"must {rule.must or 'match the pattern in silo.yaml'}"
        self._one_of = {" ".join(each.casefold().split()): each for each in rule.one_of or ()}
        # What such a rule refuses is not the value that would have been stored, so nobody can say what was meant.
        self._rewrites = bool(self._one_of) or (self._pattern is not None and "value" in self._pattern.groupindex)

    def read(self, raw: str, value: object) -> _Outcome:
        """`raw` is the text of the source; `value` what goes on, which for a point is already a number, or None."""
        if _BROKEN.search(raw):
            return self._refused(raw, f"has bytes that are not {self._encoding} text")
        if "\x00" in raw:
            return self._refused(raw, "has a NUL character")
        if not raw:
            if self._rule.default is None:
                return self._refused(raw, "is empty, and it is required") if self._required else _Outcome()
            raw = value = self._rule.default
        if value is None:
            return _Outcome(readable=False)  # the point was refused already
        reason = None
        if isinstance(value, str):
            value, reason = self._shape(value)
        try:
            found = self._types.read(self._rule.type, value)
        except ValueError as error:
            return self._refused(raw, reason or str(error) or "cannot be read")
        if reason is None:
            return _Outcome(found)
        return _Outcome(found, self._fault(raw, reason), readable=not self._rewrites)

    def _refused(self, raw: str, reason: str) -> _Outcome:
        return _Outcome(fault=self._fault(raw, reason), readable=False)

    def _fault(self, raw: str, reason: str) -> Fault:
        return Fault(self._heading, raw, reason, self._personal)

    def _shape(self, text: str) -> tuple[str, str | None]:
        if self._pattern is not None:
            match = self._pattern.fullmatch(text)
            if match is None:
                return text, self._mismatch
            text = match.groupdict().get("value") or text
        if self._one_of:
            found = self._one_of.get(" ".join(text.casefold().split()))
            if found is None:
                return text, f"is not one of: {', '.join(self._one_of.values())}"
            text = found
        return text, None


def index_readable(columns: Sequence[str], reading: Reading) -> bool:
    """Whether an index value of a refused row is known, so that only it is in doubt and not the whole table."""
    return not reading.unread.intersection(columns)
