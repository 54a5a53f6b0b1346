"""One lookup's files: `<name>.yaml` beside its `.sql`, read into a LookupDeclaration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache import grid
from cache.definition import (
    CircleTag,
    IndexTag,
    InvalidLookup,
    LookupDefinition,
    TableTag,
    TagRule,
    check_tags,
    compile_many,
    compile_sql,
)
from cache.normalisers import london_today
from cache.values import VALUE_TYPES, Malformed, Tagger, ValueType
from gateway import lookup_policy
from gateway.declarations import TODAY, GridDeclaration, LookupDeclaration, ParameterDeclaration
from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.durations import Duration

CASES = "cases"
_NAME = r"^[a-z][a-z0-9-]{0,62}$"
_COLUMN = r"^[a-z][a-z0-9_]{0,62}$"
# What the caller names in each place of `grid`, and what the SQL gets in the others.
_ASKED, _MADE = ("latitude", "longitude"), ("easting", "northing")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Parameter(_Strict):
    type: str
    title: str
    example: str | int | float
    required: bool = True
    default: str | int | float | None = None
    minimum: float | None = None
    maximum: float | None = None


class _Grid(_Strict):
    latitude: str
    longitude: str
    easting: Annotated[str, Field(pattern=_COLUMN)]
    northing: Annotated[str, Field(pattern=_COLUMN)]


class _Index(_Strict):
    index: str
    values: Annotated[tuple[str, ...], Field(alias="from", min_length=1)]


class _Circle(_Strict):
    circle: str
    easting: str
    northing: str
    metres: str


class _Lookup(_Strict):
    lookup: Annotated[str, Field(pattern=_NAME)]
    title: str
    silo: str
    parameters: Annotated[dict[Annotated[str, Field(pattern=_COLUMN)], _Parameter], Field(min_length=1)]
    grid: _Grid | None = None
    sql: str
    cases: str | None = None
    shape: Literal["one", "many", "exists"]
    columns: Annotated[tuple[Annotated[str, Field(pattern=_COLUMN)], ...], Field(min_length=1)]
    tags: dict[str, _Index | _Circle | Literal["table"]] = Field(default_factory=dict)
    scope: Annotated[str, Field(pattern=r"^lookups:[a-z0-9-]+$")]
    rate: str = "lookup"
    personal: bool = False
    cache_control: str
    ttl: Duration = 0.0
    soft_ttl: Duration = 0.0
    negative_ttl: Duration | None = None
    stale_for: Duration = 0.0
    max_age: Duration | None = None


def read_lookup(path: Path, tagger: Tagger | None, *, untagged: bool = False) -> LookupDeclaration:
    """Read one lookup over the silo that `tagger` knows (None: no such silo). Raises InvalidDeclaration.

    `untagged` takes one that does not say its tags yet, so that they can be proposed.
    """
    document = read(path)
    declared = document.parse(_Lookup)
    problems = _cross_checks(document, declared, tagger)
    sql = _read_sql(path.parent, declared.sql, ("sql",), document, problems)
    cases_sql = _read_sql(path.parent, declared.cases, ("cases",), document, problems) if declared.cases else ""
    if problems:
        raise InvalidDeclaration(problems)
    parameters = {name: _parameter(document, name, item, problems) for name, item in declared.parameters.items()}
    asked_by = _sql_parameters(document, declared, parameters, problems)
    if problems:
        raise InvalidDeclaration(problems)
    definition = _definition(declared, asked_by, sql)
    _compile(path.parent / declared.sql, definition)
    if definition.tags or not untagged:
        _check_tags(document, definition, tagger)
    cases = None
    if declared.cases is not None:
        cases = replace(definition, silo=CASES, sql=cases_sql, tags={}, ttl_s=0, stale_for_s=0)
        _compile(path.parent / declared.cases, cases)
    return LookupDeclaration(
        definition=definition,
        title=declared.title,
        scope=declared.scope,
        cache_control=declared.cache_control,
        parameters=parameters,
        personal=declared.personal,
        over_cases=declared.silo == CASES,
        cases=cases,
        grid=None if declared.grid is None else GridDeclaration(**declared.grid.model_dump()),
        rate=declared.rate,
    )


def _definition(declared: _Lookup, parameters: Mapping[str, ValueType], sql: str) -> LookupDefinition:
    return LookupDefinition(
        name=declared.lookup,
        silo=declared.silo,
        parameters=parameters,
        sql=sql,
        shape=declared.shape,
        columns=declared.columns,
        tags={table: _tag_rule(rule) for table, rule in declared.tags.items()},
        ttl_s=declared.ttl,
        soft_ttl_s=declared.soft_ttl,
        negative_ttl_s=declared.ttl if declared.negative_ttl is None else declared.negative_ttl,
        stale_for_s=declared.stale_for,
        max_age_s=declared.max_age,
        personal=declared.personal,
    )


def _compile(path: Path, definition: LookupDefinition) -> None:
    try:
        compile_sql(definition)
        compile_many(definition)
    except InvalidLookup as error:
        raise InvalidDeclaration([Problem(path, 1, "", str(error))]) from None


def _check_tags(document: Document, definition: LookupDefinition, tagger: Tagger | None) -> None:
    try:
        if tagger is not None:
            check_tags(definition, tagger)
    except InvalidLookup as error:
        raise InvalidDeclaration([document.problem(("tags",), str(error))]) from None


def _read_sql(folder: Path, name: str, at: tuple[str, ...], document: Document, problems: list[Problem]) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        problems.append(document.problem(at, f"names {name}, which is not there or not UTF-8 text"))
        return ""


def _cross_checks(document: Document, declared: _Lookup, tagger: Tagger | None) -> list[Problem]:
    """What no single field can know: names that must match the silo, the parameters or the file."""
    problems = []
    over_cases = declared.silo == CASES
    if declared.lookup != document.path.stem:
        problems.append(document.problem(("lookup",), f"must be the file's name, {document.path.stem}"))
    if declared.scope != f"lookups:{declared.lookup}":
        problems.append(document.problem(("scope",), f"must be lookups:{declared.lookup}"))
    problems += [
        document.problem(at, message)
        for at, message in lookup_policy.faults(
            declared, cached=not over_cases, with_cases=over_cases or declared.cases is not None
        )
    ]
    if over_cases:
        if declared.tags:
            problems.append(document.problem(("tags",), "a lookup over cases is never cached: it has no tags"))
        if declared.cases is not None:
            problems.append(document.problem(("cases",), "is for a lookup over a silo; this one is over cases already"))
    elif tagger is None:
        problems.append(document.problem(("silo",), f"names {declared.silo}, which no silo folder declares"))
    return problems


def _tag_rule(rule: _Index | _Circle | str) -> TagRule:
    if isinstance(rule, _Index):
        return IndexTag(rule.index, rule.values)
    if isinstance(rule, _Circle):
        return CircleTag(rule.circle, rule.easting, rule.northing, rule.metres)
    return TableTag()


def _sql_parameters(
    document: Document, declared: _Lookup, parameters: Mapping[str, ParameterDeclaration], problems: list[Problem]
) -> dict[str, ValueType]:
    """The SQL's parameters: the caller's, but for a point in degrees, which the SQL has as easting and northing."""
    kinds = {name: parameter.type for name, parameter in parameters.items()}
    if declared.grid is None:
        return kinds
    named = declared.grid.model_dump()
    for place in _ASKED:
        parameter = parameters.get(named[place])
        if parameter is None or parameter.type.name != place or not parameter.required:
            problems.append(document.problem(("grid", place), f"must name a required parameter of type {place}"))
    problems += [
        document.problem(("grid", place), "must be a name of its own, for the SQL")
        for place in _MADE
        if named[place] in kinds or named["easting"] == named["northing"]
    ]
    if not problems:
        grid.prepare()
    kept = {name: kind for name, kind in kinds.items() if name not in (named["latitude"], named["longitude"])}
    return {named[place]: VALUE_TYPES[place] for place in _MADE} | kept


def _parameter(document: Document, name: str, item: _Parameter, problems: list[Problem]) -> ParameterDeclaration:
    def wrong(field: str, message: str) -> None:
        problems.append(document.problem(("parameters", name, field), message))

    known = VALUE_TYPES.get(item.type)
    if known is None:
        wrong("type", f"is not a type; there are: {', '.join(sorted(VALUE_TYPES))}")
        known = VALUE_TYPES["text"]
    if known.postgres_type not in ("int8", "float8", "text"):
        for field in ("minimum", "maximum"):
            if getattr(item, field) is not None:
                wrong(field, f"a {known.name} has no limit of this kind")
    if item.default is not None and item.required:
        wrong("default", "is never used: the parameter is required")
    kind = _bounded(known, item.minimum, item.maximum)
    default = london_today() if item.default == TODAY and known.name == "date" else item.default
    for field, value in (("example", item.example), ("default", default)):
        try:
            if value is not None:
                kind.normalise(value)
        except Malformed as error:
            wrong(field, str(error))
    return ParameterDeclaration(
        type=kind, required=item.required, example=item.example, title=item.title, default=item.default
    )


def _bounded(kind: ValueType, minimum: float | None, maximum: float | None) -> ValueType:
    """The type with limits: of a number its value, of a text its characters in their normal form."""
    if minimum is None and maximum is None:
        return kind
    is_text = kind.postgres_type == "text"
    unit = " characters" if is_text else ""

    def bounded(value: object) -> Any:
        found = kind.normalise(value)
        size = len(found) if is_text else found
        if minimum is not None and size < minimum:
            raise Malformed(f"malformed_{kind.name}", f"is less than {minimum:.15g}{unit}")
        if maximum is not None and size > maximum:
            raise Malformed(f"malformed_{kind.name}", f"is more than {maximum:.15g}{unit}")
        return found

    limits = {"minLength" if is_text else "minimum": minimum, "maxLength" if is_text else "maximum": maximum}
    said = {name: int(limit) if is_text else limit for name, limit in limits.items() if limit is not None}
    return replace(kind, normalise=bounded, json_schema={**kind.json_schema, **said})
