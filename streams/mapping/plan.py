"""Checks each row of a field table against the case type and the recipient's columns, and plans how to fill it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streams.cases.casetype import CaseType
from streams.mapping.columns import Column
from streams.mapping.convert import BadConversion, Grid, Step, grid_of, pattern_of, step
from streams.mapping.declaration import FieldDeclaration, Kind, RecipientDeclaration
from streams.mapping.limits import Limit, default_of, fit_mistakes
from streams.mapping.reverse import Place, StatusTables, shown
from streams.mapping.sources import Source, UnknownSource, resolve

_KIND_OF: Mapping[type, str] = {str: "text", int: "integer", float: "number", bool: "boolean"}
_PARSED = {"date-time": "timestamp", "date": "date"}


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """How one column gets its value; everything in it has been checked."""

    to: str
    kind: Kind
    sources: tuple[Source, ...]
    grid: Grid | None
    steps: tuple[Step, ...]
    table: Mapping[Any, Any] | None
    limit: Limit
    default: Any
    required: bool
    remote: bool
    pii: bool
    on_error: str


class _Wrong(Exception):
    """One mistake, at a place inside the row: the rest of this row cannot be judged."""

    def __init__(self, at: str, message: str) -> None:
        super().__init__(message)
        self.at = at


def plan_fields(
    declaration: RecipientDeclaration, case_type: CaseType, columns: Mapping[str, Column] | None
) -> tuple[list[FieldPlan], list[Place]]:
    """A plan a row, in the declared order, and every mistake with its place."""
    plans: list[FieldPlan] = []
    mistakes: list[Place] = []
    taken = _own_columns(declaration)
    for index, field in enumerate(declaration.fields):
        if field.to in taken:
            mistakes.append((("fields", index, "to"), f"{field.to!r} is already filled by {taken[field.to]}"))
        taken.setdefault(field.to, "another row of the field table")
        try:
            plan = _plan(field, case_type, columns)
        except _Wrong as wrong:
            mistakes.append((("fields", index, wrong.at), str(wrong)))
            continue
        column = None if columns is None else columns.get(field.to)
        mistakes.extend((("fields", index, at), message) for at, message in _mistakes(field, plan, column))
        plans.append(plan)
    return plans, mistakes


def plan_status(tables: StatusTables, case_type: CaseType, column: Column | None) -> FieldPlan:
    """The status column is one more row: our status through the forward table."""
    example = next(iter(tables.out.values()))
    return FieldPlan(
        to=tables.column,
        kind="integer" if isinstance(example, int) else "text",
        sources=(resolve("status", case_type),),
        grid=None,
        steps=(),
        table=tables.out,
        limit=Limit.of(None, None, None, column),
        default=None,
        required=True,
        remote=tables.remote,
        pii=False,
        on_error="park",
    )


def _own_columns(declaration: RecipientDeclaration) -> dict[str, str]:
    columns = declaration.columns
    taken = {columns.key: "columns.key", columns.version: "columns.version", columns.id: "columns.id"}
    if columns.modified is not None:
        taken[columns.modified] = "columns.modified"
    if declaration.status is not None:
        taken[declaration.status.column] = "status"
    return taken


def _plan(field: FieldDeclaration, case_type: CaseType, columns: Mapping[str, Column] | None) -> FieldPlan:
    sources = _sources(field, case_type)
    kind, grid = _origin(field, sources)
    steps, kind = _steps(field, kind)
    if field.table is not None:
        kind = _tabled(field, kind, sources, steps)
    steps, kind = _dated(field, kind, sources, steps)
    if kind == "integer" and field.type == "number":
        kind = "number"
    if kind != field.type:
        raise _Wrong("type", f"the column gets {field.type}, and the value is {kind}: name a conversion")
    column = None if columns is None else columns.get(field.to)
    if columns is not None and column is None:
        raise _Wrong("to", f"the recipient's table has no column {field.to!r}")
    try:
        default = default_of(field)
    except ValueError as error:
        raise _Wrong("default", str(error)) from None
    return FieldPlan(
        to=field.to,
        kind=field.type,
        sources=sources,
        grid=grid,
        steps=steps,
        table=field.table,
        limit=Limit.of(field.max_chars, field.max_bytes, field.charset, column),
        default=default,
        required=field.required,
        remote=field.owner == "remote",
        pii=field.pii,
        on_error=field.on_error,
    )


def _sources(field: FieldDeclaration, case_type: CaseType) -> tuple[Source, ...]:
    try:
        sources = tuple(resolve(path, case_type) for path in field.sources)
    except UnknownSource as error:
        raise _Wrong("from", str(error)) from None
    if not sources and (field.default is None or field.convert or field.table is not None or field.required):
        raise _Wrong("from", "is missing: without it a field is only a constant in default")
    for source in sources:
        if source.personal and not field.pii:
            raise _Wrong("from", f"{source.path} is personal in the case type: say pii: true to send it")
    return sources


def _origin(field: FieldDeclaration, sources: tuple[Source, ...]) -> tuple[str, Grid | None]:
    """The kind of value the sources give together."""
    kinds = [source.kind for source in sources]
    if field.grid is not None:
        if len(kinds) != 2 or not set(kinds) <= {"number", "integer"}:
            raise _Wrong("grid", "needs from: [easting, northing], two numbers")
        return "number", grid_of(field.grid)
    if not kinds:
        return field.type, None
    if len(kinds) == 1:
        return kinds[0], None
    if set(kinds) != {"text"}:
        raise _Wrong("from", "several sources are either a grid's easting and northing, or texts to join")
    return "text[]", None


def _steps(field: FieldDeclaration, kind: str) -> tuple[tuple[Step, ...], str]:
    steps: list[Step] = []
    for declared in field.convert:
        try:
            made = step(declared, kind)
        except BadConversion as error:
            raise _Wrong("convert", str(error)) from None
        steps.append(made)
        kind = made.gives
    return tuple(steps), kind


def _tabled(field: FieldDeclaration, kind: str, sources: tuple[Source, ...], steps: tuple[Step, ...]) -> str:
    table = field.table or {}
    for code in table:
        if _KIND_OF.get(type(code)) != kind:
            raise _Wrong("table", f"the key {shown(code)} is not {kind}, as the value is")
    enum = sources[0].enum if len(sources) == 1 and not steps else None
    missing = [shown(code) for code in enum or () if code is not None and code not in table]
    if missing and field.on_error in {"park", "fail"}:
        raise _Wrong("table", f"has no entry for {', '.join(missing)}, which the case type allows")
    given = {_KIND_OF.get(type(value), "null") for value in table.values() if value is not None}
    if len(given) != 1:
        raise _Wrong("table", "gives values of one kind: all texts, all whole numbers, all numbers or all truth values")
    return given.pop()


def _dated(
    field: FieldDeclaration, kind: str, sources: tuple[Source, ...], steps: tuple[Step, ...]
) -> tuple[tuple[Step, ...], str]:
    """Adds the reading of a text that the schema says is a date or a time, and the writing by a pattern."""
    wanted = field.type in {"date", "timestamp"} or field.date is not None
    if kind == "text" and wanted and not steps and len(sources) == 1 and sources[0].format in _PARSED:
        steps, kind = (step(_PARSED[sources[0].format], kind),), _PARSED[sources[0].format]
    if kind == "timestamp" and field.type == "date":
        steps, kind = (*steps, step("date", kind)), "date"
    if field.date is None:
        return steps, kind
    if kind not in {"date", "timestamp", "local_timestamp"}:
        raise _Wrong("date", f"writes a date or a time, and this is {kind}")
    try:
        return (*steps, Step("pattern", "text", pattern_of(field.date))), "text"
    except BadConversion as error:
        raise _Wrong("date", str(error)) from None


def _mistakes(field: FieldDeclaration, plan: FieldPlan, column: Column | None) -> Iterator[tuple[str, str]]:
    if field.required and field.default is not None and field.on_error != "default":
        yield "default", "and required exclude one another"
    if field.required and field.on_error == "null":
        yield "on_error", "null and required exclude one another"
    if field.on_error == "default" and field.default is None:
        yield "on_error", "is default, and there is no default"
    if field.type != "text" and (field.max_chars or field.max_bytes or field.charset):
        yield "type", "only a text has a length or a charset"
    yield from fit_mistakes(field, plan.default, column)
