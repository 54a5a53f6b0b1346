"""One lookup's files: `<name>.yaml` beside its `.sql`, read into a LookupDeclaration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache.definition import (
    CircleTag,
    IndexTag,
    InvalidLookup,
    LookupDefinition,
    TableTag,
    TagRule,
    check_tags,
    compile_sql,
)
from cache.values import VALUE_TYPES, Malformed, Tagger, ValueType
from gateway.declarations import LookupDeclaration, ParameterDeclaration
from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.durations import Duration

CASES = "cases"
_NAME = r"^[a-z][a-z0-9-]{0,62}$"
_COLUMN = r"^[a-z][a-z0-9_]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Parameter(_Strict):
    type: str
    title: str
    example: str | int | float
    required: bool = True
    default: str | int | float | None = None
    maximum: float | None = None


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
    parameters: Annotated[dict[str, _Parameter], Field(min_length=1)]
    sql: str
    shape: Literal["one", "many", "exists"]
    columns: Annotated[tuple[Annotated[str, Field(pattern=_COLUMN)], ...], Field(min_length=1)]
    tags: dict[str, _Index | _Circle | Literal["table"]] = Field(default_factory=dict)
    scope: Annotated[str, Field(pattern=r"^lookups:[a-z0-9-]+$")]
    personal: bool = False
    cache_control: str
    ttl: Duration = 0.0
    soft_ttl: Duration = 0.0
    negative_ttl: Duration = 0.0
    stale_for: Duration = 0.0
    max_age: Duration | None = None


def read_lookup(path: Path, tagger: Tagger | None) -> LookupDeclaration:
    """Read one lookup over the silo that `tagger` knows (None: no such silo). Raises InvalidDeclaration."""
    document = read(path)
    declared = document.parse(_Lookup)
    problems = _cross_checks(document, declared, tagger)
    sql = _read_sql(path.parent / declared.sql, document, problems)
    if problems:
        raise InvalidDeclaration(problems)
    parameters = {name: _parameter(document, name, item, problems) for name, item in declared.parameters.items()}
    if problems:
        raise InvalidDeclaration(problems)
    definition = LookupDefinition(
        name=declared.lookup,
        silo=declared.silo,
        parameters={name: parameter.type for name, parameter in parameters.items()},
        sql=sql,
        shape=declared.shape,
        columns=declared.columns,
        tags={table: _tag_rule(rule) for table, rule in declared.tags.items()},
        ttl_s=declared.ttl,
        soft_ttl_s=declared.soft_ttl,
        negative_ttl_s=declared.negative_ttl,
        stale_for_s=declared.stale_for,
        max_age_s=declared.max_age,
        personal=declared.personal,
    )
    try:
        compile_sql(definition)
    except InvalidLookup as error:
        raise InvalidDeclaration([Problem(path.parent / declared.sql, 1, "", str(error))]) from None
    try:
        if tagger is not None:
            check_tags(definition, tagger)
    except InvalidLookup as error:
        raise InvalidDeclaration([document.problem(("tags",), str(error))]) from None
    return LookupDeclaration(
        definition=definition,
        title=declared.title,
        scope=declared.scope,
        cache_control=declared.cache_control,
        parameters=parameters,
        personal=declared.personal,
        over_cases=declared.silo == CASES,
    )


def _read_sql(path: Path, document: Document, problems: list[Problem]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        problems.append(document.problem(("sql",), f"names {path.name}, which is not there or not UTF-8 text"))
        return ""


def _cross_checks(document: Document, declared: _Lookup, tagger: Tagger | None) -> list[Problem]:
    """What no single field can know: names that must match the silo, the parameters or the file."""
    problems = []
    if declared.lookup != document.path.stem:
        problems.append(document.problem(("lookup",), f"must be the file's name, {document.path.stem}"))
    if declared.scope != f"lookups:{declared.lookup}":
        problems.append(document.problem(("scope",), f"must be lookups:{declared.lookup}"))
    if declared.personal and "no-store" not in declared.cache_control:
        problems.append(document.problem(("cache_control",), "a personal answer needs no-store"))
    if declared.silo == CASES:
        if declared.tags or declared.ttl:
            problems.append(document.problem(("tags",), "a lookup over cases is never cached: no tags and no ttl"))
        return problems
    if tagger is None:
        problems.append(document.problem(("silo",), f"names {declared.silo}, which no silo folder declares"))
        return problems
    if not 0 < declared.soft_ttl <= declared.ttl:
        problems.append(document.problem(("soft_ttl",), "must be more than 0s and at most ttl"))
    return problems


def _tag_rule(rule: _Index | _Circle | str) -> TagRule:
    if isinstance(rule, _Index):
        return IndexTag(rule.index, rule.values)
    if isinstance(rule, _Circle):
        return CircleTag(rule.circle, rule.easting, rule.northing, rule.metres)
    return TableTag()


def _parameter(document: Document, name: str, item: _Parameter, problems: list[Problem]) -> ParameterDeclaration:
    known = VALUE_TYPES.get(item.type)
    if known is None:
        at = ("parameters", name, "type")
        problems.append(document.problem(at, f"is not a type; there are: {', '.join(sorted(VALUE_TYPES))}"))
        known = VALUE_TYPES["text"]
    kind = known if item.maximum is None else _at_most(known, item.maximum)
    for field, value in (("example", item.example), ("default", item.default)):
        try:
            if value is not None:
                kind.normalise(value)
        except Malformed as error:
            problems.append(document.problem(("parameters", name, field), str(error)))
    return ParameterDeclaration(
        type=kind, required=item.required, example=item.example, title=item.title, default=item.default
    )


def _at_most(kind: ValueType, maximum: float) -> ValueType:
    def bounded(value: object) -> Any:
        number = kind.normalise(value)
        if number > maximum:
            raise Malformed(f"malformed_{kind.name}", f"is more than {maximum:g}")
        return number

    return replace(kind, normalise=bounded, json_schema={**kind.json_schema, "maximum": maximum})
