"""Whether a case type's schema may follow its earlier one: every case and every event made so far must stay good.

Two rules. What was valid stays valid, for a case is validated whole whenever it changes. And what a reader of events
finds stays where it was, with the same JSON type. So optional fields may be added, limits and lists of values may grow,
and words for people may change; anything else makes another case type, with another name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

# Words for people, and words about the file: they decide nothing about a case.
_WORDS = ("$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title")
# Keywords whose value maps names of the author to schemas: a field may well be called `title`.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const")
_UPPER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum", "maxContains")
_LOWER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum", "minContains")
# What is decided by the rules below. Any other keyword must stay as it is: what it means together with the rest cannot
# be judged keyword by keyword.
_JUDGED = frozenset(
    {*_UPPER, *_LOWER, *_VALUES, "type", "required", "properties", "additionalProperties", "items", "$defs"}
    | {"definitions", "pattern", "format", "uniqueItems", "x-personal", "x-immutable", "x-reference-prefix"}
)
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Break:
    """One thing that an earlier case, or a reader of earlier events, would not survive; `path` leads to it."""

    path: Path
    message: str


def contract(schema: Any) -> Any:
    """The schema without its words for people: equal for two schemas that say the same of every case."""
    if isinstance(schema, list):
        return [contract(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for word, below in schema.items():
        if word in _NAMED and isinstance(below, Mapping):
            made[word] = {name: contract(named) for name, named in below.items()}
        elif word in _VALUES:
            made[word] = below
        elif word not in _WORDS:
            made[word] = contract(below)
    return made


def breaks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Break]:
    """Everything in `after` that does not follow `before`, in the order of the schema."""
    return list(_compared(contract(before), contract(after), (), was_personal=False, is_personal=False))


def _compared(before: Any, after: Any, path: Path, *, was_personal: bool, is_personal: bool) -> Iterator[Break]:
    """Compares two schemas at one place; `was_personal` and `is_personal` say so of the fields around it."""
    if before == after and was_personal == is_personal:
        return
    old, new = _as_object(before), _as_object(after)
    yield from _types(old, new, path)
    yield from _enumerated(old, new, path)
    yield from _limits(old, new, path)
    yield from _required(old, new, path)
    yield from _fields(old, new, path, was_personal=was_personal, is_personal=is_personal)
    yield from _others(old, new, path)
    for word in ("$defs", "definitions"):
        # one that is not used any more may go; where one is used cannot have changed
        for name in old.get(word, {}).keys() & new.get(word, {}).keys():
            yield from _compared(
                old[word][name], new[word][name], (*path, word, name), was_personal=False, is_personal=False
            )
    if "items" in old or "items" in new:
        yield from _items(old, new, path, was_personal=was_personal, is_personal=is_personal)


def _as_object(schema: Any) -> Mapping[str, Any]:
    if isinstance(schema, Mapping):
        return schema
    return {} if schema is True else {"not": {}}


def _types(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    before, after = _json_types(old), _json_types(new)
    if before != after:
        yield Break(
            (*path, "type") if "type" in new else path,
            f"was {_either(before)} and is now {_either(after)}: cases hold the one, readers of events expect it",
        )


def _json_types(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """The JSON types that a value may have; None for any."""
    declared = schema.get("type")
    if declared is not None:
        return frozenset([declared] if isinstance(declared, str) else declared)
    values = _values(schema)
    return None if values is None else frozenset(_TYPES.get(type(value), "null") for value in values)


def _either(types: frozenset[str] | None) -> str:
    return "of any type" if types is None else "of type " + " or ".join(sorted(types))


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _enumerated(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    before, after = _values(old), _values(new)
    if after is None:
        return
    where = (*path, "const" if "const" in new else "enum")
    if before is None:
        yield Break(where, "allows only some values where all were allowed: cases may hold others")
        return
    gone = [value for value in before if value not in after]
    if gone:
        named = ", ".join(map(str, gone[:5]))
        yield Break(where, f"no longer has {named}: cases hold it. Keep the value, even if no form offers it")


def _limits(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    for word in (*_UPPER, *_LOWER):
        if word not in new:
            continue
        before, after = old.get(word), new[word]
        if before is None or (after < before if word in _UPPER else after > before):
            was = "was not there" if before is None else f"was {before}"
            yield Break((*path, word), f"{was} and is now {after}: cases may lie outside it")
    for word in ("pattern", "format"):
        if word in new and new[word] != old.get(word):
            yield Break((*path, word), "is new or another one: cases may not have this form")
    if new.get("uniqueItems") and not old.get("uniqueItems"):
        yield Break((*path, "uniqueItems"), "is new: cases may hold an item twice")


def _required(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    for name in new.get("required", ()):
        if name not in old.get("required", ()):
            yield Break((*path, "required"), f"newly asks for {name}: cases lack it. Leave it optional")


def _fields(
    old: Mapping[str, Any], new: Mapping[str, Any], path: Path, *, was_personal: bool, is_personal: bool
) -> Iterator[Break]:
    before, after = old.get("properties", {}), new.get("properties", {})
    added = [name for name in after if name not in before]
    for name, was in before.items():
        if name not in after:
            renamed = next((other for other in added if after[other] == was), None)
            hint = f" (renamed to {renamed}?)" if renamed else ""
            yield Break((*path, "properties", name), f"is gone{hint}: cases hold it, readers of events expect it")
            continue
        inside = (*path, "properties", name)
        sealed_before, sealed_now = was_personal or _is_marked(was), is_personal or _is_marked(after[name])
        if sealed_before and not sealed_now and "properties" not in _as_object(after[name]):
            yield Break(inside, "was personal and is no longer: what residents gave in confidence would be public")
            sealed_before = False
        yield from _compared(was, after[name], inside, was_personal=sealed_before, is_personal=sealed_now)
    is_open = old.get("additionalProperties", True) is not False
    for name in added:
        if is_open and not (is_personal or _is_marked(after[name])):
            yield Break(
                (*path, "properties", name),
                "was not declared, so cases may hold it sealed as personal: mark it x-personal, or name it otherwise",
            )
    yield from _undeclared(old, new, path)


def _undeclared(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    before, after = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if before is False or after is True or before == after:
        return
    yield Break((*path, "additionalProperties"), "allows less than before: cases may hold fields that are not declared")


def _is_marked(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("x-personal") is True


def _items(
    old: Mapping[str, Any], new: Mapping[str, Any], path: Path, *, was_personal: bool, is_personal: bool
) -> Iterator[Break]:
    yield from _compared(
        old.get("items", True),
        new.get("items", True),
        (*path, "items"),
        was_personal=was_personal,
        is_personal=is_personal,
    )


def _others(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> Iterator[Break]:
    for word in sorted((old.keys() | new.keys()) - _JUDGED):
        if old.get(word) != new.get(word):
            yield Break((*path, word), "has changed: whether cases still meet it cannot be judged")
