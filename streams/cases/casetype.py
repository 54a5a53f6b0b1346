"""What a kind of case looks like, and which parts of it are personal: read from its JSON Schema.

Beside the words of JSON Schema 2020-12 it reads three: `x-personal: true` (sealed with the case's key),
`x-immutable: true` (once set it stays) and, at the top, `x-reference-prefix` (how the resident's reference begins).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

_MARKS = ("x-personal", "x-immutable")
_OWN_WORDS = (*_MARKS, "x-reference-prefix")
# Keywords whose value maps names to schemas: a property may well be called `x-position`.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired")
# Keywords whose value is data, not schema.
_DATA = ("examples", "default", "enum", "const")
_PREFIX = re.compile(r"^[A-Z]{2,5}$")
_FIELD = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,40}$")
_MAX_PROBLEMS = 50
_MISSING = object()

# Keyword → what is wrong, without the value: a validator's own message would quote it.
_MESSAGES = {
    "enum": "is not one of the allowed values",
    "const": "is not the allowed value",
    "pattern": "does not have the expected form",
    "uniqueItems": "holds the same item twice",
}
_LIMITS = {
    "maxLength": "is longer than {} characters",
    "minLength": "is shorter than {} characters",
    "maxItems": "has more than {} items",
    "minItems": "has fewer than {} items",
    "maximum": "is more than {}",
    "minimum": "is less than {}",
    "exclusiveMaximum": "is not less than {}",
    "exclusiveMinimum": "is not more than {}",
    "multipleOf": "is not a multiple of {}",
    "maxProperties": "has more than {} fields",
    "minProperties": "has fewer than {} fields",
}


class InvalidCaseType(ValueError):
    """The schema cannot serve as a case type: `reason` says why, `where` is a JSON pointer into it, or empty."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document: where (a JSON pointer) and what, never the value."""

    pointer: str
    message: str


class CaseType:
    """One kind of case. Raises InvalidCaseType when its schema is not fit, so a running gateway only holds good ones.

    What the schema does not declare counts as personal: a forgotten field is sealed, not leaked.
    """

    def __init__(self, name: str, schema: Mapping[str, Any]) -> None:
        self.name = name
        self.schema = dict(schema)
        try:
            self._validator = jsonschema_rs.Draft202012Validator(self.schema, validate_formats=True, offline=True)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            where = pointer(tuple(error.instance_path)) if isinstance(error, jsonschema_rs.ValidationError) else ""
            raise InvalidCaseType("not a usable JSON Schema: " + str(error).splitlines()[0], where) from error
        _check_words(self.schema, ())
        self.personal = _marked(self.schema, "x-personal")
        self.immutable = _marked(self.schema, "x-immutable")
        self.statuses = _statuses(self.schema)
        self.prefix = _prefix(name, self.schema)

    def split(self, document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The public part and the personal part; `join` makes the document again."""
        return _split(self.schema, document)

    def join(self, public: Mapping[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
        """The whole document from its two parts."""
        return _join(public, personal)

    def validate(self, document: Mapping[str, Any]) -> list[Problem]:
        """Everything wrong with a whole document, at most fifty things; empty when it is sound."""
        problems: list[Problem] = []
        for error in self._validator.iter_errors(document):
            problems.extend(_problems(error))
            if len(problems) >= _MAX_PROBLEMS:
                break
        return problems[:_MAX_PROBLEMS]

    def changed(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
        """Dotted names of the declared fields that differ; names the schema does not declare are never repeated."""
        return tuple(sorted(set(_changed(self.schema, before, after, ""))))

    def broken_immutable(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
        """The pointer of a field that was set and may not change, but does; or None."""
        for path in self.immutable:
            old = _at(before, path)
            if old is not _MISSING and old != _at(after, path):
                return pointer(path)
        return None


def pointer(path: tuple[str | int, ...]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _check_words(node: object, path: tuple[str | int, ...]) -> None:
    """Refuses a misspelt or mistyped word of ours: JSON Schema overlooks it, and what it should seal stays public."""
    if isinstance(node, list):
        for index, below in enumerate(node):
            _check_words(below, (*path, index))
    if not isinstance(node, Mapping):
        return
    for word, below in node.items():
        here = (*path, word)
        if word.lower().startswith("x-") and word not in _OWN_WORDS:
            raise InvalidCaseType("is not a word of case types; they are " + ", ".join(_OWN_WORDS), pointer(here))
        if word in _MARKS and not isinstance(below, bool):
            raise InvalidCaseType("is true or false, without quotes", pointer(here))
        if word in _NAMED and isinstance(below, Mapping):
            for name, schema in below.items():
                _check_words(schema, (*here, name))
        elif word not in _DATA:
            _check_words(below, here)


def _marked(schema: Mapping[str, Any], mark: str) -> tuple[tuple[str, ...], ...]:
    """Paths of the properties with the mark. One where it would have no effect is refused: it looks like protection."""
    found = set(_reachable(schema, mark, ()))
    if len(found) != _count(schema, mark):
        raise InvalidCaseType(
            f"{mark} counts only on properties of objects, not at the top, inside items, $defs, allOf or the like: "
            "mark the property that holds it"
        )
    return tuple(sorted(found))


def _reachable(schema: Mapping[str, Any], mark: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, below in schema.get("properties", {}).items():
        if not isinstance(below, Mapping):
            continue
        if below.get(mark) is True:
            yield (*path, name)
        yield from _reachable(below, mark, (*path, name))


def _count(node: object, mark: str) -> int:
    if isinstance(node, Mapping):
        return sum(_count(below, mark) for below in node.values()) + (node.get(mark) is True)
    if isinstance(node, list):
        return sum(_count(below, mark) for below in node)
    return 0


def _split(schema: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    public: dict[str, Any] = {}
    personal: dict[str, Any] = {}
    properties = schema.get("properties", {})
    for name, value in document.items():
        below = properties.get(name)
        if not isinstance(below, Mapping) or below.get("x-personal") is True:
            personal[name] = value
        elif isinstance(value, Mapping):
            public[name], hidden = _split(below, value)
            if hidden:
                personal[name] = hidden
        else:
            public[name] = value
    return public, personal


def _join(public: Mapping[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(public)
    for name, value in personal.items():
        open_part = whole.get(name)
        whole[name] = _join(open_part, value) if isinstance(open_part, Mapping) else value
    return whole


def _at(document: object, path: tuple[str, ...]) -> object:
    for name in path:
        if not isinstance(document, Mapping) or name not in document:
            return _MISSING
        document = document[name]
    return document


def _changed(
    schema: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], within: str
) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in before.keys() | after.keys():
        old, new = before.get(name, _MISSING), after.get(name, _MISSING)
        if old == new:
            continue
        dotted = f"{within}.{name}" if within else name
        if name not in properties:
            yield within or "other"
        elif isinstance(old, Mapping) and isinstance(new, Mapping) and "properties" in properties[name]:
            yield from _changed(properties[name], old, new, dotted)
        else:
            yield dotted


def _statuses(schema: Mapping[str, Any]) -> tuple[str, ...]:
    declared = schema.get("properties", {}).get("status", {})
    statuses = declared.get("enum") if isinstance(declared, Mapping) else None
    if not isinstance(statuses, list) or not statuses or not all(isinstance(status, str) for status in statuses):
        raise InvalidCaseType("the property status needs an enum of texts, the first being the status of a new case")
    if declared.get("x-personal") is True:
        raise InvalidCaseType("the property status cannot be personal: recipients and pages show it")
    return tuple(statuses)


def _prefix(name: str, schema: Mapping[str, Any]) -> str:
    initials = "".join(word[0] for word in re.split(r"[^a-zA-Z]+", name) if word).upper()[:5]
    prefix = schema.get("x-reference-prefix", initials if len(initials) > 1 else "CASE")
    if not isinstance(prefix, str) or not _PREFIX.match(prefix):
        raise InvalidCaseType("x-reference-prefix is two to five capital letters")
    return prefix


def _problems(error: jsonschema_rs.ValidationError) -> Iterator[Problem]:
    keyword = error.kind.name
    path = tuple(error.instance_path)
    detail = error.kind.as_dict()
    if keyword == "required":
        yield Problem(pointer((*path, str(detail["property"]))), "is required")
    elif keyword in {"additionalProperties", "unevaluatedProperties"}:
        for name in detail.get("unexpected", []):
            # A name from outside may be anything: only what looks like a field's name is repeated.
            if _FIELD.match(name):
                yield Problem(pointer((*path, name)), "is not a field of this case type")
            else:
                yield Problem(pointer(path), "holds a field that this case type does not have")
    else:
        yield Problem(pointer(path), _message(keyword, detail))


def _message(keyword: str, detail: Mapping[str, Any]) -> str:
    if keyword in _LIMITS:
        return _LIMITS[keyword].format(detail.get("limit", detail.get("multiple_of")))
    if keyword == "type":
        return "is not of type " + " or ".join(detail["types"])
    if keyword == "format":
        return f"is not a valid {detail['format']}"
    return _MESSAGES.get(keyword, f"does not meet the rule {keyword}")
